"""Random configurations of architectures: the engine equals plain hooks on transformers, or refuses."""

import tempfile
import warnings

import torch
import transformers as hf
from decoders import CONFIGS, SMALL, loaded, patched_logits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_activation_patching import made_task
from test_engine_families import answers, pairs
from test_edges import logit_diff

from namemovers.circuits import graph, run_edges
from namemovers.engine.ready import why_not
from namemovers.engine.sweep import sweep
from namemovers.sites import Cell, head_axis

torch.set_num_threads(1)
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "quick_gelu", "tanh")
WINDOWS = dict(sliding_window=5, query_pre_attn_scalar=20)


@st.composite
def configurations(draw):
    "A configuration of one of several kinds, with what its kind lets one choose."
    layers, heads = draw(st.integers(1, 3)), draw(st.sampled_from((2, 4)))
    own = SMALL | dict(num_hidden_layers=layers, num_attention_heads=heads)
    own["num_key_value_heads"] = draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0]))
    own["tie_word_embeddings"] = draw(st.booleans())
    activation, head_dim = draw(st.sampled_from(ACTIVATIONS)), draw(st.sampled_from((8, 16)))
    kind = draw(st.sampled_from(("Llama", "Mistral", "Qwen3", "Gemma2", "Gemma3Text", "Olmo2", "Phi")))
    if kind == "Phi":
        return hf.PhiConfig(**own, hidden_act=activation, partial_rotary_factor=draw(st.sampled_from((0.5, 1.0))))
    if kind == "Gemma2":
        caps = dict(attn_logit_softcapping=draw(st.sampled_from((None, 4.0))))
        caps["final_logit_softcapping"] = draw(st.sampled_from((None, 3.0)))
        return hf.Gemma2Config(**own, **WINDOWS, **caps, head_dim=head_dim, hidden_activation=activation)
    if kind == "Gemma3Text":
        kinds = draw(
            st.lists(st.sampled_from(("sliding_attention", "full_attention")), min_size=layers, max_size=layers)
        )
        return hf.Gemma3TextConfig(**own, **WINDOWS, head_dim=head_dim, hidden_activation=activation, layer_types=kinds)
    more = dict(hidden_act=activation)
    if kind in ("Mistral", "Qwen3"):
        more["head_dim"] = head_dim
    if kind == "Mistral":
        more["sliding_window"] = draw(st.sampled_from((None, 3, 5, 40)))
    if kind in ("Llama", "Qwen3"):
        more["attention_bias"] = draw(st.booleans())
    return getattr(hf, f"{kind}Config")(**own, **more)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(config=configurations(), direction=st.sampled_from(("denoise", "noise")), seed=st.integers(0, 99))
def test_the_engine_is_exact_or_refuses(config, direction, seed):
    CONFIGS["drawn"] = lambda: config
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _, plain, model = loaded("drawn", folder)
        except ValueError as refused:  # what TransformerLens gets wrong is no model to measure
            assert str(refused).startswith("The model ") and "cannot be" in str(refused)
            return
        finally:
            del CONFIGS["drawn"]
    if reason := why_not(model, 14):
        assert "activation function" in reason  # of all that is drawn, only these are unknown
        return
    asked, at = pairs(direction), torch.tensor([4, 7, 9, 11])
    layer = seed % model.cfg.n_layers
    for site in ("resid_pre", "z", "q", "k", "v", "mlp_out"):
        head = seed % head_axis(model, site)[1] if site in "zqkv" else None
        todo = [Cell(layer, head), Cell(layer, head, at)]
        expected = [patched_logits(plain, site, cell, asked.base, asked.donor, model.cfg.d_head) for cell in todo]
        ours = sweep(model, asked, site, todo)[0]
        assert (ours - torch.stack([answers(y) for y in expected])).abs().max() < 1e-4, site
    task = made_task(model, n=2)
    found = run_edges(model, task, {"all": graph(model).labels, "none": []}, direction=direction)
    ends = [logit_diff(task, plain(t, use_cache=False).logits) for t in (task.clean_tokens, task.corrupted_tokens)]
    for name, own in zip(("all", "none"), ends if direction == "noise" else ends[::-1]):
        assert abs(found.logit_diff.sel(circuit=name) - own).max() < 1e-4
