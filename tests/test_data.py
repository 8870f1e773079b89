"""The tasks: words, templates, corruptions, positions, errors; the survey."""

import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from conftest import gpt2_tokenizer, small_tokenizer, warned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from namemovers import data
from namemovers.data import (
    CUES,
    DESCRIPTIONS,
    IOI_CORRUPTIONS,
    IOI_TEMPLATES,
    KINDS,
    MRS_CORRUPTIONS,
    MRS_TEMPLATES,
    NAMES,
    NEUTRAL_SENTENCES,
    OBJECTS,
    PILOT_NAMES,
    PLACES,
    SURVEY,
    TITLES,
    ioi_task,
    mrs_task,
    predictions,
    survey,
    survey_figure,
    survey_table,
    survey_template,
    token_table,
)
from namemovers.prompts import drawing, tokens

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="module", params=["gpt2", "small"])
def tokenizer(request):
    found = gpt2_tokenizer() if request.param == "gpt2" else small_tokenizer()
    if found is None:
        pytest.skip("GPT-2's tokenizer is not beside the repository (../shared/gpt2_tokenizer)")
    return found


@pytest.fixture(scope="module")
def gpt2():
    found = gpt2_tokenizer()
    if found is None:
        pytest.skip("GPT-2's tokenizer is not beside the repository (../shared/gpt2_tokenizer)")
    return found


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


# ---- words and templates


def test_there_are_enough_words():
    assert len(NAMES) >= 100 and min(map(len, (DESCRIPTIONS, CUES))) >= 40 and min(map(len, (PLACES, OBJECTS))) >= 15
    assert len(MRS_TEMPLATES) >= 8 and len(IOI_TEMPLATES) >= 15
    for words in (NAMES, DESCRIPTIONS, TITLES, CUES, PLACES, OBJECTS):
        assert len(set(words)) == len(words)
    assert not {w for w in DESCRIPTIONS + OBJECTS if w[0] in "aeiou"}  # they follow "a"


def test_every_word_is_one_token(tokenizer):
    split = [
        w
        for w in NAMES + DESCRIPTIONS + TITLES + CUES + PLACES + OBJECTS + ["Carol"]
        if len(ids(tokenizer, " " + w)) != 1
    ]
    split += [w for w in NAMES if len(ids(tokenizer, w)) != 1]
    for template in [*MRS_TEMPLATES.values(), *IOI_TEMPLATES.values(), *NEUTRAL_SENTENCES]:
        for i, word in enumerate(re.findall(r"\{?\w+\}?", template)):
            if word[0] != "{" and len(ids(tokenizer, word if i == 0 else " " + word)) != 1:
                split.append((template, word))
    assert not split


def changed(task, i):
    return {int(p) for p in (task.clean_tokens[i] != task.corrupted_tokens[i]).nonzero().flatten()}


@pytest.mark.parametrize("template", MRS_TEMPLATES)
@pytest.mark.parametrize("corruption", MRS_CORRUPTIONS)
@pytest.mark.parametrize("vary", [None, "vary"])
def test_mrs_is_aligned(tokenizer, template, corruption, vary):
    n = 5
    task = mrs_task(
        tokenizer, n=n, seed=1, templates=template, corruption=corruption, descriptions=vary, cue_words=vary
    )
    assert len(set(task.clean)) == n and task.templates == [template] * n
    assert task.clean_tokens.shape == task.corrupted_tokens.shape
    assert (task.clean_tokens[:, 0] == tokenizer.bos_token_id).all()
    at = task.positions
    assert (at["END"] == task.lengths - 1).all()
    for i in range(n):
        length = int(task.lengths[i])
        assert task.clean_tokens[i, 1:length].tolist() == ids(tokenizer, task.clean[i])
        assert task.corrupted_tokens[i, 1:length].tolist() == ids(tokenizer, task.corrupted[i])
        assert task.clean_tokens[i, at["S4"][i]] == task.correct[i]  # the latest subject is the answer
        assert (task.wrong[i] != task.correct[i]) and changed(task, i)
        assert changed(task, i).isdisjoint({0, length - 1})
        for name in set(at) & {"S1", "S2", "S3", "S4", "cue_name", "cue_word"}:
            word = task.names[i][name]
            assert tokenizer.decode([int(task.clean_tokens[i, at[name][i]])]).strip() == word
        mentions = [
            m.start()
            for s in ("S1", "S2", "S3", "S4", "S5", "S6")
            if s in task.names[i]
            for m in re.finditer(rf"\b{task.names[i][s]}\b", task.clean[i])
        ]
        assert max(mentions) == task.clean[i].rindex(task.names[i]["S4"])


def test_what_each_mrs_corruption_changes(tokenizer):
    def pair(corruption):
        task = mrs_task(tokenizer, n=1, names=PILOT_NAMES, corruption=corruption)
        return task, changed(task, 0), {k: int(v[0]) for k, v in task.positions.items()}

    task, where, at = pair("switch_subjects")
    assert where == {at["S3"], at["S4"]}
    assert task.corrupted_tokens[0, at["S4"]] == task.wrong[0]
    assert task.corrupted_tokens[0, at["S3"]] == task.correct[0]
    task, where, at = pair("new_subjects")
    assert where == {at["S3"], at["S4"]}
    assert not {int(task.corrupted_tokens[0, p]) for p in where} & set(task.clean_tokens[0].tolist())
    task, where, at = pair("switch_descriptions")
    assert where == {at["S3"] + 3, at["S4"] + 3}
    assert sorted(task.corrupted_tokens[0].tolist()) == sorted(task.clean_tokens[0].tolist())
    task, where, at = pair("new_descriptions")
    assert where == {at["S3"] + 3, at["S4"] + 3} and "teacher" not in task.corrupted[0][50:]
    task, where, at = pair("no_cue")
    assert where <= set(range(at["cue_name"] - 3, at["cue_name"] + 1))
    assert at["cue_name"] in where
    assert task.corrupted[0].count("child") == 1
    task, where, at = pair("other_cue")
    assert where == {at["cue_name"] - 2}
    # with one subject a part the two answers change places wherever they stand, in the cue too
    task = mrs_task(tokenizer, n=1, templates="one_each", names=["Alice", "Bob"])
    where, at = changed(task, 0), {k: int(v[0]) for k, v in task.positions.items()}
    assert where == {at["S1"], at["cue_name"], at["S4"]} and task.corrupted_tokens[0, at["S4"]] == task.wrong[0]


def test_the_pilots_prompt(gpt2):
    reference = SHARED / "reference" / "gpt2_mrs_pilot.json"
    if not reference.is_file():
        pytest.skip("../shared/reference is absent")
    pilot = json.loads(reference.read_text())
    task = mrs_task(gpt2, n=1, names=PILOT_NAMES)
    assert task.clean == [pilot["prompt"]] and [gpt2.decode([int(t)]) for t in task.clean_tokens[0]] == pilot["tokens"]
    at = {k: int(v[0]) for k, v in task.positions.items()}
    assert at == {"S1": 1, "S2": 6, "cue_name": 14, "S3": 16, "S3+1": 17, "S4": 21, "cue_word": 27, "END": 28}
    assert {k: at[k] for k in ("S1", "S2", "S3", "S4", "END")} == {
        k: v for k, v in pilot["positions"].items() if k in at
    }
    assert task.answer() == pilot["answer"] and task.answer(wrong=True) == pilot["wrong"]
    assert task.corrupted[0] == pilot["prompt"].replace("Carol", "?").replace("David", "Carol").replace("?", "David")


def test_the_default_changes_only_the_names(gpt2):
    task = mrs_task(gpt2, n=50)
    assert {re.sub(rf"\b({'|'.join(NAMES)})\b", "*", text) for text in task.clean} == {
        "* is a teacher. * is a student. The child is *. * is a teacher. * is a student. The child is"
    }
    assert set(task.lengths.tolist()) == {29}


def test_which_subject_the_cue_names(tokenizer):
    for subject, key in (("first", "S1"), ("last", "S2"), ("S1", "S1")):
        task = mrs_task(tokenizer, n=3, cue_subject=subject)
        assert all(names["cue_name"] == names[key] for names in task.names)


# ---- IOI


@pytest.mark.parametrize("template", IOI_TEMPLATES)
@pytest.mark.parametrize("corruption", IOI_CORRUPTIONS)
def test_ioi_is_aligned(tokenizer, template, corruption):
    n = 6
    task = ioi_task(tokenizer, n=n, seed=2, templates=template, corruption=corruption)
    at = task.positions
    assert set(at) == {"IO", "S1", "S1+1", "S2", "END"}
    assert (at["END"] == task.lengths - 1).all()
    assert (at["S1+1"] == at["S1"] + 1).all()
    assert int((at["IO"] < at["S1"]).sum()) == n // 2
    for i in range(n):
        token = lambda name, tokens=task.clean_tokens: int(tokens[i, at[name][i]])
        other = lambda name: token(name, task.corrupted_tokens)
        assert token("IO") == task.correct[i]
        assert token("S1") == token("S2") == task.wrong[i]
        assert task.correct[i] != task.wrong[i]
        expected = {int(at[k][i]) for k in (("IO", "S1", "S2") if corruption == "abc" else ("S2",))}
        assert changed(task, i) == expected
        if corruption == "switch_s2":
            assert other("S2") == token("IO")
        if corruption == "new_s2":
            assert other("S2") not in (token("IO"), token("S2"))
        if corruption == "abc":
            assert len({other("IO"), other("S1"), other("S2"), token("IO"), token("S1")}) == 5


@pytest.mark.parametrize("order", ["ABBA", "BABA"])
@pytest.mark.parametrize("template", ["When {IO} and {S} met, {S} waved to", "When {S} and {IO} met, {S} waved to"])
def test_order_does_not_depend_on_how_a_template_is_written(tokenizer, order, template):
    task = ioi_task(tokenizer, n=4, order=order, templates=template, names={"IO": "Mary", "S": NAMES[:4]})
    first = "IO" if order == "ABBA" else "S1"
    assert (task.positions[first] == 2).all() and (task.correct == ids(tokenizer, " Mary")[0]).all()


# ---- the task


TWO_TASKS = """
from namemovers.data import ioi_task, mrs_task
a = mrs_task(t, 20, 3, templates="all", corruption="new_subjects", descriptions="vary", cue_words="vary")
b = ioi_task(t, 20, 3, corruption="abc")
out = repr((a.clean, a.corrupted, b.clean, b.corrupted, b.clean_tokens.tolist()))
"""


def test_a_task_is_the_same_in_two_processes(tiny_folder):
    from transformers import AutoTokenizer

    here = {"t": AutoTokenizer.from_pretrained(str(tiny_folder))}
    exec(TWO_TASKS, here)
    code = (
        "import sys; from transformers import AutoTokenizer\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        f"{TWO_TASKS}\nprint(out)"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(tiny_folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert there.returncode == 0, there.stderr
    assert there.stdout.strip() == here["out"] and len(here["out"]) > 1000


def test_clean_prompts_do_not_depend_on_the_corruption(tokenizer):
    assert len({tuple(mrs_task(tokenizer, n=10, seed=5, corruption=c).clean) for c in MRS_CORRUPTIONS}) == 1
    assert len({tuple(ioi_task(tokenizer, n=10, seed=5, corruption=c).clean) for c in IOI_CORRUPTIONS}) == 1


def test_seeds_differ(tokenizer):
    assert mrs_task(tokenizer, n=10, seed=0).clean != mrs_task(tokenizer, n=10, seed=1).clean


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 24),
    seed=st.integers(0, 2**32),
    names=st.lists(st.sampled_from(NAMES), min_size=4, max_size=6, unique=True),
)
def test_any_seed_and_names(n, seed, names):
    task = mrs_task(ANY, n=n, seed=seed, names=names)
    assert len(task) == len(set(task.clean)) == n
    assert {v for row in task.names for k, v in row.items() if k in ("S1", "S2", "S3", "S4")} <= set(names)
    both = ioi_task(ANY, n=n, seed=seed, names=names)
    assert len(set(both.clean)) == n and (both.positions["S1"] != both.positions["IO"]).all()


ANY = small_tokenizer()


def test_every_possible_prompt_is_found(tokenizer):
    names = ["Alice", "Bob", "John", "Mary"]
    task = mrs_task(tokenizer, n=24, names=names)
    assert len(set(task.clean)) == 24  # 4! orders
    with pytest.raises(ValueError, match="only 24"):
        mrs_task(tokenizer, n=25, names=names)


def test_padding_changes_nothing(tiny):
    task = mrs_task(tiny.tokenizer, n=8, templates=["pilot", "one_each", "three_each"])
    assert len(set(task.lengths.tolist())) == 3
    rows = torch.arange(len(task))
    with torch.no_grad():
        together = tiny(task.clean_tokens)[rows, task.positions["END"]]
        for i in range(len(task)):
            one = task[i]
            assert one.clean_tokens.shape == (1, int(task.lengths[i])) and one.clean == [task.clean[i]]
            torch.testing.assert_close(tiny(one.clean_tokens)[0, -1], together[i], atol=1e-4, rtol=1e-4)


def test_subset(tokenizer):
    task = ioi_task(tokenizer, n=10)
    part = task[[3, -1]]
    assert part.clean == [task.clean[3], task.clean[9]]
    assert part.correct.tolist() == [
        int(task.correct[3]),
        int(task.correct[9]),
    ]
    assert part.positions["S2"].tolist() == [
        int(task.positions["S2"][3]),
        int(task.positions["S2"][9]),
    ]
    assert part.clean_tokens.shape[1] == int(part.lengths.max())
    assert task[2:4].clean == task.clean[2:4] and part.names == [task.names[3], task.names[9]] and "n=2" in repr(part)
    with pytest.raises(IndexError):
        task[10]
    with pytest.raises(ValueError):
        task[5:5]


@pytest.mark.parametrize(
    "make",
    [list, np.array, torch.tensor, lambda m: xr.DataArray(m, dims="prompt"), pd.Series],
    ids=["list", "numpy", "torch", "xarray", "pandas"],
)
def test_a_mask_selects_prompts(make):
    task = mrs_task(ANY, n=6)
    part = task[make([False, True, False, False, True, True])]
    assert part.clean == [task.clean[i] for i in (1, 4, 5)]
    assert part.correct.tolist() == task.correct[[1, 4, 5]].tolist()
    for wrong in (make([True] * 5), make([False] * 6), make([0.0, 1.0])):
        with pytest.raises(ValueError, match="^index: "):
            task[wrong]
    assert [one.clean[0] for one in task] == task.clean  # a loop over a task ends


def seconds(call, limit=2):
    "What a call that must be refused says, in time."
    start = time.perf_counter()
    with pytest.raises(ValueError) as caught:
        call()
    assert time.perf_counter() - start < limit
    return str(caught.value)


TOO_FEW = {
    "one description for two": (
        lambda t: mrs_task(t, n=2, descriptions=["teacher"]),
        r"\{D1\} and \{D2\} .* need 2 different words and have \['teacher'\]",
    ),
    "two placeholders share a word": (
        lambda t: mrs_task(t, n=2, words={"D1": "teacher", "D2": ["teacher"]}),
        r"need 2 different words and have \['teacher'\]",
    ),
    "three share two": (
        lambda t: mrs_task(t, n=1, names={"S1": ["Bob", "John"], "S3": ["Bob", "John"], "S4": ["John", "Bob"]}),
        r"\{S1\} and \{S3\} and \{S4\} .* need 3 different words",
    ),
    "too few names": (lambda t: mrs_task(t, n=1, names=["Bob", "John", "Mary"]), "need 4 different words"),
    "one word each, a template": (
        lambda t: data.Task.from_template(
            "{A} and {B} left. {B} called", dict(A=["Mary"], B=["Mary"]), ("A", "B"), ("A", "B"), t
        ),
        "need 2 different words",
    ),
    "very many, few names": (lambda t: mrs_task(t, n=500_000, names=NAMES[:6]), "only 360 different"),
    "very many, IOI": (
        lambda t: ioi_task(
            t, n=500_000, order="ABBA", templates="went", names=NAMES[:8], words={"PLACE": ["zoo", "park"]}
        ),
        f"only {8 * 7 * 2 * len(OBJECTS)} different",
    ),
    "very many, a template": (
        lambda t: data.Task.from_template(
            "{A} and {B} left. {B} called", dict(A=NAMES, B=NAMES), ("A", "B"), ("A", "B"), t, n=500_000
        ),
        f"only {len(NAMES) * (len(NAMES) - 1)} different",
    ),
    "one template twice": (
        lambda t: mrs_task(
            t, n=48, names=NAMES[:4], templates={"a": MRS_TEMPLATES["pilot"], "b": MRS_TEMPLATES["pilot"]}
        ),
        "only 24 different",
    ),
}


@pytest.mark.parametrize("what", TOO_FEW)
def test_too_few_is_said_before_drawing(what, monkeypatch):
    monkeypatch.setattr(drawing, "draws_of", lambda *_: pytest.fail("drawn"))
    call, message = TOO_FEW[what]
    assert re.search(message, seconds(lambda: call(ANY)))


def test_fillings_are_counted_exactly():
    rng = np.random.default_rng(0)
    for _ in range(200):
        pools = {
            key: sorted({"abcdef"[i] for i in rng.integers(6, size=rng.integers(1, 6))})
            for key in "ABCD"[: rng.integers(1, 5)]
        }
        every = [words for words in itertools.product(*pools.values()) if len(set(words)) == len(words)]
        assert drawing.count_fillings(pools, lambda a, b: True) == len(every)
        assert bool(drawing.scarce(pools)) == (not every)
        assert list(map(list, every)) == [list(d.values()) for d in drawing.all_draws(pools, lambda a, b: True)]
    pools = {"S1": ["a", "b", "c"], "S2": ["b", "c"], "D1": ["a", "b"], "D2": ["a", "b"], "X": ["a", "b"]}
    assert drawing.count_fillings(pools) == len(list(drawing.all_draws(pools))) == 4 * 2 * 2


def test_prompts_that_come_out_alike_are_no_endless_search():
    # many ways to fill the template, few different texts
    words = {"X": ["a" * k for k in range(1, 40)], "Y": ["a" * k for k in range(1, 40)]}
    names = {"S1": "Bob", "S2": "John"}
    assert "only" in seconds(
        lambda: mrs_task(ANY, n=500, names=names, templates="{S1} met {S2}, {X}{Y}. So", words=words)
    )


@pytest.mark.parametrize(
    "template, written",
    [("{S1!r} met {S2}. So", "{S1!r}"), ("{S1} met {S2:>10}. So", "{S2:>10}"), ("{S1!s:3} met {S2}. So", "{S1!s:3}")],
)
def test_a_template_has_no_formats(template, written):
    for call in (
        lambda: mrs_task(ANY, n=1, templates=template),
        lambda: data.Task.from_template(template, dict(S1=NAMES, S2=NAMES), ("S1", "S2"), ("S1", "S2"), ANY),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{written} asks for a format")):
            call()


def test_token_table(tokenizer):
    task = mrs_task(tokenizer, n=1, names=PILOT_NAMES)
    table = token_table(task)
    assert len(table) == 29 and list(table.query("changed != ''").named) == ["S3", "S4"]
    assert table.named[28] == "END" and table.clean[21] == "·David" and table.corrupted[21] == "·Carol"
    assert "<|endoftext|>" not in table.to_html() and "&lt;|endoftext|&gt;" in table.to_html()


def test_own_template_list_dict_and_names(tokenizer):
    text = "{S1} met {S2}. The {cue_word} is {cue_name}. {S3} met {S4}. The {cue_word} is"
    for templates in (text, [text], {"mine": text}):
        task = mrs_task(tokenizer, n=3, templates=templates, names=["Alice", "Bob", "John", "Mary"])
        assert set(task.positions) == {"S1", "S2", "cue_name", "S3", "S3+1", "S4", "cue_word", "END"}
        assert set(task.templates) == {"mine" if isinstance(templates, dict) else text}
    own = mrs_task(
        tokenizer,
        n=4,
        templates="{S1} has a {THING}. {S2} has a {THING}. So",
        names=["Alice", "Bob"],
        words={"THING": ["book", "phone"]},
    )
    assert "THING" in own.positions and list(own.positions)[-1] == "END"
    mixed = mrs_task(tokenizer, n=26, templates="all")
    assert set(mixed.templates) == set(MRS_TEMPLATES) and "S4" in mixed.positions and "S2" not in mixed.positions


# ---- what must not pass in silence


ERRORS = {
    "names at the start": (
        lambda t: mrs_task(t, n=1, names=["Alice", "Bob", "John", "Zoranthia"]),
        r"names: 'Zoranthia' is not one token at the start of a text but \d+: \[.*'.*\]",
    ),
    "names after a space": (
        lambda t: ioi_task(t, n=1, names={"IO": "Zoranthia"}),
        r"names: 'Zoranthia' is not one token after a space but \d+: \[",
    ),
    "one name, two answers": (
        lambda t: mrs_task(t, n=1, names={"S3": "Bob", "S4": "Bob"}),
        "right and the wrong answer are equal",
    ),
    "one name, two answers, IOI": (
        lambda t: ioi_task(t, n=1, names={"IO": "Bob", "S": "Bob"}),
        "right and the wrong answer are equal",
    ),
    "no value": (
        lambda t: mrs_task(t, n=1, templates="{S1} met {S2} in {TOWN}. So"),
        r"no value for the placeholder \{TOWN\}",
    ),
    "no value, IOI": (
        lambda t: ioi_task(t, n=1, templates="{IO} met {S} in {TOWN}. {S} waved to"),
        r"no value for the placeholder \{TOWN\}",
    ),
    "unknown number": (lambda t: mrs_task(t, n=1, templates="{S1} is a {D999}. {S2} is a {D1}. So"), "D999"),
    "unequal length": (
        lambda t: mrs_task(t, n=1, corruption="switch_descriptions", words={"D1": "counterrevolutionary"}),
        "same positions",
    ),
    "unknown corruption": (lambda t: mrs_task(t, corruption="swap"), "corruption: 'swap' is unknown"),
    "IOI corruption in MRS": (lambda t: mrs_task(t, corruption="abc"), "corruption: 'abc' is unknown"),
    "unknown order": (lambda t: ioi_task(t, order="ABAB"), "order: 'ABAB' is unknown"),
    "too few": (
        lambda t: ioi_task(t, n=5, order="ABBA", templates="{IO} and {S} met. {S} waved to", names=["Bob", "John"]),
        "only 2 different",
    ),
    "n = 0": (lambda t: mrs_task(t, n=0), "n: 0"),
    "n = 2.5": (lambda t: ioi_task(t, n=2.5), "n: 2.5"),
    "n = True": (lambda t: ioi_task(t, n=True), "n: True"),
    "unknown template": (lambda t: mrs_task(t, templates="pilott"), "'pilott' is neither"),
    "no template": (lambda t: mrs_task(t, templates=[]), "templates: none"),
    "one subject": (lambda t: mrs_task(t, n=1, templates="{S1} is a {D1}. The {cue_word} is"), "two subjects"),
    "cue before subjects": (
        lambda t: mrs_task(t, n=1, templates="The {cue_word} is {cue_name}. {S1} and {S2}. The {cue_word} is"),
        "before there is one",
    ),
    "empty placeholder": (lambda t: mrs_task(t, n=1, templates="{} met {S1} and {S2}. So"), "empty placeholder"),
    "open brace": (lambda t: mrs_task(t, n=1, templates="{S1 met {S2}. So"), "template"),
    "space at the end": (lambda t: mrs_task(t, n=1, templates="{S1} met {S2}. So "), "ends in a space"),
    "no IOI template": (lambda t: ioi_task(t, n=1, templates="{IO} met {S} and waved to"), "no IOI template"),
    "names of no placeholder": (lambda t: mrs_task(t, n=1, names={"S9": "Bob"}), r"no placeholder \{S9\}"),
    "words of no placeholder": (lambda t: mrs_task(t, n=1, words={"PLACE": "zoo"}), r"no placeholder \{PLACE\}"),
    "empty names": (lambda t: mrs_task(t, n=1, names=[]), "names: expected"),
    "unknown cue subject": (lambda t: mrs_task(t, n=1, cue_subject="S4"), "cue_subject"),
    "descriptions misspelt": (lambda t: mrs_task(t, n=1, descriptions="varied"), "descriptions: got 'varied'"),
    "no cue to take away": (
        lambda t: mrs_task(t, n=1, templates="{S1} is a {D1}. {S2} is a {D2}. So", corruption="no_cue"),
        "no cue sentence",
    ),
    "no cue to change": (
        lambda t: mrs_task(t, n=1, templates="{S1} is a {D1}. {S2} is a {D2}. So", corruption="other_cue"),
        "twice",
    ),
    "nothing to switch": (
        lambda t: mrs_task(t, n=1, templates="{S1} met {S2}. So", corruption="switch_descriptions"),
        "two descriptions",
    ),
    "nothing to renew": (
        lambda t: mrs_task(t, n=1, templates="{S1} met {S2}. So", corruption="new_descriptions"),
        "no description",
    ),
    "corruption without change": (
        lambda t: mrs_task(t, n=1, corruption="switch_descriptions", templates="{S1} is a {D1}. {S2} is a {D1}. So"),
        "changes nothing",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(tokenizer, what):
    call, message = ERRORS[what]
    with pytest.raises(ValueError, match=message) as caught:
        call(tokenizer)
    assert "\n" not in str(caught.value)


def test_gpt2_splits_carol_at_the_start(gpt2):
    with pytest.raises(ValueError, match=re.escape("['Car', 'ol']")):
        mrs_task(gpt2, n=1, names=["Alice", "Bob", "Carol", "David"])
    assert mrs_task(gpt2, n=1, names=PILOT_NAMES).names[0]["S3"] == "Carol"  # after a space it is one token


def test_tokenizer_without_bos(gpt2):
    gpt2.bos_token = None
    try:
        with pytest.raises(ValueError, match="no BOS"):
            mrs_task(gpt2, n=1)
    finally:
        gpt2.bos_token = "<|endoftext|>"


def test_shipped_names_that_do_not_fit_are_left_out_aloud():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kept = NAMES[:10]
    words = dict.fromkeys(
        ["<|endoftext|>", "?", *kept, *["Ġ" + w for w in kept + DESCRIPTIONS + CUES + ["a", "is", "The"]], "."]
    )
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?"))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<|endoftext|>", unk_token="?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mrs_task(fast, n=2, names=kept)
    with warned(f"{len(NAMES) - 10} of the {len(NAMES)} shipped names .* left out"):
        task = mrs_task(fast, n=5)
    assert {n for names in task.names for k, n in names.items() if k[0] == "S"} <= set(kept)
    with pytest.raises(ValueError, match="'Zoe' is not one token"):  # one unknown token is no token of its own
        mrs_task(fast, n=1, names=[*kept, "Zoe"])


# ---- survey


class Oracle:
    "A model that names one of the subjects of its prompt: their first mentions, in order."

    def __init__(self, tokenizer, choose):
        self.tokenizer, self.choose, self.cfg = tokenizer, choose, SimpleNamespace(device="cpu", n_ctx=1024)
        self.names = {i for n in NAMES for i in (ids(tokenizer, " " + n)[0], ids(tokenizer, n)[0])}
        self.spaced = {ids(tokenizer, n)[0]: ids(tokenizer, " " + n)[0] for n in NAMES}

    def __call__(self, tokens):
        logits = torch.zeros(*tokens.shape, len(self.tokenizer))
        for i, row in enumerate(tokens.tolist()):
            for p in range(len(row)):
                seen = list(dict.fromkeys(self.spaced.get(t, t) for t in row[: p + 1] if t in self.names))
                logits[i, p, self.choose(seen) if seen else 0] = 9.0
        return logits


@pytest.mark.parametrize(
    "choose, kind",
    [
        (lambda s: s[-1], "latest"),
        (lambda s: s[0], "earliest"),
        (lambda s: s[len(s) // 2 if len(s) > 2 else -1], "another"),
        (lambda s: 1, "none"),
    ],
)
def test_survey_tells_the_kinds(monkeypatch, choose, kind):
    monkeypatch.setattr("namemovers.prompts.survey.provenance", lambda model, **extra: dict(model="oracle", **extra))
    ds = inspect.unwrap(survey)(Oracle(ANY, choose), n=3)  # the guard refuses what is no model
    assert list(ds.family.values) == list(SURVEY) and list(ds.kind.values) == KINDS
    for family in SURVEY:
        count = int(ds.subjects.sel(family=family))
        expected = kind if kind == "none" or count > 2 or kind in ("latest", "earliest") and count == 2 else "latest"
        assert float(ds.share.sel(family=family, kind=expected)) == 1, family
        assert ds.top.sel(family=family).sum("kind").values.tolist() == [1, 1, 1]
    np.testing.assert_allclose(ds.probability.sum("kind").values, 1, atol=1e-5)
    assert sorted(set(ds.subjects.values.tolist())) == [1, 2, 3, 4, 5, 6]
    # Wilson's interval of 3 of 3: [n / (n + z^2), 1]
    assert float(ds.share_low.sel(family="pilot", kind=kind)) == pytest.approx(3 / (3 + 1.959964**2), abs=1e-6)
    assert float(ds.share_high.sel(family="pilot", kind=kind)) == pytest.approx(1)


def test_survey_families_mean_what_they_say():
    assert survey_template(2, 2) == MRS_TEMPLATES["pilot"]
    assert survey_template(1, 0, cue="absent") == "{S1} is a {D1}. The {cue_word} is"
    assert survey_template(cue="changed").endswith("The {other_cue} is")
    assert "{cue_name}" not in survey_template(cue="absent")
    assert survey_template(descriptions="different").count("{D") == 4
    assert len(set(re.findall(r"\{D\d\}", survey_template(descriptions="different")))) == 4
    assert survey_template(subject="last").startswith("The {D1} is {S1}.")
    assert "{T1}" in survey_template(descriptions="titles")
    for wrong in (dict(cue="no"), dict(descriptions="x"), dict(subject="middle"), dict(source=0)):
        with pytest.raises(ValueError):
            survey_template(**wrong)


def test_survey_on_a_model(tiny, tmp_path):
    from namemovers import results

    ds = survey(
        tiny, n=4, seed=1, families={"pilot": MRS_TEMPLATES["pilot"], "first": (MRS_TEMPLATES["pilot"], "first")}
    )
    again = survey(
        tiny, n=4, seed=1, families={"pilot": MRS_TEMPLATES["pilot"], "first": (MRS_TEMPLATES["pilot"], "first")}
    )
    assert ds.identical(again) and ds.attrs["model"] and len(set(ds.text.values.ravel())) == 8
    text = str(ds.text.sel(family="pilot", prompt=2).item())
    names = re.findall(r"\b(\w+) is a", text)
    with torch.no_grad():
        p = tiny(torch.tensor([[tiny.tokenizer.bos_token_id, *ids(tiny.tokenizer, text)]]))[0, -1].softmax(-1)
    expected = [float(p[ids(tiny.tokenizer, " " + n)[0]]) for n in names]
    got = ds.probability.sel(family="pilot", prompt=2)
    np.testing.assert_allclose(
        got.values, [expected[3], expected[1] + expected[2], expected[0], 1 - sum(expected)], atol=1e-5
    )
    results.save(ds, "survey", folder=tmp_path)
    assert results.load("survey", folder=tmp_path).equals(ds)
    table = survey_table(ds)
    assert list(table.columns) == ["family", "for example", *(f"{k} (%)" for k in KINDS), "p(latest)"]
    assert len(table) == 2
    figure = survey_figure(ds, title="x")
    assert [bar.name for bar in figure.data] == KINDS
    assert np.allclose(sum(np.nan_to_num(bar.x) for bar in figure.data), 1)
    first = predictions(tiny, text, k=2)
    assert first.probability.is_monotonic_decreasing and first.probability[0] == pytest.approx(float(p.max()), abs=1e-5)
    for wrong in (dict(n=0), dict(families={})):
        with pytest.raises(ValueError):
            survey(tiny, **wrong)


def test_many_prompts_say_how_far_they_are(monkeypatch, capsys):
    shown, hidden = [], []

    class Bar(tokens.tqdm):
        def __init__(self, **given):
            hidden.append(given["desc"]) if given["disable"] else shown.append(self)
            super().__init__(**given | dict(delay=0, leave=True))

    monkeypatch.setattr(tokens, "tqdm", Bar)
    monkeypatch.setattr(tokens, "MANY", 40)
    mrs_task(small_tokenizer(), n=60)
    assert {bar.desc for bar in shown} == {"drawing", "tokens"}
    assert all(bar.n == bar.total for bar in shown)
    assert "drawing" in capsys.readouterr().err
    shown.clear()
    mrs_task(small_tokenizer(), n=10)
    assert "drawing" in hidden and "drawing" not in {bar.desc for bar in shown}


def test_prompts_in_parts_are_those_of_one_piece(monkeypatch):
    whole = mrs_task(small_tokenizer(), n=30, templates="all")
    monkeypatch.setattr(tokens, "SOME", 7)
    parts = mrs_task(small_tokenizer(), n=30, templates="all")
    assert whole.clean == parts.clean and torch.equal(whole.clean_tokens, parts.clean_tokens)
    assert whole.positions.keys() == parts.positions.keys()
    assert all(torch.equal(whole.positions[k], parts.positions[k]) for k in whole.positions)
