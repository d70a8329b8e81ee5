"""dattri-llm's hooks around a forward and backward pass of frozen weights.

Usage: dattri_capture.py MODEL SAMPLES OUT norms|SIDE BATCH_SIZE

`norms` captures factors and takes exact norms of them; a number captures LoGra projections of that
side for each layer, and writes them to disk.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from dattri_llm import GradientStorageManager, HookManager, HookManagerConfig, OffloadCallback
from dattri_llm.gradient import ops
from dattri_llm.gradient.callbacks import CaptureCallback
from transformers import AutoModelForCausalLM
from turns import Turns, size_of

model_path, samples_path, out, what, batch_size = sys.argv[1:]
torch.set_num_threads(1)
turns = Turns()
samples = np.load(samples_path)
ids = torch.from_numpy(samples["ids"].astype(np.int64))
labels = torch.where(torch.from_numpy(samples["mask"]), ids, -100)[:, 1:]
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
model.eval().requires_grad_(False)
callback: CaptureCallback | OffloadCallback
if what == "norms":
    callback = CaptureCallback()
    options = {}
else:
    callback = OffloadCallback(1, GradientStorageManager(out))
    side, size = int(what), int(batch_size)
    logra = {"style": "logra", "proj_dim": side, "proj_max_batch_size": size}
    options = {
        "capture_style": "materialized",
        "projection_kwargs": {"__default__": {**logra, "proj_type": "rademacher"}},
    }
config = HookManagerConfig(
    linear_io=[r"layers\.\d+\.(self_attn|mlp)\."], include_frozen=True, **options
)
hooks = HookManager(model, config=config, callbacks=[callback])
norms: list[float] = []


def work(rows: slice) -> None:
    """Mean token loss of each sample, added up."""
    embedded = model.get_input_embeddings()(ids[rows]).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits[:, :-1]
    of_token = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels[rows].reshape(-1), reduction="none"
    ).view(len(embedded), -1)
    loss = of_token.sum(1) / (labels[rows] != -100).sum(1)
    torch.autograd.backward(loss.sum())


def norms_of_last() -> None:
    """Norms of what was captured."""
    gradient = callback.record.gradient
    squares = sum(
        ops.grad_norm_sq(of_layer, gradient.layer_types[name])
        for name, of_layer in gradient.data.items()
    )
    norms.extend(squares.sqrt().tolist())
    callback.record = None


batches = [slice(i, i + int(batch_size)) for i in range(0, len(ids), int(batch_size))]


def work_in_step(rows: slice) -> None:
    """One batch, from input to norms or files."""
    with hooks.collect():
        work(rows)
    if what == "norms":
        norms_of_last()


turns.over(batches, work_in_step)
kept = size_of(Path(out)) if what != "norms" else 4 * len(ids)
turns.end(norms=norms, disk_bytes=kept)
