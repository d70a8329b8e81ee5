"""`cache/v000012/`: features and index of a version, checksummed. It can always be rebuilt."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gracekit.files import make_directory, remove, sha256, write_directory_atomic
from gracekit.store.files.formats import UnreadableError, unreadable
from gracekit.store.files.paths import CACHE_NAME, StorePaths, numbered
from gracekit.tabular import ShortRepr, read_only
from gracekit.types import Bool

CHECKSUMS = "checksums.json"
INDEX = "index"
TARGET = "target_features.npy"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CachePayload:
    """What a commit keeps for the next refresh."""

    features: NDArray[np.float16]
    """[n, d]"""
    valid: Bool
    """[n] rows that have features."""
    target_features: NDArray[np.float16] | None = None
    """[t, d] of the target set, if there is one."""
    save_index: Callable[[Path], object] | None = None
    """Writes the neighbour index into the existing directory it is given."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class StoreCache(ShortRepr):
    """A cache that was found whole; its arrays are read-only.

    Features are mapped from their file, so that they take no memory that the system could not have
    back; the file stays as long as they are used, whatever becomes of its name.
    """

    version: int
    features: NDArray[np.float16]
    """[n, d]"""
    valid: Bool
    """[n]"""
    target_features: NDArray[np.float16] | None
    """[t, d]"""
    index_directory: Path
    """What `save_index` wrote; empty or absent when there was none."""


def save_cache(paths: StorePaths, version: int, payload: CachePayload) -> None:
    """Write the cache of a version, over an older one; raises `StoreWriteError`."""

    def write(directory: Path) -> None:
        # np.save on a path would add a suffix to a temporary name; these are inside.
        np.save(directory / "features.npy", payload.features.astype(np.float16, copy=False))
        np.save(directory / "valid.npy", payload.valid)
        if payload.target_features is not None:
            np.save(directory / TARGET, payload.target_features.astype(np.float16, copy=False))
        if payload.save_index is not None:
            make_directory(directory / INDEX)
            payload.save_index(directory / INDEX)
        files = sorted(p for p in directory.rglob("*") if p.is_file())
        sums = {p.relative_to(directory).as_posix(): sha256(p) for p in files}
        (directory / CHECKSUMS).write_text(json.dumps(sums, indent=2), encoding="utf-8")

    write_directory_atomic(paths.cache_of(version), write)


def load_cache(paths: StorePaths, version: int) -> StoreCache | None:
    """The cache of a version; None when it is missing or differs from its checksums.

    Raises `UnreadableError` where it cannot be read for lack of permission or for its disk.
    """
    directory = paths.cache_of(version)
    if damage(directory) is not None:
        return None
    target = directory / TARGET
    try:
        found = StoreCache(
            version=version,
            features=np.asarray(np.load(directory / "features.npy", mmap_mode="r")),
            valid=np.load(directory / "valid.npy", allow_pickle=False),
            target_features=np.load(target, allow_pickle=False) if target.exists() else None,
            index_directory=directory / INDEX,
        )
        return read_only(found)
    except (OSError, ValueError):
        return None


def damage(directory: Path) -> str | None:
    """What is wrong with a cache directory, None when it is whole; raises as `load_cache`."""
    try:
        sums = json.loads((directory / CHECKSUMS).read_text(encoding="utf-8"))
        wrong = [name for name, digest in sums.items() if sha256(directory / name) != digest]
    except (OSError, ValueError, AttributeError) as error:
        if (without_access := _without_access(directory, error)) is not None:
            raise without_access from None
        return f"cannot be read ({error})"
    return f"{', '.join(wrong)} differ from their checksums" if wrong else None


def _without_access(directory: Path, error: BaseException) -> UnreadableError | None:
    name = error.filename if isinstance(error, OSError) else None
    return unreadable(Path(name or directory), error)


def prune_caches(paths: StorePaths, needed: int) -> list[str]:
    """Remove the caches of versions before `needed`, which nothing reads; returns what went.

    Args:
        paths: The store's paths.
        needed: The version that holds the latest scores.
    """
    caches = numbered(paths.cache, CACHE_NAME)
    removed = [path for path, version in caches.items() if version < needed]
    for path in removed:
        remove(path)
    return [paths.relative(path) for path in removed]
