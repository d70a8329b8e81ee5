"""Object stores: folders of objects behind a URL (s3, gs, az; file and memory for tests).

Everything that touches a network goes through `RemoteFolder`. The library behind it, obstore, comes
with `gracekit[s3]` and is loaded when a folder is opened.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gracekit.remote.urls import (
    address_of,
    address_or_path,
    cache_folder,
    is_url,
    local_path,
    require_path,
)

if TYPE_CHECKING:
    from gracekit.remote.folder import RemoteFolder, RemoteObject

__all__ = [
    "RemoteFolder",
    "RemoteObject",
    "address_of",
    "address_or_path",
    "cache_folder",
    "is_url",
    "local_path",
    "require_path",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in ("RemoteFolder", "RemoteObject"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module("gracekit.remote.folder"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
