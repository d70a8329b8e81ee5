"""A base model with the layers of a PEFT adapter in it."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from gracekit.checkpoints.adapter_patterns import require_patterns
from gracekit.checkpoints.adapters import (
    is_dora,
    num_saved_rows,
    read_adapter_config,
    require_whole_adapter,
    token_lists,
)
from gracekit.errors import CheckpointError, CheckpointMismatchError
from gracekit.foreign import whole_number
from gracekit.types import Json, PinnedCheckpoint

logger = logging.getLogger(__name__)

_SIZES = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[([\d, ]*)\]\) from "
    r"checkpoint, the shape in current model is torch\.Size\(\[([\d, ]*)\]\)"
)
_NUM_TRIED = 64
"""Tokens whose embeddings are compared before and after they are merged."""
_TOLERANCE = 0.02
"""As a share; what bfloat16 rounds is smaller."""
_NO_LAYERS = re.compile(r"not found in the base model|No modules were targeted")


def with_adapter(model: Any, pinned: PinnedCheckpoint) -> Any:
    """The base model with the adapter's layers in it; no gradients are switched on.

    A model on the device `meta` gets layers without numbers.

    Raises `CheckpointMismatchError` where the adapter's file is not of these layers.
    """
    try:
        import peft
    except ImportError:
        raise CheckpointError(
            f"{pinned.checkpoint.path} is an adapter, and peft is not installed: "
            "pip install 'gracekit[lora]'"
        ) from None
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    num_rows = num_saved_rows(pinned.directory, name)
    if num_rows not in (None, embeddings.weight.shape[0]):
        # Tokens were added in training: the adapter's file holds the embeddings as they are now.
        model.resize_token_embeddings(num_rows, mean_resizing=False)
    told = read_adapter_config(pinned.directory)
    _require_tokens(pinned.checkpoint.path, told, embeddings.weight.shape[0])
    require_patterns(pinned.directory, told, (name for name, _ in model.named_modules()))
    config = peft.PeftConfig.from_pretrained(str(pinned.directory))
    if embeddings.weight.is_meta:
        config.init_lora_weights = True  # from the numbers of the base there is nothing to begin
    try:
        adapted = peft.PeftModel.from_pretrained(
            model, str(pinned.directory), is_trainable=False, config=config
        )
    except (RuntimeError, ValueError) as error:
        reason = _misfit(error)
        if reason is None:
            raise
        raise CheckpointMismatchError(
            f"{pinned.checkpoint.path} is an adapter of another model than its base, a "
            f"{model.config.model_type}: {reason}. Set checkpoints.base_model in the recipe to the "
            "directory of the model that it was trained on"
        ) from error
    again = adapted.load_adapter(str(pinned.directory), "default", is_trainable=False)
    require_whole_adapter(pinned.checkpoint.path, again.missing_keys, again.unexpected_keys)
    if is_dora(pinned.directory) and not embeddings.weight.is_meta:
        # Its layers call each other with inputs that are no samples': measured as a full model.
        logger.info("%s is a DoRA adapter: it is merged into its base", pinned.checkpoint.path)
        _part_shared_weights(adapted, peft.tuners.tuners_utils.BaseTunerLayer)
        return _merged(adapted, f"{pinned.checkpoint.path} with peft {peft.__version__}")
    return adapted.get_base_model()


def _require_tokens(path: Path, config: Json, num_rows: int) -> None:
    """Raise `CheckpointMismatchError` where tokens are trained that the model has not."""
    tokens = [whole_number(token) or 0 for one in token_lists(config) for token in one]
    if max(tokens, default=0) >= num_rows:
        raise CheckpointMismatchError(
            f"{path} trains the token {max(tokens)}, and its base model has embeddings of "
            f"{num_rows:,} tokens: where tokens were added in training, save the adapter with "
            "save_embedding_layers=True"
        )


def _merged(adapted: Any, what: str) -> Any:
    """The base model with DoRA merged into it; `what` names it in an error.

    Raises `CheckpointError` where PEFT makes other embeddings of it, as 0.13 does.
    """
    layer = adapted.get_input_embeddings()
    tokens = torch.arange(min(_NUM_TRIED, layer.weight.shape[0]), device=layer.weight.device)
    with torch.no_grad():
        before = layer(tokens)
        model = adapted.merge_and_unload()
        after = model.get_input_embeddings()(tokens)
    # By the size of the embeddings, which are about .02 in real models.
    if not torch.allclose(
        before, after, rtol=_TOLERANCE, atol=_TOLERANCE * float(before.abs().max())
    ):
        raise CheckpointError(
            f"cannot load {what}: DoRA of its embeddings is merged into another model than is "
            "trained; update peft"
        )
    return model


def _misfit(error: Exception) -> str | None:
    """What PEFT says of an adapter whose layers are not the model's; None for another error."""
    found = _SIZES.search(str(error))
    if found:
        return f"{found[1]} has the shape {found[2]}, expected {found[3]}"
    first = str(error).partition("\n")[0][:300]
    return first.rstrip(".") if _NO_LAYERS.search(first) else None


def _part_shared_weights(adapted: Any, kind: type[Any]) -> None:
    """Give adapted layers, those of a kind, a weight of their own where others have the same one.

    A layer is merged in its weight, and so would change all that share it: embeddings tied to the
    head, layers that are replicated.
    """
    named = adapted.named_parameters(remove_duplicate=False)
    num_users = Counter(id(parameter) for _, parameter in named)
    for layer in adapted.modules():
        if not isinstance(layer, kind):
            continue
        base = layer.get_base_layer()
        for name, parameter in [*base.named_parameters(recurse=False)]:
            if num_users[id(parameter)] > 1:
                setattr(base, name, torch.nn.Parameter(parameter.detach().clone()))
