"""Kernel ridge regression of the change: rows that are alike in what is known of them change alike.

The mean of a Gaussian process around a line over the row's own old score. Its kernel has three
parts: exp(-½ distance) of the covariates, exp(-distance) of the directions of the features, and,
smaller, a line over all covariates. With many measured rows it works in the span of some of them,
the landmarks.

Shapes: `n` rows, `m` measured rows, `r` landmarks, `c` covariates, `d` features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.propagation.levels import Line, OwnScore, fit_line
from gracekit.rounding import unrounded
from gracekit.types import Directions, Float32, Float64, Int64, Rows

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Variance of what a row keeps for itself, relative to that of each part of the kernel."""
_LINE = np.float32(0.3)
"""Size of the line beside the other two parts; benchmarks/drift.py hardly tells 0.3 from 1."""
_LEAST_LANDMARKS, _MOST_LANDMARKS = 500, 1500
_KERNEL_SIZE = 3e8
"""n x landmarks stays below it where it can: all of it is evaluated once."""
_JITTER = 1e-3
"""Added to the landmarks' own kernel: duplicates differ in the last digits only."""
_BLOCK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFit:
    """What was fitted for one score."""

    own: int
    """Column of the inputs with the score's old values."""
    line: Line
    """Over the own old values."""
    weights: Float64
    """[r] of the landmarks."""


class Kernel:
    """The rows as the kernel sees them.

    Args:
        inputs: [n, c] covariates, finite.
        directions: [n, d] of length 1, or 0 where a row has none.
        rows: [m] measured rows.
        fold: [m] in which fold each of them is held out.
        rng: draws the landmarks.
    """

    def __init__(
        self,
        inputs: Float32,
        directions: Directions,
        rows: Rows,
        fold: Int64,
        rng: np.random.Generator,
    ) -> None:
        at = inputs[rows]
        mean, spread = at.mean(axis=0, dtype=np.float64), at.std(axis=0, dtype=np.float64)
        varies = spread > 1e-6 * (1 + np.abs(mean))
        self._varies, self._mean = varies, mean[varies]
        self._spread, self._scale = spread[varies], spread[varies] * np.sqrt(max(varies.sum(), 1))
        self._lowest, self._highest = at[:, varies].min(axis=0), at[:, varies].max(axis=0)
        self._inputs, self._directions, self._rows = inputs, directions, rows

        most = int(np.clip(_KERNEL_SIZE / len(inputs), _LEAST_LANDMARKS, _MOST_LANDMARKS))
        chosen = np.arange(len(rows))
        if len(rows) > most:
            chosen = np.sort(rng.choice(len(rows), most, replace=False))
        self._landmarks = chosen
        """[r] their positions among the measured rows"""
        self._of_landmarks = self._standardised(rows[chosen])
        alike, line = self._kernel_to_landmarks(rows)
        self._measured = (alike + line).astype(np.float64)
        """[m, r]"""
        alike[chosen, np.arange(len(chosen))] = 0
        self.near_others: Float32 = alike.max(axis=1) / 2
        """[m] how near each measured row is to the nearest landmark that is not the row itself."""
        self._fold = fold
        self._grams: dict[int, Float64] = {}
        """fold -> [r, r] of the measured rows in it; all scores share them."""
        self._axes: tuple[Float64, Float64] | None = None

    def penalty_for(self, change: Float64, own: int) -> float:
        """The penalty [of PENALTIES] under which each landmark is best predicted by the others.

        Exact leave-one-out errors of what a line leaves: ((K + λI)⁻¹ y)_i / (K + λI)⁻¹_ii.

        Args:
            change: [m] of one score.
            own: column of the inputs with that score's old values.
        """
        at_own = self._own_old_values(self._rows, own)
        left = (change - fit_line(change, at_own)(at_own))[self._landmarks]
        if self._axes is None:
            self._axes = np.linalg.eigh(self._measured[self._landmarks])
        sizes, axes = self._axes
        along, square = axes.T @ left, axes**2

        def error(penalty: float) -> float:
            inverse = 1 / (sizes + penalty)
            return float(((axes @ (inverse * along) / (square @ inverse)) ** 2).mean())

        return min(PENALTIES, key=error)

    def fit(
        self, change: Float64, own: int, penalty: float, *, without: int | None = None
    ) -> KernelFit:
        """Fit on the measured rows, or on those outside of the fold `without`.

        Least squares in the span of the landmarks that are fitted on (subset of regressors); when
        all rows are landmarks it is kernel ridge regression.
        """
        kept = self._fold != without if without is not None else np.ones(len(change), bool)
        at_own = self._own_old_values(self._rows, own)
        line = fit_line(change[kept], at_own[kept])
        left = change - line(at_own)
        spanning = kept[self._landmarks]
        among = self._measured[np.ix_(self._landmarks[spanning], spanning)]
        system = self._gram(without)[np.ix_(spanning, spanning)]
        system += penalty * (among + _JITTER * np.eye(len(among)))
        weights = np.zeros(len(spanning))
        told = (np.where(kept, left, 0) @ self._measured)[spanning]
        weights[spanning] = np.linalg.solve(system, told)
        return KernelFit(own=own, line=line, weights=weights)

    def _gram(self, without: int | None) -> Float64:
        """[r, r] inner products of the landmarks' columns over the rows outside of a fold."""
        nothing: Float64 = np.zeros((len(self._landmarks),) * 2)
        for number in np.unique(self._fold).tolist() if not self._grams else ():
            rows, gram = np.flatnonzero(self._fold == number), nothing.copy()
            for start in range(0, len(rows), _BLOCK):
                at = self._measured[rows[start : start + _BLOCK]]
                gram += at.T @ at
            self._grams[number] = gram
        parts = (gram for number, gram in self._grams.items() if number != without)
        return sum(parts, nothing)

    def at_measured(self, fit: KernelFit) -> Float64:
        """[m] predictions at the measured rows."""
        line = fit.line(self._own_old_values(self._rows, fit.own))
        return line + self._measured @ fit.weights

    def everywhere(self, fits: list[KernelFit]) -> tuple[list[Float64], Float32]:
        """Predictions of every row [n] by each fit, and how near the nearest landmark is [n], 0 to
        1. The kernel between rows and landmarks, which is what costs, is evaluated once.
        """
        n = len(self._inputs)
        predicted: list[Float64] = [np.empty(n) for _ in fits]
        near = np.empty(n, np.float32)
        for start in range(0, n, _BLOCK) if fits else ():
            block = np.arange(start, min(start + _BLOCK, n))
            alike, line = self._kernel_to_landmarks(block)
            near[block] = alike.max(axis=1) / 2
            kernel = np.add(alike, line, out=line)
            for fit, values in zip(fits, predicted, strict=True):
                values[block] = kernel @ fit.weights.astype(np.float32)
                values[block] += fit.line(self._own_old_values(block, fit.own))
        return predicted, near

    def _own_old_values(self, rows: Rows, own: int) -> Float64:
        """[rows] old values of a score as a line sees them."""
        return OwnScore.of(self._inputs[self._rows, own])(self._inputs[rows, own])

    def _standardised(self, rows: Rows) -> tuple[Float32, Float32]:
        """Covariates with mean square distance 2, kept inside what was seen; and directions."""
        seen = np.clip(self._inputs[rows][:, self._varies], self._lowest, self._highest)
        standard: Float32 = ((seen - self._mean) / self._scale).astype(np.float32)
        return standard, unrounded(self._directions[rows])

    def _kernel_to_landmarks(self, rows: Rows) -> tuple[Float32, Float32]:
        """[rows, r] between rows and landmarks: what falls with distance, and the line."""
        inputs, directions = self._standardised(rows)
        to_inputs, to_directions = self._of_landmarks
        line = inputs @ to_inputs.T
        kernel = _distances(inputs, to_inputs, line)
        kernel *= np.float32(-0.5)
        np.exp(kernel, out=kernel)
        turned = _distances(directions, to_directions, directions @ to_directions.T)
        np.negative(turned, out=turned)
        kernel += np.exp(turned, out=turned)
        return kernel, _LINE * line


def _distances(a: Float32, b: Float32, products: Float32) -> Float32:
    """Euclidean distances [a, b] from the inner products."""
    square = products * np.float32(-2)
    square += np.einsum("ij,ij->i", a, a)[:, None]
    square += np.einsum("ij,ij->i", b, b)
    np.maximum(square, 0, out=square)
    distances: Float32 = np.sqrt(square, out=square)
    return distances
