"""The audit of a refresh: rows that were drawn uniformly, as measured and as the others say.

What the audit is held to where the recipe says so, `refresh.target_rank_correlation`, is in
`Audit.target` and `Audit.target_met`, and what a miss leads to in `budget.next_round`. The first
thing that a refresh is held to is the value of its draw (`metering`).
"""

from __future__ import annotations

import math

import numpy as np

from gracekit.audit import audit
from gracekit.propagation import FeatureEstimate, Propagated
from gracekit.recipe import Recipe
from gracekit.refresher.last import LastRefresh
from gracekit.scores.importance import working_importance
from gracekit.types import Bool, Measurement, Reason, RefreshPlan
from gracekit.version.outcomes import Audit

LEAST_PROBE = 10
"""Rows below which no audit is made: a rank correlation of so few says nothing."""
_PROBE_PARTS = 5
"""Parts in which the probe's importance is predicted."""


def audit_refresh(
    recipe: Recipe,
    last: LastRefresh,
    plan: RefreshPlan,
    measurement: Measurement,
    scores: Propagated,
    features: FeatureEstimate,
    *,
    rounds: int,
) -> Audit | None:
    """Compare the audited rows as they were measured with what the others say of them.

    Each of them is held out in turn while the propagation is fitted (in folds), so they serve as
    evidence all the same. Audited are the measured rows that were drawn uniformly: the probe, and
    all rows that the plan `random` picked. None with fewer than `LEAST_PROBE` of them.
    """
    name = recipe.scoring.importance
    held_out = scores.held_out[name]
    probe = drawn_uniformly(recipe, plan) & measurement.valid & np.isfinite(held_out)
    rows = measurement.rows[probe]
    if len(rows) < LEAST_PROBE:
        return None
    target = recipe.refresh.target_rank_correlation
    # What selection uses is importance, a rank among all rows: so that is what is compared.
    values, samples = scores.values[name], last.samples
    has_score = last.scores.usable.copy()
    has_score[plan.rows] = True
    # As it is published: what was carried over is spread out, a held-out row like the others.
    carried, stretch = has_score.copy(), scores.stretch[name]
    carried[plan.rows] = False
    measured = working_importance(values, samples, recipe.scoring, carried=carried, stretch=stretch)
    predicted = np.empty(len(rows), np.float32)
    # A few at a time: a predicted value ranks among measured rows as well, as it will in use.
    for first in range(_PROBE_PARTS):
        part = slice(first, None, _PROBE_PARTS)
        without = values.copy()
        without[rows[part]] = held_out[probe][part]
        is_carried = carried.copy()
        is_carried[rows[part]] = True
        predicted[part] = working_importance(
            without, samples, recipe.scoring, carried=is_carried, stretch=stretch
        )[rows[part]]
    is_audited = np.isin(features.held_out_rows, rows)
    audited = features.held_out_rows[is_audited]
    # Where each of them stands in the measurement, whose rows are in the plan's order.
    place = np.argsort(measurement.rows)
    place = place[np.searchsorted(measurement.rows, audited, sorter=place)]
    return audit(
        predicted=predicted,
        measured=measured[rows],
        stale=working_importance(last.values[name], samples, recipe.scoring)[rows],
        predicted_features=features.held_out[is_audited],
        measured_features=measurement.features[place].astype(np.float32),
        stale_features=last.features[audited].astype(np.float32),
        centre=measurement.features[measurement.valid].astype(np.float32).mean(axis=0),
        variance=float(measured[np.isfinite(values)].var(dtype=np.float64)),
        calibration=scores.calibration[name],
        num_measured=len(plan.rows),
        num_rows=int(has_score.sum()),
        target=math.nan if target is None else target,
        rounds=rounds,
    )


def drawn_uniformly(recipe: Recipe, plan: RefreshPlan) -> Bool:
    """[m] rows of the plan that chance alone chose: the probe, and all that `random` picked."""
    drawn: Bool = plan.reasons == Reason.PROBE
    if recipe.refresh.plan == "random":
        drawn = drawn | (plan.reasons == Reason.PRIORITY)
    return drawn
