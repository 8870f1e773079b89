"""`python -m press.compare` on small made results: what is the same, what is not, and how it is told."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from namemovers.results import save
from press.compare import compare, main

ROOT = Path(__file__).parents[1]


def result(**changed):
    """A result of two layers of three heads."""
    effect = np.array([[0.0, 0.25, 1.0], [-0.5, np.nan, 20.0]], dtype="float32")
    data = {"effect": (("layer", "head"), effect), "n": ((), 6), "why": ("layer", ["", "too few"])}
    coords = {"layer": [0, 1], "head": [0, 1, 2]}
    return xr.Dataset({**data, **changed}, coords, attrs=dict(model="tiny"))


@pytest.fixture
def folders(tmp_path):
    """Two folders of the same two results."""
    for name in ("old", "new"):
        save(result(), "mrs_patch", tmp_path / name)
        save(result(), "ioi_patch", tmp_path / name / "deeper")
    return tmp_path / "old", tmp_path / "new"


def changed_effect(at, value):
    effect = result().effect.copy(deep=True)
    effect[at] = value
    return result(effect=effect)


def test_the_same(folders, capsys):
    assert compare(*folders) == []
    assert main([*map(str, folders)]) == 0
    assert capsys.readouterr().out == "The same: 2 results.\n"


@pytest.mark.parametrize("by, same", [(1e-4, True), (3e-4, True), (6e-4, False), (-6e-4, False)])
def test_floats_differ_by_rounding_of_the_largest(folders, by, same):
    """The largest is 20, so that 4e-4 is what is allowed everywhere in the variable."""
    save(changed_effect((0, 1), 0.25 + by), "mrs_patch", folders[1])
    assert (compare(*folders) == []) == same


def test_small_numbers_are_no_noise(folders):
    """A variable of p-values near 1e-4 is compared within 2e-6."""
    for folder, p in zip(folders, (1.0e-4, 1.1e-4)):
        save(result(p=("layer", [1e-4, p])), "mrs_patch", folder)
    (told,) = compare(*folders)
    assert told == "mrs_patch, p: differs in 1 of 2 cells, by 1e-05 at most; first at layer = 1: 0.0001, now 0.00011"


def test_a_difference_is_named_with_its_size_and_first_cell(folders):
    effect = result().effect.copy(deep=True)
    effect[0, 2], effect[1, 2] = 1.5, 18.0
    save(result(effect=effect), "ioi_patch", folders[1] / "deeper")
    assert compare(*folders) == [
        "deeper/ioi_patch, effect: differs in 2 of 6 cells, by 2 at most; first at layer = 0, head = 2: 1, now 1.5"
    ]


@pytest.mark.parametrize("at, value", [((1, 1), 0.0), ((0, 1), np.nan), ((0, 1), np.inf)])
def test_what_is_not_finite_must_stay_so(folders, at, value):
    save(changed_effect(at, value), "mrs_patch", folders[1])
    (told,) = compare(*folders)
    assert told.startswith("mrs_patch, effect: differs in 1 of 6 cells, 1 of them where one is not finite; first at")


@pytest.mark.parametrize(
    "made, told",
    [
        (result(n=((), 7)), "n: differs in 1 of 1 cells, by 1 at most; first at its one value: 6, now 7"),
        (result(n=((), "6")), "n: has another type: int64, now "),
        (result(why=("layer", ["", "few"])), "why: differs in 1 of 2 cells; first at layer = 1: too few, now few"),
        (result(more=((), 1.0)), "more: the variable is new"),
        (result().drop_vars("why"), "why: the variable is missing"),
        (result().transpose("head", "layer"), "effect: has another shape: {'layer': 2, 'head': 3}, now {'head': 3, 'l"),
        (
            result().assign_coords(head=[0, 2, 1]),
            "head: differs in 2 of 3 cells, by 1 at most; first at head = 1: 1, n",
        ),
    ],
)
def test_every_other_difference(folders, made, told):
    save(made, "mrs_patch", folders[1])
    (said,) = compare(*folders)
    assert said.startswith(f"mrs_patch, {told}")


def test_files_that_come_and_go(folders):
    save(result(), "mrs_more", folders[1])
    (folders[1] / "mrs_patch.nc").unlink()
    assert compare(*folders) == ["mrs_patch: the result is missing", "mrs_more: the result is new"]


def test_the_command(folders):
    command = [sys.executable, "-m", "press.compare", *map(str, folders)]
    save(result(n=((), 7)), "mrs_patch", folders[1])
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stdout.startswith("mrs_patch, n: differs") and not ended.stderr


@pytest.mark.parametrize("harm", ["empty", "damaged"])
def test_what_cannot_be_compared_is_no_success(folders, capsys, harm):
    if harm == "damaged":
        (folders[1] / "mrs_patch.nc").write_bytes(b"nothing")
    new = folders[1] if harm == "damaged" else folders[1] / "nowhere"
    assert main([str(folders[0]), str(new)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("cannot be read" if harm == "damaged" else "There are no results") in said
