"""Activation patching: against TransformerLens, against what must hold, and with bad input."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
import transformer_lens.patching as tlp
import xarray as xr
from conftest import told_apart, warned, with_mean

from namemovers import results
from namemovers.activation_patching import METRICS, effect, patch, run_hooks
from namemovers.data import Task, ioi_task
from namemovers.pairs import DIRECTIONS, Pairs
from namemovers.sites import BY, HEAD_SITES, STREAM_SITES, Cell, cells

torch.set_num_threads(1)
IN_TL = [s for s in BY if s not in ("resid_post", "neurons")]  # TransformerLens has no sweep of these
CHOSEN = {"neurons": {"neurons": [(0, 3), (2, 100)]}}  # what a site needs besides its name


def made_task(model, n=4, lengths=9, differ=(4, 6), seed=0):
    "Prompts of random tokens whose clean and corrupted form differ at the positions `differ` only."
    g = torch.Generator().manual_seed(seed)
    lengths = torch.full((n,), lengths) if isinstance(lengths, int) else torch.tensor(lengths)
    draw = lambda *shape: torch.randint(1, model.cfg.d_vocab, shape, generator=g)
    clean = draw(n, int(lengths.max()))
    pad = torch.arange(clean.shape[1]) >= lengths[:, None]
    clean[pad] = 0
    corrupted = clean.clone()
    for p in differ:
        corrupted[:, p] = (clean[:, p] + draw(n)) % model.cfg.d_vocab
    corrupted[pad] = 0
    text = [f"prompt {i}" for i in range(n)]
    correct = draw(n)
    task = Task(
        name="made",
        clean=text,
        corrupted=text,
        clean_tokens=clean,
        corrupted_tokens=corrupted,
        lengths=lengths,
        correct=correct,
        wrong=(correct + 1) % model.cfg.d_vocab,
        positions={**{f"D{i}": torch.full((n,), p) for i, p in enumerate(differ)}, "END": lengths - 1},
        corruption="random",
        seed=seed,
        templates=["made"] * n,
        names=[{} for _ in range(n)],
    )
    return told_apart(model, task)


def of_tl(model, task, site, direction, by_position=False, **chosen):
    "TransformerLens's own sweep, per prompt."
    source, target = (task.clean_tokens, task.corrupted_tokens)[:: 1 if direction == "denoise" else -1]
    _, cache = model.run_with_cache(source)
    rows = torch.arange(len(target))
    metric = lambda logits: METRICS["logit_diff"](logits[rows, task.positions["END"]], task.correct, task.wrong, None)
    name = (
        site
        if site in STREAM_SITES
        else f"attn_head_{'out' if site == 'z' else site}_{'by_pos' if by_position else 'all_pos'}"
    )
    values = getattr(tlp, f"get_act_patch_{name}")(model, target, cache, metric, reduce="none").values
    return values.transpose(1, 2) if by_position and site != "pattern" else values


def differ(ds, reference):
    return float(np.abs(ds.logit_diff.values - reference.numpy()).max())


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("site", IN_TL)
def test_hooks_agree_with_transformer_lens(tiny, site, direction):
    task = made_task(tiny)
    ds = patch(tiny, task, site, direction=direction, engine="hooks")
    reference = of_tl(tiny, task, site, direction)
    assert reference.std() > 0
    assert differ(ds, reference) < 1e-5


@pytest.mark.parametrize("site", HEAD_SITES)
def test_heads_by_position_agree_with_transformer_lens(tiny, site):
    task = made_task(tiny, n=2, lengths=7, differ=(3,))
    ds = patch(tiny, task, site, by="head_position", engine="hooks")
    assert ds.logit_diff.dims == ("layer", "head", "position", "prompt")
    assert differ(ds, of_tl(tiny, task, site, "denoise", by_position=True)) < 1e-5


def test_resid_post_is_the_next_layers_resid_pre(tiny):
    task = made_task(tiny)
    post = patch(tiny, task, "resid_post", engine="hooks").logit_diff
    pre = patch(tiny, task, "resid_pre", engine="hooks").logit_diff
    np.testing.assert_allclose(
        post.isel(layer=slice(None, -1)).values, pre.isel(layer=slice(1, None)).values, atol=1e-5
    )


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "attn_out", "mlp_out", *HEAD_SITES])
def test_hooks_agree_at_the_shape_of_gpt2(gpt2_shape, site):
    "A sample of cells, each against TransformerLens's way of doing that one patch."
    model, task = gpt2_shape, made_task(gpt2_shape, n=2, lengths=8, differ=(2, 5))
    at = torch.full((2,), 5)
    sample = [Cell(l, position=at) if site in STREAM_SITES else Cell(l, head=h) for l, h in ((0, 3), (6, 11), (11, 0))]
    mine, *_ = run_hooks(model, Pairs.of(task), site, sample)
    _, cache = model.run_with_cache(task.clean_tokens)
    setter, act, index = {
        "pattern": (tlp.layer_head_pattern_patch_setter, "pattern", lambda c: (c.layer, c.head)),
        **{s: (tlp.layer_head_vector_patch_setter, s, lambda c: (c.layer, c.head)) for s in "zqkv"},
        **{s: (tlp.layer_pos_patch_setter, s, lambda c: (c.layer, 5)) for s in STREAM_SITES},
    }[site]
    import pandas as pd

    reference = tlp.generic_activation_patch(
        model,
        task.corrupted_tokens,
        cache,
        lambda logits: METRICS["logit_diff"](logits[:, -1], task.correct, task.wrong, None),
        setter,
        act,
        index_df=pd.DataFrame([index(c) for c in sample]),
        reduce="none",
    ).values
    assert (mine - reference).abs().max() < 1e-4
    assert reference.std() > 0


def test_patching_all_that_differs_gives_the_other_run(tiny):
    task = made_task(tiny, differ=(4,))
    for direction in DIRECTIONS:
        ds = patch(tiny, task, "resid_pre", direction=direction, engine="hooks")
        start = ds.effect.sel(layer=0)
        np.testing.assert_allclose(start.sel(position=4).mean("prompt"), 1, atol=1e-4)
        np.testing.assert_allclose(start.drop_sel(position=4).values, 0, atol=1e-4)
        np.testing.assert_allclose(ds.effect.sel(position=[0, 1, 2, 3]).values, 0, atol=1e-4)  # nothing differs there
        other = ds.clean if direction == "denoise" else ds.corrupted
        np.testing.assert_allclose(ds.logit_diff.sel(layer=0, position=4).values, other.values, atol=1e-4)
        last = patch(tiny, task, "resid_post", direction=direction, engine="hooks").logit_diff.isel(layer=-1)
        np.testing.assert_allclose(last.sel(position=8).values, other.values, atol=1e-4)


def test_restoring_s2_is_all_of_switch_s2(tiny):
    ioi = told_apart(tiny, ioi_task(tiny.tokenizer, n=6, seed=0, corruption="switch_s2"))
    ds = patch(tiny, ioi, "resid_pre", by="named_position", engine="hooks").effect.sel(layer=0)
    np.testing.assert_allclose(ds.sel(position="S2").mean("prompt"), 1, atol=1e-4)
    np.testing.assert_allclose(ds.drop_sel(position="S2").values, 0, atol=1e-4)


def test_nothing_different_changes_nothing(tiny):
    task = made_task(tiny)
    same = dataclasses.replace(task, corrupted_tokens=task.clean_tokens)
    for site in BY:
        ds = patch(tiny, same, site, engine="hooks", **CHOSEN.get(site, {}))
        np.testing.assert_allclose(
            ds.logit_diff.values, np.broadcast_to(ds.clean.values, ds.logit_diff.shape), atol=1e-5
        )
        assert ds.effect.isnull().all()  # no distance between the runs, so no share of it


def test_named_positions_are_those_columns(tiny):
    task = made_task(tiny)
    named = patch(tiny, task, "mlp_out", by="named_position", engine="hooks")
    plain = patch(tiny, task, "mlp_out", by="position", engine="hooks")
    assert list(named.position.values) == ["D0", "D1", "END"]
    np.testing.assert_allclose(named.logit_diff.values, plain.logit_diff.sel(position=[4, 6, 8]).values, atol=1e-5)


@pytest.mark.parametrize(
    "site,by",
    [
        ("resid_pre", "position"),
        ("attn_out", "named_position"),
        ("z", "head"),
        ("pattern", "head"),
        ("k", "head_position"),
        ("pattern", "head_position"),
    ],
)
def test_padding_changes_nothing(tiny, site, by):
    mixed = made_task(tiny, n=3, lengths=[11, 8, 9], differ=(2, 5))
    together = patch(tiny, mixed, site, by=by, engine="hooks")
    for i, length in enumerate(mixed.lengths.tolist()):
        cut = lambda t: t[i : i + 1, :length]
        alone = dataclasses.replace(
            mixed,
            clean=mixed.clean[i : i + 1],
            corrupted=mixed.corrupted[i : i + 1],
            clean_tokens=cut(mixed.clean_tokens),
            corrupted_tokens=cut(mixed.corrupted_tokens),
            lengths=mixed.lengths[i : i + 1],
            correct=mixed.correct[i : i + 1],
            wrong=mixed.wrong[i : i + 1],
            positions={k: v[i : i + 1] for k, v in mixed.positions.items()},
            templates=mixed.templates[i : i + 1],
            names=mixed.names[i : i + 1],
        )
        one = patch(tiny, alone, site, by=by, engine="hooks").logit_diff.isel(prompt=0)
        all_ = together.logit_diff.isel(prompt=i)
        if by in ("position", "head_position"):
            assert all_.isel(position=slice(length, None)).isnull().all()
            all_ = all_.isel(position=slice(None, length))
        assert all_.notnull().all()
        np.testing.assert_allclose(all_.values, one.values, atol=1e-5)


def test_memory_budget_and_repetition_change_nothing(tiny):
    task = made_task(tiny, n=5)
    whole = patch(tiny, task, "z", engine="hooks")
    xr.testing.assert_identical(whole, patch(tiny, task, "z", engine="hooks"))
    from namemovers.activation_patching import _bytes_per_row

    row = _bytes_per_row(tiny.cfg, 9, "logit_diff")
    for rows in (1, 3, 7):
        np.testing.assert_allclose(
            whole.logit_diff.values,
            patch(tiny, task, "z", engine="hooks", memory_budget=rows * row).logit_diff.values,
            atol=1e-5,
        )
    with pytest.raises(ValueError, match="memory_budget.*too small"):
        patch(tiny, task, "z", engine="hooks", memory_budget=row - 1)


def test_effect_is_the_ratio_of_means(tiny):
    ds = patch(tiny, made_task(tiny), "resid_mid", engine="hooks")
    published = (ds.logit_diff.mean("prompt") - ds.corrupted.mean()) / (ds.clean.mean() - ds.corrupted.mean())
    np.testing.assert_allclose(ds.effect.mean("prompt").values, published.values, atol=1e-5)
    assert ds.effect.notnull().all()
    assert effect(3.0, torch.tensor([5.0]), torch.tensor([1.0])) == 0.5
    assert effect(4.0, torch.tensor([5.0]), torch.tensor([1.0]), "noise") == 0.25


@pytest.mark.filterwarnings("ignore:No effect can be given")
@pytest.mark.parametrize("n", [1, 2, 5])
def test_runs_that_do_not_differ_have_no_effect_in_any_measurement(tiny, n):
    from namemovers.attribution_patching import attribute, patch_screened
    from namemovers.path_patching import path_patch
    from namemovers.sets import patch_sets

    task = made_task(tiny, n=n)
    same = dataclasses.replace(task, corrupted_tokens=task.clean_tokens)
    for direction in DIRECTIONS:
        for ds in (
            patch(tiny, same, "z", direction=direction),
            patch(tiny, same, "z", direction=direction, engine="hooks"),
            patch_screened(tiny, same, "z", direction=direction, screen=2),
            attribute(tiny, same, "z", direction=direction),
            path_patch(tiny, same, direction=direction),
            path_patch(tiny, same, receivers=[(2, 1)], direction=direction),
            patch_sets(tiny, same, {"nothing": [], "one": [("z", Cell(0, 1))]}, direction=direction),
        ):
            assert ds.effect.isnull().all(), ds.attrs["measurement"]
            assert all(ds.effect.attrs[k] == v for k, v in ds.attrs.items()) and ds.effect.attrs["weights_hash"]


def test_an_effect_is_told_with_the_distance_it_is_a_share_of(tiny):
    from namemovers.stats import summarise

    ds = patch(
        tiny, told_apart(tiny, ioi_task(tiny.tokenizer, n=12, corruption="switch_s2")), "resid_pre", by="named_position"
    )
    np.testing.assert_allclose(
        ds.effect.distance, (ds.clean - ds.corrupted) / (ds.clean - ds.corrupted).mean(), rtol=1e-6
    )
    whole = summarise(ds.effect).sel(layer=0, position="S2")  # the whole difference, in every prompt
    assert abs(whole.low - 1) < 1e-3 and abs(whole.high - 1) < 1e-3


@pytest.mark.parametrize("metric", METRICS)
def test_metrics(tiny, metric):
    "Each metric against its definition, at the two ends: the runs left alone, and one run wholly replaced."
    task = made_task(tiny, differ=(4,))
    ds = patch(tiny, task, "resid_pre", metric=metric, engine="hooks")
    rows = torch.arange(len(task.clean_tokens))
    clean, corrupted = (tiny(t)[rows, task.positions["END"]] for t in (task.clean_tokens, task.corrupted_tokens))

    def by_hand(logits):
        p, q = clean.double().softmax(-1), logits.double().softmax(-1)
        return (
            {
                "logit_diff": logits[rows, task.correct] - logits[rows, task.wrong],
                "logit": with_mean(tiny, logits)[rows, task.correct],
                "prob": q[rows, task.correct],
                "rank": (logits > logits[rows, task.correct][:, None]).sum(-1),
                "kl": (p * (p / q).log()).sum(-1),
            }[metric]
            .float()
            .numpy()
        )

    np.testing.assert_allclose(ds.clean.values, by_hand(clean), atol=1e-5)
    np.testing.assert_allclose(ds.corrupted.values, by_hand(corrupted), atol=1e-5)
    np.testing.assert_allclose(
        ds[metric].sel(layer=0, position=4).values, ds.clean.values, atol=1e-4 if metric != "rank" else 1
    )
    assert ds.attrs["metric"] == metric


def test_answers_exchanged_change_the_sign(tiny):
    task = made_task(tiny)
    ds = patch(tiny, task, "v", engine="hooks")
    mirror = patch(tiny, dataclasses.replace(task, correct=task.wrong, wrong=task.correct), "v", engine="hooks")
    np.testing.assert_allclose(ds.logit_diff.values, -mirror.logit_diff.values, atol=1e-6)
    np.testing.assert_allclose(ds.effect.values, mirror.effect.values, atol=1e-5)


def test_result_is_labelled_and_survives_saving(tiny, tmp_path):
    task = made_task(tiny, n=1)
    ds = patch(tiny, task, "resid_pre", engine="hooks")
    assert (
        ds.logit_diff.dims
        == ds.effect.dims
        == (
            "layer",
            "position",
            "prompt",
        )
    )
    assert ds.clean.dims == ds.corrupted.dims == ("prompt",)
    assert ds.token.values[4] == tiny.tokenizer.decode([int(task.clean_tokens[0, 4])])
    assert ds.corrupted_token.values[4] != ds.token.values[4]
    assert {
        "site": "resid_pre",
        "by": "position",
        "direction": "denoise",
        "metric": "logit_diff",
        "engine": "hooks",
    }.items() <= ds.attrs.items()
    results.save(ds, "made_patch_resid_pre_position", folder=tmp_path)
    xr.testing.assert_identical(results.load("made_patch_resid_pre_position", folder=tmp_path), ds)


def test_cells_span_the_model(tiny):
    task, cfg = made_task(tiny), tiny.cfg
    assert len(cells(tiny, task, "z", "head")[0]) == cfg.n_layers * cfg.n_heads
    made, axes = cells(tiny, task, "q", "head_position")
    assert list(axes) == ["layer", "head", "position"] and len(made) == cfg.n_layers * cfg.n_heads * 9
    assert (made[-1].layer, made[-1].head, made[-1].position.tolist()) == (cfg.n_layers - 1, cfg.n_heads - 1, [8] * 4)


class Interrupted:
    "Counts patched runs and presses Ctrl-C after `after` of them."

    def __init__(self, after):
        self.left = after

    def __call__(self, k):
        self.left -= k
        if self.left <= 0:
            raise KeyboardInterrupt


def hooks_left(model):
    return sum(len(h.fwd_hooks) + len(h.bwd_hooks) for h in model.hook_dict.values())


def test_an_interruption_leaves_no_hook(tiny):
    task = made_task(tiny)
    before, left = tiny(task.clean_tokens), hooks_left(tiny)
    with pytest.raises(KeyboardInterrupt):
        run_hooks(tiny, Pairs.of(task), "z", cells(tiny, task, "z", "head")[0], progress=Interrupted(5))

    def press(value, hook):
        raise KeyboardInterrupt

    from namemovers.model import run_at_end

    with pytest.raises(KeyboardInterrupt):
        run_at_end(tiny, task.clean_tokens, task.positions["END"], hooks=[("blocks.1.hook_resid_pre", press)])
    assert hooks_left(tiny) == left
    assert torch.equal(tiny(task.clean_tokens), before)


class Stopped:
    "A function that works `times` times and is then interrupted."

    def __init__(self, f, times):
        self.f, self.left = f, times

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.f(*args, **kwargs)


def interrupted(monkeypatch, model, task, path, engine, calls, **more):
    "A sweep with a store, interrupted after so many calls of the engine: one to try, then one for a prompt in a layer."
    import namemovers.activation_patching as ap

    with monkeypatch.context() as m:
        m.setattr("namemovers.store.SECONDS", 1e-9)
        if engine == "fast":
            m.setattr(ap, "sweep", Stopped(ap.sweep, calls))
        else:
            m.setattr(ap, "run_hooks", Stopped(run_hooks, calls))
        with pytest.raises(KeyboardInterrupt):
            patch(model, task, "z", engine=engine, store=path, **more)


@pytest.mark.parametrize("metric", ["logit_diff", "kl"])
@pytest.mark.parametrize("engine", ["fast", "hooks"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tiny, tmp_path, monkeypatch, engine, metric):
    task, path = made_task(tiny, lengths=[9, 8, 9, 7], differ=(3, 5)), tmp_path / "below" / "store"
    interrupted(monkeypatch, tiny, task, path, engine, 6, metric=metric)
    import namemovers.activation_patching as ap

    counted = Stopped(ap.sweep if engine == "fast" else run_hooks, 10**6)
    with monkeypatch.context() as m:
        m.setattr(ap, "sweep" if engine == "fast" else "run_hooks", counted)
        resumed = patch(tiny, task, "z", engine=engine, store=path, metric=metric)
    # blocks of one prompt in one layer, of which five were finished
    assert 10**6 - counted.left == tiny.cfg.n_layers * len(task) - 5
    monkeypatch.setattr("namemovers.store.SECONDS", 1e-9)
    whole = patch(tiny, task, "z", engine=engine, store=tmp_path / "whole", metric=metric)
    xr.testing.assert_identical(resumed, whole)
    # all of it read
    xr.testing.assert_identical(patch(tiny, task, "z", engine=engine, store=path, metric=metric), whole)
    without = patch(tiny, task, "z", engine=engine, metric=metric)
    for name in ("clean", "corrupted", "effect"):
        np.testing.assert_allclose(resumed[name], without[name], rtol=1e-4, atol=1e-5)
    assert without.attrs == resumed.attrs


@pytest.mark.parametrize("engine", ["fast", "hooks"])
@pytest.mark.parametrize(
    "change", ["weight", "weight behind autograd's back", "weight exchanged", "hook", "torch hook", "configuration"]
)
def test_a_model_that_was_changed_gets_nothing_old_from_a_store(tiny_folder, tmp_path, monkeypatch, engine, change):
    from namemovers.model import load_model

    model, path = load_model(tiny_folder, device="cpu"), tmp_path / "store"
    task = made_task(model)
    interrupted(monkeypatch, model, task, path, engine, 3)
    b = model.blocks[1].mlp.out if hasattr(model.blocks[1].mlp, "out") else model.blocks[1].mlp
    weight = b.weight
    with torch.no_grad():
        if change == "weight":
            weight.mul_(1.5)
        elif change == "weight behind autograd's back":
            weight.data.mul_(1.5)
        elif change == "weight exchanged":
            b.original_component.weight = torch.nn.Parameter(weight * 1.5, requires_grad=False)
        elif change == "hook":
            model.blocks[1].hook_resid_post.add_hook(lambda x, hook: x * 1.5)
        elif change == "torch hook":
            b.original_component.register_forward_hook(lambda module, args, out: out * 1.5)
        else:
            model.blocks[1].ln1.original_component.eps = model.cfg.eps = 0.5
    if change.startswith("weight"):  # other weights, another sweep beside the old one
        fresh = patch(model, task, "z", engine=engine)
        stored = patch(model, task, "z", engine=engine, store=path)
        np.testing.assert_allclose(stored.logit_diff, fresh.logit_diff, atol=1e-5)
        return
    with pytest.raises(ValueError):
        patch(model, task, "z", engine=engine, store=path)


@pytest.mark.parametrize(
    "bad,names",
    [
        (dict(site="resid"), ["site='resid'", "resid_pre", "pattern"]),
        (dict(site="z", by="position"), ["by='position'", "head_position"]),
        (dict(site="resid_pre", by="head"), ["by='head'", "named_position"]),
        (dict(site="z", by="token"), ["by='token'"]),
        (dict(site="z", direction="both"), ["direction='both'", "denoise", "noise"]),
        (dict(site="z", metric="loss"), ["metric='loss'", "logit_diff", "kl"]),
        (dict(site="z", engine="slow"), ["engine='slow'", "hooks"]),
        (dict(site=["z"]), ["site: ['z']"]),
    ],
)
def test_bad_arguments(tiny, bad, names):
    with pytest.raises(ValueError) as e:
        patch(tiny, made_task(tiny), **bad)
    assert all(name in str(e.value) for name in names) and "\n" not in str(e.value)


def test_bad_tasks_and_models(tiny):
    task = made_task(tiny)
    with pytest.raises(ValueError, match="prompts of one shape"):
        patch(tiny, dataclasses.replace(task, corrupted_tokens=task.corrupted_tokens[:, :-1]), "z")
    with pytest.raises(ValueError, match="positions.*'D9'.*outside"):
        patch(tiny, dataclasses.replace(task, positions={**task.positions, "D9": task.lengths}), "z")
    with pytest.raises(ValueError, match="no prompt"):
        patch(tiny, _empty(task), "z")
    tiny.train()
    try:
        with pytest.raises(ValueError, match="training mode.*eval"):
            patch(tiny, task, "z")
    finally:
        tiny.eval()
    patch(tiny, task, "z", engine="hooks")  # and it works again
    weight = tiny.blocks[0].mlp.out.weight
    kept = weight.detach().clone()
    try:
        weight.data.view(-1)[0] = float("nan")
        with pytest.raises(ValueError, match="NaN"):
            patch(tiny, task, "z", engine="hooks")
    finally:
        weight.data.copy_(kept)


def test_engines_agree_and_auto_takes_the_fast_one(tiny):
    task = made_task(tiny, lengths=[9, 7, 8, 9], differ=(4, 5))
    for site in BY:
        chosen, hooks = (patch(tiny, task, site, engine=engine, **CHOSEN.get(site, {})) for engine in ("auto", "hooks"))
        assert (chosen.attrs["engine"], hooks.attrs["engine"]) == ("fast", "hooks")
        np.testing.assert_allclose(chosen.logit_diff.values, hooks.logit_diff.values, atol=1e-5)


def test_auto_falls_back_and_says_so_once(tiny, monkeypatch):
    import warnings
    import namemovers.activation_patching as ap

    monkeypatch.setattr(ap, "why_not", lambda model, length: "its attention is of another kind")
    with pytest.raises(ValueError, match="engine='fast'.*another kind.*engine='hooks'"):
        patch(tiny, made_task(tiny), "z", engine="fast")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            assert patch(tiny, made_task(tiny), "z").attrs["engine"] == "hooks"
    assert ["another kind" in str(w.message) for w in caught if "engine" in str(w.message)] == [True]


def test_screening_computes_the_largest_cells_exactly(tiny):
    from namemovers.attribution_patching import patch_screened

    task = made_task(tiny)
    exact, screened = patch(tiny, task, "z"), patch_screened(tiny, task, "z", screen=3)
    assert int(screened.exact.sum()) == 3 and screened.exact.dims == ("layer", "head")
    assert float(abs((screened.effect - exact.effect).where(screened.exact)).max()) < 1e-4
    assert "exact" in screened.attrs["approximation"] and "approximation" not in exact.attrs
    with pytest.raises(ValueError, match="screen=0"):
        patch_screened(tiny, task, "z", screen=0)
    with pytest.raises(TypeError, match="screen"):  # what is approximate has a name of its own
        patch(tiny, task, "z", screen=3)


def _empty(task):
    return dataclasses.replace(
        task,
        clean=[],
        corrupted=[],
        templates=[],
        names=[],
        clean_tokens=task.clean_tokens[:0],
        corrupted_tokens=task.corrupted_tokens[:0],
        lengths=task.lengths[:0],
        correct=task.correct[:0],
        wrong=task.wrong[:0],
        positions={k: v[:0] for k, v in task.positions.items()},
    )


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_screen_does_not_miss_what_first_order_misses(mini, direction):
    """Attention is saturated behind mini's previous token head: its estimate is a sixth of its effect, and four
    heads have larger ones."""
    from namemovers.attribution_patching import attribute, patch_screened

    task = ioi_task(mini.tokenizer, n=10, seed=0)
    exact = patch(mini, task, "z", direction=direction).effect.mean("prompt")
    first = attribute(mini, task, "z", direction=direction)
    screened = patch_screened(mini, task, "z", direction=direction, screen=3)
    largest = abs(exact) >= np.sort(abs(exact).values.ravel())[-1]
    by_estimate = abs(first.effect.mean("prompt"))
    assert int((by_estimate > by_estimate.where(largest).max()).sum()) >= 3  # so that its own rank would leave it out
    assert bool(screened.exact.where(largest, True).all())
    assert abs(float(abs(screened.effect.mean("prompt")).max()) - float(abs(exact).max())) < 1e-4
    assert "exactly" in screened.attrs["screened_by"]


def test_a_screen_computes_the_cells_that_look_largest(mini):
    from namemovers.attribution_patching import attribute, patch_screened

    task = ioi_task(mini.tokenizer, n=3, seed=0)  # as few as are patched to look
    exact = patch(mini, task, "z").effect.mean("prompt")
    size = np.maximum(abs(exact), abs(attribute(mini, task, "z").effect.mean("prompt")))
    cut = np.sort(size.values.ravel())[-4]
    assert bool((patch_screened(mini, task, "z", screen=4).exact == (size >= cut)).all())


def test_a_long_sweep_by_hooks_says_how_long_it_will_take(tiny, monkeypatch):
    from namemovers import activation_patching

    task = made_task(tiny)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch(tiny, task, "z", engine="hooks")
    monkeypatch.setattr(activation_patching, "LONG", 0)
    with warned(r"runs the model 48 times, which will take about \d+ min here"):
        patch(tiny, task, "z", engine="hooks")  # 3 layers x 4 heads x 4 prompts


def test_two_logits_need_less_memory_than_a_vocabulary(tiny):
    from namemovers.activation_patching import _bytes_per_row

    assert _bytes_per_row(tiny.cfg, 9, "logit_diff") < _bytes_per_row(tiny.cfg, 9, "prob") - 12 * tiny.cfg.d_vocab
