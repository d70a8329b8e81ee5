"""How well each signal finds rows of the target's source, by how many rows are measured.

    python benchmarks/aim_signals.py -o runs/signals
    python benchmarks/aim_signals.py --model smollm2 --rows 2000 --max-length 128 -o runs/signals
    ... --checkpoint RUN/checkpoint-200 ...

All rows are measured at one checkpoint, with the sketches of their gradients; then a random part of
them is taken as measured, several times. AUC is that of rows of the target's source against all
others, precision that of the best 30 % (or as many as the source has, if fewer): *plain* by the
cosine of a row's own sketch with the target's mean, which only measured rows have; *centred* the
same with what the measured rows have in common taken off both; *plain, smoothed* and *smoothed*
both averaged over the graph, the latter as `gracekit.aim` does it; *likeness* by the features.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from gracekit.aim.likeness import likeness
from gracekit.aim.smoothing import reach, smoothed_cosines, walk_matrix
from gracekit.graph import build_index, symmetric, unit_features
from gracekit.model_pass.context import TargetSamples
from gracekit.model_pass.executors import LocalExecutor
from gracekit.recipe import DataSection, GraphSection, ScoringSection
from gracekit.samples import load_samples, tokenize
from gracekit.types import Bool, Float32, Int32, Measurement

sys.path.insert(0, str(Path(__file__).parent.parent))
from pipelines.train_quickstart import read_rows, smollm2, tiny_llama

DATA = Path(__file__).parent.parent / "data/train.jsonl"
NUM_TARGET = 40
FEATURES = ("embedding-mean", "hidden-mean")


def hashed(row: dict[str, str]) -> int:
    """A number that depends on the row's text alone."""
    return int.from_bytes(hashlib.sha256(row["prompt"].encode()).digest()[:6], "big")


def auc(signal: Float32, positive: Bool) -> float:
    """Area under the ROC curve; ties count half."""
    from scipy.stats import rankdata

    ranks, count = rankdata(signal), int(positive.sum())
    above = ranks[positive].sum() - count * (count + 1) / 2
    return float(above / (count * (len(signal) - count)))


def precision(signal: Float32, positive: Bool) -> float:
    """Share of the source's rows among the best ones."""
    count = min(int(0.3 * len(signal)), int(positive.sum()))
    return float(positive[np.argsort(-signal)[:count]].mean())


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Sketches and features of all rows, from a file where it is there."""
    name = options.checkpoint.name if options.checkpoint else "base"
    if options.measure:
        name += f"-{options.measure}"
    if options.data != DATA:
        name += f"-{options.data.stem}"
    path = options.output / f"{options.model}-{options.rows}-{name}.npz"
    if path.is_file():
        known = dict(np.load(path, allow_pickle=False))
        if set(options.features.split(",")) <= known.keys():
            return known
    every = read_rows(options.data, None)
    model, tokenizer = smollm2() if options.model == "smollm2" else tiny_llama(every)
    if options.checkpoint:
        model = type(model).from_pretrained(options.checkpoint)
    options.output.mkdir(parents=True, exist_ok=True)
    pool = options.output / f"pool-{options.rows}.jsonl"
    rows = sorted(every, key=hashed)[: options.rows]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSection(path=str(pool), group_column="source", max_length=options.max_length)
    raw = load_samples(settings)
    tokens = tokenize(raw, tokenizer, settings, options.output / "tokens")
    chosen = np.flatnonzero(tokens.num_targets)
    found: dict[str, Any] = {}
    sketched = np.arange(len(chosen))
    if options.measure:
        found["spare"] = spare_rows(raw.groups[chosen])
        others = np.flatnonzero(~found["spare"])
        drawn = np.random.default_rng(0).choice(others, options.measure, replace=False)
        sketched = np.sort(np.r_[np.flatnonzero(found["spare"]), drawn])
    for features in options.features.split(","):
        scoring = ScoringSection(
            features=features,
            scores=("sketch-norm", "loss"), importance="sketch-norm",
            batch_tokens=1024, num_threads=1,
        )  # fmt: skip
        target = TargetSamples(
            tokens=tokens.arranged(chosen[:1]), groups=raw.groups[chosen[:1]],
            group_names=raw.group_names, contents=np.asarray(raw.content_hashes[chosen[:1]]),
            keeps_sketches=features == FEATURES[0],
        )  # fmt: skip
        executor = LocalExecutor(model, tokens, scoring, target=target)
        if features == FEATURES[0]:
            to_sketch = chosen[sketched]
            whole = Measurement.arranged(executor.measure(to_sketch), to_sketch)
            assert whole is not None and whole.sketches is not None
            found["sketches"] = np.full((len(chosen), whole.sketches.shape[1]), np.nan, np.float16)
            found["sketches"][sketched] = whole.sketches
        looked_at = Measurement.arranged(executor.look(chosen), chosen)
        assert looked_at is not None
        found[features] = looked_at.features
    found["groups"] = raw.groups[chosen]
    found["names"] = np.array(raw.group_names)
    found["lengths"] = tokens.num_targets[chosen]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **found)
    return found


def spare_rows(groups: Int32) -> Bool:
    """[n] rows that targets are drawn from: two targets of each source, or a quarter of it."""
    random, spare = np.random.default_rng(0), np.zeros(len(groups), np.bool_)
    for source in np.unique(groups):
        of_source = np.flatnonzero(groups == source)
        spare[random.permutation(of_source)[: min(2 * NUM_TARGET, len(of_source) // 4)]] = True
    return spare


def graph_over(features: Float32) -> Any:
    """P of the product's own graph."""
    valid: Bool = np.asarray(np.isfinite(features).all(axis=1))
    index = build_index(unit_features(features, valid), GraphSection(), valid=valid, seed=0)
    return walk_matrix(symmetric(index.graph))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("llama-tiny", "smollm2"), default="llama-tiny")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=DATA, help="rows with a source")
    parser.add_argument(
        "--features", default=",".join(FEATURES), help="always embedding-mean among them"
    )
    parser.add_argument("--measure", type=int, help="sketch so many rows, and targets")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--max-length", type=int, default=192)
    parser.add_argument("--parts", default="1,0.3,0.1,0.05")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    found = measured(options)
    if options.measure:
        return
    sketches = found["sketches"].astype(np.float32)
    good = np.isfinite(sketches).all(axis=1) & sketches.any(axis=1)
    sketches, groups, names = sketches[good], found["groups"][good], found["names"].tolist()
    features = {name: found[name][good].astype(np.float32) for name in options.features.split(",")}
    walks = {name: graph_over(f) for name, f in features.items()}
    print(
        "| target | graph | measured | plain | centred | plain, smoothed | smoothed | likeness | "
        "precision: smoothed | likeness |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in names:
        of_source = np.flatnonzero(groups == names.index(name))
        if len(of_source) < 3 * NUM_TARGET:
            continue
        for graph, walk in walks.items():
            for part in map(float, options.parts.split(",")):
                lines = []
                for seed in range(options.seeds if part < 1 else 1):
                    random = np.random.default_rng(seed)
                    targets = random.choice(of_source, NUM_TARGET, replace=False)
                    pool = np.setdiff1d(np.arange(len(groups)), targets)
                    goal = sketches[targets].mean(axis=0)
                    count = round(part * len(pool))
                    rows = np.sort(random.choice(pool, count, replace=False))
                    rounds, _ = reach(walk, rows, np.ones(len(groups), np.bool_))
                    positive = groups == names.index(name)
                    common = sketches[rows].mean(axis=0)
                    own, smooth = [], []
                    for taken_off in (0 * common, common):
                        centred, aim = sketches[rows] - taken_off, goal - taken_off
                        aim = aim / np.linalg.norm(aim)
                        own.append(centred @ aim / np.linalg.norm(centred, axis=1))
                        smooth.append(
                            smoothed_cosines(walk, rows, centred, aim[None], rounds=rounds)[:, 0]
                        )
                    alike = likeness(
                        features[graph], np.ones(len(groups), bool), features[graph][targets]
                    )
                    lines.append((
                        *(auc(values, positive[rows]) for values in own),
                        *(auc(values[pool], positive[pool]) for values in smooth),
                        auc(alike[pool], positive[pool]),
                        precision(smooth[1][pool], positive[pool]),
                        precision(alike[pool], positive[pool]),
                    ))  # fmt: skip
                cells = " | ".join(f"{value:.2f}" for value in np.mean(lines, axis=0))
                print(f"| {name} | {graph} | {count} of {len(pool)} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
