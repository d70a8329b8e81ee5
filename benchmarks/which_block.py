"""Which block's hidden states carry gradient norms over as well as the last ones do?

    python benchmarks/exact_run.py --model smollm2 --samples 2000 --max-length 128 \
        --steps 1,20,50,100 -o runs/drift/smollm2.npz
    python benchmarks/which_block.py runs/drift/smollm2.npz --samples 600

The features of several blocks are taken from the model as it is, which is near the run's first
checkpoint, for the first rows of the run. A share of them counts as measured, at random; the others
get the mean of the log norms, corrected for length, of their nearest measured rows by the cosine of
centred features. Printed are the rank correlation with the exact values over the rows that were not
measured, and the value kept by a draw from what is then known of all rows (`cheaper_ways.kept`;
30 % selected), means over the checkpoints and over draws of the measured rows. `no features` gives
all the mean of the measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.stats import spearmanr

from gracekit.graph import unit_features
from gracekit.model_pass.batches import TokenBatch, longest_first
from gracekit.model_pass.features import HiddenMean
from gracekit.model_pass.model_pass import ModelPass
from gracekit.protocols import Reader
from gracekit.recipe import DataSection, ScoringSection
from gracekit.rounding import to_float16
from gracekit.samples import load_samples, tokenize
from gracekit.types import Float64

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.cheaper_ways import CPU, DATA, FOLDER, batches_of, kept
from pipelines.train_quickstart import smollm2

BLOCKS = (2, 5, 8, 11, 14, 20, None)
NEIGHBORS, DRAWS, SHARES = 10, 10, (0.1, 0.3)


def features_of_run(samples: int, of_run: int, max_length: int, seed: int) -> dict[str, Any]:
    """Block -> float16 [samples, d] of the run's first rows, from one forward pass."""
    torch.set_num_threads(1)
    model, tokenizer = smollm2()
    data = DataSection(path=str(DATA), group_column="source", max_length=max_length)
    raw = load_samples(data)
    tokens = tokenize(raw, tokenizer, data, FOLDER / "tokens-blocks")
    whole = np.flatnonzero((tokens.lengths < max_length) & (tokens.num_targets > 0))
    rows = np.random.default_rng(seed).permutation(whole)[:of_run][:samples]
    order = longest_first(tokens.lengths[rows])
    readers: list[Reader] = [HiddenMean(ScoringSection(hidden_block=block)) for block in BLOCKS]
    found: list[Any] = [None] * len(rows)
    with ModelPass(model, readers) as opened:
        for batch in batches_of(tokens.lengths[rows[order]], 1024):
            results = opened.run(TokenBatch.pack(tokens.take(rows[order[batch]]), CPU))
            for i, place in enumerate(order[batch]):
                found[place] = [result[i].numpy() for result in results]
    of_blocks = [to_float16(np.stack(each)) for each in zip(*found, strict=True)]
    return dict(zip(map(name_of, BLOCKS), of_blocks, strict=True))


def name_of(block: int | None) -> str:
    """As printed."""
    return "last state" if block is None else f"block {block}"


def carried(similar: Any, values: Float64, measured: Any) -> Float64:
    """[n] the values where measured, else the mean of the nearest measured rows'."""
    result = np.where(measured, values, values[measured].mean())
    if similar is not None:
        near = np.argsort(-similar[:, measured], axis=1)[:, :NEIGHBORS]
        result[~measured] = values[measured][near].mean(axis=1)[~measured]
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a file that exact_run.py wrote, of smollm2")
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--max-length", type=int, default=128, help="of the run")
    options = parser.parse_args()
    run = np.load(options.run)
    n = options.samples
    features = features_of_run(n, len(run["num_targets"]), options.max_length, 0)
    same = np.isclose(features["last state"].astype(float), run["hidden"][0, :n].astype(float),
                      rtol=0.1, atol=0.3)  # fmt: skip
    print(f"{n} rows; {same.mean():.1%} of the last states are near the run's first ones")
    lengths = run["num_targets"][:n].astype(float)
    similar: dict[str, Any] = {"no features": None}
    for name, feature in features.items():
        unit = unit_features(feature.astype(np.float32), np.ones(n, bool))
        similar[name] = unit @ unit.T
    print(
        "| features | "
        + " | ".join(
            f"{s:.0%} measured: rank correlation | kept, tokens | kept, samples" for s in SHARES
        )
        + " |"
    )
    print("|---|" + "--:|" * 3 * len(SHARES))
    for name, cosines in similar.items():
        cells = []
        for share in SHARES:
            found = []
            for exact in run["gradient-norm"][:, :n].astype(float):
                values = np.log(exact * np.sqrt(lengths))
                for draw in range(DRAWS):
                    measured = np.random.default_rng(draw).permutation(n) < share * n
                    known = carried(cosines, values, measured)
                    other = ~measured
                    rank = 0.0 if cosines is None else spearmanr(known[other], values[other])[0]
                    norms = np.exp(known) / np.sqrt(lengths)
                    found.append([rank, *(kept(norms * of, exact * of, 0.3)
                                          for of in (lengths, np.ones(n)))])  # fmt: skip
            mean = np.mean(found, axis=0)
            cells += [f"{mean[0]:.3f}", f"{mean[1]:.0%}", f"{mean[2]:.0%}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
