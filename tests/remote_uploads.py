"""Checkpoints that are uploaded to an object store, one object after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gracekit.remote import RemoteFolder


def upload(folder: RemoteFolder, source: Path, name: str = "") -> None:
    """All files of a directory, by name, below `name` (default: the directory's own)."""
    for _ in uploading(folder, source, name):
        pass


def uploading(folder: RemoteFolder, source: Path, name: str = "") -> Iterator[str]:
    """The same, one object at each step; yields their names."""
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        object_name = f"{name or source.name}/{path.relative_to(source).as_posix()}"
        folder.write(object_name, path)
        yield object_name


def remove(folder: RemoteFolder, name: str) -> None:
    """A whole folder."""
    for found in folder.list(name):
        folder.remove(found)


def files_below(directory: Path) -> dict[str, bytes]:
    """Every file of a directory, by name."""
    return {
        p.relative_to(directory).as_posix(): p.read_bytes()
        for p in directory.rglob("*")
        if p.is_file()
    }
