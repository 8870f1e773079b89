"""Break a module in one place at a time, and see whether the tests that belong to it notice.

    .venv/bin/python bench/mutants.py circuits.ablation copy_scores --some 20 --seed 1

An operator, a comparison, a sign, a constant or a name such as `clean` or `argmax` is exchanged for its opposite or its
neighbour, in functions drawn in turn. What decides only what is said, how much memory is taken or which error is raised
is left alone. Prints a line a mutant, killed (by which test), LIVES (with its line) or UNJUDGED (out of time, or pytest
itself broke), and the figure of each module.

A module's tests run once as they are, which tells which of them reach which function and how long they take; a mutant
meets those that reach its function, the quickest first, until one fails. The notebooks' own tests do not count here.

Nothing is written: the broken source is what a forked process imports. Not every mutant that lives is a gap in the
tests: some change nothing (`axis=-1` of a vector), some only how long it takes."""

import argparse
import ast
import importlib.util
import json
import os
import random
import re
import resource
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

#: tests that take long and look at many modules at once
LONG = (
    "search_finds or in_distribution or enters_a_circuit or interval_covers or gpt2_shape or shape_of_gpt2 or memory"
    " or planted_edges or held_out or on_mini or minis or killed or worker or two_processes"
)
#: module -> the tests that belong to it, and which of them (as pytest's -k says)
TESTS = {
    "activation_patching": (
        "test_activation_patching.py",
        "resid_mid or all_that_differs or all_of_switch or nothing_different or named or ratio or metrics or sign or"
        " labelled or span or screening or auto or bad or share_of or do_not_differ",
    ),
    "attribution_patching": ("test_attribution_patching.py", ""),
    "circuits.ablation": (
        "test_circuits.py",
        "agrees or random or reference or own_tasks or everywhere or two_names or last_layer or bad_input",
    ),
    "circuits.criteria": ("test_circuits.py", "minimal or completeness or greedy or cancel or overlap"),
    "circuits.crossing": ("test_circuits.py test_edges.py", "curve or size or together"),
    "circuits.curves": ("test_circuits.py", "curve or areas or random or mib or faithful or few_prompts or size"),
    "circuits.edge_estimates": (
        "test_edges.py test_edges_by_hooks.py",
        "every_estimate and (resample or zero) or slope or top_edges or bad_input",
    ),
    "circuits.edge_graph": ("test_edges.py", "graph or connected or top_edges or path_patched or kept or bad_input"),
    "circuits.edge_runs": (
        "test_edges.py",
        "(any_circuit or no_edge or path_patched or single or metrics) and not mean",
    ),
    "circuits.edge_search": ("test_edges.py", "acdc or bad_input"),
    "circuits.node_runs": ("test_circuits.py", "agrees or all_nodes or metrics or company or two_names or last_layer"),
    "circuits.parts": ("test_circuits.py", "names_of or published_circuit or overlap or everywhere or bad_input"),
    "circuits.scores": ("test_circuits.py", "gate or by_position or two_scores or ranking or silenced or pruned"),
    "claims.forms": ("test_claims_near.py test_claims.py", "side or every_claim or noise or few or another"),
    "claims.ours": ("test_claims_near.py test_claims.py", "side or tried or every_claim or noise"),
    "claims.paper": ("test_claims_near.py test_claims.py", "side or tried or every_claim or noise"),
    "claims.pilot": ("test_claims_near.py test_claims.py", "side or tried or every_claim or noise or pilot"),
    "compare": ("test_both_tasks.py", ""),
    "copy_scores": ("test_copy_scores.py", ""),
    "engine.direct": ("test_head_attribution.py test_copy_scores.py", ""),
    "engine.forward": ("test_engine.py", ""),
    "engine.sweep": ("test_engine.py", ""),
    "head_attribution": ("test_head_attribution.py", ""),
    "head_roles.attention": ("test_head_roles.py", "attention_scores or bad_input"),
    "head_roles.classes": (
        "test_head_roles.py",
        "levels or side or further or small or may_be_zero or threshold or matter or worst or enough"
        " or with_few or reason",
    ),
    "head_roles.evidence": (
        "test_head_roles.py",
        "does_not or given or bad_input or fixed_distance or shares_are or holders",
    ),
    "head_roles.interventions": ("test_head_roles.py", "hooks or paths or knocked or bad_input"),
    "head_roles.patterns": ("test_head_roles.py", "distance or definition or bad_input or rows"),
    "head_roles.thresholds": (
        "test_head_roles.py",
        "levels or side or further or small or may_be_zero or threshold or matter or worst or enough"
        " or with_few or reason",
    ),
    "head_roles.variants": ("test_head_roles.py", "variants or cue or bad_input"),
    "literature": ("test_literature.py", ""),
    "logit_lens": ("test_logit_lens.py", ""),
    "pairs": ("test_pairs.py", ""),
    "path_patching": ("test_path_patching.py", "not planted"),
    "planted": ("test_planted.py", "truth or tasks or templates or signs or bad or folding or unknown or fewer"),
    "planted_weights": ("test_planted.py", "truth or tasks or signs or folding or needed or idle"),
    "prompts.alignment": ("test_data.py", ""),
    "prompts.answers": ("test_data.py", ""),
    "prompts.corruption": ("test_data.py", ""),
    "prompts.drawing": ("test_data.py", ""),
    "prompts.own": ("test_data.py", ""),
    "prompts.survey": ("test_data.py", ""),
    "prompts.task": ("test_data.py", ""),
    "sets": ("test_engine.py", "sets"),
    "stability": ("test_stability.py", ""),
    "stats": ("test_stats.py", "not cover and not level and not studies and not many and not quick"),
    "store": ("test_store.py", "blocks or block or parts or sweeps or paths or damaged or no_store"),
    "verdicts": ("test_claims_near.py test_claims.py", "side or tried or ways or open or first or part or share"),
}

COMPARISONS = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
OPERATORS = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Pow: "*",
    ast.Mod: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}
#: what is called, or read off an object, and what is called or read in its place
NAMES = {
    a: b
    for pair in (
        ("min", "max"),
        ("any", "all"),
        ("argmax", "argmin"),
        ("sum", "mean"),
        ("minimum", "maximum"),
        ("base", "donor"),
        ("clean", "corrupted"),
        ("correct", "wrong"),
        ("low", "high"),
    )
    for a, b in (pair, pair[::-1])
}
NAMES |= {"zeros": "ones", "softmax": "log_softmax", "cumsum": "cumprod", "sf": "cdf"}
READ = ("base", "donor", "clean", "corrupted", "correct", "wrong", "low", "high")

#: functions and calls that only say something, guard, or count bytes
ASIDE = re.compile(
    "check|bytes|progress|batch|why_not|words|repr|needs|describe|memory|budget|message|sa(id|y)|text|figure|plot|table"
)
SAYS = {"warn", "progress_bar", "print", "needs", "update", "set_float32_matmul_precision", "isfinite"}


class Mutant(NamedTuple):
    "One exchange in a source."

    function: str
    lines: range  # of the function; empty outside of functions
    line: int
    old: str
    new: str
    source: str  # all of it, broken


class Breaker:
    "All mutants of a source."

    def __init__(self, source):
        self.source, self.bytes = source, source.encode()
        self.starts = [0]
        for line in self.bytes.split(b"\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.found, self.lines = [], range(0)
        for statement in ast.parse(source).body:
            self.visit(statement, "<module>")

    def span(self, node):
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node):
        start, end = self.span(node)
        return self.bytes[start:end].decode()

    def exchange(self, function, node, start, end, new):
        "Enter a mutant, if it is one and still Python."
        old = self.bytes[start:end].decode()
        source = (self.bytes[:start] + new.encode() + self.bytes[end:]).decode()
        try:
            ast.parse(source)
        except SyntaxError:
            return
        if old != new:
            self.found.append(Mutant(function, self.lines, node.lineno, old, new, source))

    def between(self, function, node, left, right, pattern, new):
        "Exchange what stands between two operands."
        start, end = self.span(left)[1], self.span(right)[0]
        sign = re.search(pattern, self.bytes[start:end].decode())
        if sign:
            self.exchange(function, node, start + sign.start(), start + sign.end(), new)

    def aside(self, node):
        "Whether a node decides nothing that is measured."
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
            return True
        if isinstance(node, ast.Call):
            return self.text(node.func).split(".")[-1] in SAYS
        if isinstance(node, ast.If):
            return any(isinstance(part, ast.Raise) for part in node.body) and not node.orelse
        if isinstance(node, ast.Expr):
            return isinstance(node.value, ast.Constant)
        return isinstance(node, ast.FunctionDef) and bool(ASIDE.search(node.name))

    def visit(self, node, function):
        if self.aside(node):
            return
        if isinstance(node, ast.FunctionDef):
            around, first = self.lines, min(n.lineno for n in (*node.decorator_list, node))
            self.lines = range(first, node.end_lineno + 1)
            takes = node.args
            named = [*zip(reversed(takes.args), reversed(takes.defaults)), *zip(takes.kwonlyargs, takes.kw_defaults)]
            defaults = [default for name, default in named if default is not None and not ASIDE.search(name.arg)]
            for part in (*defaults, *node.body):
                self.visit(part, node.name)
            self.lines = around
            return
        if isinstance(node, ast.AnnAssign):
            if node.value and not ASIDE.search(self.text(node.target)):
                self.visit(node.value, function)
            return
        breaks = getattr(self, f"break_{type(node).__name__}", None)
        if breaks:
            breaks(node, function)
        if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
            return
        for child in ast.iter_child_nodes(node):
            self.visit(child, function)

    def break_Compare(self, node, function):
        operands = [node.left, *node.comparators]
        signs = r"<=|>=|==|!=|<|>|is\s+not|not\s+in|is|in"
        for left, right, op in zip(operands, operands[1:], node.ops):
            self.between(function, node, left, right, signs, COMPARISONS[type(op)])

    def break_BinOp(self, node, function):
        words = ast.List, ast.JoinedStr
        of_text = isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
        if (
            type(node.op) in OPERATORS
            and not of_text
            and not isinstance(node.left, words)
            and not isinstance(node.right, words)
        ):
            self.between(function, node, node.left, node.right, r"\*\*|//|\+|-|\*|/|%|&|\|", OPERATORS[type(node.op)])

    def break_AugAssign(self, node, function):
        if type(node.op) in OPERATORS:
            self.between(
                function, node, node.target, node.value, r"(\*\*|//|\+|-|\*|/|%|&|\|)(?==)", OPERATORS[type(node.op)]
            )

    def break_UnaryOp(self, node, function):
        start, _ = self.span(node)
        length = 3 if isinstance(node.op, ast.Not) else 1
        if isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            self.exchange(function, node, start, start + length, " " * length)

    def break_BoolOp(self, node, function):
        new = "or" if isinstance(node.op, ast.And) else "and"
        self.between(function, node, node.values[0], node.values[1], r"\band\b|\bor\b", new)

    def break_IfExp(self, node, function):
        self.exchange(function, node, *self.span(node.test), f"(not ({self.text(node.test)}))")

    def break_If(self, node, function):
        self.exchange(function, node, *self.span(node.test), f"(not ({self.text(node.test)}))")

    def break_Constant(self, node, function):
        value = node.value
        if isinstance(value, bool):
            new = str(not value)
        elif isinstance(value, int):
            new = str(value + 1) if value < 1000 else str(value // 2)
        elif isinstance(value, float):
            new = repr(1.5 * value) if value else "0.5"
        else:
            return
        self.exchange(function, node, *self.span(node), new)

    def break_Call(self, node, function):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        end = self.span(node.func)[1]
        if called in NAMES:
            self.exchange(function, node, end - len(called), end, NAMES[called])
        if called == "abs" and len(node.args) == 1:
            self.exchange(function, node, *self.span(node), f"({self.text(node.args[0])})")

    def break_Attribute(self, node, function):
        if node.attr in READ and isinstance(node.ctx, ast.Load):
            end = self.span(node)[1]
            self.exchange(function, node, end - len(node.attr), end, NAMES[node.attr])


def draw(mutants, some, seed):
    "So many, from every function in turn, those with most first."
    by_function: dict = {}
    for mutant in mutants:
        by_function.setdefault(mutant.function, []).append(mutant)
    for members in by_function.values():
        random.Random(seed).shuffle(members)
    drawn: list = []
    while len(drawn) < some and any(by_function.values()):
        for members in sorted(by_function.values(), key=len, reverse=True):
            if members and len(drawn) < some:
                drawn.append(members.pop())
    return sorted(drawn, key=lambda mutant: mutant.line)


def as_if(name, path, source):
    "From here on the module `name` is what `source` says."

    class Loader(SourceFileLoader):
        def get_code(self, fullname):
            return compile(source, str(path), "exec", dont_inherit=True)

    class Finder:
        @staticmethod
        def find_spec(fullname, path_=None, target=None):
            if fullname == name:
                return importlib.util.spec_from_file_location(name, path, loader=Loader(name, str(path)))

    sys.meta_path.insert(0, Finder)


class Reach:
    "A plugin for pytest: what every test calls of a module, and how long it takes."

    def __init__(self, path, kept):
        self.path, self.kept, self.seen, self.of, self.everywhere = str(path), kept, set(), {}, set()

    def trace(self, frame, event, arg):
        if frame.f_code.co_filename == self.path:
            self.seen.add(frame.f_code.co_firstlineno)

    def pytest_runtest_setup(self, item):
        self.seen = set()
        sys.setprofile(self.trace)

    def pytest_runtest_teardown(self, item):
        sys.setprofile(None)

    def pytest_runtest_logreport(self, report):
        if report.when == "setup":  # of a fixture that later tests may share
            self.everywhere |= self.seen
        if report.when == "call":
            self.of[report.nodeid] = report.duration, sorted(self.seen)

    def pytest_sessionfinish(self):
        told = {test: (took, sorted({*seen, *self.everywhere})) for test, (took, seen) in self.of.items()}
        others = [n for n, m in sys.modules.items() if "site-packages" in (getattr(m, "__file__", None) or "")]
        self.kept.write_text(json.dumps({"tests": told, "imports": others}))


class Order:
    "A plugin for pytest: only the tests that reach a function, the quickest first."

    def __init__(self, reach, lines):
        self.reach, self.lines = reach, lines

    def pytest_collection_modifyitems(self, items):
        took = lambda item: self.reach[item.nodeid][0]
        items[:] = sorted((i for i in items if self.reaches(i.nodeid)), key=took)

    def reaches(self, test):
        return test in self.reach and (not self.lines or any(line in self.lines for line in self.reach[test][1]))


def run_tests(arguments, log, seconds, plugin, broken=None):
    "pytest in a process of its own: its exit status, or None where it ran out of time; and the seconds it took."
    import pytest

    began, child = time.time(), os.fork()
    if child == 0:
        status = 99
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            if broken:
                as_if(*broken)
            said = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", "--no-header"]
            status = int(pytest.main([*said, *arguments], plugins=[plugin]))
            sys.stdout.flush()
        finally:
            os._exit(status)
    while time.time() - began < 3 * seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), time.time() - began
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None, time.time() - began


def run_module(module, some, seed, logs):
    "Prints every mutant of a module, and how many were killed."
    path, name = ROOT / "namemovers" / f"{module.replace('.', '/')}.py", f"namemovers.{module}"
    files, chosen = TESTS[module]
    arguments = [str(ROOT / "tests" / file) for file in files.split()]
    arguments += ["-k", f"({chosen or 'test'}) and not ({LONG})"]
    kept = logs / f"{module}.reach"
    status, took = run_tests([*arguments, "--durations=10"], logs / f"{module}.whole", 900, Reach(path, kept))
    if status != 0:
        print(f"{module}: its tests fail as they are, see {logs / module}.whole", flush=True)
        return
    told, found = json.loads(kept.read_text()), Breaker(path.read_text()).found
    reach = told["tests"]
    for other in told["imports"]:  # once for all mutants
        with suppress(Exception):
            importlib.import_module(other)
    drawn, count = draw(found, some, seed), Counter()
    print(f"{module}: {len(drawn)} of {len(found)} mutants, {len(reach)} tests of {took:.0f} s", flush=True)
    lines = path.read_text().splitlines()
    for i, mutant in enumerate(drawn):
        log, order = logs / f"{module}.{seed}.{i}", Order(reach, mutant.lines)
        began = time.time()
        if any(map(order.reaches, reach)):
            status, _ = run_tests(arguments, log, max(60, took), order, (name, path, mutant.source))
        else:
            status = "no test"
            log.write_text("")
        told = {0: "LIVES", 1: "killed", "no test": "LIVES (no test calls it)"}.get(status, "UNJUDGED")
        count[told.split()[0]] += 1
        by = re.search(r"^(?:FAILED|ERROR) \S*?::(\S+)", log.read_text(), re.MULTILINE)
        exchanged = f"{mutant.function}: {mutant.old!r} -> {mutant.new!r}"
        after = f"({time.time() - began:.0f} s) {by[1] if by and status else ''}"
        print(f"  {told} line {mutant.line}, {exchanged} {after}", flush=True)
        if told != "killed":
            print(f"         {lines[mutant.line - 1].strip()}", flush=True)
    figure = f"{count['killed']} of {len(drawn)} killed, {count['LIVES']} live, {count['UNJUDGED']} unjudged"
    print(f"{module}: {figure}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", choices=list(TESTS), metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument("--some", type=int, default=20, help="mutants a module")
    parser.add_argument("--seed", type=int, default=1, help="which are drawn")
    parser.add_argument("--logs", type=Path, default=Path("/tmp/mutants"), help="where what pytest said is kept")
    asked = parser.parse_args()
    asked.logs.mkdir(parents=True, exist_ok=True)
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.chdir(ROOT)
    import hypothesis, pandas, scipy.stats, torch, transformer_lens, transformers, xarray  # noqa: E401, F401 (once for all)

    for module in asked.modules:
        run_module(module, asked.some, asked.seed, asked.logs)


if __name__ == "__main__":
    main()
