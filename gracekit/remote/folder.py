"""`RemoteFolder`: list, read, download and write the objects below a URL.

An object is whole or absent: object stores have no half-written ones. What a write reports is not
believed: after an error the object is looked up, and one with the same content counts as written.
Requests are repeated by obstore (connections, 5xx, throttling, timeouts); what is left is an error
that says what to do.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from gracekit import files
from gracekit.errors import (
    RemoteDamagedError,
    RemoteDeniedError,
    RemoteError,
    RemoteNotFoundError,
    UsageError,
)
from gracekit.foreign import ENDS
from gracekit.remote import operations
from gracekit.remote.failures import EXTRA, clear_error, is_already_there, is_cut
from gracekit.remote.urls import SCHEMES, address_of, local_path

if TYPE_CHECKING:
    from obstore.store import ObjectStore

logger = logging.getLogger(__name__)

PART_BYTES = 8 << 20
"""Of a download, a request each: a slow line loses no more than one of them."""
NUM_TRIES = 3
"""Of a part that came short, and of a listing that was cut off."""
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_RETRIES: dict[str, Any] = {"max_retries": 6, "retry_timeout": timedelta(seconds=90)}
_TIMES = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "15min"}
"""A stalled connection ends after the second; the last is for a large object over a slow line."""
_WARNED: set[str] = set()
"""URLs whose odd names were told."""
_IN_MEMORY: dict[str, ObjectStore] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteObject:
    """One object as a listing tells it."""

    name: str
    """Relative to the folder, with slashes."""
    num_bytes: int
    etag: str | None
    """Changes whenever the object is replaced; None where the store has no such thing."""
    modified_at: float
    """Seconds since the epoch, by the clock of the object store."""


class RemoteFolder:
    """The objects below a URL. Safe to use from several processes and hosts at once."""

    def __init__(self, url: str, store: ObjectStore) -> None:
        self.url = url
        self._store = store

    def __repr__(self) -> str:
        return f"RemoteFolder({self.url!r})"

    @classmethod
    def open(cls, url: str | Path, *, create: bool = False) -> RemoteFolder:
        """Open the folder of a URL; asks nothing of the network yet.

        Credentials, region and endpoint come from the environment: `AWS_ACCESS_KEY_ID`,
        `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL` (also one of
        http) and so on, the roles of a machine or pod, and the like for gs and az.

        Args:
            url: Such as `s3://bucket/prefix`.
            create: For `file://`: make the directory.

        Raises:
            UsageError: It is no such URL.
            RemoteError: obstore is not installed, or the address cannot be opened.
        """
        address = address_of(url)
        if address is None:
            raise UsageError(
                f"a remote folder is a URL such as s3://bucket/prefix (one of {', '.join(SCHEMES)})"
                f", found {str(url)!r}"
            )
        if (missing := operations.why_missing()) is not None:
            raise RemoteError(f"{address} needs obstore: {EXTRA} ({missing})") from None
        with _told_as("open the folder", address):
            return cls(address, _open(address, create))

    def list(self, below: str = "") -> dict[str, RemoteObject]:
        """All objects by name, ascending, or those below one of its folders.

        Names that cannot be those of a local copy are left out, with one warning: with a part above
        255 bytes. So is an object that has the name of a folder, as consoles make them.

        Raises `RemoteError`, which names it, where there is a name that obstore cannot take: with
        an empty part, `.`, `..` or a control character.
        """
        with _told_as(f"list {below or 'the objects'}", self.url):
            objects = [_object_of(meta) for meta in self._list(below)]
        names = [found.name for found in objects]
        folders = {name[:end] for name in names for end in _ends_of_folders(name)}
        odd = sorted(name for name in names if not _is_plain(name))
        if odd and self.url not in _WARNED:
            _WARNED.add(self.url)
            logger.warning(
                "passed over at %s: names that no file of this machine can have, %d of them, such "
                "as %.300s; rename or remove them",
                self.url, len(odd), odd[0],
            )  # fmt: skip
        named = {found.name: found for found in objects}
        left_out = folders.union(odd)
        return {name: named[name] for name in sorted(named) if name not in left_out}

    def _list(self, below: str) -> Sequence[operations.Meta]:
        for _ in range(NUM_TRIES - 1):
            try:
                return operations.list_objects(self._store, below)
            except Exception as error:
                if not is_cut(error):
                    raise
        return operations.list_objects(self._store, below)

    def look_up(self, name: str) -> RemoteObject | None:
        """One object; None where there is none."""
        try:
            with _told_as(f"look up {name}", self.url):
                return _object_of(operations.head_object(self._store, name))
        except RemoteNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """The whole of a small object; raises `RemoteNotFoundError` where there is none."""
        with _told_as(f"read {name}", self.url):
            return operations.get_object(self._store, name)

    def download(
        self,
        found: RemoteObject,
        final: Path,
        *,
        sha256: str | None = None,
        check: Callable[[Path], object] = lambda path: None,
    ) -> None:
        """Copy an object to a file, which is complete or absent, with the object's time.

        Args:
            found: As it was listed; it is read as long as it is the same one.
            final: The file; its directory is made.
            sha256: What the content has to be, where that is known.
            check: Called with the file before it gets its name; what it raises passes.

        Raises:
            RemoteChangedError: It was replaced meanwhile.
            RemoteNotFoundError: It is gone.
            RemoteDamagedError: It has another SHA-256.
            RemoteError: It came short.
            StoreWriteError: The disk cannot be written.
        """

        def write(path: Path) -> None:
            digest = hashlib.sha256()
            with path.open("wb") as file:
                for part in self._parts(found):
                    file.write(part)
                    digest.update(part)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise RemoteDamagedError(
                    f"{found.name} at {self.url} is damaged: SHA-256 {digest.hexdigest()}, "
                    f"expected {sha256}; remove it there, and what wrote it will write it again"
                )
            check(path)
            os.utime(path, (found.modified_at, found.modified_at))

        files.write_atomic(final, write)

    def write(self, name: str, content: bytes | Path) -> None:
        """Write an object, over what is there."""
        try:
            with _told_as(f"write {name}", self.url):
                operations.put_object(self._store, name, content, "overwrite")
        except RemoteError as error:
            if not self._holds_after(name, content, error):
                raise

    def write_new(self, name: str, content: bytes | Path) -> bool:
        """Write an object that must not exist yet: put-if-absent.

        Returns False, changing nothing, where there is one of that name with other content. One
        with the same content counts as written, by whomever.

        Raises `RemoteError` where it was not written, or where that cannot be told.
        """
        try:
            operations.put_object(self._store, name, content, "create")
        except BaseException as cause:
            if isinstance(cause, ENDS) or not isinstance(cause, Exception):
                raise
            error = clear_error(cause, f"write {name}", self.url)
            if self._holds_after(name, content, error):
                return True
            if is_already_there(cause) or self.look_up(name) is not None:
                return False
            raise error from cause
        return True

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is fine."""
        try:
            with _told_as(f"remove {name}", self.url):
                operations.delete_object(self._store, name)
        except RemoteNotFoundError:
            return
        except RemoteError:
            if self.look_up(name) is not None:
                raise

    def _holds_after(self, name: str, content: bytes | Path, error: RemoteError) -> bool:
        """Whether there is an object of this content, after an error that is no refusal."""
        if isinstance(error, (RemoteDeniedError, RemoteNotFoundError)):
            raise error
        try:
            return self.holds(name, content)
        except RemoteError as second:
            raise type(error)(
                f"it is unclear whether {name} was written at {self.url} ({error}), and it cannot "
                f"be looked up now ({second}): run again, which writes nothing twice"
            ) from error

    def holds(self, name: str, content: bytes | Path) -> bool:
        """Whether there is an object of exactly this content."""
        found = self.look_up(name)
        if found is None:
            return False
        if isinstance(content, bytes):
            return found.num_bytes == len(content) and self.read(name) == content
        with content.open("rb") as file:
            if found.num_bytes != os.fstat(file.fileno()).st_size:
                return False
            return all(part == file.read(len(part)) for part in self._parts(found))

    def _parts(self, found: RemoteObject) -> Iterator[bytes]:
        for start in range(0, found.num_bytes, PART_BYTES):
            yield self._part(found, start, min(start + PART_BYTES, found.num_bytes))

    def _part(self, found: RemoteObject, start: int, end: int) -> bytes:
        part = b""
        for _ in range(NUM_TRIES):
            with _told_as(f"read {found.name}", self.url):
                part = operations.get_part(self._store, found.name, start, end, found.etag)
            if len(part) == end - start:
                return part
        raise RemoteError(
            f"cannot read {found.name} at {self.url}: {len(part):,} bytes came of "
            f"{end - start:,} from byte {start:,} on, {NUM_TRIES} times; run again"
        )


@contextmanager
def _told_as(doing: str, url: str) -> Iterator[None]:
    try:
        yield
    except ENDS:
        raise
    except Exception as error:
        raise clear_error(error, doing, url) from error


def _open(url: str, create: bool) -> ObjectStore:
    scheme = url.partition("://")[0]
    if scheme == "memory":
        return _IN_MEMORY.setdefault(url, operations.store_in_memory())
    directory = local_path(url)
    if directory is not None:
        if not create and not directory.is_dir():
            raise RemoteNotFoundError(f"there is no such directory: {url}; correct the URL")
        return operations.store_of(url, mkdir=create)
    options: dict[str, Any] = dict(_TIMES)
    if any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS):
        options["allow_http"] = True
    settings: dict[str, Any] = {"client_options": options, "retry_config": _RETRIES}
    return operations.store_of(url, **settings)


def _object_of(meta: operations.Meta) -> RemoteObject:
    return RemoteObject(
        name=str(meta["path"]),
        num_bytes=int(meta["size"]),
        etag=meta["e_tag"],
        modified_at=meta["last_modified"].timestamp(),
    )


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    is_safe = all(part not in ("", ".", "..") and "\0" not in part for part in parts)
    is_short = all(len(part.encode()) <= files.MAX_NAME_BYTES for part in parts)
    return is_safe and is_short and not PurePosixPath(name).is_absolute()


def _ends_of_folders(name: str) -> list[int]:
    return [end for end, sign in enumerate(name) if sign == "/"]
