"""Whether the meter predicts the gain: value of the coreset beside the speed-up that was measured.

    python benchmarks/predicted_gain.py runs/bench/*/*-small -o docs/predicted-gain.svg

Reads the results of `gracekit compare`. A version's meter tells its value: how many random samples
estimate the mean gradient as well as one that was drawn like the coreset. A run's value is the mean
over its versions that know one. Its speed-up is the control's number of steps over those after
which the run first has the loss that the control of its seed ends with; where it never has, the
share of its steps after which the control first has the run's last loss (so it is below 1). The
control is the stronger of `random` and `once`. Spearman's correlation over all runs, within each
benchmark, and over arms (means over seeds); the scatter as SVG.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from gracekit.comparing.arms import STRONGEST_CONTROLS
from gracekit.comparing.run_result import RunResult
from gracekit.comparing.statistics import first_reached
from gracekit.types import Float64

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.scatter import Spot, scatter


@dataclass(frozen=True, slots=True)
class Told:
    """One run: what its versions said, and what it did."""

    bench: str
    arm: str
    seed: int
    value: float
    """Mean of its versions."""
    best: float
    """Of a draw by perfect norms; NaN where no version knows it."""
    speed_up: float
    """In steps; NaN where neither of the curves reaches the other's end."""
    in_compute: float
    """The same in tokens trained and spent on selection."""


def told(runs: list[RunResult], bench: str) -> list[Told]:
    """All runs of a comparison that know their value, beside the control of their seed."""
    ends: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        ends[run.arm].append(float(run.losses() @ weights(run)))
    controls = [name for name in STRONGEST_CONTROLS if name in ends]
    if not controls:
        return []
    control = min(controls, key=lambda name: float(np.mean(ends[name])))
    by_seed = {run.seed: run for run in runs if run.arm == control}
    found = []
    for run in runs:
        values = [worth.value for worth in run.worths if worth.value is not None]
        if not values or run.seed not in by_seed or run.arm == control:
            continue
        bests = [worth.best for worth in run.worths if worth.best is not None]
        other = by_seed[run.seed]
        in_steps, in_compute = (speed_up(run, other, unit) for unit in ("step", "compute"))
        best = float(np.mean(bests)) if bests else math.nan
        found.append(
            Told(bench, run.arm, run.seed, float(np.mean(values)), best, in_steps, in_compute)
        )
    return found


def weights(run: RunResult) -> Float64:
    """[k] of held-out rows in a mean over tokens."""
    tokens = np.asarray(run.num_targets, np.float64)
    return np.asarray(tokens / tokens.sum(), np.float64)


def speed_up(run: RunResult, control: RunResult, unit: str) -> float:
    """How many times sooner a run has the loss that the control ends with; below 1: later."""
    at, losses = curve(run, unit)
    at_control, of_control = curve(control, unit)
    reached = first_reached(at, losses, float(of_control[-1]))
    if math.isfinite(reached):
        return float(at_control[-1]) / reached if reached > 0 else math.nan
    return first_reached(at_control, of_control, float(losses[-1])) / float(at[-1])


def curve(run: RunResult, unit: str) -> tuple[Float64, Float64]:
    """[p] steps or compute, and held-out losses."""
    at = np.array([getattr(point, unit) for point in run.points], np.float64)
    losses = np.array([run.losses(place) @ weights(run) for place in range(len(run.points))])
    return at, losses


def spearman(runs: list[Told]) -> str:
    """Cells of a row: number, correlation with the speed-up in steps, and in compute."""
    cells = [str(len(runs))]
    for name in ("speed_up", "in_compute"):
        some = [r for r in runs if math.isfinite(getattr(r, name))]
        if len(some) < 4 or len({r.value for r in some}) < 2:
            cells.append("–")
            continue
        measured = spearmanr([r.value for r in some], [getattr(r, name) for r in some])
        cells.append(f"{measured.statistic:+.2f} (p {measured.pvalue:.2f})")
    return " | ".join(cells)


def over_seeds(runs: list[Told]) -> list[Told]:
    """One for each arm of each benchmark."""
    by_arm: dict[tuple[str, str], list[Told]] = defaultdict(list)
    for run in runs:
        by_arm[run.bench, run.arm].append(run)
    names = ("value", "best", "speed_up", "in_compute")
    return [
        Told(bench, arm, -1, *(float(np.mean([getattr(r, name) for r in some])) for name in names))
        for (bench, arm), some in by_arm.items()
    ]


def main() -> None:
    """Print arms and correlations, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="results of `gracekit compare`")
    parser.add_argument("-o", "--output", type=Path, help="an SVG file")
    options = parser.parse_args()
    runs: list[Told] = []
    for folder in options.folders:
        files = sorted(folder.glob("*-seed*.json"))
        results = [found for file in files if (found := RunResult.read(file))]
        runs += told(results, f"{folder.parent.name} {folder.name.split('-')[0]}")
    if not runs:
        raise SystemExit(
            "no run knows its value and has a control of its seed; results of earlier releases do "
            "not keep values: run the comparison again"
        )
    print("| benchmark, model | arm | value | best | speed-up | in compute |")
    print("|---|---|--:|--:|--:|--:|")
    for arm in over_seeds(runs):
        numbers = (arm.value, arm.best, arm.speed_up, arm.in_compute)
        print(f"| {arm.bench} | `{arm.arm}` | {' | '.join(f'{n:.2f}' for n in numbers)} |")
    print("\n| | runs | value and speed-up | value and speed-up in compute |")
    print("|---|--:|--:|--:|")
    print(f"| all | {spearman(runs)} |")
    for bench in sorted({run.bench for run in runs}):
        print(f"| {bench} | {spearman([run for run in runs if run.bench == bench])} |")
    print(f"| arms, means over seeds | {spearman(over_seeds(runs))} |")
    if options.output is not None:
        spots = [Spot(r.bench, r.value, r.speed_up) for r in runs if math.isfinite(r.speed_up)]
        picture = scatter(
            spots,
            title="What the meter says, and how much sooner the control's loss was reached",
            across="value: random samples that one of the coreset is worth, mean over versions",
            up="speed-up in steps, of the control's",
            origin=(1.0, 1.0),
        )
        options.output.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
