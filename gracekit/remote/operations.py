"""The calls of an object store: the only functions here that touch a network.

`RemoteFolder` calls them by their module name, so a fault put in the place of one is met wherever
something is read or written. Errors are those of obstore; `failures` puts them into words.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

try:
    import obstore
    from obstore.store import MemoryStore, from_url
except ImportError as error:  # the extra `s3` is not installed; `RemoteFolder.open` says so
    _missing: ImportError | None = error
else:
    _missing = None

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Meta = dict[str, Any]
"""Of an object: path, size, e_tag, last_modified."""


def why_missing() -> ImportError | None:
    """Why obstore cannot be imported; None: it can."""
    return _missing


def store_of(url: str, **settings: Any) -> ObjectStore:
    """The store of a URL; asks nothing of the network."""
    return from_url(url, **settings)


def store_in_memory() -> ObjectStore:
    """A new one, in the memory of this process."""
    return MemoryStore()


def list_objects(store: ObjectStore, below: str) -> list[Meta]:
    """All objects below a folder; "" is the store's own."""
    found: list[Meta] = []
    for batch in obstore.list(store, prefix=below or None, chunk_size=1000):
        found.extend(dict(meta) for meta in batch)
    return found


def head_object(store: ObjectStore, name: str) -> Meta:
    """What is known of one object."""
    return dict(obstore.head(store, name))


def get_object(store: ObjectStore, name: str) -> bytes:
    """The whole of an object, for small ones."""
    return bytes(obstore.get(store, name).bytes())


def get_part(store: ObjectStore, name: str, start: int, end: int, etag: str | None) -> bytes:
    """Bytes `start` to before `end` of an object, as long as it has this tag."""
    options: Any = {"range": (start, end)}
    if etag is not None:
        options["if_match"] = etag
    return bytes(obstore.get(store, name, options=options).bytes())


def put_object(
    store: ObjectStore, name: str, content: bytes | Path, mode: Literal["create", "overwrite"]
) -> None:
    """Write an object whole; with `create` only where there is none of the name."""
    obstore.put(store, name, content, mode=mode)


def delete_object(store: ObjectStore, name: str) -> None:
    """Remove an object; one that is not there is fine."""
    obstore.delete(store, name)
