"""The verbs over the versions that were made: `rollback`, `pin`, `unpin`, `gc`."""

from __future__ import annotations

from gracekit import refresher
from gracekit.api.stores import (
    StoreLike,
    VersionLike,
    open_store,
    resolve,
    text,
    whole_number,
)
from gracekit.refresher import RefreshResult
from gracekit.store import GcReport, Pinned


def rollback(store: StoreLike, version: VersionLike) -> RefreshResult:
    """Make a version with the coreset and the scores of an old one.

    Trainers take it as they take any newest version. The next refresh builds on the newest refresh
    all the same, so it measures no more than without the rollback.

    Args:
        store: Path of the store, or an open `Store`.
        version: The version to go back to.

    Returns:
        The new version; `is_new` is False where the latest version has that coreset already.

    Raises:
        VersionNotFoundError: There is no such version, or gc removed it.
        StoreFormatError: It is damaged.
        StoreDataMismatchError: None of its samples is in the data any more.

    Example:
        >>> gracekit.rollback("gracekit-store", 12).version
        15
    """
    opened = open_store(store)
    return refresher.rollback(opened.paths.root, resolve(opened, version))


def pin(store: StoreLike, version: VersionLike, *, note: str = "") -> Pinned:
    """Keep a version whatever `gc` and the recipe's retention remove; works at any moment.

    Args:
        store: Path of the store, or an open `Store`.
        version: The version to keep; one that is pinned gets the new note.
        note: Why, for `versions`.

    Raises:
        VersionNotFoundError: There is no such version, or gc removed it.
        StoreWriteError: The pin cannot be written.

    Example:
        >>> gracekit.pin("gracekit-store", 12, note="the run that we publish").version
        12
    """
    opened = open_store(store)
    return opened.pin(resolve(opened, version), text(note, "note"))


def unpin(store: StoreLike, version: VersionLike) -> bool:
    """Leave a version to `gc` and the recipe's retention again.

    Args:
        store: Path of the store, or an open `Store`.
        version: The version.

    Returns:
        Whether it was pinned.

    Raises:
        VersionNotFoundError: There is no such version.
        StoreWriteError: The pin cannot be removed.

    Example:
        >>> gracekit.unpin("gracekit-store", 12)
        True
    """
    opened = open_store(store)
    if isinstance(version, int) and not isinstance(version, bool) and opened.unpin(version):
        return True  # a pin may outlive its version
    return opened.unpin(resolve(opened, version))


def gc(store: StoreLike, *, keep: int, dry_run: bool = False) -> GcReport:
    """Remove the coresets and the scores of old versions.

    What was measured stays, and so do pinned versions, those that a running trainer draws from,
    and all that the next refresh needs.

    Args:
        store: Path of the store, or an open `Store`.
        keep: How many of the newest versions to keep, at least 1.
        dry_run: Only say what would be removed.

    Raises:
        UsageError: `keep` is no positive whole number.
        StoreLockedError: Another process writes to the store.
        StoreWriteError: The disk failed; each version is whole or removed, and the next gc goes on.

    Example:
        >>> gracekit.gc("gracekit-store", keep=20, dry_run=True).freed_bytes
        10485760
    """
    opened = open_store(store)
    report = opened.gc(
        whole_number(keep, "keep, the number of newest versions,", least=1), dry_run=dry_run
    )
    if not dry_run:
        refresher.publish_again(opened.paths.root)
    return report
