"""The numbers of one arm of a comparison."""

from __future__ import annotations

from dataclasses import dataclass

from gracekit.comparing.statistics import Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmOutcome:
    """One arm over its seeds. Losses are means over seeds, in nats; compute in trained tokens."""

    arm: str
    about: str
    seeds: int
    num_steps: int
    ended_at: list[int]
    """Steps after which versions ended the training before the others, of the seeds under which
    they did."""
    steps: list[float]
    """[p] where the held-out rows were looked at."""
    losses: list[float]
    """[p] held-out loss."""
    compute: list[float]
    """[p] tokens trained and what selection cost in the same unit."""
    seconds: list[float]
    """[p] CPU seconds of training and selection."""
    loss: float
    """At the end."""
    spread: float
    """Standard deviation of it over seeds; NaN for one."""
    selection_share: float
    """What selection cost, as a share of the training's tokens."""
    selection_seconds_share: float
    """The same in CPU seconds."""
    metric: float
    """Mean of the metric; NaN where none was asked for."""
    metric_against_control: Difference | None
    """The metric less that of the stronger control; above 0 is a higher value."""
    num_distinct: float
    most_uses: int
    marked: dict[str, float]
    by_group: dict[str, float]
    """Loss at the end on each group of held-out rows, a mean over their tokens."""
    against_control: Difference | None
    """From the stronger control at equal steps; None for that control, and without one."""
    steps_to_control: float
    """Steps until the loss that the control ends with, as a share of the control's; NaN: never."""
    compute_to_control: float
    steps_to_full: float
    """The same of the loss that training on everything ends with, and its steps."""
    compute_to_full: float
    closed: float
    """Share of the distance from the control to the best oracle; NaN without one."""

    @property
    def num_taken(self) -> int:
        """Steps that were taken, a mean over seeds."""
        whole = (self.seeds - len(self.ended_at)) * self.num_steps
        return round((sum(self.ended_at) + whole) / self.seeds)
