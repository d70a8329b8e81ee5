"""What a trainer has of a published store: a local folder into which versions are downloaded once.

The folder is laid out as a store is, with manifests, draws and sample tables alone, so that all of
the trainer's side reads it as it reads a copy of the manifests. A version's manifest comes last, so
one that is there is whole. Several processes may fill the same folder at once. Where another store
came to the URL, the folder is emptied first. Needs neither pydantic nor DuckDB.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from gracekit import files
from gracekit.documents import read_json
from gracekit.errors import (
    GracekitError,
    RemoteDamagedError,
    RemoteNotFoundError,
    StoreFormatError,
    StoreNotFoundError,
    VersionNotFoundError,
)
from gracekit.foreign import foreign, reason_of
from gracekit.leftovers import left_in
from gracekit.remote import RemoteFolder, RemoteObject, address_of, cache_folder, require_path
from gracekit.store.files.formats import NewerFormatError, UnreadableError
from gracekit.store.files.manifest_reading import header_content, list_manifests, removal_time
from gracekit.store.files.parquet import is_sealed
from gracekit.store.files.paths import JSON_NAME, TABLE_NAME, StorePaths, numbers_in
from gracekit.store.version_argument import no_such_version
from gracekit.types import Json
from gracekit.version.trainer_view import file_digests

logger = logging.getLogger(__name__)

MARKER = "mirror.json"
"""Of a folder that holds what was downloaded of a published store, with its URL, and with the
SHA-256 of its `store.json`, which never changes there.
"""

_OF_TRAINERS = re.compile(
    r"samples\.parquet|samples/v\d{6,}\.parquet|draws/version=\d{6,}/(?:draw|places)\.parquet"
)
"""Files of a version that a trainer reads besides the manifest."""
_OF_ONE_STORE = ("removed", "draws", "samples", "samples.parquet")
"""What a mirror has besides manifests, which go first."""


def local_store(store: str | Path) -> Path:
    """The directory of a store; of the URL of a published one, the folder on this disk.

    Asks nothing of the network.

    Raises `StoreWriteError` where the folder cannot be made, `UsageError` for a URL that cannot be
    opened.
    """
    url = address_of(store)
    if url is None:
        require_path(store, "a store")
        return Path(store)
    root = cache_folder() / "stores" / hashlib.sha256(url.encode()).hexdigest()[:16]
    marker = root / MARKER
    if not marker.is_file():
        files.write_text_atomic(marker, json.dumps({"url": url}))
    return root


def url_of_mirror(root: Path) -> str | None:
    """The URL whose versions are downloaded into a folder; None for any other store."""
    marker = root / MARKER
    if not marker.is_file():
        return None
    with foreign(marker, StoreFormatError):
        return str(read_json(marker)["url"])


def bring(root: Path, version: int | None = None, *, again: bool = False) -> None:
    """Download the newest version into a mirror, and `version` where it is given.

    Does nothing for a store that is no mirror, and asks nothing of the network for a `version` that
    was downloaded before, unless it is to look again whether that one was removed since.

    Raises:
        StoreNotFoundError: Nothing is published at the URL.
        VersionNotFoundError: There is no such version, none yet, or gc removed it.
        RemoteDamagedError: No version there is whole, or not the one that was asked for.
        StoreFormatError: A newer gracekit wrote it, or this disk cannot be read.
        RemoteError: The object store cannot be read.
        StoreWriteError: The disk cannot be written.
    """
    url = url_of_mirror(root)
    if url is None:
        return
    paths = StorePaths(root)
    if version is not None and not again and paths.manifest(version).is_file():
        return
    _Mirror(paths, RemoteFolder.open(url)).bring(version)


class _Mirror:
    def __init__(self, paths: StorePaths, folder: RemoteFolder) -> None:
        self._paths = paths
        self._folder = folder

    def bring(self, version: int | None) -> None:
        # In this order: a version that another process downloads meanwhile is no leftover, one that
        # is removed meanwhile is in one of the listings, and when the store is another one by then,
        # the objects that were listed are no longer there.
        here = list_manifests(self._paths)[0]
        manifests = self._folder.list("manifests")
        records = self._folder.list("removed")
        removed = set(numbers_in((Path(name).name for name in records), JSON_NAME))
        listed = numbers_in((Path(name).name for name in manifests), TABLE_NAME)
        kept = [number for number in listed if number not in removed]
        if self._identity() != self._known_identity():
            self._begin_anew()
        else:
            self._take_back([number for number in here if number not in kept], records)
        if version is not None and version not in kept:
            times = dict.fromkeys(removed, "")
            if version in removed:
                self._download(records, self._paths.removal(version))
                times[version] = removal_time(self._paths, version)
            raise no_such_version(version, self._folder.url, kept, times)
        if not kept:
            raise VersionNotFoundError(
                f"no version is published at {self._folder.url} yet; the first one comes with "
                "`publish: {url: ...}` in the recipe, or by `gracekit publish`"
            )
        if version is not None:
            self._bring(version, manifests)
        self._bring_newest(kept, manifests)

    def _bring_newest(self, kept: list[int], manifests: dict[str, RemoteObject]) -> None:
        """The newest one that is whole: gc may remove it meanwhile, or it may be damaged."""
        first: GracekitError | None = None
        for number in reversed(kept):
            try:
                self._bring(number, manifests)
            except NewerFormatError:
                raise
            except (RemoteNotFoundError, RemoteDamagedError, StoreFormatError) as error:
                first = first or error
                continue
            if first is not None:
                logger.warning("version %d is read in place of a newer one: %s", number, first)
            return
        assert first is not None, "there is at least one"
        raise first

    def _bring(self, version: int, manifests: dict[str, RemoteObject]) -> None:
        """Download one version, its manifest last."""
        final = self._paths.manifest(version)
        if final.is_file():
            return
        for _, left in left_in(self._paths.root):  # of downloads that were killed
            files.remove(left)
        # The manifest is read first, because it names the rest, and gets its name last.
        beside = files.temporary_path(self._paths.root / final.name)
        try:
            name = self._paths.relative(final)
            self._folder.download(manifests[name], beside)
            with self._told_by_name(name, beside):
                is_sealed(beside)
                digests = _files_of(header_content(beside), beside)
            for needed, digest in digests.items():
                self._bring_file(needed, digest)
            with files.clear_write_errors(final):
                files.make_directory(final.parent)
                files.replace_surely(beside, final)
                files.sync_directory(final.parent)
        finally:
            with files.clear_write_errors(beside):
                files.remove(beside)

    def _bring_file(self, name: str, digest: str | None) -> None:
        path = self._paths.root / name
        if path.is_file():
            return
        found = self._folder.look_up(name)
        if found is None:
            raise RemoteNotFoundError(
                f"{name} is not at {self._folder.url}, and a version there needs it: it was "
                "removed meanwhile, or by hand"
            )
        files.remove_left_files(path)
        with self._told_by_name(name, path):
            self._folder.download(found, path, sha256=digest, check=is_sealed)

    @contextmanager
    def _told_by_name(self, name: str, path: Path) -> Iterator[None]:
        """What is damaged is the object, not the file here, whose name nobody knows."""
        try:
            yield
        except UnreadableError:  # of this disk
            raise
        except StoreFormatError as error:
            there = f"{name} at {self._folder.url}"
            if isinstance(error, NewerFormatError):
                raise NewerFormatError(str(error).replace(str(path), there)) from error
            reason = "it has no header of gracekit"
            if error.__cause__ is not None:
                reason = reason_of(error.__cause__)
            raise RemoteDamagedError(
                f"{there} is damaged: {reason}; remove it there, and `gracekit publish` writes it "
                "again"
            ) from error

    def _take_back(self, gone: list[int], records: dict[str, RemoteObject]) -> None:
        """Let go of versions that are no longer there; whoever draws from one has it in memory."""
        for number in gone:
            record = self._paths.removal(number)
            if self._paths.relative(record) in records:
                self._download(records, record)
            with files.clear_write_errors(self._paths.root):
                files.remove(self._paths.manifest(number))
                files.remove(self._paths.draw(number).parent)

    def _identity(self) -> str:
        """SHA-256 of the `store.json` that is there."""
        try:
            content = self._folder.read(self._paths.info.name)
        except RemoteNotFoundError:
            raise StoreNotFoundError(
                f"no store is published at {self._folder.url}; correct the URL, or publish one "
                "with `gracekit publish`"
            ) from None
        return hashlib.sha256(content).hexdigest()

    def _known_identity(self) -> str | None:
        """That of the store whose versions are here; None for a folder of an earlier release."""
        found = read_json(self._paths.root / MARKER).get("store_sha256")
        return None if found is None else str(found)

    def _begin_anew(self) -> None:
        """Remove what was downloaded of another store; its trainers' logs of uses stay."""
        root = self._paths.root
        with files.clear_write_errors(root), FileLock(str(root / "mirror.lock")):
            identity = self._identity()
            if identity == self._known_identity():
                return  # another process did it
            for path in (self._paths.manifests, *map(root.joinpath, _OF_ONE_STORE)):
                shutil.rmtree(path) if path.is_dir() else files.remove(path)
            marker = {"url": self._folder.url, "store_sha256": identity}
            files.write_text_atomic(root / MARKER, json.dumps(marker))

    def _download(self, listed: dict[str, RemoteObject], final: Path) -> None:
        if not final.is_file():
            self._folder.download(listed[self._paths.relative(final)], final)


def _files_of(content: Json, path: Path) -> dict[str, str | None]:
    """Name -> SHA-256 of what a trainer reads of a version besides its manifest."""
    with foreign(path, StoreFormatError):
        digests = file_digests(content)
    return {name: digest for name, digest in digests.items() if _OF_TRAINERS.fullmatch(name)}
