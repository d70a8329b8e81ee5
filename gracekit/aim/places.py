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
COPY_SIMILARITY = 0.9
"""Cosine in the graph from which rows of one group may be near-copies."""


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


def alike(graph: SparseGraph, samples: SampleTable, counted: Bool) -> Int64:
    """[2, p] pairs of rows that may be near-copies, the smaller row first, each pair once.

    They have an edge of `COPY_SIMILARITY` or more, are of one group and of other content.

    Args:
        graph: Over the n rows.
        samples: The sample table [n].
        counted: [n] rows that may be trained on; others are copies of nobody.
    """
    heads = np.repeat(np.arange(len(counted)), np.diff(graph.indptr))
    near = (graph.weights >= COPY_SIMILARITY) & (heads < graph.indices)  # each edge is there twice
    heads, tails = heads[near].astype(np.int64), graph.indices[near].astype(np.int64)
    content = samples.content_hashes.codes()
    fits = counted[heads] & counted[tails] & (content[heads] != content[tails])
    fits &= samples.groups[heads] == samples.groups[tails]
    return np.stack([heads[fits], tails[fits]])


def copies(samples: SampleTable, counted: Bool, near: Int64, responses: Int64) -> Float32:
    """[n] 1 / the number of copies of a row, so that all of them share one place.

    Copies are rows with the same content, rows of one group that respond alike, and near-copies,
    directly or by way of others.

    Args:
        samples: The sample table [n].
        counted: [n] rows that may be trained on; others are copies of nobody.
        near: [2, p] pairs of counted rows that are near-copies of each other.
        responses: [n] the same number for rows that respond alike; -1: like no other.
    """
    n = len(counted)
    content = np.where(counted, samples.content_hashes.codes(), -1)
    known = np.flatnonzero(counted & (responses >= 0))
    alike = np.full(n, -1, np.int64)
    _, kinds = np.unique(responses[known], return_inverse=True)
    in_group = kinds * (int(samples.groups.max(initial=0)) + 1) + samples.groups[known]
    alike[known] = np.unique(in_group, return_inverse=True)[1]
    pairs = np.concatenate([_with_first(content), _with_first(alike), near], axis=1)
    places = pairs.astype(np.int32)  # SciPy 1.11 labels nothing where they are int64, and goes on
    joined = sparse.coo_array((np.ones(pairs.shape[1]), (places[0], places[1])), shape=(n, n))
    _, of_row = connected_components(joined, directed=False)
    sizes = np.bincount(of_row, counted)
    found = np.ones(n, np.float32)
    found[counted] = 1 / sizes[of_row[counted]]
    return found


def _with_first(codes: Int64) -> Int64:
    """[2, p] each row that has a code, and the first row that has the same; -1 is none."""
    rows = np.flatnonzero(codes >= 0)
    first = np.full(codes.max(initial=-1) + 1, -1, np.int64)
    first[codes[rows[::-1]]] = rows[::-1]
    return np.stack([rows, first[codes[rows]]])
