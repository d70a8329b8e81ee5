"""What configurations of torchtune name: a collate function that notes its rows, and a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FED = "fed.jsonl"
"""In the present directory: of each batch the tokens of its rows."""


def noting(batch: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
    """As `torchtune.data.padded_collate_sft`."""
    from torchtune.data import padded_collate_sft

    with Path(FED).open("a") as file:
        file.write(json.dumps([list(row["tokens"]) for row in batch]) + "\n")
    return padded_collate_sft(batch, *args, **kwargs)


def llama2(**sizes: Any) -> Any:
    """torchtune's model; its recipe for several processes asks for the memory of a GPU."""
    from torchtune import training
    from torchtune.models.llama2 import llama2

    training.get_memory_stats = lambda device: {}
    training.log_memory_stats = lambda stats: None
    training.cleanup_before_training = lambda: None
    return llama2(**sizes)
