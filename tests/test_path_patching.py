"""Path patching from chosen senders to chosen receivers; the parity with TransformerLens is tested with the engine."""

import numpy as np
import pytest
import torch
from conftest import small_tokenizer, told_apart
from decoders import random_model
from test_engine import model, neox, prompts  # noqa: F401  (fixtures)

from scipy.stats import false_discovery_control

from namemovers import pairs, path_patching
from namemovers.data import ioi_task, mrs_task
from namemovers.circuits import Edge
from namemovers.model import load_model
from calls import run_paths
from namemovers.path_patching import (
    _connected,
    against_truth,
    leading_senders,
    path_patch,
    path_table,
    say_inputs,
    say_paths,
    trace,
    trace_roles,
)
from namemovers.planted import truth
from namemovers.results import load, save
from namemovers.sites import n_kv_heads
from namemovers.stats import summarise

SOME = [(2, 3), (0, 1), (1, 2), (0, 0)]  # in no order


@pytest.mark.parametrize(
    "receivers, together",
    [("logits", True), ("heads", True), ([(2, 1), (1, 3)], True), ([(2, 1), (1, 3), (2, 0)], False)],
)
@pytest.mark.parametrize("through", [False, True])
def test_chosen_senders_are_entries_of_the_full_sweep(model, receivers, together, through):  # noqa: F811
    arguments = prompts(model)
    common = dict(receivers=receivers, through_mlps=through, together=together, component="k")
    everyone = run_paths(model, *arguments, **common)[0]
    some = run_paths(model, *arguments, senders=SOME, **common)[0]
    want = everyone[[l * 4 + h for l, h in SOME]]
    assert (some.isnan() == want.isnan()).all() and not want.isnan().all()
    assert (some - want).nan_to_num().abs().max() < 1e-5


@pytest.mark.parametrize("component", ["q", "k", "v"])
@pytest.mark.parametrize("senders", ["head", "mlp", "embed"])
def test_chosen_receivers_are_entries_of_the_full_sweep(model, component, senders):  # noqa: F811
    arguments, receivers = prompts(model), [(2, 2), (0, 3), (1, 1)]
    everywhere = run_paths(model, *arguments, senders=senders, receivers="heads", component=component)[0]
    some = run_paths(model, *arguments, senders=senders, receivers=receivers, component=component, together=False)[0]
    for i, (l, h) in enumerate(receivers):
        want = everywhere[:, l, h]
        assert (some[:, i].isnan() == want.isnan()).all()
        assert (some[:, i] - want).nan_to_num().abs().max() < 1e-5
        alone = run_paths(model, *arguments, senders=senders, receivers=[(l, h)], component=component)[0]
        assert (alone.isnan() == want.isnan()).all() and (alone - want).nan_to_num().abs().max() < 1e-5


def test_only_what_is_asked_for_is_computed(tiny, monkeypatch):
    """Rows that enter the packed forward: one a sender below the receiver, prompt and receiver."""
    entered = []
    real = path_patching.carry

    def counting(w, groups, b):
        entered.extend(g.P * g.C for g in groups)
        return real(w, groups, b)

    monkeypatch.setattr(path_patching, "carry", counting)
    arguments = prompts(tiny, n=3)
    run_paths(tiny, *arguments, senders=SOME, receivers=[(2, 1), (1, 3)], together=False)
    assert sum(entered) == 3 * (3 + 2)  # (2, 3) is below neither; three senders are below layer 2, two below layer 1


def test_progress_adds_up(tiny):
    arguments = prompts(tiny)
    for senders, n in (("head", 12), ("mlp", 3), ("embed", 1), (SOME, 4)):
        for receivers in ("logits", "heads", [(1, 1)], [(0, 1)]):
            done = []
            run_paths(tiny, *arguments, senders=senders, receivers=receivers, progress=done.append)
            assert sum(done) == n * len(arguments[0]), (senders, receivers)


def test_lists_are_labelled(tiny, tmp_path):
    task = told_apart(tiny, ioi_task(tiny.tokenizer, n=3))
    ds = path_patch(tiny, task, SOME)
    assert ds.effect.dims == ("sender", "prompt") and list(ds.sender.values) == ["L2H3", "L0H1", "L1H2", "L0H0"]
    assert list(zip(ds.sender_layer.values, ds.sender_head.values)) == SOME
    assert ds.attrs["senders"] == "L2H3 L0H1 L1H2 L0H0"
    everyone = path_patch(tiny, task)
    for name, (l, h) in zip(ds.sender.values, SOME):
        np.testing.assert_allclose(ds.logit_diff.sel(sender=name), everyone.logit_diff.sel(layer=l, head=h), atol=1e-5)
    apart = path_patch(tiny, task, SOME, receivers=[(2, 1), (1, 3)], together=False, component="v")
    assert apart.effect.dims == ("sender", "receiver", "prompt")
    assert apart.effect.sel(sender="L1H2", receiver="L1H3").isnull().all()
    assert apart.attrs["together"] is False and list(apart.receiver_layer.values) == [2, 1]
    assert path_patch(tiny, task, receivers=[(2, 1)], together=False).effect.dims == (
        "layer",
        "head",
        "receiver",
        "prompt",
    )
    save(apart, "apart", tmp_path)
    assert load("apart", tmp_path).identical(apart)


def test_lists_that_make_no_sense(tiny):
    task = ioi_task(tiny.tokenizer, n=2)
    for which in ("senders", "receivers"):
        for bad, message in (
            ([(0, 9)], r"no head \(0, 9\)"),
            ([(3, 0)], r"no head \(3, 0\)"),
            ([(-1, 0)], "no head"),
            ([(0, 1), (0, 1)], r"\(0, 1\) twice"),
            ([], "empty"),
            ([(0, 1.5)], "no list of"),
            ([3, 4], "no list of"),
            ([(1, 2, 3)], "no list of"),
            ("tail", "no list of"),
            ("qk", "no list of"),
            (7, "no list of"),
        ):
            with pytest.raises(ValueError, match=message) as e:
                path_patch(tiny, task, **{which: bad})
            assert which in str(e.value) and "\n" not in str(e.value)
    ds = path_patch(tiny, task, [(np.int64(0), torch.tensor(1))])  # any integers
    assert list(ds.sender.values) == ["L0H1"]


def test_paths_into_each_input(tiny):
    task = told_apart(tiny, ioi_task(tiny.tokenizer, n=6))
    ds = path_patch(tiny, task, receivers=[(2, 1), (1, 0)], component=path_patching.COMPONENTS, through_mlps=True)
    assert ds.effect.dims == ("component", "layer", "head", "prompt") and list(ds.component.values) == ["q", "k", "v"]
    for c in "qkv":
        one = path_patch(tiny, task, receivers=[(2, 1), (1, 0)], component=c, through_mlps=True)
        np.testing.assert_allclose(ds.effect.sel(component=c), one.effect, atol=1e-5)
        np.testing.assert_array_equal(ds.clean, one.clean)
    apart = path_patch(tiny, task, SOME, [(2, 1), (1, 0)], component=("v", "k"), together=False)
    assert apart.effect.dims == ("component", "sender", "receiver", "prompt")
    for c in "kv":
        np.testing.assert_allclose(
            apart.effect.sel(component=c),
            path_patch(tiny, task, SOME, [(2, 1), (1, 0)], component=c, together=False).effect,
            atol=1e-5,
        )
    every = path_patch(tiny, task, "mlp", "heads", component=("q", "v"))
    assert every.effect.dims == ("component", "sender_layer", "layer", "head", "prompt")
    np.testing.assert_allclose(
        every.effect.sel(component="v"), path_patch(tiny, task, "mlp", "heads", component="v").effect, atol=1e-5
    )
    assert path_patch(tiny, task, component=("q", "v")).effect.dims == ("layer", "head", "prompt"), (
        "the logits have no inputs"
    )
    assert ds.clean.dims == ("prompt",)
    assert ds.attrs["component"] == ["q", "k", "v"]
    assert ds.attrs["receivers"] == "L2H1 L1H0"
    s = summarise(ds.effect)
    assert s.attrs["n_tests"] == 3 * 8, "one family of all inputs; layer 2 sends to nobody"
    every = s.assign(significant=s["mean"].notnull())
    flat = abs(s["mean"]).max("component")
    best = leading_senders(every, k=2, share=0)
    assert best[0] == tuple(int(i) for i in np.unravel_index(np.nanargmax(flat.values), flat.shape)) and len(best) == 2
    assert leading_senders(every, share=1.0) == best[:1]
    assert leading_senders(every.assign(significant=s["mean"].isnull())) == []
    down = leading_senders(every, k=1, sign=-1, share=0)[0]
    assert float(s["mean"].min()) == float(s["mean"].sel(layer=down[0], head=down[1]).min())
    words = say_inputs(s)
    assert words.count("through") == 3 and "queries" in words


# Positions


def two_passes(
    model,  # noqa: F811
    arguments,
    runs,
    sender,
    receivers,
    component,
    through,
    sender_at,
    receiver_at,
    direction,
):
    """The paper's way, with TransformerLens's hooks: one run sends a head's change past frozen heads and records what
    the receivers would have; another, ordinary one takes it at the positions asked for. None: at all positions."""
    clean, corrupted, read_at, correct, wrong = arguments
    base = corrupted if direction == "denoise" else clean
    a, b = runs[:: 1 if direction == "denoise" else -1]
    rows, layers = torch.arange(len(base)), range(model.cfg.n_layers)

    def put(into, what, head, at):
        into = into.clone()
        if at is None:
            into[:, :, head] = what[:, :, head]
        else:
            into[rows, at, head] = what[rows, at, head]
        return into

    def send(z, hook):
        return put(b[hook.name], a[hook.name], sender[1], sender_at) if hook.layer() == sender[0] else b[hook.name]

    seen, names = {}, [f"blocks.{l}.attn.hook_{component}" for l in layers]
    first = [(f"blocks.{l}.attn.hook_z", send) for l in layers]
    if not through:
        first += [(f"blocks.{l}.hook_mlp_out", lambda t, hook: b[hook.name]) for l in layers]
    first += [(n, lambda t, hook: seen.__setitem__(hook.name, t.clone())) for n in names]
    if receivers == "logits":
        logits = model.run_with_hooks(base, fwd_hooks=first)
    else:
        model.run_with_hooks(base, fwd_hooks=first)

        share = 1 if component == "q" else model.cfg.n_heads // n_kv_heads(model)

        def receive(t, hook):
            for l, h in receivers:
                if l == hook.layer():
                    t = put(t, seen[hook.name], h // share, receiver_at)
            return t

        logits = model.run_with_hooks(base, fwd_hooks=[(n, receive) for n in names])
    end = logits[rows, read_at]
    return end[rows, correct] - end[rows, wrong]


@pytest.mark.parametrize("direction, through", [("denoise", False), ("noise", True)])
@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_chosen_positions_agree_with_two_passes_of_hooks(model, component, through, direction):  # noqa: F811
    arguments = prompts(model)
    at, end = torch.tensor([4, 2, 4, 6, 4, 6]), arguments[2]
    runs = [model.run_with_cache(tokens)[1] for tokens in arguments[:2]]
    for receivers in ([(2, 1)], [(1, 0), (2, 3)]):
        for sender_at, receiver_at in ((at, None), (None, at), (at, end)):
            ours = run_paths(
                model,
                *arguments,
                [(0, 1), (1, 2)],
                receivers,
                component,
                through,
                direction=direction,
                sender_at=sender_at,
                receiver_at=receiver_at,
            )[0]
            apart = run_paths(
                model,
                *arguments,
                [(0, 1), (1, 2)],
                receivers,
                component,
                through,
                False,
                direction=direction,
                sender_at=sender_at,
                receiver_at=receiver_at,
            )[0]
            for i, sender in enumerate(((0, 1), (1, 2))):
                want = two_passes(
                    model, arguments, runs, sender, receivers, component, through, sender_at, receiver_at, direction
                )
                assert (ours[i] - want).abs().max() < 2e-5
                for j, receiver in enumerate(receivers):
                    if receiver[0] <= sender[0]:
                        continue
                    want = two_passes(
                        model,
                        arguments,
                        runs,
                        sender,
                        [receiver],
                        component,
                        through,
                        sender_at,
                        receiver_at,
                        direction,
                    )
                    assert (apart[i, j] - want).abs().max() < 2e-5


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    "Two heads share their keys and values."
    folder = tmp_path_factory.mktemp("llama")
    random_model("llama").save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return load_model(folder, device="cpu")


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_heads_that_share_keys_and_values_are_reached_with_their_group(llama, component):
    arguments = prompts(llama, n=4)
    runs = [llama.run_with_cache(tokens)[1] for tokens in arguments[:2]]
    senders, moved = [(0, 1), (1, 2)], []
    for receivers in ([(2, 0)], [(2, 1)], [(2, 3)], [(2, 0), (2, 3)], [(1, 2), (2, 1)]):
        ours = run_paths(llama, *arguments, senders, receivers, component)[0]
        for i, sender in enumerate(senders):
            want = two_passes(llama, arguments, runs, sender, receivers, component, False, None, None, "denoise")
            assert (ours[i] - want).abs().max() < 5e-5, (sender, receivers)
        moved.append(ours)
    each = [(2, 0), (2, 1), (2, 3), (1, 2)]
    apart = run_paths(llama, *arguments, senders, each, component, False, False)[0]
    for i, sender in enumerate(senders):
        for j, receiver in enumerate(each):
            if receiver[0] > sender[0]:
                want = two_passes(llama, arguments, runs, sender, [receiver], component, False, None, None, "denoise")
                assert (apart[i, j] - want).abs().max() < 5e-5, (sender, receiver)
    assert (moved[0] - moved[2]).abs().max() > 1e-3
    same = (moved[0] - moved[1]).abs().max() < 1e-5
    assert bool(same) == (component != "q")  # heads 0 and 1 are one group


@pytest.mark.parametrize("through", [False, True])
def test_only_end_sends_into_the_logits(model, through):  # noqa: F811
    arguments = prompts(model)
    every = run_paths(model, *arguments, SOME, through_mlps=through)
    end = run_paths(model, *arguments, SOME, through_mlps=through, sender_at=arguments[2])
    assert (every[0] - end[0]).abs().max() < 1e-6 and every[0].std() > 0.01
    runs = [model.run_with_cache(tokens)[1] for tokens in arguments[:2]]
    other = run_paths(model, *arguments, SOME, through_mlps=through, sender_at=arguments[2] - 1)
    assert (other[0] - other[2]).abs().max() < 1e-6, "nothing arrives from there"
    for i, sender in enumerate(SOME):
        want = two_passes(model, arguments, runs, sender, "logits", "q", through, arguments[2], None, "denoise")
        assert (end[0][i] - want).abs().max() < 2e-5


def test_positions_have_names_and_are_kept(tiny):
    task = ioi_task(tiny.tokenizer, n=5)
    named = path_patch(tiny, task, receivers=[(2, 1)], component="k", sender_position="S2", receiver_position="S2")
    given = path_patch(
        tiny,
        task,
        receivers=[(2, 1)],
        component="k",
        sender_position=task.positions["S2"],
        receiver_position=task.positions["S2"].tolist(),
    )
    np.testing.assert_array_equal(named.logit_diff, given.logit_diff)
    assert named.attrs["sender_position"] == "S2" and given.attrs["receiver_position"] == task.positions["S2"].tolist()
    everywhere = path_patch(tiny, task, receivers=[(2, 1)], component="k")
    assert abs(everywhere.logit_diff - named.logit_diff).max() > 1e-5 and "sender_position" not in everywhere.attrs
    for bad in ("S9", 3, [1, 2], task.lengths, [-1] * 5, [0.5] * 5, [True] * 5, "END ", object()):
        for name in ("sender_position", "receiver_position"):
            with pytest.raises(ValueError, match=f"{name}=.*is no position.*S2") as e:
                path_patch(tiny, task, receivers=[(2, 1)], **{name: bad})
            assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="receiver_position='S2' needs heads that receive"):
        path_patch(tiny, task, receiver_position="S2")


# Tracing


@pytest.fixture(scope="module")
def traced(mini):
    task = mrs_task(mini.tokenizer, n=12)
    return task, trace(mini, task, depth=3, k=2, least=0.0)


def test_every_edge_of_a_trace_is_a_path(mini, traced):
    task, ds = traced
    assert ds.effect.dims == ("edge", "prompt") and len(set(ds.edge.values)) == ds.sizes["edge"]
    pair = lambda n: (int(n[1]), int(n[3]))
    for i in range(0, ds.sizes["edge"], 7):
        e = ds.isel(edge=i)
        sender, receiver, c = (str(e[k].item()) for k in ("sender", "receiver", "component"))
        assert str(e.edge.item()) == str(Edge(sender, receiver, c)) and (c == "") == (receiver == "logits")
        one = path_patch(
            mini,
            task,
            "embed" if sender == "embed" else [pair(sender)],
            receivers="logits" if receiver == "logits" else [pair(receiver)],
            component=c or "q",
            through_mlps=True,
        )
        np.testing.assert_allclose(one.effect.values.ravel(), e.effect.values, atol=1e-5)
        np.testing.assert_allclose(one.logit_diff.values.ravel(), e.logit_diff.values, atol=1e-5)
    np.testing.assert_array_equal(ds.clean, one.clean)


def test_a_trace_tests_all_that_it_says(traced):
    _, ds = traced
    level = ds.level.values
    assert (level == 0).sum() == 17 and set(ds.receiver.values[level == 0]) == {"logits"}
    followed = ds.attrs["followed"]
    assert len(followed) >= 2
    assert all(1 <= len(h) <= 2 for h in followed)
    assert len({h for l in followed for h in l}) == sum(map(len, followed))
    for depth, heads in enumerate(followed[:2], 1):
        assert set(ds.receiver.values[level == depth]) == set(heads)
        assert (level == depth).sum() == sum(3 * (4 * int(h[1]) + 1) for h in heads), (
            "every head below and the embedding, into q, k and v"
        )


def test_significance_is_over_all_levels(traced):
    _, ds = traced
    s = summarise(ds.effect)
    np.testing.assert_allclose(ds["mean"], s["mean"])
    np.testing.assert_allclose(ds.q, false_discovery_control(ds.p.values))
    assert ds.attrs["n_tests"] == ds.sizes["edge"] and np.array_equal(ds.significant, ds.q <= 0.05)
    nodes = {"embed", *(h for level in ds.attrs["followed"] for h in level)}
    assert not (ds.kept & ~ds.significant).any() and set(ds.sender.values[ds.kept.values]) <= nodes
    first = ds.isel(edge=np.flatnonzero((ds.level.values == 0) & (ds.sender.values != "embed") & ds.significant.values))
    by_size = np.argsort(-abs(first["mean"].values), kind="stable")
    assert ds.attrs["followed"][0] == list(first.sender.values[by_size][:2])


def test_what_is_kept_leads_to_the_logits():
    edges = [
        Edge("L2H0", "logits"),
        Edge("L1H0", "L2H0", "q"),
        Edge("L0H0", "L1H0", "v"),
        Edge("embed", "L0H0", "k"),
        Edge("L0H1", "L2H1", "q"),
        Edge("L0H2", "L2H0", "q"),
    ]
    nodes = {"embed", "L2H0", "L1H0", "L0H0", "L0H1"}
    every = np.ones(6, bool)
    assert list(_connected(edges, every, nodes)) == [True, True, True, True, False, False]
    assert list(_connected(edges, every & (np.arange(6) != 1), nodes)) == [True, False, False, False, False, False]


def test_a_trace_narrows_and_saves(mini, tiny, tmp_path):
    task = ioi_task(mini.tokenizer, n=10)
    ds = trace(
        mini, task, depth=2, k=1, component="q", senders=[(2, 0), (1, 3), (2, 2), (1, 1)], least=0.0, through_mlps=False
    )
    assert set(ds.sender.values) == {"embed", "L2H0", "L1H3", "L2H2", "L1H1"}
    assert set(ds.component.values) == {"", "q"}
    assert ds.attrs["through_mlps"] is False
    save(ds, "t", tmp_path)
    assert load("t", tmp_path).identical(ds)
    assert not trace(mini, task, depth=2, k=1, senders=SOME, least=1e9).kept.any()
    alone = trace(tiny, ioi_task(tiny.tokenizer, n=1), depth=3)
    assert alone.attrs["followed"] == [] and not alone.kept.any() and alone.attrs["n_tests"] == 0, (
        "one prompt says nothing about others"
    )
    assert path_table(alone).empty
    assert say_paths(alone, "logits") == "no edge is kept"
    assert trace_roles(alone) == {"writes the answer": [], "writes against it": []}


def test_a_trace_shows_how_far_it_is(mini, monkeypatch):
    bars = []

    class Bar(pairs.tqdm):
        def close(self):
            bars.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(pairs, "tqdm", Bar)
    trace(mini, ioi_task(mini.tokenizer, n=10), depth=3, k=2, least=0.0, progress=True)
    assert bars and all(n == total > 0 for n, total in bars)


@pytest.mark.parametrize(
    "bad",
    [
        dict(depth=0),
        dict(k=0),
        dict(k=True),
        dict(depth=1.5),
        dict(least=-1),
        dict(least=float("nan")),
        dict(component=[]),
        dict(component=["z"]),
        dict(component="qk"),
        dict(component=["q", "q"]),
        dict(senders=[(0, 9)]),
        dict(direction="up"),
    ],
)
def test_traces_that_make_no_sense(tiny, bad):
    with pytest.raises(ValueError, match=next(iter(bad)).removesuffix("s")) as e:
        trace(tiny, ioi_task(tiny.tokenizer, n=2), **bad)
    assert "\n" not in str(e.value)


@pytest.fixture(scope="module")
def planted():
    return load_model("planted", device="cpu")


@pytest.mark.parametrize("make, tells", [(ioi_task, "S-inhibition"), (mrs_task, "recency")])
def test_a_trace_finds_what_was_planted(planted, make, tells):
    """Name movers and the negative one from the logits; from their queries who tells them; nothing that is not
    there."""
    known, task = truth(), make(planted.tokenizer, n=12)
    ds = trace(planted, task, depth=3, component=("q", "v"))
    name = lambda part: {f"L{l}H{h}" for l, h in known.find(part)}
    first, second, *_ = ds.attrs["followed"]
    assert set(first) == name("name mover") | name("negative name mover") and set(second) == name(tells)
    told = ds.isel(
        edge=np.flatnonzero(
            ds.kept.values
            & (ds.component.values == "q")
            & np.isin(ds.receiver.values, list(name("name mover")))
            & (ds.sender.values != "embed")
        )
    )
    assert {(s, r) for s, r in zip(told.sender.values, told.receiver.values)} == {
        (s, r) for s in name(tells) for r in name("name mover")
    }
    assert (told["mean"] > 0).all()
    found = against_truth(ds, known.paths(task.name))
    assert found["right"] == found["kept"] >= 12 and found["true"] >= found["right"]
    assert set(path_table(ds, None)["from"]) <= {
        "embed",
        *first,
        *second,
        *(h for l in ds.attrs["followed"][2:] for h in l),
    }
    assert "through its queries" in say_paths(ds, sorted(name("name mover"))[0])
