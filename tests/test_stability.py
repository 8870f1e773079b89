"""Agreement of rankings: by hand, by chance, against another way to count, and on the shipped model."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats as sp

from namemovers.activation_patching import patch
from namemovers.data import mrs_task
from namemovers.literature import published_grid
from namemovers.stability import agreement, chance, enough, spread, stability, top_sizes


def grid(values):
    return xr.DataArray(
        np.asarray(values, float),
        dims=("layer", "head"),
        coords=dict(layer=range(len(values)), head=range(len(values[0]))),
    )


def prompts(strength, scatter=1.0, n=200, seed=0):
    """Values of heads with the given true means [layer, head], over n prompts."""
    strength = np.asarray(strength, float)
    x = strength[..., None] + scatter * np.random.default_rng(seed).normal(size=(*strength.shape, n))
    return xr.DataArray(
        x,
        dims=("layer", "head", "prompt"),
        coords=dict(layer=range(x.shape[0]), head=range(x.shape[1]), prompt=range(n)),
        attrs={"model": "made up"},
    )


def slow_rbo(first, second, p):
    """Webber et al. 2010, equation 32, for two lists of the same members."""
    total = sum(len(set(first[:d]) & set(second[:d])) / d * p**d for d in range(1, len(first) + 1))
    return p ** len(first) + (1 - p) / p * total


def test_agreement_is_what_its_definitions_say():
    rng = np.random.default_rng(0)
    for sign in (0, 1, -1):
        a, b = grid(rng.normal(size=(4, 12))), grid(rng.normal(size=(4, 12)))
        got = agreement(a, b, k=(3, 10), p=0.8, sign=sign)
        order = lambda g: list(np.argsort(-(abs(g) if sign == 0 else sign * g).values.ravel()))
        first, second = order(a), order(b)
        assert got.rbo.item() == pytest.approx(slow_rbo(first, second, 0.8))
        assert got.overlap.values.tolist() == pytest.approx(
            [len(set(first[:k]) & set(second[:k])) / k for k in (3, 10)]
        )
        assert got.rho.item() == pytest.approx(
            sp.spearmanr(*((abs(g) if sign == 0 else g).values.ravel() for g in (a, b))).statistic
        )


def test_the_same_and_the_reverse():
    a = grid(np.arange(40.0).reshape(4, 10) + 1)
    same = agreement(a, 2 * a)
    assert np.allclose(same.overlap, 1) and same.rbo.item() == pytest.approx(1) and same.rho.item() == pytest.approx(1)
    reverse = agreement(a, 41 - a)
    assert np.allclose(reverse.overlap, 0) and reverse.rho.item() == pytest.approx(-1) and reverse.rbo < same.chance_rbo
    assert agreement(a, -a).rbo.item() == pytest.approx(1) and agreement(a, -a, sign=1).rho.item() == pytest.approx(-1)


def test_chance_is_what_random_rankings_give():
    rng = np.random.default_rng(0)
    expected = chance(24, k=(2, 6), p=0.7)
    got = [agreement(grid(rng.normal(size=(4, 6))), grid(rng.normal(size=(4, 6))), k=(2, 6), p=0.7) for _ in range(400)]
    assert np.allclose(np.mean([g.overlap.values for g in got], 0), expected.overlap, atol=0.03)
    assert np.mean([g.rbo.item() for g in got]) == pytest.approx(expected.rbo.item(), abs=0.02)


def test_ties_and_empty_heads():
    a, b = grid([[3, 0, 0], [0, 2, np.nan]]), grid([[2, 0, 0], [0, 3, 1]])
    got = agreement(a, b, k=(2,))
    assert got.attrs["heads"] == 5 and got.overlap.item() == 1
    assert got.rho.item() == pytest.approx(sp.spearmanr([3, 0, 0, 0, 2], [2, 0, 0, 0, 3]).statistic)


def test_top_sizes_keep_away_from_chance():
    assert top_sizes(144) == (5, 10) and top_sizes(16) == (2, 4)
    for heads in (2, 3, 6, 12, 16, 48, 144, 1000):
        short, long = top_sizes(heads)
        assert 1 <= short <= long <= heads and (long / heads <= 0.25 or heads < 8)


def test_more_prompts_agree_more_and_a_clear_ranking_at_once():
    strength = np.linspace(0, 2, 40).reshape(4, 10)
    s = stability(prompts(strength, scatter=0.8), sizes=(1, 5, 20, 50), draws=200)
    for v in (s.overlap.sel(k=10), s.rbo, s.rho):
        mean = v.mean("draw").values
        assert (np.diff(mean) > 0).all(), mean
    assert s.overlap.sel(k=10, size=1).mean() < 0.65 < 0.8 < s.overlap.sel(k=10, size=50).mean()
    sure = stability(prompts(strength * 1e4), sizes=(1, 50), draws=20)
    assert np.allclose(sure.rbo, 1) and enough(sure.rbo) == 1 == enough(sure.overlap.sel(k=5))


def test_heads_that_do_nothing_agree_as_chance_does():
    """So that agreement that is there by construction would show: prompts that two studies share, or two halves of a
    pool."""
    nothing = prompts(np.zeros((4, 10)), n=800)
    for against in ("same", 40):
        s = stability(nothing, sizes=(1, 10, 40), against=against)
        assert np.allclose(s.overlap.mean("draw"), s.chance_overlap, atol=0.03), against
        assert np.allclose(s.rbo.mean("draw"), s.chance_rbo, atol=0.03) and abs(s.rho.mean("draw")).max() < 0.06
        assert enough(s.rbo) is None
    shared = stability(nothing, sizes=(1, 400, 800), against="all", draws=50)
    assert np.allclose(shared.rbo.sel(size=800), 1) and shared.rbo.sel(size=1).mean() < 0.5


def test_a_study_of_two_draws_shares_no_prompt():
    """With two prompts that disagree, another study of one prompt is always the other one; with `all`, never."""
    x = grid([[0.0, 0.0], [0.0, 0.0]]).expand_dims(prompt=range(2), axis=-1).copy()
    x.values[0, 0] = [10, 1]
    x.values[1, 1] = [1, 10.5]
    x.values[0, 1] = [0.5, 0.5]
    s = stability(x, sizes=(1,), k=(1,), draws=50)
    assert float(s.overlap.max()) == 0
    assert 0 < float(stability(x, sizes=(1,), k=(1,), against="all", draws=50).overlap.mean()) < 1


def test_seed_attrs_and_spread():
    v = prompts(np.linspace(0, 1, 16).reshape(4, 4), n=60)
    a, b, c = (stability(v, sizes=(2, 10), draws=40, seed=s) for s in (3, 3, 4))
    xr.testing.assert_identical(a, b)
    assert not a.rbo.equals(c.rbo)
    assert a.attrs["drawing_seed"] == 3
    assert a.attrs["model"] == "made up"
    assert a.attrs["prompts"] == 60
    assert a.attrs["against"] == "same"
    s = spread(a.rbo)
    assert (s.low <= s["mean"]).all()
    assert (s["mean"] <= s.high).all()
    assert (s.n == 40).all()
    assert s["mean"].dims == ("size",)
    assert s.low.values[0] == pytest.approx(np.quantile(a.rbo.values[0], 0.025))


def test_enough_asks_for_the_last_crossing():
    v = xr.DataArray([[0.5], [0.95], [0.8], [0.9], [1.0]], dims=("size", "draw"), coords={"size": [1, 2, 5, 10, 20]})
    assert enough(v) == 10 and enough(v, 0.99) == 20 and enough(v, 0.5) == 1
    assert enough(v.isel(size=[0, 1, 2])) is None


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda v: stability(v, sizes=(40,)), "sizes: a study of 40 prompts and another of 40 cannot be drawn from 60"),
        (lambda v: stability(v, sizes=(61,), against="all"), "sizes: a study of 61 prompts cannot"),
        (lambda v: stability(v, sizes=(0,)), "sizes: a study of 0"),
        (lambda v: stability(v, sizes=(1,), against=60), "another of 60"),
        (lambda v: stability(v, against="half"), "against: 'half'"),
        (lambda v: stability(v, sizes=(1,), k=(17,)), r"k: \[17\] of 16 heads"),
        (lambda v: stability(v, sizes=(1,), p=1.0), "p: 1.0"),
        (lambda v: stability(v.mean("prompt")), "layer, head and prompt"),
        (lambda v: agreement(v, v), "grids of layer and head"),
        (lambda v: chance(10, k=(0,)), r"k: \[0\]"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(prompts(np.ones((4, 4)), n=60))


def test_the_pilots_question_in_its_own_figures():
    """Quoted grids of GPT-2 small: nine of the ten largest heads of one prompt are among those of fifty, and four of
    five."""
    got = agreement(published_grid("mrs", "z", 1), published_grid("mrs", "z", 50))
    assert (got.overlap * got.k).round().values.tolist() == [4, 9]
    assert got.rbo > 0.75 > 3 * got.chance_rbo


def test_on_the_shipped_model(mini):
    effect = patch(mini, mrs_task(mini.tokenizer, n=80, seed=1), "z").effect
    s = stability(effect, sizes=(1, 5, 20), draws=100)
    assert s.k.values.tolist() == [2, 4] and s.attrs["heads"] == 16
    mean = s.rbo.mean("draw").values
    assert (mean > s.chance_rbo.item() + 0.3).all() and mean[-1] > mean[0]
