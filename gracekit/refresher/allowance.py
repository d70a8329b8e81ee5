"""What a refresh may spend: the recipe's share of the training's compute, less what was spent.

    allowed in all   max_cost · tokens that the run trains in all
    left             allowed in all - what all versions so far cost
    allowance        left / refreshes to come, this one included; half of all for the first version

The tokens that a run trains are those of its steps so far, by the pace at each checkpoint, and of
the steps that are planned. Where no plan is known (or the run is longer than planned) they are
counted up to the next checkpoint, if it comes after as many steps as this one did.

Where the trainer tells its seconds and trains on this machine, the same holds of seconds, in which
loading, propagation and selection count too: what these are expected to take is set aside first.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np

from gracekit.checkpoints import TrainerPace
from gracekit.recipe import Recipe
from gracekit.refresher.prices import Prices
from gracekit.types import Int64, Rows
from gracekit.version.outcomes import Cost

logger = logging.getLogger(__name__)

_FIRST_SHARE = 0.5
"""Of all that is allowed, what the first version may spend: all later draws build upon it."""
LEAST_ROWS = 30
"""Measured rows that tell the value of a draw; of fewer nothing is claimed: the interval of so few
is too narrow."""
_OF_FIRST_OTHER = 0.3
"""What a later version takes besides the model pass, as a share of what the first one takes: the
data is read and tokenised once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a refresh may spend, and what things cost, in tokens of training."""

    tokens: float
    """Infinite where there is no limit."""
    prices: Prices
    lengths: Int64
    """[n] tokens of each row; 0 of one that is not in the data."""
    account: Cost
    """What was spent before, and what the allowance was reckoned from."""
    of_target: float = 0.0
    """What the target set costs at this refresh, which is spent in any case."""
    num_refreshes: int = 1
    """Refreshes to come, this one included, as far as a plan of the training tells."""
    left: float = math.inf
    """What all refreshes to come, this one included, may spend."""
    own_part: float = 0.0
    """What this refresh may spend where its part is too small for rows that tell a value, and later
    ones spend it (`tokens` is 0 then): a target set is measured from it all the same."""
    knows_interval: bool = True
    """Whether it is known how far apart checkpoints are; else the number of refreshes is the most
    that there can be."""

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return math.isfinite(self.tokens)

    @property
    def has_budget(self) -> bool:
        """Whether the recipe asks for one, kept or not: then a first version measures a part."""
        return not math.isnan(self.account.max_cost)

    @property
    def of_row(self) -> float:
        """What measuring a row of mean length costs."""
        return self.prices.measure * _mean_length(self.lengths, None)

    def num_rows(self, spent: float = 0.0, longer: Rows | None = None) -> int:
        """Rows drawn at random that what is left pays for, beside what is `spent`.

        All there are where it pays for all that cost anything. Some rows may come first and be
        `longer` than others; a few of them do not matter.
        """
        of_row = self.of_row
        if not self.is_limited or not of_row > 0:
            return len(self.lengths)
        left, first = max(self.tokens - spent, 0.0), 0.0
        if longer is not None and len(longer) >= LEAST_ROWS:
            of_longer = self.of_measuring(longer)
            if of_longer > left:
                return int(left / of_longer * len(longer))
            left, first = left - of_longer, float(len(longer))
        rows = first + left / of_row
        return int(rows) if rows < np.count_nonzero(self.lengths) else len(self.lengths)

    def of_measuring(self, rows: Rows) -> float:
        """What measuring the rows costs."""
        return self.prices.measure * float(self.lengths[rows].sum())

    def of_looking(self, rows: Rows) -> float:
        """What the features of the rows alone cost."""
        return self.prices.look * float(self.lengths[rows].sum())

    def with_target(self, cost: float) -> Allowance:
        """What is left for the rows once the target set is paid for."""
        allowed = max(self.tokens, self.own_part)
        if cost > allowed:
            logger.warning(
                "the target set alone costs %.0f tokens of training at this refresh, and refresh."
                "max_cost allows %.0f now: no sample is measured. Raise max_cost",
                cost,
                allowed,
            )
        tokens = max(self.tokens - cost, 0.0)
        account = self.account
        if self.is_limited:
            account = account.model_copy(update={"allowance": tokens})
        return replace(self, tokens=tokens, of_target=cost, account=account)

    def after(self, measured: Rows, looked: Rows) -> Cost:
        """The account with what a refresh has spent.

        Args:
            measured: Rows that were measured.
            looked: Rows of which only the features were computed.
        """
        cost = self.of_measuring(measured) + self.of_looking(looked) + self.of_target
        return self.account.model_copy(
            update={
                "cost": cost,
                "cost_in_all": self.account.cost_in_all + cost,
                "num_looked": len(looked),
            }
        )


def no_limit(lengths: Int64) -> Allowance:
    """Everything may be measured, and nothing is known of what it costs.

    Args:
        lengths: [n] tokens of each row; 0 of one that is not in the data.
    """
    return Allowance(
        tokens=math.inf,
        prices=Prices(measure=1.0, look=0.0),
        lengths=lengths,
        account=Cost(cost=0.0, cost_in_all=0.0),
    )


def allowance(
    recipe: Recipe,
    pace: TrainerPace,
    prices: Prices,
    *,
    step: int,
    lengths: Int64,
    trained_rows: Rows | None,
    before: Cost | None,
    elapsed_s: float = 0.0,
    seconds_a_token: float = math.nan,
) -> Allowance:
    """What a refresh of a checkpoint may spend.

    Args:
        recipe: All settings.
        pace: What the trainer says of itself.
        prices: What measuring costs.
        step: Training step of the checkpoint.
        lengths: [n] tokens of each row; 0 of one that is not in the data.
        trained_rows: The latest coreset, whose rows tell how long a trained row is; None: all do.
        before: Account of the newest version that has one; None where nothing was spent yet.
        elapsed_s: Seconds that the refresh has taken already.
        seconds_a_token: That the training is taken to need, where the trainer does not say it; NaN:
            nothing is known.
    """
    max_cost = recipe.refresh.max_cost
    last = Cost(cost=0.0, cost_in_all=0.0) if before is None else before
    tokens_a_step, source = _tokens_a_step(
        recipe, pace, _mean_length(lengths, trained_rows), step, last
    )
    is_other = step < last.trained_step and _is_other_run(pace, last)
    last_step = 0 if is_other else last.trained_step  # another run adds to the account
    knows_before = last.trained_tokens >= 0
    num_new = max(step - last_step, 0) if knows_before else step
    trained = (last.trained_tokens if knows_before else 0.0) + num_new * tokens_a_step
    num_steps = planned_steps(recipe, pace)
    num_left = (num_steps or 0) - max(step, last_step)
    interval = recipe.training.checkpoint_every or num_new or np.nan_to_num(last.interval)
    knows_interval, interval = interval > 0, interval or 1
    is_planned = num_steps is not None and num_left >= 0
    in_all = trained + (num_left if is_planned else interval) * tokens_a_step
    num_refreshes = 1 + max(0, math.ceil(num_left / interval) - 1) if is_planned else 1
    counted = {
        "trained_tokens": trained,
        "training_tokens": in_all,
        "trained_step": max(step, last_step),
        "run": pace.run or last.run,
        "interval": float(interval),
        "tokens_seen": math.nan if pace.tokens_seen is None else pace.tokens_seen,
        "training_seconds": _seconds_in_all(pace, tokens_a_step, in_all, seconds_a_token),
    }
    account = last.model_copy(
        update={
            "cost": 0.0,
            "max_cost": math.nan if max_cost is None else max_cost,
            "price": prices.measure,
            "look_price": prices.look,
            "pace": source,
            "allowance": math.nan,
            **(counted if source else {}),
        }
    )
    found = Allowance(
        tokens=math.inf,
        prices=prices,
        lengths=lengths,
        account=account,
        num_refreshes=num_refreshes,
        knows_interval=bool(knows_interval),
    )
    if max_cost is None:
        return found
    if not source:
        logger.warning(
            "how fast the training goes is not known (no trainer_state.json with a batch size), so "
            "refresh.max_cost cannot be kept: refresh.min_fraction and max_fraction decide alone. "
            "Set training.samples_a_step and training.steps in the recipe"
        )
        return found
    is_first = before is None or math.isnan(before.trained_tokens)
    share = 1 / num_refreshes
    if is_first and num_left > 0:  # after how many steps the next one comes is a guess
        share = _FIRST_SHARE
    left = max_cost * in_all - last.cost_in_all
    left = min(left, _by_seconds(account, max_cost, elapsed_s, num_refreshes))
    part, least = max(left, 0.0) * share, LEAST_ROWS * found.of_row
    own_part = part
    if 0 < part < least <= left:  # parts too small for any measuring are put together
        num_together = math.ceil(least / part)
        part = part * num_together if num_refreshes % num_together == 0 else 0.0
    return replace(
        found,
        tokens=part,
        own_part=own_part,
        left=max(left, 0.0),
        account=account.model_copy(update={"allowance": part}),
    )


def planned_steps(recipe: Recipe, pace: TrainerPace) -> int | None:
    """Steps that the run takes in all: what the recipe says, but no more than the trainer plans."""
    asked, planned = recipe.training.steps, pace.num_steps
    if asked is not None and planned is not None and asked > planned:
        logger.warning(
            "training.steps is %d, and the trainer plans %d: these count", asked, planned
        )
        return planned
    return asked or planned


def _is_other_run(pace: TrainerPace, last: Cost) -> bool:
    """Whether another run is at work than before, as far as both are known.

    An earlier checkpoint of the same run, or one that a resumed run makes once more, is no new
    training.
    """
    return pace.run is not None and last.run is not None and pace.run != last.run


def _tokens_a_step(
    recipe: Recipe, pace: TrainerPace, of_row: float, step: int, last: Cost
) -> tuple[float, str]:
    """Tokens of an optimizer step, and what tells it; NaN and nothing where nothing does.

    Of the tokens seen those since the last account count: the batch size may have changed.
    """
    asked = recipe.training.samples_a_step
    if asked is not None:
        return asked * of_row, "recipe"
    if pace.samples_a_step is not None and pace.is_whole_step:
        return pace.samples_a_step * of_row, "callback"
    if pace.tokens_seen is not None:
        new, num_new = pace.tokens_seen - np.nan_to_num(last.tokens_seen), step - last.trained_step
        if last.tokens_seen > 0 and new > 0 and num_new > 0:
            return float(new) / num_new, "tokens seen"
        return pace.tokens_seen / max(step, 1), "tokens seen"
    if pace.samples_a_step is not None:
        return pace.samples_a_step * of_row, "batch size"
    return math.nan, ""


def _mean_length(lengths: Int64, rows: Rows | None) -> float:
    """Tokens of a trained row on average."""
    some = lengths if rows is None else lengths[rows]
    counted = some[some > 0]
    if not len(counted):
        counted = lengths[lengths > 0]
    return float(counted.mean()) if len(counted) else 0.0


def _seconds_in_all(
    pace: TrainerPace, tokens_a_step: float, in_all: float, seconds_a_token: float
) -> float:
    """Seconds that so many tokens take to train; NaN where it is not known."""
    if pace.seconds_a_step is None or not tokens_a_step > 0:
        return seconds_a_token * in_all
    return pace.seconds_a_step * in_all / tokens_a_step


def _by_seconds(account: Cost, max_cost: float, elapsed_s: float, num_refreshes: int) -> float:
    """Tokens that the seconds which are left pay for; infinite where these are not known.

    A token of training takes as long as in training; or as the model passes so far took for what
    they cost, where that is longer.
    """
    if not (account.training_seconds > 0 and account.training_tokens > 0):
        return math.inf
    is_first, later = math.isnan(account.other_seconds), account.other_seconds
    if is_first:
        later = _OF_FIRST_OTHER * elapsed_s
    elif math.isclose(account.cost_seconds, account.pass_seconds + later):  # one version so far
        later *= _OF_FIRST_OTHER
    this = elapsed_s + later if is_first else max(later, elapsed_s)
    left = max_cost * account.training_seconds - float(np.nan_to_num(account.cost_seconds))
    left -= this + (num_refreshes - 1) * later
    of_token = account.training_seconds / account.training_tokens
    if account.cost_in_all > 0 and account.pass_seconds > 0:
        of_token = max(of_token, account.pass_seconds / account.cost_in_all)
    return left / of_token
