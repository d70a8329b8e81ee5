"""Whose gradient does a coreset have? Each selector's error beside that of a random draw.

    python benchmarks/exact_run.py --model llama-tiny --samples 1000 --steps 75,300,900 \
        -o runs/drift/tiny-1000.npz
    python benchmarks/gradient_error.py runs/drift/tiny-1000.npz

The error is |weighted mean gradient of the coreset - mean gradient of all| / |mean gradient of
all|, by the exact gradient sketches of a run of `exact_run.py`: root of the mean square over draws,
mean over checkpoints, printed as a ratio to that of random draws of the same size. Scores are the
exact ones, the graph is over hidden states (`--features`), all else as the selectors have it by
default, with the weights that each is given by default (`w`) or with equal ones (`u`). `tokens`:
the trainer averages over the tokens of a batch, so that a row's part is its number of tokens times
the gradient of its mean loss; `samples`: that gradient alone. The recipe's `scoring.loss` says
which, so `balanced` has the norm of the row's part in that average. `balanced, redrawn`: drawn by a
trainer from the version's probabilities, along the walk through the graph. `balanced, 10 %
measured`: at each checkpoint but the first a refresh measures a tenth of the rows and carries the
rest over, as a chain from the first checkpoint, where all are measured; the table leaves the first
out.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.replay import Run, refreshed
from gracekit.draw.along import draw_along
from gracekit.draw.capped import capped_probabilities
from gracekit.graph import build_index, symmetric, unit_features
from gracekit.protocols import SelectionInputs
from gracekit.recipe import GraphSection, Recipe, ScoringSection, SelectionSection
from gracekit.scores.importance import sample_importance
from gracekit.selection import select
from gracekit.types import Float64, Origin, ScoreTable

Weights = Literal["uniform", "selector"] | None

Average = Literal["tokens", "samples"]
AVERAGES: tuple[Average, ...] = ("tokens", "samples")
WEIGHTS: dict[str, Weights] = {"w": None, "u": "uniform"}
ONCE = ("coverage", "top", "bottom", "d2", "stratified", "craig", "k-center", "gradient-matching")
"""Selectors without chance: one coreset a checkpoint."""
OWN = ("craig", "gradient-matching")
"""Selectors with weights of their own that are not the default."""
ROWS = (
    *ONCE,
    "balanced, α 1",
    "balanced",
    "balanced, redrawn",
    "balanced, 20 % measured",
    "balanced, 10 % measured",
    "balanced, 5 % measured",
)
MEASURED = (0.2, 0.1, 0.05)


@dataclass(frozen=True)
class Exact:
    """One checkpoint of a run, with what a selection starts from."""

    inputs: SelectionInputs
    gradients: dict[str, Float64]
    """average -> [n, k²] each row's part in it, by its sketch"""
    chained: dict[str, SelectionInputs]
    """share measured in words -> what is known in a chain of refreshes; none at the first"""

    @classmethod
    def of(cls, run: Run, c: int, sketches: Any, chained: dict[str, SelectionInputs]) -> Exact:
        """Checkpoint c."""
        n, scoring = len(run.samples), ScoringSection()
        valid = np.ones(n, bool)
        hidden = run.features[c].astype(np.float32)
        index = build_index(unit_features(hidden, valid), GraphSection(), valid=valid, seed=0)
        scores = {name: score[c] for name, score in run.exact.items()}
        table = ScoreTable(
            scores=scores,
            importance=sample_importance(scores, run.samples, scoring),
            origin=np.full(n, Origin.MEASURED, np.uint8),
            measured_step=np.full(n, int(run.steps[c])),
            measured_version=np.ones(n, np.int64),
            confidence=np.ones(n, np.float32),
        )
        of_samples = sketches[c].astype(np.float64)
        return cls(
            inputs=SelectionInputs(
                scores=table, samples=run.samples, graph=symmetric(index.graph),
                features=run.features[c], scoring=scoring,
            ),
            gradients={
                "samples": of_samples,
                "tokens": of_samples * run.samples.num_response_tokens[:, None],
            },
            chained=chained,
        )  # fmt: skip

    def errors(
        self, name: str, weights: Weights, average: Average, fraction: float, draws: int
    ) -> Float64:
        """[draws] relative errors of the mean gradient; one without chance."""
        selector, _, kind = name.partition(", ")
        inputs = self.chained.get(kind, self.inputs)
        inputs = replace(inputs, scoring=ScoringSection(loss=average))
        if weights is None and selector in OWN:
            weights = "selector"
        alpha = 1.0 if kind == "α 1" else SelectionSection().alpha
        settings = SelectionSection(
            selector=selector, fraction=fraction, weights=weights, alpha=alpha
        )
        gradients = self.gradients[average]
        mean = gradients.mean(axis=0)
        found = []
        for version in range(1, 2 if selector in ONCE else draws + 1):
            if version == 1 or kind != "redrawn":
                chosen = select(settings, inputs, seed=0, version=version)
            rows, of_rows = chosen.rows, chosen.weights
            if kind == "redrawn":
                draw, rng = chosen.draw, np.random.default_rng(version)
                assert draw is not None
                rows = draw_along(draw.probabilities, draw.places, draw.parts, rng)
                of_rows = draw.weights[rows] if weights is None else np.ones(len(rows), np.float32)
            estimate = np.average(gradients[rows], axis=0, weights=of_rows)
            found.append(float(np.linalg.norm(estimate - mean) / np.linalg.norm(mean)))
        return np.array(found)


def without_graph(gradients: Float64, fraction: float) -> float:
    """Error of a draw by exact norms (α 0) without a graph, relative to a random one, by formula.

    The variance of a draw of fixed size, as Hájek (1964) approximates it for large draws:
    Σ (1 - π) π |g/π - b|², with b the mean of g/π under the weights (1 - π) π.
    """
    n = len(gradients)
    norms = np.linalg.norm(gradients, axis=1)
    p = capped_probabilities(norms, np.ones(n), fraction * n)

    def variance(p: Float64) -> float:
        weights, expanded = (1 - p) * p, gradients / p[:, None]
        centre = (weights[:, None] * expanded).sum(axis=0) / weights.sum()
        return float((weights[:, None] * (expanded - centre) ** 2).sum())

    return float(np.sqrt(variance(p) / variance(np.full(n, fraction))))


def chained(run: Run, share: float) -> list[SelectionInputs | None]:
    """What a chain of refreshes knows at each checkpoint; None at the first."""
    recipe = Recipe.from_dict({
        "data": {"path": "data/train.jsonl"},
        "refresh": {"min_fraction": share, "max_fraction": share, "min_probe": 0},
        "selection": {"selector": "random"},
    })  # fmt: skip
    last = refreshed(run, recipe, 0, None).as_last(None)
    found: list[SelectionInputs | None] = [None]
    for c in range(1, len(run.steps)):
        after = refreshed(run, recipe, c, last)
        last = after.as_last(last)
        found.append(
            SelectionInputs(
                scores=after.scores,
                samples=run.samples,
                graph=after.graph,
                features=after.features,
            )
        )
    return found


def ratios(
    points: list[Exact], name: str, weights: Weights, average: Average, fraction: float, draws: int,
    random: list[float],
) -> float:  # fmt: skip
    """Mean over checkpoints of the error relative to that of random draws."""
    each = [
        np.sqrt(np.mean(point.errors(name, weights, average, fraction, draws) ** 2)) / base
        for point, base in zip(points, random, strict=True)
    ]
    return float(np.mean(each))


def main() -> None:
    """Print one table for each average."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a file that exact_run.py wrote")
    parser.add_argument("--fractions", default="0.05,0.1,0.3")
    parser.add_argument("--draws", type=int, default=40, help="of selectors with chance")
    parser.add_argument("--features", default="hidden", help="of the file, for the graph")
    options = parser.parse_args()
    run = Run.load(options.run, options.features)
    with np.load(options.run) as file:
        sketches = file["sketch"]
    chains = {f"{share:.0%}".replace("%", " % measured"): chained(run, share) for share in MEASURED}
    points = []
    for c in range(len(run.steps)):
        known = {name: chain[c] for name, chain in chains.items()}
        there = {name: inputs for name, inputs in known.items() if inputs is not None}
        points.append(Exact.of(run, c, sketches, there))
    fractions = [float(part) for part in options.fractions.split(",")]
    print(f"{len(run.samples)} samples, checkpoints at steps {run.steps.tolist()}, "
          f"{options.draws} draws")  # fmt: skip
    draws = options.draws
    for average in AVERAGES:
        random = {
            fraction: [
                float(np.sqrt(np.mean(
                    p.errors("random-fresh", "uniform", average, fraction, options.draws) ** 2)))
                for p in points
            ]
            for fraction in fractions
        }  # fmt: skip
        heads = [f"{fraction:.0%} {kind}" for fraction in fractions for kind in WEIGHTS]
        print(f"\n| mean over {average} | " + " | ".join(heads) + " |")
        print("|---|" + "--:|" * len(heads))
        bases = " | ".join(f"| {np.mean(random[f]):.3f}" for f in fractions)
        print(f"| error of random draws {bases} | |")
        bound = [
            np.mean([without_graph(p.gradients[average], f) for p in points]) for f in fractions
        ]
        print(
            "| by exact norms, no graph, formula | "
            + " | ".join(f"{b:.2f} | " for b in bound)
            + " |"
        )
        for name in ROWS:
            first = 1 if name.endswith("measured") else 0
            cells = [
                f"{ratios(points[first:], name, w, average, f, draws, random[f][first:]):.2f}"
                for f in fractions
                for w in WEIGHTS.values()
            ]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        for name in points[-1].chained:
            kept = []
            for f in fractions:
                of = [
                    1 - ratios(points[1:], row, None, average, f, draws, random[f][1:])
                    for row in (f"balanced, {name}", "balanced")
                ]
                kept.append(f"{of[0] / of[1]:.0%} | ")
            print(f"| gain kept, {name} | " + " | ".join(kept) + " |", flush=True)


if __name__ == "__main__":
    main()
