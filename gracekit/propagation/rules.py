"""What every propagation rule is given and gives back, and the two simple rules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.propagation.gates import folds
from gracekit.recipe import PropagationSection
from gracekit.types import Bool, Directions, Float32, Float64, Int32, Int64, Rows, SparseGraph
from gracekit.version.outcomes import ScoreGate

NUM_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a rule works with. `rows` have both an old and a new value of every score."""

    old: dict[str, Float64]
    """score name -> [n]"""
    rows: Rows
    """[m]"""
    new: dict[str, Float64]
    """score name -> [m]"""
    covariates: Float32
    """[n, c]"""
    seen: Float32
    """[n, l] of these, what the trainer saw of every row: what some tens of measured rows can tell
    from; l = 0 where it logged nothing."""
    directions: Directions
    """[n, d] of the features; 0 where a row has none."""
    graph: SparseGraph
    usable: Bool
    """[n]"""
    groups: Int32
    """[n]"""
    settings: PropagationSection
    rng: np.random.Generator

    def folds(self) -> Int64:
        """[m] the fold in which each of the rows is held out."""
        return folds(len(self.rows), NUM_FOLDS, self.rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One score as a rule estimates it."""

    values: Float64
    """[n]"""
    held_out_errors: Float64
    """[m] error of each of `Evidence.rows` when it was held out."""
    held_out_mass: Float32
    """[m] how much of the other rows' news reached it then."""
    mass: Float32
    """[n] how much of all rows' news reaches a row; all 0 where nothing is carried over edges."""
    gate: ScoreGate
    """What was used, and the held-out errors that decided it."""


def stale(evidence: Evidence) -> dict[str, Estimate]:
    """Rows stay as they are."""
    nothing = np.zeros(len(evidence.usable), np.float32)
    return {
        name: Estimate(
            values=old,
            held_out_errors=evidence.new[name] - old[evidence.rows],
            held_out_mass=nothing[evidence.rows],
            mass=nothing,
            gate=ScoreGate(used="stale"),
        )
        for name, old in evidence.old.items()
    }


def grace(evidence: Evidence) -> dict[str, Estimate]:
    """The paper's rule, with its weights normalised inside the objective.

    z_i minimises ½(z - z_i_old)² + μ/2 Σ_j α_ij (z - z_j)² over the measured neighbours j, with α
    normalised over them: z_i = (z_i_old + μ Σ_j α_ij z_j) / (1 + μ). One hop; a row without a
    measured neighbour stays. It carries values and has no gate: here for comparison.
    """
    fold = evidence.folds()
    estimates = {}
    for name, old in evidence.old.items():
        new = evidence.new[name]
        errors, held_out_mass = np.empty(len(new)), np.empty(len(new), np.float32)
        for number in range(NUM_FOLDS):
            held, kept = fold == number, fold != number
            values, mass = _grace_once(evidence, old, evidence.rows[kept], new[kept])
            errors[held] = new[held] - values[evidence.rows[held]]
            held_out_mass[held] = mass[evidence.rows[held]]
        values, mass = _grace_once(evidence, old, evidence.rows, new)
        estimates[name] = Estimate(
            values=values,
            held_out_errors=errors,
            held_out_mass=held_out_mass,
            mass=mass,
            gate=ScoreGate(used="grace", mu=evidence.settings.mu),
        )
    return estimates


def _grace_once(
    evidence: Evidence, old: Float64, rows: Rows, new: Float64
) -> tuple[Float64, Float32]:
    """The estimate [n], and the share of a row's edge weight that leads to measured rows [n]."""
    n = len(old)
    is_source = np.zeros(n, bool)
    is_source[rows] = True
    source_value = np.zeros(n)
    source_value[rows] = new
    graph = evidence.graph
    row_of_edge = np.repeat(np.arange(n), np.diff(graph.indptr))
    weight = np.where(is_source[graph.indices], graph.weights, 0).astype(np.float64)
    measured = np.bincount(row_of_edge, weight, minlength=n)
    total = np.bincount(row_of_edge, weight * source_value[graph.indices], minlength=n)
    degree = np.bincount(row_of_edge, graph.weights, minlength=n)
    reached = measured > 0
    mean = total / np.where(reached, measured, 1)
    mu = evidence.settings.mu
    mass = measured / np.where(degree > 0, degree, 1)
    return np.where(reached, (old + mu * mean) / (1 + mu), old), mass.astype(np.float32)
