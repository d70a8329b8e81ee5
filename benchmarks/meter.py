"""Is the meter honest? What it says of the draws of replayed refreshes, beside the truth.

    python benchmarks/exact_run.py --model llama-tiny --samples 600 --steps 75,150,300 \
        -o runs/drift/tiny-600.npz                                                    # minutes
    python -m benchmarks.meter runs/drift/tiny-600.npz --seeds 8

A chain of refreshes, the first of which measures everything and each later one a fixed share at
random, for each share, seed and average of the trainer's loss. The meter tells value, best and
value kept by the measured rows; the truth is the same of all rows, by their exact norms and the
probabilities that the draw of that refresh had. `inside` is how often the truth lies within the
meter's 90 % interval.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.replay import SCORES, Run, refreshed
from gracekit.draw.capped import capped_probabilities
from gracekit.recipe import Recipe
from gracekit.refresher.step import Refreshed
from gracekit.scores.norms import part_norms
from gracekit.version.outcomes import Meter

AVERAGES = ("tokens", "samples")


@dataclass(frozen=True)
class Told:
    """One refresh: what the meter says, and what is true."""

    step: int
    meter: Meter
    value: float
    best: float

    @property
    def kept(self) -> float:
        """The true share of the gain."""
        return (self.value - 1) / (self.best - 1)

    @property
    def miss(self) -> float:
        """Of the value, relative to the truth."""
        return self.meter.value / self.value - 1


def recipe_of(average: str, share: float, fraction: float, seed: int) -> Recipe:
    """Measures exactly that share at each refresh."""
    content: dict[str, Any] = {
        "data": {"path": "none.jsonl"},
        "seed": seed,
        "scoring": {"scores": list(SCORES), "loss": average},
        "refresh": {"min_fraction": share, "max_fraction": share, "target_value": 0.0},
        "selection": {"selector": "balanced", "fraction": fraction},
    }
    return Recipe.from_dict(content)


def truth(run: Run, c: int, made: Refreshed, recipe: Recipe) -> tuple[float, float]:
    """The draw's value and the best one, by the exact norms of all rows."""
    name, lengths = recipe.scoring.importance, run.samples.num_response_tokens
    norms = part_norms(run.exact[name][c], lengths, recipe.scoring)
    assert made.selection.draw is not None
    own = made.selection.draw.probabilities
    ones = np.ones(len(norms))
    best = capped_probabilities(norms, ones, float(own.sum()))
    random = float((norms**2).mean() / own.mean())
    return tuple(random / float((norms**2 / p).mean()) for p in (own, best))  # type: ignore[return-value]


def chain(run: Run, recipe: Recipe) -> list[Told]:
    """All refreshes after the first."""
    last = refreshed(run, recipe, 0, None).as_last(None)
    found = []
    for c in range(1, len(run.steps)):
        made = refreshed(run, recipe, c, last)
        last = made.as_last(last)
        found.append(Told(int(run.steps[c]), made.meter, *truth(run, c, made, recipe)))
    return found


def line(told: list[Told]) -> str:
    """The cells of one line of the table, over refreshes and seeds."""
    claimed = [each for each in told if not np.isnan(each.meter.value)]
    near = np.mean([abs(each.miss) <= 0.1 for each in claimed])
    inside = np.mean(
        [each.meter.value_low <= each.value <= each.meter.value_high for each in claimed]
    )
    ninth = np.quantile([abs(each.miss) for each in claimed], 0.9)
    means = [
        f"{np.nanmean(numbers):.2f}"
        for numbers in (
            [each.meter.value for each in claimed], [each.value for each in claimed],
            [each.meter.best for each in claimed], [each.best for each in claimed],
            [each.meter.value_kept for each in claimed],
            [each.kept for each in claimed if not np.isnan(each.meter.value_kept)],
        )
    ]  # fmt: skip
    return (f"{len(claimed)} | " + " | ".join(means)
            + f" | {near:.0%} | {ninth:.3f} | {inside:.0%}")  # fmt: skip


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a file that exact_run.py wrote")
    parser.add_argument("--shares", default="0.05,0.1,0.2", help="measured at each refresh")
    parser.add_argument("--fraction", type=float, default=0.3, help="selected")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    run = Run.load(options.run, "hidden")
    print(f"{len(run.samples)} samples, checkpoints at steps {run.steps.tolist()}, "
          f"{options.seeds} seeds, {options.fraction:.0%} selected\n")  # fmt: skip
    print("| mean over | measured | step | refreshes | value: meter | true | best: meter | true "
          "| kept: meter | true | within 10 % | 90 % of the misses below | inside |")  # fmt: skip
    print("|---|--:|--:|" + "--:|" * 10)
    every: list[Told] = []
    for average in AVERAGES:
        for share in map(float, options.shares.split(",")):
            recipes = [recipe_of(average, share, options.fraction, s) for s in range(options.seeds)]
            told = [each for recipe in recipes for each in chain(run, recipe)]
            every += told
            for step in run.steps[1:].tolist():
                at = [each for each in told if each.step == step]
                print(f"| {average} | {share:.0%} | {step} | {line(at)} |", flush=True)
    print(f"| all | | | {line(every)} |")


if __name__ == "__main__":
    main()
