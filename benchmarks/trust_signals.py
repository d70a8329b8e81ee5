"""How well what a prompt tells of its response finds responses that belong to another prompt.

    python benchmarks/trust_signals.py --rows 640 -o runs/trust/base
    python benchmarks/trust_signals.py --checkpoint RUN/checkpoint-200 --data FILE.jsonl -o OUT

A quarter of the rows, in each source of its own, get each other's responses. `gracekit.reference`
measures all; then each signal is told by its AUC (1: every shuffled row below every right one), and
by the shares of right and of shuffled rows that `selection.trust` distrusts at its default.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

import gracekit
from gracekit.aim.losses import TRUSTED_FROM, distrusted
from gracekit.recipe import Recipe
from gracekit.samples import load_samples
from gracekit.samples.reference import ReferenceLosses

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.aim_signals import auc
from pipelines.train_quickstart import read_rows, smollm2

DATA = Path(__file__).parent.parent / "data/train.jsonl"
SHUFFLED = 0.25


def planted(rows: list[dict[str, str]], seed: int) -> tuple[list[dict[str, str]], list[bool]]:
    """The rows, some with the response of another row of their source, and which."""
    rng = np.random.default_rng(seed)
    made, wrong = [dict(row) for row in rows], [False] * len(rows)
    for source in sorted({row.get("source", "") for row in rows}):
        own = [i for i, row in enumerate(rows) if row.get("source", "") == source]
        some = rng.permutation(own)[: round(SHUFFLED * len(own))].tolist()
        if len(some) < 2:
            continue
        for i, other in zip(some, [*some[1:], some[0]], strict=True):
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
    loss, pmi = ReferenceLosses.read(place).of(samples.content_hashes)
    is_wrong = np.array(wrong)[samples.source_rows]
    known = np.isfinite(pmi)
    loss, pmi, is_wrong, groups = loss[known], pmi[known], is_wrong[known], samples.groups[known]
    print(f"{known.sum()} rows of {options.data.name}, {is_wrong.sum()} shuffled; {found.path}\n")
    print("| pmi | its ratio | loss | right rows distrusted | shuffled rows distrusted |")
    print("|--:|--:|--:|--:|--:|")
    signals = (pmi, -loss / np.maximum(loss + pmi, 1e-6), -loss)
    aucs = " | ".join(f"{auc(signal, ~is_wrong):.3f}" for signal in signals)
    off = distrusted(pmi)
    print(f"| {aucs} | {off[~is_wrong].mean():.1%} | {off[is_wrong].mean():.1%} |")
    print(f"\nat other bounds than {TRUSTED_FROM} (right, shuffled):", end=" ")
    for bound in (-0.05, 0.0, 0.02, 0.05, 0.1, 0.2):
        print(f"{bound}: {(pmi[~is_wrong] < bound).mean():.1%}, "
              f"{(pmi[is_wrong] < bound).mean():.1%};", end=" ")  # fmt: skip
    print("\n\n| source | rows | pmi of right rows, 2 %, 50 % | of shuffled, 50 %, 98 % | AUC |")
    print("|---|--:|--:|--:|--:|")
    for group, name in enumerate(samples.group_names):
        own = groups == group
        if not (own & is_wrong).any() or not (own & ~is_wrong).any():
            continue
        right, shuffled = pmi[own & ~is_wrong], pmi[own & is_wrong]
        print(
            f"| {name} | {own.sum()} | {np.quantile(right, 0.02):.2f}, {np.median(right):.2f} | "
            f"{np.median(shuffled):.2f}, {np.quantile(shuffled, 0.98):.2f} | "
            f"{auc(pmi[own], ~is_wrong[own]):.3f} |"
        )


if __name__ == "__main__":
    main()
