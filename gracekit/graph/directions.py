"""Directions of the features, and exact neighbours among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from gracekit.graph.nearest_loop import keep_nearest
from gracekit.rounding import rounded, unrounded
from gracekit.scratch import room
from gracekit.types import Bool, Directions, Float32, Int32, KnnGraph, Rows

_BLOCK_BYTES, _CACHED_BYTES = 64 << 20, 1 << 20
_NUM_SAMPLED = 2000
_NUM_QUERIED = 200


@overload
def unit_features(features: NDArray[np.float16] | Float32, valid: Bool) -> Float32: ...


@overload
def unit_features(
    features: NDArray[np.float16] | Float32, valid: Bool, dtype: type[np.generic]
) -> Directions: ...


def unit_features(
    features: NDArray[np.float16] | Float32, valid: Bool, dtype: Any = np.float32
) -> Directions:
    """Directions of the features: centred by the mean of the valid rows, of length 1.

    Args:
        features: [n, d]; rows that are not finite count as invalid.
        valid: [n] rows that have features.
        dtype: float32, or int16 for directions as `rounding.rounded` makes them.

    Returns:
        [n, d], never NaN; zeros where invalid, or equal to the mean up to rounding.
    """
    unit = room(features.shape, dtype)
    total, count = np.zeros(features.shape[1]), 0
    for rows in _finite_blocks(features, valid):
        total += features[rows].sum(axis=0, dtype=np.float64)
        count += len(rows)
    mean = total / max(count, 1)
    shortest = 1e-6 * np.linalg.norm(mean)
    for rows in _finite_blocks(features, valid):
        block = features[rows].astype(np.float64) - mean
        length = np.linalg.norm(block, axis=1)
        some = length > shortest
        found: Float32 = (block[some] / length[some, None]).astype(np.float32)
        unit[rows[some]] = rounded(found) if dtype == np.int16 else found
    return unit


def _finite_blocks(features: NDArray[np.float16] | Float32, valid: Bool) -> Iterator[Rows]:
    for block in _blocks(np.flatnonzero(valid), 8 * features.shape[1]):
        yield block[np.isfinite(features[block]).all(axis=1)]


def _blocks(rows: Rows, bytes_per_row: int) -> Iterator[Rows]:
    size = max(1, _BLOCK_BYTES // max(bytes_per_row, 1))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def effective_rank(unit: Directions) -> float:
    """How many directions the features really use: exp(entropy of the covariance's eigenvalues).

    Between 1 (all on a line) and d (alike in all dimensions); Roy and Vetterli, 2007. From at
    most `_NUM_SAMPLED` random rows that have a direction; 0 when there are fewer than two.
    """
    rows = np.random.default_rng(0).permutation(np.flatnonzero(has_direction(unit)))
    sample = unrounded(unit[rows[:_NUM_SAMPLED]]).astype(np.float64)
    if len(sample) < 2:
        return 0.0
    sample -= sample.mean(axis=0)
    power = np.linalg.svd(sample, compute_uv=False) ** 2
    share = power[power > 0] / power.sum() if power.any() else np.ones(1)
    return float(np.exp(-(share * np.log(share)).sum()))


def grown(array: NDArray[Any], num_rows: int, fill: float) -> NDArray[Any]:
    """The array with rows of `fill` at its end, `num_rows` in all."""
    new = np.full((num_rows - len(array), *array.shape[1:]), fill, array.dtype)
    return np.concatenate([array, new])


def has_direction(unit: Directions) -> Bool:
    """[n] rows that are not zero: those that can be neighbours."""
    return np.concatenate([unit[block].any(axis=1) for block in _slices(unit)])


def cosines_between(one: Directions, other: Directions) -> Float32:
    """[n] of each row of one [n, d] with the same row of the other."""
    parts = [
        np.einsum("ij,ij->i", unrounded(one[block]), unrounded(other[block]))
        for block in _slices(one)
    ]
    return np.concatenate(parts)


def _slices(unit: Directions) -> list[slice]:
    """Parts of the rows that a cache holds in float32; one at least."""
    size = max(1, _CACHED_BYTES // (4 * max(unit.shape[1], 1)))
    return [slice(start, start + size) for start in range(0, max(len(unit), 1), size)]


def exact_neighbors(
    unit: Directions, queries: Rows, columns: Rows, width: int
) -> tuple[Int32, Float32]:
    """The nearest of the `columns` for every query row, itself left out.

    Returns:
        Neighbours int32 [q, width], nearest first, of equally near ones the earlier column, -1
        fills up; and their cosines float32 [q, width], -inf where the neighbour is -1.
    """
    neighbors = np.full((len(queries), width), -1, np.int32)
    cosines = np.full((len(queries), width), -np.inf, np.float32)
    if width == 0 or len(columns) == 0:
        return neighbors, cosines
    parts = list(_blocks(columns, 4 * unit.shape[1]))  # no copy of all of them at once
    position = np.full(len(unit), -1)
    position[columns] = np.arange(len(columns))
    for block in _blocks(np.arange(len(queries)), 4 * len(parts[0])):
        asked, own = unrounded(unit[queries[block]]), position[queries[block]]
        lists = neighbors[block], cosines[block]
        start = 0
        for part in parts:
            among = asked @ unrounded(unit[part]).T
            inside = np.flatnonzero((own >= start) & (own < start + len(part)))
            among[inside, own[inside] - start] = -np.inf
            keep_nearest(among, part.astype(np.int32), *lists)
            start += len(part)
        neighbors[block], cosines[block] = lists
    return neighbors, cosines


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueNeighbors:
    """How near the true nearest of some sampled rows are: what lists are compared with."""

    rows: Rows
    """[q] sampled."""
    least: Float32
    """[q] cosine of the true k-th."""
    num: int
    """How many neighbours there are to find, of all sampled rows together."""

    @classmethod
    def of(cls, unit: Directions, rows: Rows, k: int, *, seed: int) -> TrueNeighbors:
        """Find the k nearest of some of the rows among all that have a direction."""
        sample = np.random.default_rng(seed).permutation(rows)[:_NUM_QUERIED]
        present = np.flatnonzero(has_direction(unit))
        _, truth = exact_neighbors(unit, sample, present, k)
        num = np.isfinite(truth).sum(axis=1)
        least = np.take_along_axis(truth, np.maximum(num - 1, 0)[:, None], 1)[:, 0]
        return cls(rows=sample, least=least, num=int(num.sum()))

    def share_in(self, neighbors: Int32, unit: Directions) -> float:
        """Share of them in the lists [n, k]; 1 where there are none.

        A listed row counts when it is as similar as the true k-th: duplicates may stand in.
        """
        if self.num == 0:
            return 1.0
        listed = neighbors[self.rows]
        cosine = np.einsum("qd,qkd->qk", unrounded(unit[self.rows]), unrounded(unit[listed]))
        found = (listed >= 0) & (cosine >= self.least[:, None] - 1e-5)
        return float(found.sum() / self.num)


def recall(unit: Directions, neighbors: Int32, rows: Rows, *, seed: int) -> float:
    """Share of the true nearest in the lists [n, k] of sampled rows; 1 where there are none."""
    truth = TrueNeighbors.of(unit, rows, neighbors.shape[1], seed=seed)
    return truth.share_in(neighbors, unit)


def nearest_first(
    neighbors: NDArray[Any], cosines: Float32, width: int
) -> tuple[NDArray[Any], Float32]:
    """The `width` nearest entries of every list, sorted; equal ones stay in their order."""
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(neighbors, order, 1), np.take_along_axis(cosines, order, 1)


def knn_graph(neighbors: Int32, cosines: Float32) -> KnnGraph:
    """Lists with -inf at missing neighbours, as the value that flows through a refresh."""
    cosine = np.where(neighbors >= 0, np.clip(cosines, -1, 1), 0).astype(np.float32)
    return KnnGraph(neighbors=neighbors.copy(), similarities=cosine)
