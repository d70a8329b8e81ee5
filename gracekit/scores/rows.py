"""Scores and places of rows as the sample table grows and samples leave it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gracekit.types import Bool, Origin, Places, SampleTable, ScoreTable


def scores_for(scores: ScoreTable, samples: SampleTable, forgotten: Bool) -> ScoreTable:
    """Scores as they stand for a sample table that may have more rows.

    Args:
        scores: Of the first rows.
        samples: The table [n].
        forgotten: [n] rows of which the scores say nothing, those of no scores included. Where the
            sample was removed it stays known when it was measured last; others are never measured.
    """
    unmeasured = forgotten & samples.present
    origin = filled(scores.origin, Origin.NEVER, forgotten)
    origin[~samples.present] = Origin.REMOVED
    return ScoreTable(
        scores={name: filled(s, np.nan, forgotten) for name, s in scores.scores.items()},
        importance=filled(scores.importance, 0, forgotten),
        origin=origin,
        measured_step=filled(scores.measured_step, -1, unmeasured),
        measured_version=filled(scores.measured_version, 0, unmeasured),
        confidence=filled(scores.confidence, 0, forgotten),
    )


def places_without(places: Places, forgotten: Bool) -> Places:
    """The places of the rows that are known still; the others have those of plain rows."""
    return Places(
        factors={name: filled(factor, 1, forgotten) for name, factor in places.factors.items()},
        signals={name: filled(s, np.nan, forgotten) for name, s in places.signals.items()},
        copy_of=None if places.copy_of is None else filled(places.copy_of, -1, forgotten),
    )


def filled(values: NDArray[Any], fill: float, where: Bool) -> NDArray[Any]:
    """A copy [n, ...] of values [m, ...], m <= n, with `fill` beyond m and at `where` [n]."""
    new = np.full((len(where), *values.shape[1:]), fill, values.dtype)
    new[: len(values)] = values
    new[where] = fill
    return new
