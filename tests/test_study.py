"""The runner of notebooks: order, fresh state, failures, resuming, interruption; the headline table."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import xarray as xr
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from namemovers import results
from press import headline, kernels, notebooks, outputs, runner


ROOT = Path(__file__).parents[1]
AWAY = {**os.environ, "PYTHONPATH": str(ROOT)}  # of a process that works in another folder


def write(path, *sources):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_code_cell(s) for s in sources]), path)
    return path


def text(cell):
    return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


@pytest.fixture
def root(tmp_path, tiny_folder, monkeypatch):
    """An empty repository that studies the tiny model, without an order."""
    for name in ("MODEL", "N", "SEED", "CORRUPTION", "DEVICE"):
        monkeypatch.setenv(name, "")
    (tmp_path / "settings.ini").write_text(f"[study]\nmodel = {tiny_folder}\nn = 3\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "0"\n[tool.nbdev]\nnbs_path = "nbs"\ntst_flags = "notest"\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def copies(root):
    return root / "results" / "tiny" / "notebooks"


def test_which_notebooks_there_are(tmp_path):
    hidden = ("nbs/_draft", "nbs/.ipynb_checkpoints/a")
    for name in ("ioi_nbs/00_data", "nbs/index", "nbs/00_data", "nbs/core/model", *hidden):
        write(tmp_path / f"{name}.ipynb", "1")
    found = [p.with_suffix("").as_posix() for p in notebooks.notebooks(tmp_path)]
    assert found == ["nbs/00_data", "nbs/core/model", "nbs/index", "ioi_nbs/00_data"]
    with pytest.raises(ValueError, match="no notebooks"):
        notebooks.notebooks(tmp_path / "nowhere")


def test_outputs_are_those_of_jupyter(tmp_path):
    path = write(
        tmp_path / "a.ipynb",
        "import os, torch\nprint(os.getcwd())\ntorch.randn(300, 300) @ torch.randn(300, 300)\ntorch.get_num_threads()",
        "print('one'); display('two'); print('three')",
        "import plotly.express as px\npx.scatter(x=[1], y=[2])",
        "from IPython.display import Markdown\nMarkdown('**bold**')",
        "#| eval: false\n1 / 0",
        "import ipywidgets\nipywidgets.IntSlider(7)",
        "import sys; print('careful', file=sys.stderr)",
        "import multiprocessing\nwith multiprocessing.get_context('fork').Pool(1) as pool: print(pool.map(abs, [-3]))",
    )
    nb = asyncio.run(kernels.execute(path))
    first, order, figure, rich, left_out, widget, stderr, children = nb.cells
    assert text(first).splitlines() == [str(tmp_path), "1"]
    assert [text(nbformat.from_dict({"outputs": [o]})).strip() for o in order.outputs] == ["one", "'two'", "three"]
    assert any("application/vnd.plotly.v1+json" in o.get("data", {}) for o in figure.outputs)
    assert rich.outputs[0].data["text/markdown"] == "**bold**"
    assert left_out.outputs == []
    assert "application/vnd.jupyter.widget-view+json" in widget.outputs[0].data
    assert nb.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    assert stderr.outputs[0].name == "stderr"
    assert text(children) == "[3]\n"
    assert nbformat.read(path, 4).cells[0].outputs == [], "the file itself stays as it was"


def test_state_is_fresh(tmp_path):
    path = write(
        tmp_path / "a.ipynb", "import json\nprint(hasattr(json, 'mark'), 'mark' in globals())\njson.mark = mark = 1"
    )
    for _ in range(2):
        assert text(asyncio.run(kernels.execute(path)).cells[0]) == "False False\n"


def test_kernels_without_fork(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "can_fork", lambda: False)
    nb = asyncio.run(kernels.execute(write(tmp_path / "a.ipynb", "print(6 * 7)")))
    assert text(nb.cells[0]) == "42\n"


def test_a_dead_kernel_is_an_error(tmp_path):
    with pytest.raises(kernels.NotebookError, match=r"a\.ipynb, cell 1 of 1: the kernel died"):
        asyncio.run(kernels.execute(write(tmp_path / "a.ipynb", "import os; os._exit(1)")))


def test_a_failing_notebook(root, copies, capsys):
    write(root / "nbs/00_bad.ipynb", "x = 1", "def f(): raise KeyError('boo')", "f()", "open('never', 'w')")
    write(root / "nbs/01_good.ipynb", "print('good')")
    write(root / "nbs/index.ipynb", "print('home')")
    failures = runner.run(root)
    assert [str(f) for f in failures] == ["nbs/00_bad.ipynb, cell 3 of 4: KeyError: 'boo'"]
    out = capsys.readouterr().out
    assert "[3/3] nbs/index" in out and "raise KeyError('boo')" in out and "FAILED" in out
    bad, good, home = (nbformat.read(copies / f"nbs/{n}.ipynb", 4) for n in ("00_bad", "01_good", "index"))
    assert bad.cells[2].outputs[0].ename == "KeyError" and not bad.metadata.namemovers.inputs
    assert text(good.cells[0]) == "good\n" and text(home.cells[0]) == "home\n"
    assert not (root / "nbs/never").exists()


def test_resumes(root, capsys, monkeypatch):
    mark = "open('../ran', 'a').write('{0} ')"
    first = '[study]\n"nbs/00_a" = {}\n"nbs/core/b" = {}\n"ioi_nbs/00_c" = {}\n'
    (root / "study.toml").write_text(first + '"nbs/index" = {needs = ["ioi_nbs/00_c"]}\n')
    for name in ("nbs/00_a", "nbs/core/b", "ioi_nbs/00_c", "nbs/index"):
        write(root / f"{name}.ipynb", mark.format(name) if "core" not in name else "1")
    ran = lambda: sorted((root / "ran").read_text().split()) if (root / "ran").exists() else []

    def again(**kw):
        (root / "ran").unlink(missing_ok=True)
        capsys.readouterr()
        assert runner.run(root, **kw) == []
        return ran(), capsys.readouterr().out.count("unchanged")

    everything = sorted(["nbs/00_a", "ioi_nbs/00_c", "nbs/index"])
    assert again() == (everything, 0)
    assert again() == ([], 4)
    assert again(force=True) == (everything, 0)
    # Outputs are no source; a changed source runs again, and so does what comes after it.
    nb = nbformat.read(root / "ioi_nbs/00_c.ipynb", 4)
    nb.cells[0].outputs = [nbformat.v4.new_output("stream", text="x")]
    nbformat.write(nb, root / "ioi_nbs/00_c.ipynb")
    assert again() == ([], 4)
    nb.cells.append(new_markdown_cell("A word."))
    nbformat.write(nb, root / "ioi_nbs/00_c.ipynb")
    assert again() == (["ioi_nbs/00_c", "nbs/index"], 2)
    monkeypatch.setenv("N", "2")
    assert again() == (everything, 0)
    assert again(only=["nbs/index"]) == ([], 1)


def test_wrong_settings_stop_it_before_it_starts(root, monkeypatch):
    write(root / "nbs/00_a.ipynb", "open('../ran', 'w')")
    for name, value, message in (
        ("N", "0", "at least 1"),
        ("MODEL", "./nowhere", "nowhere"),
        ("CORRUPTION", "nonsense", "nonsense"),
    ):
        with monkeypatch.context() as m:
            m.setenv(name, value)
            with pytest.raises(ValueError, match=message) as e:
                runner.run(root)
            assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="nbs/b"):
        runner.run(root, only=["nbs/b"])
    with pytest.raises(ValueError, match="workers"):
        runner.run(root, workers=0)
    assert not (root / "ran").exists()


def test_update_writes_clean_outputs_into_the_source(root):
    path = write(root / "nbs/00_a.ipynb", "print(6 * 7)", "import os; os.environ['N']")
    write(root / "nbs/01_bad.ipynb", "1 / 0")
    before = (root / "nbs/01_bad.ipynb").read_text()
    assert len(runner.run(root, update=True)) == 1
    nb = json.loads(path.read_text())
    assert nb["cells"][0]["outputs"][0]["text"] == ["42\n"]
    assert nb["cells"][0]["execution_count"] is None and "namemovers" not in nb["metadata"]
    assert (root / "nbs/01_bad.ipynb").read_text() == before


def test_ctrl_c_leaves_nothing_behind(root, copies):
    write(root / "nbs/00_quick.ipynb", "1")
    write(root / "nbs/01_slow.ipynb", "import os, time\nopen('../pid', 'w').write(str(os.getpid()))\ntime.sleep(600)")
    process = subprocess.Popen(
        [sys.executable, "-m", "namemovers", "study"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=AWAY,
    )
    deadline = time.monotonic() + 240
    while not ((root / "pid").exists() and (root / "pid").read_text() and (copies / "nbs/00_quick.ipynb").exists()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert not Path(f"/proc/{(root / 'pid').read_text()}").exists() or sys.platform != "linux"
    assert [p.name for p in copies.rglob("*") if p.is_file()] == ["00_quick.ipynb"]


def test_rerun(root):
    (root / "study.toml").write_text('[study]\n"nbs/00_good" = {}\n"ioi_nbs/00_after" = {needs = ["nbs/00_good"]}\n')
    write(root / "nbs/00_good.ipynb", "open('../saved', 'w').write('1');", "#| eval: false\n1 / 0", "#| notest\n1 / 0")
    write(root / "ioi_nbs/00_after.ipynb", "assert open('../saved').read() == '1'")
    write(root / "nbs/01_bad.ipynb", "assert 1 == 2")
    code = "from press.rerun import rerun; print(*rerun())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=AWAY)
    assert done.stdout.splitlines()[-2:] == ["2 notebooks passed, 1 failed", "nbs/01_bad.ipynb"], done.stderr
    assert "assert 1 == 2" in done.stdout
    assert not (root / "saved").exists(), "tests work on a copy"


def test_headline(tmp_path):
    assert "No headline" in headline.headline(tmp_path) and "mrs_head_attribution" in headline.headline(tmp_path)
    rng = np.random.default_rng(0)
    heads = np.zeros((3, 4, 20)) + rng.normal(0, 0.01, (3, 4, 20))
    heads[2, 1] += 0.75
    heads[1, 3] += 0.25
    noise = rng.permuted(np.tile([-3.0, 3.1], 10)) * np.ones((3, 4, 1))  # large, but of no sign
    over = lambda dim: dict(dims=("layer", "head", dim), coords=dict(layer=range(3), head=range(4)))
    for task in ("mrs", "ioi"):
        logit_diff = xr.DataArray(np.full(20, 3.5) + rng.normal(0, 0.1, 20), dims="prompt")
        attribution = xr.DataArray(heads if task == "mrs" else noise, **over("prompt"))
        results.save(
            xr.Dataset({"attribution": attribution, "logit_diff": logit_diff}), f"{task}_head_attribution", tmp_path
        )
        results.save(xr.Dataset({"effect": xr.DataArray(heads, **over("prompt"))}), f"{task}_patch_z_head", tmp_path)
    results.save(xr.Dataset({"copy_score": xr.DataArray(heads, **over("name"))}), "copy_scores", tmp_path)
    rows = {line.split("   ")[0]: line for line in headline.headline(tmp_path, k=2).splitlines()}
    assert rows["prompts"].count("20") == 2
    assert rows["logit difference"].count("3.5") >= 2 and rows["logit difference"].count("[3.") == 2
    assert rows["top heads by patching"].count("L2H1 0.75, L1H3 0.25") == 2
    assert rows["top heads by attribution"].count("L2H1 0.75, L1H3 0.25") == 1, (
        "of both tasks, one has heads that are sure"
    )
    assert rows["top heads by attribution"].endswith("none")
    assert rows["top heads by copy score"].count("L2H1 0.75") == 2
    (tmp_path / "ioi_head_attribution.nc").write_bytes(b"no netCDF")
    assert headline.headline(tmp_path).startswith("No headline")


# --- committed outputs against a run of today -----------------------------------------------------------------------


def stream(text):
    return nbformat.v4.new_output("stream", text=text)


def shows(*cells, mark=""):
    code = [new_code_cell(f"{mark}x", outputs=[output]) for output in cells]
    return json.loads(nbformat.writes(new_notebook(cells=code)))


@pytest.mark.parametrize(
    ("committed", "now"),
    [
        ("took 3.2 s", "took 12.25 s"),
        ("<object at 0x7f3a9c1b2d30>", "<object at 0x7f0000000001>"),
        ("mean 0.512 [0.40, 0.61]", "mean 0.513 [0.41, 0.61]"),
        ("mean −3.3e−06", "mean −3.35e−06"),
        ("mean −9.7e−08, n = 1", "mean 0, n = 1"),
        ("mean −9.7e−08 q = 0.2", "mean 1.1e−08 q = 0.7"),
        ("mean 0.25 q = 0.206", "mean 0.25 q = 0.165"),
        ("a    b\n-----\n0.5", "a b\n---\n0.50"),
    ],
)
def test_what_may_vary(committed, now):
    assert outputs.differences(shows(stream(committed)), shows(stream(now))) == []


@pytest.mark.parametrize(
    ("committed", "now"),
    [
        ("12 heads", "13 heads"),
        ("mean 0.512", "mean 0.53"),
        ("mean 0.51", "mean −0.51"),
        ("L9H6 0.51", "L9H7 0.51"),
        ("holds", "does not hold"),
        ("mean 0.51 q = 0.04", "mean 0.51 q = 0.06"),
        ("mean 3.1e−06", "mean 3.1e−05"),
        ("one\ntwo", "one"),
        ("n = 50", "n = 50.0"),
    ],
)
def test_what_may_not(committed, now):
    (told,) = outputs.differences(shows(stream(committed)), shows(stream(now)))
    assert told.startswith("cell 1, committed") and committed in told and now in told
    assert (
        outputs.differences(shows(stream(committed), mark="#| varies\n"), shows(stream(now), mark="#| varies\n")) == []
    )


def figure(**layout):
    import plotly.graph_objects as go

    made = go.Figure(go.Heatmap(z=np.array([[0.5, 0.25], [1e-9, 1.0]]) * layout.pop("times", 1.0)), layout)
    data = {"application/vnd.plotly.v1+json": json.loads(made.to_json())}
    return nbformat.v4.new_output("display_data", data)


def test_figures_are_compared_by_their_data():
    same = shows(figure())
    assert outputs.differences(same, shows(figure(times=1 + 1e-5))) == []
    (told,) = outputs.differences(same, shows(figure(times=1.01)))
    assert "data[0].z" in told
    (told,) = outputs.differences(same, shows(figure(title_text="Another")))
    assert "layout.title" in told
    assert outputs.differences(same, shows(stream("no figure")))


def test_cells_that_show_more_or_less():
    two = json.loads(nbformat.writes(new_notebook(cells=[new_code_cell("x", outputs=[stream("a"), figure()])])))
    (told,) = outputs.differences(two, shows(stream("a")))
    assert "figure" in told
    assert outputs.differences(
        shows(stream("a")), json.loads(nbformat.writes(new_notebook(cells=[new_code_cell("x")])))
    )


def test_a_committed_output_that_is_not_what_comes_out_fails_the_rerun(root):
    cells = [
        new_code_cell("print(6 * 7)", outputs=[stream("41\n")]),
        new_code_cell("#| varies\nprint(6 * 7)", outputs=[stream("41\n")]),
    ]
    (root / "nbs").mkdir()
    nbformat.write(new_notebook(cells=cells), root / "nbs/00_stale.ipynb")
    write(root / "nbs/01_good.ipynb", "1;")
    done = subprocess.run([sys.executable, "-m", "press.rerun"], capture_output=True, text=True, env=AWAY)
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "1 notebooks passed, 1 failed", (
        done.stdout + done.stderr
    )
    assert "nbs/00_stale.ipynb, cell 1, committed" in done.stdout and "41" in done.stdout and "42" in done.stdout
    assert "cell 2" not in done.stdout
