"""What a worker of its own costs beside measuring in this process: CPU seconds of the same rows.

    python benchmarks/executor_overhead.py CHECKPOINT           # a process
    python benchmarks/executor_overhead.py CHECKPOINT --ray     # and an actor, where Ray is

One worker with one thread, random tokens. CPU time of this process and of all below it (with Ray,
of its head as well), from the first shard to the last: starting a worker and loading the model into
it is apart.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gracekit.model_pass.executor_names import open_executor
from gracekit.model_pass.pass_inputs import PassInputs, Shard
from gracekit.recipe import ScoringSection

SHARD_ROWS = 8


def load(device: str, directory: str) -> tuple[torch.nn.Module, None]:
    """The model of a checkpoint."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.to(device).eval(), None


def inputs(executor: str, directory: str, num_rows: int) -> PassInputs:
    """The same rows for each executor: 64 to 256 tokens, the second half to train on."""
    rng = np.random.default_rng(0)
    vocabulary = AutoConfig.from_pretrained(directory).vocab_size
    lengths = rng.integers(64, 257, num_rows)
    samples = [
        (rng.integers(0, vocabulary, length, np.int32), np.arange(length) >= length // 2)
        for length in lengths
    ]
    scoring = ScoringSection(
        scores=("gradient-norm", "loss"),
        shard_rows=SHARD_ROWS,
        num_threads=1,
        processes=None if executor == "local" else 1,
        device="cpu",
        executor=executor,
    )
    return PassInputs(
        load=partial(load, directory=directory),
        devices=("cpu",),
        tokens=Shard(samples),
        scoring=scoring,
    )


def cpu_seconds() -> float:
    """Of this process and all below it."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            used = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system
    return total


def main() -> None:
    """Print a line for each executor."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| executor | CPU s to the first shard | CPU s of the others | of local | wall s |")
    print("|---|--:|--:|--:|--:|")
    alone = 0.0
    for name in ("local", "processes", *(("ray",) if options.ray else ())):
        began = cpu_seconds()
        with closing(open_executor(inputs(name, options.checkpoint, options.rows))) as executor:
            shards = executor.measure(np.arange(options.rows))
            next(shards)
            first, first_at = cpu_seconds(), time.monotonic()
            for _ in shards:
                pass
            rest, rest_s = cpu_seconds() - first, time.monotonic() - first_at
        alone = alone or rest
        print(f"| {name} | {first - began:.1f} | {rest:.1f} | {rest / alone:.2f} | {rest_s:.0f} |")


if __name__ == "__main__":
    main()
