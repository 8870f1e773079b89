"""The engine on every family of decoders, against plain forward hooks on transformers' own modules."""

import numpy as np
import pytest
import torch

from decoders import ALSO, CONFIGS, EXACT, VOCABULARY, WHERE, catch, loaded, patched_logits, places
from test_activation_patching import made_task
from namemovers.engine.forward import embed, forward, logits
from namemovers.engine.ready import ready, why_not
from namemovers.engine.sweep import run_sets, sweep
from namemovers.head_attribution import components, head_attribution, name_projection
from namemovers.model import load_model
from namemovers.pairs import Pairs, Question
from namemovers.sites import HEAD_SITES, STREAM_SITES, Cell, head_axis

END = torch.tensor([13, 12, 13, 11])
CORRECT, WRONG = torch.tensor([5, 6, 7, 8]), torch.tensor([15, 16, 17, 18])


@pytest.fixture(scope="session", params=[*EXACT, *ALSO])
def family(request, tmp_path_factory):
    "(name, transformers' model, the same as a TransformerBridge)"
    return loaded(request.param, tmp_path_factory.mktemp(request.param))


def pairs(direction="denoise"):
    "Four prompts of several lengths whose runs differ at one place or two."
    clean = torch.randint(3, VOCABULARY, (4, 14), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[0, 3], corrupted[1, 5], corrupted[1, 8], corrupted[2, 0] = 7, 9, 10, 5
    return Pairs(clean, corrupted, END, CORRECT, WRONG, direction)


def answers(y):
    at_end = y[torch.arange(4), END]
    return (at_end.gather(1, CORRECT[:, None]) - at_end.gather(1, WRONG[:, None]))[:, 0]


def test_logits_are_those_of_the_plain_model(family):
    name, plain, model = family
    assert why_not(model, 40) is None
    tokens = torch.randint(3, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))
    w = ready(model, length=40)
    ours = logits(w, forward(w, embed(w, tokens)).final)
    theirs = plain(tokens, use_cache=False).logits
    assert (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max() < 1e-4


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_every_site_against_plain_hooks(family, direction):
    name, plain, model = family
    asked, later = pairs(direction), torch.tensor([4, 7, 9, 11])
    compared = 0
    for site in WHERE:
        heads = range(head_axis(model, site)[1]) if site in HEAD_SITES else [3] if site == "neurons" else [None]
        todo = [Cell(layer, head, at) for layer in range(model.cfg.n_layers) for head in heads for at in (None, later)]
        expected = [patched_logits(plain, site, cell, asked.base, asked.donor, model.cfg.d_head) for cell in todo]
        if expected[0] is None:
            continue  # the family computes queries, keys and values in one map
        ours = sweep(model, asked, site, todo)[0]
        assert (ours - torch.stack([answers(y) for y in expected])).abs().max() < 1e-4, site
        compared += 1
    assert compared >= 6


def test_patch_of_everything_and_of_nothing(family):
    name, plain, model = family
    for direction in ("denoise", "noise"):
        asked = pairs(direction)
        own = (
            answers(plain(asked.clean, use_cache=False).logits),
            answers(plain(asked.corrupted, use_cache=False).logits),
        )
        values, clean, corrupted = sweep(model, asked, "resid_pre", [Cell(0)])
        donor = asked.base_first(clean, corrupted)[1]
        assert (values[0] - donor).abs().max() < 1e-4
        assert (clean - own[0]).abs().max() < 1e-4 and (corrupted - own[1]).abs().max() < 1e-4
        nothing = run_sets(model, asked, [[]])[0][0]
        assert (nothing - asked.base_first(clean, corrupted)[0]).abs().max() < 1e-4
        alike = Pairs(asked.clean, asked.clean, END, CORRECT, WRONG, direction)
        for site in ("z", "k", "mlp_out"):
            assert (sweep(model, alike, site, [Cell(1, 0)])[0][0] - own[0]).abs().max() < 1e-4


def test_sets_of_one_are_single_patches(family):
    name, plain, model = family
    asked = pairs()
    for site in (*STREAM_SITES, *HEAD_SITES, "neurons"):
        if site == "resid_mid" and model.cfg.parallel_attn_mlp:
            continue
        todo = [Cell(layer, None if site in STREAM_SITES else 0) for layer in range(model.cfg.n_layers)]
        single = sweep(model, asked, site, todo)[0]
        assert (run_sets(model, asked, [[(site, cell)] for cell in todo])[0] - single).abs().max() < 1e-4, site


@pytest.mark.parametrize("metric", ["logit_diff", "logit", "prob", "kl"])
def test_metrics_are_of_the_models_own_logits(family, metric):
    name, plain, model = family
    asked, cell = pairs(), Cell(1, 0)
    y = patched_logits(plain, "z", cell, asked.base, asked.donor, model.cfg.d_head)[torch.arange(4), END]
    clean = plain(asked.clean, use_cache=False).logits[torch.arange(4), END].log_softmax(-1)
    expected = {
        "logit_diff": lambda: y.gather(1, CORRECT[:, None])[:, 0] - y.gather(1, WRONG[:, None])[:, 0],
        "logit": lambda: y.gather(1, CORRECT[:, None])[:, 0],
        "prob": lambda: y.softmax(-1).gather(1, CORRECT[:, None])[:, 0],
        "kl": lambda: (clean.exp() * (clean - y.log_softmax(-1))).sum(-1),
    }[metric]()
    ours = sweep(model, asked, "z", [cell], Question(metric))[0][0]
    assert (ours - expected).abs().max() < 1e-4


def test_windows_are_seen(family):
    "A window that the engine did not know of would be a silent wrong number: the prompts are longer than it."
    name, plain, model = family
    w = ready(model)
    told = [L.window for L in w.layers]
    config = CONFIGS[name]()
    expected = getattr(config, "sliding_window", None) or (config.window_size if name == "gptneo" else None)
    if name == "qwen2":
        expected = None
    assert {window for window in told if window is not None} == ({expected} - {None})


def test_a_forward_from_the_middle(family):
    name, plain, model = family
    w, tokens = ready(model), pairs().clean
    whole = forward(w, embed(w, tokens), keep=("resid_pre", "k", "v"))
    for layer in range(w.n_layers):
        part = forward(w, whole["resid_pre"][layer][:, 6:], layer, whole, 6)
        assert (part.final - whole.final[:, 6:]).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "gemma3"], indirect=True)
def test_shared_keys_and_values_have_names_of_their_own(family, tmp_path):
    from namemovers.activation_patching import part_table, patch
    from namemovers.data import ioi_task
    from namemovers.plots import heatmap
    from namemovers.results import load, save
    from namemovers.stats import head_name, heads_in_words, kv_head_name, summarise, top_heads
    import dataclasses

    name, plain, model = family
    asked = pairs()
    task = ioi_task(load_model("mini").tokenizer, n=4)
    task = dataclasses.replace(
        task,
        clean_tokens=asked.clean,
        corrupted_tokens=asked.corrupted,
        correct=CORRECT,
        wrong=WRONG,
        positions={"END": END},
        lengths=END + 1,
        tokenizer=model.tokenizer,
    )
    n_kv = head_axis(model, "k")[1]
    found = {site: patch(model, task, site) for site in HEAD_SITES}
    for site in "kv":
        ds = found[site]
        assert ds.effect.dims == ("layer", "kv_head", "prompt") and ds.sizes["kv_head"] == n_kv < model.cfg.n_heads
        save(ds, f"{name}_{site}", tmp_path)
        assert load(f"{name}_{site}", tmp_path).effect.identical(ds.effect)
        s = summarise(ds.logit_diff)
        layer, head = top_heads(s, 1)[0]
        assert heads_in_words(s, [(layer, head)]).startswith(kv_head_name(layer, head) + " ")
        fig = heatmap(s)
        assert "key-value head" in fig.layout.xaxis.title.text and "L0KV0" in str(fig.data[0].customdata[0][0])
        by_position = patch(model, task, site, by="head_position")
        assert by_position.effect.dims == ("layer", "kv_head", "position", "prompt")
    assert kv_head_name(9, 1) == "L9KV1" and head_name(9, 1) == "L9H1"
    summaries = {site: summarise(ds.logit_diff) for site, ds in found.items()}
    table = part_table(summaries, [(1, 0), (1, 3)])
    group = model.cfg.n_heads // n_kv
    for row, head in enumerate((0, 3)):
        at = head // group
        mean = float(summaries["k"]["mean"].sel(layer=1, kv_head=at))
        assert table["k"][row].endswith(f"(L1KV{at})")
        assert table["k"][row].startswith(f"{mean:.2f}".replace("-", "−"))
    assert not (table == "–").any().any()


def test_the_unembedding_sees_one_position(family):
    "Logits of all positions would be most of a run's memory."
    from namemovers.model import run_at_end

    name, plain, model = family
    tokens, seen = pairs().clean, []

    def look(value, hook):
        seen.append(tuple(value.shape))

    expected = model(tokens)[torch.arange(4), END]
    logits, kept = run_at_end(model, tokens, END, ["ln_final.hook_out"], hooks=[("unembed.hook_out", look)])
    assert seen == [(4, 1, expected.shape[-1])]
    assert kept["ln_final.hook_out"].shape == (4, model.cfg.d_model)
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)


def test_parts_sum_to_the_plain_models_logit_difference(family):
    "Before the cap, where logits are capped; what the model gives is after it."
    name, plain, model = family
    task, rows = made_task(model), torch.arange(4)
    y = plain(task.clean_tokens, use_cache=False).logits[rows, task.positions["END"]].double()
    ds = head_attribution(model, task)

    def difference(y):
        return (y[rows, task.correct] - y[rows, task.wrong]).numpy()

    assert abs(ds.logit_diff - difference(y)).max() < 1e-4
    if name == "gemma2":
        y = 3.0 * torch.atanh(y / 3.0)
        assert abs(ds.before_cap - difference(y)).max() < 1e-2 and abs(ds.before_cap - ds.logit_diff).max() > 0.1
        assert ds.attrs["logit_cap"] == "parts sum to before_cap"
    assert abs(components(ds).sum("component") - difference(y)).max() < (1e-2 if name == "gemma2" else 1e-4)
    assert float(abs(ds.attribution).max()) > 0.01
    assert ds.attrs.get("norms_after") == ("scale frozen" if name in ("gemma2", "gemma3", "olmo2") else None)


def test_a_heads_share_by_plain_hooks(family):
    """With an RMSNorm each number of what it reads is multiplied by one factor, `norm(x) / x`: that of the run, when
    its scale is frozen."""
    name, plain, model = family
    if (
        not hasattr(plain, "model")
        or "RMS" not in type(plain.model.norm if hasattr(plain.model, "norm") else None).__name__
    ):
        return
    task, rows = made_task(model), torch.arange(4)
    end, d = task.positions["END"], model.cfg.d_head
    seen, handles = {}, []

    def keep(key, module, before):
        def look(t):
            seen[key] = t[rows, end].double() if t.dim() == 3 else t.view(4, -1, t.shape[-1])[rows, end].double()
            return t

        handles.append(catch(module, before, look))

    for l, p in enumerate(places(plain)):
        keep((l, "z"), p.o, True)
        keep((l, "raw"), p.o, False)
        keep((l, "out"), p.attn_out, False)
    keep("x", plain.model.norm, True)
    keep("y", plain.model.norm, False)
    plain(task.clean_tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    U = plain.get_output_embeddings().weight.double()
    toward = (U[task.correct] - U[task.wrong]) * (seen["y"] / seen["x"]) / getattr(plain.config, "logits_scaling", 1)
    toward = toward * getattr(plain.config, "residual_multiplier", 1)
    ds = head_attribution(model, task)
    for l, p in enumerate(places(plain)):
        z = seen[l, "z"].view(4, -1, d)  # [prompt, head, d_head]
        if p.v is not None and p.v.bias is not None:  # folded into what attention writes beside its heads
            own = p.v.bias.double().view(-1, d)
            z = z - own.repeat_interleave(z.shape[1] // len(own), 0)
        W_O = p.o.weight.double().T.view(-1, d, U.shape[1])
        factor = seen[l, "out"] / seen[l, "raw"] if p.attn_out is not p.o else 1.0
        expected = torch.einsum("phc,hcd,pd->hp", z, W_O, toward * factor)
        assert abs(ds.attribution.sel(layer=l) - expected.numpy()).max() < 1e-4


def test_projection_of_a_name_and_attribution_tell_the_same(family, monkeypatch):
    import namemovers.head_attribution as module

    name, plain, model = family
    task = made_task(model)
    both = torch.stack([task.correct, task.wrong], 1)
    monkeypatch.setattr(module, "subject_positions", lambda task: ["D0", "D1"])
    monkeypatch.setattr(module, "name_ids", lambda *_: both)
    ds = name_projection(model, task, n_resamples=10)
    ours = (ds.projection.isel(name=0) - ds.projection.isel(name=1)) / ds.scale
    assert abs(ours - head_attribution(model, task).attribution).max() < 1e-4


def test_two_logits_by_hooks_are_the_models_own_and_build_no_vocabulary(family):
    from namemovers.model import columns_at_end

    name, plain, model = family
    asked, seen = pairs(), []
    columns = torch.stack([CORRECT, WRONG, CORRECT + 1], 1)
    expected = model(asked.clean)[torch.arange(4), END].gather(1, columns)

    def look(value, hook):
        seen.append(tuple(value.shape))

    logits, kept = columns_at_end(model, asked.clean, END, columns, ["ln_final.hook_out"], [("unembed.hook_out", look)])
    assert seen == [(1, 1, VOCABULARY)] and kept["ln_final.hook_out"].shape == (4, model.cfg.d_model)
    assert (logits - expected).abs().max() < 1e-4


def test_hooks_and_engine_tell_the_same(family):
    "For every metric; what reads two logits builds no more than one row of the vocabulary."
    from namemovers.activation_patching import run_hooks

    name, plain, model = family
    asked, todo = pairs("noise"), [Cell(1, 0), Cell(2, 1)]
    for metric in ("logit_diff", "logit", "prob", "rank", "kl"):
        by_hooks = run_hooks(model, asked, "z", todo, Question(metric))
        for ours, theirs in zip(by_hooks, sweep(model, asked, "z", todo, Question(metric))):
            assert (ours - theirs).abs().max() < 1e-4


def test_the_lens_sums_to_the_plain_models_logit_difference(family):
    from namemovers.logit_lens import logit_lens

    name, plain, model = family
    if name == "granite":  # its parts are multiplied on their way
        with pytest.raises(ValueError, match="its layers cannot be read apart"):
            logit_lens(model, made_task(model))
        return
    task, rows = made_task(model), torch.arange(4)
    y = plain(task.clean_tokens, use_cache=False).logits[rows, task.positions["END"]].double()
    ds = logit_lens(model, task)
    few = logit_lens(model, task, top=0)
    assert "rank" not in few and "preferred" not in few
    for part in few.data_vars:  # of the same sums in another order
        np.testing.assert_allclose(few[part], ds[part], atol=1e-4 * max(1, float(abs(ds[part]).max())))
    assert abs(ds.clean - (y[rows, task.correct] - y[rows, task.wrong]).numpy()).max() < 1e-4
    assert abs(ds.logit_diff.isel(stage=-1) - ds.clean).max() < 1e-4
    assert abs(ds.probability.isel(stage=-1) - y.softmax(-1)[rows, task.correct].numpy()).max() < 1e-4
    if name == "gemma2":
        y = 3.0 * torch.atanh(y / 3.0)
        assert abs(ds.before_cap - ds.clean).max() > 0.1
    assert abs(ds.contribution.sum("component") - (y[rows, task.correct] - y[rows, task.wrong]).numpy()).max() < 1e-2


@pytest.mark.filterwarnings("ignore:No effect can be given")
def test_circuits_of_all_edges_of_none_and_of_all_but_one(family):
    "The clean run, the corrupted run, and one path patched."
    from namemovers.circuits import graph, run_edges
    from namemovers.path_patching import path_patch

    name, plain, model = family
    task, g, rows = made_task(model, n=2), graph(model), torch.arange(2)
    edge = "L0H1 → L2KV0 k" if g.shared else "L0H1 → L2H0 k"
    found = run_edges(model, task, {"all": g.labels, "none": [], "one": [e for e in g.labels if e != edge]}).logit_diff
    for circuit, tokens in (("all", task.clean_tokens), ("none", task.corrupted_tokens)):
        y = plain(tokens, use_cache=False).logits[rows, task.positions["END"]]
        assert abs(found.sel(circuit=circuit) - (y[rows, task.correct] - y[rows, task.wrong]).numpy()).max() < 1e-4
    path = path_patch(model, task, [(0, 1)], [(2, 0)], "k", direction="noise").logit_diff
    assert abs(found.sel(circuit="one").values - path.values.ravel()).max() < 1e-4
    assert abs(found.sel(circuit="one") - found.sel(circuit="all")).max() > 1e-6
