"""Tasks of one's own: what they hold, that every measurement takes them, what is refused and how it is said; the
whole study of a task."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from conftest import gpt2_tokenizer, small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from namemovers import task_study
from namemovers.activation_patching import HEAD_SITES, STREAM_SITES, Cell, patch
from namemovers.attribution_patching import attribute
from namemovers.copy_scores import task_copy_scores
from namemovers.data import (
    CUES,
    IOI_TEMPLATES,
    NAMES,
    OBJECTS,
    PLACES,
    Task,
    align,
    ioi_task,
    mrs_task,
    stretches,
    token_table,
)
from namemovers.head_attribution import attention, head_attribution, name_ids, name_projection, subject_positions
from namemovers.logit_lens import logit_lens
from namemovers.path_patching import path_patch
from namemovers.results import load
from namemovers.sets import patch_sets
from namemovers.stats import summarise, top_heads
from namemovers.task_study import MEASURES, METHODS, Study, study

CLEAN = ["When Mary and John left, John gave a drink to", "When Anna and Paul left, Paul gave a drink to"]
CORRUPTED = ["When Mary and John left, Mary gave a drink to", "When Anna and Paul left, Anna gave a drink to"]
ANSWERS = [(" Mary", " John"), (" Anna", " Paul")]
WORDS = dict(A=NAMES, B=NAMES, PLACE=PLACES, OBJECT=OBJECTS)
TEMPLATE = "When {A} and {B} went to the {PLACE}, {B} gave a {OBJECT} to"


@pytest.fixture(scope="module", params=["gpt2", "small"])
def tokenizer(request):
    found = gpt2_tokenizer() if request.param == "gpt2" else small_tokenizer()
    if found is None:
        pytest.skip("GPT-2's tokenizer is not beside the repository (../shared/gpt2_tokenizer)")
    return found


@pytest.fixture(scope="module")
def small():
    return small_tokenizer()


def make(tokenizer, **other):
    return Task.from_template(
        **(
            dict(template=TEMPLATE, words=WORDS, answers=("A", "B"), corrupt={"B.2": "A"}, tokenizer=tokenizer, n=8)
            | other
        )
    )


def words_at(task, position, which="clean"):
    tokens = getattr(task, f"{which}_tokens")
    return [task.tokenizer.decode([int(tokens[i, p])]).strip() for i, p in enumerate(task.positions[position])]


# ---- from pairs


def test_pairs(tokenizer):
    task = Task.from_pairs(CLEAN, CORRUPTED, ANSWERS, tokenizer)
    assert list(task.positions) == ["change", "END"]
    assert words_at(task, "change") == ["John", "Paul"]
    assert words_at(task, "change", "corrupted") == ["Mary", "Anna"]
    assert words_at(task, "END") == ["to", "to"] and task.subjects == ("change",) and len(task) == 2
    assert [task.answer(i) for i in range(2)] == [" Mary", " Anna"]
    assert [task.answer(i, wrong=True) for i in range(2)] == [" John", " Paul"]
    for i in range(2):
        assert task.clean_tokens[i].tolist() == [
            tokenizer.bos_token_id,
            *tokenizer.encode(CLEAN[i], add_special_tokens=False),
        ]


def test_pairs_are_the_tasks_they_come_from(tokenizer):
    for theirs in (ioi_task(tokenizer, n=12, seed=4), mrs_task(tokenizer, n=12, seed=4, templates="all")):
        answers = [(theirs.answer(i), theirs.answer(i, wrong=True)) for i in range(12)]
        own = Task.from_pairs(theirs.clean, theirs.corrupted, answers, tokenizer)
        for name in ("clean_tokens", "corrupted_tokens", "lengths", "correct", "wrong"):
            assert torch.equal(getattr(own, name), getattr(theirs, name)), name
        assert torch.equal(own.positions["END"], theirs.positions["END"])


def test_positions_of_pairs(tokenizer):
    task = Task.from_pairs(
        CLEAN,
        CORRUPTED,
        ANSWERS,
        tokenizer,
        positions={"verb": "gave a", "S2": [("John", 2), ("Paul", 2)], "IO": ["Mary", "Anna"], "first": "When"},
    )
    assert list(task.positions) == ["first", "IO", "S2", "verb", "END"]  # in the order of the text
    assert words_at(task, "S2") == ["John", "Paul"]
    assert words_at(task, "IO") == ["Mary", "Anna"]
    assert words_at(task, "verb") == ["a", "a"]
    assert words_at(task, "first") == ["When", "When"]
    assert task.subjects == ("IO", "S2") and task.names == [{"IO": "Mary", "S2": "John"}, {"IO": "Anna", "S2": "Paul"}]
    assert Task.from_pairs(
        CLEAN, CORRUPTED, ANSWERS, tokenizer, positions={"verb": "gave"}, subjects=["verb"]
    ).subjects == ("verb",)


def test_positions_that_are_found(tokenizer):
    two = Task.from_pairs(
        "Mary met John. Then Mary left", "John met Mary. Then Mary left", (" John", " Mary"), tokenizer
    )
    assert list(two.positions) == ["change 1", "change 2", "END"] and words_at(two, "change 1") == ["Mary"]
    mixed = Task.from_pairs(
        ["Mary met John. Then Mary left", "Anna met Paul. Then Anna left"],
        ["John met Mary. Then Mary left", "Anna met Tom. Then Anna left"],
        (" the", " a"),
        tokenizer,
    )
    assert list(mixed.positions) == ["first change", "last change", "END"]
    assert words_at(mixed, "first change") == ["Mary", "Paul"]
    assert words_at(mixed, "last change") == ["John", "Paul"]
    assert mixed.subjects == ()
    run = Task.from_pairs(
        "When Mary and John left, John gave a drink to",
        "When Mary and John left, Mary took a drink to",
        (" Mary", " John"),
        tokenizer,
    )
    assert words_at(run, "change") == ["gave"]  # a stretch of two tokens: its last one


def test_answers_as_ids_and_one_pair_for_all(tokenizer):
    the, a = (tokenizer.encode(w, add_special_tokens=False)[0] for w in (" the", " a"))
    by_id = Task.from_pairs(CLEAN, CORRUPTED, (the, a), tokenizer)
    by_text = Task.from_pairs(CLEAN, CORRUPTED, (" the", " a"), tokenizer)
    assert torch.equal(by_id.correct, by_text.correct)
    assert torch.equal(by_id.wrong, by_text.wrong)
    assert set(by_id.correct.tolist()) == {the}
    assert torch.equal(
        Task.from_pairs(CLEAN, CORRUPTED, ((" Mary", " John"), (" Anna", " Paul")), tokenizer).correct,
        Task.from_pairs(CLEAN, CORRUPTED, ANSWERS, tokenizer).correct,
    )


def test_a_model_is_as_good_as_its_tokenizer(tiny):
    assert torch.equal(
        Task.from_pairs(CLEAN, CORRUPTED, ANSWERS, tiny).clean_tokens,
        Task.from_pairs(CLEAN, CORRUPTED, ANSWERS, tiny.tokenizer).clean_tokens,
    )
    assert align(tiny, CLEAN[0], CORRUPTED[0]).equals(align(tiny.tokenizer, CLEAN[0], CORRUPTED[0]))


def test_prompts_of_unequal_length(tokenizer):
    clean, corrupted = ["Mary met John. She left", CLEAN[0]], ["Paul met John. She left", CORRUPTED[0]]
    task = Task.from_pairs(clean, corrupted, [(" John", " Mary"), (" Mary", " John")], tokenizer)
    assert task.lengths[0] < task.lengths[1] and (task.positions["END"] == task.lengths - 1).all()
    assert (task.clean_tokens[0, task.lengths[0] :] == tokenizer.bos_token_id).all()


# ---- what lines up


def test_align(tokenizer):
    same = align(tokenizer, CLEAN[0], CORRUPTED[0])
    assert (same.changed == "≠").sum() == 1
    assert "" not in set(same.clean)
    assert list(same.columns) == ["clean", "corrupted", "changed"]
    longer = align(tokenizer, "Mary left with John.", "Mary then left with John.")
    assert (longer.clean == "").sum() == 1 and longer.corrupted[(longer.clean == "").idxmax()] == "·then"


token = st.integers(0, 30)


@settings(max_examples=150, deadline=None)
@given(st.lists(token, min_size=1, max_size=14), st.data())
def test_what_is_replaced_in_place_lines_up(ids, data):
    """Any tokens replaced by tokens that are not there: always in place."""
    new = [data.draw(st.integers(100, 130)) if data.draw(st.booleans()) else t for t in ids]
    assert stretches(ids, new) == [((i, i + 1), (i, i + 1)) for i in range(len(ids))]


@settings(max_examples=150, deadline=None)
@given(st.lists(token, min_size=4, max_size=14, unique=True), st.data())
def test_two_names_that_change_places_line_up(ids, data):
    i, j = sorted(data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=2, max_size=2, unique=True)))
    new = list(ids)
    new[i], new[j] = new[j], new[i]
    assert stretches(ids, new) == [((k, k + 1), (k, k + 1)) for k in range(len(ids))]


@settings(max_examples=150, deadline=None)
@given(st.lists(token, min_size=8, max_size=14, unique=True), st.data())
def test_what_is_shifted_does_not(ids, data):
    """A token left out, and another put in three or more tokens later: as many tokens, and nothing between in its
    place."""
    i = data.draw(st.integers(0, len(ids) - 5))
    j = data.draw(st.integers(i + 3, len(ids) - 1))
    new = ids[:i] + ids[i + 1 : j + 1] + [99] + ids[j + 1 :]
    assert len(new) == len(ids) and any(a2 - a1 != b2 - b1 for (a1, a2), (b1, b2) in stretches(ids, new))


def test_it_says_where_they_part(tokenizer):
    a, b = "Mary left with John. She met", "Mary then left with John. She met"
    with pytest.raises(
        ValueError,
        match=(
            r"corrupted: prompt 1 does not line up .* they have \d+ and \d+ tokens, and they part at token 2, where "
            r"the clean one has nothing and the corrupted one \[' then'\]; use words of as many tokens"
        ),
    ):
        Task.from_pairs([CLEAN[0], a], [CORRUPTED[0], b], (" the", " a"), tokenizer)
    with pytest.raises(
        ValueError,
        match=(
            r"tokens each, but in between they are shifted, and they part at token 3, "
            r"where the clean one has \[' late'\]"
        ),
    ):
        Task.from_pairs(
            "It was late when Mary left the store and John met",
            "It was when Mary left the store and late John met",
            (" the", " a"),
            tokenizer,
        )


# ---- from a template


def test_template(tokenizer):
    task = make(tokenizer, n=30)
    assert len(set(task.clean)) == 30
    assert list(task.positions) == ["A", "B.1", "PLACE", "B.2", "OBJECT", "END"]
    assert task.subjects == ("A", "B.1", "B.2")
    assert task.corruption == "B.2 <- A"
    for i, names in enumerate(task.names):
        assert task.clean[i] == "When {A} and {B} went to the {PLACE}, {B} gave a {OBJECT} to".format(**names)
        assert task.corrupted[i] == "When {A} and {B} went to the {PLACE}, {A} gave a {OBJECT} to".format(**names)
        assert len(set(names.values())) == 4  # no word twice
    for position, key in (("A", "A"), ("B.1", "B"), ("PLACE", "PLACE"), ("B.2", "B"), ("OBJECT", "OBJECT")):
        assert words_at(task, position) == [n[key] for n in task.names]
    assert (
        words_at(task, "B.2", "corrupted")
        == [n["A"] for n in task.names]
        == [task.answer(i).strip() for i in range(30)]
    )


def test_a_template_of_ioi_is_ioi(tokenizer):
    """The same words in the same template: the same tokens, answers and places as ioi_task."""
    theirs = ioi_task(
        tokenizer,
        n=1,
        order="ABBA",
        templates="went",
        names={"IO": "Mary", "S": "John"},
        words={"PLACE": "store", "OBJECT": "drink"},
    )
    text = IOI_TEMPLATES["went"].replace("{S}", "{B}").replace("{IO}", "{A}")
    own = make(tokenizer, template=text, words=dict(A=["Mary"], B=["John"], PLACE="store", OBJECT="drink"), n=1)
    assert own.clean == theirs.clean and own.corrupted == theirs.corrupted
    assert torch.equal(own.correct, theirs.correct) and torch.equal(own.wrong, theirs.wrong)
    for mine, their in (("A", "IO"), ("B.1", "S1"), ("B.2", "S2"), ("END", "END")):
        assert torch.equal(own.positions[mine], theirs.positions[their])


def test_corruptions(tokenizer):
    n, template = 12, "{A} met {B}. {A} called {B}. Then {C} saw"
    words, base = dict(A=NAMES, B=NAMES, C=["John", "Paul", "Tom"]), dict(template=template, answers=("A", "B"), n=n)
    tasks = {
        str(c): make(tokenizer, words=words, corrupt=c, **base)
        for c in [
            ("A", "B"),
            {"A": "B"},
            {"A.2": None},
            {"B": ["Susan", "Laura"]},
            {"C": "Mary"},
            {"A.1": "C", "B.2": None},
        ]
    }
    assert len({tuple(t.clean) for t in tasks.values()}) == 1, "the clean prompts do not depend on the corruption"
    fill = lambda i, task, **new: "{A1} met {B1}. {A2} called {B2}. Then {C1} saw".format(
        **{k + j: task.names[i][k] for k in "ABC" for j in "12"} | new
    )
    swap, one, new, listed, literal, two = tasks.values()
    assert swap.corruption == "A <-> B"
    assert new.corruption == "A.2 <- another"
    assert two.corruption == "A.1 <- C, B.2 <- another"
    for i in range(n):
        a, b, c = (swap.names[i][k] for k in "ABC")
        assert swap.corrupted[i] == fill(i, swap, A1=b, A2=b, B1=a, B2=a)
        assert one.corrupted[i] == fill(i, one, A1=b, A2=b)
        assert literal.corrupted[i] == fill(i, literal, C1="Mary") if c != "Mary" else True
        (added,) = words_at(new[i], "A.2", "corrupted")
        assert new.corrupted[i] == fill(i, new, A2=added) and added in NAMES and added not in (a, b, c)
        (drawn,) = words_at(listed[i], "B.1", "corrupted")
        # one word for both places
        assert listed.corrupted[i] == fill(i, listed, B1=drawn, B2=drawn) and drawn in ("Susan", "Laura")
        assert words_at(two[i], "A.1", "corrupted") == [c] and words_at(two[i], "B.2", "corrupted")[0] not in (a, b, c)


def test_several_templates(tokenizer):
    task = make(
        tokenizer,
        template={"short": "{A} met {B}. {B} called", "long": "Then {B} met {A} at the {PLACE}. {B} called"},
        words=dict(A=NAMES, B=NAMES, PLACE=PLACES),
        n=10,
    )
    assert sorted(task.templates) == ["long"] * 5 + ["short"] * 5 and len(set(task.lengths.tolist())) == 2
    assert set(task.positions) == {"A", "B.1", "B.2", "END"}, "PLACE is in one template only"
    for position in task.positions:
        if position != "END":
            assert words_at(task, position) == [n[position[0]] for n in task.names]


def test_words_of_several_tokens_where_nobody_minds(small):
    task = make(small, words=WORDS | {"PLACE": ["store", "ancient castle"]}, n=8)
    assert len(set(task.lengths.tolist())) == 2 and set(task.subjects) == {"A", "B.1", "B.2"}
    assert words_at(task, "B.2") == [n["B"] for n in task.names]


def test_answers_that_are_no_names(tokenizer):
    task = make(tokenizer, answers=(" the", " a"), n=3)
    assert {task.answer(i) for i in range(3)} == {" the"} and task.subjects == ()
    assert make(tokenizer, answers=(" the", " a"), subjects=["A"], n=3).subjects == ("A",)


def test_after(tokenizer):
    task = make(tokenizer, after=["B.1", "A"], n=5)
    assert torch.equal(task.positions["B.1+1"], task.positions["B.1"] + 1)
    assert torch.equal(task.positions["A+1"], task.positions["A"] + 1)
    assert task.subjects == ("A", "B.1", "B.2")
    with pytest.raises(ValueError, match="after: there is no place 'B'"):
        make(tokenizer, after=["B"])


def test_templates_repeat_themselves(small):
    one, again, other = make(small, seed=7), make(small, seed=7), make(small, seed=8)
    assert one.clean == again.clean and one.corrupted == again.corrupted and one.clean != other.clean


def test_subset_and_table(small):
    task = make(small)
    assert task[2:4].subjects == task.subjects and len(task[2:4]) == 2 and task[3].clean == [task.clean[3]]
    assert list(token_table(task, 1).query("changed == '≠'").named) == ["B.2"]


# ---- what is refused

BAD_PAIRS = {
    "no prompts": (dict(clean=[], corrupted=[], answers=[]), "clean: no prompts given"),
    "blank": (dict(clean=["Mary left", " "]), "clean: prompt 1 is ' '; give a text"),
    "no text": (dict(clean=[3, "a"]), "clean: prompt 0 is 3"),
    "ends in a space": (
        dict(clean=["When Mary and John left, John gave a drink to ", CLEAN[1]]),
        "clean: prompt 0, .* ends in a space; end it with a word",
    ),
    "fewer corrupted": (dict(corrupted=CORRUPTED[:1]), "corrupted: 1 prompts for 2 clean ones"),
    "fewer answers": (dict(answers=ANSWERS[:1]), "answers: 1 for 2 prompts"),
    "twice": (dict(clean=[CLEAN[0]] * 2, corrupted=CORRUPTED), "clean: prompts 0 and 1 are the same"),
    "nothing changes": (dict(corrupted=[CORRUPTED[0], CLEAN[1]]), "corrupted: prompt 1 is the same as the clean one"),
    "no pair": (dict(answers=[" Mary", " Anna"]), r"answers: prompt 0 has ' Mary'; give a \(right, wrong\) pair"),
    "three answers": (dict(answers=[(" Mary", " John", " Paul"), ANSWERS[1]]), "answers: prompt 0 has .* pair"),
    "equal answers": (
        dict(answers=[ANSWERS[0], (" Paul", " Paul")]),
        "answers: right and wrong answer of prompt 1 are the same",
    ),
    "no space": (
        dict(answers=[("Mary", " John"), ANSWERS[1]]),
        "answers: 'Mary' .prompt 0. would go on with the word 'to' without a space; write ' Mary'",
    ),
    "several tokens": (
        dict(answers=[(" Bartholomew", " John"), ANSWERS[1]]),
        r"answers: ' Bartholomew' .prompt 0. is not one token but \d: \['.*; choose an answer of one token",
    ),
    "empty answer": (dict(answers=[("", " John"), ANSWERS[1]]), "answers: prompt 0 has the answer ''"),
    "no such id": (
        dict(answers=[(10**6, 1), ANSWERS[1]]),
        "answers: prompt 0 has the token id 1000000, but ids go from 0 to",
    ),
    "true is no id": (dict(answers=[(True, 1), ANSWERS[1]]), "answers: prompt 0 has the answer True"),
    "END": (dict(positions={"END": "to"}), "positions: 'END' is there by itself"),
    "not in the prompt": (dict(positions={"x": "Archibald"}), "positions\\['x'\\]: 'Archibald' is not in prompt 0"),
    "there twice": (
        dict(positions={"x": ["John", "Paul"]}),
        r"positions\['x'\]: 'John' is 2 times in prompt 0, .*; say which one, from \('John', 1\) to \('John', 2\)",
    ),
    "no third": (
        dict(positions={"x": [("John", 3), ("Paul", 1)]}),
        "positions\\['x'\\]: prompt 0 has 'John' 2 times, so there is no occurrence 3",
    ),
    "within a token": (
        dict(positions={"x": "Whe"}),
        "positions\\['x'\\]: 'Whe' ends within a token of prompt 0 .'When'.",
    ),
    "too few pieces": (dict(positions={"x": ["Mary"]}), "positions\\['x'\\]: 1 pieces for 2 prompts"),
    "no piece": (dict(positions={"x": 4.5}), "positions\\['x'\\]: 4.5 is no piece"),
    "no such token": (dict(positions={"x": 400}), "positions\\['x'\\]: prompt 0 has the tokens 0 .* and no 400"),
    "unknown subject": (dict(subjects=["Z"]), "subjects: there is no position 'Z'"),
    "no tokenizer": (dict(tokenizer=3), "tokenizer: 3 is no tokenizer; give a Hugging Face tokenizer"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_pairs_that_are_refused(tokenizer, case):
    other, message = BAD_PAIRS[case]
    with pytest.raises(ValueError, match=message) as e:
        Task.from_pairs(**(dict(clean=CLEAN, corrupted=CORRUPTED, answers=ANSWERS, tokenizer=tokenizer) | other))
    assert "\n" not in str(e.value)


BAD_TEMPLATES = {
    "several tokens": (
        dict(words=WORDS | {"A": ["Mary", "Bartholomew", "Archibald"]}),
        (
            r"words\['A'\]: 2 of 3 are not one token after a space \('Bartholomew' is \d: "
            r"\['.*'Archibald' is \d.*leave them out"
        ),
    ),
    "one of the shipped": (
        dict(words={k: v for k, v in WORDS.items() if k != "B"}),
        r"words: none for the placeholder \{B\}; give some",
    ),
    "unknown words": (dict(words=WORDS | {"Z": ["x"]}), r"words: the template has no placeholder \{Z\}"),
    "no words": (dict(words=WORDS | {"A": []}), r"words\['A'\]: expected words"),
    "too many": (
        dict(words=dict(A=["Mary"], B=["John"], PLACE=["store"], OBJECT=["drink"]), n=2),
        "n: 2 prompts were asked for but only 1",
    ),
    "too few words": (
        dict(words=dict(A=["Mary"], B=["Mary"], PLACE=["store"], OBJECT=["drink"]), n=1),
        "n: 1 prompts were asked for but only 0",
    ),
    "one answer": (dict(answers="A"), "answers: 'A' is no pair"),
    "unknown answer": (
        dict(answers=("Z", "B")),
        "answers: 'Z' is neither a placeholder .A, B, PLACE, OBJECT. nor a text with its leading space, such as ' Z'",
    ),
    "equal answers": (dict(answers=("A", "A")), "answers: right and wrong answer of prompt 0 are the same"),
    "no corruption": (dict(corrupt={}), "corrupt: {} says no corruption"),
    "a word for corruption": (dict(corrupt="swap"), "corrupt: 'swap' says no corruption"),
    "unknown place": (dict(corrupt={"B.3": "A"}), "corrupt: there is no placeholder or place 'B.3'; there are"),
    "swap of places": (dict(corrupt=("B.1", "A")), r"corrupt: \('B.1', 'A'\) must be two placeholders"),
    "nothing changes": (dict(corrupt={"A": "A"}), "corrupted: prompt 0 is the same as the clean one"),
    "longer": (
        dict(corrupt={"B.2": "Bartholomew"}),
        r"corrupted: prompt 0 does not line up .* the clean one has \[' \w+'\] and the corrupted one \[",
    ),
    "no placeholder": (dict(template="Mary left", words={}), "template: 'Mary left' has no placeholder"),
    "empty placeholder": (dict(template="{} left"), "empty placeholder"),
    "a place as placeholder": (dict(template="{A.1} left {B}"), r"template: \{A.1\} cannot name a position"),
    "END as placeholder": (dict(template="{END} left {B}"), r"template: \{END\} cannot name a position"),
    "n": (dict(n=0), "n: 0 is no such number"),
    "seed": (dict(seed=-1), "seed: -1"),
    "subjects": (dict(subjects=["Z"]), r"subjects: the template has no placeholder \{Z\}"),
    "no space before a word": (
        dict(template="({A} met {B}). {B} called", words=dict(A=CUES[:3], B=CUES[3:9])),
        r"words\['A'\]: '\w+' is not one token where .* puts it; put a space before the placeholder",
    ),
}


@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_templates_that_are_refused(small, case):
    other, message = BAD_TEMPLATES[case]
    with pytest.raises(ValueError, match=message) as e:
        make(small, **other)
    assert "\n" not in str(e.value)


def test_an_answer_is_a_token_after_its_prompt():
    """GPT-2 has the token '50' and the token ' 17', but writes ' 1800' in one: then '00' never comes."""
    gpt2 = gpt2_tokenizer()
    if gpt2 is None:
        pytest.skip("GPT-2's tokenizer is not beside the repository (../shared/gpt2_tokenizer)")
    assert len(gpt2.encode(" 1800", add_special_tokens=False)) == 1
    text = "The war lasted from the year {} to the year 18"
    with pytest.raises(
        ValueError, match=r"answers: '00' is one token, but not after prompt 0: .* ends in the tokens \['.*', ' 1800'\]"
    ):
        Task.from_pairs(text.format(1842), text.format(1801), ("00", "42"), gpt2)


# ---- every measurement takes it


def test_every_measurement(tiny):
    task = make(
        tiny,
        template=["{A} met {B}. {B} called", "Then {B} met {A} at the {PLACE}. {B} called"],
        words=dict(A=NAMES, B=NAMES, PLACE=PLACES),
        n=5,
    )
    assert len(set(task.lengths.tolist())) == 2
    for site in STREAM_SITES:
        assert list(patch(tiny, task, site, "named_position").position.values) == list(task.positions)
    for site in HEAD_SITES:
        exact, estimated = patch(tiny, task, site, "head"), attribute(tiny, task, site, "head")
        assert exact.effect.sizes == estimated.effect.sizes and np.isfinite(exact.logit_diff).all()
        slow = patch(tiny, task, site, "head", engine="hooks")
        np.testing.assert_allclose(exact.logit_diff, slow.logit_diff, atol=1e-4)
    lens, direct, looks = logit_lens(tiny, task), head_attribution(tiny, task), attention(tiny, task)
    np.testing.assert_allclose(lens.clean, direct.logit_diff, atol=1e-4)
    assert list(looks.position.values) == list(task.positions)
    paths = path_patch(tiny, task)
    assert paths.effect.sizes == {"layer": 3, "head": 4, "prompt": 5}
    whole = patch_sets(tiny, task, {"all": [("resid_pre", Cell(0))], "none": []})
    moved = whole.logit_diff.sel(set="all") - whole.logit_diff.sel(set="none")
    np.testing.assert_allclose(moved, lens.clean - lens.corrupted, atol=1e-4)
    copies, projection = task_copy_scores(tiny, task), name_projection(tiny, task, n_resamples=20)
    assert (
        list(copies["name"].values) == list(projection["name"].values) == ["A", "B.1", "B.2"] == subject_positions(task)
    )
    assert name_ids(tiny.tokenizer, task)[:, 0].tolist() == task.correct.tolist()
    assert name_ids(tiny.tokenizer, task)[:, 2].tolist() == task.wrong.tolist()


def test_a_task_without_names_says_so(tiny):
    task = Task.from_pairs(CLEAN, CORRUPTED, (" the", " a"), tiny)
    for measure in (task_copy_scores, name_projection):
        with pytest.raises(
            ValueError,
            match=r"task 'own' has no position that holds a name.*\['change', 'END'\]: name some with subjects=",
        ):
            measure(tiny, task)
    assert patch(tiny, task, "z").effect.notnull().all() and head_attribution(tiny, task).attribution.notnull().all()


def test_ioi_and_mrs_name_their_subjects_as_before(small):
    assert subject_positions(ioi_task(small, n=2)) == ["IO", "S1", "S2"]
    assert subject_positions(mrs_task(small, n=2)) == ["S1", "S2", "S3", "S4"]


# ---- the whole study


def test_study_is_the_measurements(tiny):
    task = make(tiny)
    found = study(task, tiny, progress=False)
    assert set(found) == set(MEASURES) and isinstance(found, dict) and not found.left_out
    xr.testing.assert_equal(found["patch_z_head"].effect, patch(tiny, task, "z", "head").effect)
    xr.testing.assert_equal(found["path_patch_logits"].effect, path_patch(tiny, task).effect)
    xr.testing.assert_equal(found["head_attribution"].attribution, head_attribution(tiny, task).attribution)
    for name, ds in found.items():
        assert ds.attrs["task"] == "own" and ds.attrs["weights_hash"] and ds.sizes["prompt"] == 8, name


def test_summary_says_what_the_results_say(tiny):
    found = study(make(tiny), tiny, progress=False)
    for sign in (1, -1):
        table = found.summary(k=3, sign=sign)
        for method, (name, values) in METHODS.items():
            if sign < 0 and name == "copy_scores":
                assert method not in table
                continue
            s = summarise(values(found[name]))
            pd.testing.assert_frame_equal(found.heads(method)["mean"].to_dataframe(), s["mean"].to_dataframe())
            best = top_heads(s["mean"].where(sign * s["mean"] > 0), 3, sign)
            for cell, (l, h) in zip(table[method], best):
                one = s.sel(layer=l, head=h)
                value = f"{float(one['mean']):.2f}".replace("-", "−").replace("−0.00", "0.00")
                assert cell.startswith(f"L{l}H{h} {value}") and cell.endswith("*") == bool(one.significant)
                assert "[" in cell
    for wrong, kw in (("sign", dict(sign=0)), ("k", dict(k=0))):
        with pytest.raises(ValueError, match=wrong):
            found.summary(**kw)
    with pytest.raises(ValueError, match="method: 'x' was not measured"):
        found.heads("x")
    figures = found.figures()
    assert set(figures) == set(found) and all(len(f.data) for f in figures.values())
    assert all(
        word in found.read()
        for word in ("Mean logit difference", "Heads whose output restores", "Heads that write for the answer")
    )


def test_where_a_head_looks(tiny):
    found = study(make(tiny), tiny, progress=False)
    looks = found["attention"].attention.copy()
    looks[:] = 0.0
    looks.loc[dict(layer=0, head=1, position="B.2")] = 0.7
    looks.loc[dict(layer=0, head=1, position="END")] = 0.9  # END never counts
    looks.loc[dict(layer=1, head=2, position="A")] = 0.06
    staged = Study(found | {"attention": found["attention"].assign(attention=looks)})
    assert staged.looks(0, 1).startswith("B.2 0.70") and staged.looks(1, 2).startswith("elsewhere 0.94")


@pytest.fixture
def counted(monkeypatch):
    """The measurements that were run, by name."""
    ran = []
    for name, measure in list(MEASURES.items()):
        monkeypatch.setitem(MEASURES, name, lambda *a, name=name, measure=measure: (ran.append(name), measure(*a))[1])
    return ran


def test_study_resumes(tiny, tmp_path, counted):
    def again(task, **kw):
        counted.clear()
        found = study(task, tiny, folder=tmp_path, progress=False, **kw)
        return found, set(counted)

    task, everything = make(tiny, name="mine"), set(MEASURES)
    first, ran = again(task)
    folder = tmp_path / "tiny" / "mine"
    assert ran == everything and {p.stem for p in folder.glob("*.nc")} == everything
    second, ran = again(task)
    assert ran == set() and all(second[k].equals(first[k]) for k in first)
    xr.testing.assert_equal(load("patch_z_head", folder).effect, first["patch_z_head"].effect)
    (folder / "patch_z_head.nc").unlink()
    (folder / "attention.nc").write_bytes(b"half a file")
    assert again(task)[1] == {"patch_z_head", "attention"}
    assert again(make(tiny, name="mine", seed=1))[1] == everything, "other prompts under the same name"
    assert again(make(tiny, name="other", seed=1))[1] == everything, "another name, another folder"
    assert again(make(tiny, name="mine", seed=1))[1] == set()
    renamed = make(tiny, name="mine", seed=1, after=["A"])
    assert again(renamed)[1] == everything, "another position"
    study(renamed, tiny, progress=False)
    assert len(list(tmp_path.rglob("*.nc"))) == 2 * len(everything), "without a folder nothing is written"


def test_study_goes_on_after_an_interruption(tiny, tmp_path, counted, monkeypatch):
    def stop(model, task):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setitem(MEASURES, "head_attribution", stop)
        with pytest.raises(KeyboardInterrupt):
            study(make(tiny), tiny, folder=tmp_path, progress=False)
    done = list(counted)
    assert done and {p.stem for p in tmp_path.rglob("*.nc")} == set(done)
    counted.clear()
    assert set(study(make(tiny), tiny, folder=tmp_path, progress=False)) == set(MEASURES)
    assert set(counted) == set(MEASURES) - set(done)


def test_what_cannot_be_measured_is_left_out(tiny, monkeypatch):
    monkeypatch.setattr(task_study, "why_not", lambda model, length: "it has wheels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that patching falls back on hooks
        found = study(Task.from_pairs(CLEAN, CORRUPTED, (" the", " a"), tiny), tiny, progress=False)
    assert found.left_out["path_patch_logits"] == "it has wheels"
    assert "no position that holds a name" in found.left_out["copy_scores"]
    assert set(found) == set(MEASURES) - {"path_patch_logits", "copy_scores"} and set(found.figures()) == set(found)
    assert not {"path to the logits (effect)", "names copied (share)"} & set(found.summary())
    assert "it has wheels" in found.read()


def test_one_prompt_and_a_corruption_that_does_nothing(tiny):
    """No interval, no test; and an effect that is not defined. Neither may break the table, the figures or the
    sentences."""
    one = study(make(tiny, n=1), tiny, progress=False)
    assert "*" not in "".join(one.summary().astype(str).values.ravel())
    assert len(one.figures()) == len(one)
    assert "no head of 12 can be called significant" in one.read()
    task = make(tiny, n=3)
    same = study(task.__class__(**{**task.__dict__, "corrupted_tokens": task.clean_tokens}), tiny, progress=False)
    assert same["patch_z_head"].effect.isnull().all()
    assert (same.summary()["patching (effect)"] == "").all()
    assert len(same.figures()) == len(same)
    assert same.read()


def test_shipped_tasks_too(tiny):
    for task in (ioi_task(tiny.tokenizer, n=3), mrs_task(tiny.tokenizer, n=3)):
        found = study(task, tiny, progress=False)
        assert set(found) == set(MEASURES) and repr(found).startswith(f"Study({task.name} on tiny, n=3")


def test_progress_is_shown(tiny, capsys):
    study(make(tiny, n=2), tiny, progress=False)
    assert capsys.readouterr().err == ""
    study(make(tiny, n=2, name="shown"), tiny)
    assert "shown" in capsys.readouterr().err


def test_mini_finds_its_name_movers_in_a_task_it_was_not_made_for(mini):
    """mini's name movers are L2H0 and L2H2, by its card; they answer who was left out of three."""
    task = Task.from_template(
        [
            "{A}, {B} and {C} went to the {PLACE}. {B} and {C} gave a {OBJECT} to",
            "{B}, {C} and {A} went to the {PLACE}. {B} and {C} gave a {OBJECT} to",
        ],
        dict(A=NAMES, B=NAMES, C=NAMES, PLACE=PLACES, OBJECT=OBJECTS),
        ("A", "B"),
        {"B.2": "A"},
        mini,
        n=24,
        name="left_out",
    )
    found = study(task, mini, progress=False)
    assert float((found["logit_lens"].clean > 0).mean()) >= 0.9 and float(found["logit_lens"].corrupted.mean()) < 0
    for method in ("attribution (logits)", "path to the logits (effect)"):
        assert set(top_heads(found.heads(method), 2)) == {(2, 0), (2, 2)}
    assert all(found.looks(2, h).startswith("A ") for h in (0, 2))
    effect = found["patch_resid_pre_named_position"].effect
    np.testing.assert_allclose(effect.sel(layer=0, position="B.2").mean(), 1, atol=1e-4)  # the one token that differs
    np.testing.assert_allclose(effect.sel(position=["A", "B.1", "C.1"]), 0, atol=1e-4)
