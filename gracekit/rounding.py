"""Rounding: weights to whole numbers of copies, features to float16, directions to int16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gracekit.types import Bool, Directions, Float32, Float64, Int16, Int64, Rows

_BLOCK = 16_384
_LARGEST = np.finfo(np.float16).max
ONE = 32_767
"""What a component of 1 is in rounded directions."""


def whole_copies(weights: Float32 | Float64, random: np.random.Generator) -> Int64:
    """Round weights to whole numbers at random, keeping their total.

    Systematic sampling (Madow 1949) in random order: the cumulated weights are cut at every whole
    number, shifted by one random offset. Each weight is rounded down or up, and the expected
    result is the weight itself.

    Args:
        weights: [b] at least 0, b at least 1; their sum, above 0, is taken as the nearest whole
            number.
        random: Where chance comes from.

    Returns:
        int64 [b] copies; their sum is exactly that whole number.
    """
    order = random.permutation(len(weights))
    ends = np.cumsum(weights[order], dtype=np.float64)
    total = round(ends[-1])
    cuts = np.floor(ends * (total / ends[-1]) + random.random())
    cuts[cuts > total] = total  # the last end is the total, but for rounding errors
    cuts[-1] = total
    copies = np.empty(len(weights), np.int64)
    copies[order] = np.diff(cuts, prepend=0.0)
    return copies


def to_float16(features: NDArray[np.float16] | Float32) -> NDArray[np.float16]:
    """Round [m, d] to float16: large values are cut to its range, rows not finite are all NaN.

    What is float16 already, with all rows finite or NaN, is returned as it is.
    """
    if features.dtype == np.float16 and _is_whole(features):
        return features.astype(np.float16, copy=False)
    rounded = np.empty(features.shape, np.float16)
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK]
        to = rounded[start : start + _BLOCK]
        np.clip(block, -_LARGEST, _LARGEST, out=to, casting="same_kind")
        to[~np.isfinite(block).all(axis=1)] = np.nan
    return rounded


def put_rows(
    features: NDArray[np.float16],
    rows: Rows,
    found: NDArray[np.float16] | Float32,
    *,
    where: Bool,
) -> None:
    """Put the features [m, d] that were found of rows [m] into place, `where` they count."""
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        kept = where[block]
        features[rows[block][kept]] = to_float16(found[block][kept])


def rounded(unit: Directions) -> Int16:
    """Directions [n, d] in whole `1 / ONE`; those that are so already are returned as they are.

    A component is off by 1.6e-5 at most, and so is the length by about 1e-5: cosines take it out.
    With it a row that came out a little longer would be nearest to all that are nearly alike.
    Inner products are sums of whole numbers, the same in any order and on any processor. No sum of
    a part of them leaves int32: by Cauchy and Schwarz it is at most the product of the lengths,
    `ONE`² and a little.
    """
    if unit.dtype == np.int16:
        return unit.astype(np.int16, copy=False)
    found = np.empty(unit.shape, np.int16)
    for start in range(0, len(unit), _BLOCK):
        block = slice(start, start + _BLOCK)
        np.rint(unit[block] * np.float32(ONE), out=found[block], casting="unsafe")
    return found


def unrounded(unit: Directions) -> Float32:
    """Directions [..., d] in float32, of length 1; those in it already are returned as they are."""
    if unit.dtype == np.int16:
        found: Float32 = unit.astype(np.float32)
        square = np.einsum("...d,...d->...", found, found)
        found *= 1 / np.sqrt(np.maximum(square, 1))[..., None]  # in place: less than half as long
        return found
    return unit.astype(np.float32, copy=False)


def _is_whole(features: NDArray[Any]) -> bool:
    """Whether each row is finite or all NaN."""
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK]
        other = block[~np.isfinite(block).all(axis=1)]
        if not np.isnan(other).all():
            return False
    return True
