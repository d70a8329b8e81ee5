"""Start-up: what a killed process left is removed, what it did not publish is published.

Finished shards stay, unless a refresh was committed after them: the next refresh of the same
checkpoint continues from them. A gc that was killed is finished. The caller holds the lock.
"""

from __future__ import annotations

from gracekit import files
from gracekit.store.files.paths import (
    CACHE_NAME,
    JSON_NAME,
    PARTITION_NAME,
    TABLE_NAME,
    names_in,
    numbered,
)
from gracekit.store.files.shards import clear_shards
from gracekit.store.files.shared_work import end_shared
from gracekit.store.publish import publish
from gracekit.store.reader import StoreReader
from gracekit.store.retention import finish


def recover(store: StoreReader) -> list[str]:
    """Clean up and publish; returns what was done, a sentence each (empty after a clean stop).

    Raises `StoreWriteError`; may be repeated at any time, also after being killed itself.
    """
    return clean_up(store) + publish(store, has_new=False)


def clean_up(store: StoreReader) -> list[str]:
    """`recover` without publishing: needs no space on the disk."""
    paths = store.renew().paths  # what belongs to no version is judged by what is there now
    done: list[str] = []
    with files.clear_write_errors(paths.root):
        leftovers = files.remove_leftovers(paths.root)
        if leftovers:
            done.append(f"removed {leftovers} unfinished files")
        # A manifest that is there but damaged keeps its history: `verify` reports it.
        made = {*store.look().manifests, *store.look().records}
        orphans = [
            path
            for directory, pattern in (
                (paths.score_history, PARTITION_NAME),
                (paths.measurements, PARTITION_NAME),
                (paths.draws, PARTITION_NAME),
                (paths.cache, CACHE_NAME),
                (paths.headers, JSON_NAME),
            )
            for path, version in numbered(directory, pattern).items()
            if version not in made
        ]
        # Later versions use a sample table too, so only that of a version to come belongs to none.
        tables = numbered(paths.changed_samples, TABLE_NAME)
        orphans += [path for path, version in tables.items() if version > max(made, default=0)]
        for orphan in orphans:
            files.remove(orphan)
            done.append(f"removed {paths.relative(orphan)} of a version that was not committed")
        end_shared(paths)  # before the checkpoint goes that its workers read
        if names_in(paths.pins):
            files.remove(paths.pins)
            done.append("removed links to a checkpoint that is no longer read")
    if freed_bytes := finish(store):
        done.append(f"removed {freed_bytes:,} bytes of versions that gc had begun to remove")
    measured = store.find(lambda facts: facts.is_measured and facts.removed_at is None)
    if measured is not None:
        # What a commit does at its end; newer shards belong to a later refresh.
        committed_ns = paths.manifest(measured).stat().st_mtime_ns
        cleared = clear_shards(paths, before_ns=committed_ns)
        done += [f"removed {name}, which no refresh will continue" for name in cleared]
    return done
