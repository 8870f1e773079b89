"""Hostile arguments: whatever is given for one argument of a public function, the answer is a result or one sentence
that names it."""

import importlib
import inspect
import pkgutil
import re
import time
import warnings

import numpy as np
import pytest
import torch
import xarray as xr

import namemovers
from namemovers import data

# what nobody should give, made anew for each call (a generator is used up)
HOSTILE = {
    "None": lambda: None,
    "-1": lambda: -1,
    "0": lambda: 0,
    "2.5": lambda: 2.5,
    "nan": lambda: float("nan"),
    "inf": lambda: 1e400,
    "True": lambda: True,
    "empty text": lambda: "",
    "a text": lambda: "no such thing",
    "a long text": lambda: "x" * 10_000,
    "[]": list,
    "[None]": lambda: [None],
    "{}": dict,
    "{None: None}": lambda: {None: None},
    "an object": object,
    "a generator": lambda: (v for v in (1, None, "a")),
    "an array": lambda: np.zeros((2, 3)),
    "a tensor": lambda: torch.ones(2),
    "a function": lambda: len,
    "a DataArray": lambda: xr.DataArray([1.0, 2.0], dims="x"),
    "a Dataset": lambda: xr.Dataset({"a": 1}),
}

# Of the shared sort, tensors in and tensors out, called for every block of a sweep: `patch` and its like have checked
# what reaches them.
INNER = {"engine", "pairs", "store"}
# Programs of their own, which take paths and notebooks of this repository.
PROGRAMS = {"site", "study", "mini_model", "_modidx", "__main__"}


class World:
    """A small model, a task of it, results of each kind."""

    def __init__(self, model, folder):
        self.model, self.tokenizer, self.folder = model, model.tokenizer, folder
        self.task = data.mrs_task(model.tokenizer, n=3)
        rng = np.random.default_rng(0)
        grid = xr.DataArray(
            rng.normal(size=(3, 4, 6)),
            dims=("layer", "head", "prompt"),
            coords={"layer": range(3), "head": range(4), "prompt": range(6)},
            name="effect",
        )
        self.grid, self.row = grid, grid[0, 0]


@pytest.fixture(scope="module")
def world(tiny, tmp_path_factory):
    return World(tiny, tmp_path_factory.mktemp("hostile"))


def functions():
    "Every public function, with the name of its module before it."
    found = {}
    for info in pkgutil.walk_packages(namemovers.__path__, "namemovers."):
        name = info.name.removeprefix("namemovers.")
        if name in INNER | PROGRAMS or name.split(".")[0] in INNER | PROGRAMS:
            continue
        module = importlib.import_module(info.name)
        for public in module.__all__:
            value = getattr(module, public)
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                found[f"{name}.{public}"] = value
            if inspect.isclass(value) and value.__module__ == module.__name__:
                for k, f in vars(value).items():
                    if k[0] != "_" and inspect.isfunction(f):
                        found[f"{name}.{public}.{k}"] = f
    return found


def from_template(w):
    return dict(
        template="{A} met {B}. {B} called",
        words=dict(A=data.NAMES[:5], B=data.NAMES[:5]),
        answers=("A", "B"),
        corrupt=("A", "B"),
        tokenizer=w.tokenizer,
        n=2,
    )


def from_pairs(w):
    return dict(
        clean=["Mary met John. So Mary"],
        corrupted=["Mary met Paul. So Mary"],
        answers=(" Mary", " John"),
        tokenizer=w.tokenizer,
    )


# function -> arguments that work; what is not given has its default
EXAMPLES = {
    "prompts.task.Task.from_template": (data.Task.from_template, from_template),
    "prompts.task.Task.from_pairs": (data.Task.from_pairs, from_pairs),
    "prompts.task.Task.subset": lambda w: dict(self=w.task, index=[0, 1]),
    "prompts.task.Task.answer": lambda w: dict(self=w.task),
    "data.mrs_task": lambda w: dict(tokenizer=w.tokenizer, n=2),
    "data.ioi_task": lambda w: dict(tokenizer=w.tokenizer, n=2),
    "prompts.alignment.align": lambda w: dict(tokenizer=w.tokenizer, clean="Mary left", corrupted="John left"),
    "prompts.task.token_table": lambda w: dict(task=w.task),
    "prompts.tokens.name_token": lambda w: dict(tokenizer=w.tokenizer, name="Mary"),
    "prompts.tokens.word_ids": lambda w: dict(tokenizer=w.tokenizer, words=["Mary"]),
    "prompts.tokens.token_as_text": lambda w: dict(tokenizer=w.tokenizer, token=5),
    "prompts.survey.survey_template": lambda w: {},
    "prompts.survey.predictions": lambda w: dict(model=w.model, prompts="Mary met"),
    "prompts.survey.survey": lambda w: dict(model=w.model, n=1, families={"pilot": data.MRS_TEMPLATES["pilot"]}),
    "prompts.survey.survey_table": lambda w: dict(ds=w.survey()),
    "figures.survey.survey_figure": lambda w: dict(ds=w.survey()),
    "sites.cells": lambda w: dict(model=w.model, task=w.task, site="z", by="head"),
    "activation_patching.hook_point": lambda w: dict(site="z", layer=0),
    "activation_patching.patch": lambda w: dict(model=w.model, task=w.task, site="z", progress=False),
    "attribution_patching.attribute": lambda w: dict(model=w.model, task=w.task, site="z"),
    "attribution_patching.patch_screened": lambda w: dict(model=w.model, task=w.task, site="z", screen=2),
    "path_patching.path_patch": lambda w: dict(model=w.model, task=w.task, senders=[(0, 1)], progress=False),
    "path_patching.trace": lambda w: dict(model=w.model, task=w.task, depth=1, k=1, progress=False),
    "sets.patch_sets": lambda w: dict(model=w.model, task=w.task, sets={"none": []}),
    "logit_lens.logit_lens": lambda w: dict(model=w.model, task=w.task),
    "logit_lens.layer_contributions": lambda w: dict(ds=w.lens()),
    "logit_lens.top_tokens": lambda w: dict(ds=w.lens()),
    "logit_lens.baseline": lambda w: dict(ds=w.lens()),
    "head_attribution.head_attribution": lambda w: dict(model=w.model, task=w.task),
    "head_attribution.components": lambda w: dict(result=w.heads()),
    "head_attribution.attention": lambda w: dict(model=w.model, task=w.task),
    "head_attribution.name_projection": lambda w: dict(model=w.model, task=w.task, n_resamples=9),
    "copy_scores.shipped_names": lambda w: dict(tokenizer=w.tokenizer),
    "copy_scores.copy_scores": lambda w: dict(model=w.model, n=20, names=data.NAMES[:3]),
    "copy_scores.task_copy_scores": lambda w: dict(model=w.model, task=w.task),
    "stats.q_values": lambda w: dict(p=abs(w.row) / 9),
    "stats.summarise": lambda w: dict(values=w.row, n_resamples=99),
    "stats.proportion": lambda w: dict(values=w.row > 0),
    "stats.top_heads": lambda w: dict(summary=w.grid.mean("prompt")),
    "stats.rank_correlation": lambda w: dict(a=w.grid, b=w.grid, n_resamples=9),
    "stats.correlation": lambda w: dict(x=w.grid, y=w.grid, n_resamples=9),
    "stats.overlap": lambda w: dict(a=w.grid[..., 0] > 0, b=w.grid[..., 1] > 0),
    "stats.estimate": lambda w: dict(value=0.5),
    "stats.head_name": lambda w: dict(layer=0, head=1),
    "stats.heads_in_words": lambda w: dict(summary=w.summary()),
    "stability.top_sizes": lambda w: dict(heads=12),
    "stability.chance": lambda w: dict(heads=12),
    "stability.agreement": lambda w: dict(a=w.grid[..., 0], b=w.grid[..., 1]),
    "stability.stability": lambda w: dict(values=w.grid, sizes=(1, 2), draws=3),
    "figures.heatmaps.heatmap": lambda w: dict(result=w.grid),
    "figures.lines.lines": lambda w: dict(result=w.grid[0]),
    "figures.bars.bars": lambda w: dict(result=w.grid),
    "figures.scatters.scatter": lambda w: dict(x=w.grid, y=w.grid),
    "figures.scatters.points": lambda w: dict(x=w.row, y=w.row),
    "figures.heatmaps.attention": lambda w: dict(pattern=np.tril(np.ones((3, 3))), tokens=["a", "b", "c"]),
    "figures.tables.table": lambda w: dict(df=w.row.to_dataframe()),
    "head_roles.patterns.pattern_scores": lambda w: dict(model=w.model, periods=(7,), offsets=(0,), n=2),
    "head_roles.attention.attention_scores": lambda w: dict(model=w.model, task=w.task),
    "head_roles.variants.signal_tasks": lambda w: dict(task=w.task),
    "head_roles.variants.other_cue": lambda w: dict(task=w.task),
    "head_roles.interventions.s_inhibition": lambda w: dict(
        model=w.model, task=w.task, name_movers=[(2, 0)], progress=False
    ),
    "head_roles.words.known_roles": lambda w: dict(name="mini"),
    "circuits.parts.node": lambda w: dict(name="L0H1@S1"),
    "circuits.parts.positions_of": lambda w: dict(task=w.task),
    "circuits.parts.nodes": lambda w: dict(model=w.model, task=w.task),
    "circuits.parts.everywhere": lambda w: dict(heads=[(0, 1)], task=w.task),
    "circuits.parts.heads_of": lambda w: dict(circuit=w.circuit()),
    "circuits.ablation.reference_task": lambda w: dict(task=w.task, n=5),
    "circuits.node_runs.run_circuits": lambda w: dict(
        model=w.model, task=w.task, circuits={"one": w.circuit()}, ablation="zero"
    ),
    "circuits.curves.faithfulness": lambda w: dict(ds=w.run_of_circuits(), n_resamples=9),
    "circuits.curves.random_circuits": lambda w: dict(universe=w.circuit(), size=1, n=2),
    "circuits.criteria.overlap": lambda w: dict(a=w.circuit(), b=w.circuit(), universe=w.circuit()),
    "circuits.edge_graph.graph": lambda w: dict(of=w.model),
    "circuits.edges.run_edges": lambda w: dict(model=w.model, task=w.task, circuits=w.edges(), progress=False),
    "circuits.edge_estimates.attribute_edges": lambda w: dict(model=w.model, task=w.task, progress=False),
    "circuits.edge_estimates.top_edges": lambda w: dict(attribution=w.edge_scores(), k=2),
    "results.save": lambda w: dict(ds=w.lens(), name="lens", folder=w.folder),
    "results.load": lambda w: dict(name="saved", folder=w.saved()),
    "literature.published_figures": lambda w: {},
    "literature.published_figure": lambda w: dict(task="ioi", name="logit_diff"),
    "literature.published_grid": lambda w: dict(task="ioi", what="z"),
    "settings.slug": lambda w: dict(name="mini"),
    "identity.model_name": lambda w: dict(model=w.model),
    "identity.weights_hash": lambda w: dict(model=w.model),
    "model.model_note": lambda w: dict(model=w.model),
    "model.model_folder": lambda w: dict(name="mini"),
    "validation.auroc": lambda w: dict(score=[0.1, 0.2], true=[True, False]),
    "validation.precision_recall": lambda w: dict(called=[True, False], true=[True, False]),
    "publish.tables.latex_text": lambda w: dict(text="a"),
    "publish.tables.save_table": lambda w: dict(table=w.row.to_dataframe(), path=w.folder / "table.csv"),
}


def _cached(f):
    "A method of the world that is computed once."

    def inner(self):
        if f.__name__ not in self.__dict__.setdefault("_kept", {}):
            self._kept[f.__name__] = f(self)
        return self._kept[f.__name__]

    return inner


def _make(**makers):
    for name, maker in makers.items():
        maker.__name__ = name
        setattr(World, name, _cached(maker))


def _module(name):
    return importlib.import_module(f"namemovers.{name}")


def _scored(ds):
    "With an effect for each edge, which a model that knows nothing has none of."
    return ds.assign(effect=ds.effect.copy(data=np.random.default_rng(0).normal(size=ds.effect.shape)))


_make(
    survey=lambda w: data.survey(w.model, n=1, families={"pilot": data.MRS_TEMPLATES["pilot"]}),
    lens=lambda w: _module("logit_lens").logit_lens(w.model, w.task),
    heads=lambda w: _module("head_attribution").head_attribution(w.model, w.task),
    summary=lambda w: _module("stats").summarise(w.grid, n_resamples=99),
    circuit=lambda w: _module("circuits").everywhere([(0, 1), (1, 2)], w.task),
    run_of_circuits=lambda w: _module("circuits").run_circuits(w.model, w.task, {"one": w.circuit()}, ablation="zero"),
    edge_scores=lambda w: _scored(_module("circuits.edge_estimates").attribute_edges(w.model, w.task, progress=False)),
    edges=lambda w: {"two": _module("circuits.edge_estimates").top_edges(w.edge_scores(), 2)},
    saved=lambda w: (_module("results").save(w.row.to_dataset(name="effect"), "saved", w.folder), w.folder)[1],
)


def example(world, name):
    "The function, and arguments with which it works."
    made = EXAMPLES[name]
    if isinstance(made, tuple):
        return made[0], made[1](world)
    return functions()[name], made(world)


def parameters(function):
    return [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.name not in ("self", "cls") and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def complaint(function, given, parameter, value):
    "What is wrong with how a call takes a hostile value; None where it works or says what is wrong."
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**given | {parameter: value})
    except (ValueError, TypeError, OSError, ImportError, IndexError) as e:
        said = str(e)
        if not re.search(rf"\b{parameter}\b", said):
            return f"{type(e).__name__} without the argument's name: {said[:200]}"
        if time.perf_counter() - start > 3:
            return f"{type(e).__name__} after {time.perf_counter() - start:.0f} s: {said[:200]}"
        if "\n" in said or len(said) > 1000:
            return f"{type(e).__name__} of {len(said)} characters: {said[:200]}"
    except Exception as e:
        return f"{type(e).__name__}: {str(e)[:200]}"
    return None


@pytest.mark.parametrize("name", EXAMPLES)
def test_hostile_arguments_are_named(world, name, monkeypatch):
    monkeypatch.chdir(world.folder)  # a path that is no path may still be written to
    function, given = example(world, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(**given)  # the example itself works
    wrong = {}
    for parameter in parameters(function):
        found = {
            what: c
            for what, make in HOSTILE.items()
            if (c := complaint(function, example(world, name)[1], parameter, make()))
        }
        if found:
            wrong[parameter] = found
    assert wrong == {}


# Functions that begin with the shared checks, but whose example would take results of a whole study.
NO_EXAMPLE = {name for name in functions() if name not in EXAMPLES and getattr(functions()[name], "checked", False)}
# Those that have checks of their own, or take what the library made.
OWN = re.compile(
    r"(arguments|verdicts|guard|files|explorer|publish\.(drawing|look|notes))\.|claims\.ledger\.evaluate|activation_patching\.label|path_patching\.Paths|planted\.(truth|build)|quantised\.|sites\.(n_kv|head_axis|Cell)|.*\.run_\w+|validation_methods\.methods|results\.provenance|settings\.settings"
    r"|figures\.(text|reading)\.|copy_scores\.(name_ranks|after_first)|prompts\.(tokens\.encode|alignment\.stretches)|model\.(shipped|run_at|answer_d|logit_d)"
    r"|circuits\.node_runs\.Ablated\.measure"  # of a search, which has checked what it asks
    r"|cost\."
    r"|literature\.(ioi_role|published_heads|pilot_prompts)|activation_patching\.effect|circuits\.criteria\.published_circuit"
)


def test_every_public_function_is_checked():
    unchecked = [
        name
        for name, f in functions().items()
        if name not in EXAMPLES and not getattr(f, "checked", False) and not OWN.match(name)
    ]
    assert not unchecked, f"{unchecked}: put @checked before them, and an example here"
    assert not [name for name in EXAMPLES if not isinstance(EXAMPLES[name], tuple) and name not in functions()]


@pytest.mark.parametrize("name", sorted(NO_EXAMPLE))
def test_what_is_no_model_task_or_result_is_refused_at_once(name):
    function = functions()[name]
    refusing = {
        "model": "a text",
        "task": "[]",
        "ds": "None",
        "n": "2.5",
        "seed": "-1",
        "confidence": "nan",
        "tokenizer": "2.5",
        "title": "-1",
        "progress": "a text",
    }
    signature = inspect.signature(function)
    given = {
        p.name: None
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    typed = {
        k: v
        for k, v in refusing.items()
        if k in signature.parameters
        and (k in ("model", "tokenizer") or signature.parameters[k].annotation is not inspect.Parameter.empty)
    }
    for parameter, what in typed.items():
        if parameter in given:
            given[parameter] = HOSTILE[what]()
    first = next((p for p in signature.parameters if p in typed and p in given), None)
    if first is None:
        return
    with pytest.raises(ValueError, match="^\\w+: "):
        function(**given)
