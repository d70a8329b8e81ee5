"""Diffusion of what the measured rows tell over the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gracekit.types import Bool, Float32, Rows, SparseGraph

if TYPE_CHECKING:
    from scipy import sparse

_SHRINKAGE = 0.05
"""Mass of an imagined neighbour that says 0: rows that little reaches stay near 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothed:
    """What arrived at every row."""

    values: Float32
    """[n, c] weighted mean of the sources' values, shrunk towards 0 where little arrived."""
    mass: Float32
    """[n] how much arrived: 0 nothing, 1 and above plenty."""


def transition(graph: SparseGraph, usable: Bool) -> sparse.csr_array:
    """Weights with rows that sum to 1 (or 0), float32 [n, n]; edges to unusable rows are cut."""
    from scipy import sparse

    n = graph.num_nodes
    weights = np.where(usable[graph.indices], graph.weights, np.float32(0))
    matrix = sparse.csr_array((weights, graph.indices, graph.indptr), shape=(n, n))
    total = np.asarray(matrix.sum(axis=1)).ravel()
    per_row = np.divide(1, total, out=np.zeros_like(total), where=total > 0)
    matrix.data *= np.repeat(per_row, np.diff(graph.indptr)).astype(np.float32)
    return matrix


def spread(
    walk: sparse.csr_array,
    rows: Rows,
    values: Float32,
    *,
    damping: float,
    hops: tuple[int, ...],
) -> dict[int, Smoothed]:
    """Let values diffuse from their rows.

    After T hops a row holds Σ_t damping^t W^t v / (Σ_t damping^t W^t 1 + a little), t = 1..T,
    with v and 1 zero outside the given rows.

    Args:
        walk: [n, n] from `transition`.
        rows: [m] sources.
        values: [m, c] at the sources.
        damping: weight of a further hop.
        hops: the T wanted, ascending.

    Returns:
        T -> what arrived.
    """
    state: Float32 = np.zeros((walk.shape[0], values.shape[1] + 1), np.float32)
    state[rows, :-1] = values
    state[rows, -1] = 1
    total: Float32 = np.zeros_like(state)
    arrived: dict[int, Smoothed] = {}
    for hop in range(1, hops[-1] + 1):
        state = walk @ state
        state *= np.float32(damping)
        total += state
        if hop in hops:
            mass = total[:, -1].copy()
            scale = (mass + np.float32(_SHRINKAGE))[:, None]
            arrived[hop] = Smoothed(values=total[:, :-1] / scale, mass=mass)
    return arrived
