"""`bergson build` on the command line, with a clock around each of its batches.

Usage: bergson_build.py MODEL DATASET OUT PROJECTION_DIM BATCH_SIZE NUM_POSITIONS
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bergson.__main__ import main
from bergson.collector.collector import CollectorComputer
from bergson.collector.gradient_collectors import GradientCollector
from bergson.data import load_gradients
from turns import Turns, size_of

model, dataset, out, projection_dim, batch_size, num_positions = sys.argv[1:]
torch.set_num_threads(1)
turns = Turns()
run, process = CollectorComputer.run_with_collector_hooks, GradientCollector.process_batch
left = [0]


def run_in_turn(self: Any, *args: Any, **kwargs: Any) -> None:
    """Wait before the first batch."""
    left[0] = len(self.batches)
    turns.begin()
    run(self, *args, **kwargs)


def process_in_turn(self: Any, indices: list[int], **kwargs: Any) -> None:
    """Wait after every batch but the last."""
    process(self, indices, **kwargs)
    left[0] -= 1
    if left[0]:
        turns.begin()


CollectorComputer.run_with_collector_hooks = run_in_turn
GradientCollector.process_batch = process_in_turn
sys.argv = [
    *("bergson", "build", out, "--model", model, "--dataset", dataset, "--precision", "fp32"),
    *("--projection_dim", projection_dim, "--max_batch_size", batch_size),
    *("--token_batch_size", str(int(batch_size) * int(num_positions))),
    *("--loss_reduction", "mean"),
]
main()
index = np.asarray(load_gradients(out), np.float64)
norms = np.sqrt(np.square(index).sum(axis=1))
turns.end(norms=norms.tolist(), disk_bytes=size_of(Path(out)))
