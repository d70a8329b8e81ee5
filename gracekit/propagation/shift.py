"""The level of one score among the evidence, and the rule for few rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.propagation.gates import mean_square, simplest_good
from gracekit.propagation.levels import LEAST_SCALED_ROWS, Level, fit_level
from gracekit.propagation.ridge import fit_ridge
from gracekit.propagation.rules import NUM_FOLDS, Estimate, Evidence
from gracekit.types import Bool, Float64, Int32, Rows
from gracekit.version.outcomes import ScoreGate

_SURE = 1.0
"""Standard errors by which losses have to help; with 0.5 a replayed run kept about as much."""


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
    """What few measured rows allow: all rows move together, groups have no shift of their own.

    Where the trainer has logged losses, rows move by these too (`losses`), as a ridge regression
    says, if that predicts held-out rows better.
    """
    fold = evidence.folds()
    nothing = np.zeros(len(evidence.usable), np.float32)
    tries_losses = evidence.seen.shape[1] > 0 and len(evidence.rows) >= LEAST_SCALED_ROWS
    at_rows = evidence.seen[evidence.rows]
    estimates = {}
    for name in evidence.old:
        score = ShiftedScore.of(evidence, name, by_group=False)
        errors = {"shift": score.change.copy()}
        if tries_losses:
            errors["losses"] = score.change.copy()
        for number in range(NUM_FOLDS):
            held = fold == number
            left = score.left_by(score.level(~held))
            errors["shift"][held] = left[held]
            if tries_losses:
                fit = fit_ridge(left[~held], at_rows[~held])
                errors["losses"][held] = left[held] - fit(at_rows[held])
        used = "shift"
        if tries_losses:
            squares = {way: each**2 for way, each in errors.items()}
            used = simplest_good(squares, standard_errors=_SURE)
        level = score.level()
        values, gate = score.applied(level, used, errors)
        if used == "losses":
            values = values + fit_ridge(score.left_by(level), at_rows)(evidence.seen)
        estimates[name] = Estimate(
            values=values,
            held_out_errors=errors[used],
            held_out_mass=nothing[evidence.rows],
            mass=nothing,
            gate=gate,
        )
    return estimates
