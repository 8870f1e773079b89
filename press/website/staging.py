"""Notebooks as nbdev shows them.

nbdev's processing runs imports and exported cells again, so that it can read signatures from live objects. Every other
cell is told to stay as it was executed (`#| eval: false`): its output is what the page shows.
"""

import json
import multiprocessing
import os
import re
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from .pages import Page

_CONFIG = '[project]\nname = "namemovers"\n[tool.nbdev]\nnbs_path = "."\nexec_profile = false\n'
_TITLE = re.compile(r"\s*# .*\n*(?:>.*\n*)*(?:- [\w-]+: .*\n*)*")
_RUNS = {"export", "exports", "exporti", "exec_doc"}


def options(source: str) -> dict[str, str]:
    """The `#| key: value` lines that open a cell."""
    found = {}
    for line in source.splitlines():
        match = re.match(r"\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$", line)
        if match:
            found[match[1]] = match[2]
        elif line.strip():
            break
    return found


def source_of(cell: dict) -> str:
    """A cell's text."""
    return "".join(cell["source"]) if isinstance(cell["source"], list) else cell["source"]


def read_notebook(path: Path) -> dict:
    """A notebook as JSON. Raises ValueError, with path and remedy, where it is damaged."""
    try:
        nb = json.loads(path.read_text(encoding="utf-8"))
        nb["cells"][:0]
    except (ValueError, KeyError, TypeError):
        remedy = "run the study again, or restore it with git checkout"
        raise ValueError(f"{path} is not a notebook (its JSON is damaged); {remedy}.") from None
    return nb


def _keep_outputs(nb: dict) -> dict:
    """Mark the cells that nbdev must not run: all but exports and `show_doc`, and what only a script would run."""
    for cell in nb["cells"]:
        source = source_of(cell)
        given = set(options(source))
        runs = given & _RUNS or re.search(r"^show_doc\(", source, re.M)
        only_script = re.search(r"^if __name__\s*==", source, re.M)
        if cell["cell_type"] == "code" and "eval" not in given and (not runs or only_script):
            source = "#| eval: false\n" + source
        cell["source"] = source
    return nb


def _title_apart(nb: dict) -> dict:
    """What follows title, description and keys in the first cell as a cell of its own, for nbdev shows none of it."""
    first = nb["cells"][0] if nb["cells"] else {"cell_type": ""}
    head = _TITLE.match(source_of(first)) if first["cell_type"] == "markdown" else None
    if head and (text := source_of(first)[head.end() :].strip()):
        first["source"] = head[0]
        nb["cells"].insert(1, {**first, "id": f"{first.get('id', 'title')}-text"[-64:], "source": text})
    return nb


def _process(stage: str) -> None:
    """Run nbdev's processing over both folders below `stage` (in a process of its own)."""
    from nbdev.serve import proc_nbs

    warnings.simplefilter("ignore")
    os.chdir(stage)
    for folder in ("nbs", "ioi_nbs"):
        if (Path(stage) / folder / "pyproject.toml").is_file():
            proc_nbs(str(Path(stage) / folder), n_workers=0)


def process_notebooks(
    notebooks: Path,  # folder that holds `nbs/` and `ioi_nbs/`
    pages: list[Page],
    stage: Path,  # folder to work in
) -> dict[str, dict]:  # notebook of each page by `Page.source`, processed
    """The notebooks of `pages` as nbdev shows them: hidden cells gone, documentation of exported functions in place."""
    (stage / "pyproject.toml").write_text(_CONFIG)
    for page in pages:
        path = stage / page.source
        path.parent.mkdir(parents=True, exist_ok=True)
        # A configuration beside each folder gives each its own cache: nbdev clears a shared one between the folders.
        (stage / page.source.split("/")[0] / "pyproject.toml").write_text(_CONFIG)
        nb = _title_apart(_keep_outputs(read_notebook(notebooks / page.source)))
        path.write_text(json.dumps(nb), encoding="utf-8")
    method = "fork" if sys.platform == "linux" else "spawn"  # a fork has the imports of this process behind it
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        pool.submit(_process, str(stage)).result()
    processed = {}
    for page in pages:
        folder, rest = page.source.split("/", 1)
        processed[page.source] = json.loads((stage / folder / "_proc" / rest).read_text(encoding="utf-8"))
    return processed
