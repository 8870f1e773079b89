"""The logit lens against TransformerLens's own tools, and against itself."""

import numpy as np
import pytest
import torch
import xarray as xr

from namemovers.data import ioi_task, mrs_task
from namemovers.logit_lens import layer_contributions, logit_lens, reached, read_contributions, read_lens, top_tokens

N = 6


def tasks(model, n=N):
    return [mrs_task(model.tokenizer, n=n), ioi_task(model.tokenizer, n=n)]


def tiny_share(d_vocab):
    """Ranks that rounding may exchange among logits that are almost equal: one in 20,000, so none in a small
    vocabulary."""
    return d_vocab // 20_000


def assert_agrees(model, task):
    """Stage by stage and part by part, each prompt run alone and unpadded through TransformerLens's tools."""
    from transformer_lens.tools.analysis import direct_logit_attribution
    from transformer_lens.tools.analysis import logit_lens as reference

    ds = logit_lens(model, task)
    for i in range(len(task)):
        tokens = task.clean_tokens[i : i + 1, : int(task.lengths[i])]
        right, wrong = int(task.correct[i]), int(task.wrong[i])
        ref = reference(model, tokens, incl_mid=True, targets=[right, wrong], positions=-1)
        values = ref.values.reshape(len(ds.stage), 2)
        np.testing.assert_allclose(ds.logit_diff.isel(prompt=i), values[:, 0] - values[:, 1], atol=1e-4)
        near_ties = tiny_share(model.cfg.d_vocab)
        np.testing.assert_allclose(
            ds["rank"].isel(prompt=i), ref.rank_trajectory(right).reshape(-1) + 1, atol=near_ties
        )
        prob = reference(
            model, tokens, incl_mid=True, targets=[right], positions=-1, return_type="probs"
        ).values.reshape(-1)
        np.testing.assert_allclose(ds.probability.isel(prompt=i), prob, atol=1e-5)
        dla = direct_logit_attribution(model, tokens, right, wrong)
        ours = {str(c): float(v) for c, v in zip(ds.component.values, ds.contribution.isel(prompt=i).values)}
        names = {"embed": "embed", "pos_embed": "pos_embed"} | {
            f"{l}_{k}_out": f"{k} {l}" for l in range(model.cfg.n_layers) for k in ("attn", "mlp")
        }
        assert set(names) == set(dla.labels)
        for label, value in zip(dla.labels, dla.attribution.reshape(-1).tolist()):
            assert ours[names[label]] == pytest.approx(value, abs=1e-4), label


@pytest.mark.parametrize("which", [0, 1], ids=["mrs", "ioi"])
def test_agrees_with_transformer_lens(tiny, which):
    assert_agrees(tiny, tasks(tiny)[which])


@pytest.mark.parametrize("which", [0, 1], ids=["mrs", "ioi"])
def test_agrees_on_mini(mini, which):
    assert_agrees(mini, tasks(mini)[which])


@pytest.mark.parametrize("which", [0, 1], ids=["mrs", "ioi"])
def test_agrees_on_gpt2_shape(gpt2_shape, which):
    assert_agrees(gpt2_shape, tasks(gpt2_shape, n=3)[which])


def test_contributions_sum_to_the_models_logit_difference(tiny):
    for task in tasks(tiny):
        ds = logit_lens(tiny, task)
        for i in range(N):
            logits = tiny(task.clean_tokens[i : i + 1, : int(task.lengths[i])])[0, -1]
            total = float(logits[task.correct[i]] - logits[task.wrong[i]])
            assert float(ds.contribution.isel(prompt=i).sum()) == pytest.approx(total, abs=1e-4)
            assert float(ds.clean[i]) == pytest.approx(total, abs=1e-4)
            assert float(ds.logit_diff.isel(stage=-1, prompt=i)) == pytest.approx(total, abs=1e-4)
            spoilt = tiny(task.corrupted_tokens[i : i + 1, : int(task.lengths[i])])[0, -1]
            assert float(ds.corrupted[i]) == pytest.approx(
                float(spoilt[task.correct[i]] - spoilt[task.wrong[i]]), abs=1e-4
            )


def test_padding_and_batches_change_nothing(tiny):
    task = ioi_task(tiny.tokenizer, n=8)
    whole = logit_lens(tiny, task)
    one = logit_lens(tiny, task, batch_size=3)
    for v in ("logit_diff", "rank", "probability", "contribution", "clean", "corrupted"):
        np.testing.assert_allclose(whole[v], one[v], atol=1e-5)
    alone = xr.concat([logit_lens(tiny, task.subset([i])) for i in range(8)], "prompt")
    np.testing.assert_allclose(whole.logit_diff, alone.logit_diff.transpose("stage", "prompt"), atol=1e-5)
    assert len(set(task.lengths.tolist())) > 1, "the prompts should differ in length for this test to say anything"


def test_same_result_twice(tiny):
    a, b = (logit_lens(tiny, mrs_task(tiny.tokenizer, n=4)) for _ in range(2))
    xr.testing.assert_identical(a, b)


def test_shapes_and_what_goes_with_them(tiny):
    task = mrs_task(tiny.tokenizer, n=4)
    ds = logit_lens(tiny, task, top=3)
    layers = tiny.cfg.n_layers
    assert ds.logit_diff.dims == ("stage", "prompt") and ds.sizes["stage"] == 1 + 2 * layers
    assert ds.sizes["component"] == 3 + 2 * layers
    assert ds.attrs["task"] == "mrs" and ds.attrs["n"] == 4 and len(ds.attrs["weights_hash"]) == 64
    parts = layer_contributions(ds)
    assert parts["attention"].dims == ("layer", "prompt") and parts["MLP"].sizes["layer"] == layers
    np.testing.assert_array_equal(parts["MLP"].sel(layer=1), ds.contribution.sel(component="mlp 1"))
    assert top_tokens(ds, 1).shape == (1 + 2 * layers, 4)
    best = tiny(task.clean_tokens[:1, : int(task.lengths[0])])[0, -1].argmax()
    assert ds.top_token.values[-1, 0, 0] == tiny.tokenizer.decode([int(best)])
    assert bool(((ds["rank"] == 1).isel(stage=-1) == ds.preferred).all())


def test_without_ranks_the_vocabulary_is_never_built(tiny, monkeypatch):
    from namemovers.logit_lens import baseline

    task = mrs_task(tiny.tokenizer, n=4)
    whole = logit_lens(tiny, task)
    for builds_it in ("_logits", "run_at_end"):
        monkeypatch.setattr(f"namemovers.logit_lens.{builds_it}", None)
    few = logit_lens(tiny, task, top=0)
    assert set(few.data_vars) == {"logit_diff", "contribution", "clean", "corrupted"}
    for name in few.data_vars:
        np.testing.assert_allclose(few[name], whole[name], atol=1e-5)
    for read in (baseline, read_lens):
        with pytest.raises(ValueError, match="ds: this result has no 'rank'"):
            read(few)
    with pytest.raises(ValueError, match="top: -1 is no such number; give a whole number of at least 0"):
        logit_lens(tiny, task, top=-1)


def test_leaves_the_model_as_it_was(tiny):
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    logit_lens(tiny, mrs_task(tiny.tokenizer, n=2))
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())
    assert not any(len(h._forward_hooks) for h in tiny.hook_dict.values())


def test_refuses_a_model_that_is_not_folded(tiny_folder):
    from transformer_lens.model_bridge import TransformerBridge

    raw = TransformerBridge.boot_transformers(str(tiny_folder), device="cpu")
    with pytest.raises(ValueError, match="compatibility mode"):
        logit_lens(raw, mrs_task(raw.tokenizer, n=2))


def test_refuses_parts_that_do_not_sum(tiny, monkeypatch):
    import namemovers.logit_lens as module

    parts = module._parts
    monkeypatch.setattr(module, "_parts", lambda model: parts(model)[:-1])
    with pytest.raises(ValueError, match="sum to another logit difference"):
        logit_lens(tiny, mrs_task(tiny.tokenizer, n=2))


# The words, on numbers made up, a little on either side of each threshold


def made(diff, contribution=None):
    """A lens of one prompt: the logit difference by stage, and what the parts of one layer add."""
    stages = ["embed", *(f"{l} {at}" for l in range(len(diff) // 2) for at in ("mid", "post"))]
    parts = {"embed": 0.0, "pos_embed": 0.0, "attn 0": diff[-1], "mlp 0": 0.0, "bias": 0.0} | (contribution or {})
    return xr.Dataset(
        dict(
            logit_diff=(("stage", "prompt"), np.array(diff, float)[:, None]),
            rank=(("stage", "prompt"), np.ones((len(diff), 1), int)),
            contribution=(("component", "prompt"), np.array(list(parts.values()))[:, None]),
            clean=("prompt", [sum(parts.values())]),
        ),
        coords=dict(stage=stages, component=list(parts), prompt=[0]),
    )


@pytest.mark.parametrize("before, stage", [(0.49, "0 post"), (0.51, "0 mid")])
def test_the_stage_from_which_half_is_there(before, stage):
    assert reached(made([0, before, 1.0])) == stage


def test_a_stage_that_is_left_again_does_not_count():
    assert reached(made([0, 0.6, 0.4, 0.7, 1.0])) == "1 mid"
    assert reached(made([0, 1, 0])) is None and reached(made([0, 1, -1])) is None
    assert reached(made([0, 0.85, 1.0]), 0.9) == "0 post" and reached(made([0, 0.95, 1.0]), 0.9) == "0 mid"


@pytest.mark.parametrize("peak, said", [(1.09, False), (1.11, True)])
def test_a_peak_is_told_where_it_is_a_tenth_above_the_end(peak, said):
    assert ("It is highest after layer 0's attention" in read_lens(made([0, peak, 1.0]))) == said


@pytest.mark.parametrize(
    "ranks, said",
    [
        ((9, 1, 9, 1, 1), "The right answer is first of all tokens as from layer 1's attention."),
        ((1, 1, 1, 1, 1), "The right answer is first of all tokens as from the embedding."),
        ((9, 9, 9, 9, 1), "The right answer is first of all tokens as from layer 1's MLP."),
        ((9, 1, 1, 9, 2), "The right answer is first of all tokens after layer 0's MLP, but not at the end."),
        ((9, 2, 3, 9, 2), "The right answer is never first of all tokens."),
    ],
)
def test_from_where_the_answer_is_first_of_all_tokens(ranks, said):
    lens = made([0, 0.2, 0.4, 0.6, 1.0])
    lens["rank"][:, 0] = list(ranks)
    assert read_lens(lens).endswith(said)
    many = xr.concat([lens, lens, lens.assign(rank=xr.full_like(lens["rank"], 5))], "prompt", data_vars="all")
    assert read_lens(many).endswith(said.replace("The right", "For most prompts the right"))


@pytest.mark.parametrize("against, said", [(-0.045, False), (-0.06, True)])
def test_of_one_prompt_parts_of_a_twentieth_are_told(against, said):
    text = read_contributions(made([0, 0, 1.0], {"mlp 0": against}))
    assert ("Against it: layer 0's MLP" in text) == said and ("No part is much against it" in text) != said
