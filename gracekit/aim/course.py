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
LEAST_COMPARED = 8
"""Target samples that two checkpoints have to have in common, or all there are."""
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
        """The checkpoint with the lowest loss, each compared with this one by common samples."""
        best, lowest = now.step, 0.0
        for each in self.earlier:
            rises = _rises(each, now)
            if len(rises) and rises.mean() > lowest:
                best, lowest = each.step, float(rises.mean())
        return best

    def has_turned(self, now: TargetLosses) -> str | None:
        """In words, that the loss has risen since its lowest point by more than noise."""
        best = self.best_step(now)
        found = next((each for each in self.earlier if each.step == best), None)
        if found is None:
            return None
        rises = _rises(found, now)
        if len(rises) < 2:
            return None
        rise, error = float(rises.mean()), float(rises.std(ddof=1) / math.sqrt(len(rises)))
        if rise <= SURE * error:
            return None
        return (
            f"the target's loss was lowest at step {best} and has risen by {rise:.3f} "
            f"(± {error:.3f}) since: that checkpoint is the better one"
        )


def _rises(before: TargetLosses, now: TargetLosses) -> Float64:
    """What the loss of each sample that both measured has risen by; none where those are too few.

    A budget may pay for fewer of the first samples at one checkpoint than at another.
    """
    count = min(len(before.losses), len(now.losses))
    rises = now.losses[:count] - before.losses[:count]
    rises = rises[np.isfinite(rises)]
    enough = min(LEAST_COMPARED, max(len(before.losses), len(now.losses)))
    return rises if len(rises) >= enough else rises[:0]


def mean_uses(place: Float32, uniform: float, state: DrawState | None) -> float:
    """How often a row was used, on average over what its place has beyond the uniform share.

    Args:
        place: [n] the factor `aim`.
        uniform: The share that all rows have alike.
        state: What the draws so far gave each row; None: nothing.
    """
    weights = np.maximum(place.astype(np.float64) - uniform, 0)
    if state is None or not weights.any():
        return 0.0
    return float(np.average(state.uses, weights=weights))


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
