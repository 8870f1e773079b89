"""The processed notebooks as a project for Quarto.

`python -m press.quarto build/quarto` writes it, and `quarto render build/quarto` makes a site of it.

The site of this repository is built without Quarto. Who wants its looks gets the same tidied notebooks, `_quarto.yml`
with the list of pages to render, and the script that draws the figures.
"""

import json
import shutil
import sys
from pathlib import Path, PurePosixPath

from .website import Page, read_pages
from .website.build import configured, tidied_notebooks, write_files
from .website.render import page_actions


def _with_front(nb: dict, page: Page, config: dict) -> dict:
    """A notebook with the front matter, the links and the scripts that the frame of a page would have."""
    import yaml

    given = {"title": page.title, "description": page.description, "output-file": PurePosixPath(page.url).name}
    scripts = (
        f'<link rel="stylesheet" href="{page.root}assets/figures.css">'
        f'<script src="{page.root}assets/figures.js" data-root="{page.root}" defer></script>'
    )
    front = {"cell_type": "raw", "id": "front", "metadata": {}, "source": f"---\n{yaml.safe_dump(given)}---"}
    raw = f"```{{=html}}\n{page_actions(page, config)}{scripts}\n```"
    actions = {"cell_type": "markdown", "id": "actions", "metadata": {}, "source": raw}
    return {**nb, "cells": [front, actions, *nb["cells"]]}


def write_project(
    out: str | Path,  # folder to write; what is in it is replaced
    root: str | Path = ".",  # of the repository
    notebooks: str | Path | None = None,  # folder with executed notebooks; default: the repository's own
) -> Path:  # the folder
    """Write what `quarto render` takes. Raises ValueError for a folder that holds something else."""
    import yaml

    out, root = Path(out), Path(root).resolve()
    notebooks = Path(notebooks or root).resolve()
    if out.exists() and any(out.iterdir()) and not (out / "_quarto.yml").is_file():
        raise ValueError(f"out: {out} holds something that is no project for Quarto; name another folder or remove it.")
    config = configured(root)
    pages = read_pages(config)
    tidied = tidied_notebooks(notebooks, pages)
    shutil.rmtree(out, ignore_errors=True)
    write_files(notebooks, pages, config, out)
    for page in pages:
        path = out / page.staged
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_with_front(tidied[page.source], page, config)), encoding="utf-8")
    project = {**config.get("project", {}), "output-dir": "_site", "render": [page.staged for page in pages]}
    project["resources"] = ["assets/**", "notebooks/**"]
    config = {**config, "execute": {"enabled": False}, "project": project}
    (out / "_quarto.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return out


if __name__ == "__main__":
    print(write_project(sys.argv[1]))
