"""Executed notebooks become a website that needs no server and asks nobody outside for anything.

`build` takes a tree of executed notebooks and writes `_site/`. On the way every notebook goes through three hands:

1. nbdev hides what the author marked as hidden, and puts the documentation of every exported function where its code
   stood (`staging`);
2. `tidy` leaves one representation of each output that a page can show: a plotly figure becomes a placeholder with its
   JSON, a saved widget becomes what it showed, terminal colours go (`text`, `outputs`, `links`, `cells`);
3. pandoc, which comes with the `site` extra, makes HTML of it, and `render` puts the frame around it.

The root `_quarto.yml` is the one source of title, navigation and order.
"""

from .build import build, check
from .cells import tidy
from .links import relink
from .pages import ASSETS, GENERATED, Page, read_config, read_pages
from .render import notebook_html
from .staging import process_notebooks
from .text import plain

__all__ = [
    "ASSETS",
    "GENERATED",
    "Page",
    "build",
    "check",
    "notebook_html",
    "plain",
    "process_notebooks",
    "read_config",
    "read_pages",
    "relink",
    "tidy",
]
