"""`gracekit verify`, file by file: what carries its own checksum, or is named with one.

Files that belong to one version are in `checks`; here are those that outlive versions, and the
seals of manifests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from gracekit.errors import StoreFormatError
from gracekit.files import sha256
from gracekit.store.files.formats import cannot_open, unreadable
from gracekit.store.files.migrations import is_old
from gracekit.store.files.parquet import is_sealed
from gracekit.store.files.paths import JSON_NAME, numbered
from gracekit.store.files.sealing import check_json
from gracekit.store.files.shards import SHARED, SUFFIX, is_whole_shard
from gracekit.store.files.shared_work import damaged_offers
from gracekit.store.files.uses import read_uses
from gracekit.store.problems import RESTORE, RESTORE_ALL, Problem, problem, told
from gracekit.store.reader import StoreReader
from gracekit.version.header import FileInfo

_UNSEALED = "has no checksum: an earlier gracekit or another program wrote it, or it is damaged"
_USES = "delete it: a run that goes on from this step, and the next refresh, do without it"
_SHARD = "nothing is lost: the next refresh measures these samples again"
_OFFER = "nothing is lost: the refresh measures without other hosts"
_LEASE = "nothing to do: its trainer writes it anew within a minute, and gc drops it otherwise"


def check_named(
    store: StoreReader, files: Iterable[tuple[Path, FileInfo]], advice: str = RESTORE
) -> Iterator[Problem]:
    """Files that a header or `store.json` names, against what they were written as."""
    for path, entry in files:
        try:
            found = path.stat().st_size
            if found != entry.num_bytes:
                yield problem(store, path, f"has {found} bytes, expected {entry.num_bytes}", advice)
            elif sha256(path) != entry.sha256:
                yield problem(store, path, "differs from its checksum", advice)
        except OSError as error:
            without_access = unreadable(path, error)
            if without_access is not None:
                yield told(store, path, without_access)
            else:
                yield problem(store, path, f"cannot be read: {error.strerror}", advice)


def check_manifest_seal(store: StoreReader, version: int) -> Iterator[Problem]:
    """That a manifest which can be read has a seal: nothing else knows all of its bytes."""
    path = store.paths.manifest(version)
    if not is_old(store.info) and not is_sealed(path):
        yield problem(store, path, _UNSEALED, RESTORE)


def listed(
    store: StoreReader, directory: Path, pattern: re.Pattern[str]
) -> tuple[dict[Path, int], list[Problem]]:
    """`numbered`; where the directory cannot be listed nothing, and the problem that tells so."""
    try:
        return numbered(directory, pattern), []
    except OSError as error:
        return {}, [told(store, directory, unreadable(directory, error) or error)]


def check_unversioned(store: StoreReader) -> Iterator[Problem]:
    """What belongs to the store as a whole, to trainers, or to work in progress."""
    yield from _check_info(store)
    yield from _check_uses(store)
    paths = store.paths
    records, obstacles = listed(store, paths.removals, JSON_NAME)
    yield from obstacles
    for record in records:
        yield from _check_text(store, record, RESTORE, is_required=True)
    markers, obstacles = listed(store, paths.pinned, JSON_NAME)
    yield from obstacles
    for marker in markers:
        yield from _check_text(
            store, marker, f"the version stays pinned: `gracekit pin {int(marker.stem[1:])}` with "
            "its note writes it anew"
        )  # fmt: skip
    for lease in sorted(paths.leases.glob("*.json")):
        yield from _check_text(store, lease, _LEASE)
    for shard in sorted(paths.shards.glob(f"*/*{SUFFIX}")):
        if (without_access := cannot_open(shard)) is not None:
            yield told(store, shard, without_access)
        elif not is_whole_shard(shard):
            yield problem(store, shard, "differs from its checksum", _SHARD)
    for task in sorted(paths.shards.glob(f"*{SHARED}/*.json")):
        yield from _check_text(store, task, _OFFER, is_required=True)
    for offer, what in damaged_offers(paths):
        yield problem(store, offer, what, _OFFER)


def _check_info(store: StoreReader) -> Iterator[Problem]:
    paths, named = store.paths, store.info.files
    yield from _check_text(store, paths.info, RESTORE_ALL, is_required=True)
    yield from check_named(
        store,
        ((paths.root / name, entry) for name, entry in named.items()),
        "restore it from a backup: versions need it",
    )
    if not is_old(store.info) and paths.samples.name not in named:
        yield problem(store, paths.info, f"names no checksum of {paths.samples.name}", RESTORE_ALL)


def _check_uses(store: StoreReader) -> Iterator[Problem]:
    for path in sorted(store.paths.uses.glob("*/*.parquet")):
        try:
            read_uses(path)  # without a seal where a trainer of an earlier release wrote it
        except StoreFormatError as error:
            yield told(store, path, error, _USES)


def _check_text(
    store: StoreReader, path: Path, advice: str, *, is_required: bool = False
) -> Iterator[Problem]:
    """A JSON file that carries its checksum; one that is gone meanwhile is no problem.

    Markers and leases may have none: one pins by being there, however it was cut off, and a trainer
    of an earlier release may still write the other.
    """
    try:
        if not check_json(path.read_bytes()) and is_required and not is_old(store.info):
            yield problem(store, path, _UNSEALED, advice)
    except FileNotFoundError:
        return
    except ValueError as error:
        yield problem(store, path, str(error), advice)
    except OSError as error:
        yield told(store, path, unreadable(path, error) or error, advice)
