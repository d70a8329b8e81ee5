"""What layouts of checkpoints share; none of it is special to one family of trainers."""

from __future__ import annotations

import re
import time
from pathlib import Path

from gracekit.checkpoints.distributed import shard_files, shards_directory
from gracekit.checkpoints.model_files import (
    incomplete_model,
    loaded_files,
    model_weights,
    uses_command,
)
from gracekit.checkpoints.weights import ADAPTER_OF_TORCHTUNE, has_weights, holds_merged
from gracekit.errors import CheckpointError
from gracekit.recipe import CheckpointSection

_INNER_NAMES = frozenset(
    ("huggingface", "hf", "hf_model", "model", "consolidated", "actor", "lora_adapter", "weights")
)
"""Folders that trainers put into a checkpoint: its step is in the name of one above them."""
_NUMBER_AT_END = re.compile(r"(\d+)(?:\.ckpt)?$")
"""Of a step; Lightning calls its folders of shards `epoch=0-step=10.ckpt`."""
_MOST_INNER = 3
_MOST_FILES = 10_000
"""Of a checkpoint that a command converts."""


class Layout:
    """A directory that holds a model, in any of the forms of `model_files`.

    A layout of its own is a subclass with a `name` that says what is different about it.
    """

    name = "directory"

    def __init__(self, settings: CheckpointSection | None = None) -> None:
        self.settings = settings or CheckpointSection()

    def matches(self, path: Path) -> bool:
        """Whether it looks like this layout, complete or not."""
        raise NotImplementedError

    def is_marked(self, path: Path) -> bool:
        """Whether something that is written last tells that it is complete."""
        return False

    def settle_s(self, path: Path) -> float:
        """Seconds without a change after which one that is not marked counts as complete."""
        return self.settings.settle_s

    def step(self, path: Path) -> int:
        """The number that the name ends with (step-200, epoch_3), else 0."""
        return step_in_name(path)

    def unready(self, path: Path) -> str | None:
        """Why the checkpoint is not complete; raises `CheckpointError` if it cannot be read."""
        return incomplete_model(self.parts(path), self.settings)

    def files(self, path: Path) -> list[Path]:
        """Weights, config, tokenizer and model code."""
        parts = self.parts(path)
        if uses_command(parts, self.settings):
            return all_files(path)
        shards = None if has_weights(parts[0]) else shards_directory(parts[0])
        found = {file for part in parts for file in loaded_files(part)}
        found |= {part / ADAPTER_OF_TORCHTUNE for part in parts if holds_merged(part)}
        return sorted(found.union(() if shards is None else shard_files(shards)))

    def weight_files(self, path: Path) -> list[Path]:
        """The files of the model's weights; all files where a command makes the model of them."""
        parts = self.parts(path)
        return all_files(path) if uses_command(parts, self.settings) else model_weights(parts[0])

    def parts(self, path: Path) -> list[Path]:
        """The directories that hold the model, the first one first."""
        return [path]


def step_in_name(path: Path) -> int:
    """The number at the end of a name, or of the one above names such as `huggingface`; else 0."""
    for place in (path, *path.parents[:_MOST_INNER]):
        number = _NUMBER_AT_END.search(place.name)
        if number:
            return int(number[1])
        if place.name not in _INNER_NAMES:
            break
    return 0


def step_directory(path: Path) -> Path:
    """The folder whose name has the step: the path itself, or one above names as `huggingface`."""
    for place in (path, *path.parents[:_MOST_INNER]):
        if _NUMBER_AT_END.search(place.name):
            return place
        if place.name not in _INNER_NAMES:
            break
    return path


def unwritten_s(files: list[Path]) -> float:
    """Seconds since the content of the last of files was written; 0 where there are none.

    A time far ahead, of another clock or one that was set back, counts as long ago: it cannot be
    waited for.
    """
    return abs(time.time() - max((f.stat().st_mtime for f in files), default=time.time()))


def quiet_s(files: list[Path]) -> float:
    """The same, where copying, renaming and linking count too."""
    stats = [file.stat() for file in files]
    newest = max((max(s.st_mtime, s.st_ctime) for s in stats), default=time.time())
    return abs(time.time() - newest)


def all_files(path: Path) -> list[Path]:
    """Every file below a directory, sorted; raises `CheckpointError` for too many."""
    found = sorted(file for file in path.rglob("*") if file.is_file())
    if len(found) > _MOST_FILES:
        raise CheckpointError(f"{path} holds more than {_MOST_FILES:,} files: no checkpoint does")
    return found
