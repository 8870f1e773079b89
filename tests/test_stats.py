"""Statistics: known answers, degenerate cells, and agreement with SciPy called directly."""

import time

import numpy as np
import pytest
import xarray as xr
from scipy import stats as sp

from namemovers.stats import head_name, proportion, rank_correlation, summarise, top_heads


def heads(layers=3, n_heads=4, prompts=30, seed=0, effect=None):
    x = np.random.default_rng(seed).normal(size=(layers, n_heads, prompts))
    for (l, h), v in (effect or {}).items():
        x[l, h] += v
    return xr.DataArray(x, dims=("layer", "head", "prompt"), coords={"layer": range(layers), "head": range(n_heads)}, name="effect", attrs={"model": "m"})


def test_summary_is_scipy_s():
    v = heads()
    s = summarise(v, n_resamples=999)
    x = v.values.reshape(-1, 30)
    ci = sp.bootstrap((x,), np.mean, axis=-1, n_resamples=999, rng=np.random.default_rng(0)).confidence_interval
    np.testing.assert_allclose(s["mean"].values.ravel(), x.mean(-1))
    np.testing.assert_allclose(s.low.values.ravel(), ci.low)
    np.testing.assert_allclose(s.high.values.ravel(), ci.high)
    p = sp.permutation_test((x,), np.mean, axis=-1, permutation_type="samples", vectorized=True, n_resamples=999, rng=np.random.default_rng(0)).pvalue
    np.testing.assert_allclose(s.p.values.ravel(), p)
    np.testing.assert_allclose(s.q.values.ravel(), sp.false_discovery_control(p))


def test_batches_change_nothing(monkeypatch):
    import builtins

    v = heads(prompts=20)
    whole = summarise(v, n_resamples=500)
    import namemovers.stats as module
    monkeypatch.setattr(module, "int", lambda x: 2000 if isinstance(x, float) and x >= 1e6 else builtins.int(x), raising=False)
    xr.testing.assert_allclose(whole, summarise(v, n_resamples=500))


def test_finds_the_heads_that_do_something():
    s = summarise(heads(effect={(1, 2): 1.0, (2, 0): -1.0}))
    assert {tuple(map(int, c)) for c in zip(*np.nonzero(s.significant.values))} == {(1, 2), (2, 0)}
    assert top_heads(s, 1) == [(1, 2)] and top_heads(s, 1, sign=-1) == [(2, 0)]
    assert s.attrs["n_tests"] == 12 and s.attrs["model"] == "m" and s.attrs["variable"] == "effect"


def test_interval_covers_the_mean_about_as_often_as_it_says():
    x = xr.DataArray(np.random.default_rng(1).exponential(size=(400, 40)) - 1, dims=("cell", "prompt"))
    s = summarise(x, n_resamples=999)
    inside = float(((s.low <= 0) & (s.high >= 0)).mean())
    assert 0.89 <= inside <= 0.98
    assert float((s.p <= 0.05).mean()) == pytest.approx(0.05, abs=0.045)


def test_no_false_discoveries_among_nothing():
    assert not summarise(heads(12, 12, 50, seed=5)).significant.any()


def test_degenerate_cells():
    x = xr.DataArray([[0.0] * 6, [np.nan] * 6, [1.0] * 6, [1, 2, 3, np.nan, np.nan, np.nan], [np.nan] * 5 + [7], [1e-9, 0, 0, 0, 0, 0]], dims=("cell", "prompt"))
    s = summarise(x)
    assert s["mean"].values[[0, 2, 3, 4]].tolist() == [0, 1, 2, 7] and np.isnan(s["mean"].values[1])
    assert s.n.values.tolist() == [6, 0, 6, 3, 1, 6]
    assert s.p.values[0] == 1 and s.p.values[2] == pytest.approx(2 / 2**6) and s.p.values[3] == pytest.approx(2 / 2**3)
    assert np.isnan(s.p.values[[1, 4]]).all() and np.isnan(s.q.values[[1, 4]]).all() and not s.significant.values[[1, 4]].any()
    assert s.attrs["n_tests"] == 4
    assert (s.low.values[0], s.high.values[0]) == (0, 0) and (s.low.values[2], s.high.values[2]) == (1, 1)
    assert np.isnan(s.low.values[[1, 4]]).all()
    assert np.isfinite(s.low.values[[3, 5]]).all()


def test_empty_cells_do_not_weaken_the_correction():
    v = heads(effect={(0, 0): 0.6})
    padded = xr.concat([v, xr.full_like(v, np.nan)], "layer").assign_coords(layer=range(6))
    a, b = summarise(v), summarise(padded)
    np.testing.assert_allclose(a.q.values, b.q.values[:3])
    assert b.attrs["n_tests"] == 12


def test_one_prompt_has_a_mean_only():
    s = summarise(heads(prompts=1))
    assert np.isfinite(s["mean"]).all() and np.isnan(s.low).all() and np.isnan(s.p).all() and not s.significant.any() and (s.n == 1).all() and s.attrs["n_tests"] == 0


def test_null_shifts_the_test_only():
    x = xr.DataArray(np.random.default_rng(0).normal(5, 1, (1, 40)), dims=("cell", "prompt"))
    assert summarise(x).p.item() < 0.001 and summarise(x, null=5.0).p.item() > 0.05
    assert summarise(x, null=5.0)["mean"].item() == summarise(x)["mean"].item()


def test_scalars_and_other_dims():
    x = xr.DataArray(np.arange(10.0), dims="name")
    s = summarise(x, dim="name")
    assert s["mean"].item() == 4.5 and s["mean"].ndim == 0
    with pytest.raises(ValueError, match="dim"):
        summarise(x)


def test_same_seed_same_numbers():
    xr.testing.assert_identical(summarise(heads()), summarise(heads()))
    assert not summarise(heads(), seed=1).low.equals(summarise(heads()).low)


def test_quick_enough():
    """144 heads, and 12 layers at 29 positions, over 50 prompts, in a couple of seconds each."""
    x = np.random.default_rng(0).normal(size=(12, 29, 50))
    t = time.process_time()
    summarise(xr.DataArray(x, dims=("layer", "position", "prompt")))
    assert time.process_time() - t < 8


def test_top_heads_skip_empty_cells_and_keep_order():
    m = xr.DataArray([[np.nan, 1.0], [3.0, 2.0]], dims=("layer", "head"), coords={"layer": [4, 5], "head": [0, 1]})
    assert top_heads(m, 9) == [(5, 0), (5, 1), (4, 1)] and top_heads(m, 1, -1) == [(4, 1)]
    assert head_name(*top_heads(m, 1)[0]) == "L5H0"


def test_rank_correlation():
    v = heads(prompts=50, effect={(l, h): l + h / 2 for l in range(3) for h in range(4)})
    same = rank_correlation(v, v * 2 + 1, paired=True)
    assert same.rho.item() == pytest.approx(1) and same.low.item() == pytest.approx(1)
    other = heads(prompts=40, seed=9, effect={(l, h): -l - h / 2 for l in range(3) for h in range(4)})
    against = rank_correlation(v, other)
    expected = sp.spearmanr(v.mean("prompt").values.ravel(), other.mean("prompt").values.ravel()).statistic
    assert against.rho.item() == pytest.approx(expected) and against.low.item() <= expected <= against.high.item() < 0
    means = rank_correlation(v.mean("prompt"), other.mean("prompt"))
    assert means.rho.item() == pytest.approx(expected) and means.attrs["resampled"] == "cells"
    with pytest.raises(ValueError, match="paired"):
        rank_correlation(v, other, paired=True)
    with pytest.raises(ValueError, match="same cells"):
        rank_correlation(v, other.rename(head="position"))


def test_rank_correlation_leaves_out_empty_cells():
    v = heads(prompts=20)
    holes = v.where(~((v.layer == 0) & (v["head"] == 0)))
    assert rank_correlation(holes, v).n.item() == 11


def test_proportion():
    x = xr.DataArray([[True] * 3 + [False], [False] * 4], dims=("stage", "prompt"))
    s = proportion(x)
    assert s["mean"].values.tolist() == [0.75, 0] and s.n.values.tolist() == [4, 4]
    expected = sp.binomtest(3, 4).proportion_ci(0.95, method="wilson")
    assert (s.low.values[0], s.high.values[0]) == pytest.approx(tuple(expected)) and s.high.values[1] > 0.3
    assert proportion(x.isel(stage=0))["mean"].item() == 0.75
    with pytest.raises(ValueError, match="dim"):
        proportion(x, dim="name")
