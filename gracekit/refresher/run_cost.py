"""What a training run costs in all: training on coresets and selecting them, or on everything."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gracekit.recipe import Recipe
from gracekit.refresher.allowance import LEAST_ROWS, Allowance
from gracekit.refresher.budget import FirstPlan, budgets
from gracekit.refresher.ways import rows_that_keep
from gracekit.selection.pool import DEFAULT_FRACTION
from gracekit.types import SampleTable
from gracekit.version.outcomes import Cost

_TOLD_LESS = 0.1
"""A refresh goes by the meter, which tells less than is kept (by .04 to .23 in the runs of
docs/refresh.md), and so measures on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """In tokens of training; NaN where the training's pace is not known."""

    training: float
    """Of the steps that are planned, as far as they are known."""
    selection: float
    """All measuring that is to be expected, what was spent before included. Where the number of
    refreshes is not known, all that is allowed; NaN where nothing limits it."""
    everything: float
    """Of training on all samples, over as many passes as the planned steps go over a coreset."""
    refreshes: int | None
    """Refreshes to come, this one included; None where it is not known how far apart they are."""
    from_step: int | None = None
    """Of a model before its first step: the step of the first of these refreshes. One of the model
    as it is now would be one more."""
    selection_elsewhere: float = math.nan
    """Of a model before its first step, whose pass was timed: the selection where the training runs
    on another machine, so that seconds are no limit. `selection` is where it runs on this one."""


def run_cost(
    recipe: Recipe, first: FirstPlan, account: Cost, allowance: Allowance, samples: SampleTable
) -> RunCost:
    """What is to be expected of a run.

    Each refresh is taken to measure as many rows as keep `refresh.target_value`, and what the meter
    tells too little, by the rule of thumb of `ways`, within the recipe's fractions; all together no
    more than is allowed.

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
    before = account.cost_in_all - account.cost
    allowed = before + allowance.left if allowance.is_limited else math.nan
    if allowance.knows_interval:
        least, most, _ = budgets(recipe.refresh, n, 0)
        later = (allowance.num_refreshes - 1) * _wanted(recipe, n, least, most)
        if allowed - account.cost_in_all < LEAST_ROWS * allowance.of_row:
            later = 0  # of so few nothing is measured
        more = _wanted(recipe, n, len(first.plan.rows), first.limit) - len(first.plan.rows)
        selection = account.cost_in_all + (more + later) * allowance.of_row
        if allowance.is_limited:
            selection = min(selection, max(allowed, account.cost_in_all))
    else:
        selection = allowed
    return RunCost(
        training=training,
        selection=selection,
        everything=training / _share(recipe, samples, allowance),
        refreshes=allowance.num_refreshes if allowance.knows_interval else None,
    )


def _wanted(recipe: Recipe, n: int, least: int, most: int) -> int:
    """Rows that a refresh is likely to measure in the end, from the least to the most it may."""
    if recipe.refresh.target_rank_correlation is not None:
        return most  # it asks for more than a draw needs
    share = min(recipe.refresh.target_value + _TOLD_LESS, 1.0) if recipe.refresh.target_value else 0
    return min(max(rows_that_keep(share, n), least), max(most, least))


def _share(recipe: Recipe, samples: SampleTable, allowance: Allowance) -> float:
    """Share of all tokens that a coreset has, taken to be that of its rows."""
    settings, n = recipe.selection, max(int(samples.present.sum()), 1)
    if settings.tokens is not None:
        return min(settings.tokens / max(float(allowance.lengths.sum()), 1.0), 1.0)
    if settings.count is not None:
        return min(settings.count / n, 1.0)
    return settings.fraction or DEFAULT_FRACTION
