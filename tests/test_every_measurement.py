"""Every public measurement on models that are not GPT-2's kind: it works."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import xarray as xr
from families import write_family
from test_guard import CALLED

from namemovers.data import ioi_task
from namemovers.explorer import VIEWS, ExplorerState, Session
from namemovers.model import load_model

torch.set_num_threads(1)
NAMES = ("llama", "gemma3", "qwen3", "opt", "phi", "gemma2", "olmo2")


@pytest.fixture(scope="module", params=NAMES)
def family(request, tmp_path_factory):
    "(name, model, a task)"
    folder = write_family(tmp_path_factory.mktemp("every") / request.param, request.param)
    model = load_model(folder, device="cpu")
    return request.param, model, ioi_task(model.tokenizer, n=3, seed=0)


def numbers(found):
    "All numbers of a result."
    if isinstance(found, xr.Dataset):
        return [v.values for v in found.data_vars.values() if np.issubdtype(v.dtype, np.number)]
    if isinstance(found, xr.DataArray):
        return [found.values]
    if isinstance(found, torch.Tensor):
        return [found.numpy()]
    if isinstance(found, tuple | list):
        return [n for part in found for n in numbers(part)]
    return []


@pytest.mark.parametrize("name", CALLED)
def test_it_works(family, name):
    kind, model, task = family
    found = numbers(CALLED[name](model, task))
    assert not any(np.isinf(n).any() for n in found)  # NaN says that there is nothing to take a share of


@pytest.mark.parametrize("view", VIEWS)
def test_every_panel_of_the_explorer(family, view):
    kind, model, task = family
    session = Session(model, task, study=False)
    state = dataclasses.replace(session.choose(ExplorerState(), task.name, 0), view=view, head=(1, 1))
    sites = ("z", "q", "k", "v", "pattern", "resid_pre") if view == "patching" else ("z",)
    components = ("q", "k", "v") if view == "paths" else ("q",)
    for site in sites:
        for component in components:
            by = "position" if site == "resid_pre" else "head"
            shown = session.figure(dataclasses.replace(state, site=site, by=by, component=component))
            assert shown.get("panels") and shown["reading"], shown.get("problem")
            values = [v for p in shown["panels"] for row in p.get("values", []) for v in np.atleast_1d(row)]
            assert not values or any(v is not None and math.isfinite(v) for v in values)
    shown = session.head(state)
    assert shown.get("facts") and "problem" not in shown, shown.get("problem")


def test_attribution_of_a_head_in_the_explorer_is_the_measurements(family):
    from namemovers.head_attribution import head_attribution

    kind, model, task = family
    session = Session(model, task, study=False)
    state = dataclasses.replace(session.choose(ExplorerState(), task.name, 0), view="attribution")
    shown = np.array(session.figure(state)["panels"][0]["values"], float)
    own = head_attribution(model, task[0]).attribution.isel(prompt=0).values
    assert shown == pytest.approx(own, rel=2e-2, abs=2e-3)
