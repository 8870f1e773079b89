"""What the pages say of their results: what is found, what is not, and what cannot be said."""

import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from namemovers import reading
from namemovers.head_roles import effect_in_words, roles_in_words
from namemovers.stats import NOT_MEASURED, heads_in_words, normalise, prompts_needed, summarise, untested

HEADS = {"layer": [0, 1], "head": [0, 1]}


def values(means, n=30, scatter=0.01):
    """[layer, head, prompt] with these means; NaN stays NaN."""
    noise = np.random.default_rng(0).standard_normal((2, 2, n)) * scatter
    dims = ("layer", "head", "prompt")
    return xr.DataArray(np.array(means)[..., None] + noise, dims=dims, coords=HEADS)


MEANS = [[0.0, 0.4], [0.8, -0.3]]
FOUND = summarise(values(MEANS))
FEW = summarise(values(MEANS, n=5))
NOTHING = summarise(values(np.full((2, 2), np.nan)))
ONE = xr.Dataset({"effect": values(MEANS, n=1), "attribution": values(MEANS, n=1)})


@pytest.mark.parametrize("heads, n", [(16, 10), (144, 13)])
def test_how_many_prompts_a_study_needs(heads, n):
    assert prompts_needed(heads) == n
    assert "untested" in reading.enough_prompts(n - 1, heads) and f"at least {n} prompts" in reading.enough_prompts(
        4, heads
    )
    assert "untested" not in reading.enough_prompts(n, heads)


SAYS = {
    "heads": (reading.say_heads, "These push against it, so that restoring them makes things worse: L1H1"),
    "attribution": (lambda s: reading.say_attribution(s, ONE), "Over 30 prompts 3 of 4 heads differ from 0"),
    "patching": (reading.say_patching, "3 of 4 heads differ from 0"),
    "signs": (lambda s: reading.say_signs(s, "m"), "m has 2 significant heads for the answer and 1 against it, of 4"),
    "direct": (lambda s: reading.say_direct(s, ONE), "L1H0, L0H1 are called name movers from here on"),
    "detours": (lambda s: reading.say_detours(s, s * 0.1), "Off it by more than half of their effect are L1H0"),
    "movers": (lambda s: reading.say_name_movers(HIGH, HIGH, s, "MRS"), "writing for the answer: **L0H1, L1H0**"),
}
CLAIMS = (
    r"differ from 0 after|\d of \d heads|[Nn]o head|None is|significant heads|name movers from|by both tests|Off it"
)
HIGH = xr.Dataset({"mean": xr.DataArray(np.ones((2, 2)), dims=("layer", "head"), coords=HEADS)})
HIGH = HIGH.assign(low=HIGH["mean"], high=HIGH["mean"])


@pytest.mark.parametrize("name", SAYS)
def test_what_is_found_is_said(name):
    say, said = SAYS[name]
    assert said in say(FOUND) and "untested" not in say(FOUND)


@pytest.mark.parametrize("name", SAYS)
@pytest.mark.parametrize("summary, why", [(FEW, "untested"), (NOTHING, "not measured")], ids=["few", "nothing"])
def test_what_cannot_be_said_is_not(name, summary, why):
    say, _ = SAYS[name]
    text = say(summary)
    assert why in text
    text = text.replace(reading.untold(summary), "")  # the reason itself
    assert pd.Series([text]).str.contains(CLAIMS).tolist() == [False], text


def test_nobody_is_followed_who_is_not_there():
    assert reading.followed_heads(FOUND) == [(1, 0), (0, 1)]
    assert reading.followed_heads(FEW) == [(1, 0)] and reading.followed_heads(NOTHING) == [(1, 1)]


def test_agreement_of_two_methods():
    table = pd.DataFrame({"head": ["L1H0", "L0H1"], "verdict": ["both", "patching only"]})
    text = reading.say_agreement(values(MEANS), values(MEANS), table)
    assert "Marked by both with one sign: L1H0." in text and "Attribution alone would miss L0H1" in text
    few = reading.say_agreement(values(MEANS, n=5), values(MEANS, n=5), table.iloc[:0])
    assert "untested" in few and "cannot say whether both plots are needed" in few and "Neither" not in few


def test_one_scale_for_several_figures():
    assert reading.scale(FOUND, NOTHING) == pytest.approx(0.8, abs=0.01) and reading.scale(NOTHING) == 1


def test_no_value_in_any_prompt_is_no_number_of_prompts():
    """Effects that are NaN, as `normalise` gives them: their number of prompts is not 0."""
    moved = values(np.zeros((2, 2)))
    with pytest.warns(UserWarning, match="No effect"):
        effect = normalise(moved, np.tile([1.0, -1.0], 15))
    nothing = summarise(effect)
    assert untested(nothing) == NOT_MEASURED and "0 prompts" not in heads_in_words(nothing)
    other = summarise(values(np.full((2, 2), np.nan)))
    assert untested(other).startswith("not measured") and "differ" not in untested(other)
    both = xr.concat([FOUND, other], dim="task", combine_attrs="override")  # a part of what is judged
    assert untested(both.isel(task=1)).startswith("not measured") and untested(both.isel(task=0)) is None


def test_roles_where_the_runs_do_not_differ_are_not_measured():
    none = xr.full_like(FOUND["mean"], "none", dtype=object)
    unknown = xr.Dataset({"role": none, "matters": xr.zeros_like(FOUND["mean"], dtype=bool)})
    unknown.attrs = {"untested": NOT_MEASURED, "task": "mrs"}
    text = roles_in_words(unknown)
    assert "What the heads do in the task is not measured" in text and "none: 4 heads" not in text
    assert effect_in_words(unknown, 0, 0) == "not measured"
    unknown.attrs["untested"] = "untested: with 4 prompts no head of 4 can be called significant"
    assert effect_in_words(unknown, 0, 0) == "untested" and "is untested: with 4 prompts" in roles_in_words(unknown)


def test_the_first_of_a_sign_are_of_that_sign():
    """In a model of four heads the three highest are not all for the answer."""
    assert reading.first_of_sign(FOUND, 2) == [(1, 0), (0, 1)]
    assert reading.first_of_sign(summarise(values([[0.5, 0.4], [0.8, -0.3]])), 3, sign=-1) == [(1, 1)]
    one = xr.Dataset({"attribution": values([[0.5, 0.4], [0.8, -0.3]], n=1)})
    assert re.search(r"most against it L1H1 −0\.\d+ \(logits\)", reading.say_one_attribution(one))


@pytest.mark.parametrize("ablation, reason", [("mean", reading.NO_WAY), ("resample", NOT_MEASURED)])
def test_edges_that_cannot_be_measured_are_a_sentence(monkeypatch, ablation, reason):
    unknown = xr.Dataset({"effect": (("edge", "prompt"), np.full((2, 3), np.nan))})
    monkeypatch.setattr("namemovers.reading.circuits.attribute_edges", lambda *_, **__: unknown)
    effects, why = reading.edge_effects(None, None, ablation=ablation)
    assert effects is None and why == reason
    said = reading.say_edges(reading.Edges(why=why, why_patched=why))
    assert "No circuit of edges is searched" in said and why in said
    assert why in reading.edges_figure(reading.Edges(why=why), "").data
    assert reading.scores_of_edges(None, None, None) == ({}, reading.NO_WAY)  # by mean ablation


@pytest.mark.parametrize("said", ["model: layer 0 is in training mode", "memory_budget=1 is too small"])
def test_what_is_refused_is_no_sentence_of_the_page(monkeypatch, said):
    def refuse(*_, **__):
        raise ValueError(said)

    monkeypatch.setattr("namemovers.reading.circuits.attribute_edges", refuse)
    with pytest.raises(ValueError, match=said):
        reading.edge_effects(None, None)


def test_a_circuit_without_edges_is_saved_with_the_reason(monkeypatch):
    saved = {}
    monkeypatch.setattr("namemovers.results.save", lambda ds, name: saved.update({name: ds}))
    by_node = xr.Dataset({"size": ("share", [1])}, attrs=dict(total=4, ablation="mean", rounding="nearest"))
    nothing = reading.Edges(why=reading.NO_WAY, why_patched=NOT_MEASURED)
    circuit = reading.save_circuits("mrs", None, xr.Dataset(), by_node, nothing)
    assert reading.edges_of(circuit) is None and saved["mrs_circuit"].attrs["no_edges"] == reading.NO_WAY
    assert saved["mrs_circuit_curves"].level.values.tolist() == ["node"]
    there = xr.Dataset({"edge_member": ("edge", [True, False])}, coords={"edge": ["a", "b"]})
    assert reading.edges_of(there) == {"a"}
