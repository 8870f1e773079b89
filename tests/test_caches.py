"""Whatever the library remembers: how it could be stale, and that somebody notices."""

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_tokenizer
from decoders import VOCABULARY, random_model

from namemovers import explorer
from namemovers.activation_patching import patch
from namemovers.attribution_patching import attribute
from namemovers.circuits import ablation, run_circuits
from namemovers.circuits.ablation import reference_task
from namemovers.copy_scores import copy_scores
from namemovers.data import ioi_task
from namemovers.engine.forward import embed, forward, logits
from namemovers.engine.ready import ready, why_not
from namemovers.guard import fingerprint, guard
from namemovers.head_attribution import head_attribution
from namemovers.model import load_model, weights_hash

LIBRARY = Path(__file__).parents[1] / "namemovers"

#: module -> what it remembers from one call to the next, and how that could be wrong
REMEMBERED = {
    "engine/ready.py": {"_known"},  # weights as they were read: they, their modules or what these are set to change
    "identity.py": {"HASHES"},  # a hash of weights that change
    "circuits/ablation.py": {
        "_means",  # means of reference prompts: the weights, or the prompts, change
        "word",  # within one call
    },
    "guard.py": {"_factors"},  # the same numbers for ever
    "prompts/templates.py": {"group_of"},  # a name's family, read off the name
    "activation_patching.py": {"_fell_back"},  # what was warned of
    "cost.py": {"layer_rate"},  # how fast this machine is: of an estimate, which says so
    "planted.py": {"exam"},  # prompts for a tokenizer's file, which belongs to the package
    "store.py": {"code_version"},  # the library's files, as they were when it was first asked
    "explorer/state.py": {"_byte_values"},  # a table of transformers
    "explorer/widget.py": {"widget_class"},  # a class
}
REMEMBERING = ("cache", "lru_cache", "WeakKeyDictionary", "WeakValueDictionary")


def remembers(node):
    return any(
        getattr(part, "id", getattr(part, "attr", None)) in REMEMBERING
        for part in ast.walk(node)
        if isinstance(part, ast.Name | ast.Attribute)
    )


def found_in(file):
    "Functions under a cache, and variables that are one."
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and any(remembers(d) for d in node.decorator_list):
            yield node.name
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and remembers(node.value):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            yield target.id


def test_all_that_is_remembered_is_known_here():
    files = {file.relative_to(LIBRARY).as_posix(): set(found_in(file)) for file in LIBRARY.rglob("*.py")}
    assert {file: names for file, names in files.items() if names} == REMEMBERED


# The engine's weights


@pytest.fixture(scope="module")
def bridges(tmp_path_factory):
    "Models of two kinds, each with a second that nobody has measured."

    def load(family):
        folder = tmp_path_factory.mktemp(family)
        random_model(family).save_pretrained(folder)
        small_tokenizer().save_pretrained(folder)
        return load_model(folder, device="cpu")

    return {family: load(family) for family in ("gpt2", "llama", "gemma2", "granite")}


TOKENS = torch.randint(3, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(0))


def gap(model):
    "How far the engine's logits are from the model's own."
    w = ready(model, length=30)
    return float((logits(w, forward(w, embed(w, TOKENS)).final) - model(TOKENS)).abs().max())


SETTINGS = [
    ("llama", "LlamaAttention", "scaling"),
    ("llama", "LlamaRMSNorm", "variance_epsilon"),
    ("llama", "LlamaRotaryEmbedding", "attention_scaling"),
    ("gemma2", "Gemma2Attention", "scaling"),
    ("gemma2", "Gemma2Attention", "attn_logit_softcapping"),
    ("granite", "GraniteModel", "embedding_multiplier"),
    ("granite", "GraniteDecoderLayer", "residual_multiplier"),
]


@pytest.mark.parametrize("family, kind, name", SETTINGS)
def test_what_a_module_is_set_to_is_read_again_or_refused(bridges, family, kind, name):
    """After the engine has read a model, a scale, a cap, a multiplier or an epsilon is changed."""
    model = bridges[family]
    assert gap(model) < 1e-4
    before = fingerprint(model)
    changed = [(m, getattr(m, name)) for m in model.original_model.modules() if type(m).__name__ == kind]
    assert changed
    own = model(TOKENS)
    try:
        for module, value in changed:
            setattr(module, name, value * (1e4 if "eps" in name else 2))
        assert (model(TOKENS) - own).abs().max() > 1e-3 and fingerprint(model) != before
        reason = why_not(model, 30)
        assert "differ from the engine's" in reason if reason else gap(model) < 1e-3
    finally:
        for module, value in changed:
            setattr(module, name, value)
    assert fingerprint(model) == before and gap(model) < 1e-4


def test_measuring_changes_no_fingerprint(tiny, tasks):
    "Neither a run that is read at the end, nor one with hooks, nor gradients: what is remembered stays right."
    before, weights = fingerprint(tiny), ready(tiny)
    task = tasks[0]
    copy_scores(tiny)
    head_attribution(tiny, task)
    patch(tiny, task, "z", engine="hooks")
    attribute(tiny, task, "z")
    tiny.run_with_cache(task.clean_tokens)
    assert fingerprint(tiny) == before and ready(tiny) is weights


def test_a_module_in_another_place_is_noticed(bridges):
    model = bridges["gpt2"]
    assert gap(model) < 1e-4
    mlp = model.blocks[1].mlp.original_component
    before, mlp.act = mlp.act, torch.nn.ReLU().eval()
    try:
        assert why_not(model, 30) is not None or gap(model) < 1e-4
    finally:
        mlp.act = before
    assert gap(model) < 1e-4


def test_weights_of_another_type_are_refused(bridges):
    model = bridges["llama"]
    assert gap(model) < 1e-4
    layer = model.original_model.model.layers[0].mlp
    weight = next(iter(layer.parameters()))
    kept, before = weight.data, fingerprint(model)
    try:
        weight.data = kept.double()
        assert fingerprint(model) != before
        with pytest.raises(ValueError, match="float64"):
            guard(model)
    finally:
        weight.data = kept
    assert gap(model) < 1e-4


def test_a_hash_is_of_the_weights_as_they_are(bridges):
    model = bridges["gpt2"]
    first, weight = weights_hash(model), next(model.parameters())
    weight.data[0, 0] += 1
    edited = weights_hash(model)
    weight.data[0, 0] -= 1
    assert edited != first == weights_hash(model)
    assert first != weights_hash(bridges["llama"])


# Means of reference prompts


@pytest.fixture
def tasks(tiny):
    task = ioi_task(tiny.tokenizer, n=4)
    return task, reference_task(task, 40)


def copied(task):
    "The same prompts in an object that nobody has seen."
    return dataclasses.replace(task, corrupted_tokens=task.corrupted_tokens.clone())


def ablated(model, task, reference):
    return run_circuits(model, task, {"none": []}, "mean", reference).logit_diff.values


def test_means_are_run_once_and_again_when_the_reference_changes(tiny, tasks, monkeypatch):
    task, reference = tasks
    reference, runs, given = copied(reference), [], ablation._given
    monkeypatch.setattr(ablation, "_given", lambda w, tokens: runs.append(len(tokens)) or given(w, tokens))
    first = ablated(tiny, task, reference)
    once = sum(runs)
    np.testing.assert_array_equal(ablated(tiny, task, reference), first)
    assert sum(runs) == once == len(reference)
    reference.corrupted_tokens[:, 3] = reference.corrupted_tokens[:, 5]  # in place: the object is the same
    changed = ablated(tiny, task, reference)
    assert abs(changed - first).max() > 1e-4
    np.testing.assert_allclose(changed, ablated(tiny, task, copied(reference)), atol=1e-6)


def test_means_of_one_model_are_not_those_of_another(tiny, tasks):
    task, reference = tasks
    usual = ablated(tiny, task, reference)
    weight = tiny.blocks[1].mlp.out.weight
    kept = weight.detach().clone()
    try:
        weight.data.mul_(1.5)
        edited = ablated(tiny, task, reference)
        np.testing.assert_allclose(edited, ablated(tiny, task, copied(reference)), atol=1e-6)
    finally:
        weight.data.copy_(kept)
    assert abs(edited - usual).max() > 1e-4
    np.testing.assert_allclose(ablated(tiny, task, reference), usual, atol=1e-6)


# The explorer's answers


def test_a_session_gives_no_answer_of_another_model(tiny, tasks):
    session = explorer.Session(tiny, tasks[0], study=False)
    state = dataclasses.replace(session.choose(explorer.ExplorerState(), "ioi", 0), view="attribution")
    session.figure(state)
    session.measured["ioi"] = "roles that were measured before"
    assert session.measure_roles("ioi") == "roles that were measured before"
    norm = tiny.blocks[1].ln1.original_component
    kept = norm.eps
    try:
        norm.eps = 0.5
        for ask in (lambda: session.figure(state), lambda: session.measure_roles("ioi")):
            with pytest.raises(ValueError, match="changed since this session began"):
                ask()
    finally:
        norm.eps = kept
    session.figure(state)
