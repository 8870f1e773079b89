"""Small random checkpoints of several architectures, each saved to a folder and loaded as any other model."""

from pathlib import Path

import torch
from conftest import small_tokenizer

WIDTH, LAYERS, HEADS, CONTEXT = 32, 3, 4, 64

#: what all of Llama's kind are made with
LLAMA = dict(
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=2,
    intermediate_size=2 * WIDTH,
    max_position_embeddings=CONTEXT,
)

#: name -> (the class of its configuration, its arguments)
FAMILIES = {
    "gpt_neox": (
        "GPTNeoXConfig",
        dict(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=CONTEXT,
            rotary_pct=0.5,
        ),
    ),
    "gptj": ("GPTJConfig", dict(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, rotary_dim=4)),
    "gpt_neo": (
        "GPTNeoConfig",
        dict(
            hidden_size=WIDTH,
            num_layers=LAYERS,
            num_heads=HEADS,
            window_size=4,
            max_position_embeddings=CONTEXT,
            attention_types=[[["global"], 1], [["local"], 1], [["global"], 1]],
        ),
    ),
    "opt": (
        "OPTConfig",
        dict(
            hidden_size=WIDTH,
            word_embed_proj_dim=WIDTH,
            num_hidden_layers=LAYERS,
            ffn_dim=4 * WIDTH,
            num_attention_heads=HEADS,
            max_position_embeddings=CONTEXT,
        ),
    ),
    "llama": ("LlamaConfig", LLAMA),
    "mistral": ("MistralConfig", LLAMA | dict(sliding_window=4)),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen3": ("Qwen3Config", LLAMA | dict(head_dim=8)),
    "gemma2": ("Gemma2Config", LLAMA | dict(head_dim=8, sliding_window=4)),
    "gemma3": ("Gemma3TextConfig", LLAMA | dict(head_dim=8, sliding_window=4)),
    "olmo2": ("Olmo2Config", LLAMA),
    "phi": ("PhiConfig", LLAMA | dict(num_key_value_heads=HEADS, partial_rotary_factor=0.5)),
}


def write_family(folder, name, seed=0, **more):
    """A checkpoint of an architecture with random weights that are not small. `more` changes its configuration."""
    import transformers

    tokenizer = small_tokenizer()
    config, arguments = FAMILIES[name]
    special = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    made = getattr(transformers, config)(vocab_size=len(tokenizer), **arguments | special | more)
    before = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(made)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.15)
            else:
                p.add_(0.1 * torch.randn_like(p))
    torch.random.set_rng_state(before)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
