"""What is known of each row of a version, to be joined to the user's rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gracekit.store import Store
from gracekit.types import Origin, Rows


def score_columns(store: Store, version: int, rows: Rows) -> dict[str, NDArray[Any]]:
    """Name -> [m] value of each of the given rows of the store.

    These are the scores as the recipe names them (`loss`, `gradient-norm`), `importance`, `origin`
    (measured, propagated ...), `measured_step` (-1: never), `confidence`, and where the version was
    drawn with known probabilities `probability`. A score is NaN where it is not known.

    Raises:
        VersionNotFoundError, StoreFormatError: The scores of the version cannot be read.
    """
    scores, drawn = store.scores(version), store.drawn(version)
    origins = np.array([origin.name.lower() for origin in Origin], object)
    found: dict[str, NDArray[Any]] = {name: v[rows] for name, v in scores.scores.items()}
    found |= {
        "importance": scores.importance[rows],
        "origin": origins[scores.origin[rows]],
        "measured_step": scores.measured_step[rows],
        "confidence": scores.confidence[rows],
    }
    if drawn is not None and drawn.draw is not None:
        found["probability"] = drawn.draw.probabilities[rows]
    return found
