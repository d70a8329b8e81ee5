"""The weighted graph made of the neighbour lists."""

from __future__ import annotations

import numpy as np

from gracekit.types import KnnGraph, SparseGraph


def symmetric(graph: KnnGraph) -> SparseGraph:
    """Join two rows where either lists the other, with weight max(0, cosine).

    Where the two lists disagree about a cosine the larger one counts; edges of weight 0 are left
    out. A million rows with ten neighbours take a few seconds.
    """
    from scipy import sparse

    n = len(graph.neighbors)
    itself = graph.neighbors == np.arange(n, dtype=np.int32)[:, None]
    kept = (graph.neighbors >= 0) & (graph.similarities > 0) & ~itself
    directed = sparse.csr_array(
        (
            np.minimum(graph.similarities[kept], np.float32(1)),
            graph.neighbors[kept],
            np.concatenate([[0], np.cumsum(kept.sum(axis=1))]),
        ),
        shape=(n, n),
    )
    both = sparse.csr_array(directed.maximum(directed.T))
    both.sort_indices()
    return SparseGraph(
        indptr=both.indptr.astype(np.int64),
        indices=both.indices.astype(np.int32),
        weights=both.data.astype(np.float32),
    )
