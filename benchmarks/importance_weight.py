"""What both terms of `coverage` reach over λ, on a store; draws docs/importance-weight.svg.

    make run
    python benchmarks/importance_weight.py runs/quickstart/store -o docs/importance-weight.svg

A share is 0 at a random draw and 1 at what the term reaches alone. For comparison the same
sweep on raw sums: rank-normalised importance plus similarities, without a common scale.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from gracekit.graph import load_index, symmetric
from gracekit.greedy import lazy_greedy
from gracekit.protocols import SelectionInputs
from gracekit.recipe import GraphSection, SelectionSection
from gracekit.selection import select
from gracekit.store import Store

LAMBDAS = np.round(np.linspace(0, 1, 21), 2)
WIDTH, HEIGHT, MARGIN = 560, 340, 48
CURVES = {
    "importance": ("#b3401f", ""),
    "coverage": ("#1f5fb3", ""),
    "importance, raw sums": ("#b3401f", "5 4"),
    "coverage, raw sums": ("#1f5fb3", "5 4"),
}


def sweep(root: Path, fraction: float) -> dict[str, list[float]]:
    """Share of what each term could gain, at every λ."""
    store = Store.open(root)
    version = store.latest()
    assert version is not None, f"{root} has no version"
    cache = store.load_cache(version)
    assert cache is not None, f"{root} has no cache"
    made = store.header(store.header(version).scores_version).settings.graph
    index = load_index(cache.index_directory, settings=made or GraphSection())
    assert index is not None, f"the graph of {root} is damaged"
    graph, scores, samples = symmetric(index.graph), store.scores(version), store.samples()
    inputs = SelectionInputs(scores=scores, samples=samples, graph=graph)
    n = len(samples)
    found: dict[str, list[float]] = {name: [] for name in CURVES}
    raw: list[tuple[float, float]] = []
    for weight in LAMBDAS:
        details = select(
            SelectionSection(fraction=fraction, importance_weight=float(weight)),
            inputs,
            seed=0,
            version=1,
        ).details
        found["importance"].append(details["importance_share"])
        found["coverage"].append(details["coverage_share"])
        result = lazy_greedy(
            graph, modular=weight * scores.importance.astype(np.float64),
            need=np.full(n, 1 - weight), budget=details["budget"], order=np.arange(n),
            candidates=np.ones(n, bool),
        )  # fmt: skip
        covering = lazy_greedy(
            graph, modular=np.zeros(n), need=np.ones(n), budget=0, order=np.arange(n),
            candidates=np.ones(n, bool), initial=result.rows,
        )  # fmt: skip
        raw.append((float(scores.importance[result.rows].mean()), covering.objective / n))
    drawn = select(
        SelectionSection(selector="random", fraction=fraction),
        inputs,
        seed=0,
        version=1,
    ).details
    most = (raw[-1][0], raw[0][1])
    for importance, coverage in raw:
        found["importance, raw sums"].append(
            (importance - drawn["importance"]) / (most[0] - drawn["importance"])
        )
        found["coverage, raw sums"].append(
            (coverage - drawn["coverage"]) / (most[1] - drawn["coverage"])
        )
    return found


def draw(curves: dict[str, list[float]], title: str) -> str:
    """An SVG without a library."""

    def at(weight: float, share: float) -> str:
        low, high = -1.4, 1.05
        x = MARGIN + weight * (WIDTH - MARGIN - 12)
        y = HEIGHT - MARGIN - (share - low) / (high - low) * (HEIGHT - MARGIN - 30)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{MARGIN}" y="18">{title}</text>',
    ]
    for share in (-1, -0.5, 0, 0.5, 1):
        start, end = at(0, share).split(","), at(1, share).split(",")
        parts.append(f'<line x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}" '
                     'stroke="#ddd"/>')  # fmt: skip
        parts.append(f'<text x="{MARGIN - 8}" y="{float(start[1]) + 4:.1f}" '
                     f'text-anchor="end">{share:g}</text>')  # fmt: skip
    for weight in (0, 0.25, 0.5, 0.75, 1):
        x = at(weight, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - 28}" text-anchor="middle">{weight:g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
                 "λ (selection.importance_weight)</text>")  # fmt: skip
    for place, (name, shares) in enumerate(curves.items()):
        colour, dashes = CURVES[name]
        points = " ".join(at(w, s) for w, s in zip(LAMBDAS, shares, strict=True))
        style = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
        parts.append(f'<polyline points="{points}" fill="none" {style}/>')
        y = HEIGHT - MARGIN - 66 + 15 * place
        parts.append(f'<line x1="210" y1="{y}" x2="236" y2="{y}" {style}/>')
        parts.append(f'<text x="242" y="{y + 4}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Print the table, and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    curves = sweep(options.store, options.fraction)
    print("| λ | " + " | ".join(curves) + " |")
    print("|---|" + "---|" * len(curves))
    for place, weight in enumerate(LAMBDAS):
        if place % 2 == 0:
            cells = " | ".join(f"{shares[place]:.2f}" for shares in curves.values())
            print(f"| {weight:g} | {cells} |")
    if options.output:
        title = (
            f"Share of what each term could gain over a random draw, {options.fraction:.0%} kept"
        )
        options.output.write_text(draw(curves, title), encoding="utf-8")


if __name__ == "__main__":
    main()
