"""`manifests/v000012.removed.json`: the record that gc removed a version.

Written and synced before any file of the version goes, so a number without a manifest is explained
for good. It holds the version's header, of which the audit trail is made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gracekit.errors import StoreFormatError
from gracekit.files import write_text_atomic
from gracekit.store.files.formats import check_format
from gracekit.version import FORMAT_VERSION
from gracekit.version.header import Header
from gracekit.version.json_text import json_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """That a version was removed, and what it was."""

    removed_at: str
    """UTC, RFC 3339."""
    header: Header

    @property
    def in_words(self) -> str:
        """For messages."""
        return f"version {self.header.version} was removed by gc on {self.removed_at}"


def write_removal(path: Path, header: Header) -> None:
    """Record that the version of the header is removed now; raises `StoreWriteError`."""
    content = {
        "format_version": FORMAT_VERSION,
        "removed_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "header": header.to_json(),
    }
    write_text_atomic(path, json_text(content))


def read_removal(path: Path) -> Removal:
    """The record; raises `StoreFormatError` when it is missing, damaged or of a newer format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_format(content, path)
        return Removal(
            removed_at=str(content["removed_at"]),
            header=Header.from_json(content["header"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreFormatError(f"cannot read {path}: {error}; restore it from a backup") from None
