"""A model directory put together from what a trainer wrote, a base model and converted weights.

transformers loads a directory with config, weights and tokenizer side by side. Where a checkpoint
has its model in an inner folder, or no config, or weights in another form, such a directory of
links is made beside the pin. What the checkpoint has itself counts before the base model's. Weights
in a form of torch are converted as the model is loaded (`convert.py`); a command of the user's
(`checkpoints.convert_cmd`) is run here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from gracekit import files
from gracekit.checkpoints.distributed import shards_directory
from gracekit.checkpoints.model_files import (
    CONFIG,
    base_of,
    config_in,
    loaded_files,
    named_adapters,
    uses_command,
)
from gracekit.checkpoints.vocabulary import has_vocabulary, is_of_tokenizer
from gracekit.checkpoints.weights import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    has_weights,
    holds_merged,
    incomplete_weights,
    is_adapter,
)
from gracekit.errors import CheckpointError
from gracekit.recipe import CheckpointSection
from gracekit.types import PinnedCheckpoint

logger = logging.getLogger(__name__)

_KEPT = 2
"""Conversions that are kept: a refresh that was cut off goes on, and a plan comes before it."""
_MOST_LINES = 12


def is_model_directory(parts: Sequence[Path], settings: CheckpointSection) -> bool:
    """Whether the only part can be loaded as it is."""
    (directory, *more) = parts
    if more or directory.is_file() or uses_command(parts, settings) or holds_merged(directory):
        return False
    return is_adapter(directory) or (config_in(parts) is not None and has_weights(directory))


def assemble(
    pinned: PinnedCheckpoint,
    parts: Sequence[Path],
    settings: CheckpointSection,
    *,
    also: tuple[str, ...] = (),
    link: Callable[[Path, Path], None] | None = None,
) -> None:
    """Make `pinned.directory` of links to what the model consists of, `link_or_point` by default.

    Raises `CheckpointError` where the command or the base model does not give a model, and
    `StoreWriteError` where the links cannot be made.
    """
    target, link = pinned.directory, link or link_or_point
    with files.clear_write_errors(target):
        files.make_directory(target)
    if uses_command(parts, settings):
        parts = [_by_command(pinned, settings), *parts]
    folders = [part for part in parts if part.is_dir()]
    for folder in folders:
        left_out = (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if holds_merged(folder) else ()
        for file in loaded_files(folder):
            if file.name in left_out:  # transformers would load it on top
                continue
            link(file, target / file.relative_to(folder))
        for name in also:
            if (folder / name).is_file():
                link(folder / name, target / name)
    _from_base(pinned, folders, settings, link)


def _from_base(
    pinned: PinnedCheckpoint,
    folders: Sequence[Path],
    settings: CheckpointSection,
    link: Callable[[Path, Path], None],
) -> None:
    """Config and tokenizer of the base model, where the checkpoint has none."""
    target = pinned.directory
    if is_adapter(target):
        return
    is_bare = not (target / CONFIG).is_file()
    lacks_tokenizer = not has_vocabulary(target) and settings.tokenizer is None
    if not is_bare and not (lacks_tokenizer and settings.base_model):
        return
    base = base_of(pinned.checkpoint.path, settings)
    for file in loaded_files(base):
        is_of_config = file.name in (CONFIG, "generation_config.json") or file.suffix == ".py"
        if (is_bare and is_of_config) or (lacks_tokenizer and is_of_tokenizer(file)):
            link(file, target / file.relative_to(base))


def link_or_point(file: Path, target: Path) -> None:
    """A hard link, or a symbolic one to another file system; nothing over what is there."""
    with files.clear_write_errors(target):
        files.make_directory(target.parent)
        real = file.resolve(strict=True)
        try:
            files.link(real, target)
        except FileExistsError:
            return
        except OSError:
            target.symlink_to(real)


def point(file: Path, target: Path) -> None:
    """A symbolic link, nothing over what is there: the file's own times stay as they are."""
    with suppress(FileExistsError):
        files.make_directory(target.parent)
        target.symlink_to(file.resolve(strict=True))


# --- conversions


def conversion_of(pinned: PinnedCheckpoint, how: str) -> Path:
    """Where the converted weights of a checkpoint are or are to be; older ones are removed."""
    place = pinned.conversion or pinned.directory.with_suffix(".converted")
    key = hashlib.sha256(f"{pinned.digest}\0{how}".encode()).hexdigest()[:20]
    kept = sorted(
        (path for path in place.glob("*") if path.is_dir() and path.name != key),
        key=lambda path: path.stat().st_mtime,
    )
    for old in kept[: max(0, len(kept) + 1 - _KEPT)]:
        with suppress(OSError):
            files.remove(old)
    return place / key


def _by_command(pinned: PinnedCheckpoint, settings: CheckpointSection) -> Path:
    """The directory that `checkpoints.convert_cmd` made of the checkpoint, now or before."""
    command = settings.convert_cmd or ""
    final = conversion_of(pinned, command)
    if not final.is_dir():
        logger.info("converting %s by checkpoints.convert_cmd", pinned.checkpoint.path)
        files.write_directory_atomic(final, lambda target: _run(pinned, command, target))
    with suppress(OSError):
        os.utime(final)
    return final


def _run(pinned: PinnedCheckpoint, command: str, target: Path) -> None:
    checkpoint = pinned.checkpoint
    named = {"src": str(checkpoint.path), "dst": str(target), "step": str(checkpoint.step)}
    try:
        words = shlex.split(command)
        if "{src}" not in command or "{dst}" not in command or not words:
            raise ValueError("expected {src} and {dst} in it")
        words = [_filled(word, named) for word in words]
    except ValueError as error:
        raise CheckpointError(
            f"checkpoints.convert_cmd {command!r} cannot be run: {error}; write it as 'python "
            "to_hf.py {src} {dst}'"
        ) from None
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", check=False,
        )  # fmt: skip
    except OSError as error:
        raise CheckpointError(
            f"checkpoints.convert_cmd cannot be run for {checkpoint.path}: {error.strerror}: "
            f"{words[0]}"
        ) from error
    said = "\n  ".join(done.stdout.strip().splitlines()[-_MOST_LINES:])
    if done.returncode != 0:
        raise CheckpointError(
            f"checkpoints.convert_cmd ended with code {done.returncode} for {checkpoint.path}; it "
            f"said:\n  {said or 'nothing'}"
        )
    reason = None if is_adapter(target) else incomplete_weights(target)
    if reason:
        raise CheckpointError(
            f"checkpoints.convert_cmd made no model of {checkpoint.path} in {{dst}}: {reason}; it "
            "must write model.safetensors there, or shards with an index"
        )
    beside = [] if is_adapter(target) else [*named_adapters(target)]
    if beside:
        raise CheckpointError(
            f"checkpoints.convert_cmd made a model of {checkpoint.path} and beside it an adapter "
            f"({beside[0]}), which would be left out; it must write one model, or the adapter into "
            "{dst} itself"
        )


def _filled(word: str, named: dict[str, str]) -> str:
    for key, value in named.items():
        word = word.replace("{" + key + "}", value)
    return word


def needs_conversion(pinned: PinnedCheckpoint) -> bool:
    """Whether the directory to load has no weights of its own yet."""
    directory = pinned.directory
    return (
        pinned.trainer_files is not None and not is_adapter(directory)
        and not has_weights(directory)
    )  # fmt: skip


def shards_of(pinned: PinnedCheckpoint, parts: Sequence[Path]) -> Path | None:
    """The directory of the checkpoint's torch distributed shards, if that is its form."""
    return next((s for part in parts if part.is_dir() and (s := shards_directory(part))), None)
