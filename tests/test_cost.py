"""What `cost` counts, against the multiplications that the engine does: PyTorch's own formulas on every call."""

import pytest
import torch
import transformers as hf

from namemovers import ioi_task, load_model, patch
from namemovers.cost import Counted, Prompts, Shape, cost, layer_rate, multiplications, prompts_of, shape_of
from namemovers.engine.sweep import sweep
from namemovers.pairs import Pairs
from namemovers.sites import Cell
from conftest import small_tokenizer


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma3"])
def model(request, tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("cost") / request.param, small_tokenizer()
    torch.manual_seed(0)
    size = dict(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.bos_token_id)
    wide = dict(
        hidden_size=96, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2
    )
    if request.param == "gpt2":
        plain = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=96, n_layer=4, n_head=4, n_positions=128, **size))
    elif request.param == "llama":
        plain = hf.LlamaForCausalLM(hf.LlamaConfig(max_position_embeddings=128, **wide, **size))
    else:
        config = hf.Gemma3TextConfig(head_dim=32, max_position_embeddings=128, sliding_window=64, **wide, **size)
        plain = hf.Gemma3ForCausalLM(config)
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder, device="cpu")


def drawn(model, n=4, length=24, first=15):
    """Pairs of random tokens that differ at one place, and their shape."""
    g = torch.Generator().manual_seed(0)
    clean = torch.randint(5, 200, (n, length), generator=g)
    corrupted = clean.clone()
    corrupted[:, first] += 1
    answers = torch.randint(5, 200, (2, n), generator=g)
    return Pairs(clean, corrupted, torch.full((n,), length - 1), *answers), Prompts(n, length, first, differ=(first,))


SWEEPS = [
    ("z", "head"),
    ("q", "head"),
    ("k", "head"),
    ("v", "head"),
    ("pattern", "head"),
    ("z", "head_position"),
    ("resid_pre", "position"),
    ("resid_mid", "position"),
    ("attn_out", "position"),
    ("mlp_out", "position"),
    ("resid_post", "position"),
]


@pytest.mark.parametrize("site, by", SWEEPS)
def test_the_engine_does_what_is_counted(model, site, by):
    """Nothing is counted that is not done; what is done beyond it (attention over padded rows, the two columns of the
    unembedding) stays small."""
    pairs, asked = drawn(model)
    layers = range(model.cfg.n_layers)
    heads = range(2 if site in ("k", "v") and shape_of(model).n_kv_heads == 2 else 4)
    at = [torch.full((asked.n,), p) for p in range(asked.length)]
    todo = {
        "head": [Cell(l, h) for l in layers for h in heads],
        "head_position": [Cell(l, h, p) for l in layers for h in heads for p in at],
        "position": [Cell(l, None, p) for l in layers for p in at],
    }[by]
    sweep(model, pairs, site, todo[:2])  # what is made once
    with Counted() as counter:
        sweep(model, pairs, site, todo)
    counted, _ = multiplications(shape_of(model), asked, site, by)
    assert counted <= counter.total < 1.2 * counted


@pytest.mark.parametrize("by", ["head", "position", "named_position"])
def test_a_task_is_counted_as_patch_runs_it(model, by):
    """Prompts of several lengths, that differ at several places."""
    site = "z" if by == "head" else "resid_pre"
    task = ioi_task(model.tokenizer, n=8, seed=1)
    assert sum(p.n for p in prompts_of(task)) == 8 and len(prompts_of(task)) > 1
    with Counted() as counter:
        found = patch(model, task, site, by, progress=False)
    expected = cost(model, task, site, by, rate=1e9)
    cells = found.effect.size // len(task)
    if by == "head":
        assert expected.runs == cells * len(task)
    assert expected.multiplications <= counter.total < 1.35 * expected.multiplications


def test_what_is_paid_in_the_end():
    """By hand: two layers of one head, three tokens of which the second differs."""
    s = Shape(2, d_model=2, n_heads=1, d_head=2, d_mlp=4, n_kv_heads=1, gated=True, d_vocab=9)
    q, kv, o, mlp = 4, 8, 4, 24
    seen = lambda *keys: 2 * 2 * sum(keys)  # scores and values, two wide
    end = q + o + mlp + seen(3)
    base = 3 * (q + kv + o + mlp) + seen(1, 2, 3) + 3 * kv + end
    donor = 2 * (q + kv + o + mlp) + seen(2, 3) + 2 * kv + end
    heads = 2 * (4 + mlp) + (2 * kv + end) + (4 + mlp)  # of layer 0 at two positions, and of layer 1 at END
    assert multiplications(s, Prompts(1, 3, 1), "z", "head") == (base + donor + heads, 2)
    # a patch of the stream behind layer 0 at END, then at the position before, then of layer 1 at END
    later = kv + end + kv + end
    assert multiplications(s, Prompts(1, 3, 1), "resid_post", "position") == (base + donor + later, 4)


def test_configurations_are_read_as_the_models_are(model):
    found = shape_of(model)
    assert (found.n_layers, found.d_model, found.n_heads) == (4, 96, 4)
    plain = dict(gpt2=hf.GPT2Config(), llama=hf.LlamaConfig(), gemma3=hf.Gemma3TextConfig())
    own = next(v for k, v in plain.items() if type(v).__name__.lower().startswith(k) and k in str(model.cfg.model_name))
    assert shape_of(own).gated == found.gated


def test_a_rate_is_measured_and_kept():
    small = Shape(2, d_model=64, n_heads=2, d_head=32, d_mlp=128, n_kv_heads=1, gated=True, d_vocab=100)
    assert layer_rate(small) == layer_rate(small) > 1e6
    two = cost(small, Prompts(4, 16, 8), rate=2e9)
    assert two.seconds == two.multiplications / 2e9
    assert cost(small, Prompts(8, 16, 8), rate=2e9).multiplications == 2 * two.multiplications
    assert "patched runs" in str(two) and "GB" in str(two)
