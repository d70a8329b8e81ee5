"""What is at a URL: which objects belong to a version, which version is the newest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from gracekit.errors import StoreFormatError
from gracekit.leftovers import scratch_folder
from gracekit.remote import RemoteFolder
from gracekit.store.files.formats import UnreadableError
from gracekit.store.files.parquet import is_sealed
from gracekit.store.files.paths import TABLE_NAME, numbers_in
from gracekit.store.reader import StoreReader
from gracekit.version.header import FileInfo, Header


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """What was copied to an object store, or removed from it."""

    url: str
    latest: int | None
    """The newest version there now; None: there is none."""
    published: tuple[int, ...]
    """Versions that are new there."""
    removed: tuple[int, ...]
    """Versions that are no longer there, because gc removed them here."""
    num_objects: int
    """Objects written."""
    num_bytes: int
    """Bytes of them."""


def files_of(header: Header, store: StoreReader) -> dict[str, FileInfo | None]:
    """The files that a version needs besides its manifest."""
    samples = header.dataset.samples_file
    named: dict[str, FileInfo | None] = {samples: store.info.files.get(samples)}
    return named | dict(header.files)


def newest_of(text: bytes) -> int:
    """The version that a LATEST names; 0 where it makes no sense."""
    try:
        return int(text)
    except ValueError:
        return 0


def newest_version(folder: RemoteFolder) -> int:
    """The highest version that is there; 0 where there is none."""
    names = (PurePosixPath(name).name for name in folder.list("manifests"))
    return max(numbers_in(names, TABLE_NAME), default=0)


def is_whole_manifest(folder: RemoteFolder, name: str) -> bool:
    """Whether the object fits its checksum, if it has one."""
    with scratch_folder("publish") as scratch:
        content = scratch / PurePosixPath(name).name
        content.write_bytes(folder.read(name))
        try:
            is_sealed(content)
        except UnreadableError:
            raise
        except StoreFormatError:
            return False
    return True
