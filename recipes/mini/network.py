"""The network of `mini`: GPT-2's forward pass, written out because the training needs the attention on the way."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .tokenizer import END_OF_TEXT

N_LAYERS, N_HEADS, D_MODEL, N_CTX = 4, 4, 128, 128
D_HEAD = D_MODEL // N_HEADS
LAYER_NORM_EPS = 1e-5

#: the parts, and the heads (layer, head) that are hinted to play them
ROLES = {
    "previous token": [(0, 1)],
    "duplicate token": [(0, 3)],
    "induction": [(1, 0), (1, 2)],
    "S-inhibition": [(1, 1), (1, 3)],
    "name mover": [(2, 0), (2, 2)],
    "negative name mover": [(3, 1)],
}


def of_head(head: int, part: int = 0) -> slice:
    "Where a head's query (part 0), key (1) or value (2) is among the columns of `c_attn`; part 0 also of its output."
    start = part * D_MODEL + head * D_HEAD
    return slice(start, start + D_HEAD)


def _positions(normal) -> torch.Tensor:
    "Sinusoids in a random rotation [position, d], from which heads learn sooner to look back."
    frequency = torch.exp(-math.log(1e4) * torch.arange(0, D_MODEL, 2) / D_MODEL)
    angle = torch.arange(N_CTX)[:, None] * frequency
    rotation = torch.linalg.qr(normal(D_MODEL, D_MODEL))[0]
    return 0.1 * torch.cat([angle.sin(), angle.cos()], 1) @ rotation


def initial_weights(
    vocabulary: int,  # number of tokens
    seed: int,  # of the random numbers
    hints: bool = True,  # prepare the negative name mover
) -> dict:  # Hugging Face name -> tensor
    """Random weights, under the names that Hugging Face gives them, so that saving is copying.

    The negative name mover begins with an output matrix that undoes its value matrix with the sign turned round,
    so that it writes against what it looks at."""
    generator, d = torch.Generator().manual_seed(seed), D_MODEL

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * 0.07

    w = {"transformer.wte.weight": normal(vocabulary, d)}
    w["transformer.wpe.weight"] = _positions(normal)
    matrices = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, 4 * d), "mlp.c_proj": (4 * d, d)}
    for layer in range(N_LAYERS):
        block = f"transformer.h.{layer}."
        for name, shape in matrices.items():
            w[f"{block}{name}.weight"] = normal(*shape)
            w[f"{block}{name}.bias"] = torch.zeros(shape[1])
        for name in ("ln_1", "ln_2"):
            w[f"{block}{name}.weight"] = torch.ones(d)
            w[f"{block}{name}.bias"] = torch.zeros(d)
    w["transformer.ln_f.weight"] = torch.ones(d)
    w["transformer.ln_f.bias"] = torch.zeros(d)
    for layer, head in ROLES["negative name mover"] if hints else ():
        attn = f"transformer.h.{layer}.attn."
        value = w[attn + "c_attn.weight"][:, of_head(head, 2)]
        w[attn + "c_proj.weight"][of_head(head)] = -value.T
    return {k: v.requires_grad_() for k, v in w.items()}


class Run(NamedTuple):
    "What a forward pass gives."

    final: torch.Tensor  # the residual stream after the final LayerNorm [row, position, d]
    patterns: list  # attention of each layer [row, head, query, key]
    zs: list  # head outputs of each layer [row, position, head, d_head]
    first: torch.Tensor  # the residual stream after the first block [row, position, d]


def norm(w: dict, x: torch.Tensor, name: str) -> torch.Tensor:
    "A LayerNorm by name."
    return F.layer_norm(x, (D_MODEL,), w[name + ".weight"], w[name + ".bias"], LAYER_NORM_EPS)


def forward(
    w: dict,  # weights
    tokens: torch.Tensor,  # [row, position]
) -> Run:
    "GPT-2. Logits are `final` times `wte` transposed."
    R, T = tokens.shape
    future = torch.full((T, T), -1e9).triu(1)

    def linear(x, name):
        flat = x.reshape(-1, x.shape[-1])
        return torch.addmm(w[name + ".bias"], flat, w[name + ".weight"]).view(R, T, -1)

    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][:T]
    patterns, zs = [], []
    for layer in range(N_LAYERS):
        block = f"transformer.h.{layer}."
        qkv = linear(norm(w, x, block + "ln_1"), block + "attn.c_attn").view(R, T, 3, N_HEADS, D_HEAD)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [row, head, position, d_head]
        pattern = (q @ k.transpose(-1, -2) / math.sqrt(D_HEAD) + future).softmax(-1)
        z = (pattern @ v).transpose(1, 2)
        patterns.append(pattern)
        zs.append(z)
        x = x + linear(z.reshape(R, T, D_MODEL), block + "attn.c_proj")
        hidden = F.gelu(linear(norm(w, x, block + "ln_2"), block + "mlp.c_fc"), approximate="tanh")
        x = x + linear(hidden, block + "mlp.c_proj")
        if layer == 0:
            first = x
    return Run(norm(w, x, "transformer.ln_f"), patterns, zs, first)


def save_model(
    w: dict,  # weights
    tokenizer,  # from `train_tokenizer`
    folder: str | Path,  # made if need be
) -> Path:
    "Write config, weights (safetensors), tokenizer and generation config, in Hugging Face format."
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    ids = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    config = GPT2Config(
        vocab_size=len(w["transformer.wte.weight"]),
        n_positions=N_CTX,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **ids,
    )
    model = GPT2LMHeadModel(config)
    model.load_state_dict(w | {"lm_head.weight": w["transformer.wte.weight"]})
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=N_CTX,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    return Path(folder)
