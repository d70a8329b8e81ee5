"""How well the graph tells near-copies: planted ones of four kinds, by the cosine of features.

    python benchmarks/near_copies.py --model smollm2 --rows 800 --max-length 128 -o runs/near

A fifth of the rows of the shipped data get a copy with a small change. A row's signal is its
highest cosine with another row of its group in the product's own graph (of centred features). AUC
is that of rows that have a planted copy, and the copies, against all others; *joined* is the share
of them that `selection.duplicates: share` puts together, at its bound, and *others joined* the
share of other rows that it puts together with something: some of these are copies in the data as
it comes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from gracekit.aim.places import COPY_SIMILARITY
from gracekit.graph import build_index, symmetric, unit_features
from gracekit.model_pass.executors import LocalExecutor
from gracekit.recipe import DataSection, GraphSection, ScoringSection
from gracekit.samples import load_samples, tokenize
from gracekit.types import Bool, Float32, Int32, Measurement

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.aim_signals import DATA, FEATURES, auc, hashed
from pipelines.train_quickstart import read_rows, smollm2, tiny_llama

Row = dict[str, str]


def greeted(row: Row, random: np.random.Generator) -> Row:
    """With a few words before the prompt."""
    starts = ("Please: ", "Hello. ", "Question: ", "Now, ")
    return {**row, "prompt": starts[int(random.integers(len(starts)))] + row["prompt"]}


def thinned(row: Row, random: np.random.Generator) -> Row:
    """Without a tenth of the words of prompt and response."""

    def thin(text: str) -> str:
        kept = [word for word in text.split(" ") if random.random() >= 0.1]
        return " ".join(kept) or text

    return {**row, "prompt": thin(row["prompt"]), "response": thin(row["response"])}


def lowered(row: Row, random: np.random.Generator) -> Row:
    """In lower case."""
    return {**row, "prompt": row["prompt"].lower(), "response": row["response"].lower()}


def added_to(row: Row, random: np.random.Generator) -> Row:
    """With a sentence after the response."""
    ends = (" I hope this helps.", " Let me know if you have more questions.", " That is all.")
    return {**row, "response": row["response"] + ends[int(random.integers(len(ends)))]}


KINDS: dict[str, Callable[[Row, np.random.Generator], Row]] = {
    "a greeting before": greeted,
    "a tenth of the words dropped": thinned,
    "lower case": lowered,
    "a sentence after": added_to,
}


def nearest_in_group(features: Float32, groups: Int32) -> Float32:
    """[n] highest cosine with a row of the same group in the graph; 0 where there is none."""
    valid: Bool = np.asarray(np.isfinite(features).all(axis=1))
    index = build_index(unit_features(features, valid), GraphSection(), valid=valid, seed=0)
    graph = symmetric(index.graph)
    heads = np.repeat(np.arange(len(groups)), np.diff(graph.indptr))
    same = groups[heads] == groups[graph.indices]
    highest = np.zeros(len(groups), np.float32)
    np.maximum.at(highest, heads[same], graph.weights[same])
    return highest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("llama-tiny", "smollm2"), default="llama-tiny")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    options.output.mkdir(parents=True, exist_ok=True)
    every = read_rows(DATA, None)
    model, tokenizer = smollm2() if options.model == "smollm2" else tiny_llama(every)
    rows = sorted(every, key=hashed)[: options.rows]
    random = np.random.default_rng(0)
    kinds, num_copied = list(KINDS), len(rows) // 5
    copies = [KINDS[kinds[i % len(kinds)]](rows[i], random) for i in range(num_copied)]
    path = options.output / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows + copies), encoding="utf-8")
    settings = DataSection(path=str(path), group_column="source", max_length=options.max_length)
    raw = load_samples(settings)
    tokens = tokenize(raw, tokenizer, settings, options.output / "tokens")
    kind = np.full(len(raw), -1)
    kind[:num_copied] = np.arange(num_copied) % len(kinds)
    kind[len(rows) :] = kind[:num_copied]
    chosen = np.flatnonzero(tokens.num_targets)
    print("| features | copies | AUC | joined | others joined |\n|---|---|--:|--:|--:|")
    for name in FEATURES:
        scoring = ScoringSection(
            features=name,  # type: ignore[arg-type]
            scores=("loss",), importance="loss", batch_tokens=1024, num_threads=1,
        )  # fmt: skip
        whole = Measurement.concatenate(list(LocalExecutor(model, tokens, scoring).look(chosen)))
        order = np.argsort(whole.rows)
        highest = nearest_in_group(
            whole.features[order].astype(np.float32), raw.groups[whole.rows[order]]
        )
        of_kind, joined = kind[whole.rows[order]], highest >= COPY_SIMILARITY
        others = f"{joined[of_kind < 0].mean():.1%}"
        for number, what in enumerate(kinds):
            some = (of_kind == number) | (of_kind < 0)
            found = joined[of_kind == number].mean()
            print(
                f"| {name} | {what} | {auc(highest[some], of_kind[some] >= 0):.3f} | "
                f"{found:.0%} | {others} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
