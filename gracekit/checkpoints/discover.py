"""Find the complete checkpoints of a directory, and say why another one is not complete.

No torch: only names, JSON files, safetensors headers and modification times are looked at.
"""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gracekit.checkpoints.layouts import CHECKPOINT_NAME, LAYOUTS
from gracekit.errors import CheckpointError, CheckpointIncompleteError, CheckpointVanishedError
from gracekit.files import MAX_NAME_BYTES
from gracekit.foreign import HIGHEST, foreign, whole_number
from gracekit.protocols import CheckpointLayout
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint

logger = logging.getLogger(__name__)

_UNFINISHED_NAMES = ("tmp-*", "*-tmp", "*.tmp", "*.incomplete", "*-unfinished")
_UNFINISHED_MARKERS = ("checkpoint-is-incomplete.txt", ".incomplete")


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why a directory is not a checkpoint that can be used now."""

    error: type[CheckpointError]
    """`CheckpointIncompleteError`, `CheckpointVanishedError`, or `CheckpointError` for one that
    waiting does not mend."""
    reason: str


def find_checkpoints(
    root: Path, settings: CheckpointSection, layouts: Mapping[str, type[CheckpointLayout]] = LAYOUTS
) -> list[Checkpoint]:
    """The complete checkpoints directly below `root`, ascending by step.

    One look, so a layout without a completion marker is judged by its files alone;
    `watch_checkpoints` waits for a quiet period too. Raises `CheckpointError` when `root` cannot
    be listed.
    """
    found = []
    for directory in candidates(root):
        outcome = look(directory, settings, layouts)
        if isinstance(outcome, Checkpoint):
            found.append(outcome)
        elif outcome is not None:
            logger.info("leaving out %s: %s", directory.name, outcome.reason)
    return in_order(found)


def check_checkpoint(
    path: str | Path,
    settings: CheckpointSection,
    layouts: Mapping[str, type[CheckpointLayout]] = LAYOUTS,
) -> Checkpoint:
    """The complete checkpoint at `path`.

    Raises `CheckpointIncompleteError` while it is being written or when it was cut off,
    `CheckpointVanishedError` when it is deleted meanwhile, else `CheckpointError`.
    """
    directory = Path(path).absolute()
    directory = real_path(directory.parent) / directory.name
    with foreign(directory, CheckpointError):
        is_there = directory.is_dir()
    if not is_there:
        raise CheckpointError(f"there is no checkpoint directory at {directory}")
    outcome = look(directory, settings, layouts)
    if isinstance(outcome, Checkpoint):
        return outcome
    if outcome is None:
        inside = [d.name for d in candidates(directory) if CHECKPOINT_NAME.fullmatch(d.name)]
        hint = f"; it holds checkpoints, so name one of them: {', '.join(inside)}" if inside else ""
        raise CheckpointError(
            f"{directory} is not a checkpoint: expected config.json and *.safetensors "
            f"(layouts: {', '.join(layouts)}){hint}"
        )
    if outcome.error is CheckpointIncompleteError:
        raise CheckpointIncompleteError(f"{directory} is not complete: {outcome.reason}")
    raise outcome.error(outcome.reason)


def candidates(root: Path) -> Iterator[Path]:
    """The directories directly below `root` that may be checkpoints, by name.

    Links to a sibling (`latest -> checkpoint-20`) are left out: the sibling is there itself. What
    cannot be told from a directory (a loop of links) is not: a look at it says what is wrong.
    Raises `CheckpointError` when `root` cannot be listed, or is a checkpoint-N itself.
    """
    root = real_path(root)
    if CHECKPOINT_NAME.fullmatch(root.name):
        raise CheckpointError(
            f"{root} is one checkpoint; name the directory that holds the checkpoints, "
            f"or use `gracekit refresh {root}`"
        )
    try:
        with os.scandir(root) as entries:
            listed = sorted((e for e in entries if not e.name.startswith(".")), key=_name)
    except OSError as error:
        raise CheckpointError(
            f"cannot list the checkpoint directory {root}: {error.strerror}"
        ) from error
    for entry in listed:
        try:
            is_directory = entry.is_dir()
        except OSError:
            is_directory = True
        if is_directory and not (entry.is_symlink() and _is_sibling(Path(entry.path), root)):
            yield Path(entry.path)


def real_path(path: Path) -> Path:
    """The path without links; one that loops stays as it is, and fails where it is read."""
    return Path(os.path.realpath(path))


def _is_sibling(link: Path, root: Path) -> bool:
    target = real_path(link)
    return target.parent == root and target != link


def look(
    directory: Path, settings: CheckpointSection, layouts: Mapping[str, type[CheckpointLayout]]
) -> Checkpoint | Obstacle | None:
    """The complete checkpoint in `directory`, else why there is none; None: not a checkpoint.

    Never raises for what is in the directory: every failure is an obstacle of this one.
    """
    try:
        with foreign(directory, CheckpointError):
            return _look(directory, settings, layouts)
    except CheckpointError as error:
        return obstacle_of(error)


def obstacle_of(error: CheckpointError) -> Obstacle:
    """The obstacle that an error tells of."""
    return Obstacle(error=type(error), reason=str(error))


def _look(
    directory: Path, settings: CheckpointSection, layouts: Mapping[str, type[CheckpointLayout]]
) -> Checkpoint | Obstacle | None:
    try:
        directory.stat()  # one that loops or may not be read is no directory without a checkpoint
        matching = [
            layout for layout in (c() for c in layouts.values()) if layout.matches(directory)
        ]
        if not matching:
            return None
        reason = unfinished(directory, settings)
        if reason:
            return Obstacle(error=CheckpointIncompleteError, reason=reason)
        # Only a ready marker tells that a checkpoint-N will never get its trainer_state.json.
        outcomes = [_read(directory, m) for m in matching[: None if settings.ready_marker else 1]]
    except FileNotFoundError as error:
        if directory.is_dir():
            name = Path(error.filename or "a file").name
            return Obstacle(error=CheckpointIncompleteError, reason=f"{name} is not there")
        return Obstacle(
            error=CheckpointVanishedError, reason=f"{directory} was deleted by the trainer"
        )
    return next((o for o in outcomes if isinstance(o, Checkpoint)), outcomes[0])


def in_order(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Ascending by step, then by path."""
    return sorted(checkpoints, key=lambda c: (c.step, c.path))


def _read(directory: Path, layout: CheckpointLayout) -> Checkpoint | Obstacle:
    # Times before content: what is written after this line shows as newer than `completed_at`.
    completed_at = max((f.stat().st_mtime for f in layout.files(directory)), default=0.0)
    try:
        step = layout.step(directory)
        reason = layout.unready(directory)
    except CheckpointError as error:
        return obstacle_of(error)
    if whole_number(step) is None:
        wrong = f"expected a training step from 0 to {HIGHEST}, found {step!r}: rename {directory}"
        return Obstacle(error=CheckpointError, reason=wrong)
    if reason:
        return Obstacle(error=CheckpointIncompleteError, reason=reason)
    return Checkpoint(step=step, path=directory, layout=layout.name, completed_at=completed_at)


def unfinished(directory: Path, settings: CheckpointSection) -> str | None:
    """The name or marker by which the trainer says that it is still writing; None: no such."""
    for pattern in _UNFINISHED_NAMES:
        if fnmatch.fnmatchcase(directory.name, pattern):
            return f"its name says that it is being written ({pattern})"
    for marker in _UNFINISHED_MARKERS:
        if (directory / marker).exists():
            return f"{marker} says that it is being written"
    for suffix in ("-unfinished", ".incomplete"):
        is_name = len(os.fsencode(directory.name + suffix)) <= MAX_NAME_BYTES
        if is_name and directory.with_name(directory.name + suffix).exists():
            return f"{directory.name}{suffix} beside it says that it is being written"
    if settings.ready_marker and not (directory / settings.ready_marker).exists():
        return f"{settings.ready_marker} (checkpoints.ready_marker) is not there yet"
    return None


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name
