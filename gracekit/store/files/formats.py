"""Which files this gracekit reads: those of formats up to its own."""

from __future__ import annotations

from pathlib import Path

from gracekit.errors import StoreFormatError
from gracekit.version import FORMAT_VERSION


class NewerFormatError(StoreFormatError):
    """A newer gracekit wrote it: unlike damage, this is never passed over."""


def check_format(content: object, path: Path) -> None:
    """Refuse what is no gracekit JSON object, and what a newer gracekit wrote."""
    found = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(found, int):
        raise StoreFormatError(
            f"{path} was not written by gracekit: it has no format_version; "
            "restore it from a backup, or name another store"
        )
    if found > FORMAT_VERSION:
        raise NewerFormatError(
            f"{path} has format version {found}, this gracekit reads up to {FORMAT_VERSION}; "
            "update gracekit"
        )
