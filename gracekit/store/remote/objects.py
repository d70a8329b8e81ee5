"""Which objects belong to a version at a URL."""

from __future__ import annotations

from collections.abc import Container

from gracekit.store.files.paths import StorePaths
from gracekit.store.reader import StoreReader
from gracekit.version.header import FileInfo, Header


def files_of(header: Header, store: StoreReader) -> dict[str, FileInfo | None]:
    """The files that a version needs besides its manifest."""
    samples = header.dataset.samples_file
    named: dict[str, FileInfo | None] = {samples: store.info.files.get(samples)}
    return named | dict(header.files)


def is_later(text: bytes, version: int, paths: StorePaths, there: Container[str]) -> bool:
    """Whether LATEST names a later version that is there: another publisher was faster."""
    try:
        found = int(text)
    except ValueError:
        return False
    return found > version and paths.relative(paths.manifest(found)) in there
