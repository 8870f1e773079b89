"""The engine's runs, called with the tensors of a few prompts: (clean, corrupted, END, correct, wrong)."""

from namemovers import activation_patching, attribution_patching, path_patching
from namemovers.engine import sweep as engine
from namemovers.pairs import Pairs, Question

ASKED = dict(direction="denoise", metric="logit_diff", memory_budget=2**30)


def _split(five, more, names):
    "Pairs, question, and what is left of positional arguments with the names `names` and of named ones."
    given = ASKED | dict(zip(names, five[5:])) | more
    pairs = Pairs(*five[:5], given.pop("direction"))
    question = Question(given.pop("metric"), given.pop("memory_budget"))
    return pairs, question, given


def run_fast(model, *given, **more):
    "Only the patched runs [cell, prompt]."
    pairs, question, rest = _split(
        given, more, ("site", "cells", "direction", "metric", "memory_budget", "progress", "dtype")
    )
    return engine.sweep(model, pairs, rest.pop("site"), rest.pop("cells"), question, **rest)[0]


def run_hooks(model, *given, **more):
    "The same by hooks."
    pairs, question, rest = _split(given, more, ("site", "cells", "direction", "metric", "memory_budget", "progress"))
    return activation_patching.run_hooks(model, pairs, rest.pop("site"), rest.pop("cells"), question, **rest)[0]


def run_sets(model, *given, **more):
    "Only the patched runs [set, prompt]."
    pairs, question, rest = _split(given, more, ("sets", "direction", "metric", "memory_budget"))
    return engine.run_sets(model, pairs, rest.pop("sets"), question)[0]


def run_attribution(model, *given, **more):
    "Only the estimates [cell, prompt]."
    pairs, question, rest = _split(given, more, ("site", "cells", "direction", "metric", "memory_budget", "steps"))
    return attribution_patching.run_attribution(model, pairs, rest.pop("site"), rest.pop("cells"), question, **rest)[0]


def run_paths(model, *given, **more):
    "The patched runs, and the two runs left alone."
    names = (
        "senders",
        "receivers",
        "component",
        "through_mlps",
        "together",
        "direction",
        "metric",
        "memory_budget",
        "progress",
    )
    pairs, question, rest = _split(given, more, names)
    progress = rest.pop("progress", None)
    return path_patching.run_paths(model, pairs, path_patching.Paths(**rest), question, progress)
