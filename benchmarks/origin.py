"""Whether a row is selected must not depend on whether it was measured or carried over.

    python benchmarks/exact_run.py --model llama-tiny --samples 2000 \
        --steps 150,300,450,600,900 -o runs/drift/tiny2000.npz
    python benchmarks/origin.py runs/drift/tiny2000.npz

A run of `exact_run.py` is replayed with a share of the rows measured at each refresh. For every
refresh and selector: the share selected of the measured rows and of the others, less what exact
scores and features give to the same rows, in points (hundredths), mean over seeds of the plan; for
`balanced` the expected share. Then what `balanced` makes of the carried-over norms: the sum of the
expected second moments of the rows that were not measured over that of their true ones, and the
share of the value of perfect norms that is kept, under both averages. Under the table, means over
its refreshes: the share that `top` keeps of what exact scores gain in true importance over a random
draw, the rank correlation of importance over all rows, and how far the audit's estimate of it is
off (root mean square). `--narrow` ranks carried-over scores as they are, without the spread of
measured ones.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gracekit.audit import rank_correlation
from gracekit.protocols import SelectionInputs
from gracekit.recipe import Recipe, ScoringSection, SelectionSection
from gracekit.refresher.step import Refreshed
from gracekit.scores.importance import sample_importance
from gracekit.scores.norms import expected_norms, part_norms
from gracekit.selection import select
from gracekit.types import Float64

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.replay import SCORES, Run, refreshed

SELECTORS = ("balanced", "coverage", "top")

Average = Literal["tokens", "samples"]
AVERAGES: tuple[Average, ...] = ("tokens", "samples")


@dataclass(frozen=True)
class Shares:
    """Of one refresh: selector -> selected share of the measured rows, and of the others."""

    published: dict[str, Float64]
    exact: dict[str, Float64]


def recipe(fraction: float, selected: float, seed: int, min_measured: int) -> Recipe:
    """Defaults, with a fixed share measured."""
    return Recipe.model_validate(
        {
            "data": {"path": "-"},
            "seed": seed,
            "refresh": {"min_fraction": fraction, "max_fraction": fraction},
            "selection": {"fraction": selected, "selector": "top"},
            "propagation": {"min_measured": min_measured},
        }
    )


def inputs_of(after: Refreshed, average: Average = "tokens") -> SelectionInputs:
    """What a selector sees of a refresh."""
    return SelectionInputs(
        scores=after.scores,
        samples=after.samples,
        graph=after.graph,
        features=after.features,
        scoring=ScoringSection(loss=average),
    )


def chances(name: str, inputs: SelectionInputs, selected: float) -> Float64:
    """[n] probability of every row to be selected; 0 or 1 where no chance is in it."""
    settings = SelectionSection(selector=name, fraction=selected)
    chosen = select(settings, inputs, seed=0, version=1)
    if chosen.draw is not None:
        return chosen.draw.probabilities
    found = np.zeros(len(inputs.samples))
    found[chosen.rows] = 1
    return found


def shares(after: Refreshed, exact: Refreshed, selected: float) -> Shares:
    """What is selected of both kinds of rows."""
    measured = np.zeros(len(after.samples), bool)
    measured[after.plan.rows] = True

    def of(table: Refreshed) -> dict[str, Float64]:
        each = {name: chances(name, inputs_of(table), selected) for name in SELECTORS}
        return {n: np.array([c[measured].mean(), c[~measured].mean()]) for n, c in each.items()}

    return Shares(of(after), of(exact))


def value(norms: Float64, probabilities: Float64) -> float:
    """Second moment of random draws over that of draws with these probabilities."""
    total = probabilities.sum()
    moment = (norms**2 / np.maximum(probabilities, 1e-300)).sum()
    return float((norms**2).sum() * len(norms) / total / moment)


def of_norms(run: Run, c: int, after: Refreshed, average: Average, selected: float) -> Any:
    """[2] ratio of expected to true second moments of the rows not measured; value kept."""
    inputs = inputs_of(after, average)
    tokens = run.samples.num_response_tokens
    scoring = ScoringSection(loss=average)
    true = part_norms(run.exact[SCORES[0]][c], tokens, scoring)
    rest = np.setdiff1d(np.arange(len(true)), after.plan.rows)
    expected = expected_norms(after.scores, tokens, inputs.scoring)
    ratio = float((expected[rest] ** 2).sum() / (true[rest] ** 2).sum())
    most = value(true, true * (selected * len(true) / true.sum()))
    kept = (value(true, chances("balanced", inputs, selected)) - 1) / (most - 1)
    return ratio, kept, most


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--fractions", default="0.1,0.2", help="measured at each refresh")
    parser.add_argument("--selected", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--min-measured", type=int, default=100, help="of the recipe")
    parser.add_argument("--narrow", action="store_true", help="see above")
    args = parser.parse_args()
    run = Run.load(args.run, "hidden")
    print(f"{len(run.samples)} samples, {args.selected:.0%} selected, {args.seeds} seeds")
    print("measured/others: selected share less the exact one, in points")
    for fraction in map(float, args.fractions.split(",")):
        print(f"\n| {fraction:.0%} measured, step | " + " | ".join(SELECTORS) + " | ways | "
              "Σq²/Σg² tokens, samples | value kept tokens, samples | best |")  # fmt: skip
        print("|--:|" + "--:|" * len(SELECTORS) + "---|--:|--:|--:|")
        recipes = [
            recipe(fraction, args.selected, seed, args.min_measured) for seed in range(args.seeds)
        ]
        report(run, recipes, args.selected, narrow=args.narrow)


def narrowed(after: Refreshed) -> Refreshed:
    """The same with carried-over scores ranked as they are."""
    scores = after.scores.scores
    importance = sample_importance(scores, after.samples, ScoringSection())
    return replace(after, scores=replace(after.scores, importance=importance))


def of_ranks(run: Run, c: int, after: Refreshed, exact: Refreshed, selected: float) -> Any:
    """Importance that `top` keeps, rank correlation over all rows, the audit's miss of it."""
    true = run.importance(run.working[SCORES[0]][c]).astype(np.float64)
    gains = [
        np.average(true, weights=chances("top", inputs_of(table), selected)) - true.mean()
        for table in (after, exact)
    ]
    found = rank_correlation(after.scores.importance, true)
    miss = after.audit.rank_correlation_all - found if after.audit else np.nan
    return gains[0] / gains[1], found, miss**2


def report(run: Run, recipes: list[Recipe], selected: float, *, narrow: bool) -> None:
    """A line for every refresh, the mean over the recipes."""
    ranks = []
    lasts = [refreshed(run, each, 0, None).as_last(None) for each in recipes]
    for c in range(1, len(run.steps)):
        exact = refreshed(run, recipes[0], c, None)
        afters = [refreshed(run, r, c, last) for r, last in zip(recipes, lasts, strict=True)]
        shown = [narrowed(after) for after in afters] if narrow else afters
        found = [shares(after, exact, selected) for after in shown]
        ranks += [of_ranks(run, c, after, exact, selected) for after in shown]
        cells = []
        for name in SELECTORS:
            each = np.mean([100 * (s.published[name] - s.exact[name]) for s in found], axis=0)
            cells.append(f"{each[0]:+.1f} / {each[1]:+.1f}")
        of_scores = [after.outcome.propagation.scores for after in afters]
        ways = sorted({s.scores[SCORES[0]].used for s in of_scores if s is not None})
        moments = {
            average: np.mean([of_norms(run, c, a, average, selected) for a in afters], axis=0)
            for average in AVERAGES
        }
        by = [", ".join(f"{m[k]:.2f}" for m in moments.values()) for k in range(3)]
        print(
            f"| {run.steps[c]} | " + " | ".join([*cells, ", ".join(ways), *by]) + " |", flush=True
        )
        lasts = [a.as_last(last) for a, last in zip(afters, lasts, strict=True)]
    kept, correlation, square = np.mean(ranks, axis=0)
    print(
        f"\ntop keeps {kept:.3f}; rank correlation {correlation:.3f}, the audit misses it by "
        f"{np.sqrt(square):.3f}"
    )


if __name__ == "__main__":
    main()
