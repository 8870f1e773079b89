"""Validation: its scores against hand values and SciPy, its methods on one variant, its controls, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import binom

from namemovers import validation
from namemovers.stats import summarise
from namemovers.validation import (
    CUE,
    IOI,
    MRS,
    Method,
    auroc,
    by_lot,
    controls,
    load_case,
    method_name,
    methods,
    precision_recall,
    score,
    shuffled,
    validate,
)


@pytest.fixture(scope="module")
def case():
    return load_case(0, n=16)


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    for _ in range(20):
        s, true = rng.integers(0, 5, 30).astype(float), rng.random(30) < 0.4
        a, b = s[true], s[~true]
        assert auroc(s, true) == pytest.approx((a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean())
    assert auroc([2, 1], [True, False]) == 1
    assert auroc([1, 2], [True, False]) == 0
    assert auroc([1, 1], [True, False]) == 0.5
    assert auroc([5, np.nan, 1], [False, True, True]) == 0  # what is no candidate counts on neither side
    assert np.isnan(auroc([1, 2], [False, False]))


def test_precision_and_recall():
    assert precision_recall([1, 1, 1, 0], [1, 0, 0, 1]) == (pytest.approx(1 / 3), 0.5)
    assert np.isnan(precision_recall([0, 0], [1, 0])[0]) and precision_recall([0, 0], [1, 0])[1] == 0
    assert np.isnan(precision_recall([1, 0], [0, 0])[1])
    for function in (auroc, precision_recall):
        with pytest.raises(ValueError, match="True and False|same things"):
            function([1, 2], [1])
        with pytest.raises(ValueError, match="same things"):
            function([1, 0], [1])


def test_a_perfect_and_a_hopeless_method(case):
    """A method whose values are the truth scores 1; one that turns it round scores 0; one of noise is near one half
    on average."""
    truth = case.truth.mask(task="ioi")
    make = lambda f: Method("made", "head", IOI, f, lambda c: truth, lambda c: truth, 0.05, ())
    jitter = xr.DataArray(1 + 0.1 * np.random.default_rng(0).random(16), dims="prompt")
    right, wrong = (score(make(lambda c, t=t: t * jitter), case) for t in (truth, ~truth))
    assert right == {"auroc": [1, 1], "precision": [1, 1], "recall": [1, 1]}
    assert wrong == {"auroc": [0, 0], "precision": [0, 0], "recall": [0, 0]}
    rng = np.random.default_rng(1)
    noise = [
        score(
            make(
                lambda c: xr.DataArray(
                    rng.normal(size=(*truth.shape, 16)), dims=(*truth.dims, "prompt"), coords=truth.coords
                )
            ),
            case,
            n_resamples=99,
        )
        for _ in range(30)
    ]
    assert 0.4 < np.mean([n["auroc"][0] for n in noise]) < 0.6 and np.mean([n["recall"][0] for n in noise]) < 0.1


def test_what_is_too_small_or_left_out_does_not_count(case):
    truth = case.truth.mask("name mover")
    jitter = xr.DataArray(1 + 0.1 * np.random.default_rng(0).random(16), dims="prompt")
    small = Method("small", "head", IOI, lambda c: 0.01 * truth * jitter, lambda c: truth, lambda c: truth, 0.05, ())
    assert score(small, case)["recall"] == [0, 0] and score(small._replace(least=0.005), case)["recall"] == [1, 1]
    backups = case.truth.mask("backup name mover")
    misses = small._replace(least=0.005, finds=lambda c: truth | backups)
    assert score(misses, case)["recall"][1] < 1
    assert score(misses._replace(ignored=("backup name mover",)), case)["recall"][1] == 1


@pytest.mark.parametrize(
    "name",
    [
        "direct logit attribution (IOI)",
        "patching z, denoise (IOI)",
        "attribution patching of z (MRS)",
        "patching z, denoise (MRS, no cue)",
        "path patching into the name movers' queries (MRS)",
        "knock-out of the name movers (IOI)",
        "copy score",
        "induction score",
        "edge attribution (EAP) (IOI)",
    ],
)
def test_methods_find_what_they_can_see(case, name):
    method = next(m for m in methods() if method_name(m) == name)
    found = score(method, case)
    assert found["auroc"][0] > (0.99 if method.unit == "edge" else 0.9999) and found["recall"][0] > 0.9


def test_what_attribution_cannot_see(case):
    method = next(m for m in methods() if method_name(m) == "direct logit attribution (IOI)")
    found = score(method, case)
    writers = len(case.truth.find("name mover", "negative name mover"))
    assert found["recall"][1] == pytest.approx(
        writers / len([h for h in case.truth.find(task="ioi") if h not in case.truth.find("backup name mover")])
    )


def test_every_method_is_on_tasks_that_are_there():
    names = [method_name(m) for m in methods()]
    assert len(set(names)) == len(names)
    assert {m.key for m in methods()} == {IOI, MRS, CUE, ("", "")}
    assert {m.unit for m in methods()} == {"head", "edge"}


def test_validate_is_labelled():
    some = [m for m in methods() if m.name in ("direct logit attribution", "copy score")]
    ds = validate(seeds=(0, 1), n=8, which=some, progress=False)
    assert ds.auroc.dims == ("method", "question", "variant")
    assert list(ds.variant.values) == [0, 1]
    assert list(ds.negative.values) == ["attention", "suppression"]
    assert float(ds.auroc.sel(dict(method="direct logit attribution (MRS)", question="what it can see")).min()) == 1
    for bad in (dict(seeds=(0,)), dict(seeds=(0, 1), n=1), dict(seeds=(0, 1), which=[])):
        with pytest.raises(ValueError):
            validate(**bad, progress=False)


def test_answers_without_truth(case):
    task, rng = case.tasks[IOI], np.random.default_rng(0)
    mixed = shuffled(task, rng)
    swapped = mixed.correct != task.correct
    assert 0 < swapped.sum() < len(task)
    assert torch.equal(mixed.correct[swapped], task.wrong[swapped])
    assert torch.equal(mixed.wrong[swapped], task.correct[swapped])
    drawn = by_lot(task, rng)
    assert (drawn.correct != drawn.wrong).all()
    assert set(drawn.correct.tolist()) <= set(torch.cat([task.correct, task.wrong]).tolist())
    with pytest.raises(ValueError, match="one answer"):
        by_lot(replace(task, correct=task.correct[:1].expand(16), wrong=task.correct[:1].expand(16)), rng)


def test_controls_are_silent_and_would_not_be_if_there_were_something(monkeypatch):
    ds = controls(models=2, draws=8, n=12, progress=False, shuffles=100)
    assert ds["any"].dims == ("control", "method", "study")
    assert ds["any"].sel(control="random model, the task's answers").notnull().sum() == 2 * ds.sizes["method"]
    for control, studies in (("shuffled answers", 200), ("random model, answers by lot", 16)):
        called = ds["any"].sel(control=control)
        assert (called.notnull().sum("study") == studies).all()
        # a test that holds its level calls more than this once in a thousand times
        assert (called.sum("study") <= binom.ppf(0.999, studies, 0.05)).all(), called.sum("study")

    def careless(values, **how):
        s = summarise(values, **how)
        return s.assign(significant=s.p <= 0.05)

    monkeypatch.setattr(validation, "summarise", careless)  # and the bounds see it
    heard = controls(models=1, draws=16, n=24, progress=False, shuffles=200)["any"]
    assert (heard.sel(control="shuffled answers").sum("study") > 2 * binom.ppf(0.999, 200, 0.05)).all()
    assert (heard.sel(control="random model, answers by lot").sum("study") > binom.ppf(0.999, 16, 0.05)).any()
    monkeypatch.setattr(validation, "summarise", summarise)
    with pytest.raises(ValueError, match="with n=8 silence says nothing"):
        controls(models=1, draws=1, n=8, progress=False)
    loud = xr.DataArray(np.abs(np.random.default_rng(0).normal(1, 0.1, (2, 2, 12))), dims=("layer", "head", "prompt"))
    monkeypatch.setattr(validation, "in_logits", lambda model, task: dict.fromkeys(validation.ON_LOGITS, loud))
    assert (
        controls(models=1, draws=2, n=12, progress=False)["any"]
        .sel(control="random model, answers by lot")
        .dropna("study")
        == 1
    ).all()
    for bad in (dict(models=0), dict(draws=0), dict(shuffles=0), dict(n=1)):
        with pytest.raises(ValueError):
            controls(**bad)
