"""Factors of the target t: each says how often a row is wanted beside a plain one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from gracekit.aim.directions import directions
from gracekit.types import Bool, DrawState, Float32, Int32, Int64, SampleTable, SparseGraph

LEAST_DOSE = 1e-4
"""What a place is lowered to by uses, at most: no row is lost for ever."""
COPY_SIMILARITY = 0.9
"""Cosine in the graph from which rows of one group may be near-copies."""
LEAST_RESPONSE = 10
"""Tokens with loss from which two rows with the same ones respond alike."""
LEAST_TASK = 10
"""Rows whose prompts begin alike from which they are a task of their own."""
MOST_REPEATED = 0.5
"""Share of a group's rows that may respond as others do; where more do, answers are labels."""


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


def copies(
    samples: SampleTable, counted: Bool, near: Int64, responses: Int64, openings: Int64
) -> Int64:
    """[n] the first of the rows that say the same as a row; -1: no other one does.

    Those are rows with the same content, rows of one group that respond alike, and near-copies,
    directly or by way of others.

    Args:
        samples: The sample table [n].
        counted: [n] rows that may be trained on; others are copies of nobody.
        near: [2, p] pairs of counted rows that are near-copies of each other.
        responses: [n] the same number for rows with the same response; -1: not known.
        openings: [n] the same number for rows whose prompts begin alike.
    """
    content = np.where(counted, samples.content_hashes.codes(), -1)
    pairs = np.concatenate([_with_first(content), near], axis=1)
    alike = respond_alike(
        np.where(counted, responses, -1),
        samples.groups,
        samples.num_response_tokens,
        openings,
        _joined(pairs, len(counted)),
    )
    of_row = _joined(np.concatenate([pairs, _with_first(alike)], axis=1), len(counted))
    _, first, kinds, sizes = np.unique(
        of_row, return_index=True, return_inverse=True, return_counts=True
    )
    return np.where(sizes[kinds] > 1, first[kinds], -1).astype(np.int64)


def respond_alike(
    responses: Int64, groups: Int32, num_targets: Int32, openings: Int64, of_row: Int64
) -> Int64:
    """[n] the same number for rows of one group that respond alike at some length; else -1.

    A group in which most rows respond as others do is a task with few answers, whatever their
    length: there none do. Many rows of a group whose prompts begin alike are such a group as well.

    Args:
        responses: [n] the same number for rows with the same response; -1: not known.
        groups: [n]
        num_targets: [n] tokens that carry loss.
        openings: [n] the same number for rows whose prompts begin alike.
        of_row: [n] the same number for rows that say the same otherwise: they count once.
    """
    found = np.full(len(responses), -1, np.int64)
    rows = np.flatnonzero(responses >= 0)
    kinds = _pairs(groups[rows], responses[rows])
    _, once = np.unique(_pairs(of_row[rows], kinds), return_index=True)
    of_kind = np.bincount(kinds[once])
    is_repeated = of_kind[kinds[once]] > 1
    fits = num_targets[rows] >= LEAST_RESPONSE
    for tasks, least in ((groups[rows], 1), (_pairs(groups[rows], openings[rows]), LEAST_TASK)):
        num_tasks = int(tasks.max(initial=-1)) + 1
        in_task = np.bincount(tasks[once], minlength=num_tasks)
        repeated = np.bincount(tasks[once], is_repeated, num_tasks)
        has_few = (in_task >= least) & (repeated > MOST_REPEATED * in_task)
        fits &= ~has_few[tasks]
    found[rows[fits]] = kinds[fits]
    return found


def _pairs(small: Int32 | Int64, codes: Int64) -> Int64:
    """[r] the numbers from 0 of the pairs of two codes, of which those of `small` are below r."""
    _, numbers = np.unique(codes, return_inverse=True)
    numbers = numbers * (int(small.max(initial=0)) + 1) + small
    return np.asarray(np.unique(numbers, return_inverse=True)[1], np.int64)


def one_place(copy_of: Int64, counted: Bool) -> Float32:
    """[n] 1 / the number of rows that say the same, so that all of them share one place.

    Args:
        copy_of: [n] as `copies` finds it.
        counted: [n] rows that may be drawn: what others leave is theirs.
    """
    found = np.ones(len(copy_of), np.float32)
    rows = np.flatnonzero(counted & (copy_of >= 0))
    found[rows] = 1 / np.bincount(copy_of[rows], minlength=1)[copy_of[rows]]
    return found


def _joined(pairs: Int64, n: int) -> Int64:
    """[n] the same number for rows that pairs [2, p] join, directly or by way of others."""
    places = pairs.astype(np.int32)  # SciPy 1.11 labels nothing where they are int64, and goes on
    joined = sparse.coo_array((np.ones(pairs.shape[1]), (places[0], places[1])), shape=(n, n))
    return np.asarray(connected_components(joined, directed=False)[1], np.int64)


def _with_first(codes: Int64) -> Int64:
    """[2, p] each row that has a code, and the first row that has the same; -1 is none."""
    rows = np.flatnonzero(codes >= 0)
    first = np.full(codes.max(initial=-1) + 1, -1, np.int64)
    first[codes[rows[::-1]]] = rows[::-1]
    return np.stack([rows, first[codes[rows]]])
