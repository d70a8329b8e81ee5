"""What a signal is worth on this target, measured: the first-order fall of the target's loss.

A step on row i lowers the target's loss, to first order, by the inner product of both gradients. A
signal chooses rows; the mean over its choice of the cosine of row and target, less the mean over
all rows, says how much better than chance the choice is. One row's cosine is mostly noise, but the
mean of many is not. What all rows have in common, which random rows teach as well, is taken off
both gradients first.

It is told by rows drawn at random, and by target samples that the signal has not seen: the target
set is split in two, each half chooses, and the other judges. What a row says of itself is left out
of its own signal. A choice may be good today and spent tomorrow. So at a later checkpoint the
choice of *before* is judged once more, by the gradients of *now*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gracekit.aim.places import chosen
from gracekit.types import Float32, Float64

WIDTHS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""Shares of the rows that a signal may choose."""
PLAIN_WIDTH = 0.3
"""The share where nothing tells a better one."""
LEAST_ROWS = 30
"""Measured rows that tell the gain of a choice; of fewer nothing is claimed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Of one signal."""

    gain: float
    """Mean cosine with the target of the rows that it chooses, less that of all."""
    error: float
    """Its standard error, over rows."""
    width: float
    """The share of the rows that it chooses."""
    lasts: float = 1.0
    """Share of its gain at the checkpoint before that its choice of then has now, 0 to 1."""

    @property
    def counts(self) -> float:
        """The gain that the mix goes by: what lasts, and is more than its error; at least 0."""
        return max(0.0, self.gain - self.error) * self.lasts


def choice_gain(signal: Float32, worth: Float32, width: float) -> tuple[float, float]:
    """Mean worth of the best rows by a signal less that of all, and the standard error.

    Args:
        signal: [m]
        worth: [m]
        width: The share that is chosen, at least one row; equal rows share what is left.
    """
    weights = chosen(signal, np.ones(len(signal), np.bool_), width).astype(np.float64)
    mean = float(np.average(worth, weights=weights))
    spread = math.sqrt(float(np.average((worth - mean) ** 2, weights=weights)))
    count = weights.sum() ** 2 / np.square(weights).sum()
    error = spread * math.sqrt(max(0.0, 1 / count - 1 / len(signal)))
    return mean - float(worth.mean(dtype=np.float64)), error


def best_width(gains: dict[float, tuple[float, float]]) -> float:
    """The share of the rows at which gain · √share is largest, if that is more than noise.

    A signal that knows exactly which share of the rows is of use has the same gain up to that
    share, and beyond it one that falls as 1 / share: there the product is largest.

    Args:
        gains: Share -> gain and its standard error.
    """
    plain, error = gains[PLAIN_WIDTH]
    value = {width: gain * math.sqrt(width) for width, (gain, _) in gains.items()}
    best = max(value, key=value.__getitem__)
    noise = math.sqrt(PLAIN_WIDTH) * error
    return best if value[best] > plain * math.sqrt(PLAIN_WIDTH) + noise else PLAIN_WIDTH


def gain_of(signals: tuple[Float32, ...], worths: tuple[Float32, ...], width: float | None) -> Gain:
    """The gain of a signal, mean over the halves of the target set.

    Args:
        signals: For each half, [m] the signal that it gives the measured rows.
        worths: For each, [m] the cosines of the rows with the half that judges it.
        width: The share that is chosen; None: as it is best.
    """
    curve = {}
    for share in WIDTHS if width is None else (width,):
        found = [
            choice_gain(signal, worth, share) for signal, worth in zip(signals, worths, strict=True)
        ]
        means: Float64 = np.mean(found, axis=0)
        curve[share] = float(means[0]), float(means[1])
    best = best_width(curve) if width is None else width
    return Gain(gain=curve[best][0], error=curve[best][1], width=best)


def pooled(now: Gain, before: Gain, forgetting: float) -> Gain:
    """Both together, each by what its error says, the earlier one by less; the width of now."""
    weights = 1 / max(now.error, 1e-9) ** 2, forgetting / max(before.error, 1e-9) ** 2
    in_all = sum(weights)
    gain = (weights[0] * now.gain + weights[1] * before.gain) / in_all
    return Gain(gain=gain, error=1 / math.sqrt(in_all), width=now.width, lasts=before.lasts)


def lasting_share(before: float, again: float, error: float) -> float:
    """Share of a gain that is left, given the benefit of a doubt of one standard error."""
    if not before > 0:
        return 1.0
    return float(min(1.0, max(0.0, (again + error) / before)))
