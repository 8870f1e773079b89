"""A real JupyterLab, started here: a notebook of the study runs in it, and the explorer is used as a person would."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from conftest import small_tokenizer, write_checkpoint

ROOT = Path(__file__).parents[1]
WAIT = 240_000  # ms; a busy machine is slow, and nothing here waits longer than it must
STARTED = """name => { const shown = window.jupyterapp?.shell?.currentWidget
    return shown?.context?.path === name && shown.sessionContext.session?.kernel?.status === 'idle' }"""


def notebook(path, *cells):
    nbformat.write(
        new_notebook(
            cells=[new_code_cell(c) for c in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        ),
        path,
    )


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    "The address of a JupyterLab whose folder holds copies of notebooks, and the folder."
    base = tmp_path_factory.mktemp("lab")
    folder, own = base / "work", {name: base / name for name in ("config", "data", "runtime")}
    (folder / "nbs").mkdir(parents=True)
    shutil.copy(ROOT / "settings.ini", folder)
    shutil.copy(ROOT / "nbs" / "00_data.ipynb", folder / "nbs")
    notebook(
        folder / "explore.ipynb",
        "import namemovers\napp = namemovers.explore('mini')\napp",
        (
            "import json, pathlib\n"
            "shown = dict(state=app.state, figure=app.figure, head=app.head)\n"
            "pathlib.Path('back.json').write_text(json.dumps(shown))"
        ),
    )
    larger = write_checkpoint(base / "larger", small_tokenizer(), n_layer=10, n_head=10, n_embd=320)
    notebook(
        folder / "sweep.ipynb",
        f"import namemovers\napp = namemovers.explore({str(larger)!r}, state={{'view': 'predictions'}})\napp",
    )
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        **{f"JUPYTER_{name.upper()}_DIR": str(path) for name, path in own.items()},
    }
    log = open(base / "log", "w")
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyter",
            "lab",
            "--allow-root",
            "--no-browser",
            "--port=0",
            "--IdentityProvider.token=",
            f"--ServerApp.root_dir={folder}",
            "--LabApp.expose_app_in_browser=True",
            "--LabApp.news_url=",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ],
        env=env,
        stdout=log,
        stderr=log,
        cwd=folder,
    )
    try:
        deadline = time.monotonic() + WAIT / 1000
        while not (running := list(own["runtime"].glob("jpserver-*.json"))):
            assert server.poll() is None and time.monotonic() < deadline, (base / "log").read_text()[-3000:]
            time.sleep(0.1)
        yield json.loads(running[0].read_text())["url"], folder
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


class Lab:
    "A notebook in JupyterLab. Requests that leave the machine, and errors of the page, fail the test."

    def __init__(self, browser, lab, name):
        self.url, self.folder = lab
        self.name, self.wrong = name, []
        self.context = browser.new_context(
            viewport={"width": 1400, "height": 1300}, permissions=["clipboard-read", "clipboard-write"]
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("pageerror", lambda e: self.wrong.append(str(e)))
        self.page.on(
            "request",
            lambda r: r.url.startswith((self.url, "data:", "blob:")) or self.wrong.append(f"request outside: {r.url}"),
        )
        # one each: JupyterLab opens again what a workspace had open
        self.page.goto(f"{self.url}lab/workspaces/{Path(name).stem}/tree/{name}")
        self.page.wait_for_function(STARTED, arg=name)

    def command(self, name):
        self.page.evaluate("name => window.jupyterapp.commands.execute(name)", name)

    def run_all(self):
        self.page.evaluate("() => { window.ran = window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        return self

    def saved(self):
        "The notebook as it is on disk, once all that was asked for has run."
        self.page.evaluate("() => window.ran")
        self.page.wait_for_function(STARTED, arg=self.name)
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        return nbformat.read(self.folder / self.name, 4)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self.context.close()
        if kind is None:
            assert not self.wrong


def test_a_notebook_of_the_study_runs(browser, lab):
    with Lab(browser, lab, "nbs/00_data.ipynb") as notebook:
        nb = notebook.run_all().saved()
        code = [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]
        errors = [o for c in code for o in c.outputs if o.output_type == "error"]
        assert not errors, errors[0]["ename"] + ": " + errors[0]["evalue"]
        assert all(c.execution_count for c in code)
        assert any("application/vnd.plotly.v1+json" in o.get("data", {}) for c in code for o in c.outputs)


# --- the explorer ---------------------------------------------------------------------------------------------------


def png(data):
    "The pixels [row, column, channel] of an 8-bit PNG without interlacing."
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed, header = 8, b"", None
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        header = struct.unpack(">IIBBBBB", body) if kind == b"IHDR" else header
        packed += body if kind == b"IDAT" else b""
        at += 12 + size
    width, height, depth, colour, _, _, interlace = header
    channels = {2: 3, 6: 4}[colour]
    assert depth == 8 and interlace == 0
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    out = np.zeros((height, width * channels), np.uint8)
    for y, (method, line) in enumerate(zip(rows[:, 0], rows[:, 1:].astype(int))):
        up = out[y - 1].astype(int) if y else np.zeros_like(line)
        if method == 0:
            out[y] = line
        elif method == 1:
            out[y] = np.cumsum(line.reshape(-1, channels), 0).ravel() % 256
        elif method == 2:
            out[y] = (line + up) % 256
        else:
            done = np.zeros_like(line)
            for x in range(len(line)):
                a = done[x - channels] if x >= channels else 0
                b = up[x]
                c = up[x - channels] if x >= channels else 0
                if method == 3:
                    guess = (a + b) // 2
                else:
                    p = a + b - c
                    guess = min(((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c)))[2]
                done[x] = (line[x] + guess) % 256
            out[y] = done
    return out.reshape(height, width, channels)[..., :3]


def expected_colour(value, top):
    from namemovers.plots import DIVERGING

    stops, place = DIVERGING, 0.5 + 0.5 * value / top
    channel = lambda k: np.interp(place, [t for t, _ in stops], [int(c[1 + 2 * k : 3 + 2 * k], 16) for _, c in stops])
    return np.array([channel(k) for k in range(3)])


def test_the_explorer_is_used(browser, lab, mini):
    with Lab(browser, lab, "explore.ipynb") as notebook:
        page = notebook.page
        notebook.run_all()
        page.wait_for_selector(".nmx[data-shown=patching]")

        # what is drawn is what was computed: every cell has its colour, and nothing sticks out
        notebook.saved()
        back = json.loads((notebook.folder / "back.json").read_text())
        values = np.array(back["figure"]["panels"][0]["values"], dtype=float)
        page.locator(".nmx").scroll_into_view_if_needed()
        page.mouse.move(0, 0)
        box, cells = page.locator(".nmx-map").bounding_box(), page.locator(".nmx-map td").all()
        pixels = png(page.locator(".nmx-map").screenshot())
        assert len(cells) == values.size == 16
        for cell, value in zip(cells, values.ravel()):
            c = cell.bounding_box()
            corner = pixels[int(c["y"] - box["y"] + 5), int(c["x"] - box["x"] + 5)]
            assert np.abs(corner - expected_colour(value, np.abs(values).max())).max() < 12, (
                cell.get_attribute("aria-label"),
                corner,
            )
        whole = png(page.locator(".nmx").screenshot())
        assert whole.std() > 15 and len(np.unique(whole.reshape(-1, 3), axis=0)) > 100
        cut = page.evaluate("""() => {
            const b = document.querySelector('.nmx').getBoundingClientRect();
            return [...document.querySelectorAll('.nmx *')].filter(e => {
                const r = e.getBoundingClientRect();
                return r.width && !e.closest('.nmx-unseen, option') && (r.left < b.left - 2 || r.right > b.right + 2);
            }).map(e => e.className + e.textContent.slice(0, 30));
        }""")
        assert cut == []

        # a click, and the keyboard, which JupyterLab would like to have for itself
        page.locator("td[data-at='2,1']").click()
        page.wait_for_selector(".nmx-head[data-head=L2H1]")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.wait_for_selector(".nmx-head[data-head=L3H1]")

        # typing: the tokens at once, a sentence while they do not line up, text never obeyed
        page.get_by_label("clean prompt").fill("Mary \u202e<script>window.hacked=1</script> is")
        page.wait_for_function("document.querySelector('.nmx-problem').textContent.includes('do not line up')")
        page.wait_for_function("document.querySelector('.nmx-hint').textContent.includes('u202e')")
        for label, text in (
            ("clean prompt", "Mary is a teacher. The child is"),
            ("corrupted prompt", "John is a teacher. The child is"),
            ("right answer", "Mary"),
            ("wrong answer", "John"),
        ):
            page.get_by_label(label).fill(text)
        page.wait_for_function(
            "[...document.querySelectorAll('.nmx-align .nmx-differs')].map(e => e.textContent).join() === 'Mary,John'"
        )
        page.wait_for_function("document.querySelector('.nmx-problem').hidden")
        for view in ("predictions", "lens", "attribution", "paths", "attention", "patching"):
            page.locator(f"[data-view={view}]").click()
            page.wait_for_selector(f".nmx[data-shown={view}]:not([data-busy=busy])")
        page.locator("[data-option=site]").select_option("attn_out")
        page.wait_for_function("document.querySelectorAll('.nmx-map tbody tr:first-child td').length === 9")
        assert page.evaluate("window.hacked") is None

        # a link that was saved brings everything back
        page.locator("[data-action=link]").click()
        link = page.get_by_label("Link", exact=True).input_value()
        page.locator(".nmx-source select").select_option("1")
        page.wait_for_function("document.querySelectorAll('.nmx-map tbody tr:first-child td').length > 20")
        page.locator("[data-action=open]").click()
        page.get_by_placeholder("A link").fill(link)
        page.get_by_role("button", name="Open this").click()
        page.wait_for_function("document.querySelectorAll('.nmx-map tbody tr:first-child td').length === 9")

        # the kernel knows what is shown, and it is what the library says
        page.wait_for_selector(".nmx-head[data-head=L3H1]")
        notebook.page.evaluate(
            """() => {
                window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1;
                window.ran = window.jupyterapp.commands.execute('notebook:run-cell');
            }"""
        )
        notebook.saved()
        back = json.loads((notebook.folder / "back.json").read_text())
        from namemovers.activation_patching import patch
        from namemovers.data import Task

        task = Task.from_pairs(back["state"]["clean"], back["state"]["corrupted"], (" Mary", " John"), mini.tokenizer)
        np.testing.assert_allclose(
            np.array(back["figure"]["panels"][0]["values"], dtype=float),
            patch(mini, task, "attn_out", progress=False).effect.isel(prompt=0),
            rtol=1e-3,
            atol=1e-5,
        )
        assert back["state"]["head"] == [3, 1] and back["head"]["name"] == "L3H1"


def test_a_sweep_is_cancelled(browser, lab):
    with Lab(browser, lab, "sweep.ipynb") as notebook:
        page = notebook.page
        notebook.run_all()
        page.wait_for_selector(".nmx[data-shown=predictions]")
        page.locator("[data-view=paths]").click()
        page.locator("[data-option=paths]").select_option("strongest")
        page.get_by_role("button", name="Cancel").click()
        page.wait_for_function(
            "/Cancelled after [0-9]+ of 100 runs|Cancelled\\./.test(document.querySelector('.nmx-view').innerText)"
        )
        page.locator("[data-view=predictions]").click()
        page.wait_for_selector(".nmx[data-shown=predictions]:not([data-busy=busy])")
        assert "probability" in page.locator(".nmx-view").inner_text(), "the next question is answered"
