"""`removed/v000012.json`: the record that gc removed a version.

It is written and synced before any file of the version is removed, so that it is known for every
number whether its version is kept or was removed. It holds the version's header, because the table
`versions` and the churn of later versions go on to need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gracekit.errors import StoreFormatError
from gracekit.files import write_text_atomic
from gracekit.store.files.formats import read_json_object
from gracekit.store.files.manifests import parse_header
from gracekit.store.files.sealing import sealed_json
from gracekit.version import FORMAT_VERSION
from gracekit.version.header import Header


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """That a version was removed, and what it was."""

    removed_at: str
    """UTC, RFC 3339."""
    header: Header


def write_removal(path: Path, header: Header) -> str:
    """Record that the version of the header is removed now; returns the time as it is recorded.

    Raises `StoreWriteError`.
    """
    removed_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    content = {
        "format_version": FORMAT_VERSION,
        "removed_at": removed_at,
        "header": header.to_json(),
    }
    write_text_atomic(path, sealed_json(content))
    return removed_at


def read_removal(path: Path) -> Removal:
    """The record; raises `StoreFormatError` when it is missing, damaged or of a newer format."""
    try:
        content = read_json_object(path)
        return Removal(
            removed_at=str(content["removed_at"]),
            header=parse_header(content["header"], path),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreFormatError(f"cannot read {path}: {error}; restore it from a backup") from None
