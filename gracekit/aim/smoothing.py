"""Influence smoothed over the graph: directions of gradients, averaged before they are compared.

The gradient of one row says little of whether the row serves a target: its direction is mostly its
own. Neighbours in the graph have their own parts too, but what they share is shared. So

    S = P^r M U        s_i = ⟨S_i, ĝ⟩ / |S_i|

with U the unit sketches of the measured rows, less their mean, M their places among all, P the
graph with a loop at each row and weights that add up to 1, and ĝ the direction of the target's mean
gradient, less the same. Rows that were not measured get the mean of the measured ones within reach;
P^r M 1 is how much of that there is. With m edges and k² numbers of a sketch it takes 2 r m k²
operations.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from gracekit.types import Bool, Float32, Float64, Rows, SparseGraph

ROUNDS = 2
"""r: what more rounds and fewer rounds do is in docs/selection.md."""
MOST_ROUNDS = 4
"""r at most, where so few rows were measured that two rounds do not reach all."""
REACHED = 0.95
"""Share of the rows that have to be reached for more rounds not to be tried."""
COLUMNS_AT_ONCE = 128
"""Numbers of a sketch that are averaged at a time."""
SMALLEST = 1e-12
"""Length below which a mean has no direction."""


def walk_matrix(graph: SparseGraph) -> sparse.csr_array:
    """P, float32 [n, n]: each row's own part and its neighbours' by their similarity, sum 1."""
    n = len(graph.indptr) - 1
    edges = sparse.csr_array((graph.weights, graph.indices, graph.indptr), shape=(n, n))
    edges = edges.maximum(0)  # similarities below 0 are none
    with_own = sparse.csr_array(edges + _diagonal(np.ones(n, np.float32)))
    sums = np.asarray(with_own.sum(axis=1)).ravel()
    scale = _diagonal((1 / sums).astype(np.float32))
    return sparse.csr_array(scale @ with_own).astype(np.float32)


def reach(walk: sparse.csr_array, rows: Rows, counted: Bool) -> tuple[int, Float64]:
    """Rounds r that reach the rows of the graph, and how much of P^r M 1 each row has.

    Args:
        walk: P.
        rows: [m] measured.
        counted: [n] rows that have to be reached.

    Returns:
        r, from `ROUNDS` to `MOST_ROUNDS`; and [n] in [0, 1], 0 where no measured row is in reach.
    """
    mass: Float64 = np.zeros(walk.shape[0])
    mass[rows] = 1
    for number in range(1, MOST_ROUNDS + 1):
        mass = np.asarray(walk @ mass)
        if number >= ROUNDS and (mass[counted] > 0).mean() >= REACHED:
            return number, mass
    return MOST_ROUNDS, mass


def smoothed_cosines(
    walk: sparse.csr_array, rows: Rows, sketches: Float32, goals: Float32, *, rounds: int
) -> Float32:
    """S of all rows, for each of some goals.

    Args:
        walk: P.
        rows: [m] measured.
        sketches: [m, k²]
        goals: [g, k²] of length 1.
        rounds: r.

    Returns:
        [n, g] in [-1, 1]; 0 for a row without a measured one in reach.
    """
    n = walk.shape[0]
    products, squares = np.zeros((n, len(goals))), np.zeros(n)
    for start in range(0, sketches.shape[1], COLUMNS_AT_ONCE):
        columns = slice(start, start + COLUMNS_AT_ONCE)
        part = np.zeros((n, sketches[:, columns].shape[1]), np.float32)
        part[rows] = sketches[:, columns]
        for _ in range(rounds):
            part = walk @ part
        products += part @ goals[:, columns].T
        squares += np.einsum("ij,ij->i", part, part, dtype=np.float64)
    return _cosines(products, squares)


def cosines_without_self(
    walk: sparse.csr_array,
    rows: Rows,
    sketches: Float32,
    goals: Float32,
    *,
    rounds: int,
    asked: Rows,
) -> Float32:
    """S of some measured rows as the *other* measured rows say it.

    Args:
        walk: P.
        rows: [m] measured.
        sketches: [m, k²]
        goals: [g, k²] of length 1.
        rounds: r.
        asked: [a] positions in `rows`.

    Returns:
        [a, g] in [-1, 1].
    """
    weights = walk[rows[asked]]
    for _ in range(rounds - 1):
        weights = weights @ walk
    among = weights.tocsr()[:, rows].tolil()
    among[np.arange(len(asked)), asked] = 0
    means = among.tocsr() @ sketches
    squares = np.einsum("ij,ij->i", means, means, dtype=np.float64)
    return _cosines(means @ goals.T, squares)


def _diagonal(values: Float32) -> sparse.csr_array:
    """SciPy has `diags_array` and `eye_array` since 1.12 only."""
    n = len(values)
    return sparse.csr_array((values, np.arange(n), np.arange(n + 1)), shape=(n, n))


def _cosines(products: Float32 | Float64, squares: Float64) -> Float32:
    lengths = np.sqrt(squares)[:, None]
    found = np.divide(products, lengths, out=np.zeros(products.shape), where=lengths > SMALLEST)
    return found.astype(np.float32)
