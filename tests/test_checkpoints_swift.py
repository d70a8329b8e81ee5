"""Checkpoints that `swift sft` writes, of a full model and of LoRA: `make test-swift`."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from gracekit.checkpoints import check_checkpoint, find_checkpoints, pin
from gracekit.checkpoints.model import load_model
from gracekit.errors import CheckpointError
from gracekit.recipe import CheckpointSection
from gracekit.training import Coreset
from tests.checkpoint_writers import logits
from tests.guides import make_world_of_templates, refresh_at, run_swift
from tests.matrix import expect_never_early

pytestmark = [
    pytest.mark.swift,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("swift") is None, reason="not installed"),
]

PLUGIN = """
from swift.callbacks import callbacks_map
from tests.test_checkpoints_swift import Saying

callbacks_map["say"] = lambda args, trainer: Saying()
"""
KINDS = {
    "full": "--tuner_type full",
    "lora": "--tuner_type lora --lora_rank 4 --lora_alpha 32 --target_modules all-linear",
}


class Saying(TrainerCallback):  # type: ignore[misc]
    """Notes what the trained model says."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.save(logits(kwargs["model"].eval()), "said.pt")


@pytest.mark.parametrize("kind", list(KINDS))
def test_swift_sft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Found by step in the folder of its date, never early, and the same model; then measured."""
    monkeypatch.chdir(tmp_path)
    make_world_of_templates(**{"data.loss_on": "all"})
    Path("coresets.py").write_text(PLUGIN)
    save = "--save_strategy steps --save_steps 6 --learning_rate 1e-2"
    run_swift(callbacks="say", more=f"{KINDS[kind]} {save}")
    settings = CheckpointSection(settle_s=0)
    found = find_checkpoints(Path("out"), settings)
    assert [(c.step, c.layout) for c in found] == [(6, "hf-trainer"), (12, "hf-trainer")]
    last = found[-1]
    assert last.path.parent.name.startswith("v0-")
    said = torch.load("said.pt", weights_only=True)
    with pin(last, tmp_path / "pins", settings) as pinned:
        got = logits(load_model(pinned, settings, device="cpu", dtype="float32"))
    torch.testing.assert_close(got, said, atol=1e-6, rtol=1e-6)
    weights = last.path / ("model.safetensors" if kind == "full" else "adapter_model.safetensors")
    content, at = weights.read_bytes(), weights.stat().st_mtime
    for size in (*(len(content) * eighths // 8 for eighths in range(8)), len(content) - 1):
        weights.write_bytes(content[:size])
        os.utime(weights, (at, at))
        with pytest.raises(CheckpointError, match="is not complete"):
            check_checkpoint(last.path, settings)
    weights.write_bytes(content)
    os.utime(weights, (at, at))
    expect_never_early(last.path, tmp_path, settings, 12)
    refresh_at(last.path, **{"data.loss_on": "all", "store": "second"})
    assert Coreset.load("second").version == 1
