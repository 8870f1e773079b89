"""A figure as PDF, SVG, PNG or HTML, a table as LaTeX or CSV: in the size of a paper's column, with its provenance."""

from .drawing import browser_path, lacking
from .figures import save_figure
from .look import COLUMNS, INK, POINTS
from .notes import read_provenance
from .tables import latex_text, save_table

__all__ = [
    "COLUMNS",
    "INK",
    "POINTS",
    "browser_path",
    "lacking",
    "latex_text",
    "read_provenance",
    "save_figure",
    "save_table",
]
