"""`shards/<measure_id>/000001.shard`: finished parts of a measurement in progress.

A killed refresh loads them and measures only the rest. A shard is a SHA-256 digest followed by
the npz file that it is of, so a damaged one is noticed and simply measured again.
"""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress
from pathlib import Path

import numpy as np

from gracekit import files
from gracekit.store.files.paths import StorePaths
from gracekit.types import Measurement, Rows

SUFFIX = ".shard"
LOOKS = "-looks"
"""Ends the name of a directory of shards that have features alone."""
SHARED = "-shared"
"""Ends the name of a directory in which other hosts take part (see `shared_work`)."""
_DIGEST_BYTES = hashlib.sha256().digest_size


class ShardFiles:
    """The shards of one measurement; its id says checkpoint, scoring settings and samples."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._last: int | None = None  # listing the directory for every shard takes n² in all

    def load(self, made_by: str | None = None) -> list[Measurement]:
        """All whole shards in the order they were finished; damaged ones are passed over, and those
        of other makers where one is given.
        """
        found = [read_shard(path, made_by) for path in self._files()]
        return [shard for shard in found if shard is not None]

    def save(self, shard: Measurement) -> None:
        """Keep a finished shard; raises `StoreWriteError`."""
        if self._last is None or self._path(self._last + 1).exists():
            self._last = max((int(path.stem) for path in self._files()), default=0)
        content = _pack(shard)
        files.write_atomic(self._path(self._last + 1), lambda path: _write(path, content))
        self._last += 1

    def clear(self) -> None:
        """Forget all shards."""
        with files.clear_write_errors(self.directory):
            files.remove(self.directory)
        self._last = None

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:06d}{SUFFIX}"

    def _files(self) -> list[Path]:
        found = (p for p in self.directory.glob(f"*{SUFFIX}") if p.stem.isdecimal())
        return sorted(found, key=lambda path: int(path.stem))


def count_shards(paths: StorePaths) -> int:
    """Finished shards of all measurements."""
    return sum(1 for _ in paths.shards.glob(f"*/*{SUFFIX}"))


def left_over_rows(paths: StorePaths, measure_id: str) -> tuple[Rows, Rows]:
    """Rows measured, and rows looked at, in the shards of all measurements but one."""
    found: tuple[list[Rows], list[Rows]] = [], []
    for directory in sorted(paths.shards.iterdir()) if paths.shards.is_dir() else []:
        name = directory.name.removesuffix(LOOKS).removesuffix(SHARED)
        if name != measure_id and directory.is_dir():
            of_kind = found[directory.name.endswith(LOOKS)]
            of_kind += [shard.rows for shard in ShardFiles(directory).load()]
    measured, looked = (np.concatenate([np.zeros(0, np.int64), *rows]) for rows in found)
    return measured, looked


def clear_shards(paths: StorePaths, *, before_ns: int | None = None) -> list[str]:
    """Forget the shards of every measurement; returns the directories that went.

    Args:
        paths: The store's paths.
        before_ns: Spare a measurement with a shard that is newer than this file time.
    """
    directories = sorted(paths.shards.iterdir()) if paths.shards.is_dir() else []
    cleared = []
    with files.clear_write_errors(paths.shards):
        for directory in directories:
            times = []
            for shard in directory.glob("*"):
                with suppress(FileNotFoundError):  # a worker on another host has moved it
                    times.append(shard.stat().st_mtime_ns)
            if before_ns is None or all(time <= before_ns for time in times):
                remove_whole(directory)
                cleared.append(paths.relative(directory))
    return cleared


def remove_whole(directory: Path) -> None:
    """Remove a directory of shards in which workers may still write: they meet none."""
    away = files.temporary_path(directory)
    try:
        files.replace(directory, away)
    except FileNotFoundError:
        return
    files.remove(away)


def _pack(shard: Measurement, made_by: str = "") -> bytes:
    buffer = io.BytesIO()
    names = np.array(list(shard.scores), dtype=np.str_)
    scores = np.array(list(shard.scores.values()), dtype=np.float32)
    arrays = {"rows": shard.rows, "features": shard.features, "names": names, "scores": scores}
    if shard.sketches is not None:
        arrays["sketches"] = shard.sketches
    if made_by:
        arrays["made_by"] = np.array(made_by)
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    content = buffer.getvalue()
    return hashlib.sha256(content).digest() + content


def write_shard(path: Path, shard: Measurement, made_by: str) -> bool:
    """Write a finished shard into a directory that exists; True. Raises OSError.

    Args:
        path: The file.
        shard: What was measured.
        made_by: With which code, on which device.
    """
    temporary = files.temporary_path(path)
    try:
        content = _pack(shard, made_by)
        files.fill(temporary, lambda path: _write(path, content))
        files.sync_file(temporary)
        files.replace_surely(temporary, path)
    finally:
        files.remove(temporary)
    return True


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def is_whole_shard(path: Path) -> bool:
    """Whether a shard is as it was written, or gone meanwhile."""
    return not path.exists() or _content(path) is not None


def _content(path: Path) -> bytes | None:
    """The npz file of a shard; None where it is damaged or cannot be read."""
    try:
        packed = path.read_bytes()
    except OSError:
        return None
    digest, content = packed[:_DIGEST_BYTES], packed[_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def read_shard(path: Path, made_by: str | None = None) -> Measurement | None:
    """A finished shard; None where it is damaged, cannot be read, or has another maker."""
    content = _content(path)
    if content is None:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        if made_by is not None and str(file.get("made_by", "")) != made_by:
            return None
        scores = dict(zip(file["names"].tolist(), file["scores"], strict=True))
        return Measurement(
            rows=file["rows"],
            scores=scores,
            features=file["features"],
            sketches=file.get("sketches"),
        )
