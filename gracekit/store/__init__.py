"""The store: the directory that holds all of a run's state. Files are the truth.

`Store` is the door. What it exports is loaded when it is first used: the trainer's side needs
neither pydantic nor DuckDB.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gracekit.store.commit import VersionDraft
    from gracekit.store.files.cache import CachePayload, StoreCache
    from gracekit.store.files.lock import lock_daemon, lock_store
    from gracekit.store.files.paths import StorePaths
    from gracekit.store.store import Store

_HOMES = {
    "CachePayload": "gracekit.store.files.cache",
    "Store": "gracekit.store.store",
    "StoreCache": "gracekit.store.files.cache",
    "StorePaths": "gracekit.store.files.paths",
    "VersionDraft": "gracekit.store.commit",
    "lock_daemon": "gracekit.store.files.lock",
    "lock_store": "gracekit.store.files.lock",
}

__all__ = [
    "CachePayload",
    "Store",
    "StoreCache",
    "StorePaths",
    "VersionDraft",
    "lock_daemon",
    "lock_store",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
