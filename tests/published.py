"""Published stores for tests: what is there, and whether it is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from gracekit.remote import RemoteFolder
from gracekit.store import Store
from gracekit.store.files.manifests import read_header
from tests.stores import changed_samples, make_draft, make_reselect, make_store


def make_history(root: Path) -> Store:
    """Four versions: of the first data, of changed data, a selection, a refresh."""
    store = make_store(root)
    store.commit(make_draft(store, "one"))
    store.commit(make_draft(store, "two", samples=changed_samples(store)))
    store.commit(make_reselect(store, "three"))
    store.commit(make_draft(store, "four"))
    return store


def contents(url: str) -> dict[str, bytes]:
    """Every object."""
    folder = RemoteFolder.open(url, create=True)
    return {name: folder.read(name) for name in folder.list()}


def whole_versions(url: str, scratch: Path) -> list[int]:
    """Versions that readers see, each of which must have all that it needs, as it was made."""
    found = contents(url)
    removed = {name[8:-5] for name in found if name.startswith("removed/")}
    versions = []
    for name in sorted(found):
        if not name.startswith("manifests/") or name[10:-8] in removed:
            continue
        path = scratch / "manifest.parquet"
        path.write_bytes(found[name])
        header = read_header(path)
        for file, entry in header.files.items():
            assert hashlib.sha256(found[file]).hexdigest() == entry.sha256, (name, file)
        assert header.dataset.samples_file in found
        versions.append(header.version)
    return versions


def expected(store: Store) -> dict[str, bytes]:
    """What is to be at the URL of a store, by the files that it has."""
    root = store.paths.root
    kept = ("manifests", "headers", "removed", "score_history", "measurements", "draws", "samples")
    paths = [p for name in kept for p in (root / name).rglob("*") if p.is_file()]
    paths += [root / "store.json", root / "samples.parquet", root / "LATEST"]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in paths}


def at_call(k: int, work: Callable[[], object]) -> Callable[[], None]:
    """A `between` that does something before the k-th request."""
    turns: list[int] = []

    def between() -> None:
        turns.append(1)
        if len(turns) == k:
            work()

    return between
