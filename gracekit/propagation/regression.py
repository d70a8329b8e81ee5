"""A small ridge regression from what is known of every row to the change of its score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.types import Float32, Float64

_BLOCK = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """intercept + Σ coefficients · x, with x kept inside what was seen: no extrapolation."""

    intercept: float
    coefficients: Float64
    lowest: Float32
    highest: Float32

    @staticmethod
    def zero() -> Linear:
        """No inputs, and 0 for every row."""
        none = np.zeros(0, np.float32)
        return Linear(
            intercept=0.0, coefficients=none.astype(np.float64), lowest=none, highest=none
        )

    def predict(self, inputs: Float32) -> Float64:
        """[n] predictions for inputs [n, p]."""
        predicted = np.empty(len(inputs))
        for start in range(0, len(inputs), _BLOCK):
            block = np.clip(inputs[start : start + _BLOCK], self.lowest, self.highest)
            predicted[start : start + _BLOCK] = self.intercept + block @ self.coefficients
        return predicted


def fit_ridge(inputs: Float32, target: Float64, *, penalty: float) -> Linear:
    """Least squares with a penalty on standardised coefficients, none on the intercept.

    Args:
        inputs: [m, p]; constant columns get coefficient 0.
        target: [m]
        penalty: 0 or more; 10 weighs like ten further rows that say "no effect".
    """
    mean = inputs.mean(axis=0, dtype=np.float64)
    spread = inputs.std(axis=0, dtype=np.float64)
    varies = spread > 1e-6 * (1 + np.abs(mean))
    standard = (inputs[:, varies] - mean[varies]) / spread[varies]
    gram = standard.T @ standard + (penalty + 1e-9 * len(inputs)) * np.eye(int(varies.sum()))
    coefficients = np.zeros(inputs.shape[1])
    coefficients[varies] = np.linalg.solve(gram, standard.T @ (target - target.mean()))
    coefficients[varies] /= spread[varies]
    return Linear(
        intercept=float(target.mean() - mean @ coefficients),
        coefficients=coefficients,
        lowest=inputs.min(axis=0),
        highest=inputs.max(axis=0),
    )
