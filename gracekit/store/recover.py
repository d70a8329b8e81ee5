"""Start-up: what a killed process left is removed, what it did not publish is published.

Finished shards stay: the next refresh of the same checkpoint goes on from them. The caller holds
the lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gracekit import files
from gracekit.store.commit import publish
from gracekit.store.paths import CACHE_NAME, HISTORY_NAME, MANIFEST_NAME, numbered

if TYPE_CHECKING:
    from gracekit.store.store import Store


def recover(store: Store) -> list[str]:
    """Clean up and publish; returns what was done, a sentence each (empty after a clean stop).

    Raises `StoreWriteError`; may be repeated at any time, also after being killed itself.
    """
    paths = store.paths
    done: list[str] = []
    with files.clear_write_errors(paths.root):
        leftovers = files.remove_leftovers(paths.root)
        if leftovers:
            done.append(f"removed {leftovers} unfinished files")
        # A manifest that is there but damaged keeps its history: `verify` reports it.
        made = set(numbered(paths.manifests, MANIFEST_NAME).values())
        made = {version for version in made if paths.manifest(version).exists()}
        orphans = [
            path
            for directory, pattern in (
                (paths.history, HISTORY_NAME),
                (paths.cache, CACHE_NAME),
                (paths.manifests, MANIFEST_NAME),
            )
            for path, version in numbered(directory, pattern).items()
            if version not in made
        ]
        for orphan in orphans:
            files.remove(orphan)
            done.append(f"removed {paths.relative(orphan)} of a version that was not committed")
        if paths.pins.is_dir() and any(paths.pins.iterdir()):
            files.remove(paths.pins)
            done.append("removed links to a checkpoint that is no longer read")
    for version in store.versions():
        measure_id = store.header(version).refresh.get("measure_id")
        if measure_id is not None and _is_used_up(store, version, measure_id):
            store.shards(measure_id).clear()
            done.append(f"removed the shards of version {version}, which is complete")
    return done + publish(store, has_new=False)


def _is_used_up(store: Store, version: int, measure_id: str) -> bool:
    """Whether a version took in all shards there are; newer ones belong to a later refresh."""
    shards = list(store.paths.shards_of(measure_id).glob("*"))
    committed_ns = store.paths.manifest(version).stat().st_mtime_ns
    return bool(shards) and all(shard.stat().st_mtime_ns <= committed_ns for shard in shards)
