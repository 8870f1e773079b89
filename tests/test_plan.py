"""What the study runs: which notebooks, what each waits for, in which order; and what is shown of the others."""

import asyncio
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from press import processes, records, runner
from press.plan import Plan

ROOT = Path(__file__).parents[1]

SAVES = """
import numpy as np, xarray as xr
from namemovers.results import save
about = dict(model="tiny", task="mrs", n=3, seed=0, corruption="switch_subjects")
save(xr.Dataset({{"x": ("prompt", np.arange(3.0) + {value})}}, attrs=about), {name!r})
"""
READS = "from namemovers.results import load\nprint(float(load({name!r}).x.sum()))"


def write(path, *sources):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_code_cell(s) for s in sources]), path)


def planned(root, text, *names):
    for name in names:
        write(root / f"nbs/{name}.ipynb", "1")
    (root / "study.toml").write_text(text)
    return Plan(root)


def short(paths):
    return [Path(p).stem for p in paths]


def times(plan, workers, seconds, paths=None):
    """When each notebook starts and ends, where each takes as long as is said."""
    clock, log = 0.0, {}
    ends = []

    async def one(path):
        began = clock
        done = asyncio.get_running_loop().create_future()
        ends.append((began + seconds[path.stem], path.stem, done))
        await done
        log[path.stem] = (began, clock)

    async def tick(run):
        nonlocal clock
        while not run.done():
            for _ in range(5):
                await asyncio.sleep(0)  # whatever is ready starts
            if ends:
                ends.sort(key=lambda e: e[:2])
                clock, _, done = ends.pop(0)
                done.set_result(None)

    async def all():
        run = asyncio.ensure_future(plan.run(plan.study if paths is None else paths, one, workers))
        await asyncio.wait_for(tick(run), 30)
        await run

    asyncio.run(all())
    return log


def test_a_notebook_waits_for_what_it_needs_and_no_longer(tmp_path):
    text = '[study]\n"nbs/a" = {}\n"nbs/long" = {}\n"nbs/b" = {needs = ["nbs/a"]}\n"nbs/c" = {needs = ["nbs/b"]}\n'
    plan = planned(tmp_path, text, "a", "long", "b", "c")
    log = times(plan, 2, dict(a=1, long=10, b=1, c=1))
    assert log == dict(a=(0, 1), b=(1, 2), c=(2, 3), long=(0, 10))


def test_the_longest_way_first(tmp_path):
    text = '[study]\n"nbs/a" = {seconds = 1}\n"nbs/b" = {seconds = 2}\n"nbs/c" = {seconds = 1}\n'
    text += '"nbs/d" = {seconds = 5, needs = ["nbs/c"]}\n'
    plan = planned(tmp_path, text, "a", "b", "c", "d")
    log = times(plan, 1, dict(a=1, b=2, c=1, d=5))
    assert sorted(log, key=log.get) == ["c", "d", "b", "a"]
    assert plan.behind(plan.study, {plan.study[0]: 9.0})[plan.study[0]] == 9, "what was measured counts more"


def test_what_is_left_out_of_a_run_still_orders_it(tmp_path):
    text = '[study]\n"nbs/a" = {}\n"nbs/b" = {needs = ["nbs/a"]}\n"nbs/c" = {needs = ["nbs/b"]}\n'
    plan = planned(tmp_path, text, "a", "b", "c")
    a, b, c = plan.study
    assert plan.before(c) == {a, b} and plan.before(a) == set()
    log = times(plan, 2, dict(a=1, c=1), [c, a])
    assert log == dict(a=(0, 1), c=(1, 2))


def test_an_error_ends_the_run(tmp_path):
    plan = planned(tmp_path, '[study]\n"nbs/a" = {}\n"nbs/b" = {}\n', "a", "b")
    ended = []

    async def one(path):
        try:
            if path.stem == "a":
                raise RuntimeError("boo")
            await asyncio.sleep(60)
        finally:
            ended.append(path.stem)

    with pytest.raises(RuntimeError, match="boo"):
        asyncio.run(plan.run(plan.study, one, 2))
    assert sorted(ended) == ["a", "b"], "nothing goes on behind it"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[study]\n"nbs/x" = {}', "'nbs/x'"),
        ('[study]\n"nbs/a" = {needs = ["nbs/x"]}', "'nbs/x'"),
        ('[study]\n"nbs/a" = {needs = ["nbs/b"]}\n"nbs/b" = {needs = ["nbs/a"]}', "could ever start"),
        ('[study]\n"nbs/a" = {needs = ["nbs/b"]}', "which the study does not run"),
        ('[study]\n"nbs/a" = 3', "must be a table"),
        ('[study]\n"nbs/a" = {need = []}', "need = "),
        ('[study]\n"nbs/a" = {seconds = "3"}', "seconds = '3'"),
        ('[stud]\n"nbs/a" = {}', "'stud'"),
        ("[study", "cannot be read"),
    ],
)
def test_a_plan_that_cannot_be_is_one_sentence(tmp_path, text, told):
    with pytest.raises(ValueError, match=told) as e:
        planned(tmp_path, text, "a", "b")
    assert "study.toml" in str(e.value) and "\n" not in str(e.value)


@pytest.fixture
def root(tmp_path, tiny_folder, monkeypatch):
    """A repository of a step, a page of what it saves, and two notebooks that the study leaves out."""
    for name in ("MODEL", "N", "SEED", "CORRUPTION", "DEVICE"):
        monkeypatch.setenv(name, "")
    (tmp_path / "settings.ini").write_text(f"[study]\nmodel = {tiny_folder}\nn = 3\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "0"\n[tool.nbdev]\nnbs_path = "nbs"\n')
    (tmp_path / "study.toml").write_text(
        '[study]\n"nbs/00_step" = {}\n"nbs/claims" = {needs = ["nbs/00_step", "nbs/known"]}\n'
        '[others]\n"nbs/known" = {keeps = ["known"]}\n'
    )
    write(tmp_path / "nbs/00_step.ipynb", SAVES.format(value=1, name="mrs_step"))
    write(tmp_path / "nbs/claims.ipynb", READS.format(name="mrs_step"), READS.format(name="known"))
    write(tmp_path / "nbs/known.ipynb", SAVES.format(value=2, name="known"))
    write(tmp_path / "nbs/core/page.ipynb", "print('page')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(capsys, root, **kw):
    capsys.readouterr()
    failures = [str(f) for f in runner.run(root, **kw)]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    lines = [line.split("] ", 1)[1].split(None, 1) for line in said]
    return {name.removeprefix("nbs/") for name, what in lines if what[0].isdigit()}, failures


def printed(path):
    return ["".join(o.get("text", "") for o in c.outputs).strip() for c in nbformat.read(path, 4).cells]


def test_a_study_leaves_out_what_is_committed_and_renewal_does_not(root, capsys):
    assert ran(capsys, root, update=True) == ({"00_step", "claims", "known", "core/page"}, [])
    assert (root / "nbs/results/known.nc").is_file() and printed(root / "nbs/core/page.ipynb") == ["page"]
    for path in (root / "results").rglob("*.*"):
        path.unlink()
    assert ran(capsys, root) == ({"00_step", "claims"}, [])
    assert printed(root / "results/tiny/notebooks/nbs/claims.ipynb") == ["6.0", "9.0"], "9: of what is committed"
    assert ran(capsys, root) == (set(), [])
    # What ran here counts more than what is committed, while it holds.
    write(root / "nbs/known.ipynb", SAVES.format(value=3, name="known"))
    assert ran(capsys, root, only=["nbs/known.ipynb"]) == ({"known"}, [])
    assert ran(capsys, root) == ({"claims"}, [])
    assert printed(root / "results/tiny/notebooks/nbs/claims.ipynb") == ["6.0", "12.0"]


def test_reading_without_waiting_fails(root, capsys):
    (root / "study.toml").write_text((root / "study.toml").read_text().replace('"nbs/00_step", ', ""))
    ran(capsys, root, only=["nbs/known.ipynb", "nbs/00_step.ipynb"])
    _, (failure,) = ran(capsys, root)
    assert "nbs/claims.ipynb reads mrs_step.nc, which nbs/00_step.ipynb saves" in failure and "needs in" in failure
    assert "claims" in ran(capsys, root)[0], "it is not taken for current"


def test_pages_of_the_study_are_its_own_and_the_others_committed(root, capsys, tmp_path, monkeypatch):
    built = []

    def build(folder, out, root):
        built.append({p.relative_to(folder).as_posix(): p.resolve() for p in folder.rglob("*.ipynb")})

    monkeypatch.setattr("press.website.build", build)
    committed = {f"nbs/{n}.ipynb": root / f"nbs/{n}.ipynb" for n in ("00_step", "claims", "known", "core/page")}
    copies = {name: root / "results/tiny/notebooks" / name for name in committed}
    processes.build_site(root)
    assert built.pop() == committed
    ran(capsys, root, update=True)
    processes.build_site(root)
    # `update` changed no source, so what ran here still holds.
    assert built.pop() == copies
    write(root / "nbs/core/page.ipynb", "print('another')")
    copies["nbs/claims.ipynb"].unlink()
    processes.build_site(root)
    now = built.pop()
    assert now["nbs/core/page.ipynb"] == committed["nbs/core/page.ipynb"]
    assert now["nbs/00_step.ipynb"] == copies["nbs/00_step.ipynb"]
    assert "nbs/claims.ipynb" not in now, "no page of another model takes the place of one that did not run"


# --- the plan of this repository ------------------------------------------------------------------------------------


def test_the_study_is_all_that_depends_on_the_model():
    plan = Plan(ROOT)
    study = {p.with_suffix("").as_posix() for p in plan.study}
    steps = {p.with_suffix("").as_posix() for p in plan.notebooks if p.stem[:2].isdigit()}
    assert study == steps | {f"nbs/{n}" for n in ("stability", "claims", "writeup", "index")} | {"ioi_nbs/comparison"}


def test_what_is_kept_is_committed():
    plan = Plan(ROOT)
    kept = {f"{name}.nc" for names in plan.keeps.values() for name in names}
    there = {p.name for p in (ROOT / records._KEPT).iterdir()}
    assert kept == there and kept
