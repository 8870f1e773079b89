"""Circuits of nodes: what must hold, parity with TransformerLens, areas by hand, search on a known truth, and bad
input."""

import dataclasses
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import binom
from conftest import warned, with_mean
from test_activation_patching import made_task

from namemovers import results
from namemovers.circuits import (
    ABLATIONS,
    ENOUGH,
    METHODS,
    Ablated,
    AblatedEdges,
    Node,
    area,
    area_name,
    area_table,
    areas_in_words,
    circuit_of,
    completeness,
    curve,
    edge_ranking,
    everywhere,
    faithfulness,
    foreign_positions,
    grow,
    held_out,
    heads_of,
    incomplete_in_words,
    least_faithful,
    minimal_in_words,
    minimality,
    node,
    nodes,
    overlap,
    positions_of,
    prune,
    published_circuit,
    random_circuits,
    ranking,
    reference_task,
    run_circuits,
    score_nodes,
    trade_off,
)
from namemovers.circuits.criteria import _greedy_set
from namemovers.data import IOI_CORRUPTIONS, MRS_CORRUPTIONS, Task, ioi_task, mrs_task
from namemovers.model import logit_difference, run_at_end
from namemovers.stats import summarise

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def unequal(tiny):
    "Prompts of three lengths, and reference prompts of the same."
    task = made_task(tiny, n=7, lengths=[9, 12, 9, 10, 12, 9, 10], differ=(2, 5))
    reference = made_task(tiny, n=12, lengths=[9, 10, 12] * 4, differ=(2, 5), seed=1)
    return task, reference


def the_right_way_round(task, more, less):
    """The task with the answers exchanged where `more` [prompt] is not above `less`: so that there is a distance to
    take a share of."""
    turn = torch.as_tensor(np.asarray(more) < np.asarray(less))
    return dataclasses.replace(
        task, correct=torch.where(turn, task.wrong, task.correct), wrong=torch.where(turn, task.correct, task.wrong)
    )


def by_hooks(model, task, circuit, values, mlps):
    """TransformerLens's own run of a circuit, prompt by prompt: every node outside gets `values`, {hook: [prompt,
    position, ...]}."""
    out = []
    for i, length in enumerate(task.lengths.tolist()):

        def where(position):
            named = {int(at[i]) for at in task.positions.values()}
            return (
                [int(task.positions[position][i])]
                if position != "other"
                else [p for p in range(length) if p not in named]
            )

        def hook(value, hook):
            layer = int(hook.name.split(".")[1])
            for position in positions_of(task):
                if "mlp" in hook.name:
                    if Node(layer, None, position) not in circuit:
                        value[0, where(position)] = values[hook.name][i, where(position)]
                else:
                    for h in range(value.shape[2]):
                        if Node(layer, h, position) not in circuit:
                            value[0, where(position), h] = values[hook.name][i, where(position), h]
            return value

        names = [
            f"blocks.{l}.{site}"
            for l in range(model.cfg.n_layers)
            for site in ("attn.hook_z", *(["hook_mlp_out"] if mlps else []))
        ]
        logits = model.run_with_hooks(task.clean_tokens[i : i + 1, :length], fwd_hooks=[(n, hook) for n in names])
        out.append(logit_difference(logits[:, -1], task.correct[i : i + 1], task.wrong[i : i + 1]))
    return torch.cat(out)


def of_reference(model, task, reference, kind):
    "What ablated nodes are given, computed with TransformerLens: {hook: [prompt, position, ...]}."
    wanted = lambda name: name.endswith(("hook_z", "hook_mlp_out"))
    if kind == "resample":
        return dict(model.run_with_cache(task.corrupted_tokens, names_filter=wanted)[1])
    cache = dict(model.run_with_cache(reference.corrupted_tokens, names_filter=wanted)[1])
    if kind == "zero":
        return {k: torch.zeros(len(task), *v.shape[1:]) for k, v in cache.items()}
    if kind == "mean_over_positions":
        places = torch.arange(reference.corrupted_tokens.shape[1])
        inside = (places < reference.lengths[:, None]) & (places > 0)
        # BOS keeps its own, here the mean over the first kind of prompt
        first = reference.lengths == reference.lengths[0]
        return {
            k: torch.cat([v[first, :1].mean(0, keepdim=True), v[inside].mean(0).expand(v[:1, 1:].shape)], 1).expand(
                len(task), *v.shape[1:]
            )
            for k, v in cache.items()
        }
    return {k: torch.stack([v[reference.lengths == n].mean(0) for n in task.lengths]) for k, v in cache.items()}


@pytest.mark.parametrize("mlps", [False, True])
@pytest.mark.parametrize("ablation", ["mean", "resample", "zero", "mean_over_positions"])
def test_agrees_with_hooks(tiny, unequal, ablation, mlps):
    task, reference = unequal
    every = nodes(tiny, task, mlps)
    circuits = {
        str(i): frozenset(n for n, keep in zip(every, np.random.default_rng(i).random(len(every)) < share) if keep)
        for i, share in enumerate((0.2, 0.5, 0.9))
    }
    ds = run_circuits(tiny, task, circuits, ablation, reference=reference, mlps=mlps)
    values = of_reference(tiny, task, reference, ablation)
    for name, circuit in {**circuits, "none": frozenset()}.items():
        theirs = by_hooks(tiny, task, circuit, values, mlps)
        mine = ds.empty if name == "none" else ds.logit_diff.sel(circuit=name)
        np.testing.assert_allclose(mine.values, theirs.numpy(), atol=2e-5)
    assert float(np.ptp(ds.logit_diff.values, axis=0).max()) > 1e-2  # the circuits do different things


def test_random_ablation_takes_one_prompt_of_the_kind(tiny, unequal):
    task, reference = unequal
    run = Ablated(tiny, task, "random", reference, seed=3)
    cache = tiny.run_with_cache(reference.corrupted_tokens, names_filter=lambda n: n.endswith("hook_z"))[1]
    # [layer, reference prompt, head, position, d]
    z = torch.stack([cache[f"blocks.{l}.attn.hook_z"] for l in range(3)]).transpose(2, 3)
    for i, length in enumerate(task.lengths.tolist()):
        fits = [
            j
            for j in range(len(reference))
            if torch.allclose(run.values["z"][:, run.rows[i], :, :length], z[:, j, :, :length], atol=1e-5)
        ]
        assert [int(reference.lengths[j]) for j in fits] == [length]
    assert (run([()]) != Ablated(tiny, task, "random", reference, seed=4)([()])).any()
    assert run_circuits(tiny, task, {}, "random", reference, seed=3).attrs["ablation_seed"] == 3


@pytest.mark.parametrize("mlps", [False, True])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_all_nodes_are_the_model(tiny, unequal, ablation, mlps):
    task, reference = unequal
    logits, _ = run_at_end(tiny, task.clean_tokens, task.positions["END"])
    ds = run_circuits(tiny, task, {"all": nodes(tiny, task, mlps), "none": []}, ablation, reference, mlps)
    clean = logit_difference(logits, task.correct, task.wrong).numpy()
    np.testing.assert_allclose(ds.model.values, clean, atol=2e-5)
    np.testing.assert_allclose(ds.logit_diff.sel(circuit="all").values, clean, atol=2e-5)
    np.testing.assert_array_equal(ds.logit_diff.sel(circuit="none").values, ds.empty.values)
    assert not np.allclose(ds.empty, ds.model)
    assert ds.attrs["ablation"] == ablation
    assert ("reference" in ds.attrs) == (ablation in ("mean", "random", "mean_over_positions"))


@pytest.mark.parametrize("metric", ["prob", "kl", "rank", "logit"])
def test_metrics(tiny, unequal, metric):
    task, reference = unequal
    ds = run_circuits(tiny, task, {"half": nodes(tiny, task)[::2]}, reference=reference, metric=metric)
    logits, _ = run_at_end(tiny, task.clean_tokens, task.positions["END"])
    at = logits.gather(1, task.correct[:, None])[:, 0]
    expected = {
        "prob": logits.softmax(-1).gather(1, task.correct[:, None])[:, 0],
        "kl": torch.zeros(len(task)),
        "rank": (logits > at[:, None]).sum(1).float(),
        "logit": with_mean(tiny, logits).gather(1, task.correct[:, None])[:, 0],
    }[metric]
    np.testing.assert_allclose(ds.model.values, expected.numpy(), atol=2e-5)
    assert ds[metric].shape == (1, len(task)) and ds.attrs["metric"] == metric


def test_order_and_company_of_circuits_change_nothing(tiny, unequal):
    "What runs share must not show: every circuit alone, in any order, in little memory."
    task, reference = unequal
    run, every = Ablated(tiny, task, reference=reference, mlps=True), nodes(tiny, task, True)
    rng = np.random.default_rng(0)
    sets = (
        [every]
        + [[n for n in every if rng.random() < 0.6] for _ in range(5)]
        + [[n for n in every if n.layer < 2], [n for n in every if n != Node(2, 1, "END")], ()]
    )
    alone = np.concatenate([Ablated(tiny, task, reference=reference, mlps=True)([s]) for s in sets])
    np.testing.assert_allclose(run(sets), alone, atol=2e-5)
    np.testing.assert_allclose(run(sets[::-1])[::-1], alone, atol=2e-5)
    np.testing.assert_allclose(run([every, *sets[:3]])[1:], alone[:3], atol=2e-5)
    with pytest.raises(ValueError, match="give at least") as e:
        Ablated(tiny, task, reference=reference, memory_budget=1)
    least = int(str(e.value).split("at least ")[1].split()[0])
    np.testing.assert_allclose(
        Ablated(tiny, task, reference=reference, mlps=True, memory_budget=least)(sets), alone, atol=2e-5
    )


def test_a_token_with_two_names_belongs_to_the_first(tiny, unequal):
    task, reference = unequal
    double = dataclasses.replace(
        task,
        positions={
            "D0": task.positions["D0"],
            "again": task.positions["D0"],
            "D1": task.positions["D1"],
            "END": task.positions["END"],
        },
    )
    run = Ablated(tiny, double, reference=reference)
    first, second = ({Node(l, h, p) for l in range(3) for h in range(4)} for p in ("D0", "again"))
    every = frozenset(run.universe)
    values = run([every, every - second, every - first])
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.allclose(values[0], values[2])
    np.testing.assert_allclose(values[0], Ablated(tiny, task, reference=reference)([nodes(tiny, task)])[0], atol=2e-5)


def test_a_name_for_END_reads_the_last_layer(tiny, unequal):
    "END's token under another name that comes first is still where the answer is read."
    task, reference = unequal
    renamed = dataclasses.replace(task, positions={"last": task.positions["END"], **task.positions})
    a, b = Ablated(tiny, renamed, reference=reference), Ablated(tiny, task, reference=reference)
    heads = [(2, 0), (1, 3), (2, 2)]
    np.testing.assert_allclose(a([[Node(*h, "last") for h in heads]]), b([[Node(*h, "END") for h in heads]]), atol=2e-5)


def test_saves_and_loads(tiny, unequal, tmp_path):
    task, reference = unequal
    ds = run_circuits(tiny, task, {"some": nodes(tiny, task, True)[::3]}, reference=reference, mlps=True)
    results.save(ds, "circuit", tmp_path)
    again = results.load("circuit", tmp_path)
    assert again.identical(ds) and circuit_of(again, "some") == frozenset(nodes(tiny, task, True)[::3])
    assert again.attrs["mlps"] == "ablated" and "12 corrupted prompts" in again.attrs["reference"]


def test_names_of_nodes():
    for n in (Node(9, 6, "END"), Node(3, None, "S1+1"), Node(0, 11, "first change")):
        assert node(str(n)) == n
    for bad in ("L9@END", "MLP@END", "L1H2", "x"):
        with pytest.raises(ValueError, match="is no node"):
            node(bad)
    assert heads_of({Node(2, 1, "a"), Node(2, 1, "b"), Node(1, None, "a")}) == [(2, 1)]


def test_the_published_circuit():
    roles = published_circuit()
    whole = frozenset().union(*roles.values())
    assert len(whole) == 26 == len(heads_of(whole)) and {n.position for n in whole} == {"END", "S2", "S1+1"}
    assert Node(9, 9, "END") in roles["name mover"]
    assert Node(5, 5, "S2") in roles["induction"]
    assert Node(4, 11, "S1+1") in roles["previous token"]


# faithfulness


def of_values(model, empty, **circuits):
    as_array = lambda v: np.asarray(v, float)
    return xr.Dataset(
        {
            "logit_diff": (("circuit", "prompt"), np.stack([as_array(v) for v in circuits.values()])),
            "model": ("prompt", as_array(model)),
            "empty": ("prompt", as_array(empty)),
        },
        coords={"circuit": list(circuits)},
        attrs={"metric": "logit_diff"},
    )


def test_faithfulness_by_hand():
    f = faithfulness(of_values([4, 4, 4, 4], [0, 0, 0, 0], half=[1, 3, 2, 2], over=[5, 5, 5, 5]))
    at = lambda circuit, measure: [float(f[k].sel(circuit=circuit, measure=measure)) for k in ("value", "low", "high")]
    assert at("half", "gap")[0] == 2 and at("half", "ratio")[0] == 0.5 and at("half", "normalised")[0] == 0.5
    assert at("over", "gap") == [1, 1, 1] and at("over", "normalised") == [1.25, 1.25, 1.25]
    assert at("half", "ratio")[1] < 0.5 < at("half", "ratio")[2]
    even = faithfulness(of_values([2, 2, 2, 2], [0, 0, 0, 0], a=[1, 3, 1, 3.1])).sel(circuit="a", measure="gap")
    told = summarise(xr.DataArray([1, -1, 1, -1.1], dims="prompt"))  # F(M) - F(C) may be of either sign
    assert float(even.value) == pytest.approx(0.025) and float(even.low) == 0 and float(told.low) < 0 < float(told.high)
    assert float(even.high) == pytest.approx(max(-float(told.low), float(told.high)))
    below = faithfulness(of_values([2, 2, 2, 2], [0, 0, 0, 0], a=[3, 3.1, 3, 3.2])).sel(circuit="a", measure="gap")
    # the larger end is the upper one
    assert float(below.value) == pytest.approx(1.075) and 0 < float(below.low) < 1.075 < float(below.high)
    g = faithfulness(of_values([4, 4], [2, 2], a=[3, 3]))
    assert float(g.value.sel(circuit="a", measure="normalised")) == 0.5
    assert float(g.value.sel(circuit="a", measure="ratio")) == 0.75
    for k in ("low", "high"):
        assert np.isnan(g[k]).all()  # two prompts have no interval
    with warned("nothing to take a share of"):
        nothing = faithfulness(of_values([1, 1], [1, 1], a=[1, 1]))
    assert np.isnan(nothing.value.sel(circuit="a", measure="normalised"))
    assert float(nothing.value.sel(circuit="a", measure="gap")) == 0


def test_the_interval_covers():
    """Of circuits whose true normalised faithfulness is 0.7, about 95 % of intervals hold it; as many of them a sixth
    narrower (for 90 %) or two fifths wider (for 99.4 %) do not."""
    rng, studies, truth = np.random.default_rng(0), 400, 0.7
    low, high = np.empty((2, studies))
    for i in range(studies):
        model, empty = 4 + rng.standard_normal(40), 0.5 * rng.standard_normal(40)
        values = truth * model + (1 - truth) * empty + 0.8 * rng.standard_normal(40)
        f = faithfulness(of_values(model, empty, a=values), n_resamples=400).sel(circuit="a", measure="normalised")
        low[i], high[i] = f.low, f.high
    least, most = binom.ppf(0.01, studies, 0.94), binom.ppf(0.99, studies, 0.96)

    def held(width):
        middle, half = (low + high) / 2, width * (high - low) / 2
        return int((abs(truth - middle) <= half).sum())

    assert least <= held(1) <= most
    assert held(0.84) < least and held(1.4) > most


def test_no_share_of_what_may_be_nothing():
    """Where model and empty circuit may do the same, a share of their distance says nothing: NaN and a reason, in
    every measure of it."""
    ds = of_values([3, -2, 2.5, -3.1, 0.3], [0, 0, 0, 0, 0], a=[1, 1, 1, 1, 1])
    with warned("which may be zero"):
        f = faithfulness(ds)
    assert np.isnan(f.sel(measure="normalised").value).all()
    assert np.isnan(f.sel(measure="normalised").high).all()
    assert float(f.value.sel(circuit="a", measure="gap")) > 0
    shares = xr.Dataset(
        {
            "logit_diff": (("ranking", "share", "prompt"), np.ones((1, 2, 5))),
            "random": (("draw", "share", "prompt"), np.ones((1, 2, 5))),
            "model": ds.model,
            "empty": ds.empty,
        },
        coords={"ranking": ["r"], "share": [0.1, 1.0]},
        attrs={"metric": "logit_diff"},
    )
    with warned("which may be zero"):
        assert np.isnan(area(shares).value).all()
    with warned("which may be zero"):
        assert np.isnan(trade_off(shares)["r"]["mean"]).all()


def test_few_prompts_claim_nothing():
    rng = np.random.default_rng(0)

    def made(n):
        model, empty = 5 + 0.1 * rng.standard_normal(n), 0.1 * rng.standard_normal(n)
        values = np.stack([np.stack([empty + f * (model - empty) for f in (0.2, end)]) for end in (0.5, 0.9)])
        return xr.Dataset(
            {
                "logit_diff": (("ranking", "share", "prompt"), values),
                "random": (("draw", "share", "prompt"), values[:1] / 2),
                "model": ("prompt", model),
                "empty": ("prompt", empty),
            },
            coords={"ranking": ["a", "b"], "share": [0.1, 1.0]},
            attrs={"metric": "logit_diff", "ablation": "mean"},
        )

    few, enough = area(made(ENOUGH - 1)), area(made(ENOUGH))
    assert np.isnan(few.low.sel(area="CMD")).all() and few.value.notnull().all() and enough.low.notnull().all()
    two = areas_in_words(area(made(2)))
    assert two.count("untested") == 2 and "apart" not in two and "overlap" not in two
    assert areas_in_words(enough).count("their intervals are apart") == 2
    ds = xr.Dataset(
        {"score": (("node", "prompt"), 3 + rng.random((2, 4))), "member": (("node", "other"), np.zeros((2, 2), bool))},
        coords={"node": ["L0H0@END", "L1H0@END"], "other": ["L0H0@END", "L1H0@END"]},
    )
    assert minimal_in_words(ds, 5.0).startswith("Untested: with 4 prompts")
    assert "0 of 2" not in minimal_in_words(ds, 5.0)
    more = xr.Dataset(
        {
            "score": (("node", "prompt"), np.stack([3 + rng.random(20), 0.01 + 0.001 * rng.random(20)])),
            "member": ds.member,
        },
        coords=ds.coords,
    )
    assert minimal_in_words(more, 5.0).startswith(
        "2 of 2 nodes change the answer significantly when they go, with the K found best for each, 1 of them by "
        "more than 10%"
    )


# curves


def test_areas_by_hand():
    ds = xr.Dataset(
        {
            "logit_diff": (("ranking", "share", "prompt"), [[[0.0, 0], [1, 3], [4, 4]], [[0.0, 0], [6, 6], [4, 4]]]),
            "random": (("draw", "share", "prompt"), [[[0.0, 0], [0, 0], [4, 4]], [[0.0, 0], [4, 4], [4, 4]]]),
            "model": ("prompt", [4.0, 4]),
            "empty": ("prompt", [0.0, 0]),
        },
        coords={"ranking": ["half", "over"], "share": [0, 0.2, 1]},
        attrs={"metric": "logit_diff"},
    )
    a = area(ds)
    value = lambda r, k: float(a.value.sel(ranking=r, area=k))
    # f of "half": 0, 0.5, 1 -> 0.2 * 0.25 + 0.8 * 0.75; |1 - f|: 1, 0.5, 0 -> 0.2 * 0.75 + 0.8 * 0.25
    assert value("half", "CPR") == pytest.approx(0.65) and value("half", "CMD") == pytest.approx(0.35)
    # f of "over": 0, 1.5, 1 -> 0.2 * 0.75 + 0.8 * 1.25; |1 - f|: 1, 0.5, 0
    assert value("over", "CPR") == pytest.approx(1.15) and value("over", "CMD") == pytest.approx(0.35)
    # draws: 0, 0, 1 -> 0.4 and 0, 1, 1 -> 0.9; |1 - f|: 1, 1, 0 -> 0.6 and 1, 0, 0 -> 0.1
    assert value("random", "CPR") == pytest.approx(0.65) and value("random", "CMD") == pytest.approx(0.35)
    assert a.attrs["grid"] == [0, 0.2, 1] and list(a.ranking.values) == ["half", "over", "random"]
    lines = trade_off(ds)
    assert lines["over"]["mean"].values.tolist() == [0, 1.5, 1]
    assert lines["random"]["mean"].values.tolist() == [
        0,
        0.5,
        1,
    ]


def noisy_curve(n=40, distance=4.0):
    "A curve whose empty circuit does something of its own."
    rng, shares = np.random.default_rng(0), [0, 0.2, 1]
    empty = 1.5 + 0.3 * rng.standard_normal(n)
    model = empty + distance + (0.5 * rng.standard_normal(n) if distance else rng.permuted(np.tile([-1.0, 1], n // 2)))
    some = lambda size: empty + size + 0.8 * rng.standard_normal(n)
    return xr.Dataset(
        {
            "logit_diff": (("ranking", "share", "prompt"), [[empty, some(2.0), model], [empty, some(5.5), model]]),
            "random": (("draw", "share", "prompt"), [[empty, some(0.2), model], [empty, some(0.7), model]]),
            "model": ("prompt", model),
            "empty": ("prompt", empty),
            "size": ("share", [0, 2, 10]),
        },
        coords={"ranking": ["half", "over"], "share": shares},
        attrs={"metric": "logit_diff"},
    )


def test_shares_and_areas_where_the_empty_circuit_does_something():
    "By numpy, and the interval of CMD by drawing prompts here."
    ds, rng = noisy_curve(), np.random.default_rng(1)
    lines, areas = trade_off(ds), area(ds)

    def f(v, i=slice(None)):
        empty, model = ds.empty.values[i].mean(-1), ds.model.values[i].mean(-1)
        return (v[:, i].mean(-1) - empty) / (model - empty)

    draws = rng.integers(0, 40, (2000, 40))
    for name in ("half", "over"):
        v = ds.logit_diff.sel(ranking=name).values
        np.testing.assert_allclose(lines[name]["mean"], f(v), rtol=1e-9)
        told = areas.sel(ranking=name, area="CMD")
        far = lambda share: np.trapezoid(abs(1 - share), ds.share.values, axis=0)
        assert float(told.value) == pytest.approx(far(f(v)), rel=1e-9)
        low, high = np.percentile(far(f(v, draws)), [2.5, 97.5])
        assert abs(float(told.low) - low) < 0.15 * (high - low) and abs(float(told.high) - high) < 0.15 * (high - low)
    drawn = np.mean([f(v) for v in ds.random.values], axis=0)
    np.testing.assert_allclose(lines["random"]["mean"], drawn, rtol=1e-9)


def test_no_area_where_the_model_does_no_more_than_nothing():
    with pytest.warns(UserWarning, match="No effect can be given"):
        areas = area(noisy_curve(distance=0.0))
    assert list(areas.ranking.values) == ["half", "over", "random"]
    assert all(np.isnan(areas[v]).all() for v in ("value", "low", "high"))


def test_the_grid_is_that_of_mib(tiny, unequal):
    "Mueller et al. 2025, section 3: the sizes at which a circuit is judged."
    ds = curve(tiny, unequal[0], {}, random=1, ablation="zero")
    assert ds.share.values.tolist() == [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]


@pytest.mark.filterwarnings("ignore:No effect can be given")
def test_a_curve_without_random_circuits(tiny, unequal):
    "As page 07 asks for of a large model: the named rankings, alone and as they are beside random ones."
    task, every = unequal[0], nodes(tiny, unequal[0])
    alone, beside = (curve(tiny, task, {"r": every}, (0.3, 1), random=n, ablation="zero") for n in (0, 2))
    assert alone.sizes["draw"] == 0 and least_faithful(alone, "r") == least_faithful(beside, "r")
    np.testing.assert_allclose(alone.logit_diff, beside.logit_diff, atol=2e-5)
    assert list(trade_off(alone)) == ["r"] and list(area(alone).ranking.values) == ["r"]
    with pytest.raises(ValueError, match="random: -1 is no such number"):
        curve(tiny, task, {"r": every}, random=-1)


def test_a_curve_ends_at_the_model(tiny, unequal):
    task, reference = unequal
    every = nodes(tiny, task)
    ds = curve(
        tiny, task, {"forward": every, "backward": every[::-1]}, shares=(0, 0.3, 1), random=3, reference=reference
    )
    assert ds["size"].values.tolist() == [0, round(0.3 * len(every)), len(every)]
    assert ds.random.shape == (
        3,
        3,
        len(task),
    )
    for v in (ds.logit_diff.sel(ranking="forward"), ds.logit_diff.sel(ranking="backward"), ds.random.isel(draw=1)):
        np.testing.assert_allclose(v.sel(share=1), ds.model, atol=2e-5)
        np.testing.assert_array_equal(v.sel(share=0), ds.empty)
    assert not np.allclose(*ds.logit_diff.sel(share=0.3).values)
    middle = run_circuits(tiny, task, {"a": every[: round(0.3 * len(every))]}, reference=reference)
    np.testing.assert_allclose(
        ds.logit_diff.sel(ranking="forward", share=0.3), middle.logit_diff.sel(circuit="a"), atol=2e-5
    )


def test_random_circuits():
    some = random_circuits(range(20), 5, n=50, seed=1)
    assert all(len(c) == 5 and c <= set(range(20)) for c in some.values()) and len(set(some.values())) > 40
    counts = np.bincount([i for c in some.values() for i in c], minlength=20)
    assert counts.min() > 3
    assert some == random_circuits(range(20), 5, n=50, seed=1) != random_circuits(range(20), 5, n=50, seed=2)
    with pytest.raises(ValueError, match="size: 21"):
        random_circuits(range(20), 21)


# scores and search


@pytest.fixture(scope="module")
def silent(tiny_folder):
    "The tiny model with all but three heads silenced: only these can matter."
    from namemovers.model import load_model

    model = load_model(tiny_folder, device="cpu")
    heads = [(0, 2), (1, 1), (2, 3)]
    with torch.no_grad():
        for l, block in enumerate(model.blocks):
            w = block.attn.W_O
            for h in range(4):
                if (l, h) not in heads:
                    w[h] = 0
    return model, heads


def test_silenced_heads_score_nothing_and_are_pruned(silent, unequal):
    model, heads = silent
    task, reference = unequal
    ends = run_circuits(model, task, {}, reference=reference)
    task = the_right_way_round(task, ends.model, ends.empty)
    for method in METHODS:
        scores = score_nodes(model, task, method, steps=3, reference=reference)
        mean = np.abs(scores.score).mean("prompt")
        there = np.array([node(str(n))[:2] in heads for n in scores.node.values])
        assert float(mean[~there].max()) < 1e-6 < 1e-3 < float(mean[there].max())
    found = prune(model, task, tolerance=0.02, reference=reference)
    circuit = circuit_of(found)
    assert circuit and set(heads_of(circuit)) <= set(heads)
    assert found.attrs["search"] == "pruning"
    assert found["size"].values[-1] == len(circuit)
    assert (np.diff(found["size"]) < 0).all()
    grown = grow(model, task, tolerance=0.02, reference=reference)
    assert circuit_of(grown) and set(heads_of(circuit_of(grown))) <= set(heads)
    for ds in (found, grown):
        f = faithfulness(run_circuits(model, task, {"c": circuit_of(ds)}, reference=reference)).value.sel(
            circuit="c", measure="normalised"
        )
        assert abs(1 - float(f)) <= 0.02 + 1e-5
        assert set(ranking(ds)) == set(nodes(model, task))
        assert frozenset(ranking(ds)[: len(circuit_of(ds))]) == circuit_of(ds)


def test_a_pruned_circuit_is_minimal(tiny, unequal):
    task, reference = unequal
    circuit = circuit_of(prune(tiny, task, tolerance=0.1, reference=reference))
    ds = run_circuits(tiny, task, {str(n): circuit - {n} for n in circuit}, reference=reference)
    f = ((ds.logit_diff - ds.empty).mean("prompt") / (ds.model - ds.empty).mean("prompt")).values
    assert (np.abs(1 - f) > 0.1).all()
    smaller = prune(tiny, task, tolerance=0.3, start=circuit, reference=reference)
    assert circuit_of(smaller) <= circuit


@pytest.mark.parametrize("mlps", [False, True])
def test_gates_share_out_the_distance(tiny, unequal, mlps):
    task, reference = unequal
    ds = run_circuits(tiny, task, {}, reference=reference, mlps=mlps)
    scores = score_nodes(tiny, task, steps=50, reference=reference, mlps=mlps)
    np.testing.assert_allclose(
        scores.score.sum("node").values, (ds.model - ds.empty).values, atol=0.02 * float(abs(ds.model - ds.empty).max())
    )


def test_one_gate_is_the_gradient_at_the_model(tiny, unequal):
    "Against finite differences: a node's value moved a little towards its replacement."
    task, reference = unequal
    scores = score_nodes(tiny, task, steps=1, reference=reference)
    run = Ablated(tiny, task, reference=reference)
    for n in (Node(1, 2, "D1"), Node(2, 0, "END"), Node(0, 3, "other")):
        z = of_reference(tiny, task, reference, "mean")[f"blocks.{n.layer}.attn.hook_z"]
        step, out = 0.02, []
        for side in (step, -step):

            def hook(value, hook):
                keep = run.owner == positions_of(task).index(n.position)
                part = value[:, :, n.head]
                value[:, :, n.head] = torch.where(keep[..., None], part + side * (part - z[:, :, n.head]), part)
                return value

            logits = tiny.run_with_hooks(task.clean_tokens, fwd_hooks=[(f"blocks.{n.layer}.attn.hook_z", hook)])
            out.append(
                logit_difference(logits[torch.arange(len(task)), task.positions["END"]], task.correct, task.wrong)
            )
        np.testing.assert_allclose(
            scores.score.sel(node=str(n)), ((out[0] - out[1]) / (2 * step)).detach().numpy(), rtol=0.03, atol=2e-3
        )


def test_patching_scores_add_up_by_position(tiny, unequal):
    from namemovers.attribution_patching import attribute

    task, _ = unequal
    scores = score_nodes(tiny, task, "patching", steps=2, mlps=True)
    ds = attribute(tiny, task, "z", by="head_position", direction="noise", steps=2)
    drop = (ds.clean - ds.logit_diff).sel(layer=1, head=2)
    np.testing.assert_allclose(scores.score.sel(node="L1H2@D1"), drop.sel(position=5), atol=1e-5)
    together = sum(scores.score.sel(node=f"L1H2@{p}") for p in positions_of(task))
    np.testing.assert_allclose(together, drop.fillna(0).sum("position"), atol=1e-5)
    mlp = attribute(tiny, task, "mlp_out", by="position", direction="noise", steps=2)
    np.testing.assert_allclose(
        scores.score.sel(node="MLP1@D1"), (mlp.clean - mlp.logit_diff).sel(layer=1, position=5), atol=1e-5
    )


def test_the_larger_of_two_scores(tiny, unequal):
    task, reference = unequal
    gates, knockout, larger = (
        score_nodes(tiny, task, m, reference=reference).score for m in ("gates", "knockout", "larger")
    )
    own = abs(gates.mean("prompt")) > abs(knockout.mean("prompt"))
    np.testing.assert_allclose(larger, xr.where(own, gates, knockout).transpose("node", "prompt"), atol=1e-5)
    assert 0 < int(own.sum()) < own.size


def test_two_that_cancel_do_not_go_together(tiny, unequal):
    "A block is not dropped because what it adds and what it takes away happen to be alike."
    task, reference = unequal
    run = Ablated(tiny, task, reference=reference)
    every = run.universe
    knockout = score_nodes(tiny, task, "knockout", reference=reference)
    mean = knockout.score.mean("prompt").values
    distance = abs(float(run([every]).mean() - run([()]).mean()))
    for tolerance in (0.05, 0.2):
        found = prune(tiny, task, knockout, tolerance=tolerance, reference=reference)
        order = [str(n) for n in found.node.values]
        for before, after in zip(found["size"].values, found["size"].values[1:]):
            gone = order[after:before]
            assert (
                len(gone) == 1
                or sum(abs(mean[[str(n) for n in every].index(n)]) for n in gone) <= tolerance * distance + 1e-6
            )


def test_ranking(tiny, unequal):
    ds = xr.Dataset(
        {"score": (("node", "prompt"), [[1.0, 1], [-3, -3], [2, 2]])},
        coords={"node": ["L0H0@END", "L0H1@END", "L1H0@END"]},
    )
    assert [str(n) for n in ranking(ds)] == ["L0H1@END", "L1H0@END", "L0H0@END"]
    assert [str(n) for n in ranking(ds, signed=True)] == ["L1H0@END", "L0H0@END", "L0H1@END"]


# completeness and minimality


def test_completeness_and_minimality_by_hand(tiny, unequal):
    task, reference = unequal
    every = nodes(tiny, task)
    circuit = frozenset(n for n in every if n.position in ("END", "D1") and n.layer > 0)
    ds = completeness(tiny, task, circuit, random=3, greedy=2, steps=2, width=3, reference=reference)
    assert list(ds.kind.values) == ["none", "role", "role", "random", "random", "random", "greedy", "greedy"]
    for i in (0, 1, 4, 6):
        one = ds.isel(subset=i)
        out = {node(str(n)) for n in ds.node.values[one.member.values]}
        own = run_circuits(tiny, task, {"c": circuit - out, "m": set(every) - out}, reference=reference)
        np.testing.assert_allclose(one.without, own.logit_diff.sel(circuit="c"), atol=2e-5)
        np.testing.assert_allclose(one.model_without, own.logit_diff.sel(circuit="m"), atol=2e-5)
        np.testing.assert_allclose(
            one.difference, own.logit_diff.sel(circuit="c") - own.logit_diff.sel(circuit="m"), atol=3e-5
        )
    assert circuit_of(ds.isel(subset=1)) == {n for n in circuit if n.position == "D1"}
    assert not circuit_of(ds.isel(subset=0))
    assert 1 <= int(ds.member.sel(subset="greedy 0").sum()) <= 2
    whole = completeness(tiny, task, every, random=4, greedy=1, steps=2, width=3, reference=reference)
    np.testing.assert_allclose(whole.difference, 0, atol=3e-5)  # the model is complete

    m = minimality(
        tiny, task, circuit, roles={"late": [(2, h) for h in range(4)]}, steps=1, width=2, reference=reference
    )
    assert set(m.node.values) == {str(n) for n in circuit}
    at = str(Node(2, 1, "END"))
    out = {node(str(n)) for n in m.other.values[m.member.sel(node=at).values]}
    own = run_circuits(tiny, task, {"kept": circuit - out, "without": circuit - out - {node(at)}}, reference=reference)
    np.testing.assert_allclose(
        m.score.sel(node=at), own.logit_diff.sel(circuit="kept") - own.logit_diff.sel(circuit="without"), atol=3e-5
    )
    assert not any(bool(m.member.sel(node=n, other=n)) for n in m.node.values)
    alone = run_circuits(
        tiny, task, {"c": circuit, "without": circuit - {node(at)}}, reference=reference
    ).logit_diff.mean("prompt")
    # at least what K = nothing gives
    assert abs(float(m.score.sel(node=at).mean())) >= abs(float(alone[0] - alone[1])) - 1e-5
    # nothing reads a last layer before END
    np.testing.assert_allclose(m.score.sel(node=str(Node(2, 1, "D1"))), 0, atol=1e-6)


def test_a_greedy_set_is_the_farthest_on_its_way():
    "The way takes b, a, c; with b alone circuit and model are farthest apart."
    far = {"a": 1, "b": 5, "c": 0, "ab": 4, "bc": 3, "abc": 2}

    class Told:
        members = "abc"

        def grown(self, out):
            return [out | {m} for m in self.members if m not in out]

        def apart(self, sets):
            return np.array([far["".join(sorted(k))] for k in sets])

    steps = []
    bar = SimpleNamespace(update=lambda: steps.append(1))
    assert _greedy_set(Told(), 5, 3, bar) == {"b"} and len(steps) == 3
    assert _greedy_set(Told(), 5, 1, bar) == {"a", "b"}  # of one candidate a step: a, ab, abc


def test_greedy_sets_may_be_found_on_other_prompts(tiny, unequal):
    task, reference = unequal
    other = made_task(tiny, n=5, lengths=[9, 12, 9, 10, 12], differ=(2, 5), seed=5)
    circuit = frozenset(n for n in nodes(tiny, task) if n.position != "other")
    a = completeness(tiny, task, circuit, random=0, greedy=1, steps=2, width=4, search=other, reference=reference)
    b = completeness(tiny, other, circuit, random=0, greedy=1, steps=2, width=4, reference=reference)
    assert a.attrs["sets_found_on"] == "other prompts" and a.sizes["prompt"] == 7
    np.testing.assert_array_equal(a.member, b.member)  # found on `other` in both


def test_overlap():
    found = overlap(
        {Node(1, 0, "END"), Node(2, 0, "END")},
        {Node(2, 0, "END")},
        [Node(l, h, "END") for l in range(3) for h in range(4)],
    )
    assert found["jaccard"] == 0.5 and found["shared"] == 1 and found["p"] == pytest.approx(2 / 12)
    with pytest.raises(ValueError, match="not in the universe"):
        overlap({"x"}, {"y"}, ["y"])


def test_reference_prompts():
    from conftest import small_tokenizer

    tokenizer = small_tokenizer()
    task = ioi_task(tokenizer, n=9, seed=3, templates=["went", "met", "late"])
    reference = reference_task(task, n=30)
    assert reference.corruption == "abc"
    assert set(reference.templates) == {"went", "met", "late"}
    assert reference.seed == 4
    assert len(reference) == 30
    for i in range(30):  # three different names
        said = [int(reference.corrupted_tokens[i, reference.positions[p][i]]) for p in ("IO", "S1", "S2")]
        assert len(set(said)) == 3
    mrs = mrs_task(tokenizer, n=5, seed=0)
    reference = reference_task(mrs, n=20, names=["Alice", "Bob", "David", "John", "Mary", "Paul"])
    assert reference.corruption == "other_cue" and all(t.count("The child is") == 1 for t in reference.corrupted)
    assert (reference.lengths == mrs.lengths[0]).all()
    for i in range(20):  # a name where the cue names one, and not that of the answer
        said = {
            p: int(reference.corrupted_tokens[i, reference.positions[p][i]])
            for p in ("S1", "S2", "cue_name", "S3", "S4")
        }
        assert said["cue_name"] == said["S2"] and len(set(said.values())) == 4
    own = mrs_task(
        tokenizer,
        n=3,
        templates={"mine": "{S1} is a {D1}. The {cue_word} is {cue_name}. {S2} is a {D2}. The {cue_word} is"},
    )
    with pytest.raises(ValueError, match="give reference="):
        reference_task(own)


def test_everywhere(tiny, unequal):
    task, _ = unequal
    assert everywhere([(1, 2), Node(0, 1, "x")], task) == {
        Node(l, h, p) for l, h in ((1, 2), (0, 1)) for p in positions_of(task)
    }


def test_reference_prompts_are_in_distribution_at_every_position():
    "Of every shipped task, template and corruption, with fixed, varied and own words."
    from conftest import small_tokenizer

    tokenizer = small_tokenizer()
    for corruption in MRS_CORRUPTIONS:
        for words in ({}, {"descriptions": "vary", "cue_words": "vary"}, {"cue_subject": "first"}):
            task = mrs_task(tokenizer, n=26, templates="all", corruption=corruption, **words)
            assert foreign_positions(task, reference_task(task, n=39)) == []
            assert foreign_positions(task, task) == (["cue_name", "other"] if corruption == "no_cue" else [])
    for corruption in IOI_CORRUPTIONS:
        task = ioi_task(tokenizer, n=36, corruption=corruption)
        assert foreign_positions(task, reference_task(task, n=72)) == foreign_positions(task, task) == []


def test_reference_prompts_have_the_words_of_the_task():
    from conftest import small_tokenizer

    tokenizer = small_tokenizer()
    fixed = mrs_task(tokenizer, n=4, words={"D1": "singer"}, cue_words=["lion", "bear"], cue_subject="first")
    reference = reference_task(fixed, n=20)
    assert {n["D1"] for n in reference.names} == {"singer"} and {n["D2"] for n in reference.names} == {"student"}
    assert {n["cue_word"] for n in reference.names} == {n["cue_word"] for n in fixed.names} == {"lion", "bear"}
    assert all(n["cue_name"] == n["S1"] != n["S2"] for n in reference.names)
    own = (
        "{S1} is {COLOUR}. {S2} is {COLOUR}. The {cue_word} is {cue_name}. {S3} is here. {S4} is here. "
        "The {cue_word} is"
    )
    reference = reference_task(mrs_task(tokenizer, n=6, templates=own, words={"COLOUR": ["late", "old"]}), n=20)
    assert {n["COLOUR"] for n in reference.names} == {"late", "old"}
    with pytest.raises(ValueError, match="cue_word. in its source.*give reference="):
        reference_task(mrs_task(tokenizer, n=3, templates="{S1} is a {D1}. {S2} is a {D2}. So"))


def test_a_reference_out_of_distribution_is_noticed(mini):
    "The neutral sentence of `no_cue` holds another word where the cue names somebody: the result says so, and where."
    task = mrs_task(mini.tokenizer, n=4)
    neutral = mrs_task(mini.tokenizer, n=20, seed=1, corruption="no_cue")
    for ablation in ("mean", "random"):
        with warned("at cue_name, other it holds words of another kind"):
            ds = run_circuits(mini, task, {}, ablation, neutral)
        assert ds.attrs["out_of_distribution"] == "cue_name, other"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "out_of_distribution" not in run_circuits(mini, task, {}, ablation).attrs
    assert run_circuits(mini, neutral[[0, 1]], {}, "resample").attrs["out_of_distribution"] == "cue_name, other"
    assert "out_of_distribution" not in run_circuits(mini, task, {}, "resample").attrs


def test_own_tasks_are_judged_by_their_names():
    from conftest import small_tokenizer

    tokenizer, words = small_tokenizer(), {"A": ["John", "Mary", "Paul"], "B": ["Bob", "David", "Alice"]}
    make = lambda corrupt: Task.from_template(
        "{A} and {B} were late. {B} gave a book to", words, ("A", "B"), corrupt, tokenizer, n=6
    )
    good, third, thing = make({"B.2": "A"}), make({"B.2": ["Jane", "Kate"]}), make({"B.2": ["book", "dog"]})
    assert foreign_positions(good, good) == foreign_positions(good, third) == []
    assert foreign_positions(good, thing) == ["B.2"]
    pairs = Task.from_pairs(
        ["John and Mary were late. John called"],
        ["John and Mary were late. Mary called"],
        (" Mary", " John"),
        tokenizer,
    )
    assert foreign_positions(pairs, pairs) == []


def test_no_head_enters_a_circuit_by_the_reference_alone(mini):
    """A head of the pruned circuit of MRS is one that other ablations need too. With the neutral sentence in place of
    the cue, L0H2 at the name in the cue was in it, and two logits hung on it."""
    (search, reference), _ = held_out(mrs_task, mini.tokenizer, n=30, seed=0)
    circuit = circuit_of(prune(mini, search, reference=reference))
    needed = set()
    for ablation in ("resample", "random", "zero"):
        how = {} if ablation != "random" else {"reference": reference}
        needed |= set(heads_of(circuit_of(prune(mini, search, ablation=ablation, **how))))
    assert set(heads_of(circuit)) <= needed and Node(0, 2, "cue_name") not in circuit
    scores = score_nodes(mini, search, "knockout", reference=reference)
    whole = float(run_circuits(mini, search, {}, reference=reference).model.mean())
    assert abs(float(scores.score.sel(node="L0H2@cue_name").mean())) < 0.05 * whole


# bad input


def test_bad_input(tiny, unequal):
    task, reference = unequal
    run = lambda circuit=(), **how: run_circuits(tiny, task, {"c": circuit}, **{"reference": reference, **how})
    for circuit, message in (
        ({Node(3, 0, "END")}, "L3H0@END does not exist"),
        ({Node(0, 4, "END")}, "L0H4@END does not exist"),
        ({Node(0, 0, "S9")}, "no position 'S9'"),
        ({Node(0, None, "END")}, "give mlps=True"),
        ({"L0H0"}, "is no node"),
        ({(0, 0)}, "is no node"),
        ({Node(-1, 0, "END")}, "does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            run(circuit)
    with pytest.raises(ValueError, match="ablation='median'"):
        run(ablation="median")
    with pytest.raises(ValueError, match="metric='loss'"):
        run(metric="loss")
    with pytest.raises(ValueError, match="circuits: .* is no dict"):
        run_circuits(tiny, task, [()], reference=reference)
    with pytest.raises(ValueError, match="no reference prompts can be made"):
        run_circuits(tiny, task, {})
    empty = dataclasses.replace(
        reference,
        clean=[],
        clean_tokens=reference.clean_tokens[:0],
        corrupted_tokens=reference.corrupted_tokens[:0],
        lengths=reference.lengths[:0],
        templates=[],
    )
    with pytest.raises(ValueError, match="reference holds no prompt"):
        run(reference=empty)
    with pytest.raises(ValueError, match="'made' with 12 tokens.*it has them with .9, 10."):
        run(reference=reference.subset([0, 1]))
    with pytest.raises(ValueError, match="no prompt of template 'made'"):
        run(reference=dataclasses.replace(reference, templates=["other"] * 12), ablation="random")
    with pytest.raises(ValueError, match="needs one shape"):
        run_circuits(tiny, dataclasses.replace(task, corrupted_tokens=task.corrupted_tokens[:, :-1]), {}, "resample")
    with pytest.raises(ValueError, match="method='guess'"):
        score_nodes(tiny, task, "guess", reference=reference)
    with pytest.raises(ValueError, match="steps: 0 is no such number"):
        score_nodes(tiny, task, steps=0, reference=reference)
    with pytest.raises(ValueError, match="no gradient"):
        score_nodes(tiny, task, metric="rank", reference=reference)
    with pytest.raises(ValueError, match="tolerance=1"):
        prune(tiny, task, tolerance=1, reference=reference)
    with pytest.raises(ValueError, match="start: it is"):
        prune(tiny, task, start=[Node(0, 0, "D0")], tolerance=0.01, reference=reference)
    with pytest.raises(ValueError, match="width: 0 is no such number"):
        grow(tiny, task, width=0, reference=reference)
    with pytest.raises(ValueError, match="scores are of other nodes"):
        prune(tiny, task, score_nodes(tiny, task, reference=reference, mlps=True), reference=reference)
    with pytest.raises(ValueError, match="nothing to find"):
        prune(tiny, dataclasses.replace(task, corrupted_tokens=task.clean_tokens), ablation="resample")
    with pytest.raises(ValueError, match="rounding='up'"):
        curve(tiny, task, {}, rounding="up", reference=reference)
    with pytest.raises(ValueError, match="shares="):
        curve(tiny, task, {}, shares=(0.5, 0.1), reference=reference)
    with pytest.raises(ValueError, match="rankings"):
        curve(tiny, task, {"short": nodes(tiny, task)[1:]}, reference=reference)
    for f in (completeness, minimality):
        with pytest.raises(ValueError, match="circuit holds no node"):
            f(tiny, task, (), reference=reference)


# edges


def test_edges_have_the_same_curve(tiny, unequal):
    from namemovers.circuits import attribute_edges, graph, run_edges, top_edges

    task, reference = unequal
    first = run_edges(tiny, task, {"none": []}, ablation="mean", reference=reference)
    task = the_right_way_round(task, first.clean, first.ablated)
    scores = attribute_edges(tiny, task, ablation="mean", reference=reference)
    assert scores.effect.notnull().all()
    run, order = AblatedEdges(tiny, task, reference=reference), edge_ranking(scores)
    ds = curve(tiny, task, {"EAP": order}, shares=(0, 0.1, 1), random=2, run=run)
    assert len(order) == len(graph(tiny)) and set(order) == set(run.universe)
    k = int(ds["size"].sel(share=0.1))
    own = run_edges(tiny, task, {"top": top_edges(scores, k)}, ablation="mean", reference=reference)
    np.testing.assert_allclose(
        ds.logit_diff.sel(ranking="EAP", share=0.1), own.logit_diff.sel(circuit="top"), atol=2e-5
    )
    np.testing.assert_allclose(ds.model, own.clean, atol=2e-5)
    np.testing.assert_allclose(ds.empty, own.ablated, atol=2e-5)
    least = np.argmin(scores.effect.mean("prompt").values)
    assert edge_ranking(scores, signed=True)[-1] == str(scores.edge.values[least])


def test_effects_that_are_not_there_rank_nothing(tiny, unequal):
    "All NaN, any order is that of the names."
    from namemovers.circuits import attribute_edges, top_edges

    task, reference = unequal
    scores = attribute_edges(tiny, task, ablation="mean", reference=reference)
    scores["effect"] = scores.effect * np.nan
    for rank in (
        lambda: edge_ranking(scores),
        lambda: top_edges(scores, 3),
        lambda: top_edges(scores.effect, 3, greedy=True),
    ):
        with pytest.raises(ValueError, match="no edge has an effect to rank by"):
            rank()


def test_curves_as_mib_runs_them(tiny, unequal):
    """Sizes rounded down, circuits pruned, cut edges carrying the corrupted run: by hand from `run_edges`; only
    these areas have MIB's name."""
    from namemovers.circuits import attribute_edges, connected, graph, run_edges

    task, reference = unequal
    ends = run_edges(tiny, task, [[]])
    task = the_right_way_round(task, ends.clean, ends.corrupted)
    g, order = graph(tiny), edge_ranking(attribute_edges(tiny, task))
    shares = (0.01, 0.05, 0.5, 1)
    as_mib = curve(
        tiny, task, {"EAP": order}, shares, "down", random=1, run=AblatedEdges(tiny, task, "resample", prune=True)
    )
    sizes = [int(s * len(g)) for s in shares]
    assert as_mib["size"].values.tolist() == sizes != [round(s * len(g)) for s in shares]
    own = run_edges(tiny, task, [connected(g, order[:k]) for k in sizes])
    np.testing.assert_allclose(as_mib.logit_diff.sel(ranking="EAP"), own.logit_diff, atol=2e-5)
    np.testing.assert_allclose(as_mib.empty, own.corrupted, atol=2e-5)
    f = ((own.logit_diff - own.corrupted).mean("prompt") / (own.clean - own.corrupted).mean("prompt")).values
    areas = {"CPR": np.trapezoid(f, shares), "CMD": np.trapezoid(abs(1 - f), shares)}
    for k, v in areas.items():
        assert float(area(as_mib).value.sel(ranking="EAP", area=k)) == pytest.approx(v, abs=1e-4)
    mean = AblatedEdges(tiny, task, "mean", reference, prune=True)
    np.testing.assert_allclose(
        mean([order[:30]]),
        run_edges(tiny, task, [connected(g, order[:30])], "mean", reference=reference).logit_diff,
        atol=2e-5,
    )
    assert area_name(as_mib, "CPR") == "CPR as in MIB"
    assert list(area_table(area(as_mib)).columns) == [
        "ranking",
        "CPR as in MIB",
        "CMD as in MIB",
    ]
    for other in (curve(tiny, task, {}, shares, "down", run=mean), curve(tiny, task, {}, shares, reference=reference)):
        assert area_name(other, "CMD") == "CMD by mean ablation"
    for run in (AblatedEdges(tiny, task, "resample"), Ablated(tiny, task, "resample")):
        assert area_name(curve(tiny, task, {}, shares, "down", run=run), "CPR") == "CPR by resample ablation"
    assert (
        area_name(curve(tiny, task, {}, shares, run=AblatedEdges(tiny, task, "resample", prune=True)), "CPR")
        == "CPR by resample ablation"
    )


def test_significance_and_size_are_told_apart():
    ds = xr.Dataset(
        {
            "without": (("subset", "prompt"), np.full((3, 20), 4.0)),
            "model_without": (("subset", "prompt"), np.full((3, 20), 4.0)),
            "member": (("subset", "node"), [[False], [True], [True]]),
        },
        coords={"subset": ["nothing", "a", "b"], "node": ["L0H0@END"]},
    )
    ds["model_without"][1] = 4.0 + 0.01 * (1 + np.arange(20) / 20)  # in every prompt, and next to nothing
    ds["model_without"][2] = 6.0 + np.arange(20) / 20
    ds["difference"] = ds.without - ds.model_without
    said = incomplete_in_words(ds)
    assert "For 2 of 3 sets" in said and "for 1 of them by more than 0.40 logits, 10% of what the model does" in said
    assert said.index("b (K = L0H0 (END))") < said.index("a (K =")
    assert "for 0 of them by more than 4.00" in incomplete_in_words(ds, least=1.0)


def test_acdc_ranks_what_it_kept_first(tiny, unequal):
    from namemovers.circuits import acdc

    task, reference = unequal
    found = acdc(tiny, task, 0.002, ablation="mean", reference=reference)
    order, kept = edge_ranking(found), {str(e) for e, c in zip(found.edge.values, found.circuit.values) if c}
    assert len(kept) > 0 and set(order[: len(kept)]) == kept and len(set(order)) == found.sizes["edge"]
    rise = dict(zip(found.tested.values, found.rise.values))
    tried = [rise[e] for e in order[: len(kept)]]
    assert tried == sorted(tried, reverse=True)


def test_the_smallest_faithful_size():
    ds = xr.Dataset(
        {
            "logit_diff": (("ranking", "share", "prompt"), [[[0.0], [0.95], [0.5], [1.05], [1.0]]]),
            "model": ("prompt", [1.0]),
            "empty": ("prompt", [0.0]),
            "size": ("share", [0, 1, 2, 3, 4]),
        },
        coords={"ranking": ["r"], "share": [0, 0.25, 0.5, 0.75, 1]},
        attrs={"metric": "logit_diff"},
    )
    assert least_faithful(ds, "r") == 3 and least_faithful(ds, "r", 0.01) == 4
    with pytest.raises(ValueError, match="largest share"):
        least_faithful(ds.isel(share=slice(0, 3)), "r")


def test_held_out_prompts_share_no_name():
    from conftest import small_tokenizer

    tokenizer = small_tokenizer()
    (search, a), (report, b) = held_out(mrs_task, tokenizer, n=12, seed=4, search=8, n_reference=30)
    subjects = ("S1", "S2", "S3", "S4")
    said = lambda task, tokens: {int(tokens[i, task.positions[p][i]]) for p in subjects for i in range(len(task))}
    assert (len(search), len(report), len(a), len(b)) == (8, 12, 30, 30)
    searched = said(search, search.clean_tokens) | said(a, a.corrupted_tokens)
    reported = said(report, report.clean_tokens) | said(b, b.corrupted_tokens)
    assert not searched & reported
    assert len({search.seed, report.seed, a.seed, b.seed}) == 4


# a known truth


@pytest.mark.parametrize("make", [ioi_task, mrs_task])
def test_the_search_finds_the_planted_heads(make):
    from namemovers.model import load_model
    from namemovers.planted import truth

    model, known = load_model("planted", device="cpu"), truth()
    (search, reference), (report, other) = held_out(make, model.tokenizer, n=10, seed=0, search=8, n_reference=72)
    circuit = circuit_of(prune(model, search, tolerance=0.1, reference=reference))
    true, found = set(known.find(task=search.name)), set(heads_of(circuit))
    assert found <= true  # nothing that has no part in it
    movers = set(known.find("name mover", "negative name mover", task=search.name))
    assert movers <= found and len(found) >= 0.6 * len(true)
    f = faithfulness(run_circuits(model, report, {"c": circuit}, reference=other), n_resamples=200)
    assert abs(1 - float(f.value.sel(circuit="c", measure="normalised"))) < 0.2  # on prompts without a common name


# ---- what is not run again


@pytest.mark.parametrize("mlps", [False, True])
@pytest.mark.parametrize("metric", ["logit_diff", "logit"])
def test_circuits_together_and_each_alone(tiny, mlps, metric):
    "Shared layers, shared positions and what is remembered change no value, on prompts of several lengths."
    from namemovers.circuits import Ablated

    task = ioi_task(tiny.tokenizer, n=6, seed=3)
    how = dict(mlps=mlps, metric=metric)
    run = Ablated(tiny, task, **how)
    rng, every = np.random.default_rng(0), frozenset(run.universe)
    halves = [frozenset(n for n in run.universe if rng.random() < 0.5) for _ in range(3)]
    circuits = [every, (), *halves, *(every - {n} for n in run.universe[::9]), *({n} for n in run.universe[::19])]
    other = Ablated(tiny, task, **how)

    def by_itself(circuit):
        other._known, other._base = {}, ()  # nothing is shared or remembered
        return other([circuit])[0]

    alone = np.stack([by_itself(c) for c in circuits])
    assert np.abs(run(circuits) - alone).max() < 1e-4
    others = [halves[0], halves[0] | {run.universe[-1]}, halves[1], halves[0] - halves[1]]
    fresh = np.stack([by_itself(c) for c in others])
    assert np.abs(run(others) - fresh).max() < 1e-4 and np.abs(fresh[0] - fresh[2]).max() > 1e-3


def test_what_has_run_is_not_run_again(tiny, monkeypatch):
    from namemovers.circuits import Ablated, node_runs

    run = Ablated(tiny, ioi_task(tiny.tokenizer, n=6, seed=3))
    every, begun = frozenset(run.universe), []
    forward = node_runs.forward

    def spy(w, x, layer=0, *rest, **more):
        begun.append(layer)
        return forward(w, x, layer, *rest, **more)

    monkeypatch.setattr(node_runs, "forward", spy)
    last = tiny.cfg.n_layers - 1
    end = [n for n in run.universe if n.layer == last and n.position == "END"]
    before = run([every, *(every - {n} for n in end)])
    assert begun == [0], "a node of the last layer takes no layer: what it adds at END is swapped"
    run([every, every - {run.universe[0]}])
    assert begun == [0, 1], "what leaves the first layer is put together, not computed"
    assert (run([every, every - {end[0]}]) == before[:2]).all() and begun == [0, 1]
