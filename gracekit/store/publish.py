"""Publishing: what readers see besides the files of a version is derived from them.

    headers/v000012.json → scores.duckdb → LATEST → caches that nothing reads any more are removed

`LATEST` is written last of what readers use, so it is behind whenever something is missing.
"""

from __future__ import annotations

from pathlib import Path

from gracekit import files
from gracekit.store.files.cache import prune_caches
from gracekit.store.reader import StoreReader


def is_published(store: StoreReader) -> bool:
    """Whether the last writer came to the end of `publish`; a look at three files, no more."""
    latest, paths = store.latest(), store.paths
    if latest is None:
        return True
    return (
        _holds(paths.latest, _latest_text(latest))
        and paths.database.is_file()
        and paths.sidecar(latest).is_file()
    )


def publish(store: StoreReader, *, has_new: bool, has_new_cache: bool = True) -> list[str]:
    """Bring sidecars, database, LATEST and caches in line with the manifests; what was changed.

    Everything is derived from the manifests and the history, so it may be repeated at any time.
    `has_new` is for a commit: the database is behind, and the sidecars of older versions are not
    compared again if they are there, so that a commit costs the same after many versions. Without
    `has_new_cache` no cache became old, and none is looked for.
    """
    from gracekit.store.sql import database  # DuckDB is loaded only by who publishes or asks

    paths, versions = store.paths, store.versions()
    done: list[str] = []
    for version in versions:
        sidecar = paths.sidecar(version)
        if has_new and sidecar.exists():
            continue
        text = store.header(version).to_text()
        if not _holds(sidecar, text):
            files.write_text_atomic(sidecar, text)
            done.append(f"wrote {paths.relative(sidecar)}")
    if has_new or not database.is_current(store):
        database.publish(store)
        done.append(f"published {paths.relative(paths.database)}")
    if versions and not _holds(paths.latest, _latest_text(versions[-1])):
        files.write_text_atomic(paths.latest, _latest_text(versions[-1]))
        done.append(f"wrote {paths.relative(paths.latest)}")
    needed = store.newest_scores()
    if needed is not None and has_new_cache:
        with files.clear_write_errors(paths.cache):
            done += [f"removed the old {name}" for name in prune_caches(paths, needed)]
    return done


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def _latest_text(version: int) -> str:
    return f"{version}\n"
