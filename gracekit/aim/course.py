"""The target's own loss along a run, and when more steps are worse than none.

Rows that resemble the target wear out: after about four uses each a further step on them teaches
what is special to them and no longer what the target shares. So the loss on the target set, which
is never trained on, turns up in the end. Two checkpoints are compared sample by sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from gracekit.types import DrawState, Float32, Float64

USES = 4.0
"""Uses of a row after which more of them teach little (Muennighoff et al. 2023, arXiv 2305.16264,
and docs/selection.md)."""
KEPT_LOSSES = 256
"""Target samples whose losses a version keeps."""
LEAST_COMPARED = 2
"""Target samples of an earlier checkpoint that are compared at least."""
SURE = 2.0
"""Standard errors by which the loss has to have risen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetLosses:
    """Of one checkpoint."""

    step: int
    losses: Float64
    """Of the first target samples, in their order; NaN where one is not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What came before in the same run, by step."""

    earlier: list[TargetLosses] = field(default_factory=list)
    samples_a_step: float | None = None
    """The trainer's pace; None: not known."""

    def best_step(self, now: TargetLosses) -> int:
        """The checkpoint with the lowest mean loss, of equals the first."""
        now = TargetLosses(step=now.step, losses=now.losses[: self._count(now)])
        known = [*self._comparable(now), now]
        means = [float(np.nanmean(each.losses)) for each in known]
        return known[int(np.argmin(means))].step

    def has_turned(self, now: TargetLosses) -> str | None:
        """In words, that the loss has risen since its lowest point by more than noise."""
        best = self.best_step(now)
        found = next((each for each in self._comparable(now) if each.step == best), None)
        if found is None or found.step == now.step:
            return None
        rises = now.losses[: len(found.losses)] - found.losses
        rises = rises[np.isfinite(rises)]
        if len(rises) < 2:
            return None
        rise, error = float(rises.mean()), float(rises.std(ddof=1) / math.sqrt(len(rises)))
        if rise <= SURE * error:
            return None
        return (
            f"the target's loss was lowest at step {best} and has risen by {rise:.3f} "
            f"(± {error:.3f}) since: that checkpoint is the better one"
        )

    def _comparable(self, now: TargetLosses) -> list[TargetLosses]:
        """Earlier checkpoints, by the samples that all of them and this one measured."""
        known = [each for each in self.earlier if len(each.losses) >= LEAST_COMPARED]
        count = self._count(now)
        return [TargetLosses(step=each.step, losses=each.losses[:count]) for each in known]

    def _count(self, now: TargetLosses) -> int:
        lengths = [len(each.losses) for each in self.earlier if len(each.losses) >= LEAST_COMPARED]
        return min([len(now.losses), *lengths])


def mean_uses(place: Float32, state: DrawState | None) -> float:
    """How often a row was used, on average over the places of the target t.

    Args:
        place: [n] the factor `aim`.
        state: What the draws so far gave each row; None: nothing.
    """
    if state is None or not place.any():
        return 0.0
    weights = np.maximum(place.astype(np.float64) - place.min(), 0)
    return float(np.average(state.uses, weights=weights if weights.any() else place))


def steps_left(num_alike: float, uses: float, share: float, samples_a_step: float | None) -> float:
    """Steps until the rows that resemble the target were used `USES` times; NaN: not known.

    Args:
        num_alike: How many they are.
        uses: How often they were used so far.
        share: The share of the draws that they get.
        samples_a_step: The trainer's pace.
    """
    if not samples_a_step or not share > 0:
        return math.nan
    return max(0.0, (USES - uses) * num_alike / (share * samples_a_step))
