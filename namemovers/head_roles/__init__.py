"""What does each head do? Scores with published definitions, interventions, and a classifier by thresholds."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from namemovers.figures.roles import role_map
    from namemovers.head_roles.attention import attention_scores
    from namemovers.head_roles.classes import classify, heads_of_role, roles
    from namemovers.head_roles.evidence import role_evidence
    from namemovers.head_roles.interventions import backup, s_inhibition, signals
    from namemovers.head_roles.patterns import OFFSETS, PERIODS, pattern_scores, worst_period
    from namemovers.head_roles.thresholds import (
        CAUSAL, EVIDENCE, MATTERS, ROLES, THRESHOLDS, Threshold, thresholds_table)
    from namemovers.head_roles.variants import SIGNALS, other_cue, signal_tasks
    from namemovers.head_roles.words import (
        against_known, compare_roles, effect_in_words, evidence_in_words, known_roles, roles_in_words, roles_table)

#: module -> the public names that live in it
_MODULES = {
    "namemovers.head_roles.patterns": "PERIODS OFFSETS pattern_scores worst_period",
    "namemovers.head_roles.attention": "attention_scores",
    "namemovers.head_roles.variants": "SIGNALS signal_tasks other_cue",
    "namemovers.head_roles.interventions": "s_inhibition signals backup",
    "namemovers.head_roles.thresholds": "THRESHOLDS MATTERS ROLES EVIDENCE CAUSAL Threshold thresholds_table",
    "namemovers.head_roles.evidence": "role_evidence",
    "namemovers.head_roles.classes": "classify roles heads_of_role",
    "namemovers.head_roles.words": ("evidence_in_words effect_in_words roles_table roles_in_words compare_roles "
                                    "known_roles against_known"),
    "namemovers.figures.roles": "role_map",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = ["PERIODS", "OFFSETS", "pattern_scores", "worst_period", "attention_scores", "SIGNALS", "signal_tasks",
           "other_cue", "s_inhibition", "signals", "backup", "THRESHOLDS", "MATTERS", "ROLES", "EVIDENCE", "CAUSAL",
           "Threshold", "thresholds_table", "role_evidence", "classify", "roles", "heads_of_role", "evidence_in_words",
           "effect_in_words", "roles_table", "roles_in_words", "compare_roles", "known_roles", "against_known",
           "role_map"]


def __getattr__(name: str) -> Any:
    if name not in _HOME: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
