"""The signals of all rows, and what each is worth by the rows that were measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gracekit.aim.directions import directions
from gracekit.aim.gains import LEAST_ROWS, Gain, choice_gain, gain_of, lasting_share, pooled
from gracekit.aim.groups import group_means, group_means_across
from gracekit.aim.likeness import likeness
from gracekit.aim.places import in_turn
from gracekit.aim.smoothing import cosines_without_self, reach, smoothed_cosines, walk_matrix
from gracekit.types import (
    Bool,
    Float32,
    Float64,
    Int32,
    Int64,
    MeasuredTarget,
    Places,
    Rows,
    SparseGraph,
)

if TYPE_CHECKING:
    from gracekit.recipe import SelectionSection

INFLUENCE, LIKENESS, GROUP, IN_TURN = "influence", "likeness", "group", "round-robin"
"""Names of the signals."""
JUDGED = (INFLUENCE, LIKENESS, GROUP)
"""Those whose gains are measured, and between which `auto` chooses."""
MASS = "influence_mass"
"""How much influence is known of a row."""
FORGETTING = 0.5
"""Factor of what was known before at each refresh."""
MOST_JUDGED = 4000
"""Measured rows that judge the signals, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a refresh knows of n rows and t target samples."""

    graph: SparseGraph
    features: NDArray[np.float16] | Float32
    """[n, d], of another width where no row has any."""
    valid: Bool
    """[n] rows that have features and something to train on."""
    rows: Rows
    """[m] measured now, drawn at random."""
    sketches: Float32 | None
    """[m, k²] of length 1 (or 0), finite; None where none were kept."""
    target: MeasuredTarget
    before: Places | None
    """Of the refresh before, as it stands for the rows; None: nothing is known."""
    is_new: Bool
    """[m] rows that were not measured at the refresh before."""
    gains_before: dict[str, Gain]
    """Signal -> what it was found to gain up to then."""
    groups: Int32
    """[n] the group of each row."""
    barred: Bool
    """[n] rows that are never to be trained on."""
    used: Int64
    """[n] how often each was used."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The signals of all rows, and what each is worth."""

    signals: dict[str, Float32]
    """Name -> [n]; NaN where nothing is known."""
    mass: Float32 | None
    """[n] how much influence is known of a row; None where it is not used."""
    gains: dict[str, Gain]
    """Name -> what it gains, with what was found before; none where that was never told."""
    rounds: int | None
    """Times that sketches were averaged; None: none were."""
    rows: Rows
    """[j] measured rows that judged now."""
    worth: Float32
    """[j] their cosines with the whole target set."""

    def predicted(self, place: Float32) -> float:
        """Mean cosine with the target of what is trained on by these places; NaN: not known."""
        weights = place[self.rows]
        if not len(self.rows) or not weights.any():
            return math.nan
        return float(np.average(self.worth, weights=weights))


def judge(settings: SelectionSection, evidence: Evidence) -> Judged:
    """The signals that the recipe may follow, and what each is worth."""
    signals: dict[str, Float32] = {}
    features = evidence.target.features.astype(np.float32)
    halves = _halves(len(features), evidence.seed)
    is_finite: Bool = np.asarray(np.isfinite(features).all(axis=1))
    of_half = [features[half[is_finite[half]]] for half in halves]
    features = features[is_finite]
    if not evidence.valid.any():  # nothing was looked at: no features, and no graph
        features = features[:0]
    if settings.aim in ("auto", LIKENESS) and len(features):
        signals[LIKENESS] = likeness(evidence.features, evidence.valid, features)
    if settings.aim == IN_TURN and len(features):
        signals[IN_TURN] = in_turn(
            evidence.features, evidence.valid & ~evidence.barred, features, evidence.used
        )
    follows_influence = settings.aim in ("auto", INFLUENCE)
    follows_groups = settings.aim in ("auto", GROUP) and _num_groups(evidence) > 1
    told = _Told.of(evidence)
    if told is None:
        mass, known = None, {} if evidence.before is None else evidence.before.signals
        if follows_influence and INFLUENCE in known:
            signals[INFLUENCE], mass = known[INFLUENCE], known.get(MASS)
        if follows_groups and GROUP in known:
            signals[GROUP] = known[GROUP]
        return Judged(
            signals=signals,
            mass=mass,
            gains=evidence.gains_before,
            rounds=None,
            rows=evidence.rows[:0],
            worth=np.zeros(0, np.float32),
        )
    gains: dict[str, Gain] = {}
    mass, rounds = None, None
    if LIKENESS in signals:
        alike = tuple(
            likeness(evidence.features, evidence.valid, part, rows=told.rows)
            for part in of_half
            if len(part)
        )
        if len(alike) == len(told.worths):
            gains[LIKENESS] = gain_of(alike, told.worths, settings.aim_width)
    if follows_influence:
        signals[INFLUENCE], mass, rounds, of_halves = told.influence(evidence)
        gains[INFLUENCE] = gain_of(of_halves, told.worths, settings.aim_width)
    if follows_groups:
        signals[GROUP], of_halves = told.of_groups(evidence)
        gains[GROUP] = gain_of(of_halves, told.worths, settings.aim_width)
    return Judged(
        signals=signals,
        mass=mass,
        gains=_with_before(evidence, told, gains),
        rounds=rounds,
        rows=told.rows,
        worth=told.worth,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """Measured rows that judge, and what the target's gradients say of each."""

    rows: Rows
    """[j]"""
    places: Int64
    """[j] where they are among the measured rows."""
    sketches: Float32
    """[m, k²] less what all rows have in common."""
    goals: Float32
    """[3, k²] directions of the target's mean gradient, less what all rows have in common: of all
    samples, and of either half."""
    worth: Float32
    """[j] cosine with the whole target set."""
    worths: tuple[Float32, Float32]
    """[j] cosine with the half that judges the first half's choice, and the other way round."""

    @classmethod
    def of(cls, evidence: Evidence) -> _Told | None:
        """None where too little was measured."""
        sketches, of_target = evidence.sketches, evidence.target.sketches
        if sketches is None or of_target is None or len(sketches) < LEAST_ROWS:
            return None
        samples = of_target.astype(np.float32)
        good: Bool = np.asarray(np.isfinite(samples).all(axis=1) & samples.any(axis=1))
        parts = [np.arange(len(samples)), *_halves(len(samples), evidence.seed)]
        parts = [part[good[part]] for part in parts]
        if not all(map(len, parts)):
            return None
        means = np.stack([samples[part].mean(axis=0) for part in parts])
        places = np.arange(len(sketches))
        if len(places) > MOST_JUDGED:
            random = np.random.default_rng(evidence.seed)
            places = np.sort(random.choice(places, MOST_JUDGED, replace=False))
        common = sketches.mean(axis=0, dtype=np.float64).astype(np.float32)
        sketches, goals = sketches - common, directions(means - common)
        cosines = directions(sketches[places]) @ goals.T
        return cls(
            rows=evidence.rows[places],
            places=places,
            sketches=sketches,
            goals=goals,
            worth=cosines[:, 0],
            worths=(cosines[:, 2], cosines[:, 1]),
        )

    def influence(
        self, evidence: Evidence
    ) -> tuple[Float32, Float32, int, tuple[Float32, Float32]]:
        """Smoothed influence of all rows, how much is known of each, rounds, and for the halves.

        What was known before counts with what is measured now, by how much either has in reach.
        """
        walk = walk_matrix(evidence.graph)
        rounds, mass = reach(walk, evidence.rows, evidence.valid)
        found = smoothed_cosines(walk, evidence.rows, self.sketches, self.goals[:1], rounds=rounds)[
            :, 0
        ]
        without = cosines_without_self(
            walk, evidence.rows, self.sketches, self.goals[1:], rounds=rounds, asked=self.places
        )
        found, known = _with_earlier(_standard(found, mass > 0), mass, evidence.before)
        return found, known, rounds, (without[:, 0], without[:, 1])

    def of_groups(self, evidence: Evidence) -> tuple[Float32, tuple[Float32, Float32]]:
        """The mean gain of each row's group, and for the halves as other rows say it."""
        before = None if evidence.before is None else evidence.before.signals.get(GROUP)
        found = group_means(evidence.groups, self.rows, self.worth, before)
        first, second = (
            group_means_across(evidence.groups[self.rows], worth, evidence.seed)
            for worth in (self.worths[1], self.worths[0])  # the half that chooses
        )
        found[~evidence.valid] = np.nan
        return found, (first, second)


def _num_groups(evidence: Evidence) -> int:
    return len(np.unique(evidence.groups[evidence.valid]))


def _with_earlier(signal: Float32, mass: Float64, before: Places | None) -> tuple[Float32, Float32]:
    """The signal and its mass with what was known before; NaN where nothing is known."""
    if before is not None and INFLUENCE in before.signals and MASS in before.signals:
        earlier = before.signals[INFLUENCE]
        of_earlier = np.where(np.isfinite(earlier), FORGETTING * before.signals[MASS], 0)
        in_all = mass + of_earlier
        both = signal * mass + np.nan_to_num(earlier) * of_earlier
        signal = np.divide(both, in_all, out=np.zeros_like(both), where=in_all > 0)
        mass = in_all
    return np.where(mass > 0, signal, np.nan).astype(np.float32), mass.astype(np.float32)


def _with_before(evidence: Evidence, told: _Told, gains: dict[str, Gain]) -> dict[str, Gain]:
    """The gains together with those found before, and with what is left of these by now."""
    before, judges = evidence.before, evidence.is_new[told.places]
    found = {}
    for name, gain in gains.items():
        earlier = evidence.gains_before.get(name)
        if earlier is None:
            found[name] = gain
            continue
        lasts = earlier.lasts
        if before is not None and name in before.signals and judges.sum() >= LEAST_ROWS:
            signal = np.nan_to_num(before.signals[name][told.rows[judges]])
            again, error = choice_gain(signal, told.worth[judges], earlier.width)
            lasts = lasting_share(earlier.gain, again, error)
        found[name] = replace(pooled(gain, earlier, FORGETTING), lasts=lasts)
    return found


def _standard(values: Float32, known: Bool) -> Float32:
    """Values less their mean by their standard deviation, so that checkpoints compare."""
    spread = float(values[known].std()) if known.any() else 0.0
    mean = float(values[known].mean()) if known.any() else 0.0
    return ((values - mean) / (spread or 1.0)).astype(np.float32)


def _halves(count: int, seed: int) -> tuple[Int64, Int64]:
    """Two halves of so many target samples; of one sample, that one twice."""
    order = np.random.default_rng([seed, count]).permutation(count)
    return (order, order) if count == 1 else (order[::2], order[1::2])
