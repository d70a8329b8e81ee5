"""What is kept of old versions: `gracekit gc`, and `retention.keep` after each commit.

A removed version loses its manifest and the scores of all samples, unless a kept version needs
them. It leaves what was measured at it, and its header in the removal record. Never removed are the
latest version, pinned ones, those that a running trainer draws from, and the one whose scores the
next refresh builds on; the scores before those stay too, for a refresh looks at their change.

    removed/v000003.json        written and synced: from here on the version is removed …
      → look for pins and leases   … unless one came meanwhile: then the record is withdrawn
        → manifest → header beside it, scores

While a version has both a record and a manifest, nothing of it was removed yet. A killed gc is
finished by `finish`, which looks for pins and leases again. Where one of these cannot be read,
nothing is removed. The caller of all but `examine` and `leftovers` holds the lock.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gracekit import files
from gracekit.errors import StoreError, StoreFormatError
from gracekit.store.files.formats import NewerFormatError, UnreadableError
from gracekit.store.files.holds import all_held_versions
from gracekit.store.files.leases import followers
from gracekit.store.files.manifests import read_sidecar
from gracekit.store.files.paths import is_there, names_in
from gracekit.store.files.removals import write_removal
from gracekit.store.publish import publish
from gracekit.store.reader import StoreReader
from gracekit.store.version_facts import VersionFacts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """What gc removed, or would."""

    removed: tuple[int, ...]
    freed_bytes: int
    kept: dict[int, str | None]
    """Versions that stay; why, for those older than the newest that were asked for."""


def examine(store: StoreReader, keep: int) -> GcReport:
    """What `collect` would do now; changes nothing.

    Args:
        store: The store.
        keep: Number of newest versions to keep, at least 1.
    """
    old, kept = _old_and_kept(store, keep)
    freed_bytes = sum(
        _num_bytes(store.paths.find(path)) for path in files_of_removed(store, old, kept)
    )
    return GcReport(removed=tuple(old), freed_bytes=freed_bytes, kept=kept)


def collect(store: StoreReader, keep: int) -> GcReport:
    """Remove all but the newest versions and those that are held, then publish.

    Raises:
        StoreWriteError: The disk failed; each version is whole or removed, and the next gc or
            start goes on.
    """
    removed, freed_bytes = remove_old(store, keep)
    publish(store, has_new=bool(removed))
    return GcReport(removed=removed, freed_bytes=freed_bytes, kept=_old_and_kept(store, keep)[1])


def remove_old(store: StoreReader, keep: int) -> tuple[tuple[int, ...], int]:
    """`collect` without publishing; returns the versions that went, and the bytes freed.

    Frees space first, so that a full disk has room to publish.
    """
    for follower in followers(store.paths):
        if not follower.holds:
            with files.clear_write_errors(follower.file), suppress(PermissionError):
                files.remove(follower.file)  # another user's may stay: it holds nothing
    marked = [
        version for version in _old_and_kept(store, keep)[0] if _record_removal(store, version)
    ]
    freed_bytes = finish(store)
    return tuple(version for version in marked if version in store.removed()), freed_bytes


def finish(store: StoreReader) -> int:
    """Remove the files of all versions with a removal record; returns the bytes freed.

    One that came to be held before anything of it was removed is no longer removed instead, and so
    are all such versions where it cannot be told which are held: that is no reason to keep a writer
    from its work.
    """
    paths = store.paths
    if unfinished := set(store.snapshot.unfinished):
        try:
            held = set(all_held_versions(paths))
        except UnreadableError as error:
            logger.warning("gc does not go on with versions %s: %s", sorted(unfinished), error)
            held = unfinished
        for version in sorted(unfinished):
            if version in held:
                _withdraw_removal(store, version)
    doomed = leftovers(store)
    manifests = [path for path in doomed if path.parent == paths.manifests]
    freed_bytes = sum(map(_num_bytes, doomed))
    with files.clear_write_errors(paths.root):
        for path in manifests:
            files.remove(path)
        if manifests:  # gone for good before the scores go, which no manifest may lack
            files.sync_directory(paths.manifests)
            store.hold(store.snapshot.with_finished_removals())
        for path in doomed:
            if path not in manifests:
                files.remove(path)
                is_partition = path.parent.parent in (paths.score_history, paths.draws)
                if is_partition and not names_in(path.parent):
                    files.remove(path.parent)
    return freed_bytes


def leftovers(store: StoreReader) -> list[Path]:
    """Files of versions with a removal record that are still to be removed."""
    doomed = files_of_removed(store, store.removed(), store.manifests())
    found = (store.paths.find(path) for path in doomed)
    return [path for path in found if is_there(path)]


def _old_and_kept(store: StoreReader, keep: int) -> tuple[list[int], dict[int, str | None]]:
    """Versions to remove, and those to keep with the reason that an old one is."""
    assert keep >= 1, "the latest version is never removed"
    versions = store.versions()
    newest = set(versions[-keep:])
    held = all_held_versions(store.paths)
    base = store.newest_scores()
    if base is not None:
        held.setdefault(base, "the next refresh builds on its scores")
    old: list[int] = []
    kept: dict[int, str | None] = {}
    for version in store.manifests():
        if version in newest or not newest or version > max(newest):
            kept[version] = None
        elif version in held:
            kept[version] = held[version]
        elif _has_header(store, version):
            old.append(version)
        else:
            kept[version] = "its manifest is damaged, see `gracekit verify`"
    return old, kept


def _record_removal(store: StoreReader, version: int) -> bool:
    """Make a version removed; False where someone came to hold it meanwhile."""
    header = store.header(version)
    removed_at = write_removal(store.paths.removal(version), header)
    facts = VersionFacts.of(header, removed_at=removed_at)
    store.hold(store.snapshot.with_removal(version, facts))
    is_held = True
    try:
        is_held = version in all_held_versions(store.paths)
    finally:
        if is_held:
            _withdraw_removal(store, version)
    return not is_held


def _withdraw_removal(store: StoreReader, version: int) -> None:
    record = store.paths.removal(version)
    with files.clear_write_errors(record):
        files.remove(record)
        store.renew()
        files.sync_directory(record.parent)


def files_of_removed(
    store: StoreReader, removed: Collection[int], kept: Iterable[int]
) -> list[Path]:
    """Files that go with removed versions: all but what was measured and what kept ones need."""
    if not removed:
        return []
    paths, needed, facts = store.paths, _files_needed_by(store, kept), store.all_facts()
    found: list[Path] = []
    for version in removed:
        found += [paths.manifest(version), paths.sidecar(version)]
        if needed is not None:
            names = {name for name, _ in facts[version].sizes}
            names.discard(paths.relative(paths.measured(version)))
            found += [paths.root / name for name in sorted(names - needed) if _lies_in_store(name)]
    return list(dict.fromkeys(found))


def _files_needed_by(store: StoreReader, kept: Iterable[int]) -> set[str] | None:
    """Files that kept versions and the next refresh need; None where damage hides it."""
    needed: set[str] = set()
    whole = store.all_facts()
    for version in kept:
        if version in whole:
            needed.update(name for name, _ in whole[version].sizes)
            continue
        try:
            header = store.header(version)
        except NewerFormatError:
            raise
        except StoreFormatError:
            try:
                header = read_sidecar(store.paths.find(store.paths.sidecar(version)))
            except StoreFormatError:
                return None
        needed |= set(header.files)
    before = looked_back_at(store)
    if before is not None:
        needed.add(store.paths.relative(store.paths.scores(before)))
    return needed


def looked_back_at(store: StoreReader) -> int | None:
    """The version whose scores the next refresh compares with those that it builds on, if any.

    They stay when the version is removed.
    """
    return store.newest_scores(before=store.newest_scores())


def _lies_in_store(name: str) -> bool:
    """Whether a file named by a header lies in the store: one that was tampered with may lie."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _has_header(store: StoreReader, version: int) -> bool:
    try:
        store.header(version)
    except StoreError:
        return False
    return True
