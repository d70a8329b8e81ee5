"""Diffusion of what the measured rows tell over the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    n = graph.num_nodes
    weights = np.where(usable[graph.indices], graph.weights, np.float32(0))
    matrix = _matrix((weights, graph.indices, graph.indptr), (n, n))
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
    n = walk.shape[0]
    state: Float32 = np.zeros((n, values.shape[1] + 1), np.float32)
    state[rows, :-1] = values
    state[rows, -1] = 1
    steps = [_Step(matrix=walk, asked=slice(None))] * hops[-1]
    return _walked(steps, state, damping=damping, hops=hops)


class Paths:
    """`spread` for many columns at a time, from the given rows to others, with the same bytes.

    The first hop takes the edges at the sources only. Where few rows are asked, the last one takes
    theirs, the one before those of their neighbours, and so on. That is prepared once.

    Args:
        walk: [n, n] from `transition`.
        rows: [m] sources.
        to: [q] rows to ask, distinct; None: all n.
        hops: the T wanted, ascending.
    """

    def __init__(
        self, walk: sparse.csr_array, rows: Rows, to: Rows | None, *, hops: tuple[int, ...]
    ) -> None:
        self._hops = hops
        self._steps: list[_Step] = []
        if to is None:
            everywhere = slice(None)
            self._steps = [_Step(matrix=_to_sources(walk, rows), asked=everywhere)]
            self._steps += [_Step(matrix=walk, asked=everywhere)] * (hops[-1] - 1)
            return
        places = [to]
        """[hop] rows at which the state after it is needed, the last hop first"""
        for _ in range(hops[-1] - 1):
            places.append(np.union1d(to, walk[places[-1]].indices))
        before = rows
        for now in places[::-1]:
            asked = np.arange(len(to)) if now is to else np.searchsorted(now, to)
            self._steps.append(_Step(matrix=_to_sources(walk[now], before), asked=asked))
            before = now

    def spread(self, values: Float32, *, damping: float) -> dict[int, Smoothed]:
        """T -> what arrived at the rows asked, of values [m, c] at the sources."""
        ones: Float32 = np.ones((len(values), 1), np.float32)
        state = np.hstack([values, ones])
        return _walked(self._steps, state, damping=damping, hops=self._hops)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One hop."""

    matrix: sparse.csr_array
    """[rows after it, rows before it]"""
    asked: Rows | slice
    """Where the rows asked are among those after it."""


def _to_sources(matrix: sparse.csr_array, sources: Rows) -> sparse.csr_array:
    """Some columns of a matrix [q, n], every row's entries in the order that they have."""
    place = np.full(matrix.shape[1], -1, np.int32)
    place[sources] = np.arange(len(sources), dtype=np.int32)
    column = place[matrix.indices]
    kept = column >= 0
    ends = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    shape = matrix.shape[0], len(sources)
    return _matrix((matrix.data[kept], column[kept], ends), shape)


def _matrix(parts: tuple[Any, Any, Any], shape: tuple[int, int]) -> sparse.csr_array:
    """A sparse matrix of (entries, their columns, where rows begin)."""
    from scipy import sparse

    return sparse.csr_array(parts, shape=shape)


def _walked(
    steps: list[_Step], state: Float32, *, damping: float, hops: tuple[int, ...]
) -> dict[int, Smoothed]:
    """T -> what arrived; the state [rows, c + 1] before the first step has the mass at its end."""
    total: Float32 | None = None
    arrived: dict[int, Smoothed] = {}
    for hop, step in enumerate(steps, start=1):
        state = step.matrix @ state
        state *= np.float32(damping)
        if total is None:
            total = state[step.asked].copy()
        else:
            total += state[step.asked]
        if hop in hops:
            mass = total[:, -1].copy()
            scale = (mass + np.float32(_SHRINKAGE))[:, None]
            arrived[hop] = Smoothed(values=total[:, :-1] / scale, mass=mass)
    return arrived
