"""The default rule: the level, then a kernel regression, then diffusion, each behind a gate.

All rows move by a shift in common and a scale, each group by a shift of its own, as far as these
are more than noise (`levels`): that is always applied (`shift`). On top of it a row's score may
change as a kernel regression over all that is known of the row says (`kernel`); and what the
measured rows still have left over can be diffused over the graph and scaled by β (`+diffusion`).
All predict held-out measured rows; the simplest one that no other clearly beats is fitted again on
all of them. Where that is the level, and nothing of it is more than noise, rows stay as they are
(`stale`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gracekit.propagation.diffusion import spread, transition
from gracekit.propagation.gates import mean_square, share_that_helps, simplest_good
from gracekit.propagation.kernel import Kernel, KernelFit
from gracekit.propagation.rules import NUM_FOLDS, Estimate, Evidence
from gracekit.propagation.shift import ShiftedScore
from gracekit.types import Float32, Float64, Int64

if TYPE_CHECKING:
    from scipy import sparse

_HOPS = (1, 3, 10)
_SURE = 1.5
"""Standard errors by which a way has to be better than the level, which is fitted too. With 2 a
replayed run of 2,000 samples lost .01 of the value kept; with 1 noise alone is taken for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """One way to estimate the change, tried on the held-out rows."""

    errors: Float64
    """[m]"""
    mass: Float32
    """[m] how near other measured rows are, or how much of their news arrived."""
    penalty: float | None = None
    """Penalty of the kernel regression; None: without it."""
    hops: int = 0
    share: float = 0.0
    """β; 0 without diffusion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """What was chosen for a score."""

    score: ShiftedScore
    ways: dict[str, _Way]
    used: str
    fit: KernelFit | None
    """On all measured rows; None where the way used goes without."""


def gated(evidence: Evidence) -> dict[str, Estimate]:
    """Estimate every score; see the module."""
    walk = transition(evidence.graph, evidence.usable)
    fold = evidence.folds()
    inputs = np.column_stack([*evidence.old.values(), evidence.covariates]).astype(np.float32)
    np.nan_to_num(inputs, copy=False, posinf=0.0, neginf=0.0)
    kernel = Kernel(inputs, evidence.directions, evidence.rows, fold, evidence.rng)
    choices: dict[str, _Choice] = {}
    scores = {name: ShiftedScore.of(evidence, name) for name in evidence.old}
    ways_of = _try_all_ways(evidence, walk, kernel, scores, fold)
    for column, (name, score) in enumerate(scores.items()):
        ways = ways_of[name]
        used = simplest_good(
            {way: tried.errors**2 for way, tried in ways.items()}, standard_errors=_SURE
        )
        fit, penalty = None, ways[used].penalty
        if penalty is not None:
            fit = kernel.fit(score.left_by(score.level()), column, penalty)
        choices[name] = _Choice(score=score, ways=ways, used=used, fit=fit)
    fitted = {name: choice.fit for name, choice in choices.items() if choice.fit is not None}
    found, near = kernel.everywhere(list(fitted.values()))
    predictions = dict(zip(fitted, found, strict=True))
    return {
        name: _apply_way(evidence, walk, kernel, choice, predictions.get(name), near)
        for name, choice in choices.items()
    }


def _try_all_ways(
    evidence: Evidence,
    walk: sparse.csr_array,
    kernel: Kernel,
    scores: dict[str, ShiftedScore],
    fold: Int64,
) -> dict[str, dict[str, _Way]]:
    """Score -> all ways by name, simplest first; with diffusion, the number of hops that does best.

    The scores are in the order of the kernel's inputs. What they leave over is diffused at once.
    """
    m, rows = len(evidence.rows), evidence.rows
    penalties = [
        kernel.penalty_for(score.left_by(score.level()), column)
        for column, score in enumerate(scores.values())
    ]
    left = np.empty((m, 2 * len(scores)))
    """Of each score in turn: what the level leaves, and what the kernel regression leaves of it."""
    arrived = {hops: np.empty(left.shape) for hops in _HOPS}
    mass = {hops: np.empty(m, np.float32) for hops in _HOPS}
    for number in range(NUM_FOLDS):
        held, kept = fold == number, fold != number
        over = []
        for column, (score, penalty) in enumerate(zip(scores.values(), penalties, strict=True)):
            shifted = score.left_by(score.level(kept))
            predicted = kernel.at_measured(kernel.fit(shifted, column, penalty, without=number))
            over += [shifted, shifted - predicted]
        over_all = np.column_stack(over)
        left[held] = over_all[held]
        news = spread(
            walk,
            rows[kept],
            over_all[kept].astype(np.float32),
            damping=evidence.settings.damping,
            hops=_HOPS,
        )
        for hops, smoothed in news.items():
            arrived[hops][held] = smoothed.values[rows[held]]
            mass[hops][held] = smoothed.mass[rows[held]]

    nothing = np.zeros(m, np.float32)
    ways_of = {}
    for column, (name, penalty) in enumerate(zip(scores, penalties, strict=True)):
        shift = _Way(errors=left[:, 2 * column], mass=nothing)
        regression = _Way(errors=left[:, 2 * column + 1], mass=kernel.near_others, penalty=penalty)
        ways = {"shift": shift, "kernel": regression}
        for place, (plain, way) in enumerate(list(ways.items()), start=2 * column):
            news_of = {hops: arrived[hops][:, place] for hops in _HOPS}
            ways[f"{plain}+diffusion"] = _diffused(way, news_of, mass)
        ways_of[name] = ways
    return ways_of


def _diffused(way: _Way, news: dict[int, Float64], mass: dict[int, Float32]) -> _Way:
    """A way with the news [m] of as many hops as does best, and its mass, on top."""
    tries = []
    for hops, news_of in news.items():
        share = share_that_helps(news_of, way.errors)
        tries.append(
            _Way(
                errors=way.errors - share * news_of,
                mass=mass[hops] if share > 0 else way.mass,
                penalty=way.penalty,
                hops=hops,
                share=share,
            )
        )
    return min(tries, key=lambda tried: mean_square(tried.errors))


def _apply_way(
    evidence: Evidence,
    walk: sparse.csr_array,
    kernel: Kernel,
    choice: _Choice,
    predicted: Float64 | None,
    near: Float32,
) -> Estimate:
    """Apply the chosen way, fitted on all measured rows, to every row.

    `predicted` [n] is what its kernel regression says, and `near` how near measured rows are.
    """
    score, way, rows = choice.score, choice.ways[choice.used], evidence.rows
    level = score.level()
    errors = {name: tried.errors for name, tried in choice.ways.items()}
    values, gate = score.applied(level, choice.used, errors)
    left, mass = score.left_by(level), np.zeros(len(values), np.float32)
    if choice.fit is not None and predicted is not None:
        values, left, mass = values + predicted, left - kernel.at_measured(choice.fit), near
    if way.share > 0:
        arrived = spread(
            walk,
            rows,
            left[:, None].astype(np.float32),
            damping=evidence.settings.damping,
            hops=(way.hops,),
        )[way.hops]
        values, mass = values + way.share * arrived.values[:, 0], arrived.mass
    return Estimate(
        values=values,
        held_out_errors=way.errors,
        held_out_mass=way.mass,
        mass=mass,
        gate=gate.model_copy(
            update={"penalty": way.penalty or 0.0, "hops": way.hops, "share": way.share}
        ),
    )
