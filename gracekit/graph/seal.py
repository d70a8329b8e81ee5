"""A saved index: its arrays, and the seal: what it was made for, and its files' checksums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gracekit.files import sha256, write_atomic, write_text_atomic
from gracekit.recipe import GraphSection
from gracekit.types import Json

SEAL_FILE = "index.json"
UNIT_FILE = "unit.npy"
_LAYOUT, _EXACT, _ROUNDED = "layout", 2, 3
"""Of the files: what their directions are. Earlier releases told none or know the first one only,
and build their own where another is told."""


def backend_for(num_rows: int, settings: GraphSection) -> str:
    """`exact`, `hnsw` or `descent`."""
    if settings.backend != "auto":
        return settings.backend
    if num_rows < settings.exact_below:
        return "exact"
    return "hnsw" if num_rows < settings.hnsw_below else "descent"


def purpose(shape: tuple[int, ...], settings: GraphSection) -> Json:
    """What makes two indexes interchangeable, for directions of the given shape [n, d]."""
    backend = backend_for(shape[0], settings)
    made_for: Json = {
        "backend": backend,
        "shape": list(shape),
        "num_neighbors": settings.num_neighbors,
    }
    if backend == "hnsw":
        made_for |= {"hnsw_m": settings.hnsw_m, "ef_construction": settings.ef_construction}
    if backend == "descent":
        made_for["num_spare"] = settings.num_spare
    return made_for


def write_arrays(final: Path, **arrays: Any) -> None:
    """Write a file of named arrays."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # to a name numpy would add a suffix
            np.savez(file, **arrays)

    write_atomic(final, write)


def write_array(final: Path, array: NDArray[Any]) -> None:
    """Write a file of one array."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array)

    write_atomic(final, write)


def seal(
    directory: Path, files: list[Path], made_for: Json, *, seed: int, is_rounded: bool
) -> list[Path]:
    """Write the seal after the files; returns all files, the seal included."""
    content = {
        "made_for": {**made_for, _LAYOUT: _ROUNDED if is_rounded else _EXACT},
        "seed": seed,
        "files": {file.name: sha256(file) for file in files},
    }
    write_text_atomic(directory / SEAL_FILE, json.dumps(content, indent=1))
    return [*files, directory / SEAL_FILE]


def unbroken_seal(directory: Path, *, is_checked: bool = False) -> Json | None:
    """The seal, if it is there and every file is as it was sealed.

    hnswlib refuses truncated files but loads files with flipped bytes, hence the checksums; with
    `is_checked` they were compared already, by those of the whole cache.
    """
    try:
        content: Json = json.loads((directory / SEAL_FILE).read_text(encoding="utf-8"))
        intact = is_checked or all(
            sha256(directory / name) == checksum for name, checksum in content["files"].items()
        )
        complete = intact and {"made_for", "seed"} <= content.keys()
        complete = complete and content["made_for"].pop(_LAYOUT, 1) <= _ROUNDED
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None
    return content if complete else None
