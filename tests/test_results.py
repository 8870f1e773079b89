"""Results come back from the disk as they went."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from namemovers.results import load, provenance, save, stamp


@pytest.fixture
def ds():
    rng = np.random.default_rng(0)
    return xr.Dataset(
        dict(
            effect=(("layer", "head", "prompt"), rng.normal(size=(2, 3, 4))),
            clean=("prompt", rng.normal(size=4).astype("float32")),
            token=(("layer", "prompt"), np.array([[" a", "<b>", "é", ""]] * 2, dtype=object)),
            ok=("prompt", np.array([True, False, True, True])),
            nothing=("layer", [np.nan, 1.0]),
        ),
        coords=dict(layer=[0, 1], head=[0, 1, 2], prompt=range(4), position=("layer", ["S1", "END"])),
        attrs=dict(
            model="mini",
            task="mrs",
            n=4,
            seed=0,
            exact=True,
            screen=None,
            names=["S1", "S2"],
            nested={"a": [1, 2.5]},
            note="json: no",
            empty="",
            share=0.5,
        ),
    )


def test_round_trip_without_loss(tmp_path, ds):
    path = save(ds, "mrs_x", tmp_path)
    assert path == tmp_path / "mrs_x.nc"
    back = load("mrs_x", tmp_path)
    xr.testing.assert_identical(ds, back)
    assert back.attrs == ds.attrs
    assert back.attrs["exact"] is True
    assert back.attrs["screen"] is None
    assert isinstance(back.attrs["n"], int)
    assert back.effect.dtype == ds.effect.dtype and back.clean.dtype == ds.clean.dtype and back.ok.dtype == bool


def test_variable_attrs_come_back(tmp_path, ds):
    ds["effect"].attrs = {"unit": "share", "flag": False}
    save(ds, "x", tmp_path)
    assert load("x", tmp_path)["effect"].attrs == {"unit": "share", "flag": False}


def test_saving_leaves_the_result_as_it_was(tmp_path, ds):
    before = ds.copy(deep=True)
    save(ds, "x", tmp_path)
    xr.testing.assert_identical(before, ds)
    assert ds.attrs["exact"] is True


def test_default_folders(tmp_path, ds, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODEL", raising=False)
    assert save(ds, "x") == tmp_path / "results" / "mini" / "x.nc"
    assert load("x").attrs["model"] == "mini"
    ds.attrs["model"] = "me/other"
    assert save(ds, "x") == tmp_path / "results" / "me--other" / "x.nc"
    monkeypatch.setenv("MODEL", "me/other")
    assert load("x").attrs["model"] == "me/other"


def test_a_failed_save_leaves_the_old_file(tmp_path, ds, monkeypatch):
    save(ds, "x", tmp_path)

    def fails(*a, **k):
        raise RuntimeError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fails)
    with pytest.raises(RuntimeError):
        save(ds.assign_attrs(n=99), "x", tmp_path)
    assert load("x", tmp_path).attrs["n"] == 4
    assert os.listdir(tmp_path) == ["x.nc"]


def test_a_missing_result_says_what_is_there(tmp_path, ds):
    save(ds, "mrs_logit_lens", tmp_path)
    with pytest.raises(FileNotFoundError) as e:
        load("nope", tmp_path)
    assert "nope" in str(e.value) and "mrs_logit_lens" in str(e.value) and "make study" in str(e.value)


@pytest.mark.parametrize("name", ["", "a/b", "../x"])
def test_names_that_are_no_names(tmp_path, ds, name):
    with pytest.raises(ValueError, match="name"):
        save(ds, name, tmp_path)


def test_provenance(tiny):
    from namemovers.data import mrs_task

    task = mrs_task(tiny.tokenizer, n=3)
    p = provenance(tiny, task, site="z", screen=None)
    assert p["model"] == "tiny" and p["task"] == "mrs" and p["n"] == 3 and p["site"] == "z" and "screen" not in p
    assert p["corruption"] == task.corruption and p["transformer_lens_version"].startswith("4.")
    json.dumps(p)
    assert p == provenance(tiny, task, site="z")


def test_the_same_in_two_processes(tiny_folder, tmp_path):
    """Measured and saved twice, in two processes with other hash seeds: the same numbers and attributes."""
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from namemovers.model import load_model\n"
        "from namemovers.data import mrs_task\n"
        "from namemovers.logit_lens import logit_lens\n"
        "from namemovers.results import save\n"
        "from namemovers.stats import summarise\n"
        f"m = load_model({str(tiny_folder)!r}, device='cpu'); ds = logit_lens(m, mrs_task(m.tokenizer, n=6))\n"
        "save(ds, 'lens', sys.argv[1]); save(summarise(ds.contribution), 'summary', sys.argv[1])\n"
    )
    for i in "12":
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / i)],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": i},
            capture_output=True,
        )
    for name in ("lens", "summary"):
        xr.testing.assert_identical(load(name, tmp_path / "1"), load(name, tmp_path / "2"))


def test_what_is_made_of_one_variable_says_where_it_comes_from(tiny, tmp_path):
    """`summarise(ds.effect)`, as everybody writes it, and a table and a figure of it."""
    from conftest import told_apart

    from namemovers.activation_patching import patch
    from namemovers.attribution_patching import attribute, patch_screened
    from namemovers.data import ioi_task
    from namemovers.circuits import ablate_edges
    from namemovers.path_patching import path_patch
    from namemovers.publish import read_provenance, save_table
    from namemovers.stats import summarise

    task = told_apart(tiny, ioi_task(tiny.tokenizer, n=12, seed=3))
    found = {
        "patch": patch(tiny, task, "z"),
        "screened": patch_screened(tiny, task, "z", screen=2),
        "attribute": attribute(tiny, task, "z"),
        "path_patch": path_patch(tiny, task),
        "edges": ablate_edges(tiny, task),
    }
    for name, ds in found.items():
        s = summarise(ds.effect, n_resamples=9)
        assert {k: v for k, v in ds.attrs.items() if s.attrs.get(k) != v} == {}, name
        save(ds, name, tmp_path)
        assert summarise(load(name, tmp_path).effect, n_resamples=9).attrs == s.attrs, name
        xr.testing.assert_identical(ds, load(name, tmp_path))
    table = save_table(summarise(found["patch"].effect, n_resamples=9), tmp_path / "heads.tex")
    assert read_provenance(table)["model"] == "tiny"


def test_a_stamp_is_over_what_a_variable_was_made_of(ds):
    """An effect made of a run that another measurement stamped is this measurement's."""
    ds["effect"].attrs = {"unit": "share", "model": "another"}
    stamped = stamp(ds)
    assert stamped.effect.attrs == {"unit": "share", **ds.attrs} and stamped.clean.attrs == ds.attrs == stamped.attrs
    assert ds.clean.attrs == {} and ds["effect"].attrs == {"unit": "share", "model": "another"}


@pytest.mark.parametrize(
    "name, attrs, says",
    [
        ("mrs_x", dict(n=4), "n = 4, but the settings ask for 7"),
        ("mrs_x", dict(n=7, seed=1), "seed = 1"),
        ("mrs_x", dict(n=7, corruption="no_cue"), "corruption = 'no_cue'"),
        ("ioi_x", dict(task="ioi", n=8), "n = 8"),
        ("mrs_x_n1", dict(n=7), "n = 7"),
        ("copy_scores", dict(task=None, n=1224, seed=1), "seed = 1, but the settings ask for 0"),
        ("pattern_scores", dict(task=None, n=24, seed=3), "seed = 3"),
        ("survey", dict(task=None, n=20, seed=3), "seed = 3"),
        ("survey", dict(task=None, n=20, seed=None), "seed = None"),
        ("circuit_overlap", dict(task="mrs, ioi", n=8), "n = 8"),
        ("circuit_overlap", dict(task="mrs, ioi", n=7, seed=1), "seed = 1"),
    ],
)
def test_results_of_another_study_are_refused(tmp_path, ds, monkeypatch, name, attrs, says):
    for variable in ("MODEL", "N", "SEED", "CORRUPTION"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "settings.ini").write_text("[study]\nn = 7\n")
    monkeypatch.chdir(tmp_path)
    ds.attrs["corruption"] = "switch_subjects"
    attrs = {key: value for key, value in (ds.attrs | attrs).items() if value is not None}
    ds = ds.drop_attrs(deep=False).assign_attrs(attrs)
    path = save(ds, name)
    for folder in (None, path.parent):
        with pytest.raises(ValueError) as e:
            load(name, folder)
        assert says in str(e.value) and str(path) in str(e.value) and "make study" in str(e.value)
    elsewhere = tmp_path / "elsewhere"
    save(ds, name, elsewhere)
    assert load(name, elsewhere)["effect"].equals(ds["effect"])


def test_results_of_this_study_are_not(tmp_path, ds, monkeypatch):
    monkeypatch.setenv("N", "")
    (tmp_path / "settings.ini").write_text("[study]\nn = 7\n")
    monkeypatch.chdir(tmp_path)
    fits = dict(n=7, seed=0, corruption="switch_subjects")
    for name, attrs in (
        ("mrs_x", fits),
        ("mrs_x_n1", fits | dict(n=1)),
        ("ioi_x", fits | dict(task="ioi", corruption="abc")),
        ("copy_scores", dict(n=1224)),
        ("mine", dict(n=3)),
        ("mrs_of_mine", dict(task="own", n=3, seed=5)),
        ("circuit_overlap", fits | dict(task="mrs, ioi")),
    ):
        kept = ds.assign_attrs(attrs)
        if name == "copy_scores":
            del kept.attrs["task"]
        save(kept, name)
        assert load(name).attrs["n"] == attrs["n"]


@pytest.mark.parametrize("damage", ["empty", "half", "zeros", "text"])
def test_a_damaged_result_says_which_and_what_to_do(tmp_path, ds, damage):
    path = save(ds, "x", tmp_path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = dict(empty=b"", half=whole[:middle], zeros=whole[:middle] + bytes(len(whole) - middle), text=b"no netCDF")
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError) as e:
        load("x", tmp_path)
    assert str(path) in str(e.value) and "remove it" in str(e.value) and "\n" not in str(e.value)


def test_results_of_other_prompts_than_the_studys_have_an_n_of_their_own_and_its_seed(tmp_path, monkeypatch):
    "Copy scores draw names, patterns random tokens, stability hundreds of prompts, all with the seed of the study."
    for name in ("MODEL", "N", "SEED", "CORRUPTION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "settings.ini").write_text("[study]\nmodel = mini\nn = 6\nseed = 1\ncorruption = new_subjects\n")
    monkeypatch.chdir(tmp_path)
    ds = xr.Dataset({"x": ("prompt", np.arange(3.0))}, attrs=dict(model="mini"))
    study = dict(task="mrs", seed=1, corruption="new_subjects")
    for name, attrs in (
        ("copy_scores", dict(n=1224, seed=1)),
        ("pattern_scores", dict(n=24, seed=1)),
        ("mrs_one_prompt", study | dict(n=400)),
        ("ioi_stability", dict(task="ioi", n=400, seed=1)),
    ):
        save(ds.assign_attrs(attrs), name)
        assert load(name).attrs["n"] == attrs["n"]
    for name, attrs in (
        ("mrs_one_prompt", study | dict(n=400, seed=0)),
        ("mrs_paths", study | dict(n=7)),
        ("copy_scores", dict(n=1224, seed=0)),
        ("pattern_scores", dict(n=24, seed=0)),
    ):
        save(ds.assign_attrs(attrs), name)
        with pytest.raises(ValueError, match="the settings ask for"):
            load(name)
