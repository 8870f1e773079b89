"""Sweeps in blocks: kept in a store, killed and gone on with, computed by other processes, in parts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import ROOT

from namemovers import store
from namemovers.activation_patching import patch
from namemovers.data import ioi_task
from namemovers.path_patching import path_patch
from namemovers.store import Grid, Kept, sized


@pytest.fixture(scope="module")
def task(tiny):
    return ioi_task(tiny.tokenizer, n=6, seed=2)


@pytest.fixture
def small(monkeypatch):
    "Blocks of one prompt in the heads of one layer."
    monkeypatch.setattr(store, "SECONDS", 1e-9)


def close(a, b):
    for name in ("logit_diff", "clean", "corrupted"):
        np.testing.assert_allclose(a[name], b[name], atol=2e-6)


# --- the grid


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (12, 7, 4, 3), (5, 4, 5, 4), (3, 10, 2, 1)])
def test_blocks_cover_a_sweep_once(shape):
    grid, times = Grid(*shape), np.zeros(shape[:2])
    for block in grid:
        times[block] += 1
    assert (times == 1).all() and len(list(grid)) == len(grid)


@pytest.mark.parametrize(
    "seconds,wanted",
    [(1e-9, (4, 1)), (0.0081, (4, 2)), (0.0401, (4, 10)), (0.0801, (8, 10)), (1000.0, (40, 10))],
)
def test_blocks_are_sized_by_time(monkeypatch, seconds, wanted):
    "A prompt of the four cells that belong together takes 4 ms here."
    clock = [0.0]
    monkeypatch.setattr(store.time, "perf_counter", lambda: clock[0])

    def compute(cells, prompts):
        clock[0] += 0.001 * (cells.stop - cells.start) * (prompts.stop - prompts.start)

    grid = sized(compute, 40, 10, 4, seconds)
    assert (grid.block_cells, grid.block_prompts) == wanted


# --- the same numbers


@pytest.mark.parametrize(
    "site,by", [("z", None), ("resid_pre", None), ("v", "head_position"), ("resid_mid", "named_position")]
)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_block_by_block_is_all_at_once(tiny, task, tmp_path, small, site, by, direction):
    arguments = dict(by=by, direction=direction)
    whole = patch(tiny, task, site, **arguments)
    stored = patch(tiny, task, site, **arguments, store=tmp_path / "s")
    close(stored, whole)
    assert stored.attrs == whole.attrs and stored.effect.dims == whole.effect.dims


@pytest.mark.parametrize("engine", ["fast", "hooks"])
def test_parts_of_a_sweep_are_the_sweep(tiny, task, engine):
    whole = patch(tiny, task, "z", engine=engine)
    L, H = tiny.cfg.n_layers, tiny.cfg.n_heads
    parts = [patch(tiny, task, "z", engine=engine, layers=[l]) for l in range(L)]
    close(
        xr.concat([p[["logit_diff"]] for p in parts], "layer").assign(clean=whole.clean, corrupted=whole.corrupted),
        whole,
    )
    some = patch(tiny, task, "z", engine=engine, layers=[L - 1, 0], heads=[H - 1, 1])
    assert some.layer.values.tolist() == [0, L - 1] and some["head"].values.tolist() == [1, H - 1]
    close(some, whole.sel(layer=some.layer, head=some["head"]))
    close(
        patch(tiny, task, "resid_pre", engine=engine, layers=[1]),
        patch(tiny, task, "resid_pre", engine=engine).sel(layer=[1]),
    )


@pytest.mark.parametrize(
    "more,said",
    [
        (dict(site="z", layers=[9]), "layers.*at least one of 0 to 2"),
        (dict(site="z", layers=[]), "layers.*at least one"),
        (dict(site="z", heads=[1, 1]), "heads.*each once"),
        (dict(site="z", heads=[-1]), "heads.*0 to 3"),
        (dict(site="resid_pre", heads=[1]), "heads.*leave it out"),
        (dict(site="neurons", neurons=[(0, 1)], layers=[0]), "layers and heads do not go"),
    ],
)
def test_parts_that_are_none(tiny, task, more, said):
    with pytest.raises(ValueError, match=said):
        patch(tiny, task, **more)


def test_a_store_holds_many_sweeps_and_computes_none_twice(tiny, task, tmp_path, small, monkeypatch):
    import namemovers.activation_patching as ap

    calls = []
    asked = ap.sweep
    monkeypatch.setattr(ap, "sweep", lambda *a, **k: (calls.append(a[2]), asked(*a, **k))[1])
    one = patch(tiny, task, "z", store=tmp_path / "s")
    two = patch(tiny, task, "q", store=tmp_path / "s")
    noise = patch(tiny, task, "z", direction="noise", store=tmp_path / "s")
    calls.clear()
    again = patch(tiny, task, "z", store=tmp_path / "s")
    assert not calls
    xr.testing.assert_identical(again, one)
    assert not np.allclose(one.logit_diff, two.logit_diff) and not np.allclose(one.logit_diff, noise.logit_diff)
    tables = [p.name for p in (tmp_path / "s").iterdir() if p.is_dir()]
    assert len(tables) == 3
    table = xr.open_zarr(tmp_path / "s", group=next(t for t in tables if t.startswith("q_by_head")), consolidated=False)
    np.testing.assert_array_equal(table["values"].values.reshape(two.logit_diff.shape), two.logit_diff)
    assert table.attrs["site"] == "q" and table.attrs["weights_hash"] == two.attrs["weights_hash"]
    # another library: what it keeps is not taken for ours
    monkeypatch.setattr(store, "code_version", lambda: "another")
    patch(tiny, task, "z", store=tmp_path / "s")
    assert calls


def test_paths_are_kept_too(tiny, task, tmp_path, small, monkeypatch):
    import namemovers.path_patching as pp

    arguments = [
        dict(),
        dict(senders="mlp", receivers="heads", component=["q", "v"]),
        dict(receivers=[(2, 1), (2, 3)], component="k", sender_position="S2", receiver_position="END"),
    ]
    for more in arguments:
        whole = path_patch(tiny, task, **more)
        stored = path_patch(tiny, task, **more, store=tmp_path / "s")
        close(stored, whole)
        assert stored.attrs == whole.attrs
    monkeypatch.setattr(pp, "run_paths", lambda *a, **k: pytest.fail("computed twice"))
    close(path_patch(tiny, task, **more, store=tmp_path / "s"), whole)


# --- what is no store, or a damaged one


def chunks(path):
    return sorted(
        p
        for p in path.rglob("*")
        if p.is_file() and p.parent.parent.name == "c" and p.parent.parent.parent.name == "values"
    )


def test_a_damaged_block_is_named_and_the_others_stay(tiny, task, tmp_path, small):
    path = tmp_path / "s"
    whole = patch(tiny, task, "z", store=path)
    victim = chunks(path)[3]
    good = victim.read_bytes()
    for bad in (b"", good[:-3], good[:7] + bytes([good[7] ^ 1]) + good[8:]):
        victim.write_bytes(bad)
        with pytest.raises(ValueError, match="is damaged in z_by_head.*delete") as e:
            patch(tiny, task, "z", store=path)
        assert "\n" not in str(e.value) and str(path) in str(e.value)
    others = {p: p.stat().st_mtime_ns for p in chunks(path) if p != victim}
    victim.unlink()
    close(patch(tiny, task, "z", store=path), whole)
    assert {p: p.stat().st_mtime_ns for p in others} == others


def test_what_is_no_store_is_refused(tiny, task, tmp_path):
    import zarr

    file = tmp_path / "file"
    file.write_text("no store")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    foreign = tmp_path / "foreign"
    zarr.open_group(foreign, mode="w").create_group("mine")
    newer = tmp_path / "newer"
    zarr.open_group(newer, mode="w").attrs["namemovers_store"] = 99
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "zarr.json").write_text("{")
    expected = {
        file: "something else",
        folder: "something else",
        foreign: "somebody else",
        newer: "format 99",
        broken: "cannot be read",
        file / "below": "cannot be written",
    }
    for path, said in expected.items():
        with pytest.raises((ValueError, OSError), match=said) as e:
            patch(tiny, task, "z", store=path)
        assert "\n" not in str(e.value)
    assert (folder / "thesis.txt").read_text() == "mine" and file.read_text() == "no store"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "file", "folder", "foreign", "newer"]


def test_one_process_a_sweep(tiny, task, tmp_path, small):
    path = tmp_path / "s"
    patch(tiny, task, "z", store=path)
    name, fingerprint = next(p.name for p in path.iterdir() if p.is_dir()).rsplit("-", 1)
    with Kept(path, name, fingerprint, {}):
        with pytest.raises(RuntimeError, match="another process.*give another path"):
            patch(tiny, task, "z", store=path)
        patch(tiny, task, "q", store=path)  # another sweep in the same store
    patch(tiny, task, "z", store=path)


def test_a_sweep_whose_beginning_was_killed(tiny, task, tmp_path, small):
    path = tmp_path / "s"
    whole = patch(tiny, task, "z", store=path)
    name = next(p.name for p in path.iterdir() if p.is_dir())
    for left in ("zarr.json", "values"):  # what a kill leaves while the sweep is made: no attributes yet
        group = path / name
        about = json.loads((group / "zarr.json").read_text())
        (group / "zarr.json").write_text(json.dumps(about | {"attributes": {}}))
        if left == "values":
            shutil.rmtree(group / "values")
        close(patch(tiny, task, "z", store=path), whole)


SCRIPT = textwrap.dedent("""
    import json, os, random, resource, signal, sys, time
    import torch
    torch.set_num_threads(1)
    from namemovers import store
    from namemovers.activation_patching import patch
    from namemovers.data import ioi_task
    from namemovers.model import load_model
    model, what, path, log = load_model("mini", device="cpu"), *sys.argv[1:4]
    task = ioi_task(model.tokenizer, n=8)
    store.SECONDS = 1e-9
    write = store.Kept.write
    def counted(self, block, *values):
        write(self, block, *values)
        with open(log, "a") as f: f.write(f"{block[0].start} {block[1].start}\\n")
    store.Kept.write = counted
    if what == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try: patch(model, task, "z", store=path)
        except OSError as e: print(e)
        sys.exit()
    luck, kills = random.Random(0), 0
    before = patch(model, task, "z")
    while True:
        child = os.fork()
        if not child:
            patch(model, task, "z", store=path)
            os._exit(0)
        time.sleep(luck.uniform(0, 0.25))
        if kills < 100: os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status == 0: break
        kills += 1
    os.truncate(log, 0)
    after = patch(model, task, "z", store=path)
    gap = float(abs(after.logit_diff - before.logit_diff).max())
    print(json.dumps(dict(kills=kills, gap=gap, again=len(open(log).readlines()))))
""")


def in_a_process(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_killed_at_random_moments(tmp_path):
    "Each kill may hit a block that was computed and not yet there; never one that was there."
    said = json.loads(in_a_process("kill", tmp_path / "s", tmp_path / "log"))
    assert said["kills"] >= 1 and said["gap"] < 2e-6 and said["again"] == 0
    assert not list((tmp_path / "s").rglob("*.partial"))


def test_a_full_disk_is_one_sentence(tmp_path):
    said = in_a_process("full", tmp_path / "s", tmp_path / "log")
    assert "cannot be written" in said and "the blocks that are finished stay" in said


# --- other processes


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    os.environ |= environment
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with cluster.get_client() as client:
        yield client


def test_workers_find_the_same(tiny, task, client, tmp_path, small):
    whole = patch(tiny, task, "z")
    close(patch(tiny, task, "z", client=client), whole)
    close(patch(tiny, task, "z", client=client, store=tmp_path / "s"), whole)
    close(patch(tiny, task, "resid_pre", client=client, engine="hooks"), patch(tiny, task, "resid_pre"))
    close(path_patch(tiny, task, client=client), path_patch(tiny, task))
    assert len(chunks(tmp_path / "s")) == tiny.cfg.n_layers * len(task)


def test_a_worker_that_dies_costs_its_block_only(tiny, task, client, tmp_path, small):
    whole, path = patch(tiny, task, "z"), tmp_path / "s"
    write, killed = Kept.write, []

    def write_and_kill(self, *arguments):
        write(self, *arguments)
        if not killed:
            killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(Kept, "write", write_and_kill)
        close(patch(tiny, task, "z", client=client, store=path), whole)
    assert killed


def test_workers_refuse_other_weights(tiny_folder, task, client):
    from namemovers.model import load_model

    model = load_model(tiny_folder, device="cpu")
    with torch.no_grad():
        model.blocks[1].mlp.out.weight.mul_(1.5)
    with pytest.raises(ValueError, match="client: on a worker.*other weights"):
        patch(model, task, "z", client=client)
    del model.cfg.loaded_from
    with pytest.raises(ValueError, match="client: the model was not loaded by load_model"):
        patch(model, task, "z", client=client)


def test_a_store_whose_beginning_was_killed(tiny, task, tmp_path):
    path = tmp_path / "s"
    path.mkdir()
    (path / "zarr.json.0123abcd.partial").write_text("{")  # what zarr leaves where it is killed while it writes
    whole = patch(tiny, task, "z", store=path)
    assert not list(path.rglob("*.partial")) and [p.name for p in tmp_path.iterdir()] == ["s"]
    (path / "zarr.json.0123abcd.partial").write_text("{")
    close(patch(tiny, task, "z", store=path), whole)
    assert not list(path.rglob("*.partial"))
