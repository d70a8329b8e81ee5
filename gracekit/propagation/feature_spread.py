"""The spread of predicted features, which is that of measured ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gracekit.propagation.feature_maps import FeatureMap, map_rows, row_blocks, row_cosines
from gracekit.types import Float32, Float64, Int64, Rows

_MOST_STRETCH = 0.5
_WORTH_SPREAD = 0.3


def restore_spread(
    features: NDArray[Any],
    rows: Rows,
    target: Float32,
    held: Int64,
    held_out: Float32,
    old: NDArray[np.floating[Any]],
    measured_rows: Rows,
) -> float:
    """Give predicted features the spread that measured ones have, in place.

    A prediction leaves out what is a row's own, so its features lie closer together than true
    ones, and from refresh to refresh ever fewer directions would be left. Along each principal
    axis of the predicted features they are stretched around their mean to the spread to be
    expected, by `_MOST_STRETCH` at most either way, and only as far as held-out rows do not miss
    the cosine of 1 by `_WORTH_SPREAD` more than without. Expected is the standard deviation of the
    measured rows, times what theirs falls short of the predicted rows' in the features known before
    (a ratio estimate: few rows drawn at random spread more or less than others, and did so before).
    The ratio is kept to two standard errors of a spread: rows that were not drawn at random, such
    as the oldest, differ for other reasons.
    (Axes of the measured features would be no good: few rows spread too much along their own first
    axes and too little along their last, whatever they are drawn from.)

    Args:
        features: [n, d]
        rows: predicted rows.
        target: [m, d] measured features.
        held: [q] positions among the measured rows of those that were held out.
        held_out: [q, d] what was predicted of them.
        old: [n, d] last known features.
        measured_rows: [m]

    Returns:
        Share of the stretch that was made, 0 to 1.
    """
    if len(rows) < 2:
        return 0.0
    mean, covariance = _moments(features, rows)
    square, axes = np.linalg.eigh(covariance)
    centre = target.mean(axis=0, dtype=np.float64)
    of_all, of_measured = _spread_along(axes, old, rows), _spread_along(axes, old, measured_rows)
    found = np.sqrt(np.maximum(square, 0))
    wanted = _spread_along(axes, target, np.arange(len(target)))
    by_chance = 2 / np.sqrt(2 * len(target))
    ratio = np.divide(of_all, of_measured, out=np.ones_like(wanted), where=of_measured > 0)
    wanted *= np.clip(ratio, 1 - by_chance, 1 + by_chance)
    wider = np.divide(wanted, found, out=np.ones_like(wanted), where=found > 0) - 1
    stretch = (axes * np.clip(wider, -_MOST_STRETCH, _MOST_STRETCH)) @ axes.T

    def cosine(share: float) -> float:
        stretched = held_out + share * ((held_out - mean) @ stretch)
        return float(row_cosines(stretched - centre, target[held] - centre).mean())

    plain = cosine(0.0)
    enough = plain - _WORTH_SPREAD * (1 - plain)
    share = next((each for each in (1.0, 0.5, 0.25) if cosine(each) >= enough), 0.0)
    if share > 0:
        made = share * stretch
        offset, matrix = -(mean @ made).astype(np.float32), made.astype(np.float32)
        map_rows(features, rows, FeatureMap(offset=offset, matrix=matrix))
    return share


def _spread_along(axes: Float64, features: NDArray[np.floating[Any]], rows: Rows) -> Float64:
    """[d] standard deviation of the rows along each axis (a column of `axes`)."""
    square: Float64 = np.einsum("ij,ij->j", axes, _moments(features, rows)[1] @ axes)
    return np.sqrt(np.maximum(square, 0))


def _moments(features: NDArray[np.floating[Any]], rows: Rows) -> tuple[Float64, Float64]:
    """Mean [d] and covariance [d, d] of the rows."""
    d = features.shape[1]
    mean, covariance = np.zeros(d), np.zeros((d, d))
    for block in row_blocks(rows):
        mean += features[block].sum(axis=0, dtype=np.float64) / len(rows)
    for block in row_blocks(rows):
        centred = (features[block] - mean).astype(np.float32)
        covariance += centred.T @ centred / len(rows)
    return mean, covariance
