"""What a model can take: its vocabulary and, with learned positions, the length of a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gracekit.errors import MeasureError
from gracekit.model_pass.layers import decoder_body
from gracekit.types import Bool, Int32


def require_length(model: Any, longest: int) -> None:
    """Refuse samples longer than a table of learned positions; on a GPU that kills the process."""
    limit = getattr(model.config, "max_position_embeddings", None)
    tokens = {*model.get_input_embeddings().modules()}  # an adapter may be around it
    has_table = any(
        isinstance(module, torch.nn.Embedding) and module not in tokens
        for module in decoder_body(model).modules()
    )
    if has_table and limit is not None and longest > limit:
        raise MeasureError(
            f"the longest sample has {longest} tokens and {type(model).__name__} takes at most "
            f"{limit}; set `data: {{max_length: {limit}}}` in a new store"
        )


def require_known_tokens(model: Any, samples: list[tuple[Int32, Bool]]) -> None:
    """Refuse token ids outside of the model's vocabulary."""
    ids = np.concatenate([ids for ids, _ in samples])
    size = model.get_input_embeddings().weight.shape[0]
    if len(ids) and not 0 <= ids.min() <= ids.max() < size:
        wrong = int(ids.max() if ids.max() >= size else ids.min())
        raise MeasureError(
            f"a sample holds token id {wrong}, and {type(model).__name__} knows 0 to {size - 1}: "
            "the tokenizer does not belong to this model; set `checkpoints: {tokenizer: ...}`"
        )
