"""Baselines on the features themselves: k-center, clusters, matching of sums.

They look at every pair or at every pick, so they are for up to about 100,000 samples.
Shapes: `n` rows, `c` candidates, `d` features.
"""

from __future__ import annotations

import math

import numpy as np

from gracekit.errors import SelectionError
from gracekit.protocols import SelectionTask
from gracekit.selection.ranking import Room, first_rows, random_values
from gracekit.selection.simple import plain
from gracekit.types import Bool, Float32, Float64, Int64, Rows, Selection

GRID = 2.0**20
"""Similarities are rounded to this grid: ties are ties whatever the order of a sum."""
CLUSTER_ROWS = 500
"""Mean rows of a cluster."""
NUM_ROUNDS = 10
"""Rounds of k-means."""
SAMPLE_ROWS = 20_000
"""Rows that the centres are found on."""
BLOCK_ROWS = 64
"""Rows whose sum is matched together."""
LEAST_WEIGHT = 0.01
"""Least weight of a matched sample, as a share of the mean: none is selected for nothing."""


class KCenter:
    """Farthest point first (Gonzalez 1985): no sample is far from the nearest selected one.

    At most twice the best possible radius, in the angle between centred features. Starts with the
    most important candidate, unless something is always in. Takes n · d per pick.
    """

    def select(self, task: SelectionTask) -> Selection:
        """Rows in the order picked; gains are 1 - cosine to the nearest one picked before."""
        unit = directions(task)
        nearest = np.full(len(unit), 2.0)
        for row in task.initial:
            nearest = np.minimum(nearest, _distance(unit, row))
        importance = np.where(task.candidates, task.scores.importance, -1)
        room, is_open = Room(task), task.candidates.copy()
        rows: list[int] = []
        gains: list[float] = []
        while room.left > 0 and is_open.any():
            first = not rows and not len(task.initial)
            row = _best_open_row(importance if first else nearest, is_open, task.order)
            is_open[row] = False
            if not room.admit(row):
                is_open &= room.may_fit(row)
                continue
            rows.append(row)
            gains.append(float(nearest[row]))
            nearest = np.minimum(nearest, _distance(unit, row))
        return plain(np.array(rows, np.int64), np.array(gains, np.float32))


class Clusters:
    """Semantic deduplication within clusters, as far as the budget asks.

    Abbas et al., "SemDeDup" (2023): k-means; in each cluster the samples from the outermost to
    the centre, each judged by its largest cosine to those before it. The least similar are kept.
    """

    def select(self, task: SelectionTask) -> Selection:
        """Least redundant first."""
        unit = directions(task)
        candidates = np.flatnonzero(task.candidates)
        labels, to_centre = _k_means(unit[candidates], random_values(task, task.seed)[candidates])
        redundancy = np.full(len(unit), -1.0)
        for label in range(int(labels.max()) + 1):
            inside = np.flatnonzero(labels == label)
            rows = candidates[inside]
            ordered = rows[np.lexsort((task.order[rows], to_centre[inside]))]
            similar = np.tril(round_to_grid(unit[ordered] @ unit[ordered].T), -1)
            similar[np.triu_indices(len(ordered))] = -1
            redundancy[ordered] = similar.max(axis=1, initial=-1)
        ranking = candidates[np.lexsort((task.order[candidates], redundancy[candidates]))]
        return plain(first_rows(ranking, task))


class Matching:
    """Gradient matching by orthogonal matching pursuit, on the stored features.

    Killamsetty et al., "GRAD-MATCH" (ICML 2021): the weighted sum of the selected comes near the
    sum of all. In blocks of 64 random candidates, from which equally many are picked, so that it
    takes n · 64 · d and not n · b · d; a block's weights are the non-negative least squares for
    its sum. Weights have mean 1, so it is the direction that is matched; and it is gradients that
    are matched only as far as the features are gradients.
    """

    def select(self, task: SelectionTask) -> Selection:
        """Rows in turn from each block; their weights count with `weights: selector`."""
        features = _features(task)
        drawn = random_values(task, task.seed)
        candidates = np.flatnonzero(task.candidates)
        shuffled = candidates[np.argsort(drawn[candidates], kind="stable")]
        num_blocks = max(1, len(shuffled) // BLOCK_ROWS)
        block = np.arange(len(shuffled)) % num_blocks
        turn = np.empty(len(shuffled), np.int64)
        for number in range(num_blocks):
            inside = np.flatnonzero(block == number)
            turn[inside[_pursuit_order(features[shuffled[inside]])]] = np.arange(len(inside))
        ranking = shuffled[np.lexsort((block, turn))]
        rows = first_rows(ranking, task)
        block_of = np.full(len(features), -1)
        block_of[shuffled] = block
        weights = _matching_weights(features, rows, block_of)
        return Selection(
            rows=rows,
            gains=np.zeros(len(rows), np.float32),
            weights=weights,
            objective=0.0,
        )


def directions(task: SelectionTask) -> Float32:
    """[n, d] centred on the represented rows, of length 1 (0 where there is no direction)."""
    features = _features(task)
    return _directions(features, features[task.represented].mean(axis=0))


def target_directions(task: SelectionTask) -> Float32:
    """[t, d] the same of the target samples, around the same centre."""
    if task.target_features is None:
        raise SelectionError(
            f"selection.selector {task.settings.selector!r} covers a target set, and these "
            "features were measured without one; name it in the recipe "
            "(`target: {path: target.jsonl}`) and refresh from a checkpoint"
        )
    centre = _features(task)[task.represented].mean(axis=0)
    return _directions(np.nan_to_num(task.target_features.astype(np.float64)), centre)


def _directions(features: Float64, centre: Float64) -> Float32:
    centred = features - centre
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: Float32 = (centred / np.where(length > 0, length, 1)).astype(np.float32)
    return unit


def _features(task: SelectionTask) -> Float64:
    if task.features is None:
        raise SelectionError(
            f"selection.selector {task.settings.selector!r} looks at the features, and they are "
            "not at hand; refresh from a checkpoint, or take a selector on the graph: coverage"
        )
    return np.nan_to_num(task.features.astype(np.float64))


def round_to_grid(values: Float32 | Float64) -> Float64:
    """Values on the grid."""
    rounded: Float64 = np.rint(values * GRID) / GRID
    return rounded


def _distance(unit: Float32, row: int) -> Float64:
    return 1 - round_to_grid(unit @ unit[row])


def _best_open_row(values: Float64 | Float32, is_open: Bool, order: Int64) -> int:
    """The open row of largest value; of equals the smaller order."""
    masked = np.where(is_open, values, -np.inf)
    equal = np.flatnonzero(masked == masked.max())
    return int(equal[np.argmin(order[equal])])


def _k_means(unit: Float32, drawn: Float64) -> tuple[Int64, Float64]:
    """Cluster [c] and cosine to its centre [c] of every candidate."""
    num_clusters = math.ceil(len(unit) / CLUSTER_ROWS)
    by_draw = np.argsort(drawn, kind="stable")
    sample = unit[by_draw[:SAMPLE_ROWS]]
    centres = sample[:num_clusters].copy()
    for _ in range(NUM_ROUNDS):
        labels = np.argmax(round_to_grid(sample @ centres.T), axis=1)
        sums = np.zeros(centres.shape, np.float64)
        np.add.at(sums, labels, sample)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(length > 1e-6, sums / np.maximum(length, 1e-6), centres).astype(
            np.float32
        )
    labels, best = np.empty(len(unit), np.int64), np.empty(len(unit))
    for start in range(0, len(unit), SAMPLE_ROWS):
        part = slice(start, start + SAMPLE_ROWS)
        similar = round_to_grid(unit[part] @ centres.T)
        labels[part], best[part] = similar.argmax(axis=1), similar.max(axis=1)
    return labels, best


def _pursuit_order(atoms: Float64) -> Int64:
    """[m] the order in which matching pursuit takes the atoms [m, d] for their sum."""
    residual = atoms.sum(axis=0)
    basis = np.zeros((0, atoms.shape[1]))
    is_open = np.ones(len(atoms), bool)
    taken = []
    for _ in range(len(atoms)):
        fit = np.where(is_open, atoms @ residual, -np.inf)
        best = int(np.argmax(fit))
        taken.append(best)
        is_open[best] = False
        new = atoms[best] - (basis @ atoms[best]) @ basis
        length = np.linalg.norm(new)
        if length > 1e-9 * (np.linalg.norm(atoms[best]) or 1.0):
            basis = np.vstack([basis, new / length])
            residual = residual - (residual @ basis[-1]) * basis[-1]
    return np.array(taken, np.int64)


def _matching_weights(features: Float64, rows: Rows, block_of: Int64) -> Float32:
    """[b] weights by which each block's selected rows come nearest to the sum of the block."""
    from scipy.optimize import nnls

    weights = np.zeros(len(rows))
    for number in np.unique(block_of[rows]):
        target = features[block_of == number].sum(axis=0)
        places = np.flatnonzero(block_of[rows] == number)
        weights[places], _ = nnls(features[rows[places]].T, target)
    least = LEAST_WEIGHT * (weights.mean() if len(weights) else 0) or 1.0
    return np.maximum(weights, least).astype(np.float32)
