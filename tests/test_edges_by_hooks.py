"""Circuits of edges against plain forward hooks on transformers' own modules, for families beyond GPT-2's kind."""

import numpy as np
import pytest
import torch

from decoders import catch, loaded, places
from namemovers.circuits import ablate_edges, acdc, attribute_edges, connected, graph, run_edges, top_edges
from namemovers.sites import n_kv_heads
from test_activation_patching import made_task
from test_edges import logit_diff

NAMES = ("llama", "llama3", "mistral", "qwen3", "gemma2", "gemma3", "olmo2", "phi")


pytestmark = pytest.mark.filterwarnings("ignore:No effect can be given")


@pytest.fixture(scope="module", params=NAMES)
def shape(request, tmp_path_factory):
    "(name, transformers' model, the same as a TransformerBridge)"
    return loaded(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return loaded("llama", tmp_path_factory.mktemp("llama"))[2]


@torch.no_grad()
def hooked(plain, tokens, put=(), hear=()):
    """The logits of a run, and what was heard: `put` are (module, whether it is what enters, value) and `hear`
    (key, module, whether it is what enters)."""
    heard, handles = {}, []
    for module, before, value in put:
        handles.append(catch(module, before, lambda t, value=value: value))
    for key, module, before in hear:
        handles.append(catch(module, before, lambda t, key=key: heard.setdefault(key, t.clone())))
    logits = plain(tokens, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits, heard


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory):
    return loaded("gemma2", tmp_path_factory.mktemp("gemma2"))[2]


class Senders:
    "What senders send: the embedding and MLPs what the stream receives, heads their output, heads side by side."

    def __init__(self, plain, tokens):
        layers = places(plain)
        hear = [("embed", layers[0].layer, True)]
        for l, p in enumerate(layers):
            hear += [(("z", l), p.o, True), (("mlp", l), p.mlp_out, False)]
        self.values = hooked(plain, tokens, hear=hear)[1]


def attention_writes(p, z):
    "What the stream receives of the heads' outputs, by the layer's own modules."
    with torch.no_grad():
        return p.attn_out(p.o(z)) if p.attn_out is not p.o else p.o(z)


def circuit_by_hooks(model, plain, tokens, ablated, weight):
    """Logits of a run in which each edge carries `weight(label)` of what its sender sends in this run, and the rest of
    its ablated value."""
    g, layers, d = graph(model), places(plain), model.cfg.d_head
    H, groups = model.cfg.n_heads, n_kv_heads(model)
    now = {"embed": Senders(plain, tokens).values["embed"]}

    def mixed(key, part):
        return part * now[key] + (1 - part) * ablated[key] if key in now else None

    def reads(receiver, below, heads_of=()):
        "The stream as one input reads it, below a layer, with the heads of the layers `heads_of` too."

        def w(sender):
            return float(weight(f"{sender} → {receiver}"))

        x = mixed("embed", w("embed"))
        for l in sorted({*range(below), *heads_of}):
            shares = torch.tensor([w(f"L{l}H{h}") for h in range(H)]).repeat_interleave(d)
            x = x + attention_writes(layers[l], mixed(("z", l), shares))
            if l < below:
                x = x + mixed(("mlp", l), w(f"MLP {l}"))
        return x

    for l, p in enumerate(layers):
        own = {}
        for c in "qkv":
            parts = []
            for h in range(H if c == "q" else groups):
                name = f"L{l}H{h}" if c == "q" or groups == H else f"L{l}KV{h}"
                x = reads(f"{name} {c}", l)
                _, heard = hooked(plain, tokens, [(p.layer, True, x)], [("t", getattr(p, c), False)])
                parts.append(heard["t"][..., h * d : (h + 1) * d])
            own[c] = torch.cat(parts, -1)
        put = [(getattr(p, c), False, t) for c, t in own.items()]
        z = hooked(plain, tokens, put, [("z", p.o, True)])[1]["z"]
        if g.parallel:
            put = [(p.layer, True, reads(f"MLP {l}", l))]
            now["z", l] = z
        else:
            now["z", l] = z
            start = torch.zeros_like(now["embed"])
            put = [(p.layer, True, start), (p.attn_out, False, reads(f"MLP {l}", l, [l]))]
        now["mlp", l] = hooked(plain, tokens, put, [("out", p.mlp_out, False)])[1]["out"]
    last = reads("logits", len(layers))
    return hooked(plain, tokens, [(layers[-1].layer, False, last)])[0]


def test_the_reference_is_the_models_run(shape):
    "With all edges and with none: so what the tests below compare with is the right thing."
    name, plain, model = shape
    task = made_task(model, n=2)
    ablated = Senders(plain, task.corrupted_tokens).values
    for share, tokens in ((1, task.clean_tokens), (0, task.corrupted_tokens)):
        y = circuit_by_hooks(model, plain, task.clean_tokens, ablated, lambda e, share=share: share)
        assert abs(logit_diff(task, y) - logit_diff(task, plain(tokens, use_cache=False).logits)).max() < 1e-4


def some_edges(g):
    "Edges of every kind."
    kv = "L1KV0" if g.shared else "L1H0"
    last = "L2KV0" if g.shared else "L2H1"
    found = ["embed → L0H1 q", f"L0H1 → {kv} k", f"L0H2 → {last} v", f"MLP 0 → {last} k", "L1H2 → L2H3 q"]
    return [*found, "L0H3 → MLP 1", "L2H0 → logits", "L0H1 → logits", "MLP 1 → logits", "embed → MLP 1"]


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_one_edge_cut(shape, direction):
    name, plain, model = shape
    task, edges = made_task(model, n=2), some_edges(graph(model))
    found = ablate_edges(model, task, edges, direction=direction)
    here, there = task.clean_tokens, task.corrupted_tokens
    if direction == "denoise":
        here, there = there, here
    ablated = Senders(plain, there).values
    for cut in edges if direction == "noise" else edges[1:3]:
        want = logit_diff(task, circuit_by_hooks(model, plain, here, ablated, lambda e, cut=cut: e != cut))
        assert abs(found.logit_diff.sel(edge=cut) - want).max() < 1e-4, cut
    own = found.clean if direction == "noise" else found.corrupted
    assert (abs(found.logit_diff - own).max("prompt") > 1e-4).all()  # the comparison is of something


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_any_circuit(shape, ablation):
    "Several heads of one layer are cut for one reader and not for another: a norm behind attention sees it."
    name, plain, model = shape
    task, g, rng = made_task(model, n=2), graph(model), np.random.default_rng(1)
    masks = {share: rng.random(len(g)) < share for share in (0.9, 0.4)}
    found = run_edges(model, task, masks, ablation)
    ablated = Senders(plain, task.corrupted_tokens).values
    if ablation == "zero":
        ablated = {key: torch.zeros_like(t) for key, t in ablated.items()}
        nothing = ablated["embed"]
        for l, p in enumerate(places(plain)):  # what a head gives of nothing is a bias, and counted to attention's
            put, hear = [(p.layer, True, nothing)], [("v", p.v, False)]
            v = hooked(plain, task.clean_tokens, put, hear)[1]["v"].unflatten(-1, (-1, model.cfg.d_head))
            ablated["z", l] = v.repeat_interleave(model.cfg.n_heads // v.shape[2], 2).flatten(2)
    for share, mask in masks.items():
        y = circuit_by_hooks(model, plain, task.clean_tokens, ablated, lambda e, mask=mask: mask[g.number[e]])
        assert abs(found.logit_diff.sel(circuit=share) - logit_diff(task, y)).max() < 1e-4
    assert found.logit_diff.std("circuit").max() > 0.01


def test_all_edges_and_no_edge(shape):
    name, plain, model = shape
    task, g = made_task(model, lengths=[9, 8, 9, 8]), graph(model)
    for direction in ("noise", "denoise"):
        found = run_edges(model, task, {"all": g.labels, "none": []}, direction=direction)
        ends = [logit_diff(task, plain(t, use_cache=False).logits) for t in (task.clean_tokens, task.corrupted_tokens)]
        here, there = ends if direction == "noise" else ends[::-1]
        assert abs(found.logit_diff.sel(circuit="all") - here).max() < 1e-4
        assert abs(found.logit_diff.sel(circuit="none") - there).max() < 1e-4
    for ablation in ("mean", "mean_over_positions"):
        found = run_edges(model, task, {"all": g.labels, "none": []}, ablation)
        assert abs(found.logit_diff.sel(circuit="all") - ends[0]).max() < 1e-4
        assert abs(found.logit_diff.sel(circuit="none") - found.ablated).max() < 1e-4


def test_one_edge_of_many_is_the_circuit_without_it(shape):
    name, plain, model = shape
    task, g = made_task(model, n=2), graph(model)
    chosen = g.labels[2::13]
    single = ablate_edges(model, task, chosen)
    circuits = run_edges(model, task, {cut: [e for e in g.labels if e != cut] for cut in chosen})
    assert abs(single.logit_diff.values - circuits.logit_diff.values).max() < 1e-4


def test_the_estimate_is_the_slope_of_the_reference(shape):
    "Each edge carries a little less of its sender: the slope is the estimate."
    name, plain, model = shape
    task, step = made_task(model, n=2), 0.02
    estimate = attribute_edges(model, task)
    assert estimate.logit_diff.notnull().all() and len(estimate.edge) == len(graph(model))
    change = estimate.logit_diff - estimate.clean
    ablated = Senders(plain, task.corrupted_tokens).values
    for edge in some_edges(graph(model)):
        less, more = (
            logit_diff(
                task,
                circuit_by_hooks(model, plain, task.clean_tokens, ablated, lambda e: 1 + sign * step * (e == edge)),
            )
            for sign in (-1, 1)
        )
        wanted = (less - more) / (2 * step)
        assert abs(wanted - change.sel(edge=edge)).max() < 1e-3 + 0.01 * abs(wanted).max(), edge


def test_integrated_gradients_are_complete(shape):
    "Along the line between the embeddings, what all edges of the embedding do adds up to what separates the two runs."
    name, plain, model = shape
    found = attribute_edges(model, made_task(model), steps=60)
    total = (found.logit_diff - found.clean).where(found.sender == "embed", drop=True).sum("edge")
    assert abs(total - (found.corrupted - found.clean)).max() < 0.02 * abs(found.corrupted - found.clean).max()


def test_edges_of_grouped_queries_by_hand(llama):
    """Three layers of four heads, two to a key: in each, four queries, two keys and two values read what is below, and
    the MLP reads the heads too."""
    g = graph(llama)
    assert (g.n_heads, g.n_kv_heads, g.n_layers) == (4, 2, 3)
    assert len(g) == 8 * (1 + 6 + 11) + (5 + 10 + 15) + 16
    assert [e for e in g.labels if e.startswith("embed → L1")] == [
        *(f"embed → L1H{h} q" for h in range(4)),
        *(f"embed → L1KV{h} {c}" for c in "kv" for h in range(2)),
    ]
    assert {name for name in g.names if "KV" in name} == {f"L{l}KV{h}" for l in range(3) for h in range(2)}
    chain = ["embed → L0KV1 v", "L0H2 → L1KV0 k", "L1H1 → logits"]
    beside = ["L0H0 → L1KV0 k", "embed → L0KV0 v", "L0H2 → L2KV0 v"]  # of another group; read by nobody
    kept = connected(g, [*chain, beside[2]])
    assert list(kept.edge.values[kept.values]) == [e for e in g.labels if e in chain]
    kept = connected(g, [*chain, beside[0]])
    assert list(kept.edge.values[kept.values]) == [e for e in g.labels if e in chain]
    assert connected(g, [*chain, *beside[:2]]).sum() == 5


def test_a_search_on_grouped_queries_to_the_end(gemma2):
    "Every decision, against a run of the circuit that the decisions before it left."
    task, g = made_task(gemma2, n=2, lengths=6, differ=(3,)), graph(gemma2)
    threshold = float(abs(attribute_edges(gemma2, task, metric="kl", steps=3).kl.mean("prompt")).quantile(0.6))
    found = acdc(gemma2, task, threshold, "kl")
    assert found.decided.all() and found.attrs["complete"] == 1 and 3 < (~found.cut).sum() < 0.9 * len(g)
    mask, masks = np.ones(len(g), bool), []
    order = sorted(range(len(g)), key=lambda e: (-g.input_of[e], -g.sender_of[e]))
    tested = {g.number[str(e)]: i for i, e in enumerate(found.tested.values)}
    assert [e for e in order if e in tested] == list(tested)
    for e in order:
        if e not in tested:  # nobody hears it: the metric stays as it is
            assert found.cut[e] and not connected(g, mask)[e]
        masks.append(mask.copy())
        masks[-1][e] = False
        if found.cut[e]:
            mask = masks[-1]
    kl = run_edges(gemma2, task, masks, metric="kl").kl.mean("prompt").values
    now = 0.0
    for e, value in zip(order, kl):
        if e in tested:
            step = tested[e]
            assert abs(found.rise[step] - (value - now)) < 1e-5 and bool(found.was_cut[step]) == bool(found.cut[e])
            assert bool(found.cut[e]) == bool(found.rise[step] < threshold)
        else:
            assert abs(value - now) < 1e-5
        if found.cut[e]:
            now = value
    assert abs(found.kl.mean() - now) < 1e-5
    greedy = top_edges(attribute_edges(gemma2, task), 12, greedy=True)
    assert greedy.sum() == 12 and graph(greedy) == g


def test_drawings_and_sentences_name_keys_and_values_that_heads_share(llama):
    from namemovers.circuits import Node, draw
    from namemovers.reading import say_drawn

    task, chosen = made_task(llama), frozenset({Node(0, 1, "END"), Node(2, 3, "END")})
    effects = attribute_edges(llama, task)
    figure = draw(effects, chosen, k=100)
    drawn = {t.name for t in figure.data if "→" in (t.name or "")}
    assert {"L0H1 → L2KV1", "MLP 1 → L2KV1", "L0H1 → L2H3", "L2H3 → logits"} <= drawn
    assert not any(name in pair for pair in drawn for name in ("L2KV0", "L2H2", "L1KV"))
    assert len([t for t in figure.data if t.name == "shared"]) == 1  # L2KV1 to L2H3
    said = say_drawn(effects, chosen, figure)
    assert said.startswith("2 heads, 5 possible edges among them and into the logits.")  # q, k, v; and into the logits


def test_a_mask_and_a_saved_result_know_their_keys_and_values(llama, tmp_path):
    from namemovers.results import load, save

    task, g = made_task(llama), graph(llama)
    found = ablate_edges(llama, task, ["L0H1 → L2KV1 k"])
    save(found, "edge", tmp_path)
    assert graph(load("edge", tmp_path)) == graph(g.label([3])) == g
    for wrong in ("L0H1 → L2H3 k", "L0H1 → L2KV2 k", "L2KV1 → logits"):
        with pytest.raises(ValueError, match="no edge"):
            run_edges(llama, task, [[wrong]])
