"""Ridge regression of the change over what the trainer saw of each row's loss.

Some tens of measured rows tell how scores go with one or two numbers, where a kernel regression
over all that is known learns nothing.

Shapes: `m` measured rows, `c` covariates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.types import Float32, Float64, Rows

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""In units of m, the sum of squares of a standardised covariate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeFit:
    """What was fitted; a call gives the predictions [rows] of covariates [rows, c]."""

    used: Rows
    """Covariates that vary among the measured rows."""
    mean: Float64
    spread: Float64
    lowest: Float64
    highest: Float64
    intercept: float
    weights: Float64

    def __call__(self, covariates: Float32) -> Float64:
        """Outside of what was seen of a covariate the line goes on level."""
        seen = np.clip(covariates[:, self.used].astype(np.float64), self.lowest, self.highest)
        predicted: Float64 = self.intercept + (seen - self.mean) / self.spread @ self.weights
        return predicted


def fit_ridge(change: Float64, covariates: Float32) -> RidgeFit:
    """Least squares of the change [m], with the penalty under which each row is best predicted by
    the others.

    Exact leave-one-out errors from one decomposition X = U S Vᵀ of the standardised covariates:
    with H = U S²/(S² + λ) Uᵀ + 1/m they are (y - H y)_i / (1 - H_ii).

    Args:
        change: [m] at least two.
        covariates: [m, c] finite.
    """
    at = covariates.astype(np.float64)
    mean, spread = at.mean(axis=0), at.std(axis=0)
    used = np.flatnonzero(spread > 1e-6 * (1 + np.abs(mean)))
    at, mean, spread = at[:, used], mean[used], spread[used]
    m, intercept = len(change), float(change.mean())
    left, sizes, right = np.linalg.svd((at - mean) / spread, full_matrices=False)
    square, along = sizes**2, left.T @ (change - intercept)

    def error(penalty: float) -> float:
        share = square / (square + penalty * m)
        fitted = left @ (share * along)
        leverage = (left**2) @ share + 1 / m
        return float((((change - intercept - fitted) / np.maximum(1 - leverage, 1e-6)) ** 2).mean())

    penalty = min(PENALTIES, key=error) * m
    weights: Float64 = right.T @ (sizes / (square + penalty) * along)
    return RidgeFit(
        used=used,
        mean=mean,
        spread=spread,
        lowest=at.min(axis=0),
        highest=at.max(axis=0),
        intercept=intercept,
        weights=weights,
    )
