"""The losses that a trainer saw, as they compare: training moves all of them as it goes on."""

from __future__ import annotations

import numpy as np

from gracekit.types import Float32, Float64, Int64, TrainedLosses

LEAST_TRAINED = 30
"""Rows with a loss below which no trend is told, and the losses are of no use."""
_STRETCH_ROWS, _MOST_STRETCHES = 50, 20
_SMALLEST = 1e-8
"""Losses below count as this: the log of 0 would drown everything else."""


def loss_beside_others(trained: TrainedLosses) -> Float32:
    """[n] log of each row's loss, less the trend at the step at which it was seen; 0 where unknown.

    The trend is a line through the medians of stretches of the training that saw equally many of
    the rows: robust to rows that are unlike the others, and it assumes no shape of the curve.
    """
    known = trained.known
    beside = np.zeros(len(trained), np.float32)
    if known.any():
        logs = np.log(np.maximum(trained.loss[known].astype(np.float64), _SMALLEST))
        beside[known] = logs - _trend(logs, trained.step[known])
    return beside


def _trend(values: Float64, steps: Int64) -> Float64:
    """[k] the level of the values around each one's step."""
    number = int(np.clip(len(values) // _STRETCH_ROWS, 1, _MOST_STRETCHES))
    stretches = np.array_split(np.argsort(steps, kind="stable"), number)
    places = [float(np.median(steps[rows])) for rows in stretches]
    levels = [float(np.median(values[rows])) for rows in stretches]
    at, which = np.unique(places, return_inverse=True)  # long stretches may be of one step
    mean = np.bincount(which, levels) / np.bincount(which)
    trend: Float64 = np.interp(steps, at, mean)
    return trend
