"""`pinned/v000012.json`: versions that gc never removes, one marker each."""

from __future__ import annotations

from dataclasses import dataclass

from gracekit.store.files.paths import JSON_NAME, StorePaths, numbered
from gracekit.store.files.sealing import read_sealed_json
from gracekit.tabular import ShortRepr


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Pinned(ShortRepr):
    """A pinned version."""

    version: int
    note: str
    """Why, in the user's words; may be empty."""
    pinned_at: str
    """UTC, RFC 3339; empty where the marker cannot be read, which pins all the same."""


def pinned(paths: StorePaths) -> dict[int, Pinned]:
    """The pinned versions."""
    markers = numbered(paths.pinned, JSON_NAME)
    found = {}
    for path, version in markers.items():
        try:
            content = read_sealed_json(path)
            note, at = str(content["note"]), str(content["pinned_at"])
        except (OSError, ValueError, KeyError, TypeError):
            note, at = "", ""
        found[version] = Pinned(version=version, note=note, pinned_at=at)
    return dict(sorted(found.items()))
