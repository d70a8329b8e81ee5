"""The one file layer: atomic writes, checksums, directory syncs.

Every byte of a store goes through it. A file is complete or absent: it is written under a
temporary name in the same directory, synced, and renamed. Operating-system errors become
`StoreWriteError` naming the file and the way out.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gracekit.errors import StoreWriteError

TEMPORARY_MARK = ".partial-"
"""Part of every temporary name: what a start-up may delete."""


def temporary_path(final: Path) -> Path:
    """A fresh name beside `final`, recognised by `TEMPORARY_MARK`."""
    return final.with_name(f"{final.name}{TEMPORARY_MARK}{secrets.token_hex(4)}")


@contextmanager
def clear_write_errors(target: Path) -> Iterator[None]:
    """Turn an OSError of the block into a `StoreWriteError` that says what to do."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full: free some space (`gracekit status` shows the size "
            "of the store) and run again",
            errno.EDQUOT: "the disk quota is used up: free some space and run again",
            errno.EROFS: "the file system is read-only: remount it or move the store",
            errno.EACCES: "no permission: check the owner of the store",
            errno.EPERM: "not permitted: check the owner and the mount of the store",
        }.get(error.errno or 0, "check the disk and run again")
        raise StoreWriteError(
            f"cannot write {target}: {error.strerror or error}; {advice}. "
            "The last published version is unchanged"
        ) from error


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then sync it and rename it to `final`."""
    with clear_write_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(final)
        try:
            write(temporary)
            sync_file(temporary)
            os.replace(temporary, final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(final.parent)


def write_text_atomic(final: Path, text: str) -> None:
    """`write_atomic` of UTF-8 text."""
    write_atomic(final, lambda path: _write_text(path, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def link_new(source: Path, final: Path) -> bool:
    """Give the finished file a second name that must not exist yet: put-if-absent.

    Returns False, changing nothing, when `final` is already there.
    """
    with clear_write_errors(final):
        try:
            os.link(source, final)
        except FileExistsError:
            return False
        sync_directory(final.parent)
    return True


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(directory: Path) -> int:
    """Delete temporary files below `directory` that a killed process left; returns how many."""
    leftovers = [p for p in directory.rglob(f"*{TEMPORARY_MARK}*") if p.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)
