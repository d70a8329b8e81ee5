"""Scores that compare a row's loss now with an earlier measurement of it in the history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from gracekit.errors import VersionNotFoundError
from gracekit.types import Float32, Measurement, SampleTable

if TYPE_CHECKING:
    from gracekit.store import Store

COMPARED = "loss"
"""The score that changes are taken of."""


def earlier_losses(store: Store, samples: SampleTable, scores: Iterable[str]) -> dict[str, Float32]:
    """Score with `against` -> [n] loss to compare with; NaN for rows never measured.

    Only measured losses of the content that a row has now count, never propagated ones. Reads what
    was measured at every version, and nothing when no score asks for it.
    """
    from gracekit.model_pass.scorers import scorer_class

    against = {name: scorer_class(name).against for name in scores}
    against = {name: which for name, which in against.items() if which is not None}
    if not against:
        return {}
    first = np.full(len(samples), np.nan, np.float32)
    previous = first.copy()
    for version in store.all_versions():
        try:
            table = store.measurement(version)
        except VersionNotFoundError:
            continue  # a reselect
        if COMPARED not in table.column_names:
            continue
        rows, losses = table["row"].to_numpy(), table[COMPARED].to_numpy()
        known = np.isfinite(losses) & (samples.content_versions[rows] <= version)
        rows, losses = rows[known], losses[known].astype(np.float32)
        previous[rows] = losses
        is_new = np.isnan(first[rows])
        first[rows[is_new]] = losses[is_new]
    return {name: first if which == "first" else previous for name, which in against.items()}


def as_changes(measurement: Measurement, earlier: dict[str, Float32]) -> Measurement:
    """The measurement with each compared score as now less before; 0 for a row without before."""
    if not earlier:
        return measurement
    scores = dict(measurement.scores)
    for name, losses in earlier.items():
        before = losses[measurement.rows]
        now = scores[name]
        scores[name] = np.where(np.isnan(before), now - now, now - before).astype(np.float32)
    return Measurement(rows=measurement.rows, scores=scores, features=measurement.features)
