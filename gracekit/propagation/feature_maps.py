"""Maps from old features to new ones, fitted on measured rows and applied block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gracekit.rounding import to_float16
from gracekit.types import Float32, Float64, Rows

_ROW_BLOCK = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """new = old + offset + old @ matrix."""

    offset: Float32
    """[d]"""
    matrix: Float32 | None = None
    """[d, d]; None: the offset alone."""

    def __call__(self, old: Float32) -> Float32:
        """Features [rows, d] carried over."""
        new: Float32 = old + self.offset
        if self.matrix is not None:
            new += old @ self.matrix
        return new


def _no_change(old: Float32, new: Float32, penalty: float) -> FeatureMap:
    return FeatureMap(offset=np.zeros(old.shape[1], np.float32))


def _shift(old: Float32, new: Float32, penalty: float) -> FeatureMap:
    return FeatureMap(offset=(new - old).mean(axis=0))


def _ridge(old: Float32, new: Float32, penalty: float) -> FeatureMap:
    """Ridge regression of the change; a large penalty leaves the mean change."""
    centre = old.mean(axis=0, dtype=np.float64)
    shift = (new - old).mean(axis=0, dtype=np.float64)
    m, d = old.shape
    if m < d:
        x, y = old - centre, new - old - shift
        matrix = x.T @ np.linalg.solve(_penalised(x @ x.T, penalty, d), y)
    else:
        gram, cross = np.zeros((d, d)), np.zeros((d, d))
        for start in range(0, m, _ROW_BLOCK):
            block = slice(start, start + _ROW_BLOCK)
            x, y = old[block] - centre, new[block] - old[block] - shift
            gram += x.T @ x
            cross += x.T @ y
        matrix = np.linalg.solve(_penalised(gram, penalty, d), cross)
    return FeatureMap(
        offset=(shift - centre @ matrix).astype(np.float32), matrix=matrix.astype(np.float32)
    )


def _penalised(gram: Float64, penalty: float, num_features: int) -> Float64:
    size = np.trace(gram) / num_features
    return gram + penalty * (size or 1.0) * np.eye(len(gram))


FITS: dict[str, Callable[[Float32, Float32, float], FeatureMap]] = {
    "stale": _no_change,
    "shift": _shift,
    "ridge": _ridge,
}
"""Fits of the old features [m, d], the new ones [m, d] and a penalty, the simplest first."""


def row_cosines(a: Float32 | Float64, b: Float32 | Float64) -> Float64:
    """[rows] cosine of each row of `a` with that of `b`; 0 where one of them is 0."""
    dot = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    square = np.einsum("ij,ij->i", a, a, dtype=np.float64)
    square = square * np.einsum("ij,ij->i", b, b, dtype=np.float64)
    cosine: Float64 = np.divide(dot, np.sqrt(square), out=np.zeros_like(dot), where=square > 0)
    return cosine


def map_rows(
    features: NDArray[Any], rows: Rows, new_of: Callable[[Float32], Float32 | Float64]
) -> None:
    """Replace rows of features [n, d] in place, computed in float32, block by block."""
    for block in row_blocks(rows):
        new = new_of(features[block].astype(np.float32))
        features[block] = as_kept(new, features.dtype)


def as_kept(new: Float32 | Float64, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Computed features as `dtype`, the one that features are kept as."""
    if dtype == np.float16:
        return to_float16(new.astype(np.float32, copy=False))
    return new.astype(dtype, copy=False)


def row_blocks(rows: Rows) -> list[Rows]:
    """The rows, a few thousand at a time."""
    return [rows[start : start + _ROW_BLOCK] for start in range(0, len(rows), _ROW_BLOCK)]
