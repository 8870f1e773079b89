"""The house: which module may use which, what of it, and what a wheel holds.

What does not hold yet is listed below, a line each. The lists may only shrink: a line that is no longer true fails."""

import ast
import io
import shutil
import subprocess
import sys
import tokenize
import zipfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "namemovers"

# The rooms, from what stands on nothing to what stands on everything: a module may use its own and those before it.
# A package's modules live where the package does, unless they are named themselves.
ROOMS = [
    {"settings", "stats", "literature", "published", "arguments", "files", "guard", "identity", "results"},
    {"prompts", "data"},
    {"quantised", "model", "planted_weights", "planted"},
    {"sites", "pairs", "engine", "circuits.edge_graph", "store", "cost"},
    {"activation_patching", "path_patching", "logit_lens", "head_attribution", "sets"},
    {"attribution_patching", "copy_scores"},
    {"head_roles", "circuits"},
    {"plots", "figures", "circuits.figures"},
    {"task_study", "compare", "stability", "validation_methods", "validation", "verdicts", "claims", "reading"},
    {"explorer", "publish"},
    {"__main__", "cli"},
]

# (module, what it imports): against the order of the rooms
AGAINST_THE_ORDER: set[tuple[str, str]] = set()

# modules that import each other in a circle, by name
CIRCLES: set[frozenset[str]] = set()

# (module, "other.name"): a name with a leading underscore, of another module
FOREIGN_PRIVATES: set[tuple[str, str]] = set()

# modules that import `press` or `recipes`
GUESTS: set[str] = set()

# Lines of code without comments, blank lines and docstrings: a function has so many at most, and a module.
FUNCTION, MODULE = 60, 400

# module -> how many lines it has all the same, at most
LONG_MODULES = {"arguments": 420, "engine.sweep": 440, "model": 470, "path_patching": 590, "stats": 510}

# functions that are longer all the same
LONG_FUNCTIONS: set[str] = set()


def module_name(path):
    "explorer/state.py -> explorer.state; explorer/__init__.py -> explorer."
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(p): p for p in sorted(LIBRARY.rglob("*.py")) if p.name != "_modidx.py"}
FILES.pop("")  # the top of the package, which loads everything when it is asked for
MODULES = set(FILES)


@cache
def tree(module):
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def absolute(module, node):
    "The module that a `from ... import` names: `data`, `explorer.state`, '' for the package itself."
    if not node.level:
        return node.module.removeprefix("namemovers").removeprefix(".")
    is_package = FILES[module].name == "__init__.py"
    package = module.split(".") if is_package else module.split(".")[:-1]
    up = len(package) - (node.level - 1)
    return ".".join([*package[:up], *filter(None, [node.module])])


def of_the_library(node):
    return bool(node.level) or node.module.split(".")[0] == "namemovers"


def is_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node):
    "All nodes, in functions too, but not what only a type checker reads."
    for child in ast.iter_child_nodes(node):
        if not is_for_types(child):
            yield child
            yield from walk(child)


def imports(module):
    "What a module imports of the library, wherever in it: (module, name), the name None for the module itself."
    for node in walk(tree(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("namemovers."):
                    yield alias.name.removeprefix("namemovers."), None
        elif isinstance(node, ast.ImportFrom) and of_the_library(node):
            source = absolute(module, node)
            for alias in node.names:
                inner = f"{source}.{alias.name}".strip(".")
                yield (inner, None) if inner in MODULES else (source, alias.name)


def used(module):
    "The modules that a module uses. What is asked of the top of the package counts for where it lives."
    import namemovers

    found = set()
    for source, name in imports(module):
        if not source:
            source = namemovers._HOME.get(name, "")
        if source and source != module:
            found.add(source)
    return found


@cache
def graph():
    return {module: used(module) for module in MODULES}


def circles(edges):
    "Sets of modules of which each reaches all others (strongly connected, by Warshall)."
    reach = {m: set(to) for m, to in edges.items()}
    for middle in edges:
        for start in edges:
            if middle in reach[start]:
                reach[start] |= reach[middle]
    together = {frozenset(o for o in edges if o in reach[m] and m in reach[o]) for m in edges}
    return {c for c in together if len(c) > 1}


def room(module):
    "The number of a module's room: its own, or its package's."
    for name in (module, module.split(".")[0]):
        for number, members in enumerate(ROOMS):
            if name in members:
                return number
    raise AssertionError(f"{module} has no room: put it, or its package, into ROOMS of tests/test_architecture.py")


def aliases(module):
    "Names that stand for modules of the library: `fast` for `engine`."
    found = {}
    for node in walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and of_the_library(node):
            for alias in node.names:
                inner = f"{absolute(module, node)}.{alias.name}".strip(".")
                if inner in MODULES:
                    found[alias.asname or alias.name] = inner
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname and alias.name.startswith("namemovers."):
                    found[alias.asname] = alias.name.removeprefix("namemovers.")
    return found


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def foreign_privates(module):
    "Names with a leading underscore that a module takes from another, by import or as an attribute."
    found = {f"{source}.{name}" for source, name in imports(module) if name and is_private(name) and source != module}
    known = aliases(module)
    for node in walk(tree(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and is_private(node.attr):
            if node.value.id in known:
                found.add(f"{known[node.value.id]}.{node.attr}")
    return found


def of_guests(module):
    for node in walk(tree(module)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        if any(name.split(".")[0] in ("press", "recipes") for name in names):
            return True
    return False


def lines_of_code(text):
    "The numbers of the lines that hold code: no comments, blank lines or docstrings."
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if ast.get_docstring(node) is not None:
                found -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return found


def lengths(text):
    "The lines of code of a module, and of each of its functions by name."
    code, functions = lines_of_code(text), {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions[node.name] = sum(node.lineno <= line <= node.end_lineno for line in code)
    return len(code), functions


def only_these(found, listed, what):
    "What is found is what is listed: nothing new, and no line that is no longer true."
    new, mended = found - listed, listed - found
    assert not new, f"{what}: {sorted(map(str, new))}"
    assert not mended, f"these hold now; take them off the list: {sorted(map(str, mended))}"


# ---- the rules


def test_every_room_is_somebody_s():
    for module in MODULES:
        room(module)
    names = [name for members in ROOMS for name in members]
    assert len(names) == len(set(names))


def test_imports_go_one_way():
    against = {(m, to) for m, all_to in graph().items() for to in all_to if room(to) > room(m)}
    only_these(against, AGAINST_THE_ORDER, "a module uses one of a later room")


def test_no_circles():
    only_these(circles(graph()), CIRCLES, "modules import each other in a circle")


def test_what_has_an_underscore_is_used_at_home():
    found = {(m, name) for m in MODULES for name in foreign_privates(m)}
    only_these(found, FOREIGN_PRIVATES, "a private name of another module; make it public, or do without")


def test_the_library_knows_no_guests():
    only_these({m for m in MODULES if of_guests(m)}, GUESTS, "the library imports what stands beside it")


def test_modules_and_functions_are_short():
    found = {m: lengths(FILES[m].read_text(encoding="utf-8")) for m in MODULES}
    modules = {m: n for m, (n, _) in found.items() if n > MODULE}
    only_these(set(modules), set(LONG_MODULES), f"a module of more than {MODULE} lines of code")
    grown = {m: n for m, n in modules.items() if n > LONG_MODULES[m]}
    assert not grown, f"these have grown beyond what the list allows: {grown}"
    long = {f"{m}.{name}" for m, (_, functions) in found.items() for name, n in functions.items() if n > FUNCTION}
    only_these(long, LONG_FUNCTIONS, f"a function of more than {FUNCTION} lines of code")


@pytest.mark.parametrize("name", ["press", "recipes", "tests", "bench"])
def test_the_wheel_is_the_library_alone(name, wheel_names):
    assert not [n for n in wheel_names if name in Path(n).parts]
    assert {Path(n).parts[0] for n in wheel_names if ".dist-info" not in n} == {"namemovers"}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    "The files of the wheel, built from what is committed."
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    source, out = (tmp_path_factory.mktemp(n) for n in ("source", "wheel"))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.endswith(".ipynb"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(out), str(source)], check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob("*.whl"))).namelist()


# ---- the rules, broken on purpose


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == {frozenset("abc")}
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == set()


def test_what_is_broken_is_seen(tmp_path, monkeypatch):
    "A module that breaks all the rules, in functions."
    (tmp_path / "bad.py").write_text(
        "from . import engine as fast\n"
        "import namemovers.plots as p\n"
        "def f():\n"
        "    from namemovers.data import _encode\n"
        "    from recipes.mini import texts\n"
        "    return fast._folded, p._unit\n"
    )
    monkeypatch.setitem(FILES, "bad", tmp_path / "bad.py")
    assert used("bad") == {"engine", "plots", "data"}
    assert foreign_privates("bad") == {"data._encode", "engine._folded", "plots._unit"}
    assert of_guests("bad")
    tree.cache_clear()


def test_length_counts_code_alone():
    text = '"""What it is.\n\nAt length."""\n\n# why\ndef f(\n    a,  # one\n):\n    "Says."\n\n    return """\n\n"""\n'
    assert lines_of_code(text) == {6, 7, 8, 11, 12, 13}
    assert lengths(text) == (6, {"f": 6})


def test_a_list_may_only_shrink():
    with pytest.raises(AssertionError, match="no longer|hold now"):
        only_these(set(), {"old"}, "what")
    with pytest.raises(AssertionError, match="what: "):
        only_these({"new"}, set(), "what")
