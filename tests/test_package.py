"""What somebody who depends on the package relies on: what it installs, imports, exports, says of itself, and
promises."""

import ast
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import namemovers

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIBRARY = ROOT / "namemovers"


def dotted(path):
    "publish/look.py -> publish.look; publish/__init__.py -> publish."
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


FILES = {dotted(p): p for p in sorted(LIBRARY.rglob("*.py")) if p.name != "_modidx.py"}
SOURCES = {name: p.read_text(encoding="utf-8") for name, p in FILES.items()}
MODULES = [m for m in SOURCES if m != "__init__"]
HEAVY = {
    "torch",
    "transformer_lens",
    "transformers",
    "plotly",
    "pandas",
    "numpy",
    "xarray",
    "scipy",
    "IPython",
    "anywidget",
    "nbdev",
}


def python(code, **more):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **more)


def distribution(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(texts):
    return {distribution(Requirement(text).name) for text in texts}


# --- importing


def test_importing_the_package_is_light_and_silent():
    loaded = f"{HEAVY} & set(sys.modules)"
    done = python(f"import sys, namemovers; names = dir(namemovers); assert not {loaded}, {loaded}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_top_of_the_package():
    assert namemovers.__all__ == sorted(namemovers.__all__) and set(namemovers.__all__) <= set(dir(namemovers))
    for name in namemovers.__all__:
        value = getattr(namemovers, name)
        assert value.__name__ == name and name in importlib.import_module(value.__module__).__all__
        assert name not in MODULES  # a module of the same name would take its place when it is imported
    for module in {m.split(".")[0] for m in MODULES} - {"__main__"}:
        assert inspect.ismodule(getattr(namemovers, module)) and module in dir(namemovers)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(namemovers, "nothing")  # noqa: B009


def test_type_checkers_see_the_same_names():
    declared = {}
    for node in ast.walk(ast.parse(SOURCES["__init__"])):
        if isinstance(node, ast.ImportFrom) and node.level:
            declared |= {alias.name: node.module for alias in node.names}
    assert declared == namemovers._HOME and set(declared) == set(namemovers.__all__)


# --- dependencies

# Not imported by name: the library asks xarray for h5netcdf, which reads files with h5py.
ASKED_FOR = {"h5netcdf", "h5py"}
ONLY_THERE = {"google"}  # imported where it exists, in Colab


def imported(source):
    "Top-level packages that a module imports: {name: whether at its top, so that the module cannot do without}."
    found = {}

    def walk(node, top):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            names = (
                [a.name for a in child.names]
                if isinstance(child, ast.Import)
                else [child.module]
                if isinstance(child, ast.ImportFrom) and not child.level
                else []
            )
            for name in names:
                found[name.split(".")[0]] = top or found.get(name.split(".")[0], False)
            walk(child, top and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    walk(ast.parse(source), True)
    return {
        name: top
        for name, top in found.items()
        if name not in sys.stdlib_module_names and name not in {"namemovers", *ONLY_THERE}
    }


def test_the_dependencies_are_what_the_library_imports():
    names = packages_distributions()
    of = {}
    for source in SOURCES.values():
        for name, top in imported(source).items():
            d = distribution(names[name][0])
            of[d] = top or of.get(d, False)
    needed = requirements(PROJECT["dependencies"])
    optional = requirements(r for x in PROJECT["optional-dependencies"].values() for r in x)
    assert {d for d, top in of.items() if top} <= needed, "imported at the top of a module, but no dependency"
    # come with anywidget, nbclient, nbdev, kaleido
    assert set(of) <= needed | optional | {"traitlets", "jupyter-client", "fastcore", "choreographer"}, (
        "imported, but in no extra either"
    )
    assert needed - ASKED_FOR <= set(of), "a dependency that nothing imports"
    assert 'engine="h5netcdf"' in SOURCES["results"]


@pytest.mark.parametrize(
    ("missing", "call", "extra"),
    [
        ("nbclient", "from press.runner import run; run()", "notebooks"),
        ("nbdev", "from press.rerun import rerun; rerun()", "notebooks"),
        ("pypandoc", f"from press.website import build; build({str(ROOT)!r}, 'out', root={str(ROOT)!r})", "site"),
    ],
)
def test_what_an_extra_is_for_is_named_where_it_is_missing(missing, call, extra, tmp_path):
    shutil.copytree(
        ROOT / "nbs" / "core", tmp_path / "nbs", ignore=lambda folder, names: [n for n in names if n != "stats.ipynb"]
    )
    beside = {**os.environ, "PYTHONPATH": str(ROOT)}  # press stands in the clone, not in the wheel
    done = python(f"import sys; sys.modules[{missing!r}] = None\n{call}", cwd=tmp_path, env=beside)
    assert done.returncode
    assert missing in done.stderr.splitlines()[-1]
    assert re.search(rf"ImportError: .*pip install 'namemovers\[[a-z,]*{extra}\]'", done.stderr.splitlines()[-1])


# --- the public names, and what is said of them


def functions(module):
    "Public functions of a module, and the public methods and properties of its public classes, by name."
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value):
            for key, member in vars(value).items():
                member = (
                    getattr(member, "__func__", None)
                    or getattr(member, "fget", None)
                    or getattr(member, "func", member)
                )
                if not key.startswith("_") and inspect.isfunction(member) and member.__module__ == module.__name__:
                    yield f"{name}.{key}", member
        elif inspect.isfunction(inspect.unwrap(value)):
            yield name, inspect.unwrap(value)


def header(f):
    "The lines of a function up to its body, its body's first line included if it stands there."
    source = inspect.getsource(f)
    node = ast.parse(inspect.cleandoc("\n" + source) if source[0] != " " else "class C:\n" + source).body[0]
    node = node.body[0] if isinstance(node, ast.ClassDef) else node
    shift = 0 if source[0] != " " else 1
    first, last = node.lineno - 1 - shift, node.body[0].lineno - shift
    return source.split("\n")[first : max(last - 1, first + 1)]


def undocumented(name, f):
    """What is missing of: a docstring (for one line in a class a comment will do), a word on every parameter, what
    is returned."""
    doc, lines = inspect.getdoc(f) or "", header(f)
    missing = [] if len(doc) > 10 or ("." in name and any("#" in line for line in lines)) else ["a docstring"]
    for p in inspect.signature(f).parameters.values():
        said = (
            re.search(rf"\b{p.name}\b", doc)
            or any(re.search(rf"^\s*\**{p.name}\b[^#]*#\s*\S|#.*\b{p.name}\b", line) for line in lines)
            or "help=" in str(p.annotation)
            or "OptionInfo" in str(p.annotation)
            or "ArgumentInfo" in str(p.annotation)
        )
        if p.name not in ("self", "cls") and not said:
            missing.append(p.name)
    if inspect.signature(f).return_annotation is inspect.Signature.empty:
        missing.append("what it returns")
    return missing


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_is_documented(module):
    found = {
        name: missing
        for name, f in functions(importlib.import_module(f"namemovers.{module}"))
        if (missing := undocumented(name, f))
    }
    assert not found, f"namemovers.{module}: {found}"


@pytest.mark.parametrize("module", MODULES)
def test_every_public_class_and_constant_is_documented(module):
    m, lines = importlib.import_module(f"namemovers.{module}"), SOURCES[module].split("\n")
    assert m.__doc__ and len(m.__doc__) > 10
    bare = [
        name
        for name in m.__all__
        if inspect.isclass(getattr(m, name)) and (getattr(m, name).__doc__ or f"{name}(").startswith(f"{name}(")
    ]
    for node in ast.parse(SOURCES[module]).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {
                x.id
                for t in targets
                for x in ([t] if isinstance(t, ast.Name) else getattr(t, "elts", []))
                if isinstance(x, ast.Name)
            }
            above = lines[node.lineno - 2]
            said = "#" in re.sub(r'"[^"]*"', "", lines[node.lineno - 1]) or (
                above.startswith("#") and not above.startswith("# %%")
            )
            if names & set(m.__all__) and not said:
                bare += sorted(names & set(m.__all__))
    assert not bare, (
        f"namemovers.{module}: {sorted(set(bare))} need a line on what they are; or make them private with `#| exporti`"
    )


def test_a_function_without_documentation_is_found():
    def bare(x, y):  # y is said, the other is not
        return x

    assert undocumented("bare", bare) == ["a docstring", "x", "what it returns"]
    assert undocumented("python", python) == ["a docstring", "code", "more", "what it returns"]


def test_the_index_and_the_site_know_every_public_name():
    from namemovers._modidx import d

    pages = {
        re.sub(r"\b\d\d_", "", Path(p).with_suffix("").as_posix())
        for p in re.findall(r"[\w/]+\.ipynb", (ROOT / "_quarto.yml").read_text())
    }
    for module in set(MODULES) - {"__main__"}:  # whose names are commands
        m = importlib.import_module(f"namemovers.{module}")
        syms = d["syms"].get(f"namemovers.{module}", {})  # a package of its own names has none
        for name in m.__all__:
            if inspect.isclass(getattr(m, name)) or inspect.isfunction(getattr(m, name)):
                if m.__name__ == getattr(m, name).__module__:
                    at = syms.get(f"{m.__name__}.{name}")
                    assert at, f"{m.__name__}.{name} is not in _modidx.py: run make export"
                    assert at[0].partition(".html")[0] in pages, f"{at[0]} is no page of the site"


# --- what is installed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The names of the files in a wheel made of a copy, and its metadata."
    copy = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("nbs", "tests", "bench", "press", "recipes"):
        (copy / name).mkdir()
        (copy / name / "left_out.py").write_text("")
    shutil.copytree(ROOT / "namemovers", copy / "namemovers", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "-w",
            "dist",
            ".",
        ],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (copy / "dist").iterdir()
    with zipfile.ZipFile(path) as z:
        names = set(z.namelist())
        return path, names, z.read(next(n for n in names if n.endswith("/METADATA"))).decode()


def test_the_wheel_holds_the_library_and_all_its_files(wheel):
    path, names, _ = wheel
    here = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "namemovers").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert {n for n in names if ".dist-info/" not in n} == here
    assert {
        "namemovers/py.typed",
        "namemovers/mini/model.safetensors",
        "namemovers/mini/tokenizer.json",
        "namemovers/mini/config.json",
    } <= names
    folders = {n.split("/")[1] for n in names if n.count("/") > 1 and ".dist-info/" not in n}
    assert folders - {m.split(".")[0] for m in MODULES} == {"mini"}
    assert {"namemovers/explorer/assets/explorer.js", "namemovers/explorer/assets/explorer.css"} <= names
    assert any(n.startswith("namemovers/publish/assets/") for n in names)
    assert path.stat().st_size < 12e6


def test_the_wheel_s_metadata(wheel):
    _, names, metadata = wheel
    assert f"Version: {namemovers.__version__}\n" in metadata and "License-Expression: MIT" in metadata
    assert {Requirement(r).name for r in re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata, re.M)} == {
        Requirement(r).name for r in PROJECT["dependencies"]
    }
    assert (
        set(re.findall(r"^Provides-Extra: (.*)$", metadata, re.M))
        == set(PROJECT["optional-dependencies"])
        >= {"notebooks", "site", "test", "dev", "bench"}
    )
    assert any(n.endswith("licenses/LICENSE") for n in names) and any(n.endswith("entry_points.txt") for n in names)


def test_the_wheel_alone_is_enough_to_find_mini(wheel, tmp_path):
    path, *_ = wheel
    with zipfile.ZipFile(path) as z:
        z.extractall(tmp_path)
    done = python(
        (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
            "from pathlib import Path\n"
            "import namemovers\n"
            "mini = Path(namemovers.__file__).parent / 'mini'\n"
            "print(*sorted(p.name for p in mini.iterdir()), namemovers.__file__)"
        ),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in done.stdout and str(tmp_path / "namemovers" / "__init__.py") in done.stdout


# --- what the repository says of itself


def test_the_citation_file():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["cff-version"] == "1.2.0" and cff["message"] and cff["type"] == "software"
    assert cff["title"] == PROJECT["name"]
    assert cff["version"] == namemovers.__version__
    assert cff["license"] == PROJECT["license"]
    assert [a["name"] for a in cff["authors"]] == [a["name"] for a in PROJECT["authors"]]
    assert set(cff) <= {
        "cff-version",
        "message",
        "type",
        "title",
        "abstract",
        "version",
        "license",
        "authors",
        "keywords",
        "references",
    }
    assert all({"type", "title", "authors"} <= set(r) for r in cff["references"])


def test_version_and_changelog():
    assert re.fullmatch(r"\d+\.\d+\.\d+", namemovers.__version__)
    heads = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heads[0] == "Unreleased" or heads[0].startswith(namemovers.__version__)
    assert all(re.fullmatch(r"Unreleased|\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", h) for h in heads)


def test_what_contributing_names_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(
        re.findall(
            r"`((?:nbs|ioi_nbs|tests|namemovers|bench|results|\.ci|\.github)/[\w./-]*|\w+\.(?:md|toml|yml|lock|cff))`",
            text,
        )
    )
    assert len(paths) > 10
    assert not [p for p in paths if not (ROOT / p).exists() and not p.startswith(("results/", "nbs/08_"))]
    targets = set(re.findall(r"(?:^ *|`)make ([a-z]+)", text, re.M))
    assert (
        {"test", "check", "export"}
        <= targets
        <= set(re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)[1].split())
    )
    assert all(w in text for w in ("deprecat", "major", "minor", "patch"))
    names = re.findall(r"`namemovers\.(\w+)\.(\w+)", text)
    assert names and all(hasattr(importlib.import_module(f"namemovers.{m}"), n) for m, n in names)


# --- continuous integration


def test_ci_runs_what_make_test_runs():
    script = (ROOT / ".ci" / "run").read_text()
    assert script.rstrip().endswith("make test")
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^test: check\b", makefile, re.M)
    check = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.M)[1]
    assert "ruff check namemovers press recipes tests bench" in check and "mypy" in check
    assert "--cov" in re.search(r"^coverage:.*\n((?:\t.*\n)+)", makefile, re.M)[1]


def test_the_workflow():
    files = list((ROOT / ".github" / "workflows").glob("*.yml"))
    assert files
    for file in files:
        w = yaml.safe_load(file.read_text())
        assert w["permissions"] == {"contents": "read"} and "group" in w["concurrency"]
        steps = [s for job in w["jobs"].values() for s in job["steps"]]
        used = [s["uses"] for s in steps if "uses" in s]
        assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+", u) for u in used), used
        for job in w["jobs"].values():
            extra = set(job.get("permissions", {})) - {"contents"}
            assert not extra or ("pages" in extra and "deploy" in str(job["steps"]) and "refs/heads/main" in job["if"])
        runs = [s.get("run", "") for s in steps]
        assert any(".ci/run" in r for r in runs) and any("make site" in r for r in runs)
        assert any(u.startswith("actions/deploy-pages@") for u in used)


def test_the_library_is_checked_as_a_whole():
    "No module of the library is left out of the types or of the lint."
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tool["mypy"]["packages"] == ["namemovers", "press"]
    assert tool["mypy"]["check_untyped_defs"]
    assert not tool["mypy"].get("ignore_errors")
    for override in tool["mypy"]["overrides"]:
        if any(m.startswith("namemovers") for m in override["module"]):
            assert set(override) == {"module", "disable_error_code"}
        else:
            assert set(override) == {"module", "ignore_missing_imports"}
    assert tool["ruff"]["extend-exclude"] == ["namemovers/_modidx.py"]
