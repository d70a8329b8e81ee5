"""How well what a prompt tells of its response finds responses that belong to another prompt.

    python benchmarks/trust_signals.py --rows 640 -o runs/trust/base
    python benchmarks/trust_signals.py --checkpoint RUN/checkpoint-200 --data FILE.jsonl -o OUT

An eighth of each source's rows, and as many of all sources together, get each other's responses.
`gracekit.reference` measures all; then each signal is told by its AUC (1: every shuffled row below
every right one), and the evidence by the shares of right and of shuffled rows below some bounds,
that of `selection.trust` among them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

import gracekit
from gracekit.aim.losses import TRUSTED_FROM
from gracekit.recipe import Recipe
from gracekit.samples import load_samples
from gracekit.samples.reference import ReferenceLosses

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.aim_signals import auc
from pipelines.train_quickstart import read_rows, smollm2

DATA = Path(__file__).parent.parent / "data/train.jsonl"
SHUFFLED = 0.25


def planted(rows: list[dict[str, str]], seed: int) -> tuple[list[dict[str, str]], list[bool]]:
    """The rows, some with the response of another row, and which."""
    rng = np.random.default_rng(seed)
    made, wrong = [dict(row) for row in rows], [False] * len(rows)
    sources = np.array([row.get("source", "") for row in rows])
    rings = [rng.permutation(np.flatnonzero(sources == name)) for name in np.unique(sources)]
    rings = [ring[: round(SHUFFLED / 2 * len(ring))] for ring in rings]
    taken = np.concatenate(rings)
    left = rng.permutation(np.setdiff1d(np.arange(len(rows)), taken))
    for ring in (*rings, left[: len(taken)]):
        for i, other in zip(ring.tolist(), np.roll(ring, -1).tolist(), strict=True):
            made[i]["response"] = rows[other]["response"]
            wrong[i] = rows[other]["response"] != rows[i]["response"]
    return made, wrong


def main() -> None:
    """Plant, measure, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--checkpoint", type=Path, help="default: SmolLM2-135M as it is")
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--max-length", type=int, default=192)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    rows = read_rows(options.data, None)
    chosen = np.random.default_rng(options.seed).permutation(len(rows))[: options.rows]
    made, wrong = planted([rows[i] for i in chosen], options.seed)
    data = options.output / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    has_source = all("source" in row for row in made)
    recipe = Recipe.from_dict({
        "data": {"path": str(data), "max_length": options.max_length,
                 **({"group_column": "source"} if has_source else {})},
        "store": str(options.output / "store"),
        "scoring": {"num_threads": 1, "batch_tokens": 2048,
                    "dtype": "bfloat16" if options.bf16 else "auto"},
    })  # fmt: skip
    checkpoint = options.checkpoint
    if checkpoint is None:
        checkpoint = options.output / "base"
        if not (checkpoint / "config.json").exists():
            model, tokenizer = smollm2()
            model.save_pretrained(checkpoint)
            tokenizer.save_pretrained(checkpoint)
    place = options.output / "reference.parquet"
    found = gracekit.reference(recipe, checkpoint, output=place)
    samples = load_samples(recipe.data)
    told = ReferenceLosses.read(place)
    hash_row = {name: row for row, name in enumerate(told.content_hashes.tolist())}
    rows_of = np.array([hash_row.get(name, -1) for name in samples.content_hashes.tolist()])
    known = (rows_of >= 0) & np.isfinite(told.evidence[rows_of])
    at, groups = rows_of[known], samples.groups[known]
    is_wrong = np.array(wrong)[samples.source_rows[known]]
    evidence = told.evidence[at]
    print(f"{known.sum()} rows of {options.data.name}, {is_wrong.sum()} shuffled; {found.path}\n")
    signals = {
        "evidence": evidence,
        "the same, not by the root of the tokens": told.pmi[at],
        "mean of both differences, by the root": (
            ((told.loss_other + told.loss_alone) / 2 - told.loss) * np.sqrt(told.num_targets)
        )[at],
        "loss after another prompt - loss": (told.loss_other - told.loss)[at],
        "loss alone - loss": (told.loss_alone - told.loss)[at],
        "loss alone / loss (1 / IFD)": (told.loss_alone / np.maximum(told.loss, 1e-6))[at],
        "- loss": -told.loss[at],
    }
    print(
        "| signal | AUC | of the shuffled below 2 % of the right | below 5 % |\n|---|--:|--:|--:|"
    )
    for name, signal in signals.items():
        shares = [
            (signal[is_wrong] < np.quantile(signal[~is_wrong], q)).mean() for q in (0.02, 0.05)
        ]
        print(f"| {name} | {auc(signal, ~is_wrong):.3f} | {shares[0]:.0%} | {shares[1]:.0%} |")
    print("\n| evidence below | right rows | shuffled rows |\n|--:|--:|--:|")
    for bound in sorted({-0.5, 0.0, 0.3, 0.6, 1.0, TRUSTED_FROM}):
        below = evidence < bound
        print(f"| {bound} | {below[~is_wrong].mean():.1%} | {below[is_wrong].mean():.1%} |")
    print("\n| source | rows | AUC |\n|---|--:|--:|")
    for group, name in enumerate(samples.group_names):
        own = groups == group
        if (own & is_wrong).any() and (own & ~is_wrong).any():
            print(f"| {name} | {own.sum()} | {auc(evidence[own], ~is_wrong[own]):.3f} |")


if __name__ == "__main__":
    main()
