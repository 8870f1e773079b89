"""The page of all public names.

The names are read from the notebooks' source, so that the index needs no import and cannot be out of step with the
pages.
"""

import ast
from pathlib import Path
from typing import NamedTuple

from .pages import GENERATED, Page
from .staging import options, read_notebook, source_of

_FRONT = """---
title: API
description: Every public name of the library, by module. A name leads to its documentation.
---"""
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class _Public(NamedTuple):
    """What a notebook exports for others."""

    module: str
    names: list[tuple[str, str]]  # functions and classes with their first sentence
    constants: list[str]


def _public(nb: dict) -> _Public:
    found = _Public("", [], [])
    for cell in nb["cells"]:
        source = source_of(cell)
        given = options(source) if cell["cell_type"] == "code" else {}
        found = found._replace(module=given.get("default_exp", found.module))
        if not {"export", "exports"} & set(given):
            continue
        for node in ast.parse(source).body:
            if isinstance(node, _DEFINITIONS) and not node.name.startswith("_"):
                first = (ast.get_docstring(node) or "").split("\n\n")[0]
                found.names.append((node.name, first.replace("\n", " ")))
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                found.constants.extend(name for name in names if name.isupper() and name[0] != "_")
    return found


def _section(page: Page, found: _Public) -> str:
    """A module's names, each with a link to where it is documented."""

    def row(name: str, doc: str) -> str:
        words = doc.replace("|", "\\|").replace("<", "&lt;")
        return f"| [`{name}`](/{page.url}#{name.lower()}) | {words} |"

    parts = [f"## `namemovers.{found.module}` {{#{found.module}}}"]
    if found.names:
        parts.append("\n".join(["| name | what it is |", "|:---|:---------|", *(row(*name) for name in found.names)]))
    if found.constants:
        links = ", ".join(f"[`{name}`](/{page.url})" for name in found.constants)
        parts.append(f"Constants: {links}.")
    return "\n\n".join(parts) + "\n"


def api_notebook(
    notebooks: Path,  # folder that holds `nbs/`
    pages: list[Page],  # of the site
) -> dict:  # a notebook
    """The page of all public names as a notebook: a section for each module, a row for each name."""
    texts = [_FRONT]
    for page in pages:
        path = notebooks / page.source
        if page.staged == GENERATED or not path.is_file():
            continue
        found = _public(read_notebook(path))
        if found.module and (found.names or found.constants):
            texts.append(_section(page, found))
    cells = [
        {"cell_type": "markdown" if i else "raw", "id": f"api-{i}", "metadata": {}, "source": text}
        for i, text in enumerate(texts)
    ]
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
