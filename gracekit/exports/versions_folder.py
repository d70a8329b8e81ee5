"""A directory with an export for each version, and a link `latest` to the newest of them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from gracekit import files
from gracekit.errors import ExportError
from gracekit.exports.placing import remove_left, written_at
from gracekit.foreign import reason_of
from gracekit.leftovers import left_in

LATEST = "latest"
_VERSION = re.compile(r"v(\d{6,})")


def place_of(folder: Path, version: int) -> Path:
    """Where the export of a version goes, such as `v000012`."""
    return folder / f"v{version:06d}"


def link_latest(folder: Path) -> Path:
    """Let `latest` name the newest export in the directory; returns the link.

    The link is swapped by one rename: whoever opens it gets the old export or the new one, whole.
    It is relative, so that the directory can be moved.

    Raises:
        ExportError: Something of that name is no link, or links cannot be made there.
    """
    link = folder / LATEST
    numbers = [
        (int(found[1]), path.name)
        for path in folder.iterdir()
        if (found := _VERSION.fullmatch(path.name)) and written_at(path) is not None
    ]
    _, newest = max(numbers)
    whole = {name for _, name in numbers}
    for name in {name for name, _ in left_in(folder)}:  # by exports to this folder that were killed
        if name == LATEST or _VERSION.fullmatch(name):
            remove_left(folder / name, whole=name in whole)
    if os.path.lexists(link) and not link.is_symlink():
        raise ExportError(
            f"{link} is no link, so it is left alone; the export is in {folder / newest}. Move it "
            "away, or name another directory with --versions-in"
        )
    temporary = files.temporary_path(link)
    try:
        temporary.symlink_to(newest)
        files.replace_surely(temporary, link)
        files.sync_directory(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ExportError(
            f"cannot make the link {link}: {reason_of(error)}. The export is in {folder / newest}; "
            "on a file system without links export with --out"
        ) from error
    return link
