"""What is committed: the library in step with its notebooks, notebooks clean and with outputs, exact pins, no
leftovers."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(
    p.relative_to(ROOT)
    for f in ("nbs", "ioi_nbs")
    for p in (ROOT / f).rglob("*.ipynb")
    if not any(x[0] in "._" for x in p.relative_to(ROOT).parts)
)
BY_HAND = {"__init__.py", "published.py", "_modidx.py"}


def cells(path, kind="code"):
    return [c for c in json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def tracked():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git repository")
    return (
        subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        .stdout.strip("\0")
        .split("\0")
    )


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    """A copy of the notebooks and of the library, to be exported and cleaned anew."""
    copy = tmp_path_factory.mktemp("repository")
    for name in ("nbs", "ioi_nbs", "namemovers"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", ".*"))
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(ROOT / name, copy)
    return copy


def in_copy(copy, code):
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_library_is_in_step_with_the_notebooks(copy):
    library = copy / "namemovers"
    modules = [m for m in library.rglob("*.py") if m.name not in BY_HAND]
    for m in modules:
        m.unlink()
    in_copy(copy, "from nbdev.doclinks import nbdev_export; nbdev_export()")
    ours = {m: ROOT / "namemovers" / m.relative_to(library) for m in [*modules, *library.rglob("*.py")]}
    stale = [m.name for m in modules if not m.exists() or m.read_text() != ours[m].read_text()]
    new = [m.name for m in library.rglob("*.py") if not ours[m].exists() and m.name not in BY_HAND]
    assert not stale + new, f"run make export: {stale + new}"


def test_notebooks_are_clean(copy):
    in_copy(copy, "from nbdev.clean import nbdev_clean; nbdev_clean('nbs'); nbdev_clean('ioi_nbs')")
    dirty = [str(n) for n in NOTEBOOKS if (copy / n).read_bytes() != (ROOT / n).read_bytes()]
    assert not dirty, f"run nbdev-clean on {dirty}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_notebooks_have_outputs_and_no_errors(path):
    outputs = [o for c in cells(path) for o in c["outputs"]]
    assert not [o["ename"] for o in outputs if o["output_type"] == "error"]
    noise = ["".join(o["text"])[:200] for o in outputs if o["output_type"] == "stream" and o["name"] == "stderr"]
    assert not noise, f"warnings or progress bars in the committed outputs: {noise}"
    quiet = re.compile(r"^#\|\s*(export|hide|default_exp|eval:\s*false)", re.M)
    shown = [c for c in cells(path) if "".join(c["source"]).strip() and not quiet.search("".join(c["source"]))]
    asserts_only = all(re.match(r"(assert|from|import|with|for|test_|#)", "".join(c["source"])) for c in shown)
    assert outputs or asserts_only, "committed without outputs; run make notebooks"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_outputs_hold_no_place_of_this_machine(path):
    text = json.dumps([o for c in cells(path) for o in c["outputs"]])
    assert not re.findall(r"(?:/home/|/root/|/tmp/|/Users/|site-packages)[^\s\"'<]{0,60}", text)


@pytest.mark.parametrize("path", [n for n in NOTEBOOKS if n.parts[0] == "ioi_nbs"], ids=str)
def test_ioi_notebooks_only_use_the_library(path):
    source = "\n".join("".join(c["source"]) for c in cells(path))
    assert not re.search(r"^#\|\s*(export|default_exp)|^\s*(def|class) ", source, re.M)


def test_every_pin_is_exact_and_within_the_ranges():
    lines = [l for l in (ROOT / "requirements.lock").read_text().splitlines() if l and not l.startswith("#")]
    pins = {}
    for line in lines:
        name, version = re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups()
        pins[re.sub(r"[-_.]+", "-", name).lower()] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + [
        r for name, extra in project["optional-dependencies"].items() if name not in ("bench", "real") for r in extra
    ]
    for text in needed:
        r = Requirement(text)
        pinned = pins.get(re.sub(r"[-_.]+", "-", r.name).lower())
        assert pinned and r.specifier.contains(pinned), (
            f"requirements.lock has {r.name} {pinned}, pyproject.toml wants {text}; run make lock"
        )
    assert pins["torch"] == "2.13.0"


def test_every_target_is_explained():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)", makefile, re.M)[1].split()
    help = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {t} " in help for t in targets)
    assert {"study", "test", "lab", "site", "mini", "clean", "help"} <= set(targets)


def test_console_script():
    script = Path(sys.executable).parent / "namemovers"
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "copy-scores" in done.stdout


def test_nothing_is_left_over():
    files = tracked()
    assert not [
        f
        for f in files
        if re.search(
            r"\.ipynb_checkpoints|__pycache__|\.orig$|\.rej$|~$|^(results|_site|_proc|build|dist|\.venv)/|\.pyc$", f
        )
    ]
    big = [f for f in files if (ROOT / f).is_file() and (ROOT / f).stat().st_size > 12e6]
    assert not big
    assert (
        sum(
            p.stat().st_size
            for p in (ROOT / "namemovers").rglob("*")
            if p.is_file() and p.parent.name.startswith("mini")
        )
        <= 12e6
    )


def test_the_readme_s_example_runs(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert blocks
    code = "import plotly.io; plotly.io.renderers.default = 'json'\n" + "\n".join(blocks)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"L\d+H\d+", done.stdout)


def test_mutants_are_of_modules_and_tests_that_are_there():
    from bench import mutants

    for module, (files, chosen) in mutants.TESTS.items():
        assert (ROOT / "namemovers" / f"{module.replace('.', '/')}.py").is_file(), module
        assert all((ROOT / "tests" / file).is_file() for file in files.split()), (module, files)
        text = "".join((ROOT / "tests" / file).read_text() for file in files.split())
        for word in {*re.findall(r"\w+", f"{chosen} {mutants.LONG}")} - {"and", "or", "not"}:
            assert word in text or word in mutants.LONG, (module, word)


def test_the_home_page_has_an_install_line_and_readmes_own_example():
    block = re.search(r"^```python\n.*?^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)[0]
    home = "\n".join("".join(c["source"]) for c in cells("nbs/index.ipynb", "markdown"))
    assert block in home and "pip install" in home
