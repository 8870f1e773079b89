"""Two prompts, every view of how the model tells them apart, and what each head does: in a notebook, and on a page."""

from namemovers.path_patching import COMPONENTS

from .page import SAVED, saved_prompts, snapshot
from .panels import INTERVAL_PROMPTS, METRIC_WORDS, Cancelled
from .session import Session
from .state import BY_SITE, FORMAT, MAX_TOKENS, PATHS, RUNS, VIEWS, ExplorerState, align, depends, token_texts
from .widget import ASSETS, explore

__all__ = [
    "ASSETS",
    "BY_SITE",
    "COMPONENTS",
    "FORMAT",
    "INTERVAL_PROMPTS",
    "MAX_TOKENS",
    "METRIC_WORDS",
    "PATHS",
    "RUNS",
    "SAVED",
    "VIEWS",
    "Cancelled",
    "ExplorerState",
    "Session",
    "align",
    "depends",
    "explore",
    "saved_prompts",
    "snapshot",
    "token_texts",
]
