"""Scores of the rows that were not measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gracekit.propagation.gated import gated
from gracekit.propagation.gates import mean_square
from gracekit.propagation.rules import Estimate, Evidence, grace, stale
from gracekit.propagation.shift import shift
from gracekit.recipe import PropagationSection
from gracekit.types import Bool, Directions, Float32, Float64, Int32, Rows, SparseGraph
from gracekit.version.outcomes import ScoresOutcome

RULES: dict[str, Callable[[Evidence], dict[str, Estimate]]] = {
    "gated": gated,
    "grace": grace,
    "none": stale,
    "shift": shift,
}
"""A recipe may ask for the first three; `shift` is what is left of `gated` with few rows."""

_NUM_CLASSES = 4
"""Classes of mass that get an expected error of their own."""
_LEAST_STRETCHED, _MOST_STRETCH = 30, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Propagated:
    """The scores of all rows after a refresh, in the working space that they came in."""

    values: dict[str, Float32]
    """score name -> [n]; measured rows exactly as measured, NaN where nothing is evidence."""
    confidence: dict[str, Float32]
    """score name -> [n] in [0, 1]: 1 where measured, 0 where nothing is known, else 1 - (error
    to be expected) / (standard deviation of the measured scores), the error being the root mean
    square over held-out measured rows that as much news reached over the graph."""
    held_out: dict[str, Float32]
    """score name -> [m] what the other measured rows say of each measured row; NaN where it had no
    score before, or has none now."""
    calibration: dict[str, float]
    """score name -> root mean square error of held-out rows, relative to the error that their
    confidence promised when it was learned from other held-out rows: 1 honest, above 1 too
    confident; NaN where nothing was promised."""
    stretch: dict[str, float]
    """score name -> by how much values that were carried over have to be spread out so that they
    differ among each other as measured ones do, at least 1; see `_stretch`."""
    outcome: ScoresOutcome
    """What was used for every score, and the held-out errors that decided it."""


def propagate_scores(
    rule: str,
    *,
    old: dict[str, Float32],
    measured_rows: Rows,
    new: dict[str, Float32],
    covariates: Float32,
    seen: Float32 | None = None,
    directions: Directions,
    graph: SparseGraph,
    usable: Bool,
    settings: PropagationSection,
    seed: int,
    groups: Int32 | None = None,
) -> Propagated:
    """Estimate the new scores of all rows from those of the measured ones.

    Args:
        rule: `gated`, `grace` or `none`.
        old: score name -> [n] last known scores in a space where changes compare
            (`scores.working_values`).
        measured_rows: [m] distinct.
        new: score name -> [m] in the same space; NaN where the measurement was not finite.
        covariates: [n, c] what else is known of every row (length, age, last change, groups);
            values that are not finite count as 0.
        seen: [n, l] what the trainer saw of every row, finite; None: nothing.
        directions: [n, d] features of length 1 as they were known before; 0 where there are none.
        graph: the graph over the features as they were known before.
        usable: [n] rows with known old scores. The others keep what they have unless measured.
        settings: damping, μ, and the least number of measured rows: below it `gated` applies the
            level alone, or what losses tell (`propagation.shift`), and `grace` nothing.
        seed: of the folds.
        groups: [n] of each row, that may move each by a shift of its own; None: all are one.
    """
    assert old.keys() == new.keys()
    comparable = usable[measured_rows].copy()
    for name, score in new.items():
        comparable &= np.isfinite(score) & np.isfinite(old[name][measured_rows])
    evidence = Evidence(
        old={name: score.astype(np.float64) for name, score in old.items()},
        rows=measured_rows[comparable],
        new={name: score[comparable].astype(np.float64) for name, score in new.items()},
        covariates=covariates,
        seen=np.zeros((len(usable), 0), np.float32) if seen is None else seen,
        directions=directions,
        graph=graph,
        usable=usable,
        groups=np.zeros(len(usable), np.int32) if groups is None else groups,
        settings=settings,
        rng=np.random.default_rng(seed),
    )
    applied = rule
    if len(evidence.rows) < settings.min_measured:
        applied = "shift" if rule == "gated" else "none"
    estimates = RULES[applied](evidence)

    values, confidence, held_out, calibration, stretch = {}, {}, {}, {}, {}
    for name, estimate in estimates.items():
        measured = evidence.new[name]
        value = np.where(usable, estimate.values, old[name]).astype(np.float32)
        expected = _expected_error(estimate.held_out_mass, estimate.held_out_errors)
        trust = _confidence(expected(estimate.mass), new[name])
        trust[~(usable & np.isfinite(value))] = 0
        value[measured_rows] = new[name]
        trust[measured_rows] = np.isfinite(new[name])
        values[name], confidence[name] = value, trust.astype(np.float32)
        held_out[name] = np.full(len(measured_rows), np.nan, np.float32)
        held_out[name][comparable] = measured - estimate.held_out_errors
        calibration[name] = _calibration(estimate)
        stretch[name] = 1.0
        if estimate.gate.used != "stale":
            foretold = measured - estimate.held_out_errors
            stretch[name] = _stretch(foretold, measured, evidence.groups[evidence.rows])
    return Propagated(
        values=values,
        confidence=confidence,
        held_out=held_out,
        calibration=calibration,
        stretch=stretch,
        outcome=ScoresOutcome(
            rule=applied,
            num_compared=len(evidence.rows),
            scores={
                name: estimate.gate.model_copy(update={"stretch": stretch[name]})
                for name, estimate in estimates.items()
            },
        ),
    )


def _stretch(foretold: Float64, measured: Float64, groups: Int32) -> float:
    """Spread of measured values within groups, relative to what was foretold of the same rows.

    An estimate leaves out what is a row's own, so estimates lie closer together than the values
    that they stand for. At least 1, at most `_MOST_STRETCH`; 1 with too few rows to tell.
    """
    if len(measured) < _LEAST_STRETCHED:
        return 1.0
    wide, narrow = _within(measured, groups), _within(foretold, groups)
    return float(np.clip(wide / narrow, 1, _MOST_STRETCH)) if narrow > 0 else 1.0


def _within(values: Float64, groups: Int32) -> float:
    """Standard deviation around the means of the groups."""
    counts = np.bincount(groups)
    means = np.bincount(groups, values) / np.maximum(counts, 1)
    return float(np.sqrt(mean_square(values - means[groups])))


def _expected_error(mass: Float32, errors: Float64) -> Callable[[Float32], Float64]:
    """How large an error to expect of a row by its mass: that of the held-out rows in its quarter.

    With too few held-out rows the error is infinite: nothing is claimed.
    """
    if len(errors) < 2 * _NUM_CLASSES:
        return lambda asked: np.full(len(asked), np.inf)
    edges = np.quantile(mass, np.arange(1, _NUM_CLASSES) / _NUM_CLASSES)
    of_row = np.searchsorted(edges, mass)
    sizes = np.full(_NUM_CLASSES, np.sqrt(mean_square(errors)))
    for number in range(_NUM_CLASSES):
        if (of_row == number).any():
            sizes[number] = np.sqrt(mean_square(errors[of_row == number]))
    return lambda asked: sizes[np.searchsorted(edges, asked)]


def _confidence(expected: Float64, measured: Float32) -> Float64:
    """[n] 1 - expected error / standard deviation of the measured scores, at least 0.

    All of them, those that had no score before too: so the score table tells the error again
    (`scores.norms`).
    """
    finite = measured[np.isfinite(measured)].astype(np.float64)
    spread = float(finite.std()) if len(finite) else 0.0
    return np.clip(1 - expected / spread, 0, 1) if spread > 0 else 1.0 * (expected == 0)


def _calibration(estimate: Estimate) -> float:
    """Errors of one half of the held-out rows, relative to what the other half promises."""
    mass, errors = estimate.held_out_mass, estimate.held_out_errors
    promised = np.empty(len(errors))
    half = np.arange(len(errors)) % 2 == 0  # the rows are in no order that matters
    for learn, ask in ((half, ~half), (~half, half)):
        promised[ask] = _expected_error(mass[learn], errors[learn])(mass[ask])
    size = np.sqrt(mean_square(promised)) if len(errors) else 0.0
    return float(np.sqrt(mean_square(errors)) / size) if 0 < size < np.inf else float("nan")
