"""Whether a model's config claims no more than its weights hold, before memory is taken for it."""

from __future__ import annotations

from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers

from gracekit.checkpoints.weights import read_header, weight_files
from gracekit.errors import CheckpointMismatchError
from gracekit.recipe import CheckpointSection

_SMALL_CLAIM = 1 << 26
"""Parameters of a model whose memory (a quarter of a gigabyte) is always to be had."""
_FEW_LAYERS = 128


def require_claim(directory: Path, config: Any, settings: CheckpointSection) -> None:
    """Raise `CheckpointMismatchError` where config.json claims far more than the weights hold.

    What a checkpoint lacks is filled with random numbers as it is loaded: one wrong digit in its
    config would take all memory, and the system ends a process that does. Models up to
    `_SMALL_CLAIM` are loaded, so that the error can name what is missing.
    """
    headers = [read_header(file) for file in weight_files(directory)]
    num_held = sum(prod(tensor["shape"]) for header in headers for tensor in header.values())
    require_layers(config, sum(map(len, headers)), directory)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            deepcopy(config), trust_remote_code=settings.trust_remote_code
        )
    num_claimed = sum(parameter.numel() for parameter in model.parameters())
    # Quantised weights hold up to two values in one.
    if num_claimed > max(4 * num_held, _SMALL_CLAIM):
        raise CheckpointMismatchError(
            f"the config.json of {directory} says a model of {num_claimed:,} parameters, and its "
            f"weights hold {num_held:,} numbers: they do not belong together"
        )


def require_layers(config: Any, num_tensors: int, named: Path) -> None:
    """Raise `CheckpointMismatchError` where a config says more layers than there are tensors.

    Asked before a model is made, which makes its layers one by one even without memory for them.
    """
    num_layers = int(getattr(config.get_text_config(), "num_hidden_layers", None) or 0)
    if num_layers > max(num_tensors, _FEW_LAYERS):
        raise CheckpointMismatchError(
            f"the config.json of {named} says {num_layers:,} layers, and its weights are "
            f"{num_tensors:,} tensors: they do not belong together"
        )
