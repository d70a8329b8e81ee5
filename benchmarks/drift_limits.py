"""What limits a partial refresh: how fast the truth itself moves, and what no plan can beat.

    python benchmarks/exact_run.py --every 25 --dense-samples 1000 -o runs/drift/tiny.npz  # once
    python benchmarks/drift_limits.py runs/drift/tiny.npz

A coreset is trained on from its checkpoint to the next one. First table: rank correlation of
importance, as it is known at a checkpoint, with its mean over the steps up to the next one (as far
as `exact_run.py --every` measured some rows there). *Everything* is measured at every checkpoint,
or nothing after the first one, or a share of the rows in a chain of refreshes. The last column is
how well exact importance foretells exact importance a few steps later.

Second table: the share of rows to measure until importance has a rank correlation of .9 with the
truth over all rows: of stale scores, and of what `gated` says when a tenth is measured; further
rows *at random*, and as an *oracle* orders them, who knows how wrong each row is and takes the
worst first: with these estimates no plan needs fewer.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gracekit.audit import rank_correlation
from gracekit.scores.length import ranks_within
from gracekit.types import Rows

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import drift
from benchmarks.replay import SCORES, Run, chain

SCORE = SCORES[0]
TARGET = 0.9


def print_later(run: Run, fractions: list[float]) -> None:
    """The first table."""
    first = run.dense.shape[1]
    groups = run.samples.groups[:first]

    def ranks(values: Any) -> Any:
        return ranks_within(np.asarray(values[:first], np.float32), groups)

    known = {"everything": list(run.working[SCORE])}
    known["never again"] = [known["everything"][0]] * len(run.steps)
    for fraction in fractions:
        links = chain(run, drift.recipe(refresh=drift.fixed(fraction)))
        known[f"{fraction:.0%}"] = [known["everything"][0], *(link.importance for link in links)]
    print(
        f"\n| from step | {' | '.join(known)} | few steps later |\n|--:|"
        + "--:|" * (len(known) + 1)
    )
    rows = []
    for c, step in enumerate(run.steps[:-1]):
        inside = (run.dense_steps > step) & (run.dense_steps <= run.steps[c + 1])
        truth = np.mean([ranks(values) for values in run.dense[inside]], axis=0)
        found = [rank_correlation(ranks(each[c]), truth) for each in known.values()]
        at = int(np.flatnonzero(inside)[0])
        soon = rank_correlation(ranks(run.working[SCORE][c]), ranks(run.dense[at]))
        rows.append([*found, soon])
        cells = " | ".join(f"{value:.3f}" for value in found)
        print(f"| {step} | {cells} | {soon:.3f} ({run.dense_steps[at] - step}) |", flush=True)
    means = np.mean(rows, axis=0)
    print(f"| mean | {' | '.join(f'{value:.3f}' for value in means)} |")


def share_needed(run: Run, values: Any, c: int, order: Rows) -> float:
    """Share of `order` to measure until importance has the target's rank correlation."""
    truth = run.working[SCORE][c]
    least, most = 0, len(order)
    while least < most:  # more measured, better known
        middle = (least + most) // 2
        known = values.copy()
        known[order[:middle]] = truth[order[:middle]]
        if rank_correlation(run.importance(known), run.importance(truth)) >= TARGET:
            most = middle
        else:
            least = middle + 1
    return least / len(order)


def print_needed(run: Run, fraction: float) -> None:
    """The second table."""
    names = ["stale, at random", "gated, at random", "gated, by an oracle"]
    print(f"\n| step | {' | '.join(names)} |\n|--:|" + "--:|" * len(names))
    n, rows_of = len(run.samples), []
    for c in range(1, len(run.steps)):
        before = drift.Before.at(run, c - 1, drift.recipe())
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(n, round(fraction * n), replace=False))
        new = {name: value[c][rows] for name, value in run.working.items()}
        everyone = rng.permutation(n)
        rest = everyone[~np.isin(everyone, rows)]
        values = drift.by_rule("gated")(before, rows, new)[SCORE]
        wrong = np.abs(run.importance(values) - run.importance(run.working[SCORE][c]))
        worst = rest[np.argsort(-wrong[rest], kind="stable")]
        shares = [share_needed(run, before.old[SCORE], c, everyone)]
        shares += [share_needed(run, values, c, np.concatenate([rows, o])) for o in (rest, worst)]
        rows_of.append(shares)
        print(f"| {run.steps[c]} | {' | '.join(f'{s:.0%}' for s in shares)} |", flush=True)
    print(f"| mean | {' | '.join(f'{s:.0%}' for s in np.mean(rows_of, axis=0))} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--fractions", default="0.1,0.3", help="of the chains")
    options = parser.parse_args()
    run = Run.load(options.run, "hidden")
    if run.dense.size:
        print_later(run, [float(f) for f in options.fractions.split(",")])
    print_needed(run, 0.1)


if __name__ == "__main__":
    main()
