"""Circuits of edges against TransformerLens hooks, against path patching, and against themselves."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import told_apart, warned, with_mean
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from dataclasses import replace

from test_engine import in_double, model, neox, prompts  # noqa: F401  (fixtures)

from namemovers.activation_patching import patch
from namemovers.data import Task, ioi_task, mrs_task
from namemovers.circuits import (
    ABLATIONS,
    Edge,
    Graph,
    ablate_edges,
    acdc,
    attribute_edges,
    connected,
    graph,
    run_edges,
    top_edges,
)
from namemovers.circuits.ablation import drawn
from namemovers.circuits.edge_graph import nodes
from namemovers.circuits.edge_search import Search
from namemovers.engine import ready as readiness
from namemovers.engine.ready import ready
from namemovers.model import load_model
from namemovers.path_patching import path_patch
from namemovers.planted import truth
from namemovers.results import load, save
from namemovers.stats import head_name, overlap


def a_task(model, seed=0, n=6, length=9):  # noqa: F811
    """Random prompts of two lengths and two templates; one pair differs everywhere, one nowhere."""
    clean, corrupted, read_at, correct, wrong = prompts(model, seed, n, length)
    corrupted[:, 0] = clean[:, 0] = 1  # BOS
    kinds = ["a", "b"] * (n // 2) + ["a"] * (n % 2)
    task = Task(
        "random",
        ["?"] * n,
        ["?"] * n,
        clean,
        corrupted,
        read_at + 1,
        correct,
        wrong,
        {"END": read_at},
        "random",
        seed,
        kinds,
        [{}] * n,
    )
    return told_apart(model, task)


# An independent reference: every input of the model is given to TransformerLens in a run of its own.


def written(model, tokens):  # noqa: F811
    """What every sender writes in a plain run: name -> [prompt, position, d_model]."""
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    out = {"embed": cache["blocks.0.hook_resid_pre"]}
    for l, block in enumerate(model.blocks):
        for h in range(model.cfg.n_heads):
            out[f"L{l}H{h}"] = cache[f"blocks.{l}.attn.hook_z"][:, :, h] @ block.attn.W_O[h]
        out[f"MLP {l}"] = cache[f"blocks.{l}.hook_mlp_out"]
    return {k: v.detach() for k, v in out.items()}


@torch.no_grad()
def slow(model, tokens, ablated, weight):  # noqa: F811
    """Logits [prompt, position, token] where each edge carries `weight(edge)` of what its sender writes in this run,
    and the rest of its ablated value."""
    now, g, constant = {"embed": written(model, tokens)["embed"]}, graph(model), 0

    def read(receiver, component=""):
        senders = [e.sender for e in g.edges if (e.receiver, e.component) == (receiver, component)]
        part = {s: float(weight(Edge(s, receiver, component))) for s in senders}
        return sum(part[s] * now[s] + (1 - part[s]) * ablated[s] for s in senders) + constant

    def at(where, value, what):  # the activation `what` of a run whose activation `where` is `value`
        seen = {}
        hooks = [(name, lambda t, hook, v=v: v) for name, v in zip(where, value)]
        hooks.append((what, lambda t, hook: seen.update(x=t.clone())))
        seen["logits"] = model.run_with_hooks(tokens, fwd_hooks=hooks)
        return seen

    for l, block in enumerate(model.blocks):
        own = {}
        for c in "qkv":
            each = [
                at([f"blocks.{l}.hook_resid_pre"], [read(f"L{l}H{h}", c)], f"blocks.{l}.attn.hook_{c}")["x"][:, :, h]
                for h in range(model.cfg.n_heads)
            ]
            own[c] = torch.stack(each, 2)
        z = at([f"blocks.{l}.attn.hook_{c}" for c in "qkv"], own.values(), f"blocks.{l}.attn.hook_z")["x"]
        heads = {f"L{l}H{h}": z[:, :, h] @ block.attn.W_O[h] for h in range(model.cfg.n_heads)}
        if not g.parallel:
            now |= heads
            constant = constant + block.attn.b_O
        mlp_reads = f"blocks.{l}.hook_resid_pre" if g.parallel else f"blocks.{l}.hook_resid_mid"
        now[f"MLP {l}"] = at([mlp_reads], [read(f"MLP {l}")], f"blocks.{l}.hook_mlp_out")["x"]
        if g.parallel:
            now |= heads
            constant = constant + block.attn.b_O
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    return at([last], [read("logits")], last)["logits"]


def ablated_values(model, task, ablation, direction="noise"):  # noqa: F811
    other = written(model, task.corrupted_tokens if direction == "noise" else task.clean_tokens)
    if ablation == "zero":
        return {k: torch.zeros_like(v) for k, v in other.items()}
    if ablation == "mean":
        kinds = [(t, int(e)) for t, e in zip(task.templates, task.positions["END"])]
        groups = [[j for j, k in enumerate(kinds) if k == kind] for kind in kinds]
        return {k: torch.stack([v[members].mean(0) for members in groups]) for k, v in other.items()}
    if ablation == "random":
        taken = torch.tensor(drawn(task, task, seed=0))
        return {k: v[taken] for k, v in other.items()}
    if ablation == "mean_over_positions":
        inside = torch.arange(task.clean_tokens.shape[1])[None] <= task.positions["END"][:, None]
        inside[:, 0] = False
        return {k: torch.cat([v[:, :1], v[inside].mean(0).expand(v[:, 1:].shape)], 1) for k, v in other.items()}
    return other


def logit_diff(task, logits):
    end = logits[torch.arange(len(task)), task.positions["END"]]
    return (end.gather(1, task.correct[:, None]) - end.gather(1, task.wrong[:, None]))[:, 0].numpy()


@pytest.mark.parametrize("ablation, direction", [*((a, "noise") for a in ABLATIONS), ("resample", "denoise")])
def test_any_circuit_is_what_the_definition_says(model, ablation, direction):  # noqa: F811
    task, g, rng = a_task(model), graph(model), np.random.default_rng(1)
    circuits = {f"{share}": rng.random(len(g)) < share for share in (0.97, 0.6, 0.3)}
    circuits["one path"] = ["embed → L0H2 v", "L0H2 → L2H1 k", "L2H1 → logits"]
    ds = run_edges(model, task, circuits, ablation, direction)
    tokens = task.clean_tokens if direction == "noise" else task.corrupted_tokens
    ablated = ablated_values(model, task, ablation, direction)
    for name, circuit in circuits.items():
        mask = g.mask(circuit)
        want = logit_diff(task, slow(model, tokens, ablated, lambda e, mask=mask: mask[g.number[e]]))
        assert abs(ds.logit_diff.sel(circuit=name) - want).max() < 2e-5, name
    assert ds.logit_diff.std("circuit").max() > 0.05  # the comparison is of something
    assert list(ds.n_edges.values) == [g.mask(c).sum() for c in circuits.values()]


@pytest.mark.parametrize("metric", ["logit", "prob", "rank", "kl"])
def test_other_metrics(model, metric):  # noqa: F811
    task, g = a_task(model), graph(model)
    mask = np.random.default_rng(2).random(len(g)) < 0.5
    ds = run_edges(model, task, [mask], metric=metric)
    rows = torch.arange(len(task))
    end = slow(model, task.clean_tokens, ablated_values(model, task, "resample"), lambda e: mask[g.number[e]])[
        rows, task.positions["END"]
    ]
    with torch.no_grad():
        clean = model(task.clean_tokens)[rows, task.positions["END"]].log_softmax(-1)
    right = end.gather(1, task.correct[:, None])
    want = {
        "logit": with_mean(model, end).gather(1, task.correct[:, None])[:, 0],
        "prob": end.softmax(-1).gather(1, task.correct[:, None])[:, 0],
        "rank": (end > right).sum(1),
        "kl": (clean.exp() * (clean - end.log_softmax(-1))).sum(-1),
    }[metric]
    assert abs(ds[metric][0] - want.numpy()).max() < 2e-5


# Identities


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_all_edges_and_no_edge(model, ablation):  # noqa: F811
    task, g = a_task(model, n=20), graph(model)
    ds = run_edges(model, task, {"all": np.ones(len(g), bool), "none": []}, ablation)
    for name, tokens in (("clean", task.clean_tokens), ("corrupted", task.corrupted_tokens)):
        with torch.no_grad():
            assert abs(ds[name] - logit_diff(task, model(tokens))).max() < 1e-5
    assert abs(ds.logit_diff.sel(circuit="all") - ds.clean).max() < 1e-5
    assert abs(ds.logit_diff.sel(circuit="none") - ds.ablated).max() < 1e-5
    for circuit, share in (("all", 0), ("none", 1)):
        moved = (ds.logit_diff.sel(circuit=circuit) - ds.clean).mean() / (ds.ablated - ds.clean).mean()
        assert abs(moved - share) < 1e-4
        told = ds.effect.sel(circuit=circuit)  # NaN where the distance of the runs may be zero
        assert told.isnull().all() or abs(told.mean() - share) < 1e-4
    if ablation == "resample":
        assert ds.effect.notnull().all()
        assert abs(ds.ablated - ds.corrupted).max() < 1e-5
        other = run_edges(model, task, {"all": np.ones(len(g), bool), "none": []}, direction="denoise")
        assert abs(other.logit_diff.sel(circuit="all") - ds.corrupted).max() < 1e-5
        assert abs(other.ablated - ds.clean).max() < 1e-5
        assert abs(other.effect.sel(circuit="none").mean() - 1) < 1e-4


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_an_edge_cut_is_a_path_patched(model, component):  # noqa: F811
    task = a_task(model, n=3)
    exact = ablate_edges(model, task)
    for senders, name in (("head", "L{}H{}"), ("mlp", "MLP {}"), ("embed", "embed")):
        for receivers in ("logits", "heads"):
            paths = path_patch(model, task, senders, receivers, component, direction="noise").logit_diff
            compared = 0
            for at in np.ndindex(paths.shape[:-1]):
                if np.isnan(paths.values[at]).any():
                    continue
                sender, receiver = (at, ()) if receivers == "logits" else (at[:-2], at[-2:])
                edge = Edge(
                    name.format(*sender),
                    *(("logits", "") if receivers == "logits" else (f"L{receiver[0]}H{receiver[1]}", component)),
                )
                assert abs(exact.logit_diff.sel(edge=str(edge)).values - paths.values[at]).max() < 2e-5, edge
                compared += 1
            assert compared


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_an_edge_added_is_a_path_patched(model, component):  # noqa: F811
    """Denoising: the clean sender with all that it is computed from, read by one input alone, and all that comes
    after it computed again."""
    task, g = a_task(model, n=3), graph(model)
    after = {"L1H2": ["L1H2"], "L2H1": ["L2H1"]}
    paths = path_patch(model, task, "head", "heads", component).logit_diff
    number = {name: i for i, name in enumerate([*g.senders, "logits"])}
    for sender, receiver in (("L0H1", "L1H2"), ("L1H0", "L2H1"), ("L0H3", "L2H1")):
        source, layer = number[sender], int(receiver[1])
        below = {
            name
            for name in g.senders
            if name == "embed" or int(name.replace("MLP ", "L").split("H")[0][1:]) < int(sender[1])
        }
        later = {*after[receiver], *(name for name in g.senders if number[name] >= number[f"L{layer}H3"] + 1), "logits"}
        circuit = [
            e
            for e in g.edges
            if (e.sender in below and (number[e.receiver] == source or e.receiver in below))
            or (e.sender in later and e.receiver in later)
        ]
        ds = run_edges(model, task, {"with": [*circuit, Edge(sender, receiver, component)], "without": circuit})
        want = paths.sel(sender_layer=int(sender[1]), sender_head=int(sender[3]), layer=layer, head=int(receiver[3]))
        assert abs(ds.logit_diff.sel(circuit="with") - want.values).max() < 2e-5
        assert abs(ds.logit_diff.sel(circuit="without") - ds.corrupted).max() < 1e-5


def test_a_head_without_readers_is_a_head_patched(model):  # noqa: F811
    task, g = a_task(model), graph(model)
    heads = patch(model, task, "z", direction="noise").logit_diff
    ds = run_edges(model, task, {name: [e for e in g.edges if e.sender != name] for name in ("L0H3", "L1H1", "L2H2")})
    for name in ds.circuit.values:
        assert (
            abs(ds.logit_diff.sel(circuit=name) - heads.sel(layer=int(name[1]), head=int(name[3])).values).max() < 2e-5
        )


def test_single_edges_are_circuits_without_one(model):  # noqa: F811
    task, g = a_task(model, n=20), graph(model)
    chosen = [g.edges[i] for i in range(3, len(g), 17)]
    one = ablate_edges(model, task, chosen)
    circuits = run_edges(model, task, {str(e): [f for f in g.edges if f != e] for e in chosen})
    assert list(one.edge.values) == [str(e) for e in chosen] and list(one.sender.values) == [e.sender for e in chosen]
    assert abs(one.logit_diff.values - circuits.logit_diff.values).max() < 1e-5
    np.testing.assert_allclose(one.effect.values, circuits.effect.values, atol=1e-4)
    assert not np.isnan(one.effect.values).any()
    for ablation in ("mean", "zero"):
        a, b = (
            run(model, task, what, ablation).logit_diff.values
            for run, what in (
                (ablate_edges, chosen),
                (run_edges, {str(e): [f for f in g.edges if f != e] for e in chosen}),
            )
        )
        assert abs(a - b).max() < 1e-5


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_budget_and_order_do_not_matter(model, ablation):  # noqa: F811
    task, g, rng = a_task(model, n=8), graph(model), np.random.default_rng(3)
    circuits = [rng.random(len(g)) < share for share in (0.9, 0.1, 0.5, 0.05, 0.99)]
    usual = run_edges(model, task, circuits, ablation)
    for run in (
        lambda b: run_edges(model, task, circuits, ablation, memory_budget=b),
        lambda b: attribute_edges(model, task, ablation=ablation, memory_budget=b),
    ):
        with pytest.raises(ValueError, match="too small") as e:
            run(1)
        least = run(int(str(e.value).split("at least ")[1].split()[0]))
        assert abs(least.logit_diff - run(2**30).logit_diff).max() < 1e-5
    back = run_edges(model, task, circuits[::-1], ablation)
    assert abs(back.logit_diff.values[::-1] - usual.logit_diff.values).max() < 1e-5
    if ablation == "resample":
        order = [5, 2, 7, 0]
        assert (
            abs(run_edges(model, task[order], circuits).logit_diff.values - usual.logit_diff.values[:, order]).max()
            < 1e-5
        )


def test_memory_is_bounded(tiny_folder):
    """Ten times the prompts and the circuits, the same budget: the peak stays where it is."""
    script = """
import resource, sys, torch
import numpy as np
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from test_edges import a_task
from namemovers.circuits import attribute_edges, graph, run_edges
from namemovers.model import load_model
model = load_model(sys.argv[1], device="cpu")
rng, g = np.random.default_rng(0), graph(model)
def go(n):
    task = a_task(model, n=n, length=60)
    run_edges(model, task, rng.random((n, len(g))) < 0.5, memory_budget=2**26)
    attribute_edges(model, task, memory_budget=2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
go(3)
print(go(8), go(80))
"""
    out = subprocess.run(
        [sys.executable, "-c", script, str(tiny_folder), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    few, many = (int(x) / 1024 for x in out[-2:])
    assert many - few < 48, f"{few:.0f} MiB with 8 prompts and circuits, {many:.0f} MiB with 80"


# The graph


def test_the_graph(model):  # noqa: F811
    g = graph(model)
    assert len(g) == len(set(g.edges)) == len(g.coords["edge"])
    assert ("L1H0 → MLP 1" in g.number) == (not model.cfg.parallel_attn_mlp)
    # a sender comes before what it is read by
    assert all(np.flatnonzero(g.readers[i]).min() > s for i, s in zip(g.input_of, g.sender_of))
    assert (g.dense(g.mask([3, 8]))[g.input_of, g.sender_of].nonzero()[0] == [3, 8]).all()
    assert graph(g.label([1])) == g


def brute_force(g, mask):
    """Edges on a path from embedding to logits, by walking all paths."""
    into = {}
    for i in np.flatnonzero(mask):
        into.setdefault(g.edges[i].sender, []).append(i)
    found, group = set(), g.n_heads // g.n_kv_heads

    def walk(node, path):
        if node == "logits":
            found.update(path)
        for i in into.get(node, []):
            receiver = g.edges[i].receiver
            if "KV" in receiver:  # keys and values go on to the heads that share them
                layer, at = receiver.split("KV")
                for h in range(int(at) * group, int(at) * group + group):
                    walk(f"{layer}H{h}", [*path, i])
            else:
                walk(receiver, [*path, i])

    walk("embed", [])
    return np.isin(np.arange(len(g)), list(found))


@settings(max_examples=40, deadline=None)
@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    group=st.integers(1, 2),
    parallel=st.booleans(),
    share=st.sampled_from([0.05, 0.15, 0.3]),
    seed=st.integers(0, 999),
)
def test_connected_edges(layers, heads, group, parallel, share, seed):
    g = Graph(layers, heads * group, parallel, heads)
    mask = np.random.default_rng(seed).random(len(g)) < share
    kept = connected(g, mask).values
    assert (kept == brute_force(g, mask)).all()
    assert (connected(g, kept).values == kept).all()
    assert set(nodes(g, kept)) == {n for i in np.flatnonzero(kept) for n in g.edges[i][:2]}


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 999), share=st.sampled_from([0.02, 0.1, 0.4]))
def test_what_is_not_connected_changes_nothing(tiny, neox, seed, share):  # noqa: F811
    for m in (tiny, neox):
        g, task = graph(m), a_task(m, seed)
        mask = np.random.default_rng(seed).random(len(g)) < share
        ds = run_edges(m, task, [mask, connected(g, mask)])
        assert abs(ds.logit_diff[0] - ds.logit_diff[1]).max() < 1e-5


def test_top_edges():
    g = Graph(2, 2, False)
    scores = g.label([]).astype(float)
    for edge, value in {
        "embed → L0H0 v": 3,
        "L0H0 → L1H1 q": -2,
        "L1H1 → logits": 1,
        "embed → MLP 1": 5,
        "L0H1 → logits": 0.5,
    }.items():
        scores.loc[dict(edge=edge)] = value
    chosen = lambda c: set(c.edge.values[c.values])
    assert chosen(top_edges(scores, 2)) == {"embed → MLP 1", "embed → L0H0 v"}
    assert chosen(top_edges(scores, 4, signed=True)) == {
        "embed → MLP 1",
        "embed → L0H0 v",
        "L1H1 → logits",
        "L0H1 → logits",
    }
    # not the largest, for nobody reads MLP 1 yet
    assert chosen(top_edges(scores, 3, greedy=True)) == {"L1H1 → logits", "L0H0 → L1H1 q", "embed → L0H0 v"}
    assert not top_edges(scores, 0).any()
    assert top_edges(scores, len(g)).all()
    assert top_edges(scores, len(g), greedy=True).all()
    assert overlap(top_edges(scores, 2), top_edges(scores, 3))["jaccard"] == 2 / 3


# Attribution


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_gradient_is_that_of_finite_differences(model, ablation):  # noqa: F811
    """Each edge carries a little less of its sender: the slope is the estimate."""
    task, g = a_task(model, n=3), graph(model)
    estimate = attribute_edges(model, task, ablation=ablation)
    change = estimate.logit_diff - estimate.clean
    ablated, step = ablated_values(model, task, ablation), 0.02
    largest = np.argsort(-abs(change).max("prompt").values)
    for i in [*largest[:2], largest[30], *(g.number[e] for e in ("embed → L0H1 q", "L0H2 → L1H0 k", "embed → MLP 0"))]:
        less, more = (
            logit_diff(task, slow(model, task.clean_tokens, ablated, lambda e: 1 + sign * step * (e == g.edges[i])))
            for sign in (-1, 1)
        )
        assert abs((less - more) / (2 * step) - change[i].values).max() < 1e-3 + 0.01 * abs(change[i]).max(), g.edges[i]


def gradient_at_an_input(model, tokens, embedded, receiver, component, read):  # noqa: F811
    """The slope of `read(logits)` along what one input of the model reads, by autograd in TransformerLens's run from
    these embeddings: [prompt, position, d_model]."""
    nudge = torch.zeros_like(embedded, requires_grad=True)
    start = [("blocks.0.hook_resid_pre", lambda t, hook: embedded)]
    add = lambda t, hook: t + nudge
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    with torch.enable_grad():
        if receiver == "logits":
            logits = model.run_with_hooks(tokens, fwd_hooks=[*start, (last, add)])
        else:
            mlp = receiver.startswith("MLP")
            layer, head = (int(receiver.split()[1]), None) if mlp else map(int, receiver[1:].split("H"))
            before = f"blocks.{layer}.hook_resid_pre"
            reads = f"blocks.{layer}.hook_resid_mid" if mlp and not model.cfg.parallel_attn_mlp else before
            gives = f"blocks.{layer}.hook_mlp_out" if mlp else f"blocks.{layer}.attn.hook_{component}"
            seen = []
            model.run_with_hooks(tokens, fwd_hooks=[*start, (reads, add), (gives, lambda t, hook: seen.append(t) or t)])

            def put(t, hook):  # in one input alone: the stream itself goes on as it was
                if mlp:
                    return seen[0]
                t = t.clone()
                t[:, :, head] = seen[0][:, :, head]
                return t

            logits = model.run_with_hooks(tokens, fwd_hooks=[*start, (gives, put)])
        (slope,) = torch.autograd.grad(read(logits).sum(), nudge)
    return slope


@pytest.mark.filterwarnings("ignore:No effect can be given")
@pytest.mark.parametrize(
    "ablation, direction, steps",
    [
        *((a, "noise", 1) for a in ABLATIONS),
        *((a, "noise", 3) for a in ("resample", "mean", "zero")),
        ("resample", "denoise", 2),
    ],
)
def test_every_estimate_is_difference_times_gradient(model, ablation, direction, steps):  # noqa: F811
    """EAP, and EAP-IG at the middles of its steps between the embeddings: all edges, by autograd."""
    task, g = a_task(model, n=3), graph(model)
    estimate = attribute_edges(model, task, steps, ablation, direction)
    own = estimate.clean if direction == "noise" else estimate.corrupted
    found = (estimate.logit_diff - own).values
    tokens = task.clean_tokens if direction == "noise" else task.corrupted_tokens
    here, there = written(model, tokens), ablated_values(model, task, ablation, direction)
    rows, ends = torch.arange(len(task)), task.positions["END"]

    def read(logits):
        end = logits[rows, ends]
        return end[rows, task.correct] - end[rows, task.wrong]

    ways = [0] if steps == 1 else [(i + 0.5) / steps for i in range(steps)]
    inputs = sorted({(e.receiver, e.component) for e in g.edges})
    slopes = dict.fromkeys(inputs, 0)
    for way in ways:
        x = here["embed"] + way * (there["embed"] - here["embed"])
        for at in inputs:
            slopes[at] = slopes[at] + gradient_at_an_input(model, tokens, x, *at, read) / steps
    change = {sender: there[sender] - here[sender] for sender in g.senders}
    wanted = np.stack([(change[e.sender] * slopes[e.receiver, e.component]).sum((1, 2)) for e in g.edges])
    size = abs(wanted).max()
    assert size > 0.05 and found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1, size), rtol=1e-3)


@pytest.mark.parametrize("steps", [1, 3])
def test_small_differences_make_the_estimate_exact(tiny_folder, monkeypatch, steps):
    """Where the two runs hardly differ, the model is its tangent: a quarter of the difference leaves about a quarter
    of the relative error."""
    m = load_model(tiny_folder, device="cpu")
    task = a_task(m, n=2)
    task.corrupted_tokens.copy_(task.clean_tokens)
    task.clean_tokens[:, 4], task.corrupted_tokens[:, 4] = 11, 7  # 7 stands nowhere else
    w = in_double(ready(m))
    monkeypatch.setitem(readiness._known, m, replace(readiness._known[m], weights=w))
    direction, errors = torch.randn(w.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64), []
    for size in (4e-3, 1e-3):
        w.W_E[7] = w.W_E[11] + size * direction
        exact, estimate = ablate_edges(m, task), attribute_edges(m, task, steps)
        a, b = (ds.logit_diff - ds.clean for ds in (exact, estimate))
        errors.append(float(abs(a - b).max() / abs(a).max()))
    assert errors[0] < 0.05 and errors[1] < errors[0] / 3


def test_integrated_gradients_are_complete(model):  # noqa: F811
    """Along the line between the embeddings, what all edges of the embedding do adds up to what separates the two
    runs."""
    task = a_task(model)
    for direction in ("noise", "denoise"):
        ds = attribute_edges(model, task, steps=40, direction=direction)
        here, there = (ds.clean, ds.corrupted) if direction == "noise" else (ds.corrupted, ds.clean)
        total = (ds.logit_diff - here).where(ds.sender == "embed", drop=True).sum("edge")
        assert abs(total - (there - here)).max() < 0.01 * abs(there - here).max()


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_estimates_are_near_the_exact_effects(mini, ablation):
    task = ioi_task(mini.tokenizer, n=6)
    exact = ablate_edges(mini, task, ablation=ablation)
    estimate = attribute_edges(mini, task, ablation=ablation, steps=1 if ablation == "resample" else 10)
    assert estimate.attrs["approximation"] and "approximation" not in exact.attrs
    assert list(estimate.edge.values) == list(exact.edge.values)
    assert abs(estimate.clean - exact.clean).max() < 1e-4
    assert abs(estimate.ablated - exact.ablated).max() < 1e-4
    assert np.corrcoef(exact.effect.mean("prompt"), estimate.effect.mean("prompt"))[0, 1] > 0.5


# ACDC


def naive_acdc(m, task, threshold, metric, sign, order):
    g = graph(m)
    mask, rises = np.ones(len(g), bool), {}
    current = float(run_edges(m, task, [mask], metric=metric)[metric].mean())
    for i in reversed(range(len(g.inputs))):
        for e in sorted(
            np.flatnonzero(g.input_of == i), key=lambda e: g.sender_of[e] * (1 if order == "early" else -1)
        ):
            mask[e] = False
            value = float(run_edges(m, task, [mask], metric=metric)[metric].mean())
            rises[g.labels[e]] = sign * (value - current)
            if sign * (value - current) < threshold:
                current = value
            else:
                mask[e] = True
    return mask, rises


@pytest.mark.parametrize("metric, sign, threshold, order", [("kl", 1, 3e-4, "late"), ("logit_diff", -1, 0.02, "early")])
def test_acdc_is_the_algorithm(model, metric, sign, threshold, order):  # noqa: F811
    task, g = a_task(model, n=2, length=6), graph(model)
    mask, rises = naive_acdc(model, task, threshold, metric, sign, order)
    assert 3 < mask.sum() < len(g) / 2
    for max_batch in (64, 1):
        ds = acdc(model, task, threshold, metric, order=order, max_batch=max_batch)
        assert (~ds.cut.values == mask).all() and ds.decided.all() and ds.attrs["complete"] == 1
        assert (ds.circuit == connected(g, mask)).all()
        assert max(abs(rises[str(e)] - r) for e, r in zip(ds.tested.values, ds.rise.values)) < 1e-5
        assert all(abs(rises[e]) < 1e-6 for e in set(g.labels) - set(ds.tested.values))  # cut without a run
        assert (ds.was_cut == (ds.rise < threshold)).all()
        assert ds.left.values[-1] <= mask.sum() + (len(g) - ds.sizes["step"])
        assert abs(ds[metric] - run_edges(model, task, [mask], metric=metric)[metric][0]).max() < 1e-5
        assert ds.attrs["runs"] == ds.sizes["step"] + ds.attrs["discarded"] + 1
    assert ds.attrs["discarded"] == 0


def test_acdc_goes_on_where_it_was_interrupted(tiny, monkeypatch, tmp_path):
    task = ioi_task(tiny.tokenizer, n=3)
    whole = acdc(tiny, task, 0.02)
    real, searching = Search.decide, []

    def decide(self, e, cut):
        if len(searching) > 60:
            raise KeyboardInterrupt
        searching.append(e)
        return real(self, e, cut)

    monkeypatch.setattr(Search, "decide", decide)
    with warned("interrupted"):
        part = acdc(tiny, task, 0.02)
    monkeypatch.setattr(Search, "decide", real)
    assert part.attrs["complete"] == 0 and 0 < part.decided.sum() < len(part.edge)
    save(part, "part", tmp_path)
    rest = acdc(tiny, task, 0.02, resume=load("part", tmp_path))
    assert (rest.cut == whole.cut).all()
    assert rest.attrs["complete"] == 1
    assert list(rest.tested.values) == list(whole.tested.values)
    with pytest.raises(ValueError, match="threshold"):
        acdc(tiny, task, 0.03, resume=part)
    with pytest.raises(ValueError, match="seed"):
        acdc(tiny, ioi_task(tiny.tokenizer, n=3, seed=1), 0.02, resume=part)


# The truth


@pytest.mark.parametrize("make", [ioi_task, mrs_task])
def test_planted_edges_are_found(make):
    """`planted` has a circuit that is known; what the estimates rank high and what ACDC keeps is planted."""
    m = load_model("planted", device="cpu")
    task, g, built = make(m.tokenizer, n=6), graph(m), truth()
    planted, seen = (
        {g.number[Edge(e["sender"], e["receiver"], e["component"])] for e in some}
        for some in (built.paths(), built.paths(task.name, task.corruption))
    )
    assert len(planted) < len(g) / 5
    scores = {steps: attribute_edges(m, task, steps) for steps in (1, 5)}
    for ds in scores.values():
        assert set(np.flatnonzero(top_edges(ds, 20))) <= planted
        size = abs(ds.effect.mean("prompt")).values
        inside, outside = size[list(seen)], np.delete(size, list(planted))
        assert (inside[:, None] > outside).mean() > 0.95  # the area under the curve
    found = acdc(m, task, 0.03)
    kept = set(np.flatnonzero(found.circuit))
    assert len(kept) >= 10 and kept <= planted
    assert {e for e in kept if g.edges[e].sender != "embed"} <= seen
    exact = ablate_edges(m, task, sorted(seen))
    moved = exact.effect.mean("prompt").values
    assert sorted(seen)[int(abs(moved).argmax())] in kept
    # What an edge carries is for the answer or against it as the truth says; a backup writes for it only once the name
    # movers are out.
    backups = {head_name(*head) for head in built.find("backup name mover")}
    for number, effect in zip(sorted(seen), moved):
        edge = g.edges[number]
        signs = {
            e[task.name]
            for e in built.edges
            if (e["sender"], e["receiver"], e["component"]) == (edge.sender, edge.receiver, edge.component)
        }
        if not (edge.sender in backups and edge.receiver == "logits"):
            assert signs == {np.sign(effect)}, edge


def test_a_bare_circuit_is_drawn_with_its_shared_keys():
    """Four heads, two of keys: L1KV1 stands below heads 2 and 3, whichever of them are drawn."""
    from namemovers.circuits.edge_graph import Graph
    from namemovers.plots import graph as drawn

    g = Graph(n_layers=2, n_heads=4, parallel=False, n_kv_heads=2)
    circuit = g.label(["L0H0 → L1KV1 k", "L1H2 → logits", "L1H3 → logits", "embed → L0H0 q"])
    where = lambda fig: {re.sub("<[^>]*>", "", a.text): a.x for a in fig.layout.annotations}
    at, alone = where(drawn(circuit)), where(drawn(circuit.drop_attrs()))
    assert at["L1H2"] < at["L1KV1"] < at["L1H3"]
    assert not alone["L1H2"] < alone["L1KV1"] < alone["L1H3"]  # it is the attributes that say so


# Results and bad input


def test_results_are_kept(tiny, tmp_path):
    task = mrs_task(tiny.tokenizer, n=2)
    for name, ds in {
        "circuits": run_edges(
            tiny,
            task,
            {"none": [], "one": ["embed → logits"]},
            ablation="mean",
            reference=mrs_task(tiny.tokenizer, n=8, seed=2),
        ),
        "single": ablate_edges(tiny, task, ["embed → logits", 4]),
        "estimates": attribute_edges(tiny, task),
        "search": acdc(tiny, task, 0.5, "logit_diff"),
    }.items():
        save(ds, name, tmp_path)
        again = load(name, tmp_path)
        assert again.equals(ds) and again.attrs == ds.attrs and graph(again) == graph(tiny)
    assert (top_edges(load("estimates", tmp_path), 9) == top_edges(attribute_edges(tiny, task), 9)).all()
    assert run_edges(
        tiny, task, load("search", tmp_path).circuit.expand_dims(circuit=["found"])
    ).circuit.values.tolist() == ["found"]


def test_bad_input(tiny, neox):  # noqa: F811
    task, g = ioi_task(tiny.tokenizer, n=2), graph(tiny)
    one = [["embed → logits"]]
    for arguments, message in (
        (dict(ablation="noise"), "ablation='noise'"),
        (dict(metric="loss"), "metric='loss'"),
        (dict(direction="up"), "direction='up'"),
        (dict(ablation="mean", direction="denoise"), "direction='denoise' needs"),
        (dict(reference=task), "reference is for the means"),
        (dict(ablation="mean", reference=mrs_task(tiny.tokenizer, n=2)), "no prompt of template"),
        (dict(memory_budget=10), "memory_budget=10"),
    ):
        with pytest.raises(ValueError, match=message):
            run_edges(tiny, task, one, **arguments)
    for circuits, message in (
        ([], "empty"),
        ({}, "empty"),
        ([["L2H0 → L1H0 q"]], "no edge"),
        ([[len(g)]], "no edge"),
        ([np.ones(5, bool)], "does not fit"),
        ([graph(neox).label([0])], "not those of this model"),
    ):
        with pytest.raises(ValueError, match=message):
            run_edges(tiny, task, circuits)
    with pytest.raises(ValueError, match="edges is empty"):
        ablate_edges(tiny, task, [])
    for arguments, message in (
        (dict(steps=0), "steps: 0"),
        (dict(metric="rank"), "no gradient"),
        (dict(metric="kl"), "no gradient at the clean run"),
    ):
        with pytest.raises(ValueError, match=message):
            attribute_edges(tiny, task, **arguments)
    assert attribute_edges(tiny, task, metric="kl", steps=2).kl.notnull().all()
    for arguments, message in (
        (dict(threshold=0), "threshold=0"),
        (dict(order="random"), "order='random'"),
        (dict(max_batch=0), "max_batch: 0"),
    ):
        with pytest.raises(ValueError, match=message):
            acdc(tiny, task, **{"threshold": 1, **arguments})
    with pytest.raises(ValueError, match="fewer prompts"):
        acdc(tiny, ioi_task(tiny.tokenizer, n=40), 1, memory_budget=10**6)
    scores = attribute_edges(tiny, task)
    with pytest.raises(ValueError, match="k: -1 is no such number"):
        top_edges(scores, -1)
    with pytest.raises(ValueError, match="give all of them"):
        top_edges(ablate_edges(tiny, task, [1, 2]), 1)
    with pytest.raises(ValueError, match="does not name all edges"):
        graph(scores.effect[:5])


def test_at_the_shape_of_gpt2(gpt2_shape):
    task, g = a_task(gpt2_shape, n=2, length=8), graph(gpt2_shape)
    assert len(g) == 32_491
    rng = np.random.default_rng(0)
    ds = run_edges(
        gpt2_shape,
        task,
        {"all": np.ones(len(g), bool), "none": [], "half": rng.random(len(g)) < 0.5, "few": rng.random(len(g)) < 0.02},
    )
    assert abs(ds.logit_diff.sel(circuit="all") - ds.clean).max() < 1e-4
    assert abs(ds.logit_diff.sel(circuit="none") - ds.corrupted).max() < 1e-4
    some = ["L11H3 → logits", "L9H1 → L10H5 q", "L0H0 → MLP 4", "embed → L7H7 v"]
    exact, estimate = ablate_edges(gpt2_shape, task, some), attribute_edges(gpt2_shape, task)
    a, b = ((e.logit_diff.sel(edge=some) - e.clean).values.ravel() for e in (exact, estimate))
    assert np.corrcoef(a, b)[0, 1] > 0.9
    paths = path_patch(gpt2_shape, task, [(9, 1)], [(10, 5)], "q", direction="noise").logit_diff
    assert abs(exact.logit_diff.sel(edge="L9H1 → L10H5 q") - paths.squeeze().values).max() < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu(tiny_folder):
    cpu, gpu = (load_model(tiny_folder, device=d) for d in ("cpu", "cuda"))
    task, mask = a_task(cpu), np.random.default_rng(0).random(len(graph(cpu))) < 0.5
    for ablation in ABLATIONS:
        assert (
            abs(
                run_edges(gpu, task, [mask], ablation).logit_diff - run_edges(cpu, task, [mask], ablation).logit_diff
            ).max()
            < 1e-4
        )
    assert abs(attribute_edges(gpu, task).logit_diff - attribute_edges(cpu, task).logit_diff).max() < 1e-4
    assert (acdc(gpu, task, 0.01).cut == acdc(cpu, task, 0.01).cut).mean() > 0.99
