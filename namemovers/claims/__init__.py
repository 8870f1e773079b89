"""What the papers and this project say, one claim a cell, and whether it holds."""

from namemovers.claims.ledger import CLAIMS, SOURCES_OF_CLAIMS, STATUSES, claim, counts, evaluate
from namemovers.claims.reading import writers

# The chapters in the order of the ledger: to import one enters its claims.
from namemovers.claims import paper  # noqa: F401
from namemovers.claims.demo import DEMO_SITES, demo_task, measure_published
from namemovers.claims import pilot, ours  # noqa: F401

__all__ = ["CLAIMS", "DEMO_SITES", "SOURCES_OF_CLAIMS", "STATUSES", "claim", "counts", "demo_task", "evaluate",
           "measure_published", "writers"]
