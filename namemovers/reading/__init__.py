"""What the pages of both tasks say of their results, and what they measure alike."""

from namemovers.circuits.figures import NO_WAY, mean_and_range
from namemovers.reading.circuits import (
    ABOUT_COMPLETENESS, Edges, FEW_EDGES, areas_table, circuit_of_edges, completeness_of, draw_circuit, edges_of,
    edge_effects, edges_figure, faithful_edges, measure_edges, minimality_figure, rankings_of_nodes,
    save_circuits, say_drawn, say_edges, say_kept, say_search, scores_of_edges, scores_of_nodes, size_figure,
)
from namemovers.reading.copying import (
    name_movers, say_copies, say_name_movers, say_writers,
)
from namemovers.reading.heads import (
    first_of_sign, largest_parts, say_agreement, say_attention, say_attribution, say_farthest, say_heads, say_highest,
    say_looks, say_needed, say_one_and_many, say_one_attribution, say_parts, say_patching, say_signs,
)
from namemovers.reading.paths import (
    INPUTS, followed_heads, say_behind, say_circuit, say_detours, say_direct, say_feeders, say_planted,
)
from namemovers.reading.roles import (
    say_known,
)
from namemovers.reading.words import (
    differing, enough_prompts, head_names, scale, sentence, untold,
)

__all__ = [
    "ABOUT_COMPLETENESS", "Edges", "FEW_EDGES", "INPUTS", "NO_WAY", "areas_table",
    "circuit_of_edges", "completeness_of", "differing", "draw_circuit", "edge_effects", "edges_figure",
    "edges_of", "enough_prompts", "faithful_edges", "first_of_sign", "followed_heads", "head_names",
    "largest_parts", "mean_and_range", "measure_edges", "minimality_figure", "name_movers", "rankings_of_nodes",
    "save_circuits", "say_agreement", "say_attention", "say_attribution", "say_behind", "say_circuit",
    "say_copies", "say_detours", "say_direct", "say_drawn", "say_edges", "say_farthest", "say_feeders",
    "say_heads", "say_highest", "say_kept", "say_known", "say_looks", "say_name_movers", "say_needed",
    "say_one_and_many", "say_one_attribution", "say_parts", "say_patching", "say_planted", "say_search",
    "say_signs", "say_writers", "scale", "scores_of_edges", "scores_of_nodes", "sentence", "size_figure",
    "untold",
]
