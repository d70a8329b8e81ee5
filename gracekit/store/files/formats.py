"""Which files this gracekit reads: those of formats up to its own."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from gracekit.errors import StoreFormatError
from gracekit.store.files.sealing import check_json, without_checksum
from gracekit.version import FORMAT_VERSION

_NO_ACCESS = {
    errno.EACCES: "check the owner and the rights of the file and of the directories above it",
    errno.EPERM: "check the owner and the mount of the store",
    errno.EIO: "check the disk and the mount",
    errno.ESTALE: "check the mount",
    errno.ENOTCONN: "check the mount",
    errno.ETIMEDOUT: "check the mount",
    errno.ELOOP: "a link among the directories above it leads back to itself: remove it",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENOMEM: "end other programs or raise the memory limit",
    errno.ENFILE: "the system has too many open files: close some programs",
}
"""Errors that tell nothing of what a file holds -> what to do."""


class UnreadableError(StoreFormatError):
    """A file cannot be read for lack of permission or for its disk: it need not be damaged."""


class NewerFormatError(StoreFormatError):
    """A newer gracekit wrote it: unlike damage, this is never passed over."""


def check_format(content: object, path: Path) -> None:
    """Refuse what is no gracekit JSON object, and what a newer gracekit wrote."""
    found = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(found, int):
        raise StoreFormatError(
            f"{path} was not written by gracekit: it has no format_version; "
            "restore it from a backup, or name another store"
        )
    if found > FORMAT_VERSION:
        raise NewerFormatError(
            f"{path} has format version {found}, this gracekit reads up to {FORMAT_VERSION}; "
            "update gracekit"
        )


def unreadable(path: Path, error: BaseException) -> UnreadableError | None:
    """The error where a file of the store could not be read at all; None for every other error."""
    advice = _NO_ACCESS.get(getattr(error, "errno", None) or 0)
    if advice is None:
        return None
    assert isinstance(error, OSError)
    return UnreadableError(
        f"cannot read {path}: {error.strerror or error}. That does not mean that it is damaged: "
        f"{advice}, and try again"
    )


def cannot_open(path: Path) -> UnreadableError | None:
    """The error where a file cannot be opened for a reason that is none of its content."""
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        return unreadable(path, error)


def read_json_object(path: Path) -> Any:
    """The content of a sealed JSON file of the store, of any format up to the present one.

    Raises:
        UnreadableError: It cannot be read for lack of permission or for its disk.
        NewerFormatError: A newer gracekit wrote it, whatever its checksum.
        StoreFormatError: It is damaged, or was not written by gracekit.
        FileNotFoundError, NotADirectoryError: It is not there.
    """
    try:
        raw = path.read_bytes()
        content = json.loads(raw.decode("utf-8"))
        check_format(content, path)
        check_json(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) or StoreFormatError(
            f"cannot read {path}: {error}; restore it from a backup"
        ) from None
    return without_checksum(content)
