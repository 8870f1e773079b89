"""Circuits of nodes and of edges: ablation, runs, faithfulness, search, and the price of size."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from namemovers.circuits.ablation import ABLATIONS, REFERENCE, reference_task, foreign_positions
    from namemovers.circuits.criteria import completeness, minimality, published_circuit, overlap
    from namemovers.circuits.crossing import held_out, cross_task, search_again
    from namemovers.circuits.curves import (SHARES, ENOUGH, faithfulness, random_circuits, curve, trade_off, area,
                                            area_name, least_faithful, AblatedEdges, edge_ranking)
    from namemovers.circuits.edge_estimates import attribute_edges, top_edges
    from namemovers.circuits.edge_graph import Edge, Graph, graph, connected
    from namemovers.circuits.edge_search import RISES, acdc
    from namemovers.circuits.edges import run_edges, ablate_edges
    from namemovers.circuits.figures import (nodes_in_words, draw, completeness_figure, faithfulness_table, area_table,
                                             areas_in_words, incomplete_in_words, minimal_in_words)
    from namemovers.circuits.node_runs import Ablated, run_circuits, circuit_of
    from namemovers.circuits.parts import OTHER, Node, node, positions_of, nodes, everywhere, heads_of
    from namemovers.circuits.scores import METHODS, score_nodes, larger, ranking
    from namemovers.circuits.search import prune, grow

#: module -> the public names that live in it
_MODULES = {
    "parts": "OTHER Node node positions_of nodes everywhere heads_of",
    "ablation": "ABLATIONS REFERENCE reference_task foreign_positions",
    "node_runs": "Ablated run_circuits circuit_of",
    "scores": "METHODS score_nodes larger ranking",
    "search": "prune grow",
    "curves": ("SHARES ENOUGH faithfulness random_circuits curve trade_off area area_name least_faithful "
             "AblatedEdges edge_ranking"),
    "criteria": "completeness minimality published_circuit overlap",
    "crossing": "held_out cross_task search_again",
    "figures": ("nodes_in_words draw completeness_figure faithfulness_table area_table areas_in_words "
             "incomplete_in_words minimal_in_words"),
    "edge_graph": "Edge Graph graph connected",
    "edges": "run_edges ablate_edges",
    "edge_estimates": "attribute_edges top_edges",
    "edge_search": "RISES acdc",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = ["OTHER", "Node", "node", "positions_of", "nodes", "everywhere", "heads_of", "ABLATIONS", "REFERENCE",
           "reference_task", "foreign_positions", "Ablated", "run_circuits", "circuit_of", "METHODS", "score_nodes",
           "larger", "ranking", "prune", "grow", "SHARES", "ENOUGH", "faithfulness", "random_circuits", "curve",
           "trade_off", "area", "area_name", "least_faithful", "AblatedEdges", "edge_ranking", "completeness",
           "minimality", "published_circuit", "overlap", "held_out", "cross_task", "search_again", "nodes_in_words",
           "draw", "completeness_figure", "faithfulness_table", "area_table", "areas_in_words",
           "incomplete_in_words", "minimal_in_words", "Edge", "Graph", "graph", "connected", "run_edges",
           "ablate_edges", "attribute_edges", "top_edges", "RISES", "acdc"]


def __getattr__(name: str) -> Any:
    if name not in _HOME: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
