"""The level of one score: a shift, or a shift and a scale, and the rule that does nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.propagation.gates import mean_square, simplest_good
from gracekit.propagation.levels import LEAST_SCALED_ROWS, Level, OwnScore, fit_level, fit_line
from gracekit.propagation.rules import NUM_FOLDS, Estimate, Evidence
from gracekit.types import Bool, Float64, Int32, Int64, Rows
from gracekit.version.outcomes import ScoreGate

_LEAST_GAIN = 1e-4
"""Least gain of the mean square error that is worth a scale, in variances of the new scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftedScore:
    """One score's old values, what is known of their change, and how far all moved together."""

    old: Float64
    """[n]"""
    rows: Rows
    """[m] measured rows."""
    change: Float64
    """[m]"""
    groups: Int32
    """[n]"""
    by_group: bool

    @classmethod
    def of(cls, evidence: Evidence, name: str, *, by_group: bool = True) -> ShiftedScore:
        """One of the evidence's scores."""
        old = evidence.old[name]
        change = evidence.new[name] - old[evidence.rows]
        return cls(
            old=old,
            rows=evidence.rows,
            change=change,
            groups=evidence.groups,
            by_group=by_group,
        )

    def level(self, kept: Bool | None = None) -> Level:
        """As the measured rows show it, or those of them that are kept [m]."""
        groups, change = self.groups[self.rows], self.change
        if kept is not None:
            groups, change = groups[kept], change[kept]
        num_groups = int(self.groups.max(initial=0)) + 1
        return fit_level(change, groups, num_groups, by_group=self.by_group)

    def left_by(self, level: Level) -> Float64:
        """[m] what a level leaves of the change of the measured rows."""
        left: Float64 = self.change - level(self.groups[self.rows])
        return left

    def held_out_errors(self, fold: Int64) -> dict[str, Float64]:
        """Way -> [m] errors of `shift` and `shift+scale` when each row's fold is held out."""
        errors = {"shift": self.change.copy(), "shift+scale": self.change.copy()}
        for number in range(NUM_FOLDS):
            held, kept = fold == number, fold != number
            if not held.any() or not kept.any():
                continue
            left = self.left_by(self.level(kept))
            errors["shift"][held] = left[held]
            old = self.old[self.rows]
            own = OwnScore.of(old[kept])(old)
            errors["shift+scale"][held] = (left - fit_line(left[kept], own[kept])(own))[held]
        return errors

    def applied(self, used: str, errors: dict[str, Float64]) -> tuple[Float64, ScoreGate]:
        """Values [n] by the shift, and by the scale where `used` has it; and what the gate says.

        Args:
            used: The way; that of a shift that shifts nothing is called `stale`.
            errors: Way -> [m] errors of held-out rows, of all that were tried.
        """
        level, slope = self.level(), 0.0
        values = self.old + level(self.groups)
        if used == "shift+scale":
            own = OwnScore.of(self.old[self.rows])
            line = fit_line(self.left_by(level), own(self.old[self.rows]))
            values, slope = values + line(own(self.old)), line.slope
        tried = {"stale": self.change, **errors}
        gate = ScoreGate(
            used="stale" if used == "shift" and level.is_zero else used,
            shift=level.common,
            num_group_shifts=int(np.count_nonzero(level.of_group)),
            slope=slope,
            held_out_rmse={
                way: float(np.sqrt(mean_square(each))) for way, each in tried.items() if len(each)
            },
        )
        return values, gate


def shift(evidence: Evidence) -> dict[str, Estimate]:
    """What few measured rows allow: the common shift, and a scale where they clearly show one."""
    fold = evidence.folds()
    nothing = np.zeros(len(evidence.usable), np.float32)
    estimates = {}
    for name in evidence.old:
        score = ShiftedScore.of(evidence, name, by_group=False)
        errors = score.held_out_errors(fold)
        used = "shift"
        if len(score.change) >= LEAST_SCALED_ROWS:
            least = _LEAST_GAIN * float(evidence.new[name].var())
            used = simplest_good({way: each**2 for way, each in errors.items()}, at_least=least)
        values, gate = score.applied(used, errors)
        estimates[name] = Estimate(
            values=values,
            held_out_errors=errors[used],
            held_out_mass=nothing[evidence.rows],
            mass=nothing,
            gate=gate,
        )
    return estimates
