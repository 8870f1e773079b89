"""The first cell of every notebook: in Colab, where the library is not there, it installs it or says how."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from press.website.build import _write_notebooks
from press.website.pages import Page

NOTEBOOKS = sorted(
    ROOT / path
    for path in subprocess.run(
        ["git", "ls-files", "*.ipynb"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
)
# a kernel that says it is Colab, without the library, and a pip that knows only what it is told
COLAB = """
import subprocess, sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
sys.modules["namemovers"] = None
asked = []
def pip(command, **more):
    asked.append(command[-1])
    return types.SimpleNamespace(returncode=0 if command[-1] in {known!r} else 1)
subprocess.run = pip
"""


def first_cell(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return next(source for c in notebook["cells"] if "google.colab" in (source := "".join(c["source"])))


def in_colab(cell, known, pretend=COLAB):
    code = pretend.format(known=known) + cell.replace("#| hide", "") + "\nprint(asked)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_every_notebook_has_it_first():
    cells = {}
    for path in NOTEBOOKS:
        if path.name == "benchmarks.ipynb":  # shows figures that are measured elsewhere
            continue
        notebook = json.loads(path.read_text(encoding="utf-8"))
        code = ("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code")
        source = next(
            source for source in code if not source.startswith("#| default_exp")
        )  # nbdev's, which runs nothing
        cells.setdefault(re.sub(r"namemovers\[\w+\]", "namemovers", source), []).append(path)
    assert len(cells) == 1, [paths[:3] for paths in cells.values()][1:]


@pytest.fixture
def cell():
    return first_cell(ROOT / "nbs" / "00_data.ipynb")


def test_the_published_package(cell):
    done = in_colab(cell, ["namemovers"])
    assert done.returncode == 0 and done.stdout.strip() == "['namemovers']"


def test_without_address_or_package_it_says_how_to_install(cell):
    done = in_colab(cell, [])
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError") and "%pip install namemovers-*.whl" in last and "clone" in last


def test_not_in_colab_it_does_nothing(cell):
    done = subprocess.run(
        [sys.executable, "-c", cell + "\nprint('asked' in globals())"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip() == "False"
    installed = in_colab(cell, [], COLAB.replace('sys.modules["namemovers"] = None', "import namemovers"))
    assert installed.returncode == 0 and installed.stdout.strip() == "[]"


@pytest.mark.parametrize("page", ["nbs/00_data.ipynb", "nbs/explorer.ipynb"])
def test_a_notebook_of_the_site_knows_the_address(tmp_path, page):
    address = "https://github.com/someone/namemovers"
    _write_notebooks(ROOT, [Page(page)], {"website": {"repo-url": address}}, tmp_path)
    cell = first_cell(tmp_path / "notebooks" / page)
    wanted = "namemovers" if "00_data" in page else "namemovers[notebooks]"
    place = f"{wanted} @ git+{address}"
    done = in_colab(cell, [place])
    assert done.returncode == 0 and done.stdout.strip() == str([wanted, place])
    _write_notebooks(ROOT, [Page(page)], {"website": {}}, tmp_path)
    assert Path(tmp_path / "notebooks" / page).read_bytes() == (ROOT / page).read_bytes()
    with pytest.raises(ValueError, match="repo-url.*no address"):
        _write_notebooks(ROOT, [Page(page)], {"website": {"repo-url": 'https://x/"; import os'}}, tmp_path)
