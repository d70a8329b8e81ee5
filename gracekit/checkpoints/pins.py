"""Pin a checkpoint while it is read: hard links keep its files when the trainer deletes them.

Where a checkpoint is no model directory as it is, one is put together beside the pin
(`assembly.py`).
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gracekit import files
from gracekit.checkpoints.assembly import assemble, is_model_directory, point
from gracekit.checkpoints.layouts import layout_of
from gracekit.checkpoints.model_files import uses_command
from gracekit.checkpoints.weights import weights_digest
from gracekit.errors import CheckpointError, CheckpointIncompleteError, CheckpointVanishedError
from gracekit.foreign import foreign
from gracekit.leftovers import scratch_folder
from gracekit.protocols import CheckpointLayout
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint, PinnedCheckpoint

logger = logging.getLogger(__name__)

_CANNOT_LINK = {
    errno.EXDEV,  # another file system
    errno.EPERM,  # a file system without hard links, or a file of another user
    errno.EACCES,
    errno.EMLINK,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
}


@contextmanager
def pin(
    checkpoint: Checkpoint,
    pins_dir: Path,
    settings: CheckpointSection | None = None,
    *,
    also: tuple[str, ...] = (),
    conversions: Path | None = None,
) -> Iterator[PinnedCheckpoint]:
    """Hold a checkpoint for reading: links to its files under `pins_dir`, removed at exit.

    Where hard links are impossible the original is read in place, and may vanish. Links to files
    elsewhere (a hub snapshot) are followed. Reads all weights once, for the digest.

    Args:
        checkpoint: As it was found.
        pins_dir: Where the links are made.
        settings: What stands in for what the checkpoint lacks.
        also: Further files to hold where they exist, such as the optimizer's.
        conversions: Where converted weights are kept; by default they go with the pin.

    Raises:
        CheckpointVanishedError: The trainer deleted the checkpoint before it was held.
        CheckpointIncompleteError: The trainer is writing it again.
        StoreWriteError: `pins_dir` cannot be written.
    """
    settings = settings or CheckpointSection()
    layout = layout_of(checkpoint, settings)
    directory = pins_dir / f"{checkpoint.path.name}-{secrets.token_hex(4)}"
    model = directory.with_name(f"{directory.name}.model")
    try:
        with vanished_errors(checkpoint):
            is_linked = _link(checkpoint, layout, directory)
            source = _held(checkpoint, directory) if is_linked else checkpoint.path
            for name in also if is_linked and checkpoint.path.is_dir() else ():
                with suppress(OSError):  # whoever needs it says that it is not there
                    files.link(checkpoint.path / name, directory / name)
            reason = layout.unready(source)
            if reason:
                raise CheckpointIncompleteError(f"{checkpoint.path} is not complete: {reason}")
            parts = layout.parts(source)
            is_model = is_model_directory(parts, settings)
            pinned = PinnedCheckpoint(
                checkpoint=checkpoint,
                directory=parts[0] if is_model else model,
                digest=weights_digest(layout.weight_files(source)),
                is_linked=is_linked,
                trainer_files=None if is_model and parts[0] == source else source,
                conversion=conversions or directory.with_name(f"{directory.name}.converted"),
            )
        require_unchanged(pinned, settings)
        if not is_model:
            assemble(pinned, parts, settings, also=also)
            require_unchanged(pinned, settings)
        yield pinned
    finally:
        for place in (directory, model, directory.with_name(f"{directory.name}.converted")):
            with suppress(OSError):  # what is left goes at the next start
                files.remove(place)


@contextmanager
def in_place(
    checkpoint: Checkpoint, settings: CheckpointSection
) -> Iterator[PinnedCheckpoint | None]:
    """The same without holding it, to look at: put together elsewhere, for as long as the block.

    None where `checkpoints.convert_cmd` has to make the model first. It has no digest.

    Raises `CheckpointError` where config or tokenizer have to come from a base model that is not
    there, and `StoreWriteError` where no folder can be made for it.
    """
    path = checkpoint.path
    parts = layout_of(checkpoint, settings).parts(path)
    if uses_command(parts, settings):
        yield None
        return
    if is_model_directory(parts, settings):
        yield PinnedCheckpoint(
            checkpoint=checkpoint,
            directory=parts[0],
            digest="",
            is_linked=False,
            trainer_files=None if parts[0] == path else path,
        )
        return
    with scratch_folder("model") as folder:
        seen = PinnedCheckpoint(
            checkpoint=checkpoint,
            directory=folder / "model",
            digest="",
            is_linked=False,
            trainer_files=path,
        )
        assemble(seen, parts, settings, link=point)
        yield seen


@contextmanager
def named_as_found(pinned: PinnedCheckpoint) -> Iterator[None]:
    """Errors of the block name the checkpoint, not a folder that it is pinned or put together in.

    That one is gone when a person reads the message.
    """
    try:
        yield
    except CheckpointError as error:
        told = str(error)
        is_within = pinned.directory.is_relative_to(pinned.original)
        for folder in [pinned.original] if is_within else [pinned.directory, pinned.original]:
            told = told.replace(str(folder), str(pinned.checkpoint.path))
        if told == str(error):
            raise
        raise type(error)(told) from error.__cause__


def _held(checkpoint: Checkpoint, directory: Path) -> Path:
    """Where the links lie: the directory, or the link to a checkpoint that is a file."""
    link = directory / checkpoint.path.name
    return link if link.is_file() and not checkpoint.path.is_dir() else directory


def require_unchanged(pinned: PinnedCheckpoint, settings: CheckpointSection | None = None) -> None:
    """Raise `CheckpointIncompleteError` if the trainer wrote to the files since they were found.

    A hard link shares its bytes with the original, so it shows what is written in place.
    """
    checkpoint = pinned.checkpoint
    with vanished_errors(checkpoint):
        found = layout_of(checkpoint, settings).files(pinned.original)
        home = pinned.original if pinned.original.is_dir() else pinned.original.parent
        times = {os.path.relpath(f, home): f.stat().st_mtime for f in found}
        newer = [name for name, time in times.items() if time > checkpoint.completed_at]
        if pinned.is_linked and max(times.values(), default=0.0) < checkpoint.completed_at:
            newer = [*times]  # none was deleted, so a clock was set back: all may be written anew
    if newer:
        raise CheckpointIncompleteError(
            f"{checkpoint.path} was written again while it was being read ({', '.join(newer)}); "
            "it is taken again when it is complete"
        )


@contextmanager
def vanished_errors(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn the errors of reading what was deleted meanwhile into `CheckpointVanishedError`.

    All others become `CheckpointError`.
    """
    with foreign(checkpoint.path, CheckpointError):
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                raise vanished(checkpoint) from error
            raise


def vanished(checkpoint: Checkpoint) -> CheckpointVanishedError:
    """The error for a checkpoint that is gone."""
    return CheckpointVanishedError(
        f"{checkpoint.path} was deleted before it was read; let the trainer keep more checkpoints "
        "(save_total_limit of 2 or more)"
    )


def _link(checkpoint: Checkpoint, layout: CheckpointLayout, directory: Path) -> bool:
    """Hard-link the checkpoint's files into the new `directory`; False where that is impossible."""
    originals = layout.files(checkpoint.path)
    home = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    is_linked = True
    for file in originals:
        target = directory / file.relative_to(home)
        with files.clear_write_errors(target):
            files.make_directory(target.parent)
        try:
            files.link(file.resolve(strict=True), target)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                raise
            if error.errno not in _CANNOT_LINK:
                with files.clear_write_errors(target):
                    raise
            logger.info(
                "reading %s in place, for it cannot be hard-linked into %s (%s): "
                "let the trainer keep more than one checkpoint",
                *(checkpoint.path, directory.parent, error.strerror),
            )
            is_linked = False
            break
    # A deletion under way may have taken files before they were listed.
    if not originals or layout.files(checkpoint.path) != originals:
        raise vanished(checkpoint)
    return is_linked
