"""The runner against what goes wrong in a long study: results that are lost, stale or mixed, disks, kills, two at
once."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from press import records, runner

ROOT = Path(__file__).parents[1]
AWAY = {**os.environ, "PYTHONPATH": str(ROOT)}
STUDY = [sys.executable, "-m", "namemovers", "study"]

SAVES = """
import numpy as np, xarray as xr
from namemovers.results import save
about = dict(model="tiny", task="mrs", n=3, seed=0, corruption="switch_subjects")
save(xr.Dataset({{"x": ("prompt", np.arange(3.0) + {value})}}, attrs=about), {name!r})
"""
PLAN = """
[study]
"nbs/00_step" = {}
"nbs/01_other" = {}
"nbs/claims" = {needs = ["nbs/00_step"]}
"""
READS = "from namemovers.results import load\nprint(float(load({name!r}).x.sum()))"


def write(path, *sources):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_code_cell(s) for s in sources]), path)


def text(path):
    return "".join(o.get("text", "") for c in nbformat.read(path, 4).cells for o in c.outputs)


@pytest.fixture
def root(tmp_path, tiny_folder, monkeypatch):
    """A repository of a step, another one, and a page that reads what the first one saves."""
    for name in ("MODEL", "N", "SEED", "CORRUPTION", "DEVICE"):
        monkeypatch.setenv(name, "")
    root = tmp_path / "clone"
    root.mkdir()
    (root / "settings.ini").write_text(f"[study]\nmodel = {tiny_folder}\nn = 3\n")
    (root / "study.toml").write_text(PLAN)
    write(root / "nbs/00_step.ipynb", SAVES.format(value=1, name="mrs_step"))
    write(root / "nbs/01_other.ipynb", SAVES.format(value=5, name="mrs_other"))
    write(root / "nbs/claims.ipynb", READS.format(name="mrs_step"))
    monkeypatch.chdir(root)
    return root


def study(root, capsys, **kw):
    """What a study did: notebook -> how it ended, and its failures."""
    capsys.readouterr()
    failures = [str(f) for f in runner.run(root, **kw)]
    lines = [
        line.split("] ", 1)[1].split(None, 1) for line in capsys.readouterr().out.splitlines() if line.startswith("[")
    ]
    how = {name: "ran" if what[0].isdigit() else what.split()[0].rstrip(":") for name, what in lines}
    return how, failures


ALL = {"nbs/00_step": "ran", "nbs/01_other": "ran", "nbs/claims": "ran"}
NONE = dict.fromkeys(ALL, "unchanged")


# --- results that are lost or stale ---------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["deleted", "truncated", "another"])
def test_a_result_that_is_lost_is_made_again(root, capsys, harm):
    assert study(root, capsys) == (ALL, [])
    assert study(root, capsys) == (NONE, [])
    path = root / "results/tiny/mrs_step.nc"
    whole = path.read_bytes()
    if harm == "deleted":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        shutil.copy(path.with_name("mrs_other.nc"), path)
    how, failures = study(root, capsys)
    assert failures == [] and how["nbs/00_step"] == "ran" and how["nbs/01_other"] == "unchanged"
    assert text(root / "results/tiny/notebooks/nbs/claims.ipynb") == "6.0\n"
    study(root, capsys)
    assert study(root, capsys) == (NONE, [])


def test_what_reads_a_result_runs_again_when_it_changes(root, capsys):
    study(root, capsys)
    write(root / "nbs/outside.ipynb", SAVES.format(value=7, name="mrs_step"))  # not by its own notebook
    study(root, capsys, only=["nbs/outside.ipynb"])
    (root / "nbs/outside.ipynb").unlink()
    how, _ = study(root, capsys)
    assert how["nbs/00_step"] == "ran" and how["nbs/01_other"] == "unchanged"
    assert text(root / "results/tiny/notebooks/nbs/claims.ipynb") == "6.0\n"


def test_a_clone_that_is_moved_runs_nothing_again(root, tmp_path, capsys, monkeypatch):
    assert study(root, capsys) == (ALL, [])
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    monkeypatch.chdir(tmp_path)
    root.rename(moved)
    monkeypatch.chdir(moved)
    assert study(moved, capsys) == (NONE, [])
    assert not [
        p for p in (moved / "results").rglob("*.ipynb") if str(tmp_path) in json.dumps(nbformat.read(p, 4).metadata)
    ]


def test_a_model_s_folder_counts_by_what_is_in_it(root, tmp_path, capsys, monkeypatch, tiny_folder):
    s = "[study]\nmodel = {}\nn = 3\n"
    here, there = root / "weights" / "tiny", tmp_path / "other" / "tiny"
    for folder in (here, there):
        shutil.copytree(tiny_folder, folder)
    (root / "settings.ini").write_text(s.format(here))
    assert study(root, capsys) == (ALL, [])
    (root / "settings.ini").write_text(s.format(there))
    assert study(root, capsys) == (NONE, [])
    with open(there / "config.json", "a") as f:
        f.write("\n")
    assert study(root, capsys) == (ALL, [])


@pytest.mark.parametrize(
    "harm",
    [
        b"",
        b"{",
        b"[]",
        b'{"metadata": []}',
        b'{"metadata": {"namemovers": []}}',
        b'{"metadata": {"namemovers": {"inputs": 3, "read": 1}}}',
    ],
)
def test_a_damaged_copy_is_made_again(root, capsys, harm):
    study(root, capsys)
    (root / "results/tiny/notebooks/nbs/01_other.ipynb").write_bytes(harm)
    how, failures = study(root, capsys)
    assert failures == [] and how["nbs/01_other"] == "ran" and how["nbs/00_step"] == "unchanged"


def test_a_damaged_notebook_is_one_sentence(root):
    (root / "nbs/01_other.ipynb").write_text('{"cells": [')
    with pytest.raises(ValueError, match=r"01_other\.ipynb is not a notebook.*git checkout"):
        runner.run(root)


# --- a step that fails ----------------------------------------------------------------------------------------------


def test_a_failing_step_takes_with_it_what_depends_on_it(root, capsys):
    assert study(root, capsys) == (ALL, [])
    write(root / "nbs/00_step.ipynb", "1 / 0")
    how, failures = study(root, capsys)
    assert how == {"nbs/00_step": "FAILED", "nbs/01_other": "unchanged", "nbs/claims": "skipped"}
    assert "ZeroDivisionError" in failures[0] and "mrs_step" in failures[1] and "nbs/00_step" in failures[1]
    assert not (root / "results/tiny/mrs_step.nc").exists() and (root / "results/tiny/set_aside/mrs_step.nc").exists()
    # It stays so, also when only the page is asked for.
    assert study(root, capsys)[0] == how
    only, failures = study(root, capsys, only=["nbs/claims.ipynb"])
    assert only["nbs/claims"] != "unchanged" and failures
    write(root / "nbs/00_step.ipynb", SAVES.format(value=2, name="mrs_step"))
    assert study(root, capsys) == ({**ALL, "nbs/01_other": "unchanged"}, [])
    assert text(root / "results/tiny/notebooks/nbs/claims.ipynb") == "9.0\n"
    assert not (root / "results/tiny/set_aside").exists()
    assert study(root, capsys) == (NONE, [])


def test_a_step_mended_to_what_it_was_before_makes_its_results_again(root, capsys):
    study(root, capsys)
    before = (root / "nbs/00_step.ipynb").read_bytes()
    write(root / "nbs/00_step.ipynb", "1 / 0")
    study(root, capsys)
    (root / "nbs/00_step.ipynb").write_bytes(before)
    how, failures = study(root, capsys)
    assert failures == [] and how["nbs/00_step"] == how["nbs/claims"] == "ran"


def test_what_tolerates_a_missing_result_runs_again_once_it_is_there(root, capsys):
    write(root / "nbs/00_step.ipynb", "1 / 0")
    write(root / "nbs/claims.ipynb", "from pathlib import Path\nprint(Path('../results/tiny/mrs_step.nc').exists())")
    how, _ = study(root, capsys)
    assert how["nbs/claims"] == "ran" and text(root / "results/tiny/notebooks/nbs/claims.ipynb") == "False\n"
    write(root / "nbs/00_step.ipynb", SAVES.format(value=2, name="mrs_step"))
    study(root, capsys)
    assert text(root / "results/tiny/notebooks/nbs/claims.ipynb") == "True\n"


def test_a_page_alone_on_older_results_is_not_taken_for_current(root, capsys):
    study(root, capsys)
    write(root / "nbs/00_step.ipynb", SAVES.format(value=2, name="mrs_step"))
    how, failures = study(root, capsys, only=["nbs/claims.ipynb"])
    assert how == {"nbs/claims": "ran"} and failures == []
    assert study(root, capsys) == ({**ALL, "nbs/01_other": "unchanged"}, [])
    assert text(root / "results/tiny/notebooks/nbs/claims.ipynb") == "9.0\n"


def test_results_of_another_n_stop_the_page(root, capsys, monkeypatch):
    study(root, capsys)
    monkeypatch.setenv("N", "2")
    how, failures = study(root, capsys, only=["nbs/claims.ipynb"])
    assert how == {"nbs/claims": "FAILED"} and "n = 3" in failures[0] and "2" in failures[0]


@pytest.mark.parametrize("n, few", [("3", True), ("40", False)])
def test_too_few_prompts_are_said_at_the_start(root, capsys, monkeypatch, n, few):
    monkeypatch.setenv("N", n)
    capsys.readouterr()
    runner.run(root, only=["nbs/01_other.ipynb"])
    said = [line for line in capsys.readouterr().out.splitlines() if "too few for any of" in line]
    assert len(said) == few and all(f"N = {n} is" in line and "untested" in line for line in said)


# --- two at once, kills ---------------------------------------------------------------------------------------------


RUNS = """
import os, time
open('../runs.part', 'w').write(str(os.getpid()))
os.rename('../runs.part', '../runs')
time.sleep(600)
"""


def start(root, *args, **env):
    return subprocess.Popen(
        [*STUDY, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=root,
        env={**AWAY, **env},
    )


def wait_for(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def test_two_studies_at_once(root, capsys):
    write(root / "nbs/01_other.ipynb", RUNS)
    first = start(root)
    wait_for((root / "runs").exists, first)
    second = subprocess.run(STUDY, capture_output=True, text=True, cwd=root, env={**AWAY, "N": "2"})
    assert second.returncode == 2 and second.stderr.count("\n") == 1
    assert "is being written by process " + str(first.pid) in second.stderr and "wait" in second.stderr
    os.kill(first.pid, signal.SIGKILL)  # whose lock must not stay
    first.communicate(timeout=60)
    kernel = Path("/proc") / (root / "runs").read_text()
    deadline = time.monotonic() + 30
    while kernel.exists() and "Z" not in (kernel / "stat").read_text().rsplit(")", 1)[1][:3]:
        assert time.monotonic() < deadline, "a kernel outlives the study that was killed"
        time.sleep(0.1)
    write(root / "nbs/01_other.ipynb", SAVES.format(value=5, name="mrs_other"))
    how, failures = study(root, capsys)
    assert failures == [] and set(how.values()) <= {"ran", "unchanged"}


def test_killed_at_any_moment(root, capsys):
    """Whatever was going on: the next study ends as if nothing had been, and nothing of the dead is left."""
    write(
        root / "nbs/01_other.ipynb",
        *[SAVES.format(value=i, name=f"mrs_other_{i}") + "\nimport time; time.sleep(0.05)" for i in range(20)],
    )
    results = root / "results/tiny"
    rng = random.Random(0)
    began = time.monotonic()
    longest = 12.0
    for _ in range(4):
        process = start(root, "--force", "nbs/00_step.ipynb", "nbs/01_other.ipynb")
        if rng.random() < 0.5:
            wait_for(lambda: next(results.glob("mrs_other_*.nc"), None) is not None, process)
            time.sleep(rng.uniform(0, 0.5))
        else:
            time.sleep(rng.uniform(0, longest))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        for path in results.glob("*.nc"):
            assert records.result_hash(path) and path.stat().st_size > 0
            path.unlink()
        if time.monotonic() - began > 240:
            break
    (results / ".mrs_step-4194305-dead.part").write_text("half")
    how, failures = study(root, capsys)
    assert failures == [] and set(how.values()) <= {"ran", "unchanged"}
    assert not list(results.rglob("*.part")) and len(list(results.glob("mrs_other_*.nc"))) == 20
    assert study(root, capsys) == (NONE, [])


@pytest.mark.parametrize("moment", ["importing", "running"])
def test_ctrl_c_is_no_traceback(root, moment):
    write(root / "nbs/00_step.ipynb", RUNS)
    process = start(root)
    if moment == "running":
        wait_for((root / "runs").exists, process)
    else:
        assert process.stdout.readline().startswith("Study of")
        time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and err.count("\n") <= 3, err


# --- disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(root):
    """Mounts a small file system, or a folder read-only; undone at the end."""
    mounts = []

    def mount(folder, *options):
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounts.append(folder)

    yield mount
    for folder in reversed(mounts):
        subprocess.run(["umount", "-l", str(folder)], check=True)


BIG = """
import numpy as np, xarray as xr
from namemovers.results import save
values = np.random.default_rng(0).normal(size=1_000_000)
save(xr.Dataset({"x": ("prompt", values)}, attrs=dict(model="tiny")), "mrs_big")
"""


def test_a_full_disk_is_one_sentence(root, mounted):
    mounted(root / "results/tiny", "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    write(root / "nbs/01_other.ipynb", BIG)
    # One at a time: otherwise it may as well be the other notebook's copy that does not fit while the big one is
    # written.
    one = ["--workers", "1", "nbs/00_step.ipynb", "nbs/01_other.ipynb"]
    done = subprocess.run([*STUDY, *one], capture_output=True, text=True, cwd=root, env=AWAY)
    told = [line for line in (done.stdout + done.stderr).splitlines() if "disk is full" in line]
    assert done.returncode == 1 and told and "mrs_big.nc" in told[0] and "free some space" in told[0]
    assert "Traceback" not in done.stdout + done.stderr and "h5py" not in done.stdout + done.stderr, (
        done.stdout + done.stderr
    )
    assert (root / "results/tiny/mrs_step.nc").is_file() and not list((root / "results").rglob("*.part"))


def test_a_disk_that_is_full_from_the_start(root, mounted):
    mounted(root / "results/tiny", "-t", "tmpfs", "-o", "size=64k", "tmpfs")
    with pytest.raises(OSError) as full, open(root / "results/tiny/ballast", "wb", buffering=0) as f:
        while True:
            f.write(bytes(4096))
    assert full.value.errno == errno.ENOSPC
    done = subprocess.run(STUDY, capture_output=True, text=True, cwd=root, env=AWAY)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "disk is full" in done.stderr, done.stderr


def test_a_folder_that_is_read_only_is_noticed_at_once(root, mounted):
    mounted(root / "results/tiny", "-t", "tmpfs", "-o", "ro", "tmpfs")
    done = subprocess.run(STUDY, capture_output=True, text=True, cwd=root, env=AWAY)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot be written" in done.stderr, done.stderr
    assert str(root / "results/tiny") in done.stderr and "Importing" not in done.stdout


@pytest.mark.parametrize("place", ["results", "results/tiny", "results/tiny/notebooks"])
def test_a_file_in_place_of_a_folder(root, place):
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text("a file")
    with pytest.raises(OSError, match="a file stands where a folder should be"):
        runner.run(root)


# --- the beginning --------------------------------------------------------------------------------------------------


def test_it_says_what_it_does_from_the_start(root):
    process = start(root)
    try:
        first = process.stdout.readline()
        assert first.startswith("Study of ")
        assert "3 of 3 notebooks to run. Importing torch" in process.stdout.readline()
        assert "Loading" in process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_what_is_slow_and_not_needed_is_not_imported(root):
    """The grammar of addresses that jsonschema would parse, for two to four seconds, in every process."""
    write(root / "nbs/00_step.ipynb", "import sys\nprint('nbformat' in sys.modules, 'rfc3987_syntax' in sys.modules)")
    runner.run(root, only=["nbs/00_step.ipynb"])
    assert text(root / "results/tiny/notebooks/nbs/00_step.ipynb") == "True False\n"


def test_nothing_is_imported_where_nothing_is_to_run(root, capsys, monkeypatch):
    study(root, capsys)
    monkeypatch.setattr(runner, "aside", None)
    monkeypatch.setattr(runner, "server", None)
    assert study(root, capsys) == (NONE, [])
