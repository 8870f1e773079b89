"""Other architectures by hooks, against plain transformers: what is patched reaches the answer, or is refused."""

import pytest
import torch
from families import FAMILIES, HEADS, LAYERS, write_family
from test_activation_patching import made_task

from namemovers.activation_patching import BY, hook_point, patch, unreached
from namemovers.attribution_patching import attribute
from namemovers.engine.ready import why_not
from namemovers.model import load_model
from namemovers.path_patching import path_patch

torch.set_num_threads(1)
BESIDE = {"gptj", "gpt_neo", "opt"}  # their attention patterns are handed out, and not taken back
CHOSEN = {"neurons": {"neurons": [(0, 3), (2, 30)]}}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    "(name, the model loaded by us, plain transformers' of the same folder)"
    from transformers import AutoModelForCausalLM

    folder = write_family(tmp_path_factory.mktemp("families") / request.param, request.param)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return request.param, load_model(folder, device="cpu"), plain


def answers(logits, task):
    rows = torch.arange(len(logits))
    at = logits[rows, task.positions["END"]]
    return at[rows, task.correct] - at[rows, task.wrong], at[rows, task.correct]


def parts(plain, layer):
    "The modules of one layer of a plain model: (block, attention, its last linear map, MLP, its last linear map)."
    inner = getattr(plain, "gpt_neox", None) or getattr(plain, "transformer", None) or plain.model
    inner = getattr(inner, "decoder", inner)
    block = (inner.h if hasattr(inner, "h") else inner.layers)[layer]
    first = lambda module, *names: next(getattr(module, n) for n in names if hasattr(module, n))
    attention = first(block, "attention", "self_attn", "attn")
    attention = getattr(attention, "attention", attention)
    out = first(attention, "dense", "o_proj", "out_proj")
    last = (
        block.fc2
        if hasattr(block, "fc2")
        else first(block.mlp, "dense_4h_to_h", "fc_out", "c_proj", "down_proj", "fc2")
    )
    return block, attention, out, last


@torch.no_grad()
def by_transformers(plain, task, site, layer, head=None, position=None):
    "One patch of the clean run into the corrupted one, by PyTorch hooks on a model that TransformerLens never saw."
    block, _, out, last = parts(plain, layer)
    module = {"resid_pre": block, "z": out, "neurons": last}[site]
    width = out.in_features // HEADS
    part = {
        "resid_pre": (slice(None), position),
        "neurons": (..., head),
        "z": (..., slice(None) if head is None else slice(head * width, (head + 1) * width)),
    }[site]
    kept = {}

    def keep(module, args):
        kept["x"] = args[0].clone()

    def put(module, args):
        x = args[0].clone()
        x.view(kept["x"].shape)[part] = kept["x"][part]
        return x, *args[1:]

    for hook, tokens in ((keep, task.clean_tokens), (put, task.corrupted_tokens)):
        handle = module.register_forward_pre_hook(hook)
        try:
            logits = plain(tokens).logits
        finally:
            handle.remove()
    return answers(logits, task)[0]


def test_the_hooks_engine_is_right_about_it(family):
    name, model, plain = family
    task = made_task(model, n=3)
    with torch.no_grad():
        clean, corrupted = (answers(plain(t).logits, task)[0] for t in (task.clean_tokens, task.corrupted_tokens))
    streams = patch(model, task, "resid_pre", engine="hooks")
    assert abs(streams.clean - clean.numpy()).max() < 2e-5 and abs(streams.corrupted - corrupted.numpy()).max() < 2e-5
    heads, neurons = (patch(model, task, s, engine="hooks", **CHOSEN.get(s, {})) for s in ("z", "neurons"))
    for layer in range(LAYERS):
        for position in (2, 4, 6):
            theirs = by_transformers(plain, task, "resid_pre", layer, position=position)
            assert abs(streams.logit_diff.sel(layer=layer, position=position) - theirs.numpy()).max() < 2e-5
        for head in range(HEADS):
            theirs = by_transformers(plain, task, "z", layer, head)
            assert abs(heads.logit_diff.sel(layer=layer, head=head) - theirs.numpy()).max() < 2e-5
    for i, (layer, neuron) in enumerate(CHOSEN["neurons"]["neurons"]):
        theirs = by_transformers(plain, task, "neurons", layer, neuron)
        assert abs(neurons.logit_diff.isel(neuron=i) - theirs.numpy()).max() < 2e-5
    assert float(heads.logit_diff.std()) > 0.01


@pytest.mark.parametrize("site", BY)
def test_a_site_reaches_the_answer_or_is_refused(family, site):
    name, model, _ = family
    if hook_point(site, 0) not in model.hook_dict:
        with pytest.raises(ValueError, match="this model has no"):
            patch(model, made_task(model), site)
    elif name in BESIDE and site == "pattern":
        assert unreached(model, site, [0, 1, 2]) == [0, 1, 2]
        with pytest.raises(ValueError, match="site='pattern': changing blocks.0.attn.hook_pattern changes no logit"):
            patch(model, made_task(model), site, engine="hooks")
    else:
        assert unreached(model, site, [0, 1, 2]) == []
        found = patch(model, made_task(model), site, engine="hooks", **CHOSEN.get(site, {})).logit_diff
        moved = abs(found - found.isel(prompt=slice(None)).median([d for d in found.dims if d != "prompt"]))
        assert float(moved.max()) > 1e-4


def test_the_fast_engine_knows_it(family):
    name, model, _ = family
    task = made_task(model)
    assert why_not(model) is None
    fast, slow = (patch(model, task, "z", engine=engine).logit_diff for engine in ("fast", "hooks"))
    assert abs(fast - slow).max() < 2e-5
    assert path_patch(model, task).sizes["head"] == HEADS
    assert attribute(model, task, "z").attrs["approximation"] == "first order"


def test_the_metric_logit_is_the_models_own(family):
    name, model, plain = family
    task = made_task(model)
    found = patch(model, task, "resid_pre", metric="logit")
    with torch.no_grad():
        for run, tokens in (("clean", task.clean_tokens), ("corrupted", task.corrupted_tokens)):
            assert abs(found[run] - answers(plain(tokens).logits, task)[1].numpy()).max() < 2e-5
    assert abs(found.logit.isel(layer=0, position=[4, 6]).mean() - found.corrupted.mean()) > 1e-3
    assert found.attrs["logit"] == "the model's own" and "logit" not in patch(model, task, "resid_pre").attrs


def test_a_layer_that_writes_nothing_is_no_fault(tiny_folder):
    model = load_model(tiny_folder, device="cpu")
    with torch.no_grad():
        model.blocks[1].attn.W_O.zero_()
        model.blocks[2].mlp.W_out.zero_()
    task = made_task(model)
    assert unreached(model, "z", [0, 1, 2]) == [1]
    for site in ("z", "q", "pattern"):
        assert float(abs(patch(model, task, site, engine="hooks").effect.sel(layer=1)).max()) < 1e-5
    patch(model, task, "neurons", engine="hooks", neurons=[(2, 3)])
