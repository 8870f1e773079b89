"""What the pages say of their results: what is found, what is not, and what cannot be said."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from namemovers import reading
from namemovers.stats import prompts_needed, summarise

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
