"""The planted model: reproducible, does its tasks, and the truth about it agrees with counterfactuals on the built
model.

The counterfactuals are run through TransformerLens' hooks, or through the plain Hugging Face model, and not through the
fast engine, whose methods the planted models are there to judge."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from namemovers import planted
from namemovers.data import NAMES, PILOT_NAMES, ioi_task, mrs_task
from namemovers.engine.ready import why_not
from namemovers.model import load_model, model_name, model_note, shipped_models, weights_hash
from namemovers.planted import CHANGES, CIRCUITS, DECOYS, PARTS, build, truth
from namemovers.stats import head_name

N = 16


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("cache"), os.environ.get("NAMEMOVERS_CACHE")
    os.environ["NAMEMOVERS_CACHE"] = str(folder)
    yield folder
    del os.environ["NAMEMOVERS_CACHE"]
    if before is not None:
        os.environ["NAMEMOVERS_CACHE"] = before


@pytest.fixture(scope="module", params=[0, 1, 2])
def variant(request, cache):
    """Three noise levels, both kinds of negative name movers: (model, truth)."""
    name = f"planted-{request.param}" if request.param else "planted"
    return load_model(name, device="cpu"), truth(request.param)


def complaint(function, *args, **kwargs):
    with pytest.raises(ValueError) as e:
        function(*args, **kwargs)
    assert "\n" not in str(e.value)
    return str(e.value)


def sha(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def logits(model, task, hooks=(), corrupted=False):
    tokens = task.corrupted_tokens if corrupted else task.clean_tokens
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=list(hooks))[torch.arange(len(task)), task.positions["END"]]


def difference(model, task, hooks=(), corrupted=False):
    y = logits(model, task, hooks, corrupted)
    return (y.gather(1, task.correct[:, None]) - y.gather(1, task.wrong[:, None]))[:, 0]


def kept(model, tokens, names):
    """Activations of a run."""
    found = {}

    def keep(value, hook):
        found[hook.name] = value.clone()

    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[(n, keep) for n in names])
    return found


def replaced(heads, values=None):
    """Hooks that put other outputs (or zeros) in place of some heads'."""

    def put(z, hook, layer):
        z = z.clone()
        for h in [h for l, h in heads if l == layer]:
            z[:, :, h] = 0 if values is None else values[hook.name][:, :, h]
        return z

    return [(f"blocks.{l}.attn.hook_z", lambda z, hook, l=l: put(z, hook, l)) for l in sorted({l for l, _ in heads})]


def effects(model, task, direction="denoise"):
    """Activation patching of every head by hooks: {head: share of the distance between the two runs}."""
    names = [f"blocks.{l}.attn.hook_z" for l in range(model.cfg.n_layers)]
    into_corrupted = direction == "denoise"
    values = kept(model, task.clean_tokens if into_corrupted else task.corrupted_tokens, names)
    clean, corrupted = difference(model, task), difference(model, task, corrupted=True)
    base = corrupted if into_corrupted else clean
    heads = [(l, h) for l in range(model.cfg.n_layers) for h in range(model.cfg.n_heads)]
    patched = {head: difference(model, task, replaced([head], values), into_corrupted) for head in heads}
    return {head: float(((v - base).mean() / (clean - corrupted).mean()).abs()) for head, v in patched.items()}


def persons(tokenizer):
    return torch.tensor([tokenizer.encode(" " + n)[0] for n in {*NAMES, *PILOT_NAMES.values()}])


# what it does


def test_tasks_in_both_orders_and_nobody_without_a_cue(variant):
    model, _ = variant
    for order in ("ABBA", "BABA"):
        task = ioi_task(model.tokenizer, 60, 11, order=order)
        assert (logits(model, task).argmax(-1) == task.correct).float().mean() >= 0.95
        swapped = replace(task, clean_tokens=task.corrupted_tokens, correct=task.wrong)
        assert (logits(model, swapped).argmax(-1) == swapped.correct).float().mean() >= 0.95, (
            "with S2 exchanged the other name is right"
        )
    assert (logits(model, mrs := mrs_task(model.tokenizer, 60, 11)).argmax(-1) == mrs.correct).float().mean() >= 0.95
    for corruption in ("no_cue", "other_cue"):
        task = mrs_task(model.tokenizer, 60, 11, corruption=corruption)
        top = logits(model, task, corrupted=True).argmax(-1)
        assert not torch.isin(top, persons(model.tokenizer)).any(), f"{corruption}: a name is on top"


def test_all_shipped_mrs_templates(variant):
    model, _ = variant
    task = mrs_task(model.tokenizer, 65, 3, templates="all")
    assert (difference(model, task) > 0).float().mean() >= 0.95


def test_it_is_a_model_as_any_other(variant):
    model, circuit = variant
    assert why_not(model) is None
    assert model_name(model) == circuit.name and "written by hand" in model_note(model)
    assert "planted" in shipped_models()


def test_folding_changes_no_prediction(variant):
    from transformers import GPT2LMHeadModel

    model, circuit = variant
    plain = GPT2LMHeadModel.from_pretrained(build(circuit.parameters["seed"])).eval()
    assert (plain.transformer.h[0].ln_1.weight - 1).abs().max() > 0.1, "there is something to fold"
    tokens = mrs_task(model.tokenizer, 4).clean_tokens
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens).log_softmax(-1), plain(tokens).logits.log_softmax(-1), atol=1e-4, rtol=0
        )


# the truth against counterfactuals


@pytest.mark.parametrize(
    "key",
    [
        ("ioi", "switch_s2", "denoise"),
        ("mrs", "switch_subjects", "denoise"),
        ("mrs", "no_cue", "denoise"),
        ("ioi", "abc", "noise"),
    ],
    ids=" ".join,
)
def test_heads_that_pass_on_a_difference_are_those_that_patching_moves(variant, key):
    model, circuit = variant
    name, corruption, direction = key
    task = {"ioi": ioi_task, "mrs": mrs_task}[name](model.tokenizer, N, 5, corruption=corruption)
    found = effects(model, task, direction)
    sees = circuit.find(task=name, corruption=corruption)
    weak = set(circuit.find("backup name mover"))  # quiet as long as the name movers work
    assert all(found[h] > 0.01 for h in set(sees) - weak), {head_name(*h): found[h] for h in sees}
    # all others: noise, and the false match that a clean previous token head makes in a prompt with other names
    others = {h: v for h, v in found.items() if h not in sees}
    assert max(others.values()) < 0.05, {head_name(*h): v for h, v in others.items() if v >= 0.05}
    assert max(others.values()) < min(found[h] for h in circuit.find("name mover"))


def test_idle_heads_do_nothing(variant):
    model, circuit = variant
    for task in (ioi_task(model.tokenizer, N), mrs_task(model.tokenizer, N)):
        before = difference(model, task)
        assert (difference(model, task, replaced(circuit.find("inert"))) - before).abs().max() < 0.1
        change = difference(model, task, replaced(circuit.find(*DECOYS))) - before  # their noise, and LayerNorm's scale
        assert change.mean().abs() < 0.05 * before.mean() and change.abs().max() < 0.25 * before.mean()


def test_every_part_is_needed_or_makes_up_for_another(variant):
    model, circuit = variant
    ioi, mrs = ioi_task(model.tokenizer, N), mrs_task(model.tokenizer, N)
    before = {t.name: difference(model, t).mean() for t in (ioi, mrs)}

    def without(task, *parts):
        return difference(model, task, replaced(circuit.find(*parts))).mean() / before[task.name]

    assert without(ioi, "name mover") < 0.5 and without(mrs, "name mover") < 0.5
    assert without(ioi, "S-inhibition") < 0.5 and without(ioi, "duplicate token", "induction") < 0.6
    assert without(mrs, "cue") < 0.1
    assert without(mrs, "recency") < 0.5
    assert without(mrs, "previous token") < 0.1
    assert without(mrs, "induction") < 0.1
    for task in (ioi, mrs):
        assert without(task, "negative name mover") > 1.05
        assert without(task, "name mover", "backup name mover") < without(task, "name mover") - 0.1, (
            "the backup made up for them"
        )
        assert without(task, "backup name mover") > 0.9, "and is quiet as long as they work"
    # parts of the other task
    assert abs(without(ioi, "cue", "recency") - 1) < 0.1
    assert abs(without(mrs, "S-inhibition", "duplicate token") - 1) < 0.1


def test_edges_act_through_the_inputs_that_the_truth_names(variant):
    """Path patching by hand: one head's output of the clean run into one input of one later head of the corrupted
    run."""
    model, circuit = variant
    task = ioi_task(model.tokenizer, 8, 5)
    layers = range(model.cfg.n_layers)
    z_names = [f"blocks.{l}.attn.hook_z" for l in layers]
    clean, corrupted = (kept(model, t, z_names) for t in (task.clean_tokens, task.corrupted_tokens))
    base = difference(model, task, corrupted=True)
    distance = (difference(model, task) - difference(model, task, corrupted=True)).mean()

    def effect(sender, receiver, component):
        freeze = {n: v.clone() for n, v in corrupted.items()}
        freeze[z_names[sender[0]]][:, :, sender[1]] = clean[z_names[sender[0]]][:, :, sender[1]]
        wanted = f"blocks.{receiver[0]}.attn.hook_{component}"
        mlps = kept(model, task.corrupted_tokens, [f"blocks.{l}.hook_mlp_out" for l in layers])
        found = {}

        def into(value, hook):
            found[hook.name] = value.clone()

        hooks = (
            [(n, lambda z, hook: freeze[hook.name]) for n in z_names]
            + [(n, lambda x, hook: mlps[hook.name]) for n in mlps]
            + [(wanted, into)]
        )
        with torch.no_grad():
            model.run_with_hooks(task.corrupted_tokens, fwd_hooks=hooks)

        def put(x, hook):
            x = x.clone()
            x[:, :, receiver[1]] = found[wanted][:, :, receiver[1]]
            return x

        return float(((difference(model, task, [(wanted, put)], corrupted=True) - base).mean() / distance).abs())

    strongest = {
        p: max(circuit.find(p), key=lambda h: next(x["weight"] for x in circuit.heads if (x["layer"], x["head"]) == h))
        for p in PARTS
    }
    before_negative = {"attention": "S-inhibition", "suppression": "name mover"}[circuit.parameters["negative"]]
    for sender, receiver, true in (
        ("S-inhibition", "name mover", "q"),
        (before_negative, "negative name mover", "q"),
        ("duplicate token", "S-inhibition", "v"),
        ("induction", "S-inhibition", "v"),
    ):
        assert {e["component"] for e in circuit.paths("ioi", "switch_s2", sender, receiver)} == {true}
        found = {c: effect(strongest[sender], strongest[receiver], c) for c in "qkv"}
        assert found[true] > 0.03 and all(v < 0.1 * found[true] for c, v in found.items() if c != true), (
            sender,
            receiver,
            found,
        )


def test_induction_needs_the_previous_token_head_through_its_keys(variant):
    model, circuit = variant
    task = mrs_task(model.tokenizer, N, corruption="no_cue")
    induction = circuit.find("induction")
    keys = [f"blocks.{l}.attn.hook_k" for l in sorted({l for l, _ in induction})]
    before = kept(model, task.clean_tokens, keys)
    hooks = replaced(circuit.find("previous token"))
    found = {}

    def look(value, hook):
        found[hook.name] = value.clone()

    with torch.no_grad():
        model.run_with_hooks(task.clean_tokens, fwd_hooks=[*hooks, *((k, look) for k in keys)])

    def only_keys(value, hook):
        value = value.clone()
        for l, h in induction:
            if hook.name == f"blocks.{l}.attn.hook_k":
                value[:, :, h] = found[hook.name][:, :, h]
        return value

    assert any((found[k] - before[k]).abs().max() > 0.1 for k in keys)
    whole = difference(model, task, hooks).mean()
    through_keys = difference(model, task, [(k, only_keys) for k in keys]).mean()
    clean = difference(model, task).mean()
    assert whole < 0.1 * clean and abs(through_keys - whole) < 0.1 * clean


# the truth as data


def test_truth_is_of_one_piece():
    for seed in range(20):
        t = truth(seed)
        assert sorted(t.parts) == [(l, h) for l in range(t.parameters["n_layers"]) for h in range(planted.N_HEADS)]
        for part, p in PARTS.items():
            assert [x["weight"] for x in sorted(t.heads, key=lambda x: -x["weight"]) if x["part"] == part] == sorted(
                p.weights, reverse=True
            )
        layer = {head_name(*h): h[0] for h in t.parts} | {"embed": -1, "logits": 99}
        assert all(layer[e["sender"]] < layer[e["receiver"]] for e in t.edges)
        for task, parts in CIRCUITS.items():
            assert {t.parts[h] for h in t.find(task=task)} == set(parts)
            # everybody in a circuit is reached from the embedding and reaches the logits within it
            up, down, edges = {"embed"}, {"logits"}, t.paths(task)
            for _ in range(10):
                up |= {e["receiver"] for e in edges if e["sender"] in up}
                down |= {e["sender"] for e in edges if e["receiver"] in down}
            assert {head_name(*h) for h in t.find(task=task)} <= up & down
        for task, corruption in CHANGES:
            assert set(t.find(task=task, corruption=corruption)) <= set(t.find(task=task))
            assert t.mask(task=task, corruption=corruption).values.sum() == len(
                t.find(task=task, corruption=corruption)
            )
    assert len({json.dumps(list(truth(s).parts.values())) for s in range(20)}) > 15, "seeds differ in who stands where"


def test_truth_and_the_edges_of_the_library_have_the_same_names(variant):
    from namemovers.circuits import Edge, graph

    model, circuit = variant
    g = graph(model)
    mask = g.mask([Edge(e["sender"], e["receiver"], e["component"]) for e in circuit.edges])
    assert mask.sum() == len({(e["sender"], e["receiver"], e["component"]) for e in circuit.edges})


def test_signs_are_those_of_the_logits(variant):
    model, circuit = variant
    for task in (ioi_task(model.tokenizer, N), mrs_task(model.tokenizer, N)):
        before = difference(model, task)
        for part in ("name mover", "negative name mover", "S-inhibition", "recency", "cue"):
            for head in circuit.find(part, task=task.name):
                sign = next(x[task.name] for x in circuit.heads if (x["layer"], x["head"]) == head)
                assert sign * float((before - difference(model, task, replaced([head]))).mean()) > 0, (
                    task.name,
                    part,
                    head,
                )


def test_more_layers_and_fewer_distractors(tmp_path):
    folder = build(5, n_layers=8, distractors=0, negative="suppression", folder=tmp_path / "m")
    model, circuit = load_model(folder, device="cpu"), truth(folder=folder)
    assert circuit == truth(5, n_layers=8, distractors=0, negative="suppression") and model.cfg.n_layers == 8
    assert not circuit.find(*DECOYS) and len(circuit.find("inert")) == 32 - sum(len(p.weights) for p in PARTS.values())
    task = ioi_task(model.tokenizer, N)
    assert (difference(model, task) > 0).all()


# the folder


def test_same_parameters_same_weights_in_another_process(cache, tmp_path):
    here = build(3)
    code = f"from namemovers.planted import build; build(3, folder={str(tmp_path / 'again')!r})"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    )
    assert sha(here) == sha(tmp_path / "again")
    assert sha(here) != sha(build(4)), "another seed, another model"
    assert sha(build(3, noise=0.001, folder=tmp_path / "noisy")) != sha(
        build(3, noise=0.002, folder=tmp_path / "noisier")
    )


def test_a_named_variant_is_built_once(cache):
    folder = build(3)
    before = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    model = load_model("planted-3")
    assert {f.name: f.stat().st_mtime_ns for f in folder.iterdir()} == before
    assert weights_hash(load_model("planted-3")) == weights_hash(model)
    assert not [f for f in cache.iterdir() if f.name.startswith(".")], "nothing half made is left"


@pytest.mark.parametrize("damage", ["truncated", "missing", "other config", "no truth"])
def test_a_damaged_cache_is_made_again(cache, damage):
    folder = build(3)
    good = {f.name: f.read_bytes() for f in folder.iterdir()}
    if damage == "truncated":
        (folder / "model.safetensors").write_bytes(good["model.safetensors"][:1000])
    elif damage == "missing":
        (folder / "tokenizer.json").unlink()
    elif damage == "other config":
        (folder / "config.json").write_bytes(good["config.json"].replace(b'"n_layer": 6', b'"n_layer": 5'))
    else:
        (folder / "circuit.json").write_text("{")
    assert {f.name: f.read_bytes() for f in folder.iterdir()} != good
    load_model("planted-3", device="cpu")
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == good


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def stop(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr(planted, "accuracy", stop)
    with pytest.raises(KeyboardInterrupt):
        build(folder=tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_building_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(1)
    np.random.seed(1)
    build(folder=tmp_path / "m")
    assert torch.equal(torch.rand(2), expected[0]) and np.array_equal(np.random.rand(2), expected[1])


# what cannot be


@pytest.mark.parametrize(
    "arguments, says",
    [
        (dict(seed=-1), "seed=-1"),
        (dict(seed=1.5), "seed=1.5"),
        (dict(seed=True), "seed=True"),
        (dict(noise=-0.1), "noise=-0.1"),
        (dict(noise="much"), "noise='much'"),
        (dict(noise=float("nan")), "noise=nan"),
        (dict(n_layers=5), "n_layers=5"),
        (dict(distractors=10), "distractors=10"),
        (dict(negative="no"), "negative='no'"),
    ],
    ids=str,
)
def test_bad_parameters(arguments, says):
    assert says in complaint(build, **arguments) and says in complaint(truth, **arguments)


def test_too_much_noise_is_refused(tmp_path):
    text = complaint(build, noise=0.2, folder=tmp_path / "m")
    assert "noise=0.2" in text and "fails its task" in text and list(tmp_path.iterdir()) == []


def test_somebody_elses_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "holds something else" in complaint(build, folder=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert "holds no planted model" in complaint(truth, folder=tmp_path)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NAMEMOVERS_CACHE", str(tmp_path / "file"))
    assert "NAMEMOVERS_CACHE" in complaint(build)


def test_unknown_parts_tasks_and_corruptions():
    t = truth()
    assert "'mover'" in complaint(t.find, "mover")
    assert "'abc'" in complaint(t.find, task="abc")
    assert "'abc'" in complaint(t.paths, "mrs", "abc")
    assert "planted-x" in complaint(load_model, "planted-x", offline=True)
