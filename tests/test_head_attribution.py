"""Direct logit attribution, attention and the projection on names: against TransformerLens, against sums, on made-up
cases."""

import numpy as np
import pytest
import torch
import xarray as xr
from transformer_lens.tools.analysis.direct_logit_attribution import direct_logit_attribution

from namemovers.data import ioi_task, mrs_task, name_token
from namemovers.head_attribution import (
    agreement,
    attention,
    components,
    head_attribution,
    leading_heads,
    name_figure,
    name_ids,
    name_projection,
    subject_positions,
)

# `all` and IOI hold prompts of several lengths, so every one of these also tests padding.
TASKS = {
    "mrs": lambda tokenizer, n: mrs_task(tokenizer, n=n, seed=1),
    "mrs_lengths": lambda tokenizer, n: mrs_task(tokenizer, n=n, seed=1, templates=["pilot", "titles", "three_each"]),
    "ioi": lambda tokenizer, n: ioi_task(tokenizer, n=n, seed=1),
}


@pytest.fixture(params=["tiny", "mini", "gpt2_shape"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=sorted(TASKS))
def task(request, model):
    return TASKS[request.param](model.tokenizer, 4 if model.cfg.n_layers > 6 else 9)


def alone(task, i):
    "Prompt i without padding, and its answers."
    return task.clean_tokens[i : i + 1, : int(task.lengths[i])], task.correct[i : i + 1], task.wrong[i : i + 1]


def test_tasks_hold_several_lengths(tiny):
    assert len(TASKS["mrs_lengths"](tiny.tokenizer, 9).lengths.unique()) > 1
    assert len(TASKS["ioi"](tiny.tokenizer, 9).lengths.unique()) > 1


def test_components_sum_to_the_logit_difference(model, task):
    ds = head_attribution(model, task)
    for i in range(len(task)):
        tokens, correct, wrong = alone(task, i)
        logits = model(tokens)[0, -1]
        assert float(ds.logit_diff[i]) == pytest.approx(float(logits[correct] - logits[wrong]), abs=1e-4)
    np.testing.assert_allclose(components(ds).sum("component"), ds.logit_diff, atol=1e-4)
    assert components(ds).sizes["component"] == 3 + model.cfg.n_layers * (model.cfg.n_heads + 2)


def test_agrees_with_transformer_lens(model, task):
    ds, L, H = head_attribution(model, task), model.cfg.n_layers, model.cfg.n_heads
    for i in range(min(3, len(task))):
        tokens, correct, wrong = alone(task, i)
        with torch.no_grad():
            heads = direct_logit_attribution(model, tokens, correct, wrong, unit="head")
            parts = direct_logit_attribution(model, tokens, correct, wrong, unit="component")
        assert heads.labels[: L * H] == [f"L{l}H{h}" for l in range(L) for h in range(H)]
        np.testing.assert_allclose(ds.attribution.values[..., i].ravel(), heads.attribution[: L * H, 0], atol=1e-4)
        theirs = dict(zip(parts.labels, parts.attribution[:, 0].tolist()))
        ours = {"embed": ds.embed, "pos_embed": ds.pos_embed}
        for l in range(L):
            ours[f"{l}_mlp_out"] = ds.mlp.sel(layer=l)
            ours[f"{l}_attn_out"] = ds.attribution.sel(layer=l).sum("head") + ds.attn_bias.sel(layer=l)
        assert set(ours) == set(theirs)
        for label, value in ours.items():
            assert float(value[i]) == pytest.approx(theirs[label], abs=1e-4), label


@pytest.mark.parametrize("measure", [head_attribution, attention, name_projection])
def test_padding_and_batches_change_nothing(tiny, measure):
    task = TASKS["ioi"](tiny.tokenizer, 7)
    whole, small = measure(tiny, task), measure(tiny, task, batch_size=3)
    for v in whole.data_vars:
        np.testing.assert_allclose(small[v], whole[v], atol=1e-5, err_msg=v)
    for i in range(len(task)):
        one = measure(tiny, task[i])
        for v in (v for v in whole.data_vars if "prompt" in whole[v].dims):
            np.testing.assert_allclose(
                one[v].isel(prompt=0), whole[v].isel(prompt=i), atol=1e-5, err_msg=f"{v} of prompt {i}"
            )


def test_other_answer_other_sign(tiny):
    from dataclasses import replace

    task = TASKS["mrs"](tiny.tokenizer, 5)
    there = head_attribution(tiny, task)
    back = head_attribution(tiny, replace(task, correct=task.wrong, wrong=task.correct))
    np.testing.assert_allclose(components(there), -components(back), atol=1e-6)


def test_same_settings_same_result(tiny):
    task = TASKS["mrs"](tiny.tokenizer, 5)
    for measure in (head_attribution, attention, name_projection):
        xr.testing.assert_identical(measure(tiny, task), measure(tiny, TASKS["mrs"](tiny.tokenizer, 5)))


def test_a_final_norm_that_is_not_folded_is_part_of_the_sum(tiny):
    task = TASKS["mrs"](tiny.tokenizer, 3)
    rows, end = torch.arange(3), task.positions["END"]
    usual = head_attribution(tiny, task)
    try:
        tiny.ln_final.weight.data.mul_(1.5)
        y = tiny(task.clean_tokens)[rows, end]
        ds = head_attribution(tiny, task)
    finally:
        tiny.ln_final.weight.data.div_(1.5)
    np.testing.assert_allclose(components(ds).sum("component"), y[rows, task.correct] - y[rows, task.wrong], atol=1e-4)
    np.testing.assert_allclose(ds.attribution, 1.5 * usual.attribution, atol=1e-5)


def test_a_model_that_is_not_understood_is_refused_with_the_reason(tiny, monkeypatch):
    from namemovers.engine import ready

    def lost(model):
        raise ValueError("its MLP is a Router, not one map in and one out")

    monkeypatch.setattr(ready, "weights_of", lost)
    monkeypatch.setattr(ready, "_known", {})
    task = TASKS["mrs"](tiny.tokenizer, 3)
    for measure in (head_attribution, name_projection):
        with pytest.raises(ValueError, match="cannot be read part by part, for its MLP is a Router, .*; use a decoder"):
            measure(tiny, task)


def test_attention_is_the_models_own(model, task):
    ds = attention(model, task)
    assert "pattern" not in ds and list(ds.position.values) == list(task.positions)
    tokens, _, _ = alone(task, 2)
    with torch.no_grad():
        cache = model.run_with_cache(tokens)[1]
    for l in range(model.cfg.n_layers):
        row = cache[f"blocks.{l}.attn.hook_pattern"][0, :, -1]
        for name, at in task.positions.items():
            np.testing.assert_allclose(ds.attention.sel(layer=l, position=name, prompt=2), row[:, at[2]], atol=1e-5)


def test_pattern_of_one_prompt(tiny):
    task = TASKS["ioi"](tiny.tokenizer, 7)[3]
    ds = attention(tiny, task)
    assert ds.pattern.sizes["query"] == int(task.lengths[0])
    np.testing.assert_allclose(ds.pattern.sum("key"), 1, atol=1e-5)
    assert float(ds.pattern.where(ds.key > ds["query"]).max()) == 0
    for name, at in task.positions.items():
        np.testing.assert_allclose(
            ds.pattern.isel(query=-1, key=int(at)), ds.attention.sel(position=name).isel(prompt=0), atol=1e-6
        )
    assert "".join(ds.key_token.values[1:]) == task.clean[0]
    assert list(ds.key_token.values) == list(ds.query_token.values)


def test_subjects_are_said_with_a_space(tiny):
    task = TASKS["mrs"](tiny.tokenizer, 4)
    assert subject_positions(task) == ["S1", "S2", "S3", "S4"]
    assert subject_positions(TASKS["ioi"](tiny.tokenizer, 4)) == ["IO", "S1", "S2"]
    ids = name_ids(tiny.tokenizer, task)
    for i in range(4):
        assert ids[i].tolist() == [name_token(tiny.tokenizer, task.names[i][s]) for s in ("S1", "S2", "S3", "S4")]
    assert (ids[:, 0] != task.clean_tokens[:, 1]).all()  # S1 opens the text, where it has no space
    assert (ids[:, 3] == task.correct).all() and (ids[:, 2] == task.wrong).all()


def test_projection_against_the_heads_own_output(model):
    task = TASKS["mrs_lengths"](model.tokenizer, 4)
    ds, ids = name_projection(model, task), name_ids(model.tokenizer, task)
    names = subject_positions(task)
    for i in range(2):
        tokens, _, _ = alone(task, i)
        with torch.no_grad():
            cache = model.run_with_cache(tokens)[1]
        for l in range(model.cfg.n_layers):
            out = torch.einsum("hk,hkd->hd", cache[f"blocks.{l}.attn.hook_z"][0, -1], model.W_O[l])
            for k, name in enumerate(names):
                np.testing.assert_allclose(
                    ds.projection.sel(layer=l, name=name, prompt=i), out @ model.W_U[:, ids[i, k]], atol=2e-4
                )


def test_projection_and_attribution_tell_the_same(tiny):
    task = TASKS["mrs"](tiny.tokenizer, 6)
    p, a = name_projection(tiny, task), head_attribution(tiny, task)
    ours = (p.projection.sel(name="S4") - p.projection.sel(name="S3")) / p.scale
    np.testing.assert_allclose(ours, a.attribution, atol=1e-5)
    by_hooks = attention(tiny, task).attention.sel(
        position="S2"
    )  # the other is the engine's: equal to float32 rounding
    np.testing.assert_allclose(p.attention.sel(name="S2"), by_hooks, atol=1e-7)


def test_correlation(tiny):
    ds = name_projection(tiny, TASKS["mrs"](tiny.tokenizer, 12))
    for l, h in [(0, 1), (2, 3)]:
        x, y = (ds[v].sel(layer=l, head=h).values.ravel() for v in ("attention", "projection"))
        assert float(ds.correlation.sel(layer=l, head=h)) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert bool(((ds.low <= ds.correlation) & (ds.correlation <= ds.high)).all())
    one = name_projection(tiny, TASKS["mrs"](tiny.tokenizer, 12)[0])
    assert bool(one.low.isnull().all()) and bool(one.correlation.notnull().all())


def summary(mean, significant):
    mean, significant = np.array(mean, float), np.array(significant)
    cells = ("layer", "head")
    data = dict(
        mean=(cells, mean),
        low=(cells, mean - 1),
        high=(cells, mean + 1),
        significant=(cells, significant),
        n=(cells, np.full(mean.shape, 9)),
    )
    return xr.Dataset(data, coords=dict(layer=range(mean.shape[0]), head=range(mean.shape[1])))


def test_agreement_verdicts():
    a = summary([[2.0, 1.0, 0.0], [-1.0, 0.5, 0.1]], [[True, True, False], [True, False, False]])
    p = summary([[0.8, -0.2, 0.3], [0.0, 0.0, 0.0]], [[True, True, True], [False, False, False]])
    table = agreement(a, p).set_index("head")
    assert table.verdict.to_dict() == {
        "L0H0": "both",
        "L0H1": "opposite",
        "L0H2": "patching only",
        "L1H0": "attribution only",
    }
    assert table.index[0] == "L0H0" and table.index[-1] == "L0H2"  # ordered by the larger share of either maximum
    assert table.loc["L0H1", ["attribution", "patching"]].tolist() == [1.0, -0.2]
    assert set(agreement(a, p, least=0.6)["head"]) == {"L0H0"}  # a significant mean may still be negligible


def test_leading_heads_are_significant_where_any_is():
    s = summary([[2.0, 1.0, 0.0], [-1.0, 0.5, 3.0]], [[True, False, False], [True, False, True]])
    assert leading_heads(s, 3) == [(1, 2), (0, 0), (1, 0)]
    assert leading_heads(s, 1) == [(1, 2), (1, 0)]
    nothing = summary([[2.0, 1.0, 0.0], [-1.0, 0.5, 3.0]], np.zeros((2, 3), bool))
    assert leading_heads(nothing, 2) == [(1, 2), (0, 0), (1, 0)]


def test_name_figure_holds_every_point(tiny):
    ds = name_projection(tiny, TASKS["mrs"](tiny.tokenizer, 6))
    heads = [(0, 1), (2, 3), (1, 0), (1, 2)]
    fig = name_figure(ds, heads, title="x")
    assert len(fig.data) == 4 * len(heads) and len({trace.name for trace in fig.data}) == 4
    np.testing.assert_allclose(fig.data[7].x, ds.attention.sel(layer=2, head=3, name="S4"))
    np.testing.assert_allclose(fig.data[7].y, ds.projection.sel(layer=2, head=3, name="S4"))
    assert [a.text.split(":")[0] for a in fig.layout.annotations] == ["L0H1", "L2H3", "L1H0", "L1H2"]
