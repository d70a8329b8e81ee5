"""The meter of a refresh: what its coreset is worth beside a random draw of the same size.

What it is held to, `refresh.target_value`, is in `Meter.target` and `Meter.target_met`, and what a
miss leads to in `budget.next_round`. `gracekit.draw.worth` has the formulas.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass

import numpy as np

from gracekit.draw.mean_gradient import gradient_errors
from gracekit.draw.worth import Stratum, Worth, worth
from gracekit.errors import SelectionError
from gracekit.protocols import SelectionInputs
from gracekit.recipe import Recipe, ScoringSection
from gracekit.refresher.auditing import drawn_uniformly
from gracekit.refresher.budget import LEAST_TOLD_BY
from gracekit.refresher.rounds import Measured
from gracekit.scores.meaning import score_meaning
from gracekit.scores.norms import expected_norms, has_norms, part_norms
from gracekit.scores.working_values import from_working
from gracekit.selection import balanced_probabilities
from gracekit.selection.balanced import Probabilities
from gracekit.types import (
    Bool,
    Float32,
    Float64,
    Int32,
    Origin,
    Rows,
    ScoreTable,
    Selection,
)
from gracekit.version.outcomes import Meter

logger = logging.getLogger(__name__)

_LEAST_OF_GROUP = 20
"""Rows below which a group with a total of its own is taken together with other such groups."""
_PARTS = 5
"""Parts in which the norms of measured rows are expected from the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Measured rows that were drawn uniformly, and what the other measured rows say of each."""

    rows: Rows
    """[p]"""
    values: Float32
    """[p] working values of the importance score; NaN where the others say nothing."""
    confidence: Float32
    """[p] in [0, 1]: what a row that is not measured and as well known would have."""


def held_out_rows(recipe: Recipe, measured: Measured) -> HeldOut | None:
    """The rows of a refresh that tell its value; None where everything was measured by plan."""
    scores, name = measured.scores, recipe.scoring.importance
    if scores is None:
        return None
    drawn = drawn_uniformly(recipe, measured.plan)
    return HeldOut(
        rows=measured.measurement.rows[drawn],
        values=scores.held_out[name][drawn],
        confidence=scores.held_out_confidence[name][drawn],
    )


def meter_of_norms(
    recipe: Recipe, inputs: SelectionInputs, held_out: HeldOut | None, *, can_tell_more: bool
) -> Meter:
    """What a draw by these scores is worth, whatever the recipe's selector is.

    The draw is that of `balanced` with the recipe's α, budget and quotas and with its own weights.

    Args:
        recipe: All settings.
        inputs: Scores of all rows, and what else a selection looks at.
        held_out: The rows that tell it; None where everything was measured.
        can_tell_more: Whether rows that are measured later tell it too.
    """
    settings = recipe.selection.model_copy(update={"weights": None})
    asked, scoring = recipe.refresh.target_value, recipe.scoring
    try:
        probabilities = balanced_probabilities(settings, inputs)
    except SelectionError as error:  # what is wrong with the recipe is told when it selects
        logger.debug("no value of the draw: %s", error)
        return Meter()
    found = _meter(probabilities, inputs, scoring, held_out, seed=recipe.seed)
    if not _is_norm(scoring.importance):
        return found
    if found.share_measured >= 1:
        return found.model_copy(update={"target": asked})
    is_met: bool | None = asked == 0 or found.can_gain is False or found.value_kept >= asked
    if found.can_gain is None and not can_tell_more and asked:
        is_met = None
    return found.model_copy(update={"target": asked, "target_met": is_met})


def meter_of_selection(
    recipe: Recipe,
    inputs: SelectionInputs,
    held_out: HeldOut | None,
    selection: Selection,
    *,
    of_rounds: Meter | None,
    valid: Bool,
) -> Meter:
    """What the version's coreset is worth.

    Args:
        recipe: All settings.
        inputs: What was selected from.
        held_out: The rows that tell it; None where everything was measured.
        selection: What was selected.
        of_rounds: What the rounds of measuring ended with; None where everything was measured.
        valid: [n] rows that have features.
    """
    drawn = None if selection.draw is None else selection.draw.probabilities
    probabilities = None if drawn is None else balanced_probabilities(recipe.selection, inputs)
    if drawn is None or probabilities is None or not probabilities.is_of(drawn):
        # Without probabilities there is no value; what a draw could gain is told all the same.
        found = meter_of_norms(recipe, inputs, held_out, can_tell_more=False)
        unknown = dict.fromkeys(_OF_DRAW, math.nan)
        found = found.model_copy(update={**unknown, "target": math.nan, "target_met": None})
    else:
        found = _meter(probabilities, inputs, recipe.scoring, held_out, seed=recipe.seed)
    update: dict[str, float | bool | None] = {}
    if of_rounds is not None:
        update = {"target": of_rounds.target, "target_met": of_rounds.target_met}
    if recipe.scoring.features == "gradient-sketch" and inputs.features is not None:
        update["gradient_error"], update["gradient_error_random"] = _gradient_errors(
            recipe.scoring, inputs, selection, valid
        )
    return found.model_copy(update=update)


_OF_DRAW = (
    "value", "value_low", "value_high", "value_kept", "value_kept_low", "value_kept_high",
    "kept_if_measured",
)  # fmt: skip


def _meter(
    probabilities: Probabilities,
    inputs: SelectionInputs,
    scoring: ScoringSection,
    held_out: HeldOut | None,
    *,
    seed: int,
) -> Meter:
    truth = _true_norm(scoring)
    table, lengths = inputs.scores, inputs.samples.num_response_tokens
    drawable = probabilities.drawable & (probabilities.chances.probabilities > 0)
    measured = drawable & (table.origin == Origin.MEASURED)
    if truth is None or not drawable.any():
        return Meter()
    share = float(measured.sum() / drawable.sum())
    rows = np.flatnonzero(measured)
    by_others = probabilities.chances.probabilities[rows]
    if share < 1:
        if held_out is None:
            return Meter(share_measured=share)
        told = measured[held_out.rows] & np.isfinite(held_out.values)
        rows = held_out.rows[told]
        by_others = probabilities.of_norms(rows, _norms_by_others(inputs, scoring, held_out, told))
    norms = part_norms(table.scores[truth][rows], lengths[rows], _with(scoring, truth))
    finite = np.isfinite(norms)
    rows, by_others, norms = rows[finite], by_others[finite], np.maximum(norms[finite], 0)
    if len(rows) < LEAST_TOLD_BY:
        return Meter(share_measured=share, num_told_by=len(rows))
    strata = _strata(probabilities, measured, rows, norms, by_others)
    return _as_meter(worth(strata, seed=seed), len(rows), share)


def _strata(
    law: Probabilities, measured: Bool, rows: Rows, norms: Float64, by_others: Float64
) -> list[Stratum]:
    """The rows that tell the value, in strata of their own where totals of groups are fixed."""
    own = law.chances.probabilities
    costs = np.ones(len(own)) if law.costs is None else law.costs.astype(np.float64)
    num_groups = len(law.means)
    drawable = own > 0
    counts = np.bincount(law.groups[drawable], minlength=num_groups)
    totals = np.bincount(law.groups[drawable], own[drawable], minlength=num_groups)
    targets = (totals / np.maximum(counts, 1))[law.groups]  # as the weights of the draw have it
    told = np.bincount(law.groups[rows], minlength=num_groups)
    stratum = np.where(told >= _LEAST_OF_GROUP, np.arange(num_groups), -1)[law.groups]
    found = []
    for number in np.unique(stratum[rows]).tolist():
        members = drawable & (stratum == number)
        some = stratum[rows] == number
        found.append(
            Stratum(
                num_rows=int(members.sum()),
                share_measured=float(measured[members].mean()),
                mean_cost=float((own * costs)[members].mean()),
                norms=norms[some],
                targets=targets[rows[some]],
                costs=costs[rows[some]],
                own=own[rows[some]],
                held_out=by_others[some],
            )
        )
    return found


def _norms_by_others(
    inputs: SelectionInputs, scoring: ScoringSection, held_out: HeldOut, told: Bool
) -> Float64:
    """[p] norms that the told rows would be expected to have, had they not been measured."""
    name, table, lengths = scoring.importance, inputs.scores, inputs.samples.num_response_tokens
    rows = held_out.rows[told]
    scores = from_working({name: held_out.values[told]}, lengths[rows])[name]
    confidence = held_out.confidence[told]
    norms = np.empty(len(rows))
    # A few at a time: the others stay measured, and tell how much measured norms differ.
    for first in range(_PARTS):
        part = slice(first, None, _PARTS)
        without = _replaced(table, name, rows[part], scores[part], confidence[part])
        norms[part] = expected_norms(without, lengths, scoring)[rows[part]]
    return norms


def _replaced(
    table: ScoreTable, name: str, rows: Rows, scores: Float32, confidence: Float32
) -> ScoreTable:
    changed, origin, trust = table.scores[name].copy(), table.origin.copy(), table.confidence.copy()
    changed[rows], origin[rows], trust[rows] = scores, Origin.PROPAGATED, confidence
    return dataclasses.replace(
        table, scores={**table.scores, name: changed}, origin=origin, confidence=trust
    )


def _is_norm(name: str) -> bool:
    """Whether a score is the norm of a gradient, as the trainer takes it or of a part of it."""
    meaning = score_meaning(name)
    is_of_step = meaning.needs_optimizer
    return meaning.scale == "log" and (meaning.shrinks_with_length or is_of_step)


def _true_norm(scoring: ScoringSection) -> str | None:
    """The measured score that tells how large gradients are; None: nothing can be told."""
    if not has_norms(scoring):
        return None
    if _is_norm(scoring.importance):
        return scoring.importance
    return "gradient-norm" if "gradient-norm" in scoring.scores else None


def _with(scoring: ScoringSection, name: str) -> ScoringSection:
    return scoring.model_copy(update={"importance": name})


def _as_meter(found: Worth, num_told_by: int, share: float) -> Meter:
    numbers = {}
    for name, estimate in (
        ("value", found.value), ("best", found.best), ("value_kept", found.kept),
    ):  # fmt: skip
        numbers[name] = estimate.found
        numbers[f"{name}_low"], numbers[f"{name}_high"] = estimate.low, estimate.high
    return Meter(
        **numbers,  # type: ignore[arg-type]
        kept_if_measured=found.kept_if_measured,
        can_gain=found.can_gain,
        num_told_by=num_told_by,
        share_measured=share,
    )


def _gradient_errors(
    scoring: ScoringSection, inputs: SelectionInputs, selection: Selection, valid: Bool
) -> tuple[float, float]:
    lengths: Int32 = inputs.samples.num_response_tokens
    factors = lengths.astype(np.float64) if scoring.loss == "tokens" else np.ones(len(lengths))
    assert inputs.features is not None
    pool = valid & inputs.scores.usable
    return gradient_errors(inputs.features, factors, pool, selection.rows, selection.weights)
