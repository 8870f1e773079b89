"""Path patching from chosen senders to chosen receivers; the parity with TransformerLens is tested with the engine."""

import numpy as np
import pytest
import torch
from test_engine import model, neox, prompts  # noqa: F401  (fixtures)

from namemovers.data import ioi_task
from namemovers.path_patching import path_patch, run_paths
from namemovers.results import load, save

SOME = [(2, 3), (0, 1), (1, 2), (0, 0)]  # in no order


@pytest.mark.parametrize("receivers, together", [("logits", True), ("heads", True), ([(2, 1), (1, 3)], True), ([(2, 1), (1, 3), (2, 0)], False)])
@pytest.mark.parametrize("through", [False, True])
def test_chosen_senders_are_entries_of_the_full_sweep(model, receivers, together, through):  # noqa: F811
    arguments = prompts(model)
    common = dict(receivers=receivers, through_mlps=through, together=together, component="k")
    everyone = run_paths(model, *arguments, **common)[0]
    some = run_paths(model, *arguments, senders=SOME, **common)[0]
    want = everyone[[l * 4 + h for l, h in SOME]]
    assert (some.isnan() == want.isnan()).all() and not want.isnan().all()
    assert (some - want).nan_to_num().abs().max() < 1e-5


@pytest.mark.parametrize("component", ["q", "k", "v"])
@pytest.mark.parametrize("senders", ["head", "mlp", "embed"])
def test_chosen_receivers_are_entries_of_the_full_sweep(model, component, senders):  # noqa: F811
    arguments, receivers = prompts(model), [(2, 2), (0, 3), (1, 1)]
    everywhere = run_paths(model, *arguments, senders=senders, receivers="heads", component=component)[0]
    some = run_paths(model, *arguments, senders=senders, receivers=receivers, component=component, together=False)[0]
    for i, (l, h) in enumerate(receivers):
        want = everywhere[:, l, h]
        assert (some[:, i].isnan() == want.isnan()).all()
        assert (some[:, i] - want).nan_to_num().abs().max() < 1e-5
        alone = run_paths(model, *arguments, senders=senders, receivers=[(l, h)], component=component)[0]
        assert (alone.isnan() == want.isnan()).all() and (alone - want).nan_to_num().abs().max() < 1e-5


def test_only_what_is_asked_for_is_computed(tiny, monkeypatch):
    """Rows that enter the packed forward: one a sender below the receiver, prompt and receiver."""
    from namemovers import path_patching

    entered = []
    monkeypatch.setattr(path_patching, "carry", lambda w, groups, b, real=path_patching.carry: (entered.extend(g.P * g.C for g in groups), real(w, groups, b))[1])
    arguments = prompts(tiny, n=3)
    run_paths(tiny, *arguments, senders=SOME, receivers=[(2, 1), (1, 3)], together=False)
    assert sum(entered) == 3 * (3 + 2)  # (2, 3) is below neither; three senders are below layer 2, two below layer 1


def test_progress_adds_up(tiny):
    arguments = prompts(tiny)
    for senders, n in (("head", 12), ("mlp", 3), ("embed", 1), (SOME, 4)):
        for receivers in ("logits", "heads", [(1, 1)], [(0, 1)]):
            done = []
            run_paths(tiny, *arguments, senders=senders, receivers=receivers, progress=done.append)
            assert sum(done) == n * len(arguments[0]), (senders, receivers)


def test_lists_are_labelled(tiny, tmp_path):
    task = ioi_task(tiny.tokenizer, n=3)
    ds = path_patch(tiny, task, SOME)
    assert ds.effect.dims == ("sender", "prompt") and list(ds.sender.values) == ["L2H3", "L0H1", "L1H2", "L0H0"]
    assert list(zip(ds.sender_layer.values, ds.sender_head.values)) == SOME and ds.attrs["senders"] == "L2H3 L0H1 L1H2 L0H0"
    everyone = path_patch(tiny, task)
    for name, (l, h) in zip(ds.sender.values, SOME):
        np.testing.assert_allclose(ds.logit_diff.sel(sender=name), everyone.logit_diff.sel(layer=l, head=h), atol=1e-5)
    apart = path_patch(tiny, task, SOME, receivers=[(2, 1), (1, 3)], together=False, component="v")
    assert apart.effect.dims == ("sender", "receiver", "prompt") and apart.effect.sel(sender="L1H2", receiver="L1H3").isnull().all()
    assert apart.attrs["together"] is False and list(apart.receiver_layer.values) == [2, 1]
    assert path_patch(tiny, task, receivers=[(2, 1)], together=False).effect.dims == ("layer", "head", "receiver", "prompt")
    save(apart, "apart", tmp_path)
    assert load("apart", tmp_path).identical(apart)


def test_lists_that_make_no_sense(tiny):
    task = ioi_task(tiny.tokenizer, n=2)
    for which in ("senders", "receivers"):
        for bad, message in (([(0, 9)], r"no head \(0, 9\)"), ([(3, 0)], r"no head \(3, 0\)"), ([(-1, 0)], "no head"), ([(0, 1), (0, 1)], r"\(0, 1\) twice"), ([], "empty"),
                             ([(0, 1.5)], "no list of"), ([3, 4], "no list of"), ([(1, 2, 3)], "no list of"), ("tail", "no list of"), ("qk", "no list of"), (7, "no list of")):
            with pytest.raises(ValueError, match=message) as e:
                path_patch(tiny, task, **{which: bad})
            assert which in str(e.value) and "\n" not in str(e.value)
    ds = path_patch(tiny, task, [(np.int64(0), torch.tensor(1))])  # any integers
    assert list(ds.sender.values) == ["L0H1"]
