"""Which near-copies are found: planted ones of four kinds, by features and by their tokens.

    python benchmarks/near_copies.py --model smollm2 --rows 800 --max-length 128 -o runs/near

A fifth of the rows of the shipped data get a copy with a small change. A row's signal is its
highest cosine with another row of its group in the product's own graph (of centred features). AUC
is that of rows that have a planted copy, and the copies, against all others; *near* is the share of
them with a cosine at or above the bound from which `selection.duplicates: share` compares tokens,
and *share a place* the share that it puts together then; the same for all *other* rows, some of
which are copies in the data as it comes.
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

from gracekit.aim.places import COPY_SIMILARITY, alike, copies
from gracekit.graph import build_index, symmetric, unit_features
from gracekit.model_pass.executors import LocalExecutor
from gracekit.recipe import DataSection, GraphSection, ScoringSection
from gracekit.samples import load_samples, sample_table, tokenize
from gracekit.samples.near_copies import NearCopies
from gracekit.types import Bool, Float32, Int32, Measurement, SparseGraph

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


def graph_of(features: Float32, valid: Bool) -> SparseGraph:
    """The product's graph of centred features."""
    unit = unit_features(features, valid)
    return symmetric(build_index(unit, GraphSection(), valid=valid, seed=0).graph)


def nearest_in_group(graph: SparseGraph, groups: Int32) -> Float32:
    """[n] highest cosine with a row of the same group in the graph; 0 where there is none."""
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
    planted = [KINDS[kinds[i % len(kinds)]](rows[i], random) for i in range(num_copied)]
    path = options.output / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows + planted), encoding="utf-8")
    settings = DataSection(path=str(path), group_column="source", max_length=options.max_length)
    raw = load_samples(settings)
    tokens = tokenize(raw, tokenizer, settings, options.output / "tokens")
    kind = np.full(len(raw), -1)
    kind[:num_copied] = np.arange(num_copied) % len(kinds)
    kind[len(rows) :] = kind[:num_copied]
    counted: Bool = tokens.num_targets > 0
    samples, decode = sample_table(raw, tokens), tokenizer.backend_tokenizer.decode_batch
    near_copies = NearCopies(
        tokens,
        lambda ids: decode([[token] for token in ids], skip_special_tokens=False),
        options.max_length,
    )
    print(
        "| features | copies | AUC | near | share a place | others near | others share |\n"
        "|---|---|--:|--:|--:|--:|--:|"
    )
    for name in FEATURES:
        scoring = ScoringSection(
            features=name,  # type: ignore[arg-type]
            scores=("loss",), importance="loss", batch_tokens=1024, num_threads=1,
        )  # fmt: skip
        looked = LocalExecutor(model, tokens, scoring).look(np.flatnonzero(counted))
        whole = Measurement.concatenate(list(looked))
        features = np.zeros((len(raw), whole.features.shape[1]), np.float32)
        features[whole.rows] = whole.features
        graph = graph_of(features, counted)
        highest = nearest_in_group(graph, raw.groups)
        pairs = alike(graph, samples, counted)
        none = np.full(len(raw), -1)
        near_pairs = pairs[:, near_copies.are_near(pairs)]
        shares = copies(samples, counted, near_pairs, none, none) >= 0
        near, others = highest >= COPY_SIMILARITY, counted & (kind < 0)
        for number, what in enumerate(kinds):
            some = counted & (kind == number)
            of = some | others
            print(
                f"| {name} | {what} | {auc(highest[of], some[of]):.3f} | {near[some].mean():.0%} | "
                f"{shares[some].mean():.0%} | {near[others].mean():.1%} | "
                f"{shares[others].mean():.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
