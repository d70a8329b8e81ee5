"""Factors of the target t: each says how often a row is wanted beside a plain one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from gracekit.aim.directions import directions
from gracekit.types import Bool, DrawState, Float32, Int64, SampleTable, SparseGraph

LEAST_DOSE = 1e-4
"""What a place is lowered to by uses, at most: no row is lost for ever."""
COPY_SIMILARITY = 0.95
"""Cosine in the graph from which rows of one group count as copies."""


def chosen(signal: Float32, known: Bool, width: float) -> Float32:
    """[n] the best share of the rows by a signal, alike, so that the mean of all is 1.

    Where rows are equal and not all of them have room, they share it alike.

    Args:
        signal: [n]
        known: [n] rows that have the signal; others are not chosen.
        width: The share of all rows in `known`.
    """
    place = np.zeros(len(signal), np.float32)
    rows = np.flatnonzero(known)
    if not len(rows):
        return place
    count = max(1, math.floor(width * len(rows) + 0.5))
    least = np.partition(signal[rows], len(rows) - count)[len(rows) - count]
    above, equal = rows[signal[rows] > least], rows[signal[rows] == least]
    place[above] = len(rows) / count
    place[equal] = len(rows) / count * (count - len(above)) / len(equal)
    return place


def in_turn(
    features: NDArray[np.float16] | Float32, allowed: Bool, targets: Float32, used: Int64
) -> Float32:
    """[n] the later a row is taken, the smaller: each target sample takes its nearest row in turn.

    Of rows that were used less often those come first, so that a target sample takes its nearest
    unused row. Similarity is the cosine of centred features.

    Args:
        features: [n, d]
        allowed: [n] rows that may be taken; others have NaN.
        targets: [t, d] finite.
        used: [n] how often each row was used.
    """
    rows = np.flatnonzero(allowed)
    found = np.full(len(allowed), np.nan, np.float32)
    if not len(rows):
        return found
    centre = features[rows].mean(axis=0, dtype=np.float64).astype(np.float32)
    own, goals = directions(features[rows] - centre), directions(targets - centre)
    # The place of a row among the nearest of each target sample; the best of its places counts.
    best = np.full(len(rows), np.iinfo(np.int64).max)
    for goal in goals:
        ranking = np.lexsort((-(own @ goal), used[rows]))
        place = np.empty(len(rows), np.int64)
        place[ranking] = np.arange(len(rows))
        best = np.minimum(best, place)
    found[rows] = -best
    return found


def dose(state: DrawState | None, factor: float, n: int) -> Float32:
    """[n] `factor` for each time that a row was used: aim wears rows out.

    Args:
        state: What the draws so far gave each row; None: nothing.
        factor: In (0, 1].
        n: Rows.
    """
    if state is None or factor == 1:
        return np.ones(n, np.float32)
    found: Float32 = np.maximum(np.power(factor, state.uses), LEAST_DOSE).astype(np.float32)
    return found


def copies(graph: SparseGraph, samples: SampleTable, counted: Bool) -> Float32:
    """[n] 1 / the number of copies of a row, so that all of them share one place.

    Copies are rows with the same content, and rows of one group that edges of the graph of
    `COPY_SIMILARITY` or more join, directly or by way of others.

    Args:
        graph: Over the n rows.
        samples: The sample table [n].
        counted: [n] rows that may be trained on; others are copies of nobody.
    """
    n = len(counted)
    of_content = samples.content_hashes.codes()
    first = np.full(of_content.max(initial=-1) + 1, -1, np.int64)
    rows = np.flatnonzero(counted)
    first[of_content[rows[::-1]]] = rows[::-1]
    same = np.stack([rows, first[of_content[rows]]])
    heads = np.repeat(np.arange(n), np.diff(graph.indptr))
    near = graph.weights >= COPY_SIMILARITY
    near &= counted[heads] & counted[graph.indices]
    near &= samples.groups[heads] == samples.groups[graph.indices]
    pairs = np.concatenate([same, np.stack([heads[near], graph.indices[near]])], axis=1)
    places = pairs.astype(np.int32)  # SciPy 1.11 labels nothing where they are int64, and goes on
    joined = sparse.coo_array((np.ones(pairs.shape[1]), (places[0], places[1])), shape=(n, n))
    _, of_row = connected_components(joined, directed=False)
    sizes = np.bincount(of_row, counted)
    found = np.ones(n, np.float32)
    found[counted] = 1 / sizes[of_row[counted]]
    return found
