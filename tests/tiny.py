"""A tiny but real world: data, a tokenizer, and checkpoints of a Llama as a trainer writes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gracekit.recipe import Recipe

COLOURS = ["red", "green", "blue", "small", "large", "of"]
NUMBERS = ["one", "two", "three", "four", "five", "sum"]
THINGS = ["cat", "dog", "tree", "house", "is", "the"]
WORDS = COLOURS + NUMBERS + THINGS
NUM_SAMPLES = 160


def write_data(path: Path, *, num_samples: int = NUM_SAMPLES, seed: int = 0) -> Path:
    """Prompt/response rows in three groups of different wording; all distinct."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for i in range(num_samples):
            group = "abc"[i % 3]
            pool = (COLOURS, NUMBERS, THINGS)[i % 3]
            words = rng.choice(pool, rng.integers(4, 16))
            row = {
                "prompt": f"{i} " + " ".join(words[:3]),
                "response": " ".join(words[3:]) + f" {i % 7}",
                "source": group,
            }
            file.write(json.dumps(row) + "\n")
    return path


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words and digits; 64 ids."""
    special = ["<pad>", "<eos>", "<unk>"]
    vocabulary = {t: i for i, t in enumerate([*special, *map(str, range(10)), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def write_checkpoint(run: Path, step: int, *, spoil: Any = None, hidden_size: int = 32) -> Path:
    """`checkpoint-STEP` of one run: the same start, moved further at each step.

    Args:
        run: The trainer's output directory.
        step: Training step.
        spoil: Called with the model before it is saved.
        hidden_size: Width of the model.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=hidden_size,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=2e-4 * step)
    if spoil is not None:
        spoil(model)
    directory = run / f"checkpoint-{step}"
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    temporary = directory / "trainer_state.json.tmp-part"
    temporary.write_text(json.dumps({"global_step": step}))
    os.replace(temporary, directory / "trainer_state.json")
    return directory


def tiny_recipe(folder: Path, **sections: Any) -> Recipe:
    """A recipe over the data in `folder`, sized for tests; sections are merged over it."""
    return Recipe.from_dict(recipe_content(**sections), folder=folder)


def recipe_content(**sections: Any) -> dict[str, Any]:
    """The same as plain values, for a recipe file."""
    content: dict[str, Any] = {
        "data": {"path": "train.jsonl", "group_column": "source", "max_length": 64},
        "store": "store",
        "checkpoints": {"poll_interval_s": 0.05, "settle_s": 0},
        "scoring": {"shard_rows": 16, "num_threads": 1, "device": "cpu"},
        "refresh": {"min_fraction": 0.4, "max_fraction": 0.5, "min_probe": 20},
        "propagation": {"min_measured": 20},
    }
    for section, values in sections.items():
        if isinstance(values, dict):
            content[section] = {**content.get(section, {}), **values}
        else:
            content[section] = values
    return content
