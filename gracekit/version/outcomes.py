"""What a refresh found out: the parts of a header that hold results, never settings.

Above 400 lines, so that all results of a version are seen together.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import ConfigDict, Field

from gracekit.version.parts import Number, Part


def audit_number(about: str, default: Any = ...) -> Any:
    """A number of the audit that is a column of the table `versions`, with its meaning there.

    One that a later release added has a default, for headers that do not have it.
    """
    return Field(default, description=about, json_schema_extra={"is_column": True})


class Audit(Part):
    """How well the probe was predicted from the other measured rows, before it was used.

    Scores are compared as importance, which selection uses: ranks, in the units of which the
    absolute errors are. Each `audit_number` is a column of the table `versions`.
    """

    num_probe: int = audit_number(
        "audit: measured rows drawn at random that were predicted from the others"
    )
    num_measured: int
    """Rows measured when the audit was made, probe included."""
    rank_correlation: Number = audit_number(
        "audit: Spearman of their predicted and measured importance"
    )
    rank_correlation_stale: Number = audit_number("the same, had the scores been left as they were")
    rank_correlation_all: Number = audit_number("the same over all rows, measured ones included")
    mean_abs_error: Number = audit_number("audit: mean absolute error of importance")
    mean_abs_error_stale: Number = audit_number("the same, had the scores been left as they were")
    mean_error: Number = audit_number(
        "audit: mean of predicted minus measured importance; above 0: predicted too high",
        default=math.nan,
    )
    feature_cosine: Number = audit_number(
        "audit: mean cosine of predicted and measured features, both centred"
    )
    feature_cosine_stale: Number = audit_number("the same, had the features been left as they were")
    calibration: Number = audit_number(
        "root mean square error relative to what the confidences promised; above 1: too confident"
    )
    target: Number = math.nan
    """The rank correlation over all rows that the recipe asks for; NaN where it asks for none."""
    rounds: int = 1
    """Times that rows were measured and audited."""

    @property
    def target_met(self) -> bool:
        """Whether the recipe's target rank correlation was reached, if it has one.

        In the first release the target was for the rows that were not measured.
        """
        if math.isnan(self.target):
            return True
        is_known = not math.isnan(self.rank_correlation_all)
        return (self.rank_correlation_all if is_known else self.rank_correlation) >= self.target


LEAST_GAIN = 1.05
"""Best value of a draw below which norms gain nothing to speak of."""


class Meter(Part):
    """What the coreset is worth beside a random draw of the same size (docs/refresh.md).

    Told by the norms of rows that were measured now and drawn uniformly. NaN where a number is not
    known: too few such rows, no gradient norm, a selector without known probabilities. Each
    `audit_number` is a column of the table `versions`, as those of the audit are.
    """

    value: Number = audit_number(
        "how many random samples estimate the mean gradient as well as one that was drawn like "
        "the coreset; NULL for selectors without known probabilities",
        default=math.nan,
    )
    value_low: Number = audit_number(
        "lower end of its interval by bootstrap, nominally 90 %", default=math.nan
    )
    value_high: Number = audit_number("upper end of it", default=math.nan)
    best: Number = audit_number("the value of a draw by perfect norms", default=math.nan)
    best_low: Number = audit_number(
        "lower end of its interval by bootstrap, nominally 90 %", default=math.nan
    )
    best_high: Number = audit_number("upper end of it", default=math.nan)
    value_kept: Number = audit_number(
        "share of the gain of perfect norms, (value - 1) / (best - 1); NULL where they gain "
        "nothing",
        default=math.nan,
    )
    value_kept_low: Number = audit_number(
        "lower end of its interval by bootstrap, nominally 90 %", default=math.nan
    )
    value_kept_high: Number = audit_number("upper end of it", default=math.nan)
    gradient_error: Number = audit_number(
        "distance of the coreset's mean gradient from that of all samples, relative to its size, "
        "by the sketches as they are known; NULL without gradient sketches",
        default=math.nan,
    )
    gradient_error_random: Number = audit_number(
        "the same of a random draw of as many, root of the mean square", default=math.nan
    )
    num_told_by: int = 0
    """Measured rows, drawn uniformly, that tell the value."""
    share_measured: Number = math.nan
    """Of the rows that may be drawn."""
    kept_if_measured: Number = math.nan
    """The share of the gain that the same draw would keep if every norm were known."""
    can_gain: bool | None = None
    """Whether perfect norms gain anything to speak of; None where it is not known."""
    target: Number = math.nan
    """The share of the gain that the recipe asks for."""
    target_met: bool | None = None
    """Whether a draw by norms reaches it, whatever the recipe's selector is; None: nothing was
    asked for, because everything was measured or the importance score is no gradient norm."""

    @property
    def no_gain(self) -> str | None:
        """In words: that norms cannot gain anything, or are not shown to; None where they can."""
        if self.can_gain is not False:
            return None
        if self.best < LEAST_GAIN:
            return "selection by norm cannot pay on this data"
        return "that selection by norm pays on this data is not shown"


class Aim(Part):
    """What selection follows towards the target set, and why (docs/selection.md).

    Each `audit_number` is a column of the table `versions`.
    """

    target_loss: Number = audit_number(
        "mean loss over the target set at the checkpoint, in nats a token; NULL without a target",
        default=math.nan,
    )
    num_target: int = audit_number(
        "target samples that it is a mean over: where the budget pays for fewer, `target_loss` of "
        "two versions is of other samples",
        default=0,
    )
    gain_influence: Number = audit_number(
        "mean cosine of the target's gradient with those of the rows that smoothed influence "
        "chooses, less that of all rows; told by target samples that it has not seen",
        default=math.nan,
    )
    gain_likeness: Number = audit_number(
        "the same of the rows that likeness of features chooses", default=math.nan
    )
    gain_group: Number = audit_number(
        "the same of the rows of the groups that gain most", default=math.nan
    )
    lasts_influence: Number = audit_number(
        "share of the gain of the rows that smoothed influence chose at the version before that "
        "the gradients of now give them",
        default=math.nan,
    )
    lasts_likeness: Number = audit_number("the same of likeness", default=math.nan)
    lasts_group: Number = audit_number("the same of the groups", default=math.nan)
    share_influence: Number = audit_number(
        "share of the target t that follows smoothed influence", default=math.nan
    )
    share_likeness: Number = audit_number(
        "share of it that follows likeness of features", default=math.nan
    )
    share_group: Number = audit_number(
        "share of it that goes to the groups that gain most", default=math.nan
    )
    share_uniform: Number = audit_number("share of it that all rows have alike", default=math.nan)
    num_alike: Number = audit_number(
        "rows that resemble the target, as far as the signals tell", default=math.nan
    )
    uses_of_alike: Number = audit_number(
        "how often they were used so far, on average", default=math.nan
    )
    steps_left: Number = audit_number(
        "steps until they were used about four times; NULL where the pace is not known",
        default=math.nan,
    )
    predicted_fall: Number = audit_number(
        "mean cosine of the target's gradient with those of the rows that are trained on now, by "
        "their places, less what all rows have in common; by the rows that were measured",
        default=math.nan,
    )
    error_influence: Number = math.nan
    """Standard error of the gain."""
    error_likeness: Number = math.nan
    error_group: Number = math.nan
    width_influence: Number = math.nan
    """Share of the rows that it chooses."""
    width_likeness: Number = math.nan
    width_group: Number = math.nan
    num_told_by: int = 0
    """Measured rows that tell the gains."""
    target_digest: str = ""
    """Hash of the contents of all target samples: what was found compares under the same only."""
    target_rendering: str = ""
    """Key of how they became tokens: losses compare under the same only; empty: not noted."""
    contents: list[str] = Field(default_factory=list)
    """Where a group of the data is the target: the contents of its samples, which stay the same."""
    num_overlap: int = 0
    """Rows of the data with the content of a target sample."""
    is_overlap_dropped: bool = False
    rounds: int | None = None
    """Times that sketches were averaged over the graph; None: influence was not used."""
    widths: dict[str, Number] = Field(default_factory=dict)
    """Signal -> the share of the rows that it chooses."""
    losses: list[Number] = Field(default_factory=list)
    """Of the first target samples, so that two checkpoints compare sample by sample."""
    best_step: int | None = None
    """The checkpoint with the lowest loss on the target so far."""
    why: str = ""
    """Why the mix is as it is."""
    advice: str | None = None
    """Why the training should end; None: it should go on."""
    stop: str = "advise"
    """What the trainer's side makes of the advice, by the recipe."""


class Cost(Part):
    """What selection cost and might cost, in tokens of training (docs/refresh.md).

    The unit is the training of one token: forward pass, backward pass and update. Each
    `audit_number` is a column of the table `versions`.
    """

    cost: Number = audit_number(
        "what measuring for this version cost; the unit is the training of one token"
    )
    cost_in_all: Number = audit_number("the same of all versions up to this one")
    allowance: Number = audit_number(
        "what this version might cost by refresh.max_cost; NULL: no limit", default=math.nan
    )
    trained_tokens: Number = audit_number(
        "tokens trained up to the checkpoint, by the trainer's pace; NULL where it is not known",
        default=math.nan,
    )
    training_tokens: Number = audit_number(
        "tokens that the run trains in all, as far as it is planned, else up to the next "
        "checkpoint; NULL where it is not known",
        default=math.nan,
    )
    num_looked: int = audit_number("rows of which only the features were computed", default=0)
    cost_seconds: Number = audit_number("seconds of all versions up to this one", default=math.nan)
    training_seconds: Number = audit_number(
        "seconds that the training takes in all, by the steps so far; NULL where it is not known, "
        "or on another machine",
        default=math.nan,
    )
    pass_seconds: Number = math.nan
    """Of `cost_seconds`, those in the model pass."""
    other_seconds: Number = math.nan
    """Seconds of this version outside of it: loading, propagation, the draw, writing."""
    max_cost: Number = math.nan
    """The recipe's `refresh.max_cost`; NaN: no limit."""
    price: Number = math.nan
    """Of measuring a token."""
    look_price: Number = math.nan
    """Of the features of a token alone."""
    trained_step: int = 0
    """Training step of the run up to which `trained_tokens` counts."""
    run: str | None = None
    """Name of the trainer's run, as far as it is known."""
    tokens_seen: Number = math.nan
    """As the trainer counts them, where it does."""
    interval: Number = math.nan
    """Training steps between two checkpoints, as far as it is known."""
    pace: str = ""
    """What told the training's pace: `recipe`, `callback`, `tokens seen`, `batch size`; empty:
    nothing did."""

    @property
    def share(self) -> float:
        """All that selection cost, of the training in all; NaN where that is not known."""
        known = self.training_tokens > 0
        return self.cost_in_all / self.training_tokens if known else math.nan


class ScoreGate(Part):
    """How one score was propagated, and the held-out errors that decided it."""

    used: str
    """`stale` (kept as it was), `shift`, `shift+scale`, `losses` (by those that the trainer saw),
    `shift+diffusion`, `kernel`, `kernel+diffusion` or `grace`."""
    shift: Number = 0.0
    """By which all rows were moved together, in working values."""
    num_group_shifts: int = 0
    """Groups that were moved by a shift of their own besides."""
    slope: Number = 0.0
    """Of the scale: change by standard deviation of the old scores."""
    stretch: Number = 1.0
    """By how much the values that were carried over are spread out before they are ranked."""
    penalty: Number = 0.0
    hops: int = 0
    share: Number = 0.0
    """Of the diffused residual that was added, 0 to 1."""
    mu: Number | None = None
    """Weight of the neighbours under rule `grace`."""
    held_out_rmse: dict[str, Number] = Field(default_factory=dict)
    """Way -> root mean square error on held-out measured rows."""


class ScoresOutcome(Part):
    """How the scores of the rows that were not measured were estimated."""

    rule: str
    """The rule that was applied: where too few rows were measured, `shift` (the common shift, and
    what losses tell) in place of `gated` and `none` in place of `grace`."""
    num_compared: int
    scores: dict[str, ScoreGate] = Field(default_factory=dict)


class FeaturesOutcome(Part):
    """How the features of the rows that were not measured were estimated."""

    rule: str
    num_compared: int
    used: str = "stale"
    """`stale`, `shift` or `ridge`, each possibly with `+diffusion`."""
    penalty: Number = 0.0
    hops: int = 0
    share: Number = 0.0
    stretch: Number | None = None
    """By how much the estimates were spread; None: they were not."""
    held_out_cosine: dict[str, Number] = Field(default_factory=dict)
    """Way -> mean cosine with held-out measured features."""


class PropagationOutcome(Part):
    """What was used to carry scores and features over; None where everything was measured."""

    scores: ScoresOutcome | None = None
    features: FeaturesOutcome | None = None


class GraphOutcome(Part):
    """What bringing the neighbour graph up to date did."""

    backend: str
    rebuilt: bool
    """Whether the lists were found from nothing."""
    num_moved: int | None = None
    """Rows that looked for neighbours again; None where the graph was built."""
    recall: Number | None = None
    """Share of the true k nearest that the lists hold, on a random sample of rows."""
    effective_rank: Number | None = None
    """Of the directions: how many dimensions the features use."""


class RefreshOutcome(Part):
    """What was measured, and what followed from it."""

    num_measured: int
    num_rows: int | None = None
    """Samples in the data."""
    num_probe: int = 0
    num_resumed: int = 0
    """Rows that an earlier, stopped run had measured."""
    rounds: int = 1
    num_since_full: int = 0
    """Refreshes since everything was measured."""
    next_budget: int = 0
    """Rows that the next refresh is advised to start with; 0: no advice."""
    data_problem: str | None = None
    """Why changed data could not be used; None where it was, or had not changed."""
    optimizer: dict[str, Any] | None = None
    """What was found of the trainer's optimizer, where a score asked for it."""
    propagation: PropagationOutcome = PropagationOutcome()
    graph: GraphOutcome | None = None


class UsesFrom(Part):
    """Which log of a trainer said how often rows were trained on."""

    run: str
    step: int


class SelectionDetails(Part):
    """What the selection reports; a selector adds its own numbers, which are kept as they are."""

    model_config = ConfigDict(extra="allow")

    num_usable: int | None = None
    num_candidates: int | None = None
    num_always: int | None = None
    budget: int | None = None
    """In rows or tokens, with what is always in."""
    num_tokens: int | None = None
    quotas: dict[str, int] | None = None
    importance: Number | None = None
    """Mean over the coreset."""
    coverage: Number | None = None
    """Mean similarity of the represented rows to the best selected one, 0 to 1."""
    num_uncovered: int | None = None
    num_kept: int | None = None
    """Rows that the parent's coreset had too."""
    num_at_max_uses: int | None = None
    """Rows that were used as often as `max_uses` allows and are no candidates; None: no limit."""
    num_distinct: int | None = None
    """Samples of the data used at least once, up to and including this version; used is trained
    on, or handed out where no trainer logs what it trains on."""
    num_distinct_random: Number | None = None
    """As many as random draws of the same sizes would have used, on average: with B rows of n
    usable ones it grows by B · (1 - itself / n)."""
    tokens_per_row: Number | None = None
    """Target tokens of a row of the pool on average, where the selector draws: what a trainer that
    averages over tokens divides by."""
    importance_unit: Number | None = None
    """What an importance of 1 is worth in the objective; None for a selector without one."""
    coverage_unit: Number | None = None
    """What a similarity of 1 of one more row is worth."""
    kept_unit: Number | None = None
    """What keeping a row of the parent's coreset is worth."""
    num_left_out: int | None = None
    """After a rollback: rows of the old coreset that have left the data."""
    uses_from: UsesFrom | None = None
    """The log of uses that the draw made up for; None: coresets that were handed out."""
