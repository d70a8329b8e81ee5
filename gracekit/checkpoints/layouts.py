"""How families of trainers lay out a checkpoint directory: one class each, in `LAYOUTS`.

To read another family, add a class here and a line to `LAYOUTS`; the first layout that matches a
directory reads it. What is recognised but cannot be read yet is listed, with the way out for the
user, in `UNSUPPORTED`: a new layout takes its line away from there.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from gracekit.checkpoints.adapters import incomplete_adapter
from gracekit.checkpoints.quantised import quantisation_of
from gracekit.checkpoints.weights import (
    ADAPTER_CONFIG,
    incomplete_weights,
    is_adapter,
    weight_files,
)
from gracekit.errors import CheckpointError
from gracekit.files import read_json
from gracekit.foreign import HIGHEST, whole_number
from gracekit.protocols import CheckpointLayout
from gracekit.types import Checkpoint

CONFIG = "config.json"
TRAINER_STATE = "trainer_state.json"
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")
"""What trainers call the optimizer's state."""
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")

_LOADED_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".py"}
"""Config, weights, tokenizer, chat template and model code; not optimizer state or pickles."""

UNSUPPORTED = (
    (
        "pytorch_model*.bin",
        "pickled weights",
        "save safetensors (the default of save_pretrained) in the trainer",
    ),
    (
        "*.gguf",
        "GGUF weights",
        "convert them with transformers (from_pretrained with gguf_file, then save_pretrained)",
    ),
    (
        "pytorch_model_fsdp_*",
        "FSDP shards",
        "use FULL_STATE_DICT in the trainer, or merge them with `accelerate merge-weights`",
    ),
    (
        "*.distcp",
        "a torch distributed checkpoint",
        "convert it to safetensors with the trainer's own export",
    ),
    (
        "global_step*/*_states.pt",
        "DeepSpeed ZeRO shards",
        "set stage3_gather_16bit_weights_on_model_save in the trainer, or merge them with "
        "`zero_to_fp32.py . OUT --safe_serialization`",
    ),
)
"""(file pattern, what it is, the way out) of weights that cannot be read yet."""


QUIET_S = 60
"""Seconds after the last write to weights that are newer than `trainer_state.json`."""


class TrainerLayout:
    """The Trainer of transformers and all that build on it (TRL, Axolotl, LLaMA-Factory).

    It writes in place and `trainer_state.json` last. A run that is repeated rewrites
    `checkpoint-N` under the old `trainer_state.json`, hence the look at the times. In a copy that
    kept none the order says nothing: such a checkpoint is used when no file of it has been written
    for `QUIET_S`.
    """

    name = "hf-trainer"
    has_marker = True

    def matches(self, directory: Path) -> bool:
        """A directory called checkpoint-N, or any that holds a trainer_state.json."""
        is_named = CHECKPOINT_NAME.fullmatch(directory.name) is not None
        return is_named or (directory / TRAINER_STATE).is_file()

    def step(self, directory: Path) -> int:
        """N of checkpoint-N; under another name the `global_step` of trainer_state.json."""
        named = CHECKPOINT_NAME.fullmatch(directory.name)
        if named:
            return int(named[1])
        try:
            return _global_step(directory)
        except ValueError as error:
            raise CheckpointError(
                f"cannot tell the training step of {directory}: {error}"
            ) from None

    def unready(self, directory: Path) -> str | None:
        """Why the checkpoint is not complete; raises `CheckpointError` if it cannot be read."""
        if not (directory / TRAINER_STATE).is_file():
            return f"{TRAINER_STATE} is not there yet"
        try:
            global_step = _global_step(directory)
        except ValueError as error:
            return str(error)
        named = CHECKPOINT_NAME.fullmatch(directory.name)
        if named and int(named[1]) != global_step:
            return (
                f"{TRAINER_STATE} says global_step {global_step}, expected {named[1]}: "
                "it is left from another checkpoint"
            )
        reason = _incomplete_model(directory)
        if reason:
            return reason
        written_at = (directory / TRAINER_STATE).stat().st_mtime_ns
        newest = max(weight_files(directory), key=lambda file: file.stat().st_mtime_ns)
        written = newest.stat()
        # A time far ahead, of another clock or one that was set back, cannot be waited for.
        is_quiet = abs(time.time() - written.st_mtime) >= QUIET_S
        if written.st_mtime_ns > written_at and not is_quiet:
            return (
                f"{newest.name} is newer than {TRAINER_STATE}: it is being written again, or is a "
                f"copy whose times were not kept, which is used when it is {QUIET_S} s old"
            )
        return None

    def files(self, directory: Path) -> list[Path]:
        """Config, weights, tokenizer, model code and trainer_state.json."""
        return _loaded_files(directory)

    def weight_files(self, directory: Path) -> list[Path]:
        """The safetensors files of the model."""
        return _weight_files(directory)


class PretrainedLayout:
    """Any directory written by `save_pretrained`: nothing in it says that it is complete."""

    name = "pretrained"
    has_marker = False

    def matches(self, directory: Path) -> bool:
        """A directory with a model's config, an adapter's, or weights of any known kind."""
        patterns = (CONFIG, ADAPTER_CONFIG, "*.safetensors", *(p for p, _, _ in UNSUPPORTED))
        return any(True for pattern in patterns for _ in directory.glob(pattern))

    def step(self, directory: Path) -> int:
        """The number that the directory's name ends with (step-200, epoch_3), else 0."""
        number = re.search(r"(\d+)$", directory.name)
        return int(number[1]) if number else 0

    def unready(self, directory: Path) -> str | None:
        """Why the checkpoint is not complete; raises `CheckpointError` if it cannot be read."""
        return _incomplete_model(directory)

    def files(self, directory: Path) -> list[Path]:
        """Config, weights, tokenizer and model code."""
        return _loaded_files(directory)

    def weight_files(self, directory: Path) -> list[Path]:
        """The safetensors files of the model."""
        return _weight_files(directory)


LAYOUTS: dict[str, type[CheckpointLayout]] = {
    layout.name: layout for layout in (TrainerLayout, PretrainedLayout)
}
"""Layout name -> class; the first that matches a directory reads it."""


def layout_of(checkpoint: Checkpoint) -> CheckpointLayout:
    """The layout by which the checkpoint was found."""
    if checkpoint.layout not in LAYOUTS:
        raise CheckpointError(
            f"there is no checkpoint layout {checkpoint.layout!r}; there are: {', '.join(LAYOUTS)}"
        )
    return LAYOUTS[checkpoint.layout]()


def _global_step(directory: Path) -> int:
    """`global_step` of trainer_state.json; ValueError with the reason when it has none."""
    try:
        step = read_json(directory / TRAINER_STATE)["global_step"]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{TRAINER_STATE} does not parse: it is cut off or damaged") from None
    if whole_number(step) is None:
        raise ValueError(
            f"{TRAINER_STATE} has global_step {repr(step)[:80]}, expected a whole number from 0 to "
            f"{HIGHEST}"
        )
    return int(step)


def _incomplete_model(directory: Path) -> str | None:
    """Why the model's files are not complete; `CheckpointError` for what cannot be read at all."""
    if is_adapter(directory):
        return incomplete_adapter(directory)
    try:
        has_weights = bool(weight_files(directory))
    except ValueError as error:
        return str(error)
    if not has_weights:
        for pattern, what, way_out in UNSUPPORTED:
            if next(directory.glob(pattern), None):
                raise _unsupported(directory, what, way_out)
    if not (directory / CONFIG).is_file():
        return f"{CONFIG} is not there yet"
    try:
        config = read_json(directory / CONFIG)
        config.get("model_type")
    except (ValueError, AttributeError):
        return f"{CONFIG} does not parse: it is cut off or damaged"
    reason = incomplete_weights(directory)
    try:
        quantised = None if reason else quantisation_of(directory, config)
    except ValueError as error:
        return str(error)
    if quantised is not None and not quantised.is_read:
        raise _unsupported(directory, quantised.what, quantised.way_out)
    return reason


def _unsupported(directory: Path, what: str, way_out: str) -> CheckpointError:
    return CheckpointError(
        f"{directory} holds {what}, which gracekit cannot read; it reads full models saved as "
        f"safetensors in floating point: {way_out}"
    )


def _loaded_files(directory: Path) -> list[Path]:
    files = [path for path in directory.iterdir() if path.suffix in _LOADED_SUFFIXES]
    files += directory.glob("additional_chat_templates/*.jinja")
    return sorted(path for path in files if path.is_file())


def _weight_files(directory: Path) -> list[Path]:
    try:
        return weight_files(directory)
    except ValueError as error:
        raise CheckpointError(f"{directory}: {error}") from None
