"""The model pass of a refresh: in rounds until the audit is content, resumable shard by shard."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gracekit.errors import RefreshStoppedError
from gracekit.progress import Progress
from gracekit.recipe import Recipe, RefreshSection
from gracekit.refresher.changes import as_changes
from gracekit.types import Bool, Float32, Json, Measurement, Reason, RefreshPlan, Rows
from gracekit.version.outcomes import Audit

if TYPE_CHECKING:
    from gracekit.protocols import Executor
    from gracekit.refresher.state import Known, Prediction
    from gracekit.store import ShardFiles

logger = logging.getLogger(__name__)


LEAST_PROBE = 10
"""Probe rows below which no audit is made."""
_PROBE_PARTS = 5
"""In which the probe's importance is foretold."""
_START = 0.8
"""Of what the last refresh needed, to start with."""
_MOST_OF_THE_WAY, _NEAR = 0.8, 0.02
"""Share of the missing rows that a round adds, unless they are but this share of all."""
_LEAST_STEP = 0.005
"""Of all rows, that a round adds: each costs a propagation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the model pass gave."""

    plan: RefreshPlan
    measurement: Measurement
    """Of the plan's rows, in their order."""
    prediction: Prediction | None
    """What the measured rows tell of the others; None when everything was measured by plan."""
    audit: Audit | None
    """None when everything was measured by plan, or the probe is too small."""
    facts: Json
    """For the manifest header."""


class MeasuredRows:
    """Rows measured under one checkpoint, those of a killed run included: none is measured twice.

    Args:
        executor: Runs the model.
        shards: Where finished shards are kept until the version is committed.
        present: [n] rows of the store that are in the data.
        progress: Told of the pass; ends it after the batch in progress.
        earlier: Losses that some scores are compared with (see `changes`).
    """

    def __init__(
        self,
        executor: Executor,
        shards: ShardFiles,
        present: Bool,
        progress: Progress | None = None,
        earlier: dict[str, Float32] | None = None,
    ) -> None:
        self._earlier = earlier or {}
        self._executor = executor
        self._shards = shards
        self._progress = progress or Progress()
        self.present = present
        self.num_rows = int(present.sum())
        """Of the data."""
        self._parts = shards.load()
        self._place = np.full(len(present), -1, np.int64)
        """row -> position in the concatenated parts; -1: not measured."""
        self._num_done = 0
        for part in self._parts:
            self._note(part)
        self.num_resumed = self._num_done
        self.model_pass_s = 0.0
        if self.num_resumed:
            logger.info("going on from %d rows of an earlier run", self.num_resumed)

    def take(self, rows: Rows) -> Measurement:
        """Measure the rows that are not measured yet; returns all of them in the given order.

        Raises `RefreshStoppedError` when a stop was asked for.
        """
        started = time.perf_counter()
        missing = rows[self._place[rows] < 0]
        if len(missing):
            for shard in self._executor.measure(missing, self._progress):
                self._shards.save(shard)
                self._parts.append(shard)
                self._note(shard)
            if self._progress.is_stopping:
                raise RefreshStoppedError(
                    f"stopped after {self._num_done} of the rows to measure; the next start "
                    "goes on from them, and the last published version is unchanged"
                )
        self.model_pass_s += time.perf_counter() - started
        self._parts = [Measurement.concatenate(self._parts)]
        return as_changes(self._parts[0].take(self._place[rows]), self._earlier)

    def _note(self, shard: Measurement) -> None:
        self._place[shard.rows] = self._num_done + np.arange(len(shard.rows))
        self._num_done += len(shard.rows)


def measure(recipe: Recipe, known: Known | None, run: MeasuredRows, *, step: int) -> Evidence:
    """Measure what the plan says, audit, and measure more while the audit misses the target.

    The first round measures a little less than the last refresh needed (at least `min_fraction`),
    each further one at most twice as many, up to `max_fraction`; everything, when the audit is then
    still below `full_below`. The probe is drawn once; what the plan has not picked of it since is
    probe in every round.

    Args:
        recipe: All settings.
        known: The last version; None measures everything.
        run: The model pass.
        step: Of the checkpoint.
    """
    from gracekit.refresher.state import predict
    from gracekit.staleness import full_plan, plan_rows

    settings = recipe.refresh
    if known is None or is_full(settings, known):
        everything = full_plan(run.present)
        return Evidence(
            plan=everything,
            measurement=run.take(everything.rows),
            prediction=None,
            audit=None,
            facts=_facts(everything, run, rounds=1, num_since_full=0, next_budget=0),
        )
    n = run.num_rows
    least, limit, num_probe = budgets(settings, n, known.num_never)
    budget, most = min(max(least, known.next_budget), limit), limit
    plan: RefreshPlan | None = None
    rounds = 0
    while True:
        num_before = 0 if plan is None else len(plan.rows)
        plan = plan_rows(
            settings,
            scores=known.scores,
            graph=known.graph,
            values=known.values[recipe.scoring.importance],
            measurable=known.samples.num_response_tokens > 0,
            step=step,
            budget=budget,
            num_probe=num_probe,
            before=plan,
            seed=recipe.seed,
        )
        rounds += 1
        num_planned = len(plan.rows)
        measurement = run.take(plan.rows)
        prediction = predict(recipe, known, measurement, step=step)
        audit = audit_probe(recipe, known, plan, measurement, prediction, rounds=rounds)
        if audit is not None:
            logger.info(
                "audit of %d rows after measuring %d: rank correlation %.2f on the others, "
                "%.2f over all (stale %.2f, target %.2f)",
                audit.num_probe, num_planned, audit.rank_correlation, audit.rank_correlation_all,
                audit.rank_correlation_stale, audit.target,
            )  # fmt: skip
            if most <= num_planned < n and audit.rank_correlation < settings.full_below:
                logger.info(
                    "that is below refresh.full_below (%.2f): measuring everything",
                    settings.full_below,
                )
                most = n
        is_enough = audit is None or audit.target_met
        if audit is None or is_enough or num_planned >= most or num_planned == num_before:
            is_known = plan.reasons != Reason.NEVER_MEASURED
            num_left = known.num_never - int((~is_known).sum())
            if num_left:
                logger.info(
                    "%d new samples are not measured yet, refresh.max_fraction is used up: later "
                    "refreshes do (all at once with refresh.new_samples: all)", num_left,
                )  # fmt: skip
            return Evidence(
                plan=plan,
                measurement=measurement,
                prediction=prediction,
                audit=audit,
                facts=_facts(
                    plan,
                    run,
                    rounds=rounds,
                    num_since_full=0 if num_planned >= n else known.num_since_full + 1,
                    next_budget=next_start(audit, int(is_known.sum()), n),
                ),
            )
        budget = n if num_planned >= limit else min(next_round(audit, n), limit)


def next_round(audit: Audit, num_rows: int) -> int:
    """Rows to measure in all in the next round.

    With more measured the others will be better predicted. So it goes most of the way to what is
    needed now, all of it when that is near, and never to more than twice as many as so far.
    """
    missing = _needed_share(audit, num_rows) * num_rows - audit.num_measured
    if missing > _NEAR * num_rows:
        missing *= _MOST_OF_THE_WAY
    wanted = audit.num_measured + math.ceil(max(missing, _LEAST_STEP * num_rows))
    return min(wanted, 2 * audit.num_measured, num_rows)


def next_start(audit: Audit | None, num_measured: int, num_rows: int) -> int:
    """Rows with which the next refresh should start, given what this one needed.

    Somewhat less: training mostly slows down, and a further round costs no model pass. Never more
    than half of all, so that a run that slows down at once is noticed.
    """
    if audit is None:
        needed = float(num_measured)
    elif audit.num_measured >= num_rows:  # it says nothing of fewer
        needed = float(num_rows)
    else:
        needed = _needed_share(audit, num_rows) * num_rows
    return min(math.ceil(_START * needed), num_rows // 2)


def _needed_share(audit: Audit, num_rows: int) -> float:
    """Share of all rows that reaches the target if the others are foretold no better then."""
    missing = 1 - audit.rank_correlation_all
    unmeasured = 1 - audit.num_measured / num_rows
    allowed = 1 - audit.target
    return max(0.0, 1 - allowed * unmeasured / missing) if missing > 0 else 0.0


def audit_probe(
    recipe: Recipe, known: Known, plan: RefreshPlan, measurement: Measurement,
    prediction: Prediction, *, rounds: int,
) -> Audit | None:  # fmt: skip
    """Compare the audited rows as they were measured with what the others say of them.

    Each of them is held out in turn while the propagation is fitted (in folds), so they serve as
    evidence all the same. Audited are the measured rows that were drawn uniformly: the probe, and
    all rows that the plan `random` picked. None with fewer than `LEAST_PROBE` of them: a rank
    correlation of so few says nothing.
    """
    from gracekit.audit import audit

    name = recipe.scoring.importance
    foretold = prediction.scores.held_out[name]
    drawn = plan.reasons == Reason.PROBE
    if recipe.refresh.plan == "random":
        drawn |= plan.reasons == Reason.PRIORITY
    probe = drawn & measurement.valid & np.isfinite(foretold)
    rows = measurement.rows[probe]
    if len(rows) < LEAST_PROBE:
        return None
    # What selection uses is importance, a rank among all rows: so that is what is compared.
    values = prediction.scores.values[name]
    has_score = known.scores.usable.copy()
    has_score[plan.rows] = True
    measured = known.importance_of(values, recipe.scoring)
    predicted = np.empty(len(rows), np.float32)
    # A few at a time: what is foretold ranks among measured rows as well, as it will in use.
    for first in range(_PROBE_PARTS):
        part = slice(first, None, _PROBE_PARTS)
        without = values.copy()
        without[rows[part]] = foretold[probe][part]
        predicted[part] = known.importance_of(without, recipe.scoring)[rows[part]]
    held = np.isin(prediction.features.held_out_rows, rows)
    of_held = prediction.features.held_out_rows[held]
    place = np.argsort(measurement.rows)
    place = place[np.searchsorted(measurement.rows, of_held, sorter=place)]
    return audit(
        predicted=predicted,
        measured=measured[rows],
        stale=known.importance_of(known.values[name], recipe.scoring)[rows],
        predicted_features=prediction.features.held_out[held],
        measured_features=measurement.features[place].astype(np.float32),
        stale_features=known.features[of_held],
        centre=measurement.features[measurement.valid].astype(np.float32).mean(axis=0),
        variance=float(measured[np.isfinite(values)].var(dtype=np.float64)),
        calibration=prediction.scores.calibration[name],
        num_measured=len(plan.rows),
        num_rows=int(has_score.sum()),
        target=recipe.refresh.target_rank_correlation,
        rounds=rounds,
    )


def is_full(settings: RefreshSection, known: Known) -> bool:
    """Whether this refresh measures everything by count, or because its budget covers it."""
    by_count = settings.full_every > 0 and known.num_since_full + 1 >= settings.full_every
    num_rows = int(known.samples.present.sum())
    return by_count or budgets(settings, num_rows, known.num_never)[0] >= num_rows


def budgets(settings: RefreshSection, num_rows: int, num_never: int) -> tuple[int, int, int]:
    """Rows measured at least and at most, and how many of the least are the probe.

    The probe never takes more than half of what is measured at least without the rows that were
    never measured. These come on top of both (`new_samples: all`), or raise the least as far as
    the most allows.
    """
    least = min(num_rows, math.ceil(settings.min_fraction * num_rows))
    most = min(num_rows, max(least, math.ceil(settings.max_fraction * num_rows)))
    probe = max(settings.min_probe, math.ceil(settings.probe_fraction * num_rows))
    probe = min(probe, least // 2)
    if settings.new_samples == "all":
        least, most = min(least + num_never, num_rows), min(most + num_never, num_rows)
    elif num_never:
        least = min(max(least, num_never + probe), most)
    return least, most, probe


def _facts(
    plan: RefreshPlan, run: MeasuredRows, *, rounds: int, num_since_full: int, next_budget: int
) -> Json:
    return {
        "num_rows": run.num_rows,
        "num_measured": len(plan.rows),
        "num_probe": len(plan.probe_rows),
        "num_resumed": run.num_resumed,
        "rounds": rounds,
        "num_since_full": num_since_full,
        "next_budget": next_budget,
    }
