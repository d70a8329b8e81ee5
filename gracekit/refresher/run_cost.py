"""What a training run costs in all: training on coresets and selecting them, or on everything."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gracekit.recipe import Recipe
from gracekit.refresher.allowance import Allowance
from gracekit.refresher.budget import FirstPlan, budgets
from gracekit.selection.pool import DEFAULT_FRACTION
from gracekit.types import SampleTable
from gracekit.version.outcomes import Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """In tokens of training; NaN where the training's pace is not known."""

    training: float
    """Of the steps that are planned, as far as they are known."""
    selection: float
    """All measuring that is to be expected, what was spent before included."""
    everything: float
    """Of training on all samples, over as many passes as the planned steps go over a coreset."""
    refreshes: int
    """Refreshes to come, this one included."""


def run_cost(
    recipe: Recipe, first: FirstPlan, account: Cost, allowance: Allowance, samples: SampleTable
) -> RunCost:
    """What is to be expected of a run.

    Args:
        recipe: All settings.
        first: The first round of the refresh at hand.
        account: What will have been spent after it.
        allowance: What it may spend.
        samples: The sample table [n].
    """
    training, n = account.training_tokens, first.num_rows
    if not training > 0:
        nan = math.nan
        return RunCost(training=nan, selection=nan, everything=nan, refreshes=1)
    least, _, _ = budgets(recipe.refresh, n, 0)
    selection = account.cost_in_all + (allowance.num_refreshes - 1) * least * allowance.of_row
    if allowance.is_limited:
        selection = min(selection, account.max_cost * training)
    return RunCost(
        training=training,
        selection=selection,
        everything=training / _share(recipe, samples, allowance),
        refreshes=allowance.num_refreshes,
    )


def _share(recipe: Recipe, samples: SampleTable, allowance: Allowance) -> float:
    """Share of all tokens that a coreset has, taken to be that of its rows."""
    settings, n = recipe.selection, max(int(samples.present.sum()), 1)
    if settings.tokens is not None:
        return min(settings.tokens / max(float(allowance.lengths.sum()), 1.0), 1.0)
    if settings.count is not None:
        return min(settings.count / n, 1.0)
    return settings.fraction or DEFAULT_FRACTION
