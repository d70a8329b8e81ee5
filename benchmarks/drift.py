"""How well partial refreshes follow a real run in which every sample was measured exactly.

    python benchmarks/exact_run.py -o runs/drift/tiny.npz            # once, see there
    python benchmarks/drift.py runs/drift/tiny.npz -o docs/drift.svg

Replays measurements of `exact_run.py` through gracekit's own plan, audit, propagation, graph and
selection. Two tables for every run:

- one refresh that starts from exact knowledge of the checkpoint before: rank correlation of
  importance with the truth on the rows that were not measured, by what carries the change over;
- a chain of refreshes that starts from one full measurement: rank correlation of all rows, cosine
  of their features, share of the true graph's edges, objective kept, and what it cost.

`objective kept` is the true objective of the selected coreset, with exact importance and dense
similarities of exact features: 0 as a random coreset, 1 as the one that full measuring selects.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeCV

from gracekit.audit import rank_correlation
from gracekit.graph import build_index, symmetric, unit_features
from gracekit.propagation import propagate_scores
from gracekit.propagation.diffusion import spread, transition
from gracekit.propagation.gates import folds, share_that_helps
from gracekit.propagation.kernel import Kernel
from gracekit.recipe import Recipe
from gracekit.types import Float32, Float64, Int32, Rows, SparseGraph

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.replay import SCORES, Link, Run, chain

SELECTED = 0.15
AUDITED = {"max_fraction": 1.0, "target_value": 0.0, "target_rank_correlation": 0.9}
"""Measures until the audit says that importance is known so well."""


# One refresh


def covariates(run: Run, c: int) -> Float32:
    """[n, p] as `LastRefresh.covariates` has them when all was measured at checkpoint c."""
    n = len(run.samples)
    changes = [v[c] - v[c - 1] if c else np.zeros(n) for v in run.working.values()]
    groups = [run.samples.groups == g for g in range(len(run.samples.group_names))]
    lengths = [np.log1p(run.samples.num_response_tokens), np.log1p(run.samples.num_prompt_tokens)]
    columns = [np.asarray(column, np.float32) for column in (*lengths, *changes, *groups)]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Before:
    """All that is known before a refresh, exactly as it was at the checkpoint before."""

    old: dict[str, Float32]
    inputs: Float32
    covariates: Float32
    unit: Float32
    graph: SparseGraph
    settings: Any
    groups: Int32

    @classmethod
    def at(cls, run: Run, c: int, recipe: Recipe) -> Before:
        """Known at checkpoint c."""
        everyone = np.ones(len(run.samples), bool)
        unit = unit_features(run.features[c], everyone)
        index = build_index(unit, recipe.graph, valid=everyone, seed=0)
        known = covariates(run, c)
        old = {name: value[c] for name, value in run.working.items()}
        return cls(
            old=old,
            inputs=np.column_stack([*old.values(), known]).astype(np.float32),
            covariates=known,
            unit=unit,
            graph=symmetric(index.graph),
            settings=recipe.propagation,
            groups=run.samples.groups,
        )


def by_rule(rule: str) -> Callable[[Before, Rows, dict[str, Float32]], dict[str, Any]]:
    """One of gracekit's rules."""

    def carry(before: Before, rows: Rows, new: dict[str, Float32]) -> dict[str, Any]:
        return propagate_scores(
            rule,
            old=before.old,
            measured_rows=rows,
            new=new,
            covariates=before.covariates,
            directions=before.unit,
            graph=before.graph,
            usable=np.ones(len(before.unit), bool),
            settings=before.settings,
            seed=0,
            groups=before.groups,
        ).values

    return carry


def each(change_of: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """A method that estimates the change of one score at a time."""

    def carry(before: Before, rows: Rows, new: dict[str, Float32]) -> dict[str, Any]:
        changes = {n: (new[n] - old[rows]).astype(np.float64) for n, old in before.old.items()}
        return {
            name: old + change_of(before, rows, changes[name], column)
            for column, (name, old) in enumerate(before.old.items())
        }

    return carry


def line(before: Before, rows: Rows, change: Float64, column: int) -> Any:
    """A line over the old score."""
    old = before.inputs[:, column]
    return np.polyval(np.polyfit(old[rows], change, 1), old)


def regression(before: Before, rows: Rows, change: Float64, column: int) -> Any:
    """Ridge over everything known but the features."""
    at = before.inputs[rows]
    scale = np.where(at.std(axis=0) > 1e-6, at.std(axis=0), 1)
    fitted = RidgeCV(alphas=(1, 10, 100)).fit((at - at.mean(axis=0)) / scale, change)
    inputs = np.clip(before.inputs, at.min(axis=0), at.max(axis=0))
    return fitted.predict((inputs - at.mean(axis=0)) / scale)


def graph_alone(before: Before, rows: Rows, change: Float64, column: int) -> Any:
    """The change diffused over the graph, 3 hops, scaled by what held-out rows say."""
    walk = transition(before.graph, np.ones(len(before.unit), bool))
    fold = folds(len(rows), 5, np.random.default_rng(0))
    arrived = np.empty(len(rows))
    for number in range(5):
        kept, held = fold != number, fold == number
        values = change[kept, None].astype(np.float32)
        news = spread(walk, rows[kept], values, damping=0.85, hops=(3,))[3]
        arrived[held] = news.values[rows[held], 0]
    share = share_that_helps(arrived, change)
    news = spread(walk, rows, change[:, None].astype(np.float32), damping=0.85, hops=(3,))[3]
    return share * news.values[:, 0]


def kernel_alone(before: Before, rows: Rows, change: Float64, column: int) -> Any:
    """The kernel regression without a gate."""
    fold, rng = np.zeros(len(rows), np.int64), np.random.default_rng(0)
    kernel = Kernel(before.inputs, before.unit, rows, fold, rng)
    fit = kernel.fit(change, column, kernel.penalty_for(change, column))
    return kernel.everywhere([fit])[0][0]


METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "stale": by_rule("none"),
    "linear": each(line),
    "regression": each(regression),
    "graph alone": each(graph_alone),
    "grace": by_rule("grace"),
    "kernel": each(kernel_alone),
    "gated": by_rule("gated"),
}


def one_refresh(
    run: Run, recipe: Recipe, fraction: float, num_seeds: int
) -> dict[tuple[str, str], Any]:
    """(score, method) -> [transitions] rank correlation on the rows that were not measured."""
    n, found = len(run.samples), dict[tuple[str, str], Any]()
    for c in range(len(run.steps) - 1):
        before = Before.at(run, c, recipe)
        for seed in range(num_seeds):
            rng = np.random.default_rng(seed)
            rows = np.sort(rng.choice(n, round(fraction * n), replace=False))
            rest = np.setdiff1d(np.arange(n), rows)
            new = {name: value[c + 1][rows] for name, value in run.working.items()}
            for method, carry in METHODS.items():
                values = carry(before, rows, new)
                for name, truth in run.working.items():
                    found.setdefault((name, method), np.zeros(len(run.steps) - 1))[c] += (
                        rank_correlation(
                            run.importance(values[name])[rest], run.importance(truth[c + 1])[rest]
                        )
                        / num_seeds
                    )
    return found


def recipe(**changes: dict[str, Any]) -> Recipe:
    """Defaults, but for the given sections' keys."""
    sections: dict[str, dict[str, Any]] = {
        "data": {"path": "-"},
        "selection": {"selector": "coverage", "fraction": SELECTED},
        "propagation": {"min_measured": 40},
    }
    for name, keys in changes.items():
        sections[name] = {**sections.get(name, {}), **keys}
    return Recipe.model_validate(sections)


def fixed(fraction: float) -> dict[str, Any]:
    """So much measured at every checkpoint, whatever the audit says."""
    return {"min_fraction": fraction, "max_fraction": fraction}


def print_one_refresh(run: Run, fractions: list[float], num_seeds: int) -> None:
    """The first table."""
    print("\n| measured | score | " + " | ".join(METHODS) + " |\n|---|---|" + "--:|" * len(METHODS))
    for fraction in fractions:
        found = one_refresh(run, recipe(), fraction, num_seeds)
        for score in SCORES:
            stale = found[score, "stale"]
            cells = []
            for method in METHODS:
                each = found[score, method]
                gap = ((each - stale) / (1 - stale)).mean()
                cells.append(f"{each.mean():.3f} ({gap:+.2f}, {(each - stale).min():+.3f})")
            print(f"| {fraction:.0%} | {score} | {' | '.join(cells)} |", flush=True)


CHAINS: dict[str, dict[str, Any]] = {
    "nothing carried over": {"propagation": {"rule": "none", "features": "none"}},
    "grace": {"propagation": {"rule": "grace"}},
    "gated, random": {"refresh": {"plan": "random"}},
    "gated, oldest": {"refresh": {"plan": "oldest"}},
    "gated, grace's plan": {"refresh": {"plan": "grace"}},
    "gated, cover": {"refresh": {"plan": "cover"}},
}


def print_chains(run: Run, fractions: list[float]) -> None:
    """The second table."""
    print("\n| measured | chain | importance | loss | cosine | edges | objective kept "
          "| audit misses | CPU s |\n|---|---|" + "--:|" * 7)  # fmt: skip
    for fraction in fractions:
        for name, changes in CHAINS.items():
            refresh = {**fixed(fraction), **changes.get("refresh", {})}
            links = chain(run, recipe(**{**changes, "refresh": refresh}))
            print(f"| {fraction:.0%} | {name} | {cells_of(links)} |", flush=True)


COLOURS = {
    "nothing carried over": "#8a8a8a", "grace": "#c99a2e", "gated, random": "#1f5fb3",
    "audit decides": "#b3401f",
}  # fmt: skip


def draw(run: Run, path: Path) -> None:
    """Rank correlation along the run: 10 % measured, and as much as the audit asks for."""
    width, height, margin = 640, 330, 48
    lines: dict[str, list[float]] = {}
    for name in COLOURS:
        refresh = AUDITED if name == "audit decides" else fixed(0.1)
        changes = CHAINS.get(name, {})
        links = chain(run, recipe(**{**changes, "refresh": refresh}))
        lines[name] = [1.0, *(link.rank_correlation["gradient-norm"] for link in links)]
        if name == "audit decides":
            cost = np.mean([link.cost for link in links])
            label = f"as much as the audit asks for: {cost:.0%} measured on average"
    steps = run.steps.astype(float)
    x_of = margin + (width - 2 * margin) * (steps - steps[0]) / (steps[-1] - steps[0])
    lowest = np.floor(10 * min(map(min, lines.values()))) / 10 - 0.2  # room for the legend

    def y_of(value: float) -> float:
        return float(margin + (height - 2 * margin) * (1 - value) / (1 - lowest))

    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for value in np.arange(lowest, 1.01, 0.1):
        y = y_of(value)
        svg += [
            f'<line x1="{margin}" x2="{width - margin}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
            f'<text x="{margin - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>',
        ]
    svg += [
        f'<text x="{x:.0f}" y="{height - margin + 18}" text-anchor="middle">{step:.0f}</text>'
        for x, step in zip(x_of, steps, strict=True)
    ]
    for place, (name, values) in enumerate(lines.items()):
        points = " ".join(f"{x:.1f},{y_of(v):.1f}" for x, v in zip(x_of, values, strict=True))
        y = height - margin - 12 - 15 * (len(lines) - 1 - place)
        text = label if name == "audit decides" else f"{name}, 10 % measured"
        svg += [
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>',
            f'<line x1="{margin + 8}" x2="{margin + 32}" y1="{y - 4}" y2="{y - 4}" '
            f'stroke="{COLOURS[name]}" stroke-width="2"/>',
            f'<text x="{margin + 38}" y="{y}">{text}</text>',
        ]
    svg += [
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">training step</text>',
        f'<text x="{margin}" y="24">rank correlation of importance with the truth, all samples'
        "</text>",
        "</svg>",
    ]
    path.write_text("\n".join(svg) + "\n")


def cells_of(links: list[Link]) -> str:
    """Means over the chain, and its last link."""

    def mean_last(values: list[float]) -> str:
        return f"{np.mean(values):.3f} ({values[-1]:.3f})"

    return " | ".join(
        [
            mean_last([link.rank_correlation["gradient-norm"] for link in links]),
            mean_last([link.rank_correlation["loss"] for link in links]),
            mean_last([link.cosine for link in links]),
            mean_last([link.edges for link in links]),
            mean_last([link.kept for link in links]),
            mean_last([abs(link.audit - link.unmeasured) for link in links]),
            f"{np.mean([link.seconds for link in links]):.1f}",
        ]
    )


def print_adaptive(run: Run) -> None:
    """The third: the budget as the audit asks, up to everything."""
    print("\n| step | measured | audit | true | stale | over all, audit | over all, true "
          "| objective kept |\n|--:|" + "--:|" * 7)  # fmt: skip
    links = chain(run, recipe(refresh=AUDITED))
    for link in links:
        print(
            f"| {link.step} | {link.cost:.0%} | {link.audit:.3f} | {link.unmeasured:.3f} "
            f"| {link.stale:.3f} | {link.audit_all:.3f} "
            f"| {link.rank_correlation['gradient-norm']:.3f} | {link.kept:.3f} |",
            flush=True,
        )
    cost = (1 + sum(link.cost for link in links)) / (1 + len(links))
    print(f"{cost:.0%} of measuring everything at every checkpoint")


def print_long(run: Run) -> None:
    """Many refreshes in a row: does anything collapse?"""
    print(
        "\n| refresh | importance | cosine | effective rank / true | recall |\n|--:|" + "--:|" * 4
    )
    links = chain(run, recipe(refresh=fixed(0.1)))
    ranks = np.array([link.rank for link in links])
    for number, link in enumerate(links, start=1):
        if number in (1, 2, 5) or number % 10 == 0:
            print(f"| {number} | {link.rank_correlation['gradient-norm']:.3f} | {link.cosine:.3f} "
                  f"| {link.rank:.3f} | {link.recall:.3f} |")  # fmt: skip
    print(f"effective rank / true: {ranks.min():.3f} to {ranks.max():.3f}, "
          f"{np.mean(np.abs(ranks - 1) <= 0.05):.0%} of the refreshes within 5 %")  # fmt: skip


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument(
        "--features", choices=["hidden", "middle", "sketch", "both"], default="hidden"
    )
    parser.add_argument("--fractions", default="0.05,0.1,0.2")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, help="so many random ones (default: all)")
    parser.add_argument("--only-refresh", action="store_true", help="the first table alone")
    parser.add_argument("-o", "--output", type=Path, help="SVG of the last run's chains")
    options = parser.parse_args()
    fractions = [float(f) for f in options.fractions.split(",")]
    for path in options.runs:
        run = Run.load(path, options.features)
        if options.samples:
            run = run.part(options.samples, seed=0)
        print(
            f"\n## {path.stem}: {len(run.samples)} samples, steps {run.steps.tolist()}", flush=True
        )
        if len(run.steps) > 20:
            print_long(run)
            continue
        print_one_refresh(run, fractions, options.seeds)
        if options.only_refresh:
            continue
        print_chains(run, fractions)
        print_adaptive(run)
        if options.output:
            draw(run, options.output)


if __name__ == "__main__":
    main()
