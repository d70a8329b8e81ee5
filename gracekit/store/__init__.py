"""The store: the directory that holds all of a run's state. Files are the truth.

`Store` is the door. `database` (DuckDB) and `verify` are imported by whoever needs them.
"""

from gracekit.store.commit import VersionDraft
from gracekit.store.files.cache import CachePayload, StoreCache
from gracekit.store.files.lock import lock_daemon, lock_store
from gracekit.store.files.paths import StorePaths
from gracekit.store.store import Store

__all__ = [
    "CachePayload",
    "Store",
    "StoreCache",
    "StorePaths",
    "VersionDraft",
    "lock_daemon",
    "lock_store",
]
