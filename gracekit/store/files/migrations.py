"""Stores of an older format, brought to the present one, a step at a time.

Manifests and history never change, so whoever reads them reads every format up to the present
(`check_format`), and a store that was not brought up to date can be read as it is. A step changes
the rest, which later commits build on: `store.json`, `samples.parquet`, the cache.

A step is a function registered under the format that it makes. It may be killed at any point and
then runs again from the start, so it writes through `gracekit.files` and does what is left to do.
That it is done is recorded in `store.json`, last. The caller holds the lock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from gracekit import files
from gracekit.store.files.info import StoreInfo
from gracekit.store.files.paths import StorePaths
from gracekit.version import FORMAT_VERSION

Migration = Callable[[StorePaths], None]

MIGRATIONS: dict[int, Migration] = {}
"""Format -> the step that makes it from the one before; one for each from 2 to the present."""


def migration(to: int) -> Callable[[Migration], Migration]:
    """Register a step, described by the first line of its docstring."""

    def register(step: Migration) -> Migration:
        assert to not in MIGRATIONS, f"two steps make format {to}"
        MIGRATIONS[to] = step
        return step

    return register


def migrate(paths: StorePaths) -> list[str]:
    """Take the steps that a store lacks; returns what was done, a sentence each.

    Raises `StoreWriteError` when the disk fails, `StoreFormatError` for a newer format.
    """
    done: list[str] = []
    info = StoreInfo.load(paths.info)
    for version in range(info.format_version + 1, FORMAT_VERSION + 1):
        with files.clear_write_errors(paths.root):
            MIGRATIONS[version](paths)
        # Read again: the step may have written it.
        now = dataclasses.replace(StoreInfo.load(paths.info), format_version=version)
        files.write_text_atomic(paths.info, now.to_text())
        about = (MIGRATIONS[version].__doc__ or "").strip().partition("\n")[0].rstrip(".")
        done.append(f"brought the store to format {version}: {about}")
    return done


@migration(2)
def _data_may_change(paths: StorePaths) -> None:
    """Its data may change now.

    Nothing is written anew: what the first format does not hold is that of data that never changed.
    """


@migration(3)
def _typed_header(paths: StorePaths) -> None:
    """Settings and results of a version are apart."""
