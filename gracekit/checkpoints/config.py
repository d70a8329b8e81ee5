"""What a checkpoint's config.json says of the model, under one name for each size. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gracekit.checkpoints.adapters import base_digest, model_directory, read_adapter
from gracekit.checkpoints.layouts import layout_of
from gracekit.checkpoints.model_files import CONFIG, base_of, config_in
from gracekit.checkpoints.weights import ADAPTER_CONFIG, is_adapter
from gracekit.documents import read_json
from gracekit.errors import CheckpointError
from gracekit.files import sha256
from gracekit.foreign import foreign, whole_number
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint, Json

_NAMES = {
    "model_type": ("model_type",),
    "architectures": ("architectures",),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff"),
    "vocab_size": ("vocab_size",),
}
"""Our name -> the names that families of models have for it."""


def describe_architecture(directory: Path, settings: CheckpointSection) -> Json:
    """Kind and sizes of the model in a checkpoint directory: equal for checkpoints of one run.

    Of a model for several kinds of input the sizes are those of its text part. What the config
    does not say is left out.

    An adapter has its base model's, and its own kind and rank.

    Raises `CheckpointError` when there is no config.json, or it is no JSON object with a
    `model_type`.
    """
    with foreign(directory, CheckpointError):
        return _described(directory, model_directory(directory, settings) / CONFIG)


def describe_checkpoint(checkpoint: Checkpoint, settings: CheckpointSection) -> Json:
    """The same of a checkpoint in any layout, before it is pinned.

    Raises `CheckpointError` also where it has no config and no base model is named.
    """
    with foreign(checkpoint.path, CheckpointError):
        parts = layout_of(checkpoint, settings).parts(checkpoint.path)
        config = config_in(parts)
        if is_adapter(parts[0]):
            home = parts[0]
        else:
            home = base_of(checkpoint.path, settings) if config is None else config.parent
    return describe_architecture(home, settings)


def _described(directory: Path, path: Path) -> Json:
    try:
        config = read_json(path)
    except ValueError as error:
        raise CheckpointError(
            f"{path} is no JSON ({error}): it is cut off or damaged; save the checkpoint again"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path} holds a {type(config).__name__}, expected an object with the model's settings"
        )
    text = config.get("text_config")
    sources = [config, text] if isinstance(text, dict) else [config]
    found: Json = {}
    for ours, theirs in _NAMES.items():
        values = (source.get(name) for source in sources for name in theirs)
        value = next((v for v in values if v is not None), None)
        if value is not None:
            found[ours] = _checked(path, ours, value)
    if "model_type" not in found:
        raise CheckpointError(
            f"{path} names no model_type, which every model's config has: it is damaged or not a "
            "model's; save the checkpoint again"
        )
    if is_adapter(directory):
        found["adapter"] = read_adapter(directory)
    return found


def _checked(path: Path, name: str, value: Any) -> Any:
    """The value, if it is of the kind that it has to be: a version's header keeps it."""
    if name == "model_type":
        fits, expected = isinstance(value, str), "a name"
    elif name == "architectures":
        fits, expected = _are_texts(value), "a list of names"
    else:
        fits, expected = whole_number(value) is not None or _are_sizes(value), "a whole number"
    if not fits:
        raise CheckpointError(
            f"{path} has {repr(value)[:80]} as {name}, expected {expected}: it is damaged; save "
            "the checkpoint again"
        )
    return value


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_sizes(value: Any) -> bool:
    """One size for each layer, as some families have it."""
    return isinstance(value, list) and all(whole_number(item) is not None for item in value)


def model_identity(directory: Path, settings: CheckpointSection) -> str:
    """What makes the model besides the checkpoint's own weights.

    That is its config; for an adapter its own config and all of its base. Raises `CheckpointError`
    when they cannot be read.
    """
    with foreign(directory, CheckpointError):
        base = model_directory(directory, settings)
        if base == directory:
            return sha256(directory / CONFIG)
        return f"{sha256(directory / ADAPTER_CONFIG)} {base_digest(base)}"
