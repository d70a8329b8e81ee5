"""One refresh as a function of what is known, what can be measured, and the recipe.

    LastRefresh ─first_plan→ RefreshPlan ─measure→ Measurement ─propagate→ scores, features
                                  ↑ next_round ── audit ←──────────┘          │
                 Selection ←─select── KnnGraph ←─update───────────────────────┘

No store and no model: `measure` is a function of rows. `flow` gives it those of a checkpoint, the
benchmarks and tests give it what they like; `Refreshed.as_last` is what the next step starts from.
Above 400 lines, since the picture and what fills it in are read together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gracekit.graph import (
    Index,
    build_index,
    directions_to_index,
    effective_rank,
    refresh_index,
    symmetric,
)
from gracekit.protocols import SelectionInputs
from gracekit.recipe import Recipe
from gracekit.refresher.aiming import Aiming, places_of
from gracekit.refresher.allowance import Allowance, no_limit
from gracekit.refresher.budget import first_plan, next_start
from gracekit.refresher.first_look import started
from gracekit.refresher.last import LastRefresh
from gracekit.refresher.metering import held_out_rows, meter_of_norms, meter_of_selection
from gracekit.refresher.rounds import (
    Measure,
    Measured,
    measure_in_rounds,
    nothing_measured,
)
from gracekit.refresher.spent import token_counts
from gracekit.rounding import put_rows, to_float16
from gracekit.scores.importance import sample_importance
from gracekit.scores.working_values import changes_since, from_working, to_working
from gracekit.selection import select
from gracekit.store import StoreReader
from gracekit.types import (
    Bool,
    DrawState,
    Float64,
    Measurement,
    Origin,
    Places,
    Reason,
    RefreshPlan,
    Rows,
    SampleTable,
    ScoreTable,
    Selection,
    SparseGraph,
    TrainedLosses,
)
from gracekit.version.outcomes import (
    Aim,
    Audit,
    Cost,
    GraphOutcome,
    Meter,
    PropagationOutcome,
    RefreshOutcome,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """All that a refresh makes of n samples."""

    version: int
    samples: SampleTable
    plan: RefreshPlan
    measurement: Measurement
    """Of the plan's rows, in their order."""
    audit: Audit | None
    """None when everything was measured by plan, or the probe is too small."""
    meter: Meter
    """What the coreset is worth."""
    cost: Cost
    """What measuring cost, and might."""
    scores: ScoreTable
    features: NDArray[np.float16]
    """[n, d]"""
    valid: Bool
    """[n] rows that have features."""
    target_features: NDArray[np.float16] | None
    """[t, d]"""
    places: Places | None
    """What is to be trained on; None: all rows alike."""
    aim: Aim | None
    """What was found of the target; None where none is followed."""
    index: Index
    graph: SparseGraph
    selection: Selection
    outcome: RefreshOutcome

    def as_last(self, before: LastRefresh | None) -> LastRefresh:
        """What the next refresh starts from: the same, to the bit, as is read back from a store.

        Args:
            before: The last refresh that this one started from, for the change of every score.
        """
        values = to_working(self.scores.scores, self.samples.num_response_tokens)
        return LastRefresh(
            version=self.version,
            num_since_full=self.outcome.num_since_full,
            next_budget=self.outcome.next_budget,
            samples=self.samples,
            scores=self.scores,
            values=values,
            changes=changes_since(
                {} if before is None else before.values,
                values,
                self.samples,
                version=0 if before is None else before.version,
            ),
            features=self.features,
            valid=self.valid,
            index=self.index,
            graph=self.graph,
            places=self.places,
            aim=self.aim,
        )


def step(
    last: LastRefresh | None,
    measure: Measure,
    recipe: Recipe,
    *,
    samples: SampleTable,
    step: int,
    version: int,
    parent: Rows | None = None,
    parent_probabilities: Float64 | None = None,
    state: DrawState | None = None,
    num_distinct_random: float = 0.0,
    trained: TrainedLosses | None = None,
    allowance: Allowance | None = None,
    aiming: Aiming | None = None,
    store: StoreReader | Path | None = None,
    enter: Callable[[str], None] = lambda stage: None,
) -> Refreshed:
    """Refresh what is known of the samples from what a checkpoint says of some of them.

    Args:
        last: The last refresh as it stands for the samples (`LastRefresh.grown`); None: nothing is
            known of them. Its index is repaired in place and belongs to the result.
        measure: Measures rows; called once a round, and finished after the last.
        recipe: All settings.
        samples: The sample table [n] as it is now.
        step: Training step of the checkpoint.
        version: The version that the result becomes.
        parent: The coreset of the version before.
        parent_probabilities: [n] how likely its rows were.
        state: What the draws so far gave each row; None: nothing was drawn.
        num_distinct_random: How many samples random draws would have used by now.
        trained: [n] what the trainer has seen of the samples' losses; None where it logged none.
        allowance: What may be spent; None: as much as the rest of the recipe says.
        aiming: What is known of the target besides; None: nothing.
        store: Open or its path, whose tables the recipe's SQL conditions may ask.
        enter: Told the stages: measure, propagate, graph, select.

    Raises:
        GracekitError: What `measure` raises, and `SelectionError`.
    """
    if allowance is None:
        allowance = no_limit(token_counts(samples))
    if last is not None and not last.scores.usable.any():
        last = None  # as `load_last` has it
    enter("measure")
    first = first_plan(last, recipe, samples=samples, step=step, allowance=allowance)
    last, looked = started(first, last, measure, recipe, samples, allowance)
    if last is not None and trained is not None:
        last = replace(last, trained=trained)

    def inputs_of(scores: ScoreTable, graph: SparseGraph, **more: Any) -> SelectionInputs:
        return SelectionInputs(
            scores=scores,
            samples=samples,
            graph=graph,
            parent=parent,
            parent_probabilities=parent_probabilities,
            state=state,
            num_distinct_random=num_distinct_random,
            store=store,
            scoring=recipe.scoring,
            **more,
        )

    def meter_of(so_far: Measured) -> Meter:
        assert last is not None
        scores = _all_scores(recipe, samples, last, so_far, step=step, version=version)
        return meter_of_norms(
            recipe,
            inputs_of(scores, last.graph),
            held_out_rows(recipe, so_far),
            can_tell_more=recipe.refresh.plan == "random",
        )

    if len(first.plan.rows):
        measured = measure_in_rounds(first, last, measure, recipe, step=step, meter_of=meter_of)
    else:
        measured = nothing_measured(first, last, recipe)
    target = measure.finish()
    enter("propagate")
    scores = _all_scores(recipe, samples, last, measured, step=step, version=version)
    features, valid = _all_features(samples, last, measured)
    enter("graph")
    index, graph, of_graph = _update_graph(recipe, last, features, valid)
    enter("select")
    target_features = None if target is None else target.features
    places, aim = places_of(
        recipe,
        samples=samples,
        scores=scores,
        features=features,
        valid=valid,
        graph=graph,
        measurement=measured.measurement,
        target=target,
        last=last,
        state=state,
        aiming=aiming or Aiming(),
        step=step,
        store=store,
    )
    inputs = inputs_of(
        scores, graph, features=features, target_features=target_features, places=places
    )
    selection = select(recipe.selection, inputs, seed=recipe.seed, version=version)
    meter = meter_of_selection(
        recipe,
        inputs,
        held_out_rows(recipe, measured),
        selection,
        of_rounds=measured.meter,
        valid=valid,
    )
    return Refreshed(
        version=version,
        samples=samples,
        plan=measured.plan,
        measurement=measured.measurement,
        audit=measured.audit,
        meter=meter,
        cost=allowance.after(measured.plan.rows, looked),
        scores=scores,
        features=features,
        valid=valid,
        target_features=target_features,
        places=places,
        aim=aim,
        index=index,
        graph=graph,
        selection=selection,
        outcome=_outcome(last, samples, measured, of_graph),
    )


def _all_scores(
    recipe: Recipe,
    samples: SampleTable,
    last: LastRefresh | None,
    measured: Measured,
    *,
    step: int,
    version: int,
) -> ScoreTable:
    """Scores of all rows [n] after the model pass.

    A row whose measurement is not finite becomes invalid: it has no scores until a later
    measurement succeeds.
    """
    n, name = len(samples), recipe.scoring.importance
    measurement = measured.measurement
    rows, good = measurement.rows, measurement.valid
    if last is not None and not len(rows):
        kept = np.where(last.scores.usable, Origin.STALE, last.scores.origin).astype(np.uint8)
        kept[~samples.present] = Origin.REMOVED
        return replace(last.scores, origin=kept)
    if last is None or measured.scores is None:
        scores = {score: np.full(n, np.nan, np.float32) for score in measurement.scores}
        origin, confidence = np.full(n, Origin.NEVER, np.uint8), np.zeros(n, np.float32)
        measured_step, measured_version = np.full(n, -1, np.int64), np.zeros(n, np.int64)
        stretch = 1.0
    else:
        propagated = measured.scores
        gates = propagated.outcome.scores
        scores = from_working(propagated.values, samples.num_response_tokens)
        for score, gate in gates.items():
            if gate.used == "stale":  # kept to the bit, not by way of the working values
                scores[score] = last.scores.scores[score].copy()
        origin = last.scores.origin.copy()
        is_stale = gates[name].used == "stale"
        origin[last.scores.usable] = Origin.STALE if is_stale else Origin.PROPAGATED
        confidence, stretch = propagated.confidence[name].copy(), propagated.stretch[name]
        measured_step = last.scores.measured_step.copy()
        measured_version = last.scores.measured_version.copy()

    for score, values in measurement.scores.items():
        scores[score][rows] = np.where(good, values, np.nan)
    origin[~samples.present] = Origin.REMOVED
    origin[rows] = np.where(good, Origin.MEASURED, Origin.INVALID)
    confidence[rows] = good
    measured_step[rows], measured_version[rows] = step, version
    return ScoreTable(
        scores=scores,
        importance=sample_importance(
            scores,
            samples,
            recipe.scoring,
            carried=origin == Origin.PROPAGATED,
            stretch=stretch,
        ),
        origin=origin,
        measured_step=measured_step,
        measured_version=measured_version,
        confidence=confidence,
    )


def _all_features(
    samples: SampleTable, last: LastRefresh | None, measured: Measured
) -> tuple[NDArray[np.float16], Bool]:
    """Features [n, d] and which rows have some, after the model pass; invalid rows do not.

    They are float16, as a store keeps them, and those that were carried over become the result:
    there is no second copy.
    """
    measurement = measured.measurement
    rows, good = measurement.rows, measurement.valid
    if last is not None and not len(rows):
        return to_float16(last.features), last.valid.copy()
    is_new = last is None or measured.features is None
    if is_new and good.all() and np.array_equal(rows, np.arange(len(samples))):
        return to_float16(measurement.features), good  # all there is, in order
    if last is None or measured.features is None:
        features = np.zeros((len(samples), measurement.features.shape[1]), np.float16)
        valid = np.zeros(len(samples), bool)
    else:
        features, valid = to_float16(measured.features.features), last.valid.copy()
    put_rows(features, rows, measurement.features, where=good)
    valid[rows] = good
    features[~valid] = 0
    return features, valid


def _update_graph(
    recipe: Recipe, last: LastRefresh | None, features: NDArray[np.float16], valid: Bool
) -> tuple[Index, SparseGraph, GraphOutcome]:
    """The graph over the new features: repaired where it is there already, else built."""
    unit = directions_to_index(features, recipe.graph, valid=valid)
    rank = round(effective_rank(unit), 2)
    if last is None:
        index = build_index(unit, recipe.graph, valid=valid, seed=recipe.seed, take=True)
        outcome = GraphOutcome(backend=index.backend, rebuilt=True, effective_rank=rank)
    else:
        index, report = refresh_index(last.index, unit, recipe.graph, valid=valid, take=True)
        outcome = GraphOutcome(
            backend=index.backend,
            rebuilt=report.rebuilt,
            num_moved=report.num_moved,
            recall=report.recall,
            effective_rank=rank,
        )
    return index, symmetric(index.graph), outcome


def _outcome(
    last: LastRefresh | None, samples: SampleTable, measured: Measured, graph: GraphOutcome
) -> RefreshOutcome:
    """What the version says about the refresh."""
    n, plan = int(samples.present.sum()), measured.plan
    num_since_full = next_budget = 0
    if last is not None and measured.scores is not None:
        is_known = plan.reasons != Reason.NEVER_MEASURED
        _log_unmeasured(last.num_never - int((~is_known).sum()))
        next_budget = next_start(measured.audit, int(is_known.sum()), n, measured.meter)
        if len(plan.rows) < n:
            num_since_full = last.num_since_full + 1
    elif last is not None and not len(plan.rows):  # nothing was measured
        num_since_full, next_budget = last.num_since_full + 1, last.next_budget
    return RefreshOutcome(
        num_measured=len(plan.rows),
        num_rows=n,
        num_probe=len(plan.probe_rows),
        rounds=measured.rounds,
        num_since_full=num_since_full,
        next_budget=next_budget,
        propagation=PropagationOutcome(
            scores=None if measured.scores is None else measured.scores.outcome,
            features=None if measured.features is None else measured.features.outcome,
        ),
        graph=graph,
    )


def _log_unmeasured(num_left: int) -> None:
    if num_left:
        logger.info(
            "%d new samples are not measured yet, refresh.max_fraction is used up: later "
            "refreshes do (all at once with refresh.new_samples: all)",
            num_left,
        )
