"""One guard in front of every measurement: what would give a wrong number is one clear error, what is only a setting
of the session changes none."""

import contextlib
import copy
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import warnings

import numpy as np
import pytest
import torch
import xarray as xr

import namemovers
from namemovers import (
    circuits,
    copy_scores,
    data,
    explorer,
    head_attribution,
    head_roles,
    logit_lens,
    path_patching,
    sets,
    task_study,
)
from namemovers.activation_patching import patch, run_hooks
from namemovers.attribution_patching import attribute, patch_screened, run_attribution
from namemovers.engine.sweep import run_sets, sweep
from namemovers.guard import fingerprint, guard
from namemovers.model import load_model, run_at_end, weights_hash
from namemovers.pairs import Pairs
from namemovers.sites import Cell


def node(task):
    return circuits.Node(1, 0, "END")


# name -> f(model, task), a small call of every public measurement
MEASURE = {
    "patch": lambda m, t: patch(m, t, "z"),
    "run_hooks": lambda m, t: run_hooks(m, Pairs.of(t), "z", [Cell(0, 0)]),
    "attribute": lambda m, t: attribute(m, t, "z"),
    "patch_screened": lambda m, t: patch_screened(m, t, "z", screen=2),
    "run_attribution": lambda m, t: run_attribution(m, Pairs.of(t), "z", [Cell(0, 0)]),
    "Ablated": lambda m, t: circuits.Ablated(m, t, "zero")([[node(t)]]),
    "AblatedEdges": lambda m, t: circuits.AblatedEdges(m, t, "resample")([circuits.graph(m).labels[:4]]),
    "run_circuits": lambda m, t: circuits.run_circuits(m, t, {"one": [node(t)]}, "zero"),
    "score_nodes": lambda m, t: circuits.score_nodes(m, t, steps=1, ablation="zero"),
    "prune": lambda m, t: circuits.prune(m, t, tolerance=0.9, ablation="zero", progress=False),
    "grow": lambda m, t: circuits.grow(m, t, tolerance=0.9, ablation="zero", progress=False),
    "curve": lambda m, t: circuits.curve(m, t, {"one": circuits.nodes(m, t)}, shares=(0, 0.5, 1), ablation="zero"),
    "completeness": lambda m, t: circuits.completeness(
        m, t, [node(t)], random=1, greedy=1, steps=1, width=1, ablation="zero", progress=False
    ),
    "minimality": lambda m, t: circuits.minimality(m, t, [node(t)], steps=1, width=1, ablation="zero", progress=False),
    "cross_task": lambda m, t: circuits.cross_task(m, {"ioi": [(0, 0)]}, {"ioi": (t, None)}, random=1, ablation="zero"),
    "search_again": None,  # makes its own prompts
    "measure_published": lambda m, t: importlib.import_module("namemovers.claims").measure_published(m, t),
    "copy_scores": lambda m, t: copy_scores.copy_scores(m, ["Mary", "John", "Tom"], n=9),
    "after_first_block": lambda m, t: copy_scores.after_first_block(
        m, t.clean_tokens, torch.stack([t.positions["S1"], t.positions["IO"]], 1)
    ),
    "task_copy_scores": lambda m, t: copy_scores.task_copy_scores(m, t),
    "predictions": lambda m, t: data.predictions(m, t.clean[0]),
    "survey": lambda m, t: data.survey(m, n=1, families={"one": data.survey_template()}),
    "run_edges": lambda m, t: circuits.run_edges(m, t, [circuits.graph(m).labels[:4]], progress=False),
    "ablate_edges": lambda m, t: circuits.ablate_edges(m, t, circuits.graph(m).labels[:4], progress=False),
    "attribute_edges": lambda m, t: circuits.attribute_edges(m, t, progress=False),
    "acdc": lambda m, t: circuits.acdc(m, t, 1e9, progress=False),
    "sweep": lambda m, t: sweep(m, Pairs.of(t), "z", [Cell(0, 0)]),
    "run_sets": lambda m, t: run_sets(m, Pairs.of(t), [[]]),
    "Session": lambda m, t: (s := explorer.Session(m, t, study=False)).figure(
        dataclasses.replace(s.choose(explorer.ExplorerState(), t.name, 0), view="attribution")
    ),
    "explore": None,  # a Session with a widget around it
    "head_attribution": lambda m, t: head_attribution.head_attribution(m, t),
    "attention": lambda m, t: head_attribution.attention(m, t),
    "name_projection": lambda m, t: head_attribution.name_projection(m, t, n_resamples=10),
    "pattern_scores": lambda m, t: head_roles.pattern_scores(m, periods=(5,), n=2),
    "attention_scores": lambda m, t: head_roles.attention_scores(m, t),
    "s_inhibition": lambda m, t: head_roles.s_inhibition(m, t, [(2, 0)], progress=False),
    "signals": lambda m, t: head_roles.signals(m, t, heads=[(1, 0)], progress=False),
    "backup": lambda m, t: head_roles.backup(m, t, [(1, 0)], "zero"),
    "role_evidence": lambda m, t: head_roles.role_evidence(m, t, name_movers=[(2, 0)], ablation="zero", progress=False),
    "roles": lambda m, t: head_roles.roles(m, t, name_movers=[(2, 0)], ablation="zero", progress=False),
    "logit_lens": lambda m, t: logit_lens.logit_lens(m, t),
    "run_at_end": lambda m, t: run_at_end(m, t.clean_tokens, t.positions["END"]),
    "run_paths": lambda m, t: path_patching.run_paths(m, Pairs.of(t)),
    "path_patch": lambda m, t: path_patching.path_patch(m, t, progress=False),
    "trace": lambda m, t: path_patching.trace(m, t, depth=1, progress=False),
    "patch_sets": lambda m, t: sets.patch_sets(m, t, {"none": []}),
    "study": None,  # needs a folder: below
}
CALLED = {name: f for name, f in MEASURE.items() if f}
WITHOUT_A_TASK = {"copy_scores", "predictions", "survey", "pattern_scores"}

# take a model and measure nothing
NO_MEASUREMENT = {
    "Case",
    "ExplorerState",
    "Settings",
    "answer_direction",
    "belongs_to",
    "cells",
    "cost",  # of shapes
    "fingerprint",
    "guard",
    "head_axis",
    "in_blocks",
    "label",
    "minimal_in_words",
    "model_name",
    "model_note",
    "n_kv_heads",
    "name_ranks",
    "nodes",
    "pick_engine",
    "provenance",
    "read_layer",
    "read_rotary",
    "ready",
    "taken_from_logits",
    "unlike_gpt2_small",
    "unreached",
    "weights_hash",
    "weights_of",
    "why_not",
    "shape_of",
}


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load_model(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def task(model):
    return data.ioi_task(model.tokenizer, n=2, seed=0)


@pytest.fixture(autouse=True)
def in_order(model):
    """Each test leaves the model as it was."""
    before = weights_hash(model)
    yield
    assert weights_hash(model) == before and not any(m.training for m in model.modules())
    guard(model)


def quietly(f, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f(*arguments)


def public_with_a_model():
    for info in pkgutil.walk_packages(namemovers.__path__, "namemovers."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if (
                not callable(value)
                or getattr(value, "__module__", "") != module.__name__
                or inspect.isclass(value)
                and issubclass(value, Exception)
            ):
                continue
            if "model" in inspect.signature(value).parameters:
                yield name, value


def test_every_measurement_is_guarded_and_tried_here():
    found = dict(public_with_a_model())
    new = set(found) - set(MEASURE) - NO_MEASUREMENT
    assert not new, (
        f"{new}: put @guarded above and a call into MEASURE, or, if it measures nothing, its name into NO_MEASUREMENT"
    )
    assert set(MEASURE) <= set(found)
    bare = {
        name for name in MEASURE if not inspect.isclass(found[name]) and not hasattr(found[name], "__guarded__")
    } - {"explore"}
    assert not bare, f"{bare} forgot @guarded"
    for method in (
        circuits.Ablated.__init__,
        circuits.Ablated.__call__,
        *(getattr(explorer.Session, n) for n in ("figure", "head", "copies", "measure_roles")),
    ):
        assert method.__guarded__


# what is wrong with a model: name -> (a context manager that spoils it, words of the message)


@contextlib.contextmanager
def train(model):
    model.train()
    try:
        yield
    finally:
        model.eval()


@contextlib.contextmanager
def train_one_dropout(model):
    part = next(m for m in model.original_model.modules() if isinstance(m, torch.nn.Dropout))
    part.train()
    try:
        yield
    finally:
        part.eval()


@contextlib.contextmanager
def torch_hook(model, kind="register_forward_hook"):
    handle = getattr(model.blocks[1].mlp.original_component, kind)(lambda *a: None)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def lens_hook(model, permanent=False):
    model.blocks[0].attn.hook_z.add_hook(lambda z, hook: None, is_permanent=permanent)
    try:
        yield
    finally:
        model.reset_hooks(including_permanent=True)


@contextlib.contextmanager
def global_hook(model):
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *a: None)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def other_forward(model):
    part = model.blocks[1].mlp.original_component
    part.forward = lambda x: x
    try:
        yield
    finally:
        del part.forward


@contextlib.contextmanager
def dtype(model, to):
    tensors = [*model.parameters(), *model.buffers()]
    kept = [t.data for t in tensors]
    for t in tensors:
        t.data = t.data.to(to)
    try:
        yield
    finally:
        for t, value in zip(tensors, kept):
            t.data = value


@contextlib.contextmanager
def one_nan(model):
    weight = model.blocks[1].mlp.out.weight
    kept = weight.detach().clone()
    weight.data.view(-1)[5] = float("nan")
    try:
        yield
    finally:
        weight.data.copy_(kept)


WRONG = {
    "train": (train, "training mode.*eval"),
    "one dropout in train mode": (train_one_dropout, "training mode.*eval"),
    "a hook of PyTorch": (torch_hook, "hook.*remove"),
    "a pre-hook of PyTorch": (functools.partial(torch_hook, kind="register_forward_pre_hook"), "hook.*remove"),
    "a global hook": (global_hook, "hook.*global"),
    "a hook of TransformerLens": (lens_hook, "hook_z.*reset_hooks"),
    "a permanent hook": (functools.partial(lens_hook, permanent=True), "hook_z.*reset_hooks"),
    "another forward": (other_forward, "forward was replaced"),
    "float16": (functools.partial(dtype, to=torch.float16), "float16.*load_model"),
    "float64": (functools.partial(dtype, to=torch.float64), "float64.*load_model"),
    "NaN": (one_nan, "NaN"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_model_that_would_not_give_its_own_numbers(model, task, wrong):
    spoil, words = WRONG[wrong]
    with spoil(model):
        for name, measure in CALLED.items():
            with pytest.raises(ValueError, match=words) as e:
                quietly(measure, model, task)
            assert "\n" not in str(e.value), name


def long(task):
    """More tokens than the context of 128."""
    pad = lambda t: torch.nn.functional.pad(t, (0, 129 - t.shape[1]), value=7)
    return dataclasses.replace(task, clean_tokens=pad(task.clean_tokens), corrupted_tokens=pad(task.corrupted_tokens))


def twice(task):
    again = lambda t: torch.cat([t[:, :1], t], 1)
    return dataclasses.replace(
        task,
        clean_tokens=again(task.clean_tokens),
        corrupted_tokens=again(task.corrupted_tokens),
        lengths=task.lengths + 1,
        positions={k: v + 1 for k, v in task.positions.items()},
    )


def foreign(task):
    """The same ids, which mean other words."""
    tokenizer = copy.deepcopy(task.tokenizer)
    tokenizer.convert_ids_to_tokens = lambda ids: [f"x{i}" for i in ids]
    return dataclasses.replace(task, tokenizer=tokenizer)


def beyond(task):
    return dataclasses.replace(task, clean_tokens=task.clean_tokens + 10**6)


def of_inference(task):
    with torch.inference_mode():
        return dataclasses.replace(task, clean_tokens=task.clean_tokens.clone())


BY_TOKENS = {"run_hooks", "run_attribution", "sweep", "run_sets", "run_at_end", "run_paths"}


@pytest.mark.parametrize(
    "spoil, words, by_tokens",
    [
        (long, "129 tokens.*128", True),
        (beyond, "not one of the model's", True),
        (twice, "twice", False),
        (foreign, "another tokenizer", False),
        (of_inference, "inference_mode", False),
    ],
)
def test_prompts_that_are_not_for_this_model(model, task, spoil, words, by_tokens):
    spoilt = spoil(task)
    for name in (
        CALLED.keys()
        - WITHOUT_A_TASK
        - {"Session", "run_at_end", "after_first_block"}
        - (set() if by_tokens else BY_TOKENS)
    ):
        with pytest.raises(ValueError, match=words):
            quietly(CALLED[name], model, spoilt)


@pytest.mark.parametrize("engine", ["fast", "hooks"])
def test_both_engines_refuse_long_prompts_alike(model, task, engine):
    with pytest.raises(ValueError, match="129 tokens.*128"):
        patch(model, long(task), "z", engine=engine)


def test_the_longest_prompt_and_the_last_token_are_allowed(model):
    rows = torch.full((1, 128), model.cfg.d_vocab - 1)
    guard(model, tokens=rows)
    with pytest.raises(ValueError, match="129 tokens"):
        guard(model, tokens=rows[:, :1].expand(-1, 129))
    with pytest.raises(ValueError, match="not one of"):
        guard(model, tokens=rows[:, :5] + 1)
    with pytest.raises(ValueError, match="not one of"):
        guard(model, tokens=rows[:, :5] * 0 - 1)


def test_what_is_no_model(task):
    for wrong in (None, 3, torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="model: .*load_model"):
            logit_lens.logit_lens(wrong, task)


# what is only a setting of the session


@contextlib.contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def coarse():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


SESSIONS = {
    "inference mode": torch.inference_mode,
    "float64": float64,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "coarse": coarse,
}


def same(a, b):
    if isinstance(a, xr.Dataset):
        for name in a.data_vars:
            if a[name].dtype.kind == "f":
                np.testing.assert_allclose(a[name], b[name], atol=1e-5, rtol=1e-5, err_msg=name)
            else:
                assert a[name].equals(b[name]), name
        assert a.attrs == b.attrs
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, equal_nan=True)
    elif isinstance(a, np.ndarray):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def usual(model, task):
    return {name: quietly(measure, model, task) for name, measure in CALLED.items()}


@pytest.mark.parametrize("session", SESSIONS)
def test_the_session_changes_no_number(model, task, usual, session):
    for name, measure in CALLED.items():
        with SESSIONS[session]():
            found = quietly(measure, model, task)
        same(usual[name], found)


def test_edited_weights_are_measured_as_they_are(model, task, usual):
    """Even behind PyTorch's back: nothing is read from what was kept."""
    weight = model.blocks[1].mlp.out.weight
    kept = weight.detach().clone()
    try:
        weight.data.mul_(3)
        fast, hooks = (patch(model, task, "z", engine=e) for e in ("fast", "hooks"))
        np.testing.assert_allclose(fast.logit_diff, hooks.logit_diff, atol=1e-4)
        assert float(abs(fast.logit_diff - usual["patch"].logit_diff).max()) > 1e-3
        assert fast.attrs["weights_hash"] != usual["patch"].attrs["weights_hash"]
    finally:
        weight.data.copy_(kept)
    same(usual["patch"], patch(model, task, "z"))


def test_what_was_made_before_an_edit_is_not_used_after_it(model, task):
    run, session = circuits.Ablated(model, task, "zero"), explorer.Session(model, task, study=False)
    state = dataclasses.replace(session.choose(explorer.ExplorerState(), task.name, 0), view="attribution")
    session.figure(state)
    weight = model.blocks[1].mlp.out.weight
    kept = weight.detach().clone()
    try:
        weight.data.mul_(3)
        with pytest.raises(ValueError, match="weights were changed"):
            run([[node(task)]])
        with pytest.raises(ValueError, match="weights were changed"):
            session.figure(state)
    finally:
        weight.data.copy_(kept)


def test_fingerprint_sees_every_tensor(model):
    before = fingerprint(model)
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        flat, at = t.data.view(-1) if t.is_contiguous() else t.data, -1
        old = flat[at].clone()
        flat[at] = flat[at] + 1
        assert fingerprint(model) != before, name
        flat[at] = old
    assert fingerprint(model) == before


def test_a_study_is_guarded(model, task, tmp_path):
    with train(model), pytest.raises(ValueError, match="training mode"):
        task_study.study(task, model, tmp_path, progress=False)
