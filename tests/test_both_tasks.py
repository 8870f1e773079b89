"""What the two tasks have in common, from results made up here: numbers by numpy and scipy."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy import stats as scipy_stats

from namemovers.compare import MEASURES, evidence, head_table, headline, load_study, not_one_study, tasks_in_words
from namemovers.compare import unlike_the_study
from namemovers.results import save
from namemovers.settings import settings

N = 30
#: (task, measure) -> head -> its mean; the other heads have none
HEADS = {
    ("mrs", "attribution"): {(2, 1): 2.0, (1, 3): 1.0, (1, 0): 0.5, (0, 2): -1.5},
    ("ioi", "attribution"): {(1, 3): 3.0, (2, 2): 1.0, (2, 1): 0.4, (0, 2): -4.0, (1, 0): 0.2},
    ("mrs", "patching"): {(2, 1): 0.5},
    ("ioi", "patching"): {(1, 3): 0.8, (0, 0): 0.4},
}
COPIES = {(2, 1): 0.9, (1, 3): 0.95, (0, 2): -0.3}


def grid(means, dim, n, rng):
    values = 0.05 * rng.standard_normal((3, 4, n))
    for (l, h), mean in means.items():
        values[l, h] += mean
    return xr.DataArray(values, dims=("layer", "head", dim), coords=dict(layer=range(3), head=range(4)))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "A folder of results, and what was put into it."
    folder, rng, made = tmp_path_factory.mktemp("study"), np.random.default_rng(0), {}
    for task, seen in (("mrs", 3.5), ("ioi", 1.25)):
        attrs = dict(model="toy", task=task, n=N, seed=0, corruption="swap" if task == "mrs" else "abc")
        for measure, (name, variable) in MEASURES.items():
            made[task, measure] = grid(HEADS[task, measure], "prompt", N, rng)
            ds = xr.Dataset({variable: made[task, measure]}, attrs=attrs)
            if measure == "attribution":
                ds["logit_diff"] = "prompt", seen + 0.1 * rng.standard_normal(N)
            save(ds, f"{task}_{name}", folder)
    made["copies"] = xr.Dataset({"copy_score": grid(COPIES, "name", 7, rng)}, attrs=dict(model="toy", seed=0))
    save(made["copies"], "copy_scores", folder)
    return folder, made


@pytest.fixture(scope="module")
def found(study):
    return evidence(study[0])


def test_evidence_is_of_every_task_and_measure_by_itself(study, found):
    made = study[1]
    for (task, measure), heads in HEADS.items():
        one, values = found.sel(task=task, measure=measure), made[task, measure].values
        np.testing.assert_allclose(one["mean"], values.mean(-1), rtol=1e-5, atol=1e-7)
        q = scipy_stats.false_discovery_control(one.p.values, axis=None).reshape(3, 4)
        np.testing.assert_allclose(one.q, q, rtol=1e-6)
        assert (one.p >= scipy_stats.ttest_1samp(values, 0, axis=-1).pvalue - 1e-9).all()
        assert one.significant.astype(bool).equals(one.q <= 0.05)
        assert all(bool(one.significant[head]) for head in heads)


def test_the_headline_names_heads_with_their_means(study):
    folder, made = study
    table = headline(folder).set_index("task")
    assert list(table.index) == ["MRS", "IOI"] and (table.prompts == N).all()
    for task in ("mrs", "ioi"):
        mean = float(load_study([f"{task}_head_attribution"], folder)[f"{task}_head_attribution"].logit_diff.mean())
        assert table.loc[task.upper(), "logit difference"].startswith(f"{mean:.2f} [")

    def said(values, *heads):
        return ", ".join(f"L{l}H{h} {float(values[l, h].mean()):.2f}" for l, h in heads)

    scores = made["copies"].copy_score.values
    third = max(set(np.ndindex(3, 4)) - {(1, 3), (2, 1)}, key=lambda head: scores[head].mean())
    copying = said(scores, (1, 3), (2, 1), third)
    for task, best in (("MRS", [(2, 1), (1, 3), (1, 0)]), ("IOI", [(1, 3), (2, 2), (2, 1)])):
        values = made[task.lower(), "attribution"].values
        assert table.loc[task, "top heads by attribution"] == said(values, *best)
        assert table.loc[task, "top heads by copy score"].replace("−", "-") == copying
    assert table.loc["IOI", "top heads by patching"] == said(made["ioi", "patching"].values, (1, 3), (0, 0))


def test_what_tasks_share_is_counted_among_the_highest(study, found):
    "MRS: L2H1, L1H3, L1H0; IOI: L1H3, L2H2, L2H1. L0H2, the largest in size, speaks against the answer in both."
    folder, made = study
    said = tasks_in_words(found, "attribution", folder)
    a, b = (found.sel(task=task, measure="attribution").significant.astype(bool).values for task in ("mrs", "ioi"))
    shared, expected = int((a & b).sum()), a.sum() * b.sum() / 12
    p = scipy_stats.hypergeom.sf(shared - 1, 12, a.sum(), b.sum())
    means = (made[task, "attribution"].values.mean(-1).ravel() for task in ("mrs", "ioi"))
    rho = scipy_stats.spearmanr(*means).statistic
    assert f"all 12 heads the rank correlation of the two tasks is {rho:.2f} [" in said
    assert f"are {a.sum()} of them in MRS and {b.sum()} in IOI; {shared} of these are the same" in said
    assert f"would share {expected:.1f} (hypergeometric p = {p:.2g})" in said
    assert said.endswith("Among the three highest significant heads of each task, 2 are the same: L2H1, L1H3.")
    other = tasks_in_words(found, "patching", folder)
    assert other.endswith("Among the three highest significant heads of each task, none are the same.")
    one = found.copy(deep=True)
    one["mean"].loc[dict(task="mrs", layer=2, head=1)] = -1.0
    assert tasks_in_words(one, "attribution", folder).endswith("1 is the same: L1H3.")


def test_the_table_is_in_the_order_of_shares(study, found):
    "The share that a head has of the largest mean of a column; heads that nothing shows are left out."
    made = study[1]
    table = head_table(found, made["copies"])
    shares, sure = np.zeros((3, 4)), np.zeros((3, 4), bool)
    for task, measure in HEADS:
        size = abs(made[task, measure].values.mean(-1))
        shares = np.maximum(shares, size / size.max())
        sure |= found.significant.sel(task=task, measure=measure).values.astype(bool)
    told = [tuple(map(int, label[1:].split("H"))) for label in table.index]
    assert set(told) == set(zip(*np.nonzero(sure))) and {(2, 1), (1, 3), (0, 2), (2, 2), (0, 0)} <= set(told) != 12
    assert [shares[head] for head in told] == sorted((shares[head] for head in told), reverse=True)
    assert len(told) < 12 and list(table) == [f"{t} {m}" for t in ("MRS", "IOI") for m in MEASURES] + ["copy score"]
    for (l, h), (_, row) in zip(told, table.iterrows()):
        assert row["copy score"] == f"{float(made['copies'].copy_score[l, h].mean()):.2f}"
        for (task, measure), values in ((k, v) for k, v in made.items() if k != "copies"):
            cell = row[f"{task.upper()} {measure}"]
            middle = f"{float(values[l, h].mean()):.2f}".replace("-", "−")
            assert cell.startswith(f"{middle.lstrip('−') if float(values[l, h].mean().round(2)) == 0 else middle} [")
            assert cell.endswith("*") == bool(found.significant.sel(task=task, measure=measure)[l, h])
    assert "copy score" not in head_table(found)


# ---- whether results are of one study

MRS = dict(task="mrs", n=30, seed=0, corruption="swap", weights_hash="a")
IOI = dict(task="ioi", n=30, seed=0, corruption="abc", weights_hash="a")


@pytest.mark.parametrize(
    "others, said",
    [
        ({"ioi_paths": IOI}, ""),  # corruptions are compared within MRS
        ({"ioi_paths": IOI | {"weights_hash": "b"}}, "not of the same weights: mrs_paths has weights_hash = a"),
        ({"ioi_paths": IOI | {"seed": 1}}, "not of one study: mrs_paths has seed = 0 and ioi_paths seed = 1"),
        ({"ioi_paths": IOI | {"n": 31}}, "not of one study: mrs_paths has n = 30 and ioi_paths n = 31"),
        ({"mrs_roles": MRS | {"corruption": "other"}}, "not of one study: mrs_paths has corruption = swap"),
        ({"mrs_attention_n1": MRS | {"n": 1}}, ""),
        ({"both": IOI | {"task": "mrs, ioi", "n": 31}}, "not of one study: mrs_paths has n = 30 and both n = 31"),
        ({"own": dict(task="mine", n=5, seed=7, weights_hash="a")}, ""),
        ({"own": dict(task="mine", n=5, seed=7, weights_hash="b")}, "not of the same weights"),
        ({"a": IOI, "b": IOI, "c": IOI | {"n": 1}}, "mrs_paths has n = 30 and c n = 1"),
        ({"copy_scores": dict(n=1000, seed=3, weights_hash="a")}, "mrs_paths has seed = 0 and copy_scores seed = 3"),
        ({"copy_scores": dict(n=1000, seed=0, weights_hash="a")}, ""),
        ({"copy_scores": {}}, ""),
    ],
)
def test_results_of_one_study(others, said):
    found = not_one_study({"mrs_paths": MRS} | others)
    assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize("key, value", [("n", 31), ("seed", 1), ("corruption", "other")])
def test_a_result_of_another_study(key, value):
    here = replace(settings(), n=30, seed=0)
    mine = MRS | {"corruption": here.corruption}
    assert unlike_the_study("mrs_paths", mine, here) == ""
    found = unlike_the_study("mrs_paths", mine | {key: value}, here)
    assert f"mrs_paths was measured with {key} = {value}, this study has {key} = {mine[key]}" in found
    assert unlike_the_study("mrs_paths", {k: v for k, v in mine.items() if k != key}, here) == ""


def test_only_what_belongs_together_is_loaded(study, tmp_path):
    folder, _ = study
    found = load_study(["mrs_head_attribution", "ioi_head_attribution"], folder)
    assert list(found) == ["mrs_head_attribution", "ioi_head_attribution"]
    for name, ds in found.items():
        save(ds.assign_attrs(seed=int(name == "ioi_head_attribution")), name, tmp_path)
    with pytest.raises(ValueError, match=r"^Results are not of one study: .* seed = 0 and .* seed = 1"):
        load_study(list(found), tmp_path)
