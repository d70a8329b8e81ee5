"""A refresh on the real SmolLM2-135M weights (`make test-slow`)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gracekit.model_pass.layers import decoder_body
from gracekit.recipe import Recipe
from gracekit.refresher import refresh
from gracekit.store import Store, verify
from gracekit.types import Origin
from pipelines.train_quickstart import convert_smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DATA = Path(__file__).parent.parent / "data" / "train.jsonl"
NUM_SAMPLES = 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "checkpoint-1"
    convert_smollm2(directory)
    (directory / "trainer_state.json").write_text(json.dumps({"global_step": 1}))
    os.utime(directory / "trainer_state.json")
    return directory


def exact_norm(model: Any, ids: list[int], mask: list[bool]) -> float:
    """One backward pass of one sample; norm over the linear layers of the blocks, in float64."""
    linear = [m for m in decoder_body(model).modules() if isinstance(m, torch.nn.Linear)]
    model.zero_grad(set_to_none=True)
    tokens = torch.tensor([ids])
    labels = torch.where(torch.tensor([mask]), tokens, -100)
    model(input_ids=tokens, labels=labels).loss.backward()
    gradients = [m.weight.grad for m in linear]
    squares = [float(g.double().square().sum()) for g in gradients if g is not None]
    assert len(squares) == len(linear)
    return float(np.sqrt(sum(squares)))


def test_a_refresh_on_real_weights(checkpoint: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(
        {
            "data": {"path": str(DATA), "split": f"train[:{NUM_SAMPLES}]", "max_length": 128,
                     "group_column": "source"},
            "store": str(tmp_path / "store"),
            "scoring": {"batch_tokens": 512, "shard_rows": 8, "device": "cpu"},
        }
    )  # fmt: skip
    result = refresh(recipe, checkpoint)
    store = Store.open(tmp_path / "store")
    assert verify(store) == []
    scores = store.scores(result.version)
    has_targets = store.samples().num_response_tokens > 0  # some prompts fill max_length
    np.testing.assert_array_equal(scores.origin == Origin.MEASURED, has_targets)
    assert has_targets.sum() > NUM_SAMPLES / 2

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gracekit.samples import load_samples, tokenize

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokens = tokenize(load_samples(recipe.data), tokenizer, recipe.data, tmp_path / "tokens")
    some = np.flatnonzero(scores.origin == Origin.MEASURED)[:3]
    for row, (ids, mask) in zip(some, tokens.take(some), strict=True):
        exact = exact_norm(model, ids.tolist(), mask.tolist())
        assert scores.scores["gradient-norm"][row] == pytest.approx(exact, rel=1e-4)
