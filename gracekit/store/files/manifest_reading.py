"""A version as the trainer's side reads it: from its manifest alone, with NumPy and PyArrow only.

A copy of the manifests is enough. Neither pydantic nor DuckDB is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from gracekit.errors import StoreError, StoreFormatError
from gracekit.store.files.formats import check_format, unreadable
from gracekit.store.files.parquet import damaged, read_schema, read_table
from gracekit.store.files.paths import (
    JSON_NAME,
    OLD_REMOVAL_NAME,
    TABLE_NAME,
    StorePaths,
    names_in,
    numbers_in,
)
from gracekit.store.version_argument import no_such_version
from gracekit.types import Json
from gracekit.version.trainer_view import TrainerView

METADATA_KEY = b"gracekit"
"""Of the schema's metadata, under which a manifest holds its header."""


def list_versions(store: Path) -> list[int]:
    """Versions that a store has manifests of, ascending; whether they can be read is not checked.

    An absent store has none; one that cannot be listed is a StoreError. The file `LATEST` is only
    a hint and not read.
    """
    manifests, removed = list_manifests(StorePaths(store))
    return [version for version in manifests if version not in removed]


def list_manifests(paths: StorePaths) -> tuple[list[int], set[int]]:
    """Versions that have a manifest, ascending, and versions that have a removal record.

    A version that has both is removed; gc was killed, or is at work. Takes two listings. Raises
    `UnreadableError` where a directory cannot be listed for lack of permission or for its disk, and
    `StoreError` where it cannot for another reason.
    """
    try:
        # In this order: a version that gc removes meanwhile, or a record that a migration moves,
        # is seen in the first listing or in the second.
        in_manifests = names_in(paths.manifests)
        in_removals = names_in(paths.removals)
    except OSError as error:
        raise unreadable(Path(error.filename or paths.root), error) or StoreError(
            f"cannot list the versions in {paths.root}: {error}; check the mount"
        ) from None
    # Ends in a letter that no manifest ends in: there may be thousands of names at each operation.
    old_removals = (name for name in in_manifests if name.endswith("n"))
    removed = {*numbers_in(in_removals, JSON_NAME), *numbers_in(old_removals, OLD_REMOVAL_NAME)}
    return numbers_in(in_manifests, TABLE_NAME), removed


def require_manifest(paths: StorePaths, version: int) -> None:
    """Raise `VersionNotFoundError`, which says what there is, unless a version has a manifest and
    gc did not remove it.
    """
    manifests, removed = list_manifests(paths)
    kept = [number for number in manifests if number not in removed]
    if version not in kept:
        times = {number: removal_time(paths, number) for number in sorted(removed)}
        raise no_such_version(version, paths.root, kept, times)


def header_content(path: Path) -> Json:
    """The header of a manifest as plain values.

    Raises `StoreFormatError` when the file is missing, damaged, or of a newer format.
    """
    metadata = read_schema(path).metadata or {}
    try:
        content: Json = json.loads(metadata[METADATA_KEY])
    except (KeyError, ValueError, RecursionError):
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


def removal_time(paths: StorePaths, version: int) -> str:
    """When gc removed a version (UTC, RFC 3339); empty where its record cannot be read."""
    try:
        record = paths.find(paths.removal(version))
        return str(json.loads(record.read_text(encoding="utf-8"))["removed_at"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
