"""gracekit's executor on the same samples; results go to a file a batch, as in a refresh.

Usage: gracekit_pass.py MODEL SAMPLES OUT SCORE FEATURES BATCH_SIZE
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from turns import Turns, size_of

from gracekit.model_pass.executors import LocalExecutor
from gracekit.recipe import ScoringSection
from gracekit.types import Bool, Int32, Int64, Rows


class Samples:
    """The samples of the file, all of one length."""

    def __init__(self, path: str) -> None:
        content = np.load(path)
        self._ids, self._mask = content["ids"], content["mask"]
        self.lengths: Int64 = np.full(len(self._ids), self._ids.shape[1], np.int64)

    def take(self, rows: Rows) -> list[tuple[Int32, Bool]]:
        """As the executor asks for them."""
        return [(self._ids[row], self._mask[row]) for row in rows]


model_path, samples_path, out, score, features, batch_size = sys.argv[1:]
torch.set_num_threads(1)
turns, samples, size = Turns(), Samples(samples_path), int(batch_size)
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
scoring = ScoringSection.model_validate(
    {
        "scores": (score, "loss"),
        "importance": score,
        "features": features,
        "shard_rows": size,
        "batch_tokens": size * int(samples.lengths[0]),
    }
)
folder = Path(out)
folder.mkdir(parents=True)
norms = np.zeros(len(samples.lengths))
executor = LocalExecutor(model, samples, scoring, show_progress=False)
turns.begin()
for shard in executor.measure(np.arange(len(samples.lengths))):
    norms[shard.rows] = shard.scores[score]
    np.savez(folder / f"{shard.rows[0]}.npz", features=shard.features, **shard.scores)  # type: ignore[arg-type]
    if shard.rows[-1] != len(norms) - 1:
        turns.begin()
turns.end(norms=norms.tolist(), disk_bytes=size_of(folder))
