"""The quoted numbers against the files they were taken from."""

import json
from pathlib import Path

import numpy as np
import pytest

from namemovers.published import IOI_HEADS, MRS_HEADS, SOURCES, ioi_role, pilot_prompts, published_figure, published_figures, published_grid, published_heads

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


def reference(name):
    path = REFERENCE / name
    if not path.is_file():
        pytest.skip("../shared/reference is absent")
    return json.loads(path.read_text())


@pytest.mark.parametrize("site", ["z", "q", "k", "v", "pattern"])
def test_ioi_head_grids(site):
    values = np.array(reference("gpt2_ioi_activation_patching.json")["values"]["head_" + site])
    grid = published_grid("ioi", site)
    assert grid.dims == ("layer", "head") and grid.attrs["source"] == SOURCES["demo"]
    np.testing.assert_allclose(grid.values, np.where(abs(values) >= 0.005, values, 0), atol=0.00051)


@pytest.mark.parametrize("what, n, key", [("z", 50, "head_z_effect_n50"), ("z", 1, "head_z_effect_n1_relative"), ("head_attribution", 50, "head_direct_logit_attribution_relative")])
def test_mrs_head_grids(what, n, key):
    grid = published_grid("mrs", what, n)
    np.testing.assert_allclose(grid.values, reference("gpt2_mrs_pilot.json")["grids"][key]["values"], atol=0.0051)
    assert grid.attrs["relative"] == int("relative" in key)
    if grid.attrs["relative"]: assert float(abs(grid).max()) == 1


@pytest.mark.parametrize("task, n, places", [
    ("mrs", 1, {"S3": 16, "S3+1": 17, "S3+2": 18, "S4": 21, "S4+1": 22, "END": 28}),
    ("mrs", 50, {"S3": 16, "S3+1": 17, "S3+2": 18, "S4": 21, "S4+1": 22, "END": 28}),
    ("ioi", 8, {"S2": 10, "S2+1": 11, "END": 14}),
])
def test_residual_stream(task, n, places):
    if task == "ioi": values = np.array(reference("gpt2_ioi_activation_patching.json")["values"]["resid_pre"])
    else: values = np.array(reference("gpt2_mrs_pilot.json")["grids"][f"resid_pre_effect_n{n}"]["values"])
    grid = published_grid(task, "resid_pre", n)
    assert set(grid.position.values) == set(places)
    for name, place in places.items(): np.testing.assert_allclose(grid.sel(position=name).values, values[:, place], atol=0.0051 if task == "mrs" else 0.00051)
    rest = np.delete(values, list(places.values()), axis=1)
    assert abs(rest).max() <= (0.03 if task == "mrs" else 0.005)  # as the page says


def test_prompts():
    prompts = reference("gpt2_mrs_pilot.json")["prompts"]
    mine = pilot_prompts()
    assert len(mine) == len(prompts) == 28
    for row, theirs in zip(mine.itertuples(), prompts):
        tops = [(t["token"], t["prob"]) for t in theirs["top"]]
        assert row.prompt == theirs["prompt"] and (row.token, row.probability) == tops[0] and list(row.others) == tops[1:]
        assert row.kind == {"not a subject": "none"}.get(theirs["category"], theirs["category"])


def test_kinds_follow_from_the_prompts():
    for row in pilot_prompts().itertuples():
        named = row.token.strip() in row.prompt and row.token.strip()[0].isupper() and row.token.strip() not in ("King",)
        assert named == (row.kind != "none"), row


def test_figures():
    assert published_figure("mrs", "logit_diff") == reference("gpt2_mrs_pilot.json")["mean_logit_difference_n50"]
    assert published_figure("ioi", "accuracy") == 0.993 and published_figure("ioi", "faithfulness") == 0.87
    table = published_figures()
    assert set(table.source) <= set(SOURCES.values()) and not table.duplicated(["task", "name"]).any() and set(published_figures("mrs").task) == {"mrs"}


def test_heads():
    assert sum(len(h) for h in IOI_HEADS.values()) == 26 and ioi_role(10, 7) == "negative name mover" and ioi_role(0, 0) == ""
    table = published_heads()
    assert table.loc["L8H11", "mrs_patching"] == "+1" and table.loc["L9H9", "ioi"] == "name mover" and not table.index.duplicated().any()
    assert {tuple(r) for r in table.query("mrs_attribution != '' or mrs_patching != ''")[["layer", "head"]].values} == {h for heads in MRS_HEADS.values() for h in heads}


@pytest.mark.parametrize("call, message", [
    (lambda: published_grid("mrs", "pattern"), "no published grid 'pattern'"), (lambda: published_grid("mrs", "z", 7), "n = 7"),
    (lambda: published_grid("xyz", "z"), "'xyz' is unknown"), (lambda: published_figure("mrs", "faithfulness"), "no published figure"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message): call()
