"""The command line: help, results in files, one line and status 2 for a bad argument."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

from namemovers.__main__ import main

ROOT = Path(__file__).parents[1]
COMMANDS = ["study", "patch", "attribute", "copy-scores", "models", "site", "export"]


@pytest.fixture(autouse=True)
def here(tmp_path, tiny_folder, monkeypatch):
    """Settings that name the tiny model, in an empty folder."""
    for name in ("MODEL", "N", "SEED", "CORRUPTION", "DEVICE"):
        monkeypatch.setenv(name, "")  # and so restored afterwards: options are passed on in the environment
    (tmp_path / "settings.ini").write_text(f"[study]\nmodel = {tiny_folder}\nn = 3\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args):
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in args])
    return e.value.code


def test_help_imports_no_torch():
    code = (
        "import sys; from namemovers.__main__ import main\ntry: main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'transformer_lens', 'pandas', 'plotly'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(c in done.stdout for c in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    assert call(command, "--help") == 0
    out = capsys.readouterr().out
    assert "Usage" in out and ("Example" in out or command == "models")


@pytest.mark.parametrize(
    "args, says",
    [
        (["patch", "mrs", "resid"], "resid_pre"),
        (["patch", "mrs"], "site"),
        (["patch", "abc", "z"], "mrs or ioi"),
        (["patch", "mrs", "z", "--by", "position"], "position"),
        (["patch", "mrs", "z", "--direction", "up"], "denoise"),
        (["patch", "mrs", "z", "--metric", "size"], "logit_diff"),
        (["patch", "mrs", "z", "--engine", "slow"], "hooks"),
        (["patch", "mrs", "z", "--head", "L9H9"], "layers 0 to 2"),
        (["patch", "mrs", "z", "--head", "nine"], "L9H6"),
        (["patch", "mrs", "resid_pre", "--head", "L0H0"], "--head"),
        (["patch", "mrs", "z", "-n", "0"], "n must be"),
        (["patch", "mrs", "z", "-n", "few"], "--n"),
        (["patch", "mrs", "z", "--seed", "-1"], "seed"),
        (["patch", "mrs", "z", "--corruption", "worse"], "worse"),
        (["patch", "ioi", "z", "--corruption", "worse"], "worse"),
        (["patch", "mrs", "z", "--model", "./nowhere"], "nowhere"),
        (["patch", "mrs", "z", "--device", "abacus"], "abacus"),
        (["patch", "mrs", "z", "--out", "x.csv"], "netCDF"),
        (["patch", "mrs", "z", "--out", "nowhere/x.nc"], "no folder"),
        (["patch", "mrs", "z", "--colour", "red"], "--colour"),
        (["attribute", "mrs", "--head", "L0H4"], "heads 0 to 3"),
        (["copy-scores", "Xyzzyx", "Qwrtp"], "Xyzzyx"),
        (["copy-scores", "-n", "0"], "--n"),
        (["study"], "no notebooks"),
        (["sing"], "sing"),
    ],
)
def test_bad_arguments(args, says, capsys):
    assert call(*args) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1, err


@pytest.mark.parametrize("command", [["study"], ["site"], ["export", "writeup", "--to", "x.html"]])
def test_elsewhere_it_says_that_it_needs_a_clone(command, tmp_path):
    """As pip installs it: the library alone, in a folder that is no clone."""
    library, here = tmp_path / "library", tmp_path / "here"
    here.mkdir()
    shutil.copytree(ROOT / "namemovers", library / "namemovers", ignore=shutil.ignore_patterns("__pycache__"))
    env = {**os.environ, "PYTHONPATH": str(library)}
    done = subprocess.run(
        [sys.executable, "-m", "namemovers", *command], capture_output=True, text=True, cwd=here, env=env
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "clone" in done.stderr
    assert f"python -m namemovers {command[0]}" in done.stderr
    assert str(tmp_path) in done.stderr


def test_bad_settings_file(here, capsys):
    (here / "settings.ini").write_text("[study]\nn = many\n")
    assert call("attribute", "mrs") == 2
    err = capsys.readouterr().err
    assert "many" in err and err.count("\n") == 1


def test_patch_prints_and_saves(here, capsys):
    assert call("patch", "mrs", "z", "--out", "z.nc", "--top", "2") == 0
    out = capsys.readouterr().out
    assert "MRS on" in out and "3 prompts" in out and len([l for l in out.splitlines() if l.startswith("L")]) == 2
    ds = xr.load_dataset(here / "z.nc", engine="h5netcdf")
    assert dict(ds.sizes) == {"layer": 3, "head": 4, "prompt": 3}
    assert {
        "effect",
        "logit_diff",
        "clean",
        "corrupted",
    } <= set(ds)


def test_one_head_and_positions(capsys):
    assert call("patch", "ioi", "z", "-n", "2", "--head", "L2H1", "--corruption", "abc") == 0
    out = capsys.readouterr().out
    assert [l[:4] for l in out.splitlines() if l.startswith("L")] == ["L2H1"] and "corruption abc" in out
    assert (
        call("patch", "mrs", "resid_pre", "--by", "named_position", "-n", "1", "--direction", "noise", "--top", "3")
        == 0
    )
    assert len([l for l in capsys.readouterr().out.splitlines() if l.startswith("layer ")]) == 3


def test_attribute_and_copy_scores(here, capsys):
    assert call("attribute", "ioi", "--out", "a.nc") == 0
    assert xr.load_dataset(here / "a.nc", engine="h5netcdf")["attribution"].sizes["prompt"] == 3
    assert call("copy-scores", "-n", "20", "--top", "1", "--out", "c.nc") == 0
    assert set(xr.load_dataset(here / "c.nc", engine="h5netcdf")["copy_score"].dims) == {"layer", "head", "name"}
    assert "Negative copy score" in capsys.readouterr().out


def test_models(capsys):
    assert call("models") == 0
    assert "gpt2" in capsys.readouterr().out


def test_same_settings_same_result_in_two_processes(here):
    command = ["patch", "mrs", "z", "--seed", "3", "--out"]
    done = subprocess.run([sys.executable, "-m", "namemovers", *command, "a.nc"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert call(*command, "b.nc") == 0
    assert call("patch", "mrs", "z", "--seed", "4", "--out", "c.nc") == 0
    a, b, c = (xr.load_dataset(here / f"{name}.nc", engine="h5netcdf") for name in "abc")
    xr.testing.assert_identical(a, b)
    assert not a.equals(c)
