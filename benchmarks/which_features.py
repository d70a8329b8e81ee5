"""Which features: hidden states, gradient sketches, or both, for propagation and for coverage.

    python benchmarks/exact_run.py -o runs/drift/tiny.npz            # once, see there
    python benchmarks/which_features.py runs/drift/tiny.npz

For each kind: what one refresh recovers of the gap between stale scores and exact ones, by the
graph alone and by `gated`; and a chain of refreshes. Its coresets are judged in four spaces. Each
kind's own space favours that kind: what is similar by hidden states need not be by gradients, and a
coreset is best at what it was selected by. So the fourth is neutral: both kinds, of the last
checkpoint, the same at every refresh. `exact` selects from exact scores and features, and shows
what a kind could do at best. Importance and coverage are told apart: 0 is a random draw, 1 the most
that one of them alone can be.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from gracekit.types import Rows

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import drift
from benchmarks.replay import SCORES, Run, Truths, chain

KINDS = ("hidden", "middle", "sketch", "both")


def print_gaps(runs: dict[str, Run], fraction: float, num_seeds: int) -> None:
    """One refresh from exact knowledge."""
    print("| features | score | stale | graph alone | gated |\n|---|---|--:|--:|--:|")
    for kind, run in runs.items():
        found = drift.one_refresh(run, drift.recipe(), fraction, num_seeds)
        for score in SCORES:
            stale = found[score, "stale"]
            cells = [
                f"{of.mean():.3f} ({((of - stale) / (1 - stale)).mean():+.2f})"
                for of in (found[score, "graph alone"], found[score, "gated"])
            ]
            print(f"| {kind} | {score} | {stale.mean():.3f} | {' | '.join(cells)} |", flush=True)


def print_chains(runs: dict[str, Run], fraction: float) -> None:
    """Chains, judged in all spaces."""
    recipe = drift.recipe(refresh=drift.fixed(fraction))
    spaces = {**runs, "neutral": neutral(runs["both"])}
    truths = {name: Truths.of(run, recipe) for name, run in spaces.items()}

    def judged(chosen: list[Rows]) -> str:
        cells = []
        for truth in truths.values():
            gains = np.mean([truth.gains(c, rows) for c, rows in enumerate(chosen, 1)], axis=0)
            cells.append(f"{gains[1]:+.2f}")
        return f"{gains[0]:.2f} | " + " | ".join(cells)

    names = ["", "importance, all rows", "loss", "cosine", "edges", "importance of the coreset"]
    names += [f"coverage by {name}" for name in spaces]
    print(f"\n| features | {' | '.join(names)} |\n|---|---|" + "--:|" * (len(names) - 1))
    for kind, run in runs.items():
        best = [truths[kind].best(c) for c in range(1, len(run.steps))]
        print(f"| {kind} | exact | | | | | {judged(best)} |", flush=True)
        links = chain(run, recipe)
        means = [
            np.mean([link.rank_correlation[SCORES[0]] for link in links]),
            np.mean([link.rank_correlation[SCORES[1]] for link in links]),
            np.mean([link.cosine for link in links]),
            np.mean([link.edges for link in links]),
        ]
        cells = " | ".join(f"{mean:.3f}" for mean in means)
        selected = judged([link.selected for link in links])
        print(f"| {kind} | {fraction:.0%} measured | {cells} | {selected} |", flush=True)


def neutral(run: Run) -> Run:
    """The features of the last checkpoint at every checkpoint."""
    last = np.broadcast_to(run.features[-1], run.features.shape)
    samples = dataclasses.replace(run.samples, fingerprint=f"{run.samples.fingerprint}-neutral")
    return dataclasses.replace(run, features=last, samples=samples)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    runs = {kind: Run.load(options.run, kind) for kind in KINDS}
    print_gaps(runs, options.fraction, options.seeds)
    print_chains(runs, options.fraction)


if __name__ == "__main__":
    main()
