"""The default rule: regression, then diffusion of what it left over, each behind a gate.

Three ways to say how a row's score changed without looking at its neighbours: not at all
(`stale`), a line over its old score (`linear`), a ridge regression over everything known of it
(`regression`). To each, what the measured rows still have left over can be added, diffused over
the graph and scaled by β (`+diffusion`). All six predict held-out measured rows; the simplest one
that no other clearly beats is fitted again on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gracekit.propagation.diffusion import spread, transition
from gracekit.propagation.gates import mean_square, share_that_helps, simplest_good
from gracekit.propagation.regression import Linear, fit_ridge
from gracekit.propagation.rules import NUM_FOLDS, Estimate, Known
from gracekit.types import Float32, Float64, Int64, Rows

if TYPE_CHECKING:
    from scipy import sparse

_HOPS = (1, 3, 10)
_PENALTIES = (1.0, 10.0, 100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """A regression of the change on some of the inputs."""

    name: str
    inputs: Float32
    """[n, p]; p = 0: no change."""
    penalty: float = 0.0

    def fit(self, at: Rows, change: Float64) -> Linear:
        """Fit on the rows `at`."""
        if self.inputs.shape[1] == 0:
            return Linear.zero()
        return fit_ridge(self.inputs[at], change, penalty=self.penalty)


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeldOut:
    """What the bases and their left-overs say about each row when it is held out."""

    predicted: Float64
    """[m, bases] change predicted by the regressions."""
    arrived: dict[int, Float32]
    """hops -> [m, bases] left-over of the other rows, diffused to this one."""
    mass: dict[int, Float32]
    """hops -> [m] diffusion mass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """One way to estimate the change, tried on the held-out rows."""

    base: int
    errors: Float64
    """[m]"""
    hops: int = 0
    share: float = 0.0
    """β; 0 without diffusion."""


def gated(known: Known) -> dict[str, Estimate]:
    """Estimate every score; see the module."""
    walk = transition(known.graph, known.usable)
    fold = known.folds()
    inputs = np.column_stack([*known.old.values(), known.covariates]).astype(np.float32)
    np.nan_to_num(inputs, copy=False, posinf=0.0, neginf=0.0)
    estimates = {}
    for column, (name, old) in enumerate(known.old.items()):
        change = known.new[name] - old[known.rows]
        bases = [
            _Base(name="stale", inputs=inputs[:, :0]),
            _Base(name="linear", inputs=inputs[:, column : column + 1]),
            _best_ridge(inputs, known.rows, change, fold),
        ]
        held_out = _hold_out(known, walk, bases, change, fold)
        ways = _ways(bases, held_out, change)
        used = simplest_good({way: tried.errors**2 for way, tried in ways.items()})
        estimates[name] = _estimate(known, walk, bases, held_out, old, change, ways, used)
    return estimates


def _best_ridge(inputs: Float32, rows: Rows, change: Float64, fold: Int64) -> _Base:
    ridges = [_Base(name="regression", inputs=inputs, penalty=penalty) for penalty in _PENALTIES]

    def held_out_error(ridge: _Base) -> float:
        squared = 0.0
        for number in range(NUM_FOLDS):
            kept, held = fold != number, fold == number
            predicted = ridge.fit(rows[kept], change[kept]).predict(inputs[rows[held]])
            squared += float(((change[held] - predicted) ** 2).sum())
        return squared

    return min(ridges, key=held_out_error)


def _hold_out(
    known: Known,
    walk: sparse.csr_array,
    bases: list[_Base],
    change: Float64,
    fold: Int64,
) -> _HeldOut:
    m = len(change)
    result = _HeldOut(
        predicted=np.zeros((m, len(bases))),
        arrived={hops: np.zeros((m, len(bases)), np.float32) for hops in _HOPS},
        mass={hops: np.zeros(m, np.float32) for hops in _HOPS},
    )
    for number in range(NUM_FOLDS):
        kept, held = fold != number, fold == number
        rows, asked = known.rows[kept], known.rows[held]
        left = np.empty((len(rows), len(bases)), np.float32)
        for column, base in enumerate(bases):
            model = base.fit(rows, change[kept])
            left[:, column] = change[kept] - model.predict(base.inputs[rows])
            result.predicted[held, column] = model.predict(base.inputs[asked])
        arrived = spread(walk, rows, left, damping=known.settings.damping, hops=_HOPS)
        for hops, smoothed in arrived.items():
            result.arrived[hops][held] = smoothed.values[asked]
            result.mass[hops][held] = smoothed.mass[asked]
    return result


def _ways(bases: list[_Base], held_out: _HeldOut, change: Float64) -> dict[str, _Way]:
    """All ways by name, simplest first; with diffusion, the number of hops that does best."""
    plain, diffused = {}, {}
    for column, base in enumerate(bases):
        left = change - held_out.predicted[:, column]
        plain[base.name] = _Way(base=column, errors=left)
        tries = []
        for hops in _HOPS:
            arrived = held_out.arrived[hops][:, column].astype(np.float64)
            share = share_that_helps(arrived, left)
            tries.append(_Way(base=column, errors=left - share * arrived, hops=hops, share=share))
        diffused[f"{base.name}+diffusion"] = min(tries, key=lambda way: mean_square(way.errors))
    return plain | diffused


def _estimate(
    known: Known,
    walk: sparse.csr_array,
    bases: list[_Base],
    held_out: _HeldOut,
    old: Float64,
    change: Float64,
    ways: dict[str, _Way],
    used: str,
) -> Estimate:
    """Fit the chosen way again on all measured rows and apply it to every row."""
    way, base = ways[used], bases[ways[used].base]
    model = base.fit(known.rows, change)
    values = old + model.predict(base.inputs)
    mass = np.zeros(len(old), np.float32)
    if way.share > 0:
        left = (change - model.predict(base.inputs[known.rows])).astype(np.float32)
        arrived = spread(
            walk, known.rows, left[:, None], damping=known.settings.damping, hops=(way.hops,)
        )[way.hops]
        values += way.share * arrived.values[:, 0]
        mass = arrived.mass
    return Estimate(
        values=values,
        held_out_errors=way.errors,
        held_out_mass=held_out.mass[way.hops] if way.share > 0 else mass[known.rows],
        mass=mass,
        gate={
            "used": used,
            "penalty": base.penalty,
            "hops": way.hops,
            "share": way.share,
            "held_out_rmse": {
                name: float(np.sqrt(mean_square(tried.errors))) for name, tried in ways.items()
            },
        },
    )
