"""Copy scores: against the definition written out head by head, against the unfolded weights, and on heads built to
copy."""

import numpy as np
import pytest
import torch
import xarray as xr

from namemovers.copy_scores import copy_scores, heads_above, names_table, shipped_names, task_copy_scores
from namemovers.data import ioi_task, mrs_task, name_token
from namemovers.head_attribution import name_ids, subject_positions

NAMES_5 = ["Mary", "John", "Tom", "Anna", "Paul"]


@pytest.fixture(params=["tiny", "mini", "gpt2_shape"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(
    "make", [lambda t: mrs_task(t, n=3, seed=2), lambda t: ioi_task(t, n=3, seed=2)], ids=["mrs", "ioi"]
)
def test_against_the_definition(model, make):
    """The definition written out, one head and name at a time, on prompts without padding, with TransformerLens's
    own parts."""
    task = make(model.tokenizer)
    top = model.cfg.d_vocab // 4  # random weights copy next to nothing into the top 5
    ds, ids = task_copy_scores(model, task, top=top), name_ids(model.tokenizer, task)
    assert 0 < float(ds.copied.mean()) < 1 and 0 < float(ds.copied_negative.mean()) < 1
    W_V, W_O, large = model.W_V, model.W_O, model.cfg.n_layers > 6
    for i in range(1 if large else len(task)):
        tokens = task.clean_tokens[i : i + 1, : int(task.lengths[i])]
        with torch.no_grad():
            resid = model.run_with_cache(tokens, names_filter="blocks.0.hook_out", return_type=None)[1][
                "blocks.0.hook_out"
            ][0]
            for k, name in enumerate(subject_positions(task)):
                x = resid[task.positions[name][i]]
                for l in (0, 5, 11) if large else range(model.cfg.n_layers):
                    for h in range(model.cfg.n_heads)[:: 4 if large else 1]:
                        out = model.blocks[l].ln1(x[None, None])[0, 0] @ W_V[l, h] @ W_O[l, h]
                        for sign, variable in ((1, ds.copied), (-1, ds.copied_negative)):
                            best = model.unembed(model.ln_final(sign * out[None, None]))[0, 0].topk(top).indices
                            assert bool(variable.sel(layer=l, head=h, name=name, prompt=i)) == (int(ids[i, k]) in best)


def test_what_heads_write_at_end(tiny):
    task = ioi_task(tiny.tokenizer, n=18, seed=3)  # more than are run together
    top = tiny.cfg.d_vocab // 4
    ds, ids = task_copy_scores(tiny, task, top=top), name_ids(tiny.tokenizer, task)
    assert 0 < float(ds.written.mean()) < 1
    for i in (0, 1, 2, 15, 16, 17):
        tokens = task.clean_tokens[i : i + 1, : int(task.lengths[i])]
        with torch.no_grad():
            cache = tiny.run_with_cache(tokens)[1]
            for l in range(3):
                out = torch.einsum("hk,hkd->hd", cache[f"blocks.{l}.attn.hook_z"][0, -1], tiny.W_O[l])
                for sign, variable in ((1, ds.written), (-1, ds.written_negative)):
                    best = tiny.unembed(tiny.ln_final(sign * out[None]))[0].topk(top).indices
                    for h in range(4):
                        found = variable.sel(layer=l, head=h, prompt=i).values.astype(bool).tolist()
                        assert found == [int(t) in best[h] for t in ids[i]]


def test_against_unfolded_weights(tiny, tiny_folder):
    "From the checkpoint as it is, with LayerNorm's weights and biases where they stand: folding changes no score."
    from transformers import GPT2LMHeadModel

    hf = GPT2LMHeadModel.from_pretrained(tiny_folder).eval()
    task = ioi_task(tiny.tokenizer, n=4, seed=4)
    ds, ids = task_copy_scores(tiny, task, top=20), name_ids(tiny.tokenizer, task)
    d, k = hf.config.n_embd, hf.config.n_embd // hf.config.n_head
    for i in range(len(task)):
        with torch.no_grad():
            x = hf(task.clean_tokens[i : i + 1], output_hidden_states=True).hidden_states[1][0]
        for j, name in enumerate(subject_positions(task)):
            at = int(task.positions[name][i])
            for l, block in enumerate(hf.transformer.h):
                normed = (x[at] - x[at].mean()) / (x[at].var(unbiased=False) + 1e-5).sqrt() * block.ln_1.weight
                for h in range(hf.config.n_head):
                    # the value bias, and LayerNorm's bias through the values, are the same for every token: no part of
                    # the score
                    out = (
                        normed
                        @ block.attn.c_attn.weight[:, 2 * d + h * k : 2 * d + (h + 1) * k]
                        @ block.attn.c_proj.weight[h * k : (h + 1) * k]
                    )
                    for sign, variable in ((1, ds.copied), (-1, ds.copied_negative)):
                        best = hf.lm_head(hf.transformer.ln_f(sign * out)).topk(20).indices
                        assert bool(variable.sel(layer=l, head=h, name=name, prompt=i)) == (int(ids[i, j]) in best)


@pytest.fixture(scope="module")
def built(tiny_folder, tmp_path_factory):
    "The tiny checkpoint with three heads rebuilt in layer 1: 0 copies, 1 writes the opposite, 2 writes nothing."
    from transformers import AutoTokenizer, GPT2LMHeadModel

    from namemovers.model import load_model

    hf = GPT2LMHeadModel.from_pretrained(tiny_folder)
    d, k = hf.config.n_embd, hf.config.n_embd // hf.config.n_head
    with torch.no_grad():
        # a residual stream that is the token's embedding alone, so that the best that a head can do is a projection of
        # it
        hf.transformer.wpe.weight.zero_()
        for p in (*hf.transformer.h[0].attn.c_proj.parameters(), *hf.transformer.h[0].mlp.c_proj.parameters()):
            p.zero_()
        attn = hf.transformer.h[1].attn
        names = [name_token(AutoTokenizer.from_pretrained(tiny_folder), n) for n in NAMES_5]
        names = hf.transformer.wte.weight[names].T
        basis = torch.zeros(d, k)
        basis[:, : len(NAMES_5)] = torch.linalg.qr(names - names.mean(0)).Q
        for h, sign in ((0, 1.0), (1, -1.0), (2, 0.0)):
            attn.c_attn.weight[:, 2 * d + h * k : 2 * d + (h + 1) * k] = basis
            attn.c_proj.weight[h * k : (h + 1) * k] = sign * basis.T
        for ln in (hf.transformer.h[1].ln_1, hf.transformer.ln_f):
            ln.weight.fill_(1), ln.bias.zero_()
    folder = tmp_path_factory.mktemp("built")
    hf.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return load_model(folder, device="cpu")


def test_heads_built_to_copy(built):
    ds = copy_scores(built, NAMES_5, n=60)
    means = ds.mean("name")
    assert means.copy_score.sel(layer=1).values[:3].tolist() == [1, 0, 0]
    assert means.negative_copy_score.sel(layer=1).values[:3].tolist() == [0, 1, 0]
    assert (ds["rank"].sel(layer=1, head=0) < 5).all()
    assert (ds["rank"].sel(layer=1, head=2) > 100).all()  # ties are no copies


def test_every_name_counts_alike(tiny):
    ds = copy_scores(tiny, NAMES_5, n=100)
    assert ds.sizes["sample"] == ds.attrs["n"] == 105  # the first multiple of 3 places x 5 names
    assert {
        (n, p): int(((ds.sample_name == n) & (ds.place == p)).sum()) for n in NAMES_5 for p in ("IO", "S1", "S2")
    } == {(n, p): 7 for n in NAMES_5 for p in ("IO", "S1", "S2")}
    np.testing.assert_allclose(ds.copy_score.mean("name"), (ds["rank"] < 5).mean("sample"))
    np.testing.assert_allclose(
        ds.negative_copy_score.sel(name="Tom"),
        (ds.rank_negative[..., ds.sample_name.values == "Tom"] < 5).mean("sample"),
    )


def test_prompts_name_two_people(tiny):
    from namemovers.copy_scores import names_in_context

    tokens, at, who = names_in_context(tiny.tokenizer, ["Mary", "John"], 30, 0)
    assert (who[:, 0] != who[:, 1]).all() and (who[:, 1] == who[:, 2]).all()
    assert tokens.shape[0] == at.shape[0] == who.shape[0] == 10


def test_names_stand_in_their_places(tiny):
    "The tokens that are scored are the names asked for: a name list of one's own never scores the shipped names."
    from namemovers import copy_scores as module

    seen = {}

    def spy(model, w, tokens, at, ids, memory):
        seen.update(tokens=tokens, at=at, ids=ids)
        return [np.zeros((model.cfg.n_layers, model.cfg.n_heads, *at.shape), int)] * 2

    original, module._ov_ranks = module._ov_ranks, spy
    try:
        copy_scores(tiny, NAMES_5, n=15)
    finally:
        module._ov_ranks = original
    assert (seen["tokens"].gather(1, seen["at"]) == seen["ids"]).all()
    assert set(seen["ids"].flatten().tolist()) == {name_token(tiny.tokenizer, n) for n in NAMES_5}


def test_default_names_and_samples(tiny):
    ds = copy_scores(tiny)
    assert list(ds.name.values) == shipped_names(tiny.tokenizer) and len(ds.name) >= 100
    assert 1000 <= ds.sizes["sample"] < 1000 + 3 * len(ds.name)


def test_memory_and_repetition_change_nothing(tiny):
    a = copy_scores(tiny, NAMES_5, n=30)
    xr.testing.assert_identical(a, copy_scores(tiny, NAMES_5, n=30))
    b = copy_scores(tiny, NAMES_5, n=30, memory=1)
    assert (a["rank"] == b["rank"]).mean() > 0.99 and float(abs(a.copy_score - b.copy_score).max()) < 0.2
    other = copy_scores(tiny, NAMES_5, n=30, seed=1)
    assert not a["rank"].equals(other["rank"])


@pytest.mark.parametrize(
    "names, message",
    [
        (["Mary", "Bartholomewina"], "'Bartholomewina' is not one token"),
        (["Mary", "Mary"], "at least two different names"),
        ("Mary", "at least two different names"),
        ([], "at least two different names"),
    ],
)
def test_bad_names(tiny, names, message):
    with pytest.raises(ValueError, match=message):
        copy_scores(tiny, names)


def test_bad_numbers(tiny):
    for bad in (dict(n=0), dict(top=0)):
        with pytest.raises(ValueError, match="at least 1"):
            copy_scores(tiny, NAMES_5, **bad)


def test_heads_above():
    from namemovers.stats import summarise

    scores = xr.DataArray(
        np.array([[[1.0, 0.9], [0.2, 0.3]], [[0.9, 0.9], [1.0, 1.0]]]),
        dims=("layer", "head", "name"),
        coords=dict(layer=[0, 1], head=[0, 1]),
    )
    assert heads_above(summarise(scores, dim="name"), 0.9) == [(1, 1), (0, 0), (1, 0)]
    assert heads_above(summarise(scores - 0.5, dim="name"), 0.9) == []


def test_names_of_one_prompt(tiny):
    task = mrs_task(tiny.tokenizer, n=2, seed=5)
    ds = task_copy_scores(tiny, task)
    ds["copied"][:] = 0
    ds["copied"].loc[dict(layer=1, head=2, name=["S1", "S4"], prompt=1)] = 1
    rows = names_table(ds, task, [(1, 2), (0, 0)], prompt=1).set_index("head")
    assert rows.loc["L1H2", "would copy"] == f"{task.names[1]['S1']}, {task.names[1]['S4']}"
    assert rows.loc["L0H0", "would copy"] == "–"


# models of other kinds


@pytest.fixture(scope="module")
def other_kind(tmp_path_factory):
    "A function that makes a small random model of another architecture, with mini's tokenizer."
    import transformers
    from conftest import small_tokenizer

    from namemovers.model import load_model

    def make(kind, **more):
        tokenizer, state = small_tokenizer(), torch.random.get_rng_state()
        torch.manual_seed(0)
        size = dict(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=128,
        )
        model = transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, f"{kind}Config")(
                vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **size, **more
            )
        )
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(4) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))
        torch.random.set_rng_state(state)
        folder = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return load_model(folder, device="cpu")

    return make


@pytest.mark.parametrize("kind, shared", [("Llama", 4), ("Llama", 2), ("Qwen2", 2)])
def test_models_without_biases_and_with_shared_values(other_kind, kind, shared):
    "Against transformers' matrices of one head at a time: query head h reads the values of h // (heads / shared)."
    model = other_kind(kind, num_key_value_heads=shared)
    task = ioi_task(model.tokenizer, n=3, seed=4)
    top = model.cfg.d_vocab // 4
    ds, ids = task_copy_scores(model, task, top=top), name_ids(model.tokenizer, task)
    for i in range(len(task)):
        resid = model.run_with_cache(task.clean_tokens[i : i + 1], return_type=None)[1]["blocks.0.hook_resid_post"][0]
        for j, name in enumerate(subject_positions(task)):
            x = resid[task.positions[name][i]]
            for l, block in enumerate(model.blocks):
                values = block.attn.v.original_component
                normed = block.ln1(x[None, None])[0, 0]
                v = values(normed).view(shared, -1).detach()
                for h in range(4):
                    out = v[h * shared // 4] @ model.W_O[l, h]
                    best = model.unembed(model.ln_final(out[None, None]))[0, 0].topk(top).indices
                    assert bool(ds.copied.sel(layer=l, head=h, name=name, prompt=i)) == (int(ids[i, j]) in best)


@pytest.mark.parametrize(
    "kind, more",
    [
        ("Gemma2", dict(num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8)),  # a norm after attention
        ("Granite", dict(num_key_value_heads=4, residual_multiplier=0.3, embedding_multiplier=5.0)),  # multipliers
    ],
)
def test_heads_that_write_through_a_norm_or_a_multiplier(other_kind, kind, more):
    "By transformers' own modules: what a head that sees one name alone writes, through whatever follows."
    model = other_kind(kind, **more)
    if kind == "Gemma2":
        with torch.no_grad():
            for layer in model.original_model.model.layers:  # a weight that moves ranks
                inner = getattr(layer, "original_component", layer).post_attention_layernorm
                getattr(inner, "original_component", inner).weight.normal_(0, 1)
    task = ioi_task(model.tokenizer, n=3, seed=4)
    top = model.cfg.d_vocab // 4
    ds, ids = task_copy_scores(model, task, top=top), name_ids(model.tokenizer, task)
    shared, seen = model.blocks[0].attn.W_V.shape[0], 0
    for i in range(len(task)):
        resid = model.run_with_cache(task.clean_tokens[i : i + 1], return_type=None)[1]["blocks.0.hook_resid_post"][0]
        for j, name in enumerate(subject_positions(task)):
            x = resid[task.positions[name][i]]
            for l, block in enumerate(model.blocks):
                v = block.attn.v.original_component(block.ln1(x[None, None])[0, 0]).view(shared, -1).detach()
                for h in range(4):
                    out = v[h * shared // 4] @ model.W_O[l, h]
                    if kind == "Gemma2":
                        out = block.ln1_post(out[None, None])[0, 0]  # its scale moves no rank
                    best = model.unembed(model.ln_final(out[None, None]))[0, 0].topk(top).indices
                    assert bool(ds.copied.sel(layer=l, head=h, name=name, prompt=i)) == (int(ids[i, j]) in best)
                    seen += int(ids[i, j]) in best
    assert seen


# ---- through the head's own width


def both_ways(model, monkeypatch, n=80, memory=2**28, d_head=None, seed=0):
    """Ranks of two names a sample, through the head's own width and through the stream's; how often the first was."""
    from namemovers import copy_scores as module

    g = torch.Generator().manual_seed(seed)
    v = torch.randn(n, d_head or model.cfg.d_head, generator=g)
    v[3] = 0  # a head that writes nothing
    ids = torch.randint(0, model.cfg.d_vocab, (n, 2), generator=g)
    made, toward = [], module._toward_tokens

    def spy(*given):
        made.append(toward(*given))
        return made[-1]

    monkeypatch.setattr(module, "_toward_tokens", spy)
    ours = module.head_ranks(v, model.W_O[1, 2], ids, model, memory)
    theirs = [r[0] for r in module.name_ranks((v @ model.W_O[1, 2])[None], ids, model)]
    return ours, theirs, made


@pytest.mark.parametrize("memory", [2**28, 2**22])  # all samples at once, and one at a time
def test_through_the_width_of_the_head(tiny, monkeypatch, memory):
    ours, theirs, made = both_ways(tiny, monkeypatch, memory=memory)
    assert len(made) == 1 and made[0] is not None
    for a, b in zip(ours, theirs):
        assert a.shape == b.shape == (80, 2) and np.abs(a - b).max() <= 1 and (a != b).mean() < 0.02
        assert (a >= 0).all() and a.max() < tiny.cfg.d_vocab and len(np.unique(a)) > 50


def test_norms_that_scale_alone_and_norms_of_another_kind(tiny, monkeypatch):
    class Root(torch.nn.Module):  # RMSNorm: the mean stays
        def forward(self, x):
            return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    class Bent(torch.nn.Module):  # no scale of the stream
        def forward(self, x):
            return torch.tanh(x)

    for norm, narrow in ((Root(), True), (Bent(), False)):
        with monkeypatch.context() as m:
            m.setitem(tiny._modules, "ln_final", norm)
            ours, theirs, made = both_ways(tiny, m)
        assert (made[0] is not None) == narrow
        assert all(np.abs(a - b).max() <= 1 and (a != b).mean() < 0.02 for a, b in zip(ours, theirs))


def test_few_samples_go_through_the_stream(tiny, monkeypatch):
    ours, theirs, made = both_ways(tiny, monkeypatch, n=8)
    assert not made and all((a == b).all() for a, b in zip(ours, theirs))
