"""The level of one score among the evidence, and the rule that does nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.propagation.gates import mean_square
from gracekit.propagation.levels import Level, fit_level
from gracekit.propagation.rules import NUM_FOLDS, Estimate, Evidence
from gracekit.types import Bool, Float64, Int32, Rows
from gracekit.version.outcomes import ScoreGate


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
        rows = self.rows if kept is None else self.rows[kept]
        change = self.change if kept is None else self.change[kept]
        num_groups = int(self.groups.max(initial=0)) + 1
        return fit_level(
            change, self.old[rows], self.groups[rows], num_groups, by_group=self.by_group
        )

    def left_by(self, level: Level) -> Float64:
        """[m] what a level leaves of the change of the measured rows."""
        left: Float64 = self.change - level(self.old[self.rows], self.groups[self.rows])
        return left

    def applied(
        self, level: Level, used: str, errors: dict[str, Float64]
    ) -> tuple[Float64, ScoreGate]:
        """Values [n] on the level, and what the gate says of it.

        Args:
            level: Of all measured rows.
            used: The way: what is `shift` is called `stale` where it changes nothing, and
                `shift+scale` where it has a slope.
            errors: Way -> [m] errors of held-out rows, of all that were tried.
        """
        if used == "shift":
            used = "stale" if level.is_zero else "shift+scale" if level.slope else used
        tried = {"stale": self.change, **errors}
        gate = ScoreGate(
            used=used,
            shift=level.common,
            num_group_shifts=int(np.count_nonzero(level.of_group)),
            slope=level.slope,
            held_out_rmse={
                way: float(np.sqrt(mean_square(each))) for way, each in tried.items() if len(each)
            },
        )
        values = self.old if level.is_zero else self.old + level(self.old, self.groups)
        return values, gate


def shift(evidence: Evidence) -> dict[str, Estimate]:
    """What few measured rows allow: all rows move together, groups have no shift of their own."""
    fold = evidence.folds()
    nothing = np.zeros(len(evidence.usable), np.float32)
    estimates = {}
    for name in evidence.old:
        score = ShiftedScore.of(evidence, name, by_group=False)
        errors = score.change.copy()
        for number in range(NUM_FOLDS):
            held = fold == number
            errors[held] = score.left_by(score.level(~held))[held]
        values, gate = score.applied(score.level(), "shift", {"shift": errors})
        estimates[name] = Estimate(
            values=values,
            held_out_errors=errors,
            held_out_mass=nothing[evidence.rows],
            mass=nothing,
            gate=gate,
        )
    return estimates
