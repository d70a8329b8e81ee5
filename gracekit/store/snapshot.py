"""`Snapshot`: which versions a store has, at one moment.

An operation works on one snapshot, so that all of its parts see the same versions, and directories
are listed twice instead of at every question. It is immutable: what an operation changes itself
makes a new one, in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from gracekit.errors import StoreFormatError
from gracekit.store.files.formats import NewerFormatError, UnreadableError, unreadable
from gracekit.store.files.manifest_reading import list_manifests
from gracekit.store.files.paths import StorePaths
from gracekit.store.files.removals import Removal
from gracekit.store.version_facts import KnownFacts, Stamp, VersionFacts
from gracekit.version.header import Header


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Which versions there are, with what is known of each."""

    kept: Mapping[int, VersionFacts]
    """Versions that verify, ascending: the manifest opens, its header parses, the history files
    that it names are there in the right size, and gc did not remove it."""
    removed: Mapping[int, VersionFacts]
    """Versions that gc removed and whose record can be read, ascending."""
    damaged: frozenset[int]
    """Versions that have a manifest and do not verify."""
    records: frozenset[int]
    """Versions with a removal record, whether it can be read or not."""
    unfinished: frozenset[int]
    """Of these the ones that still have a manifest: gc was killed, or is at work."""
    newer: StoreFormatError | None = None
    """The error where a newer gracekit wrote one of the versions; it is among `damaged`."""
    unreadable: Mapping[int, UnreadableError] = field(default_factory=dict)
    """Versions and removal records that cannot be read for lack of permission or for their disk,
    with the reason. Such versions are among `damaged`, though they need not be."""

    @cached_property
    def facts(self) -> Mapping[int, VersionFacts]:
        """All versions that have a readable header, kept or removed, ascending."""
        return MappingProxyType(dict(sorted({**self.kept, **self.removed}.items())))

    @cached_property
    def manifests(self) -> tuple[int, ...]:
        """Versions with a manifest that gc did not remove, ascending; readable or not."""
        return tuple(sorted({*self.kept, *self.damaged}))

    @property
    def latest(self) -> int | None:
        """The highest version that verifies; None when there is none yet."""
        return max(self.kept, default=None)

    @property
    def next_version(self) -> int:
        """One above the highest number ever given, whether damaged or removed since."""
        return max([*self.manifests, *self.records], default=0) + 1

    def newest_scores(self, *, before: int | None = None) -> int | None:
        """The newest version that made scores of its own (or the one before a version).

        A refresh and a selection build on these scores, also after a rollback.
        """
        found = {facts.scores_version for facts in self.facts.values()}
        return max((v for v in found if before is None or v < before), default=None)

    def find(self, is_sought: Callable[[VersionFacts], bool]) -> int | None:
        """The latest version, kept or removed, with such facts; None where there is none."""
        found = reversed(list(self.facts.items()))
        return next((version for version, facts in found if is_sought(facts)), None)

    def with_version(self, version: int, facts: VersionFacts) -> Snapshot:
        """The snapshot after a commit; the version is above all others."""
        return self._with(kept={**self.kept, version: facts})

    def with_removal(self, version: int, facts: VersionFacts) -> Snapshot:
        """The snapshot after gc recorded a removal, with the manifest still there."""
        kept = {v: f for v, f in self.kept.items() if v != version}
        return self._with(
            kept=kept,
            removed=dict(sorted({**self.removed, version: facts}.items())),
            damaged=self.damaged - {version},
            records=self.records | {version},
            unfinished=self.unfinished | {version},
        )

    def with_finished_removals(self) -> Snapshot:
        """The snapshot once the manifests of all removed versions are gone."""
        return self._with(unfinished=frozenset())

    def _with(self, **changes: object) -> Snapshot:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields |= changes
        for name in ("kept", "removed", "unreadable"):
            fields[name] = MappingProxyType(dict(fields[name]))
        return Snapshot(**fields)


def take_snapshot(
    paths: StorePaths,
    known: KnownFacts,
    read_header: Callable[[int], Header],
    read_removal: Callable[[int], Removal],
) -> Snapshot:
    """Look at the disk: two listings, and the header of each version that is not known yet.

    Args:
        paths: The store's paths.
        known: Facts that were read before; it is added to.
        read_header: Reads the header of a version that has a manifest.
        read_removal: Reads a removal record.
    """
    manifests, records = list_manifests(paths)
    kept: dict[int, VersionFacts] = {}
    damaged: set[int] = set()
    unfinished: set[int] = set()
    newer: NewerFormatError | None = None
    without_access: dict[int, UnreadableError] = {}
    root, present = f"{paths.root}/", f"{paths.manifests}/v"
    for version in manifests:
        if version in records:
            unfinished.add(version)
            continue
        try:
            # Text, because each operation does this to each file: paths would take most of its
            # time where there are thousands of versions.
            stamp = stamp_of(f"{present}{version:06d}.parquet")
            facts = _facts_of(version, stamp, known, read_header)
            is_whole = all(_size(root, name, paths) == size for name, size in facts.sizes)
        except NewerFormatError as error:
            is_whole, newer = False, newer or error
        except (StoreFormatError, OSError) as error:
            is_whole = False
            if (obstacle := _without_access(error, paths.manifest(version))) is not None:
                without_access[version] = obstacle
        if is_whole:
            kept[version] = facts
        else:
            damaged.add(version)
    removed: dict[int, VersionFacts] = {}
    for version in sorted(records):
        try:
            removed[version] = _facts_of_removed(version, paths, known, read_removal)
        except NewerFormatError as error:
            newer = newer or error
        except (StoreFormatError, OSError) as error:
            if (obstacle := _without_access(error, paths.removal(version))) is not None:
                without_access[version] = obstacle
    return Snapshot(
        kept=MappingProxyType(kept),
        removed=MappingProxyType(removed),
        damaged=frozenset(damaged),
        records=frozenset(records),
        unfinished=frozenset(unfinished),
        newer=newer,
        unreadable=MappingProxyType(without_access),
    )


def stamp_of(path: Path | str) -> Stamp | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _without_access(error: StoreFormatError | OSError, path: Path) -> UnreadableError | None:
    """The error where nothing can be told of a file; None where it is missing or damaged."""
    if isinstance(error, OSError):
        return unreadable(Path(error.filename or path), error)
    return error if isinstance(error, UnreadableError) else None


def _facts_of(
    version: int,
    stamp: Stamp | None,
    known: KnownFacts,
    read_header: Callable[[int], Header],
) -> VersionFacts:
    found = known.get(version)
    if found is None or found[0] != stamp:
        found = known[version] = (stamp, VersionFacts.of(read_header(version)))
    return found[1]


def _facts_of_removed(
    version: int,
    paths: StorePaths,
    known: KnownFacts,
    read_removal: Callable[[int], Removal],
) -> VersionFacts:
    stamp, found = stamp_of(paths.find(paths.removal(version))), known.get(version)
    if found is None or found[0] != stamp:
        removal = read_removal(version)
        facts = VersionFacts.of(removal.header, removed_at=removal.removed_at)
        found = known[version] = (stamp, facts)
    return found[1]


def _size(root: str, name: str, paths: StorePaths) -> int:
    """Bytes of a file that a header names; OSError where it is not there."""
    try:
        return os.stat(root + name).st_size
    except FileNotFoundError:
        return paths.read(paths.root / name, lambda path: path.stat().st_size)
