"""How families of trainers lay out a checkpoint: one class each, in `LAYOUTS`.

To read another family, add a class, here or in `other_layouts.py`, and a line to `LAYOUTS`; the
first layout that matches reads a directory. What form the weights are in is another question, which
`model_files.py` answers for all of them.
"""

from __future__ import annotations

import re
from pathlib import Path

from gracekit.checkpoints.base_layout import Layout, unwritten_s
from gracekit.checkpoints.distributed import SHARDS, TABLE
from gracekit.checkpoints.model_files import (
    CONFIG,
    UNSUPPORTED,
    holds_steps,
    incomplete_model,
    is_step_folder,
    named_adapters,
)
from gracekit.checkpoints.other_layouts import (
    AccelerateLayout,
    AutoModelLayout,
    DeepSpeedLayout,
    LightningLayout,
    OwnLayout,
    VerlLayout,
)
from gracekit.checkpoints.weights import ADAPTER_CONFIG, has_weights, is_adapter
from gracekit.documents import read_json
from gracekit.errors import CheckpointError
from gracekit.foreign import HIGHEST, whole_number
from gracekit.protocols import CheckpointLayout
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint

TRAINER_STATE = "trainer_state.json"
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")
"""What trainers call the optimizer's state."""
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
_TRACES = ("training_args.bin", "scheduler.pt", "rng_state*.pth", "optimizer.pt")
"""Files that the Trainer of transformers writes before `trainer_state.json`."""

QUIET_S = 60
"""Seconds after the last write to weights that are newer than `trainer_state.json`."""


class TrainerLayout(Layout):
    """The Trainer of transformers and all that build on it (TRL, Axolotl, LLaMA-Factory, ms-swift).

    It writes in place and `trainer_state.json` last. A run that is repeated rewrites
    `checkpoint-N` under the old `trainer_state.json`, hence the look at the times. In a copy that
    kept none the order says nothing: such a checkpoint is used when no file of it has been written
    for `QUIET_S`. So is a `checkpoint-N` without any trace of the Trainer but its name.
    """

    name = "hf-trainer"
    quiet_s = QUIET_S
    """Seconds without a write after which files tell that nobody writes any more."""

    def matches(self, path: Path) -> bool:
        """A directory called checkpoint-N, or any that holds a trainer_state.json."""
        is_named = CHECKPOINT_NAME.fullmatch(path.name) is not None and path.is_dir()
        return is_named or (path / TRAINER_STATE).is_file()

    def is_marked(self, path: Path) -> bool:
        """By trainer_state.json."""
        return (path / TRAINER_STATE).is_file()

    def settle_s(self, path: Path) -> float:
        """Longer where no trainer_state.json is there, which most others write."""
        return max(self.settings.settle_s, 0 if self.is_marked(path) else self.quiet_s)

    def step(self, path: Path) -> int:
        """N of checkpoint-N; under another name the `global_step` of trainer_state.json."""
        named = CHECKPOINT_NAME.fullmatch(path.name)
        if named:
            return int(named[1])
        try:
            return _global_step(path)
        except ValueError as error:
            raise CheckpointError(f"cannot tell the training step of {path}: {error}") from None

    def unready(self, path: Path) -> str | None:
        """Why the checkpoint is not complete; raises `CheckpointError` if it cannot be read."""
        if not (path / TRAINER_STATE).is_file():
            return self._unready_without_state(path)
        try:
            global_step = _global_step(path)
        except ValueError as error:
            return str(error)
        named = CHECKPOINT_NAME.fullmatch(path.name)
        if named and int(named[1]) != global_step:
            return (
                f"{TRAINER_STATE} says global_step {global_step}, expected {named[1]}: "
                "it is left from another checkpoint"
            )
        reason = incomplete_model(self.parts(path), self.settings)
        if reason:
            return reason
        written_at = (path / TRAINER_STATE).stat().st_mtime_ns
        weights = self.weight_files(path)
        newest = max(weights, key=lambda file: file.stat().st_mtime_ns, default=None)
        if newest is None:
            return None
        if newest.stat().st_mtime_ns > written_at and unwritten_s([newest]) < self.quiet_s:
            return (
                f"{newest.name} is newer than {TRAINER_STATE}: it is being written again, or is a "
                f"copy whose times were not kept, which is used when it is {QUIET_S} s old"
            )
        return None

    def _unready_without_state(self, path: Path) -> str | None:
        missing = f"{TRAINER_STATE} is not there yet"
        if self.quiet_s and any(next(path.glob(trace), None) for trace in _TRACES):
            return missing
        if not (next(path.iterdir(), None) and self.weight_files(path)):
            return missing
        reason = incomplete_model(self.parts(path), self.settings)
        if reason or unwritten_s(self.files(path)) >= self.quiet_s:
            return reason
        return f"{missing}; without it a whole model is used when it is {QUIET_S} s old"

    def parts(self, path: Path) -> list[Path]:
        """The directory; before it the folder of an adapter that is not called `default`."""
        adapter = _adapter(path, self.settings)
        return [path] if adapter is None else [adapter, path]


class TrainerAtRest(TrainerLayout):
    """The same where the trainer is known to have ended: nothing is waited for."""

    quiet_s = 0


class PretrainedLayout(Layout):
    """Any directory written by `save_pretrained`: nothing in it says that it is complete.

    Also shards of a torch distributed checkpoint alone, whose table is written last.
    """

    name = "pretrained"

    def matches(self, path: Path) -> bool:
        """A directory with a model's config, an adapter's, or weights of any known kind."""
        is_step = is_step_folder(path.name) and not _holds_steps(path)
        unsupported = (
            pattern
            for pattern, _, _ in UNSUPPORTED
            if is_step or not pattern.startswith("global_step*/")  # a run's folder has these
        )
        own = (CONFIG, ADAPTER_CONFIG, "*.safetensors", TABLE, SHARDS)
        if any(True for pattern in (*own, *unsupported) for _ in path.glob(pattern)):
            return True
        return is_step and bool(named_adapters(path))

    def settle_s(self, path: Path) -> float:
        """Longer for weights alone: a trainer may go on with its optimizer and random states."""
        parts = self.parts(path)
        vouched = (CONFIG, ADAPTER_CONFIG, TABLE)
        is_alone = not any((part / name).is_file() for part in parts for name in vouched)
        return max(self.settings.settle_s, QUIET_S if is_alone else 0)

    def parts(self, path: Path) -> list[Path]:
        """The directory; before it the folder of an adapter that is not called `default`."""
        adapter = _adapter(path, self.settings)
        return [path] if adapter is None else [adapter, path]


LAYOUTS: dict[str, type[CheckpointLayout]] = {
    layout.name: layout
    for layout in (
        LightningLayout,
        AutoModelLayout,
        VerlLayout,
        AccelerateLayout,
        TrainerLayout,
        DeepSpeedLayout,
        PretrainedLayout,
        OwnLayout,
    )
}
"""Layout name -> class; the first that matches a directory reads it."""
LAYOUTS_AT_REST = {**LAYOUTS, TrainerLayout.name: TrainerAtRest}
"""For the output of a training that has ended."""


def layout_of(
    checkpoint: Checkpoint, settings: CheckpointSection | None = None
) -> CheckpointLayout:
    """The layout by which the checkpoint was found."""
    if checkpoint.layout not in LAYOUTS:
        raise CheckpointError(
            f"there is no checkpoint layout {checkpoint.layout!r}; there are: {', '.join(LAYOUTS)}"
        )
    return LAYOUTS[checkpoint.layout](settings)


def _adapter(path: Path, settings: CheckpointSection) -> Path | None:
    """The folder of the adapter to read, where it is not the checkpoint itself.

    Raises `CheckpointError` where there are several and none is named, or none of that name.
    """
    if not path.is_dir() or (is_adapter(path) and settings.adapter in (None, "default")):
        return None
    named = named_adapters(path)
    if settings.adapter is not None:
        if settings.adapter in named:
            return named[settings.adapter]
        if not named:
            return None
        raise CheckpointError(
            f"{path} holds no adapter {settings.adapter!r} (checkpoints.adapter); it holds "
            f"{', '.join(named)}"
        )
    if not named or (path / CONFIG).is_file() or has_weights(path):
        return None
    if len(named) > 1:
        raise CheckpointError(
            f"{path} holds several adapters ({', '.join(named)}); name the one to read as "
            "checkpoints.adapter in the recipe"
        )
    return next(iter(named.values()))


def _holds_steps(path: Path) -> bool:
    return path.is_dir() and holds_steps(path)


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
