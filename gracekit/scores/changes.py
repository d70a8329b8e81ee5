"""Scores that compare a row's loss now with an earlier measurement of it."""

from __future__ import annotations

import dataclasses

import numpy as np

from gracekit.types import Float32, Measurement

COMPARED = "loss"
"""The score that changes are taken of."""


def as_changes(measurement: Measurement, earlier: dict[str, Float32]) -> Measurement:
    """The measurement with each compared score as now less before; 0 for a row without before.

    Args:
        measurement: As the model pass gives it: compared scores are the loss as it is now.
        earlier: Compared score -> [n] loss to compare with; NaN for rows never measured.
    """
    if not earlier:
        return measurement
    scores = dict(measurement.scores)
    for name, losses in earlier.items():
        before = losses[measurement.rows]
        now = scores[name]
        scores[name] = np.where(np.isnan(before), now - now, now - before).astype(np.float32)
    return dataclasses.replace(measurement, scores=scores)
