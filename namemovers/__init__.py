"""Find the attention heads that make a language model name somebody."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .activation_patching import patch
    from .attribution_patching import attribute, patch_screened
    from .circuits import ablate_edges, faithfulness, run_circuits
    from .data import Task, ioi_task, mrs_task
    from .explorer import explore
    from .head_roles import roles
    from .model import load_model
    from .path_patching import path_patch
    from .plots import heatmap
    from .publish import save_figure, save_table
    from .results import load, save
    from .sets import patch_sets
    from .stats import head_name, summarise, top_heads

__version__ = "0.1.0"

__all__ = [
    "Task", "ablate_edges", "attribute", "explore", "faithfulness", "head_name", "heatmap", "ioi_task", "load",
    "load_model", "mrs_task", "patch", "patch_screened", "patch_sets", "path_patch", "roles", "run_circuits",
    "save", "save_figure", "save_table", "summarise", "top_heads",
]

# Everything is loaded when it is asked for, so that `import namemovers` does not pay for torch and TransformerLens.
# A function whose module has its name (copy_scores, head_attribution, logit_lens) is not here: the module takes the
# name as soon as anybody imports it.
_HOME = {
    "Task": "data",
    "ablate_edges": "circuits",
    "attribute": "attribution_patching",
    "explore": "explorer",
    "faithfulness": "circuits",
    "head_name": "stats",
    "heatmap": "plots",
    "ioi_task": "data",
    "load": "results",
    "load_model": "model",
    "mrs_task": "data",
    "patch": "activation_patching",
    "patch_screened": "attribution_patching",
    "patch_sets": "sets",
    "path_patch": "path_patching",
    "roles": "head_roles",
    "run_circuits": "circuits",
    "save": "results",
    "save_figure": "publish",
    "save_table": "publish",
    "summarise": "stats",
    "top_heads": "stats",
}
_FOUND = [*Path(__file__).parent.glob("*.py"), *Path(__file__).parent.glob("*/__init__.py")]
_MODULES = {p.parent.name if p.stem == "__init__" else p.stem for p in _FOUND if p != Path(__file__)}
_MODULES -= {"_modidx", "__main__"}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, "__version__", "__doc__", "__file__", "__name__", "__path__"})
