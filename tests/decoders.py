"""Small random checkpoints of many families, and patches of them by plain forward hooks on transformers' modules."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as hf

VOCABULARY = 400
SMALL = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
GPT = dict(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
OPT = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    ffn_dim=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    word_embed_proj_dim=32,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
    rope_theta=500000.0,
)

#: name -> configuration; windows are shorter than the prompts of the tests
CONFIGS: dict[str, Callable] = {
    "gpt2": lambda: hf.GPT2Config(**GPT),
    "neox": lambda: hf.GPTNeoXConfig(**SMALL, rotary_pct=0.5),
    "neox-sequential": lambda: hf.GPTNeoXConfig(**SMALL, rotary_pct=0.25, use_parallel_residual=False),
    "llama": lambda: hf.LlamaConfig(**SMALL, num_key_value_heads=2),
    "llama-biases-tied": lambda: hf.LlamaConfig(
        **SMALL, num_key_value_heads=4, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama3": lambda: hf.LlamaConfig(**SMALL, num_key_value_heads=1, rope_parameters=LLAMA3_ROPE),
    "mistral": lambda: hf.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=5, head_dim=16),
    "qwen2": lambda: hf.Qwen2Config(**SMALL, num_key_value_heads=2),
    "qwen2-window": lambda: hf.Qwen2Config(
        **SMALL, num_key_value_heads=2, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    # biases before the norms of queries and keys
    "qwen3": lambda: hf.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=16, attention_bias=True),
    "gemma": lambda: hf.GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=16),
    "gemma2": lambda: hf.Gemma2Config(
        **SMALL,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=5,
        query_pre_attn_scalar=20,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **SMALL,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=5,
        query_pre_attn_scalar=20,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "olmo2": lambda: hf.Olmo2Config(**SMALL, num_key_value_heads=2),
    "phi": lambda: hf.PhiConfig(**SMALL, partial_rotary_factor=0.5),
    "phi3": lambda: hf.Phi3Config(**SMALL, num_key_value_heads=2, sliding_window=5),
    "opt": lambda: hf.OPTConfig(**OPT),
    "gptj": lambda: hf.GPTJConfig(**GPT, rotary_dim=4),
    "gptneo": lambda: hf.GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=4,
        num_heads=4,
        window_size=5,
        intermediate_size=64,
        attention_types=[[["global", "local"], 2]],
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "bloom": lambda: hf.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "falcon": lambda: hf.FalconConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        multi_query=True,
        parallel_attn=True,
        bias=False,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "stablelm": lambda: hf.StableLmConfig(**SMALL, num_key_value_heads=2, partial_rotary_factor=0.25),
    "granite": lambda: hf.GraniteConfig(
        **SMALL,
        num_key_value_heads=2,
        embedding_multiplier=3.0,
        logits_scaling=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
    ),
    "cohere": lambda: hf.CohereConfig(**SMALL, num_key_value_heads=2, logit_scale=0.5),
    "starcoder2": lambda: hf.Starcoder2Config(**SMALL, num_key_value_heads=2, sliding_window=5),
    "smollm3": lambda: hf.SmolLM3Config(**SMALL, num_key_value_heads=2, no_rope_layers=[1, 1, 0]),
}
#: what is measured on language models today, and must be exact
EXACT = (
    "gpt2",
    "neox",
    "neox-sequential",
    "llama",
    "llama-biases-tied",
    "llama3",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "olmo2",
    "phi",
    "phi3",
    "opt",
)
#: what is cheap to have beside them
ALSO = tuple(name for name in CONFIGS if name not in EXACT)


def random_model(name: str, seed: int = 0):
    "A model of transformers with weights, biases, scales and norms that are not trivial."
    config = CONFIGS[name]()
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for key, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.add_(0.3 * noise)
            else:
                p.copy_(noise * (0.3 if any(part in key for part in ("embed", "wte", "wpe")) else p.shape[-1] ** -0.5))
    return model.requires_grad_(False)


def loaded(name: str, folder):
    "(name, transformers' model, the same saved to `folder` and loaded as a TransformerBridge)"
    from namemovers.model import load_model

    plain = random_model(name)
    plain.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(load_model("mini").tokenizer.name_or_path).save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return name, plain, load_model(folder, device="cpu")


@dataclass
class Places:
    "The modules of one decoder layer, by what they compute."

    layer: torch.nn.Module
    q: torch.nn.Module | None
    k: torch.nn.Module | None
    v: torch.nn.Module | None
    o: torch.nn.Module
    down: torch.nn.Module
    attn_out: torch.nn.Module  # what it returns is what the stream receives
    mlp_out: torch.nn.Module


def _get(module, *names):
    "The first of some attributes that a module has."
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def places(model) -> list[Places]:
    "The modules of every layer."
    body = _get(model, "model", "transformer", "gpt_neox")
    body = _get(body, "decoder") or body
    found = []
    for layer in _get(body, "layers", "h"):
        attn = _get(layer, "self_attn", "attn", "attention", "self_attention")
        attn = _get(attn, "attention") or attn
        mlp = _get(layer, "mlp")
        o = _get(attn, "o_proj", "out_proj", "c_proj", "dense")
        down = _get(mlp or layer, "down_proj", "c_proj", "fc_out", "fc2", "dense_4h_to_h")
        normed = hasattr(layer, "post_feedforward_layernorm")  # norms behind attention and MLP
        q, k = (_get(attn, f"{name}_proj") for name in "qk")
        if normed and not hasattr(layer, "pre_feedforward_layernorm"):  # queries of all heads are normalised together
            q, k = attn.q_norm, attn.k_norm
        found.append(
            Places(
                layer,
                q,
                k,
                _get(attn, "v_proj"),
                o,
                down,
                layer.post_attention_layernorm if normed else o,
                layer.post_feedforward_layernorm if normed else down,
            )
        )
    return found


def _first(value):
    return value[0] if isinstance(value, tuple) else value


def catch(module, before: bool, change: Callable):
    "A hook whose `change` sees (and may replace) what enters or leaves a module."

    def pre(_, args, kwargs):
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    def post(_, args, out):
        new = change(_first(out))
        return (new, *out[1:]) if isinstance(out, tuple) else new

    return module.register_forward_pre_hook(pre, with_kwargs=True) if before else module.register_forward_hook(post)


#: site -> (attribute of `Places`, whether it is what enters)
WHERE = {
    "resid_pre": ("layer", True),
    "resid_post": ("layer", False),
    "attn_out": ("attn_out", False),
    "mlp_out": ("mlp_out", False),
    "z": ("o", True),
    "q": ("q", False),
    "k": ("k", False),
    "v": ("v", False),
    "neurons": ("down", True),
}


@torch.no_grad()
def patched_logits(model, site, cell, base, donor, d_head):
    """Logits [prompt, position, token] of the base run with one place of the donor's, by forward hooks; None where
    there is no such module."""
    attribute, before = WHERE[site]
    module = getattr(places(model)[cell.layer], attribute)
    if module is None:
        return None
    kept = []
    handle = catch(module, before, lambda t: kept.append(t.clone()) or t)
    model(donor, use_cache=False)
    handle.remove()
    saved = kept[0]

    def overwrite(t):
        new, rows = t.clone(), torch.arange(len(base))
        # some modules flatten prompts
        new, old = new.view(len(base), -1, t.shape[-1]), saved.view(len(base), -1, t.shape[-1])
        part = slice(None)
        if site in ("z", "q", "k", "v"):
            part = slice(cell.head * d_head, (cell.head + 1) * d_head)
        elif site == "neurons":
            part = slice(cell.head, cell.head + 1)
        if cell.position is None:
            new[..., part] = old[..., part]
        else:
            new[rows, cell.position, part] = old[rows, cell.position, part]
        return new.view(t.shape)

    handle = catch(module, before, overwrite)
    out = model(base, use_cache=False).logits
    handle.remove()
    return out
