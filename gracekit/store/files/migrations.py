"""Stores of an older format, brought to the present one, a step at a time.

A reader takes no step: it reads every format up to the present one (`parse_header`,
`StorePaths.find`), and so it reads a store in the middle of one. Files of the history are never
written again, only moved, so that their checksums hold.

A step is a function registered under the format that it makes. It may be killed at any point and
then runs again from the start, so it writes through `gracekit.files` and does what is left to do.
That it is done is recorded in `store.json`, last. The caller holds the lock.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

from gracekit import files
from gracekit.errors import StoreFormatError
from gracekit.store.files.info import StoreInfo
from gracekit.store.files.manifests import (
    read_header,
    read_sidecar,
    with_version,
    write_manifest,
)
from gracekit.store.files.parquet import is_sealed, read_table
from gracekit.store.files.paths import (
    JSON_NAME,
    OLD_REMOVAL_NAME,
    PARTITION_NAME,
    TABLE_NAME,
    StorePaths,
    names_in,
    numbered,
)
from gracekit.store.files.samples import file_info, read_samples
from gracekit.store.files.sealing import sealed_json, sealed_parquet, without_checksum
from gracekit.version import FORMAT_VERSION

Migration = Callable[[StorePaths], None]

MIGRATIONS: dict[int, Migration] = {}
"""Format -> the step that makes it from the one before; one for each from 2 to the present."""


def migration(to: int) -> Callable[[Migration], Migration]:
    """Register a step, described by the first line of its docstring."""

    def register(step: Migration) -> Migration:
        assert to not in MIGRATIONS, f"two steps make format {to}"
        MIGRATIONS[to] = step
        return step

    return register


def is_old(info: StoreInfo) -> bool:
    """Whether a store needs a step."""
    return info.format_version < FORMAT_VERSION


def migrate(paths: StorePaths) -> list[str]:
    """Take the steps that a store lacks; returns what was done, a sentence each.

    Raises `StoreWriteError` when the disk fails, `StoreFormatError` for a newer format.
    """
    done: list[str] = []
    info = StoreInfo.load(paths.info)
    for version in range(info.format_version + 1, FORMAT_VERSION + 1):
        with files.clear_write_errors(paths.root):
            MIGRATIONS[version](paths)
        # Read again: the step may have written it.
        now = dataclasses.replace(StoreInfo.load(paths.info), format_version=version)
        files.write_text_atomic(paths.info, now.to_text())
        about = (MIGRATIONS[version].__doc__ or "").strip().partition("\n")[0].rstrip(".")
        done.append(f"brought the store to format {version}: {about}")
    return done


@migration(2)
def _data_may_change(paths: StorePaths) -> None:
    """Its data may change now.

    Nothing is written anew: what the first format does not hold is that of data that never changed.
    """


@migration(3)
def _tables_in_directories_of_their_own(paths: StorePaths) -> None:
    """Every directory holds files of one kind now, and manifests carry their version.

    Each file is moved by one rename, or written anew and then renamed over the old one, so it is at
    every moment in its old or in its new place, whole.
    """
    for directory in (paths.headers, paths.removals, paths.score_history, paths.measurements):
        files.make_directory(directory)
    files.remove_leftovers(paths.old_history)
    for old, version in numbered(paths.old_history, PARTITION_NAME).items():
        for new in (paths.scores(version), paths.measured(version)):
            _move(old / new.name, new)
        _remove_empty(old)
    _remove_empty(paths.old_history)
    for old, version in numbered(paths.manifests, OLD_REMOVAL_NAME).items():
        _move(old, paths.removal(version))
    for manifest, version in numbered(paths.manifests, TABLE_NAME).items():
        _write_again(manifest, version, paths.sidecar(version))
    for old, version in numbered(paths.manifests, JSON_NAME).items():
        if paths.sidecar(version).exists():
            files.remove(old)
        else:  # of a manifest that is damaged: the only header that can be read
            _move(old, paths.sidecar(version))
    files.sync_directory(paths.manifests)


def _move(old: Path, new: Path) -> None:
    if old.exists():
        files.make_directory(new.parent)
        files.replace(old, new)
        files.sync_directory(new.parent)
        files.sync_directory(old.parent)


def _remove_empty(directory: Path) -> None:
    """Remove a directory unless there is something in it, which is not ours then."""
    if directory.is_dir() and not names_in(directory):
        files.remove(directory)
        files.sync_directory(directory.parent)


def _write_again(manifest: Path, version: int, sidecar: Path) -> None:
    """Add the column `version` to a manifest, and write its header beside it; a damaged manifest
    is left as it is.
    """
    try:
        header, coreset = read_header(manifest), read_table(manifest)
    except StoreFormatError:
        return
    header = header.model_copy(update={"format_version": FORMAT_VERSION})
    if "version" not in coreset.column_names:
        coreset = with_version(coreset, version)
        times = manifest.stat()

        def write(path: Path) -> None:
            write_manifest(path, coreset, header)
            # When the version was made tells which shards are older than it.
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

        files.write_atomic(manifest, write)
    if not sidecar.exists():
        files.write_text_atomic(sidecar, header.to_text())


@migration(4)
def _everything_has_a_checksum(paths: StorePaths) -> None:
    """Everything has a checksum now.

    Only what can be read gets one, and of manifests only those whose header is the one beside them.
    What headers name has its checksum there, so it stays as it is.
    """
    for manifest, version in numbered(paths.manifests, TABLE_NAME).items():
        if _says_the_same(manifest, paths.sidecar(version)):
            _seal_table(manifest)
    for uses in sorted(paths.uses.glob("*/*.parquet")):
        _seal_table(uses)
    # `pin` and `unpin` wait for a migration: what they write here meanwhile would be undone.
    for record in (*numbered(paths.removals, JSON_NAME), *numbered(paths.pinned, JSON_NAME)):
        if (text := _sealed_text(record)) is not None:
            files.write_text_atomic(record, text)
    _name_samples(paths)


def _says_the_same(manifest: Path, sidecar: Path) -> bool:
    """In whichever format: a later release may have written the sidecar anew."""
    try:
        found = [read_header(manifest), *([read_sidecar(sidecar)] if sidecar.exists() else [])]
    except StoreFormatError:
        return False
    first, *other = [header.to_json() | {"format_version": None} for header in found]
    return all(header == first for header in other)


def _seal_table(path: Path) -> None:
    """Put a seal into a file that has none; its rows and its time stay."""
    try:
        if is_sealed(path):
            return
        read_table(path)
        content, times = path.read_bytes(), path.stat()
    except (OSError, StoreFormatError):
        return

    def write(target: Path) -> None:
        target.write_bytes(b"".join(sealed_parquet(memoryview(content))))
        os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))

    files.write_atomic(path, write)


def _sealed_text(path: Path) -> str | None:
    """The text of a JSON file with a checksum; None where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return sealed_json(without_checksum(content)) if isinstance(content, dict) else None


def _name_samples(paths: StorePaths) -> None:
    """Record what the first sample table was written as, if it is what `store.json` says."""
    info = StoreInfo.load(paths.info)
    try:
        samples = read_samples(paths.samples)
    except StoreFormatError:
        return
    if (samples.fingerprint, len(samples)) == (info.fingerprint, info.dataset.num_rows):
        named = {paths.samples.name: file_info(paths.samples)}
        files.write_text_atomic(paths.info, dataclasses.replace(info, files=named).to_text())
