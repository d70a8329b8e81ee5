"""The k-NN graph: neighbour lists over the features, kept up to date from refresh to refresh.

`directions_to_index` makes directions of the features; an index holds them and each row's nearest
others; `refresh_index` repairs only what moved; `symmetric` gives the weighted graph that plan,
propagation and selection walk on. A row without a direction (invalid, or equal to the mean) has
an empty list and is in no other row's list.

Shapes: `n` rows, `d` features, `k` neighbours, `q` queried rows, `e` edges.
"""

from gracekit.graph.directions import effective_rank, unit_features
from gracekit.graph.edges import symmetric
from gracekit.graph.index import (
    GraphReport,
    Index,
    build_index,
    bytes_of_row,
    directions_to_index,
    grow_index,
    load_graph,
    load_index,
    moved_rows,
    refresh_index,
)

__all__ = [
    "GraphReport",
    "Index",
    "build_index",
    "bytes_of_row",
    "directions_to_index",
    "effective_rank",
    "grow_index",
    "load_graph",
    "load_index",
    "moved_rows",
    "refresh_index",
    "symmetric",
    "unit_features",
]
