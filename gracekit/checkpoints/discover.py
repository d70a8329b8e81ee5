"""Find the complete checkpoints of a directory, and say why another one is not complete.

No torch: only names, JSON files, safetensors headers, tables of pickles (read as plain records) and
modification times are looked at.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gracekit.checkpoints.base_layout import step_directory
from gracekit.checkpoints.layouts import LAYOUTS
from gracekit.checkpoints.model_files import is_step_folder
from gracekit.checkpoints.places import (
    Sight,
    by_run,
    candidates,
    followed_run,
    real_path,
    unfinished_name,
    with_step,
    words_of_runs,
)
from gracekit.errors import CheckpointError, CheckpointIncompleteError, CheckpointVanishedError
from gracekit.files import MAX_NAME_BYTES
from gracekit.foreign import ENDS, HIGHEST, foreign, whole_number
from gracekit.protocols import CheckpointLayout
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint

logger = logging.getLogger(__name__)

Layouts = Mapping[str, type[CheckpointLayout]]
_UNFINISHED_MARKERS = ("checkpoint-is-incomplete.txt", ".incomplete")
_MOST_NAMED = 5
"""Checkpoints that an error names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why a directory is not a checkpoint that can be used now."""

    error: type[CheckpointError]
    """`CheckpointIncompleteError`, `CheckpointVanishedError`, or `CheckpointError` for one that
    waiting does not mend."""
    reason: str


def find_checkpoints(
    root: Path, settings: CheckpointSection, layouts: Layouts = LAYOUTS
) -> list[Checkpoint]:
    """The complete checkpoints of `root` and below it, of the run that is followed, by step.

    `places.followed_run` says which one that is.


    One look, so a layout without a completion marker is judged by its files alone;
    `watch_checkpoints` waits for a quiet period too. Raises `CheckpointError` when `root` cannot
    be listed.
    """
    found = []
    for directory in candidates_below(root, settings, layouts):
        outcome = look(directory, settings, layouts)
        if isinstance(outcome, Checkpoint):
            is_root = directory == real_path(root)
            found.append(among_others(outcome, settings, layouts) if is_root else outcome)
        elif outcome is not None:
            logger.info("leaving out %s: %s", name_below(directory, root), outcome.reason)
    runs, chosen, why = followed(found, root)
    if len(runs) > 1 and chosen is not None:
        logger.info("%s", words_of_runs(runs, chosen, why, real_path(root)))
    return [] if chosen is None else runs[chosen]


def followed(
    checkpoints: list[Checkpoint], root: Path
) -> tuple[dict[Path, list[Checkpoint]], Path | None, str]:
    """Run -> complete checkpoints, the run that is followed (None: there is none), and why."""
    runs = by_run(without_copies(checkpoints), real_path(root))
    return (runs, *followed_run(runs, {}, real_path(root))) if runs else (runs, None, "")


def check_checkpoint(
    path: str | Path, settings: CheckpointSection, layouts: Layouts = LAYOUTS
) -> Checkpoint:
    """The complete checkpoint at `path`, a directory or (Lightning) a file.

    Raises `CheckpointIncompleteError` while it is being written or when it was cut off,
    `CheckpointVanishedError` when it is deleted meanwhile, else `CheckpointError`.
    """
    directory = Path(path).absolute()
    directory = real_path(directory.parent) / directory.name
    with foreign(directory, CheckpointError):
        is_there = directory.exists()
    if not is_there:
        raise CheckpointError(f"there is no checkpoint directory at {directory}")
    outcome = look(directory, settings, layouts)
    if isinstance(outcome, Checkpoint):
        return among_others(outcome, settings, layouts)
    if outcome is None:
        raise _not_one(directory, settings, layouts)
    if outcome.error is CheckpointIncompleteError:
        raise CheckpointIncompleteError(f"{directory} is not complete: {outcome.reason}")
    raise outcome.error(outcome.reason)


def among_others(
    checkpoint: Checkpoint, settings: CheckpointSection, layouts: Layouts
) -> Checkpoint:
    """With its step in the run, where its name tells none: that of the last one before it."""
    for run in (checkpoint.path, checkpoint.path.parent):
        with foreign(run, CheckpointError):
            places = sorted(run.iterdir()) if run.is_dir() else []
        steps = [place for place in places if is_step_folder(place.name)]
        seen = [look(place, settings, layouts) for place in steps]
        others = [c for c in seen if isinstance(c, Checkpoint) and c.path != checkpoint.path]
        if others and not is_step_folder(checkpoint.path.name):
            return with_step(checkpoint, run, [checkpoint, *others])
    return checkpoint


def _not_one(directory: Path, settings: CheckpointSection, layouts: Layouts) -> CheckpointError:
    is_one = _is_one(settings, layouts)
    inside = []
    if directory.is_dir():
        inside = [
            name_below(place, directory)
            for place in candidates(directory, settings.depth, is_one)
            if is_one(place)
        ]
    more = f" and {len(inside) - _MOST_NAMED} more" if len(inside) > _MOST_NAMED else ""
    named = ", ".join(inside[:_MOST_NAMED]) + more
    hint = f"; it holds checkpoints, so name one of them: {named}" if inside else ""
    if settings.ready_marker and not (directory / settings.ready_marker).exists():
        hint += f"; {settings.ready_marker} (checkpoints.ready_marker) is not there yet"
    return CheckpointError(
        f"{directory} is not a checkpoint: expected config.json and *.safetensors "
        f"(layouts: {', '.join(layouts)}){hint}"
    )


def _is_one(settings: CheckpointSection, layouts: Layouts) -> Callable[[Path], bool]:
    """Whether a path looks like a checkpoint; one at which a layout fails does, to be told of."""

    def is_one(path: Path) -> bool:
        try:
            return any(layout(settings).matches(path) for layout in layouts.values())
        except ENDS:
            raise
        except BaseException:
            return True

    return is_one


def candidates_below(
    root: Path, settings: CheckpointSection, layouts: Layouts, sight: Sight | None = None
) -> list[Path]:
    """`places.candidates`, by the layouts and the depth that are set, without the base model."""
    found = candidates(root, settings.depth, _is_one(settings, layouts), sight)
    base = None if settings.base_model is None else real_path(Path(settings.base_model))
    return [path for path in found if path != base or path == real_path(root)]


def name_below(path: Path, root: Path) -> str:
    """The path as it is named below the watched folder: `run-1/checkpoint-20`."""
    root = real_path(root)
    return str(path.relative_to(root)) if root in path.parents else path.name


def without_copies(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Without a file `last.ckpt` that another file beside it, with the step in its name, equals."""
    named = {(c.path.parent, c.step) for c in checkpoints if not c.path.name.startswith("last")}
    return [
        c
        for c in checkpoints
        if not (c.path.suffix == ".ckpt" and c.path.name.startswith("last"))
        or (c.path.parent, c.step) not in named
    ]


def look(
    directory: Path, settings: CheckpointSection, layouts: Layouts
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
    directory: Path, settings: CheckpointSection, layouts: Layouts
) -> Checkpoint | Obstacle | None:
    try:
        directory.stat()  # one that loops or may not be read is no directory without a checkpoint
        matching = [
            layout
            for layout in (kind(settings) for kind in layouts.values())
            if layout.matches(directory)
        ]
        if not matching:
            return None
        reason = unfinished(directory, settings)
        if reason:
            return Obstacle(error=CheckpointIncompleteError, reason=reason)
        # Only a ready marker tells that a checkpoint-N will never get its trainer_state.json.
        outcomes = [_read(directory, m) for m in matching[: None if settings.ready_marker else 1]]
    except FileNotFoundError as error:
        if directory.exists():
            name = Path(error.filename or "a file").name
            return Obstacle(error=CheckpointIncompleteError, reason=f"{name} is not there")
        return Obstacle(
            error=CheckpointVanishedError, reason=f"{directory} was deleted by the trainer"
        )
    return next((o for o in outcomes if isinstance(o, Checkpoint)), outcomes[0])


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


def unfinished(path: Path, settings: CheckpointSection) -> str | None:
    """The name or marker by which the trainer says that it is still writing; None: no such.

    Markers of the step count for the folders that a trainer nests in it.
    """
    outer = step_directory(path)
    for place in dict.fromkeys((path, outer)):
        pattern = unfinished_name(place.name)
        if pattern:
            return f"its name says that it is being written ({pattern})"
        for marker in _UNFINISHED_MARKERS:
            if (place / marker).exists():
                where = "" if place == path else f" in {place.name}"
                return f"{marker}{where} says that it is being written"
        for suffix in ("-unfinished", ".incomplete"):
            is_name = len(os.fsencode(place.name + suffix)) <= MAX_NAME_BYTES
            if is_name and place.with_name(place.name + suffix).exists():
                return f"{place.name}{suffix} beside it says that it is being written"
    if settings.ready_marker and not _is_ready(path, outer, settings.ready_marker):
        return f"{settings.ready_marker} (checkpoints.ready_marker) is not there yet"
    return None


def _is_ready(path: Path, outer: Path, marker: str) -> bool:
    """In the directory, or the step's; for a file beside it, after its name (`last.ckpt.DONE`)."""
    if path.suffix == ".ckpt" and path.is_file():
        return path.with_name(f"{path.name}.{marker.removeprefix('.')}").exists()
    return (path / marker).exists() or (outer / marker).exists()
