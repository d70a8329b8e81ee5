"""The rounds of a refresh: plan, measure, carry over, audit, and again while the audit misses."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gracekit.propagation import (
    CarriedFeatures,
    FeatureEstimate,
    Propagated,
    estimate_features,
    propagate_scores,
)
from gracekit.recipe import Recipe
from gracekit.refresher.auditing import audit_refresh
from gracekit.refresher.budget import FirstPlan, next_round, plan_round
from gracekit.refresher.last import LastRefresh
from gracekit.types import MeasuredTarget, Measurement, RefreshPlan, Rows
from gracekit.version.outcomes import Audit, Meter

logger = logging.getLogger(__name__)


class Measure(Protocol):
    """Measures rows under one checkpoint."""

    def __call__(self, rows: Rows) -> Measurement:
        """The given distinct rows, in their order; rows of earlier calls are among them."""
        ...

    def look(self, rows: Rows) -> NDArray[np.float16]:
        """[rows, d] the features alone of distinct rows, by as little of the pass as they need."""
        ...

    def finish(self) -> MeasuredTarget | None:
        """No more rows are asked for: the model may go.

        Returns what it says of the target set; None without one.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the rounds of measuring gave."""

    plan: RefreshPlan
    """The rows of all rounds together."""
    measurement: Measurement
    """Of the plan's rows, in their order."""
    scores: Propagated | None = None
    """What the measured rows say of all, in working values; None when everything was measured by
    plan."""
    features: CarriedFeatures | None = None
    """The features of all rows; None with `scores`, and before the last round is over."""
    audit: Audit | None = None
    """None when everything was measured by plan, or too few rows were drawn uniformly."""
    meter: Meter | None = None
    """What a draw by these scores is worth; None when everything was measured by plan."""
    rounds: int = 1


def measure_in_rounds(
    first: FirstPlan,
    last: LastRefresh | None,
    measure: Measure,
    recipe: Recipe,
    *,
    step: int,
    meter_of: Callable[[Measured], Meter],
) -> Measured:
    """Measure what the plan says, audit, and measure more while what is found misses the target.

    Each round measures at most twice as many rows as the one before it, up to `max_fraction`; all
    rows, when the audit is then still below `full_below` and they may be. The probe is drawn once;
    what the plan has not picked of it since is probe in every round. The target is the share of
    what perfect norms would gain (`refresh.target_value`), and a rank correlation where the recipe
    asks for one.

    Args:
        first: The first round, and how far later ones may go.
        last: The last refresh, or what a first version starts from; None where everything is
            measured first.
        measure: Measures rows.
        recipe: All settings.
        step: Training step of the checkpoint.
        meter_of: What a draw would be worth by what was measured so far.
    """
    if last is None or first.is_full:
        return Measured(plan=first.plan, measurement=measure(first.plan.rows))
    settings, n = recipe.refresh, first.num_rows
    plan, most = first.plan, first.limit
    rounds, num_before = 0, 0
    while True:
        rounds += 1
        num_planned = len(plan.rows)
        measurement = measure(plan.rows)
        scores, features = _propagate(recipe, last, measurement, step=step)
        audit = audit_refresh(recipe, last, plan, measurement, scores, features, rounds=rounds)
        if audit is not None:
            _log_audit(audit, num_planned)
            is_poor = audit.rank_correlation < settings.full_below
            if most <= num_planned < first.most and is_poor:
                logger.info(
                    "that is below refresh.full_below (%.2f): measuring everything",
                    settings.full_below,
                )
                most = first.most
        measured = Measured(
            plan=plan,
            measurement=measurement,
            scores=scores,
            audit=audit,
            rounds=rounds,
        )
        meter = meter_of(measured)
        measured = dataclasses.replace(measured, meter=meter)
        _log_meter(meter)
        is_met = meter.target_met is not False and (audit is None or audit.target_met)
        if is_met or audit is None or num_planned in (num_before, n) or num_planned >= most:
            return dataclasses.replace(measured, features=features.carried())
        num_before = num_planned
        budget = most if num_planned >= first.limit else min(next_round(audit, n, meter), most)
        plan = plan_round(last, recipe, plan, budget=budget, step=step)


def nothing_measured(first: FirstPlan, last: LastRefresh | None, recipe: Recipe) -> Measured:
    """No row is measured: all is known that is known already."""
    width = 1 if last is None else last.features.shape[1]
    logger.warning(
        "refresh.max_cost allows no measuring at this checkpoint: %s",
        "all samples are drawn alike; so short a training needs a larger share for a first look"
        if last is None
        else "the draw goes on with the scores that are known",
    )
    nobody = np.zeros(0, np.int64)
    empty = Measurement(
        rows=nobody,
        scores={name: np.zeros(0, np.float32) for name in recipe.scoring.scores},
        features=np.zeros((0, width), np.float16),
    )
    return Measured(plan=first.plan, measurement=empty)


def _propagate(
    recipe: Recipe, last: LastRefresh, measurement: Measurement, *, step: int
) -> tuple[Propagated, FeatureEstimate]:
    """Scores of all rows, given those of the measured ones, and how their features follow.

    Features of all rows are made once, after the last round: they are large.
    """
    settings, valid = recipe.propagation, measurement.valid
    scores = propagate_scores(
        settings.rule,
        old=last.values,
        measured_rows=measurement.rows,
        new=last.working(measurement),
        covariates=last.covariates(step),
        seen=last.seen(),
        directions=last.index.unit,
        graph=last.graph,
        usable=last.scores.usable,
        settings=settings,
        seed=recipe.seed,
        groups=last.samples.groups,
    )
    features = estimate_features(
        old=last.features,
        measured_rows=measurement.rows[valid],
        new=measurement.features[valid],
        graph=last.graph,
        usable=last.valid,
        settings=settings,
        seed=recipe.seed,
    )
    return scores, features


def _log_audit(audit: Audit, num_measured: int) -> None:
    asked = "" if math.isnan(audit.target) else f", target {audit.target:.2f}"
    logger.info(
        "audit of %d rows after measuring %d: rank correlation %.2f on the others, "
        "%.2f over all (stale %.2f%s)",
        audit.num_probe,
        num_measured,
        audit.rank_correlation,
        audit.rank_correlation_all,
        audit.rank_correlation_stale,
        asked,
    )


def _log_meter(meter: Meter) -> None:
    if meter.no_gain:
        logger.info(
            "a draw by norms: with perfect norms 1,000 samples would be worth %.0f random ones "
            "(%.0f to %.0f); %s",
            1000 * meter.best,
            1000 * meter.best_low,
            1000 * meter.best_high,
            meter.no_gain,
        )
    elif meter.can_gain:
        logger.info(
            "a draw by norms: 1,000 samples are worth %.0f random ones (%.0f to %.0f), with "
            "perfect norms %.0f: %.0f %% of the gain is kept (target %.0f %%)",
            1000 * meter.value,
            1000 * meter.value_low,
            1000 * meter.value_high,
            1000 * meter.best,
            100 * meter.value_kept,
            100 * meter.target,
        )
