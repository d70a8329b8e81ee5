"""The meter of a refresh: what its coreset is worth beside a random draw of the same size.

What it is held to, `refresh.target_value`, is in `Meter.target` and `Meter.target_met`, and what a
miss leads to in `budget.next_round`. `gracekit.draw.worth` has the formulas.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np

from gracekit.draw.mean_gradient import gradient_errors
from gracekit.draw.worth import Drawn, Worth, worth
from gracekit.errors import SelectionError
from gracekit.protocols import SelectionInputs
from gracekit.recipe import Recipe, ScoringSection, SelectionSection
from gracekit.refresher.allowance import LEAST_ROWS
from gracekit.refresher.auditing import drawn_uniformly
from gracekit.refresher.rounds import Measured
from gracekit.scores.meaning import score_meaning
from gracekit.scores.norms import has_norms, part_norms
from gracekit.scores.working_values import SMALLEST, from_working
from gracekit.selection import balanced_probabilities
from gracekit.selection.balanced import Probabilities
from gracekit.selection.pool import row_tokens
from gracekit.types import (
    Bool,
    Draw,
    Float32,
    Float64,
    Int32,
    Int64,
    Origin,
    Rows,
    SampleTable,
    Selection,
)
from gracekit.version.outcomes import Meter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Measured rows that were drawn uniformly, and what the other measured rows say of each."""

    rows: Rows
    """[p]"""
    values: dict[str, Float32]
    """score name -> [p] working values; NaN where the others say nothing."""


def held_out_rows(recipe: Recipe, measured: Measured) -> HeldOut | None:
    """The rows of a refresh that tell its value; None where everything was measured by plan."""
    scores = measured.scores
    if scores is None:
        return None
    drawn = drawn_uniformly(recipe, measured.plan)
    return HeldOut(
        rows=measured.measurement.rows[drawn],
        values={name: values[drawn] for name, values in scores.held_out.items()},
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
        rule = _Rule.of_balanced(balanced_probabilities(settings, inputs))
    except SelectionError as error:  # what is wrong with the recipe is told when it selects
        logger.debug("no value of the draw: %s", error)
        return Meter()
    found = _meter(rule, inputs, scoring, held_out, seed=recipe.seed)
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
    if selection.draw is None:
        # Without probabilities there is no value; what a draw could gain is told all the same.
        found = meter_of_norms(recipe, inputs, held_out, can_tell_more=False)
        unknown = dict.fromkeys(_OF_DRAW, math.nan)
        found = found.model_copy(update={**unknown, "target": math.nan, "target_met": None})
    else:
        rule = _Rule.of_selection(selection, selection.draw, recipe.selection, inputs.samples)
        found = _meter(rule, inputs, recipe.scoring, held_out, seed=recipe.seed)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """How n rows are drawn."""

    probabilities: Float64
    """[n]; 0 for rows that are never drawn, or always in."""
    targets: Float64
    """[n] what to train on, in any unit."""
    groups: Int32
    """[n] rows of a group have a total of their own."""
    alpha: float
    costs: Int64 | None
    """[n] tokens; None where the budget is in rows."""

    @classmethod
    def of_balanced(cls, rule: Probabilities) -> _Rule:
        """Of what `balanced` would draw: within a group t is as the places say."""
        own = np.where(rule.drawable, rule.chances.probabilities, 0)
        places = np.where(own > 0, rule.targets, 0)
        in_all = np.bincount(rule.groups, places)
        per_place = np.bincount(rule.groups, own) / np.where(in_all > 0, in_all, 1)
        return cls(
            probabilities=own,
            targets=places * per_place[rule.groups],
            groups=rule.groups,
            alpha=rule.alpha,
            costs=rule.costs,
        )

    @classmethod
    def of_selection(
        cls, selection: Selection, draw: Draw, settings: SelectionSection, samples: SampleTable
    ) -> _Rule:
        """Of what was drawn; what is always in comes first there and is no part of the draw."""
        own = draw.probabilities.copy()
        own[selection.rows[: selection.details["num_always"]]] = 0
        return cls(
            probabilities=own,
            targets=draw.weights * draw.probabilities,
            groups=draw.parts,
            alpha=selection.details.get("alpha", settings.alpha),
            costs=None if settings.tokens is None else row_tokens(samples),
        )


def _meter(
    rule: _Rule,
    inputs: SelectionInputs,
    scoring: ScoringSection,
    held_out: HeldOut | None,
    *,
    seed: int,
) -> Meter:
    truth = _true_norm(scoring)
    table, lengths = inputs.scores, inputs.samples.num_response_tokens
    own = rule.probabilities
    drawn = np.flatnonzero(own > 0)
    if truth is None or not len(drawn):
        return Meter()
    by_truth = scoring.model_copy(update={"importance": truth})
    norms = part_norms(table.scores[truth], lengths, by_truth)
    is_known = (table.origin == Origin.MEASURED) & np.isfinite(norms)
    share = float(is_known[drawn].mean())
    told, values = np.zeros(0, np.int64), np.zeros(0, np.float32)
    if held_out is not None:
        useful = np.isfinite(held_out.values[truth]) & is_known[held_out.rows]
        useful &= np.isin(held_out.rows, drawn)
        told, values = held_out.rows[useful], held_out.values[truth][useful]
    num_told_by = len(told) if share < 1 else len(drawn)
    if num_told_by < LEAST_ROWS:
        return Meter(share_measured=share, num_told_by=num_told_by)
    scores = from_working({truth: values}, lengths[told])[truth]
    by_others = part_norms(scores, lengths[told], by_truth)
    place = np.zeros(len(own), np.int64)
    place[drawn] = np.arange(len(drawn))
    costs = np.ones(len(own)) if rule.costs is None else rule.costs
    found = worth(
        Drawn(
            probabilities=own[drawn],
            targets=rule.targets[drawn],
            costs=costs[drawn].astype(np.float64),
            groups=rule.groups[drawn],
            alpha=rule.alpha,
            is_known=is_known[drawn],
            norms=np.maximum(np.nan_to_num(norms[drawn]), 0),
            clues=_clues(norms[drawn], lengths[drawn]),
            told=place[told],
            told_clues=_clues(by_others, lengths[told]),
        ),
        seed=seed,
    )
    return _as_meter(found, num_told_by, share)


def _clues(norms: Float64, lengths: Int32) -> Float64:
    """[n, 3] what tells a norm: one that is expected, the length, and what all have in common."""
    logs = np.log(np.maximum(np.nan_to_num(norms), SMALLEST))
    return np.stack([np.ones(len(norms)), logs, np.log(np.maximum(lengths, 1))], axis=1)


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
