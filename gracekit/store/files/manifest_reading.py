"""A version as the trainer's side reads it: from its manifest alone, with NumPy and PyArrow only.

A copy of the manifests is enough. Neither pydantic nor DuckDB is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from gracekit.errors import StoreError, StoreFormatError
from gracekit.store.files.formats import check_format
from gracekit.store.files.parquet import damaged, read_schema, read_table
from gracekit.store.files.paths import MANIFEST_NAME, REMOVAL_NAME, StorePaths, numbered
from gracekit.types import Json
from gracekit.version.trainer_view import TrainerView

METADATA_KEY = b"gracekit"
"""Of the schema's metadata, under which a manifest holds its header."""


def list_versions(store: Path) -> list[int]:
    """Versions that a store has manifests of, ascending; whether they can be read is not checked.

    An absent store has none; one that cannot be listed is a StoreError. The file `LATEST` is only
    a hint and not read.
    """
    try:
        found = numbered(store / "manifests", MANIFEST_NAME)
        removed = set(numbered(store / "manifests", REMOVAL_NAME).values())
    except OSError as error:
        raise StoreError(f"cannot list {store / 'manifests'}: {error}; check the mount") from None
    made = {version for path, version in found.items() if path.suffix == ".parquet"}
    return sorted(made - removed)


def header_content(path: Path) -> Json:
    """The header of a manifest as plain values.

    Raises `StoreFormatError` when the file is missing, damaged, or of a newer format.
    """
    metadata = read_schema(path).metadata or {}
    try:
        content: Json = json.loads(metadata[METADATA_KEY])
    except (KeyError, ValueError):
        raise StoreFormatError(
            f"{path} has no gracekit header in its schema metadata: another program rewrote it; "
            "restore it from a backup"
        ) from None
    check_format(content, path)
    return content


def trainer_view(path: Path) -> TrainerView:
    """What a trainer needs of a manifest's header; raises as `header_content`."""
    try:
        return TrainerView.from_json(header_content(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from None


def read_manifest(path: Path) -> pa.Table:
    """The rows of a manifest; raises as `header_content`."""
    return read_table(path)


def removal_in_words(paths: StorePaths, version: int) -> str | None:
    """That gc removed a version, and when; None where it did not."""
    try:
        content = json.loads(paths.removal(version).read_text(encoding="utf-8"))
        return f"version {version} was removed by gc on {content['removed_at']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None
