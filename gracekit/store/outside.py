"""Where commands may write: outside of every store, whose files only the store itself writes."""

from __future__ import annotations

import os
from pathlib import Path

from gracekit.errors import ExportError
from gracekit.files import remove_left_files
from gracekit.foreign import reason_of


def store_around(path: Path) -> Path | None:
    """The store in which a path lies, links followed; None where it lies in none."""
    place = Path(os.path.realpath(path))
    for folder in (place, *place.parents):
        if (folder / "store.json").is_file() and (folder / "manifests").is_dir():
            return folder
    return None


def output_file(path: Path) -> Path:
    """The place of a file that a command is to write, over an earlier one; links are followed.

    Raises `ExportError` where something that is not ours to replace would be lost: in a store, and
    where there is a directory or a device. What killed processes left on the way to the file is
    removed.
    """
    try:
        require_outside(path)
        place = Path(os.path.realpath(path))
        if os.path.lexists(place) and not place.is_file():
            what = "a directory" if place.is_dir() else "no regular file"
            raise ExportError(f"cannot write {path}: it is {what}; name a file")
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise ExportError(f"cannot write {path!s}: {reason_of(error)}; name another file") from None
    remove_left_files(place)
    return place


def require_outside(path: Path) -> None:
    """Raise `ExportError` for a path in a store; OSError or ValueError for what is no path."""
    store = store_around(path)
    if store is not None:
        raise ExportError(
            f"cannot write {path}: it lies in the store {store}, which only gracekit's own files "
            "may be in; name a place outside of it"
        )
