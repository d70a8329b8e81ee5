"""What versions predicted of the target's loss, beside what it then did, over the runs of a bench.

    python benchmarks/predicted_falls.py runs/bench/target-*/gpt2-small -o docs/predicted-falls.svg

Reads the results of `gracekit compare` (arms with a target). A version predicts, to first order,
how far a step on the rows that are trained on from there lowers the loss on the target: a mean
cosine of gradients (`predicted_fall`). Measured is how far the target's loss has fallen at the next
version, a step, over the learning rate of the steps between. Spearman's correlation over all
pairs, within each benchmark, and between runs at the same version; the scatter as SVG.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.scatter import Spot, scatter


@dataclass(frozen=True)
class Pair:
    """One version of one run and what came after it."""

    bench: str
    arm: str
    seed: int
    number: int
    """Of the version in its run, from 0."""
    predicted: float
    fall: float
    """Of the target's loss, a step, in nats."""
    by_rate: float
    """The same over the mean learning rate of the steps, as a share of the highest."""


def rate(step: int, num_steps: int, warmup: float) -> float:
    """Learning rate of a step under a cosine with warm-up, as a share of the highest."""
    num_warm = round(warmup * num_steps)
    if step < num_warm:
        return step / max(num_warm, 1)
    return 0.5 * (1 + math.cos(math.pi * (step - num_warm) / max(num_steps - num_warm, 1)))


def pairs_of(file: Path, bench: str) -> list[Pair]:
    """All versions of a run that know both."""
    run = json.loads(file.read_text(encoding="utf-8"))
    aims, found = run.get("aims", []), []
    warmup, schedule = run["settings"]["warmup"], run["settings"]["schedule"]
    if aims and schedule != "cosine":
        raise SystemExit(f"{file}: expected the schedule cosine, found {schedule}")
    for place, (now, then) in enumerate(itertools.pairwise(aims)):
        known = (now["predicted_fall"], now["target_loss"], then["target_loss"])
        if any(value is None for value in known):
            continue
        steps = range(now["step"], then["step"])
        fall = (now["target_loss"] - then["target_loss"]) / len(steps)
        mean_rate = np.mean([rate(step, run["num_steps"], warmup) for step in steps])
        found.append(
            Pair(bench, run["arm"], run["seed"], place, known[0], fall, fall / float(mean_rate))
        )
    return found


def spearman(pairs: list[Pair]) -> str:
    """Correlations of the prediction with the fall, plain and over the rate."""
    predicted = [p.predicted for p in pairs]
    plain = spearmanr(predicted, [p.fall for p in pairs])
    by_rate = spearmanr(predicted, [p.by_rate for p in pairs])
    return (
        f"{len(pairs)} | {plain.statistic:+.2f} ({plain.pvalue:.0e}) | "
        f"{by_rate.statistic:+.2f} ({by_rate.pvalue:.0e})"
    )


def within_numbers(pairs: list[Pair]) -> str:
    """Mean correlation over runs of a benchmark at the same version, which share the rate."""
    by_number: dict[tuple[str, int], list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_number[pair.bench, pair.number].append(pair)
    found = [
        float(spearmanr([p.predicted for p in some], [p.fall for p in some]).statistic)
        for some in by_number.values()
        if len(some) >= 5
    ]
    found = [value for value in found if math.isfinite(value)]
    if not found:
        return "too few runs"
    error = np.std(found, ddof=1) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return f"{np.mean(found):+.2f} ± {error:.2f} over {len(found)} versions"


def draw(pairs: list[Pair]) -> str:
    """The scatter as SVG."""
    return scatter(
        [Spot(p.bench, p.predicted, p.by_rate) for p in pairs],
        title="What a version predicts, and what the loss on the target then does",
        across="predicted: mean cosine of gradients with the target's, less that of all rows",
        up="fall a step, over the learning rate (nats)",
    )


def main() -> None:
    """Print correlations and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="results of `gracekit compare`")
    parser.add_argument("-o", "--output", type=Path, help="an SVG file")
    options = parser.parse_args()
    pairs = [
        pair
        for folder in options.folders
        for file in sorted(folder.glob("*-seed*.json"))
        for pair in pairs_of(file, folder.parent.name)
    ]
    if len(pairs) < 3:
        raise SystemExit("fewer than three versions know both; run arms with a target first")
    print("| | versions | with the fall a step (p) | with that over the learning rate (p) |")
    print("|---|--:|--:|--:|")
    print(f"| all | {spearman(pairs)} |")
    for bench in sorted({p.bench for p in pairs}):
        print(f"| {bench} | {spearman([p for p in pairs if p.bench == bench])} |")
    print(f"\nbetween runs at the same version: {within_numbers(pairs)}")
    first = [p for p in pairs if p.number == 0]
    later = [p for p in pairs if p.number > 0]
    for name, some in (("first versions", first), ("later versions", later)):
        if len(some) >= 3:
            print(f"{name}: {spearman(some)}")
    if options.output is not None:
        options.output.write_text(draw(pairs), encoding="utf-8")


if __name__ == "__main__":
    main()
