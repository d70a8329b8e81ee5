"""Data in an object store: copied once to this machine, and again when it has changed.

An address is that of one file, or of a folder, of which every object is copied. Copies lie in the
user's folder of caches, a directory for each state of what is at the address; the newest two stay.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from urllib.parse import unquote

from gracekit.errors import DataError, RemoteError, UsageError
from gracekit.files import remove
from gracekit.recipe import DataSection
from gracekit.remote import RemoteFolder, RemoteObject, address_of, cache_folder, is_url

logger = logging.getLogger(__name__)

_NUM_KEPT = 2
"""States of an address that stay: another process may still read the one before."""


def with_copies(data: DataSection) -> DataSection:
    """The same data with a copy on this machine in the place of each address.

    Raises `DataError` where one cannot be read.
    """
    if not any(map(is_url, data.places)):
        return data
    return data.moved(lambda place: str(_copy_of(place)) if is_url(place) else place)


def remote_stamp(place: str) -> object:
    """What changes when the objects at an address do; raises `DataError`."""
    try:
        _, objects = _objects_at(place)
    except RemoteError as error:
        raise DataError(f"the data cannot be looked at: {error}") from error
    return [(place, name, _state(found)) for name, found in objects.items()]


def _copy_of(place: str) -> Path:
    """The file, or the folder, with what is at the address now."""
    try:
        folder, objects = _objects_at(place)
        digest = hashlib.sha256(repr([(n, _state(o)) for n, o in objects.items()]).encode())
        at_address = cache_folder() / "data" / hashlib.sha256(place.encode()).hexdigest()[:16]
        directory = at_address / digest.hexdigest()[:16]
        missing = [o for n, o in objects.items() if not _is_whole(directory / n, o)]
        if missing:
            num_bytes = sum(found.num_bytes for found in missing)
            logger.info("copying %s: %d files, %.1f MB", place, len(missing), num_bytes / 1e6)
        for found in missing:
            folder.download(found, directory / found.name)
    except RemoteError as error:
        raise DataError(f"the data cannot be copied to this machine: {error}") from error
    os.utime(directory)  # the state that was asked for last is the newest
    _keep_newest(at_address)
    is_file = len(objects) == 1 and unquote(place).rstrip("/").endswith("/" + next(iter(objects)))
    return directory / next(iter(objects)) if is_file else directory


def _objects_at(place: str) -> tuple[RemoteFolder, dict[str, RemoteObject]]:
    """What is at the address, by its name there, and the folder that the names are in."""
    try:
        address = address_of(place)
    except UsageError as error:
        raise DataError(f"data: {error}") from None
    assert address is not None, place
    if any(sign in address for sign in "*["):
        raise DataError(
            f"{place}: patterns are for files of this machine; name a folder, whose data files are "
            "all read, or each object in a list"
        )
    above, _, name = address.rpartition("/")
    if not above.endswith("/"):  # else it is a whole bucket
        folder = RemoteFolder.open(above)
        name = unquote(name)  # as `RemoteFolder.open` does with what is above
        found = folder.look_up(name)
        if found is not None:
            return folder, {name: found}
    folder = RemoteFolder.open(address)
    objects = folder.list()
    if not objects:
        raise DataError(f"there is no object and no folder at {address}; correct data.path")
    return folder, objects


def _state(found: RemoteObject) -> tuple[str | None, int, float]:
    return found.etag, found.num_bytes, found.modified_at


def _is_whole(path: Path, found: RemoteObject) -> bool:
    """Whether the file is there: a download gives it its name once it is complete."""
    return path.is_file() and path.stat().st_size == found.num_bytes


def _keep_newest(at_address: Path) -> None:
    try:
        states = sorted(at_address.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for state in states[:-_NUM_KEPT]:
            remove(state)
    except OSError as error:  # another process may be at the same
        logger.info("old copies of the data stay for now: %s", error)
