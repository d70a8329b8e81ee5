"""What is said of a checkpoint that transformers cannot load, or loads in part."""

from __future__ import annotations

import logging
from typing import Any

import transformers

from gracekit.checkpoints.adapters import model_directory
from gracekit.checkpoints.model_files import CONFIG
from gracekit.documents import read_json
from gracekit.errors import CheckpointError, CheckpointMismatchError
from gracekit.recipe import CheckpointSection
from gracekit.types import PinnedCheckpoint

logger = logging.getLogger(__name__)


def require_all_weights(pinned: PinnedCheckpoint, info: dict[str, Any]) -> None:
    """Raise `CheckpointMismatchError` for weights that transformers fills with random numbers.

    Args:
        pinned: The checkpoint.
        info: What `from_pretrained` says with `output_loading_info`.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    other_shape = sorted(info["mismatched_keys"])  # names alone before transformers 5
    path = pinned.checkpoint.path
    if missing:
        found = f"; found instead {_few(unexpected)}" if unexpected else ""
        raise CheckpointMismatchError(
            f"{path} does not hold all weights of its model: {_few(missing)} missing{found}. "
            "Was it saved by a wrapper, or is it of another model than its config.json says?"
        )
    if other_shape:
        shapes = [
            one if isinstance(one, str) else f"{one[0]} {tuple(one[1])} not {tuple(one[2])}"
            for one in other_shape
        ]
        raise CheckpointMismatchError(
            f"{path} has weights of another shape than its config.json says: {_few(shapes)}"
        )
    if unexpected:
        logger.warning(
            "%s holds weights that the model of its config.json has no place for, which are left "
            "out: %s. Where the trainer trains them, config.json is of another model",
            path,
            _few(unexpected),
        )


def load_error(
    pinned: PinnedCheckpoint, settings: CheckpointSection, error: Exception
) -> CheckpointError:
    """What to raise for an error of transformers, PEFT or a model's own code."""
    path = pinned.checkpoint.path
    config = read_json(model_directory(pinned.directory, settings) / CONFIG)
    model_type = repr(config.get("model_type"))[:80]
    reason = f"it lacks {error}" if type(error) is KeyError else _first_line(error)
    if "auto_map" in config and not settings.trust_remote_code:
        return CheckpointError(
            f"{path} brings its own model code; if you trust it, set "
            "checkpoints.trust_remote_code: true in the recipe"
        )
    if isinstance(error, ValueError | KeyError):
        return CheckpointMismatchError(
            f"transformers {transformers.__version__} cannot make a causal language model of "
            f"{path} (model_type {model_type}): {reason}"
        )
    return CheckpointError(
        f"cannot load {path} (model_type {model_type}): {type(error).__name__}: {reason}"
    )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _first_line(error: Exception) -> str:
    """With the second where the first only announces it."""
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {more[0].strip()}" if first.endswith(":") and more else first
