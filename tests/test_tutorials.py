"""The tutorials: that they hold for other models too, that GPT-2's tasks are what they say on GPT-2's tokenizer,
that links lead somewhere."""

import asyncio
import json
import re
from pathlib import Path

import pytest
from conftest import gpt2_tokenizer, small_tokenizer, write_checkpoint

from namemovers.data import NAMES, Task
from press.kernels import execute

FOLDER = Path(__file__).parents[1] / "nbs" / "tutorials"
PAGES = ["first_patch", "own_task", "gpt2_task", "from_transformer_lens", "pitfalls", "paper_figure", "clusters"]


def cells(page, kind="code"):
    return [
        "".join(c["source"])
        for c in json.loads((FOLDER / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == kind
    ]


def executed(page, monkeypatch, folder, n=6):
    monkeypatch.setenv("MODEL", str(folder))
    monkeypatch.setenv("N", str(n))
    nb = asyncio.run(execute(FOLDER / f"{page}.ipynb"))
    shown = [
        str(o.get("text", "")) + "".join(str(v) for k, v in o.get("data", {}).items() if k.startswith("text"))
        for c in nb.cells
        if c.cell_type == "code"
        for o in c.outputs
    ]
    return nb, "\n".join(shown)


@pytest.fixture(scope="module")
def gpt2():
    found = gpt2_tokenizer()
    if found is None:
        pytest.skip("GPT-2's tokenizer is not beside the repository (../shared/gpt2_tokenizer)")
    return found


@pytest.fixture(scope="module")
def makers():
    """What the page of GPT-2's tasks defines, without a model."""
    import numpy as np

    from namemovers.data import align

    space = {"np": np, "Task": Task, "align": align}
    for source in cells("gpt2_task"):
        if source.startswith(("SHE =", "THINGS =")):
            exec(source, space)
    return space


# ---- the pages


def test_all_are_there():
    assert sorted(p.stem for p in FOLDER.glob("*.ipynb")) == sorted(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_it_teaches_and_tests(page):
    nb = json.loads((FOLDER / f"{page}.ipynb").read_text(encoding="utf-8"))
    outputs = [o for c in nb["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert any(re.search(r"^\s*assert |assert_close", s, re.M) for s in cells(page)), "no inline test"
    assert any(s.startswith("#| echo: false") and "Markdown(" in s for s in cells(page)), "no figure is read in words"
    assert (
        page in ("gpt2_task", "paper_figure", "clusters")
        or sum("application/vnd.plotly.v1+json" in o.get("data", {}) for o in outputs) >= 3
    )
    assert not any(re.search(r"^#\|\s*(export|default_exp)", s, re.M) for s in cells(page)), "tutorials export nothing"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = [l for text in cells(page, "markdown") + cells(page) for l in re.findall(r"\]\(([^)#]+\.ipynb)", text)]
    assert links
    assert all((FOLDER / link).is_file() for link in links), links


def test_twenty_lines():
    first = next(s for s in cells("own_task") if "Task.from_template" in s)
    lines = [line for line in first.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert "load_model" in first and "study(" in first and "summary" in first and len(lines) <= 20


# ---- another model: random weights, so nothing is significant and nothing is known


@pytest.mark.parametrize("page", [p for p in PAGES if p != "gpt2_task"])  # that one depends on the tokenizer: below
def test_on_another_model(page, tiny_folder, monkeypatch):
    nb, shown = executed(page, monkeypatch, tiny_folder)
    assert "tiny" in shown and "mini" not in re.sub(r"mini(mum|mal)", "", shown), (
        "a sentence about mini on a page of another model"
    )


def test_gpt2_page_to_its_end(gpt2, tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "shaped", gpt2, n_layer=2, n_head=2, n_embd=16)
    nb, shown = executed("gpt2_task", monkeypatch, folder)
    assert "Task(pronouns: n=6" in shown and "Task(greater_than: n=6" in shown
    assert re.search(r"clean: -?\d\.\d{3}\ncorrupted: -?\d\.\d{3}", shown) and "MLPs that restore most" in shown
    assert "nothing was measured" not in shown


# ---- GPT-2's tasks


@pytest.mark.parametrize("n", [1, 50])
def test_pronouns_on_gpt2(gpt2, makers, n):
    task = makers["pronouns"](gpt2, n, 3)
    assert len(task) == n and (task.lengths == task.positions["END"] + 1).all()
    she, he = (gpt2.encode(w, add_special_tokens=False) for w in (" she", " he"))
    for i in range(n):
        name = gpt2.decode([int(task.clean_tokens[i, task.positions["NAME"][i]])]).strip()
        other = gpt2.decode([int(task.corrupted_tokens[i, task.positions["NAME"][i]])]).strip()
        assert (name in makers["SHE"]) == (task.correct[i] == she[0]) == (other in makers["HE"])
        assert (name in makers["HE"]) == (task.correct[i] == he[0])
        assert (task.clean_tokens[i] != task.corrupted_tokens[i]).sum() == 1
        assert gpt2.decode([int(task.clean_tokens[i, task.positions["is"][i]])]) == " is"
    assert not set(makers["SHE"]) & set(makers["HE"]) and set(makers["SHE"] + makers["HE"]) <= set(NAMES)
    if n == 50:
        assert 15 < int((task.correct == she[0]).sum()) < 35


def test_greater_than_on_gpt2(gpt2, makers):
    task = makers["greater_than"](gpt2, 50, 3)
    assert len(set(task.clean)) == 50
    for i in range(50):
        thing, century, year, again = re.fullmatch(
            r"The (\w+) lasted from the year (\d\d)(\d\d) to the year (\d\d)", task.clean[i]
        ).groups()
        assert century == again and task.corrupted[i] == task.clean[i].replace(f"{century}{year}", f"{century}01", 1)
        assert gpt2.decode([int(task.clean_tokens[i, task.positions["YY"][i]])]) == year
        assert gpt2.decode([int(task.corrupted_tokens[i, task.positions["YY"][i]])]) == "01"
        above, below = int(task.answer(i)), int(task.answer(i, wrong=True))
        # no space, and as many steps up as down
        assert below < int(year) < above and above - int(year) == int(year) - below
        for end in (above, below):  # what the model would read is what it is asked for
            assert (
                gpt2.encode(f"{task.clean[i]}{end:02}", add_special_tokens=False)[-1]
                == gpt2.encode(f"{end:02}", add_special_tokens=False)[0]
            )


def test_a_tokenizer_that_splits_is_told_so(makers):
    small = small_tokenizer()
    with pytest.raises(ValueError, match=r"answers: ' she' .*is not one token but 2"):
        makers["pronouns"](small, 5, 0)
    with pytest.raises(ValueError, match=r"answers: '\d\d' .*is not one token but 2: \['\d', '\d'\]"):
        makers["greater_than"](small, 5, 0)
