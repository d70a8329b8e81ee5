"""An export at a URL: objects below it, of which the manifest is written last.

    unfinished.json     the names of all that this export, and the one before, write
      → the manifest of the export before, if there is one, is removed
        → files, each whole or absent
          → manifest.json     THE sign that the export is complete; put if absent
            → what the export before had besides, and unfinished.json, are removed

An object store cannot swap folders, so that an export which replaces another is incomplete for as
long as it is copied: who reads while others write takes a folder for each version, and asks
`LATEST` which is the newest. A kill leaves `unfinished.json`, by which the next export knows what
is its own. Nothing else is ever overwritten or removed.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gracekit.errors import ExportError, RemoteDeniedError, RemoteError, RemoteNotFoundError
from gracekit.exports.placing import MANIFEST, WRITTEN, files_below, some_of
from gracekit.remote import RemoteFolder, RemoteObject
from gracekit.store import StorePaths
from gracekit.types import Json

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished.json"
LATEST = "LATEST"
"""Object with the name of the newest version's folder, such as `v000012`, and a line break."""
_STORE = StorePaths(Path()).info.name
_VERSION = re.compile(rf"(v(\d{{6,}}))/{re.escape(MANIFEST)}")
_NAMED = re.compile(rb"v\d{6,}\n")
"""What is written into `LATEST`."""


@dataclass(frozen=True, slots=True)
class RemotePlace:
    """A folder of an object store that is empty, or holds an export of ours and no more."""

    folder: RemoteFolder
    there: frozenset[str]
    """Names of the objects that are there."""

    @classmethod
    def open(cls, url: str, overwrite: bool) -> RemotePlace:
        """Look at the place.

        Raises:
            ExportError: It holds an export and `overwrite` is not set, or something else, or it
                lies in a published store.
            RemoteError: It cannot be reached.
        """
        _require_outside_stores(url)
        folder = RemoteFolder.open(url, create=True)
        there = frozenset(folder.list())
        if not there:
            return cls(folder, there)
        manifest = _read_json(folder, MANIFEST) if MANIFEST in there else None
        unfinished = _read_json(folder, UNFINISHED) if UNFINISHED in there else None
        ours = _names_in(None if manifest is None else manifest.get("export"))
        ours |= _names_in(unfinished)
        if not ours:
            raise ExportError(
                f"{url} is not empty and holds no earlier export (our {MANIFEST}), so it is left "
                f"alone: {some_of(sorted(there))}. Name another folder with --out"
            )
        if manifest is not None and not overwrite:
            raise ExportError(
                f"{url} holds an earlier export. Name another folder with --out, or replace it "
                "with --force"
            )
        others = sorted(there - ours - {MANIFEST, UNFINISHED})
        if others:
            raise ExportError(
                f"{url} holds objects that no export of ours wrote ({some_of(others)}), so it is "
                "left alone. Move them away, or name another folder with --out"
            )
        return cls(folder, there)

    def put(self, directory: Path) -> None:
        """Copy a finished export to the place.

        Raises:
            ExportError: Another export went to the same place meanwhile.
            RemoteError: Something was not written. What is there is no complete export; the next
                one goes on.
        """
        names = files_below(directory)
        all_names = sorted({*names, *self.there} - {UNFINISHED})
        ticket = {"by": uuid.uuid4().hex, WRITTEN: all_names}
        sign = json.dumps(ticket, indent=1).encode()
        self.folder.write(UNFINISHED, sign)
        if MANIFEST in self.there:
            self.folder.remove(MANIFEST)
        for number, name in enumerate(names):
            if name != MANIFEST:
                logger.debug("copying %s (%d of %d) to %s", name, number, len(names), self.folder)
                self.folder.write(name, directory / name)
        found = self.folder.list()
        for name in names:
            if name != MANIFEST:
                self._require_there(found.get(name), directory / name, name)
        is_alone = self.folder.holds(UNFINISHED, sign)
        if not (is_alone and self.folder.write_new(MANIFEST, directory / MANIFEST)):
            raise ExportError(
                f"another export went to {self.folder.url} meanwhile, so that what is there may "
                "be of both. Export once more with --force, one at a time"
            )
        self._require_there(self.folder.look_up(MANIFEST), directory / MANIFEST, MANIFEST)
        for name in sorted(self.there - {*names, UNFINISHED}):
            self.folder.remove(name)
        self.folder.remove(UNFINISHED)

    def _require_there(self, found: RemoteObject | None, written: Path, name: str) -> None:
        """Raise `RemoteError` where what was told as written is not there."""
        num_bytes = written.stat().st_size
        if found is None or found.num_bytes != num_bytes:
            raise RemoteError(
                f"{self.folder.url} told {name} ({num_bytes:,} bytes) as written, and it is not "
                "there: somebody removes or replaces what is there, or the object store fails; "
                "export again"
            )


def remote_manifest(url: str) -> Json | None:
    """The manifest of the complete export at a URL; None where there is none.

    Raises:
        RemoteError: It cannot be reached.
    """
    try:
        folder = RemoteFolder.open(url)
    except RemoteNotFoundError:  # of file://, no such directory
        return None
    manifest = _read_json(folder, MANIFEST)
    is_ours = manifest is not None and isinstance(manifest.get("export"), dict)
    return manifest if is_ours else None


def point_to_latest(url: str) -> str:
    """Let `LATEST` name the newest complete export among the versions below a URL.

    It is looked again after each write: of several that export at once the last one to write sees
    the versions of all, so that `LATEST` does not stay behind.

    Returns:
        The URL of `LATEST`.

    Raises:
        ExportError: There is an object `LATEST` that is no such name, or no complete export.
        RemoteError: It cannot be reached or written.
    """
    folder = RemoteFolder.open(url, create=True)
    while True:
        newest = f"{_newest(folder)}\n".encode()
        named = _content(folder, LATEST)
        if named == newest:
            return f"{folder.url}/{LATEST}"
        if named is not None and _NAMED.fullmatch(named) is None:
            raise ExportError(
                f"{LATEST} at {folder.url} is not of our exports, so it is left alone; the export "
                "itself is complete. Move it away, or name another folder with --versions-in"
            )
        folder.write(LATEST, newest)


def _newest(folder: RemoteFolder) -> str:
    """Name of the newest version below a folder with a complete export of ours."""
    found = [match for name in folder.list() if (match := _VERSION.fullmatch(name))]
    for match in sorted(found, key=lambda match: int(match[2]), reverse=True):
        manifest = _read_json(folder, match[0])
        if manifest is not None and _names_in(manifest.get("export")):
            return match[1]
    raise ExportError(
        f"there is no complete export at {folder.url}: another process replaces or removes it. "
        "Export again, one at a time"
    )


def _require_outside_stores(url: str) -> None:
    """No export goes where the versions of a store are published, whose `LATEST` is another."""
    scheme, _, rest = url.partition("://")
    parts = rest.split("/")
    for end in range(len(parts), 0, -1):
        around = f"{scheme}://{'/'.join(parts[:end])}"
        if not parts[end - 1]:
            continue
        with suppress(RemoteDeniedError, RemoteNotFoundError):  # folders around may be others'
            if RemoteFolder.open(around).look_up(_STORE) is not None:
                raise ExportError(
                    f"{url} lies in the store that is at {around}, where nothing but its versions "
                    "goes. Name another folder"
                )


def _read_json(folder: RemoteFolder, name: str) -> Json | None:
    """A JSON object; None where there is none, or it is no such thing."""
    try:
        found = json.loads(_content(folder, name) or b"null")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _content(folder: RemoteFolder, name: str) -> bytes | None:
    """What an object holds; None where there is none."""
    try:
        return folder.read(name)
    except RemoteNotFoundError:
        return None


def _names_in(content: object) -> set[str]:
    listed = content.get(WRITTEN) if isinstance(content, dict) else None
    return {str(name) for name in listed} if isinstance(listed, list) else set()
