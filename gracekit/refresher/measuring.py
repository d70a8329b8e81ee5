"""The model pass of a refresh: in rounds until the audit is content, resumable shard by shard."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gracekit.errors import RefreshStoppedError
from gracekit.recipe import Recipe, RefreshSection
from gracekit.refresher.changes import as_changes
from gracekit.types import Audit, Float32, Json, Measurement, RefreshPlan, Rows

if TYPE_CHECKING:
    from gracekit.protocols import Executor
    from gracekit.refresher.state import Known
    from gracekit.store.shards import ShardFiles

logger = logging.getLogger(__name__)


LEAST_PROBE = 10
"""Probe rows below which no audit is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the model pass gave."""

    plan: RefreshPlan
    measurement: Measurement
    """Of the plan's rows, in their order."""
    audit: Audit | None
    """None when everything was measured, or the probe is too small."""
    facts: Json
    """For the manifest header."""


class MeasuredRows:
    """Rows measured under one checkpoint, those of a killed run included: none is measured twice.

    Args:
        executor: Runs the model.
        shards: Where finished shards are kept until the version is committed.
        num_rows: n of the store.
        stop: Ends the pass after the shard in progress.
        earlier: Losses that some scores are compared with (see `changes`).
    """

    def __init__(
        self,
        executor: Executor,
        shards: ShardFiles,
        num_rows: int,
        stop: threading.Event | None = None,
        earlier: dict[str, Float32] | None = None,
    ) -> None:
        self._earlier = earlier or {}
        self._executor = executor
        self._shards = shards
        self._stop = stop or threading.Event()
        self.num_rows = num_rows
        self._parts = shards.load()
        self._place = np.full(num_rows, -1, np.int64)
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
            for shard in self._executor.measure(missing):
                self._shards.save(shard)
                self._parts.append(shard)
                self._note(shard)
                if self._stop.is_set():
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

    Each further round doubles the measured rows, up to the recipe's `max_fraction`. The probe is
    drawn once; what the plan has not picked of it since is kept aside in every round.

    Args:
        recipe: All settings.
        known: The last version; None measures everything.
        run: The model pass.
        step: Of the checkpoint.
    """
    from gracekit.staleness import full_plan, plan_rows

    if known is None or is_full(recipe.refresh, known):
        everything = full_plan(run.num_rows)
        return Evidence(
            plan=everything,
            measurement=run.take(everything.rows),
            audit=None,
            facts=_facts(everything, run, rounds=1, num_since_full=0),
        )
    budget, most, num_probe = budgets(recipe.refresh, len(known.scores))
    plan: RefreshPlan | None = None
    rounds = 0
    while True:
        num_before = 0 if plan is None else len(plan.rows)
        plan = plan_rows(
            recipe.refresh,
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
        measurement = run.take(plan.rows)
        audit = audit_probe(recipe, known, plan, measurement, step=step, rounds=rounds)
        if audit is not None:
            logger.info(
                "audit of %d rows after measuring %d: "
                "rank correlation %.2f (stale %.2f, target %.2f)",
                audit.num_probe, len(plan.rows), audit.rank_correlation,
                audit.rank_correlation_stale, audit.target,
            )  # fmt: skip
        budget = min(2 * len(plan.rows), most)
        is_enough = audit is None or audit.target_met
        if is_enough or len(plan.rows) >= most or len(plan.rows) == num_before:
            return Evidence(
                plan=plan,
                measurement=measurement,
                audit=audit,
                facts=_facts(plan, run, rounds=rounds, num_since_full=known.num_since_full + 1),
            )


def audit_probe(
    recipe: Recipe, known: Known, plan: RefreshPlan, measurement: Measurement, *, step: int,
    rounds: int,
) -> Audit | None:  # fmt: skip
    """Predict the probe from the other measured rows, and compare with what was measured.

    None with fewer than `LEAST_PROBE` probe rows: a rank correlation of so few says nothing.
    """
    from gracekit.audit import audit
    from gracekit.refresher.state import predict

    probe = np.isin(measurement.rows, plan.probe_rows) & measurement.valid
    rows = measurement.rows[probe]
    if len(rows) < LEAST_PROBE:
        return None
    rest = ~np.isin(measurement.rows, plan.probe_rows)
    predicted, features, _ = predict(recipe, known, measurement.take(rest), step=step)
    # What selection uses is importance, a rank among all rows: so that is what is compared.
    name = recipe.scoring.importance
    with_truth = predicted.values[name].copy()
    with_truth[rows] = known.to_working(measurement.take(probe).scores, rows)[name]
    return audit(
        predicted=known.importance_of(predicted.values[name], recipe.scoring)[rows],
        measured=known.importance_of(with_truth, recipe.scoring)[rows],
        stale=known.importance_of(known.values[name], recipe.scoring)[rows],
        predicted_features=features[rows],
        measured_features=measurement.features[probe].astype(np.float32),
        stale_features=known.features[rows],
        centre=measurement.features[measurement.valid].astype(np.float32).mean(axis=0),
        num_measured=len(plan.rows),
        target=recipe.refresh.target_rank_correlation,
        rounds=rounds,
    )


def is_full(settings: RefreshSection, known: Known) -> bool:
    """Whether this refresh measures everything by count, or because its budget covers it."""
    by_count = settings.full_every > 0 and known.num_since_full + 1 >= settings.full_every
    return by_count or budgets(settings, len(known.scores))[0] >= len(known.scores)


def budgets(settings: RefreshSection, num_rows: int) -> tuple[int, int, int]:
    """Rows measured at least and at most, and how many of the least are the probe.

    The probe never takes more than half of the least budget.
    """
    least = min(num_rows, math.ceil(settings.min_fraction * num_rows))
    most = min(num_rows, max(least, math.ceil(settings.max_fraction * num_rows)))
    probe = max(settings.min_probe, math.ceil(settings.probe_fraction * num_rows))
    return least, most, min(probe, least // 2)


def _facts(plan: RefreshPlan, run: MeasuredRows, *, rounds: int, num_since_full: int) -> Json:
    return {
        "num_rows": run.num_rows,
        "num_measured": len(plan.rows),
        "num_probe": len(plan.probe_rows),
        "num_resumed": run.num_resumed,
        "rounds": rounds,
        "num_since_full": num_since_full,
    }
