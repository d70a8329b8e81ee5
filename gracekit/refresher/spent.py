"""The account of a store: what its versions have spent, and so what the next one may spend."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gracekit.checkpoints import TrainerPace
from gracekit.recipe import Recipe
from gracekit.refresher.allowance import Allowance, allowance
from gracekit.refresher.prices import Prices, prices
from gracekit.scores.meaning import needs
from gracekit.store import StoreReader
from gracekit.types import Int64, Json, Rows, SampleTable
from gracekit.version.header import Timings
from gracekit.version.outcomes import Cost

if TYPE_CHECKING:
    from gracekit.model_pass.context import TargetSamples

logger = logging.getLogger(__name__)

LeftOver = tuple[Rows, Rows]
"""As `Store.left_over` gives it."""


def allowance_at(
    store: StoreReader | None,
    recipe: Recipe,
    architecture: Json,
    pace: TrainerPace,
    *,
    step: int,
    samples: SampleTable,
    trained_rows: Rows | None,
    elapsed_s: float = 0.0,
    left_over: LeftOver | None = None,
    seconds_a_token: float = math.nan,
) -> Allowance:
    """What a refresh of a checkpoint may spend, after what the versions of a store have spent.

    Args:
        store: None where there is none yet.
        recipe: All settings.
        architecture: Kind and sizes of the model.
        pace: What the trainer says of itself.
        step: Training step of the checkpoint.
        samples: The sample table [n].
        trained_rows: The latest coreset.
        elapsed_s: Seconds that the refresh has taken already.
        left_over: Rows measured, and looked at, by refreshes of other checkpoints that were never
            finished.
        seconds_a_token: See `allowance`.
    """
    lengths = token_counts(samples)
    num_tokens = int(lengths.sum())
    num_targets = int(samples.num_response_tokens[samples.present].sum())
    found = prices(architecture, recipe, num_targets / max(num_tokens, 1))
    before = None if store is None else last_account(store)
    if left_over is not None and any(map(len, left_over)):
        before = _with_left_over(before, found, lengths, left_over)
    return allowance(
        recipe,
        pace,
        found,
        step=step,
        lengths=lengths,
        trained_rows=trained_rows,
        before=before,
        elapsed_s=elapsed_s,
        seconds_a_token=seconds_a_token,
    )


LEAST_TARGET = 8
"""Target samples that are measured at least."""
_TARGET_SHARE = 0.3
"""Share of what a refresh may spend that goes to the target set, at most."""


def with_target(
    allowance: Allowance, target: TargetSamples | None, recipe: Recipe
) -> tuple[Allowance, TargetSamples | None]:
    """What is left for the rows, and the target samples that are measured at this refresh.

    Where the selection follows the target, and no score compares with all of it, as many of its
    samples as a part of the allowance pays for: the first ones, so that checkpoints compare. So it
    is where rows are left to a later refresh, too: its loss is wanted of every checkpoint. Where
    not even a few are paid for, their features alone if these cost nothing, else none.
    """
    if target is None:
        return allowance, None
    may_be_fewer = recipe.follows_target and not needs(recipe.scoring.scores, "target")
    if may_be_fewer and allowance.is_limited:
        costs = [
            allowance.prices.of_target(int(tokens), recipe)
            for tokens in np.cumsum(target.tokens.lengths)
        ]
        tokens = max(allowance.tokens, allowance.own_part)
        paid_for = int(np.searchsorted(costs, _TARGET_SHARE * tokens, side="right"))
        count = min(max(paid_for, LEAST_TARGET), len(target.groups))
        if costs[count - 1] > tokens:
            if allowance.prices.look > 0:
                return allowance, None
            return allowance, replace(target, is_followed=False, keeps_sketches=False)
        if count < len(target.groups):
            logger.info(
                "%d of the %d target samples are measured at this refresh: a third of what "
                "refresh.max_cost allows now pays for no more",
                count,
                len(target.groups),
            )
            target = target.take(np.arange(count))
    cost = allowance.prices.of_target(int(target.tokens.lengths.sum()), recipe)
    return allowance.with_target(cost), target


def last_account(store: StoreReader) -> Cost | None:
    """The account of the newest version that has one; None where none was spent."""
    for version in reversed(store.all_versions()):
        header = store.header(version)
        if header.cost is not None:
            return header.cost
    return None


def _with_left_over(
    before: Cost | None, found: Prices, lengths: Int64, left_over: LeftOver
) -> Cost:
    """The account with what was measured and led to no version."""
    account = before or Cost(cost=0.0, cost_in_all=0.0)
    spent = sum(
        price * float(lengths[rows[rows < len(lengths)]].sum())
        for price, rows in zip((found.measure, found.look), left_over, strict=True)
    )
    return account.model_copy(update={"cost_in_all": account.cost_in_all + spent})


def token_counts(samples: SampleTable) -> Int64:
    """[n] tokens of each row; 0 of one that is not in the data, or has no target."""
    counts = samples.num_prompt_tokens.astype(np.int64) + samples.num_response_tokens
    return np.where(samples.present & (samples.num_response_tokens > 0), counts, 0)


def with_seconds(cost: Cost, timings: Timings) -> Cost:
    """The account with the seconds that a version took."""
    in_pass, other = timings.model_pass_s or 0.0, timings.other_s or 0.0
    return cost.model_copy(
        update={
            "cost_seconds": _known(cost.cost_seconds) + in_pass + other,
            "pass_seconds": _known(cost.pass_seconds) + in_pass,
            "other_seconds": other,
        }
    )


def _known(seconds: float) -> float:
    return 0.0 if math.isnan(seconds) else seconds
