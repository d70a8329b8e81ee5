"""What the losses of trained rows are worth to a refresh: replayed refreshes with and without them.

    python -m benchmarks.trained_losses runs/drift/smollm2.npz --seeds 4

A first version from a few rows, then refreshes at the later checkpoints that measure 50, 100 or 200
rows each, in a chain. What the trainer has seen is nothing, what it did see in that run up to the
checkpoint, or a share of the rows with their exact loss at the checkpoint before. The table says
what share of the gain of exact norms each refresh's draw keeps, by the exact norms of all rows.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.meter import AVERAGES, recipe_of, truth
from benchmarks.replay import Replay, Run, refreshed
from gracekit.recipe import Recipe
from gracekit.refresher.allowance import no_limit
from gracekit.refresher.last import LastRefresh
from gracekit.refresher.step import step
from gracekit.types import TrainedLosses

FIRST_ROWS = 142
SEEN = ("nothing", "own", "0.3", "0.6", "0.9")


class Trained:
    """What a trainer has seen up to a checkpoint."""

    def __init__(self, path: Path, run: Run) -> None:
        with np.load(path) as file:
            self.steps, self.rows = file["trained_step"], file["trained_row"]
            self.losses = file["trained_loss"]
        self.run = run

    def before(self, c: int, seen: str, seed: int) -> TrainedLosses | None:
        """Before checkpoint c."""
        none = TrainedLosses.none(len(self.run.samples))
        if seen == "nothing":
            return None
        if seen == "own":
            done = self.steps <= self.run.steps[c]  # the file counts a step when it begins
            return none.noted(self.rows[done], self.losses[done], self.steps[done] - 1)
        order = np.random.default_rng(seed).permutation(len(none))
        rows = order[: round(float(seen) * len(none))]
        losses = self.run.exact["loss"][c - 1][rows].astype(np.float32)
        return none.noted(rows, losses, np.full(len(rows), self.run.steps[c - 1]))


_made: dict[tuple[str, int], LastRefresh] = {}


def first_version(run: Run, recipe: Recipe) -> LastRefresh:
    """From a few rows, and the features of all; made once for each average and seed."""
    key = (recipe.scoring.loss, recipe.seed)
    if key in _made:
        return _made[key]
    lengths = (run.samples.num_prompt_tokens + run.samples.num_response_tokens).astype(np.int64)
    allowance = no_limit(lengths)
    allowance = dataclasses.replace(
        allowance,
        tokens=FIRST_ROWS * float(lengths.mean()),
        account=allowance.account.model_copy(update={"max_cost": 0.1}),
    )
    made = step(
        None,
        Replay(run, 0),
        recipe,
        samples=run.samples,
        step=int(run.steps[0]),
        version=1,
        allowance=allowance,
    )
    _made[key] = made.as_last(None)
    return _made[key]


def chain(run: Run, recipe: Recipe, trained: Trained, seen: str) -> list[tuple[float, str]]:
    """Share of the gain that each later refresh keeps, and how norms were carried over."""
    last: LastRefresh = copy.deepcopy(first_version(run, recipe))  # a step repairs its index
    found = []
    for c in range(1, len(run.steps)):
        last = dataclasses.replace(last, trained=trained.before(c, seen, recipe.seed))
        made = refreshed(run, recipe, c, last)
        last = made.as_last(last)
        value, best = truth(run, c, made, recipe)
        outcome = made.outcome.propagation.scores
        assert outcome is not None
        found.append(((value - 1) / (best - 1), outcome.scores[recipe.scoring.importance].used))
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a file that exact_run.py wrote")
    parser.add_argument("--rows", default="50,100,200", help="measured at each refresh")
    parser.add_argument("--seen", default=",".join(SEEN))
    parser.add_argument("--fraction", type=float, default=0.3, help="selected")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--ways", action="store_true", help="also how norms were carried over")
    options = parser.parse_args()
    run = Run.load(options.run, "hidden")
    trained, steps = Trained(options.run, run), run.steps[1:].tolist()
    print(f"| mean over | measured | seen | {' | '.join(f'step {s}' for s in steps)} | mean |")
    print("|---|--:|---|" + "--:|" * (len(steps) + 1))
    for average in AVERAGES:
        for rows in map(int, options.rows.split(",")):
            for seen in options.seen.split(","):
                share = rows / len(run.samples)
                chains: list[Any] = [
                    chain(run, recipe_of(average, share, options.fraction, seed), trained, seen)
                    for seed in range(options.seeds)
                ]
                kept = np.array([[each for each, _ in links] for links in chains])
                cells = " | ".join(f"{mean:.2f}" for mean in [*kept.mean(axis=0), kept.mean()])
                print(f"| {average} | {rows} | {seen} | {cells} |", flush=True)
                if options.ways:
                    print(sorted(way for links in chains for _, way in links))


if __name__ == "__main__":
    main()
