"""A fine-tuning run in which every sample is measured exactly at every checkpoint.

    python benchmarks/exact_run.py --model llama-tiny -o runs/drift/tiny.npz          # minutes
    python benchmarks/exact_run.py --model smollm2 --max-length 128 --every 20 --processes 2 \
        --steps 10,25,50,100,160,240,330 -o runs/drift/smollm2.npz                    # two hours

What `drift.py` replays. In the file, for n samples and c checkpoints: `steps` [c]; the scores
`gradient-norm`, `loss` and `lm-head` [c, n]; the features `embedding`, `hidden`, `middle` (of the
middle block) [c, n, d] and `sketch` [c, n, k²], all float16; `groups`, `num_prompt_tokens`,
`num_targets` [n]; and `trained_step`, `trained_row`, `trained_loss`, what the trainer saw of its
own batches. It is written again after every checkpoint. With `--every`, scores of the first m rows
are also measured between the checkpoints: `dense_steps` [t], and the scores with `dense_` before
their names [t, m].
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from gracekit.model_pass.batches import TokenBatch, batch_stop, longest_first
from gracekit.model_pass.context import LocalContext
from gracekit.model_pass.features import EmbeddingMean, GradientSketch, HiddenMean
from gracekit.model_pass.model_pass import ModelPass
from gracekit.model_pass.scorers import build_scorers
from gracekit.model_pass.sketch import KroneckerSketch
from gracekit.protocols import Reader
from gracekit.recipe import DataSection, ScoringSection
from gracekit.rounding import to_float16
from gracekit.samples import load_samples, tokenize
from gracekit.types import Float32, Rows

sys.path.insert(0, str(Path(__file__).parent.parent))
from pipelines.train_quickstart import read_rows, smollm2, tiny_llama

DATA = Path(__file__).parent.parent / "data/train.jsonl"
SCORES = ("gradient-norm", "loss", "lm-head")
SKETCH_SIDE = 16
RATES = {"llama-tiny": 3e-3, "smollm2": 2e-5}
STEPS = {"llama-tiny": "75,150,300,450,600,900,1200,1600", "smollm2": "10,25,50,100,160,240,330"}
BATCH, WARM_UP = 8, 10


def sample_losses(model: Any, batch: TokenBatch) -> torch.Tensor:
    """[B] mean cross-entropy of each sample's target tokens."""
    hidden = model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0]
    logits = model.lm_head(hidden[batch.target_sample, batch.target_position])
    losses = F.cross_entropy(logits, batch.target_ids, reduction="none")
    return batch.zeros().index_add(0, batch.target_sample, losses) / batch.num_targets


_inherited: list[Any] = []


def _inherit(*model_and_tokens: Any) -> None:
    _inherited[:] = model_and_tokens


def _measured_part(task: tuple[Rows, int]) -> dict[str, Any]:
    model, tokens = _inherited
    rows, batch_tokens = task
    return measured(model, tokens, rows, batch_tokens)


def measured(
    model: Any, tokens: Any, rows: Rows, batch_tokens: int, processes: int = 1
) -> dict[str, Any]:
    """All scores and both kinds of features of the rows, from one pass, shared by processes."""
    if processes > 1:
        dealt = np.argsort(-tokens.lengths[rows], kind="stable")  # so that all have as much to do
        parts = [dealt[first::processes] for first in range(processes)]
        back = np.argsort(np.concatenate(parts))
        # What an initializer is given is inherited by a fork, not sent.
        pool = multiprocessing.get_context("fork").Pool(processes, _inherit, (model, tokens))
        with pool:
            results = pool.map(_measured_part, [(rows[part], batch_tokens) for part in parts], 1)
        return {name: np.concatenate([each[name] for each in results])[back] for name in results[0]}
    settings = ScoringSection(sketch_side=SKETCH_SIDE)
    context = LocalContext(
        sketch=KroneckerSketch(SKETCH_SIDE, settings.sketch_seed),
        embedding=model.get_input_embeddings(),
    )
    half = ScoringSection(
        features="hidden-mean", hidden_block=model.config.num_hidden_layers // 2 - 1
    )
    features = {
        "embedding": EmbeddingMean(settings),
        "hidden": HiddenMean(settings),
        "middle": HiddenMean(half),
        "sketch": GradientSketch(settings),
    }
    readers: list[Reader] = [*build_scorers(SCORES).values(), *features.values()]
    for reader in readers:
        reader.bind(context)
    order = longest_first(tokens.lengths[rows])
    samples = tokens.take(rows[order])
    lengths = tokens.lengths[rows][order]
    found: list[list[Float32]] = [[] for _ in readers]
    start = 0
    with ModelPass(model, readers) as model_pass:
        while start < len(samples):
            stop = batch_stop(lengths, start, batch_tokens)
            batch = TokenBatch.pack(samples[start:stop], torch.device("cpu"))
            for of_reader, result in zip(found, model_pass.run(batch), strict=True):
                of_reader.append(result.float().numpy())
            start = stop
    back = np.argsort(order)
    arrays = [np.concatenate(parts)[back] for parts in found]
    scores = dict(zip(SCORES, arrays, strict=False))
    vectors = zip(features, arrays[len(SCORES) :], strict=True)
    return scores | {name: to_float16(vector) for name, vector in vectors}


def run(model: Any, tokens: Any, rows: Rows, options: argparse.Namespace, fixed: Any) -> None:
    """Train on all rows in random order, epoch after epoch, and measure at the steps."""
    steps = [int(step) for step in options.steps.split(",")]
    rate = RATES[options.model]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    random = np.random.default_rng(options.seed)
    seen: list[tuple[int, int, float]] = []
    exact: list[dict[str, Any]] = []
    dense: list[tuple[int, dict[str, Any]]] = []
    first = options.dense_samples if options.every else 0
    order = np.zeros(0, np.int64)
    started = time.perf_counter()
    for step in range(1, steps[-1] + 1):
        if len(order) < BATCH:
            order = np.concatenate([order, random.permutation(len(rows))])
        chosen, order = order[:BATCH], order[BATCH:]
        # Warm-up, then a line to a tenth: what fine-tuning runs commonly do.
        optimizer.param_groups[0]["lr"] = (
            rate * min(1.0, step / WARM_UP) * (1 - 0.9 * step / steps[-1])
        )
        batch = TokenBatch.pack(tokens.take(rows[chosen]), torch.device("cpu"))
        model.train()
        losses = sample_losses(model, batch)
        torch.autograd.backward(losses.mean())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += [
            (step, int(i), loss) for i, loss in zip(chosen, losses.detach().tolist(), strict=True)
        ]
        if step not in steps:
            if options.every and step >= steps[0] and step % options.every == 0:
                few = measured(model, tokens, rows[:first], options.batch_tokens, options.processes)
                dense.append((step, few))
        else:
            exact.append(measured(model, tokens, rows, options.batch_tokens, options.processes))
            dense.append((step, exact[-1]))
            np.savez(
                options.output,
                steps=np.array(steps[: len(exact)]),
                trained_step=np.array([s for s, _, _ in seen], np.int64),
                trained_row=np.array([i for _, i, _ in seen], np.int64),
                trained_loss=np.array([loss for _, _, loss in seen], np.float32),
                dense_steps=np.array([s for s, _ in dense], np.int64),
                **{
                    f"dense_{name}": np.stack([few[name][:first] for _, few in dense])
                    for name in SCORES
                },  # type: ignore[arg-type]
                **{name: np.stack([each[name] for each in exact]) for name in exact[0]},  # type: ignore[arg-type]
                **fixed,
            )
            print(f"step {step}: mean loss {exact[-1]['loss'].mean():.3f}, "
                  f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip


def main() -> None:
    """Make one run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=sorted(RATES), default="llama-tiny")
    parser.add_argument("--data", type=Path, default=DATA, help="prompt/response rows")
    parser.add_argument("--samples", type=int, help="so many random ones (default: all)")
    parser.add_argument("--max-length", type=int, default=192, help="longer samples are left out")
    parser.add_argument("--steps", help="of the checkpoints, ascending (default: by model)")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="that share the measuring")
    parser.add_argument("--every", type=int, help="steps between measurements of some rows only")
    parser.add_argument("--dense-samples", type=int, default=400, help="how many rows those are")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    if options.processes > 1 and options.threads > 1:
        parser.error("--processes forks, which does not go with --threads above 1")
    options.steps = options.steps or STEPS[options.model]
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.model == "smollm2":
        model, tokenizer = smollm2()
    else:
        model, tokenizer = tiny_llama(read_rows(options.data, None))
    data = DataSection(path=str(options.data), group_column="source", max_length=options.max_length)
    raw = load_samples(data)
    tokens = tokenize(raw, tokenizer, data, options.output.parent / f"tokens-{options.model}")
    whole = np.flatnonzero((tokens.lengths < options.max_length) & (tokens.num_targets > 0))
    rows = np.random.default_rng(options.seed).permutation(whole)[: options.samples]
    print(f"{len(rows)} samples, {int(tokens.lengths[rows].sum())} tokens, "
          f"{int(tokens.num_targets[rows].sum())} targets", flush=True)  # fmt: skip
    fixed = {
        "groups": raw.groups[rows],
        "num_prompt_tokens": tokens.num_prompt_tokens[rows],
        "num_targets": tokens.num_targets[rows],
    }
    run(model, tokens, rows, options, fixed)


if __name__ == "__main__":
    main()
