"""What gradient norms of a mixture of experts cost as its experts grow in number.

    python benchmarks/experts.py                 # about a minute; OMP_NUM_THREADS=1 is set

A random Qwen3-MoE of 4 layers, each token to 8 experts, one batch of 8 samples of 128 tokens, 95 of
them targets. Each method takes the batch in turn, five times over; printed is the least, in CPU
seconds. `without norms` is the same pass whose scorer takes what it is given and computes nothing
of it; `one by one` is autograd, every sample alone.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers

from gracekit.model_pass.batches import TokenBatch
from gracekit.model_pass.gradient_scores import GradientNorm
from gracekit.model_pass.model_pass import ModelPass
from gracekit.model_pass.sketch import KroneckerSketch
from gracekit.model_pass.token_scores import Loss
from gracekit.protocols import Batch, Layer, Reader, RoutedRows
from gracekit.types import Bool, Int32

NUM_SAMPLES, NUM_TOKENS, NUM_TARGETS = 8, 128, 95
REPEATS = 5


class NoNorm(GradientNorm):
    """Wants the same, and computes nothing of it."""

    def on_layer(
        self, batch: Batch, layer: Layer, inputs: torch.Tensor, gradients: torch.Tensor
    ) -> None:
        """Count it."""
        self._num_layers += 1

    def on_routed(self, batch: Batch, layer: Layer, rows: RoutedRows) -> None:
        """Count it."""
        self._num_layers += 1


READERS: dict[str, Callable[[], list[Reader]]] = {
    "loss": lambda: [Loss()],
    "without norms": lambda: [NoNorm()],
    "gradient-norm": lambda: [GradientNorm()],
    "and sketch": lambda: [GradientNorm(), KroneckerSketch(side=32, seed=0)],
}


def make_model(num_experts: int) -> Any:
    """Random weights."""
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        hidden_size=256, moe_intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, vocab_size=2048, num_experts=num_experts,
        num_experts_per_tok=8,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def one_by_one(model: Any, samples: list[tuple[Int32, Bool]]) -> list[float]:
    """Norms over everything but embeddings, head and norms."""
    norms = []
    model.requires_grad_(True)
    for tokens, mask in samples:
        model.zero_grad()
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(mask)[None], ids, -100)
        torch.autograd.backward(model(input_ids=ids, labels=labels).loss)
        gradients = [p.grad for p in model.model.layers.parameters() if p.ndim > 1]
        norms.append(sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5)
    model.zero_grad()
    return norms


def measure(num_experts: int) -> tuple[dict[str, float], float]:
    """CPU seconds of each method, and the largest relative error of a norm."""
    model, random = make_model(num_experts), np.random.default_rng(0)
    mask = np.arange(NUM_TOKENS) >= NUM_TOKENS - NUM_TARGETS
    samples = [
        (random.integers(0, 2048, NUM_TOKENS).astype(np.int32), mask) for _ in range(NUM_SAMPLES)
    ]
    batch = TokenBatch.pack(samples, torch.device("cpu"))
    seconds: dict[str, list[float]] = defaultdict(list)
    found = exact = np.empty(0)
    for _ in range(REPEATS):
        for name, readers in READERS.items():
            with ModelPass(model, readers()) as opened:
                opened.run(batch)  # the first also checks how the model can be read
                start = time.process_time()
                results = opened.run(batch)
                seconds[name].append(time.process_time() - start)
            found = results[0].numpy() if name == "gradient-norm" else found
        start = time.process_time()
        exact = np.array(one_by_one(model, samples))
        seconds["one by one"].append(time.process_time() - start)
    error = float(np.abs(found / exact - 1).max())
    return {name: min(each) for name, each in seconds.items()}, error


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"| experts | {' | '.join([*READERS, 'one by one'])} | error |")
    print("|--:|" + "--:|" * (len(READERS) + 2))
    for num_experts in (16, 64, 128):
        seconds, error = measure(num_experts)
        numbers = " | ".join(f"{s:.2f}" for s in seconds.values())
        print(f"| {num_experts} | {numbers} | {error:.1e} |", flush=True)


if __name__ == "__main__":
    main()
