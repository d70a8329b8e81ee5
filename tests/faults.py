"""Faults in the one file layer: a process dies or a disk fails at the k-th operation."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gracekit import files, leftovers

OPERATIONS = (
    "fill", "sync_file", "sync_directory", "replace", "link", "make_directory", "remove",
)  # fmt: skip


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it, and nothing after it happens."""


@contextmanager
def on_operation(react: Callable[[int, str, Path], None]) -> Iterator[list[str]]:
    """Call `react(count, name, path)` before every operation; yields the names seen."""
    seen: list[str] = []
    originals = {name: getattr(files, name) for name in OPERATIONS}

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(path: Path, *rest: Any) -> Any:
            seen.append(name)
            react(len(seen), name, path)
            return original(path, *rest)

        return operation

    for name, original in originals.items():
        setattr(files, name, wrap(name, original))
    try:
        yield seen
    finally:
        for name, original in originals.items():
            setattr(files, name, original)


@contextmanager
def killed_at(k: int, *, torn: bool = False) -> Iterator[list[str]]:
    """Die before the k-th operation and at every later one; `torn` leaves half a file at a fill."""

    def react(count: int, name: str, path: Path) -> None:
        if count < k:
            return
        if torn and count == k and name == "fill":
            (path / "half" if path.is_dir() else path).write_bytes(b"half of a")
        raise Killed

    with on_operation(react) as seen:
        yield seen


@contextmanager
def failing_at(k: int, number: int) -> Iterator[list[str]]:
    """Let the k-th operation alone fail with an OSError of that errno."""

    def react(count: int, name: str, path: Path) -> None:
        if count == k:
            raise OSError(number, os.strerror(number), str(path))

    with on_operation(react) as seen:
        yield seen


@contextmanager
def lying_at(k: int, number: int) -> Iterator[list[str]]:
    """Let the k-th operation do its work and then tell an OSError of that errno."""
    with _in_place_of(k, lambda work: _fails_after(work, number)) as seen:
        yield seen


@contextmanager
def idle_at(k: int) -> Iterator[list[str]]:
    """Let the k-th operation do nothing and tell that it is done."""
    with _in_place_of(k, lambda work: None) as seen:
        yield seen


def _fails_after(work: Callable[[], object], number: int) -> None:
    work()
    raise OSError(number, os.strerror(number))


@contextmanager
def _in_place_of(k: int, other: Callable[[Callable[[], object]], object]) -> Iterator[list[str]]:
    """Do `other` with the k-th operation; yields the names seen."""
    seen: list[str] = []
    originals = {name: getattr(files, name) for name in OPERATIONS}

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any) -> Any:
            seen.append(name)
            if len(seen) == k:
                return other(lambda: original(*arguments))
            return original(*arguments)

        return operation

    for name, original in originals.items():
        setattr(files, name, wrap(name, original))
    try:
        yield seen
    finally:
        for name, original in originals.items():
            setattr(files, name, original)


def count_operations(work: Callable[[], object]) -> list[str]:
    """The operations of a piece of work, in order."""
    with on_operation(lambda count, name, path: None) as seen:
        work()
    return seen


@contextmanager
def as_a_process_that_ends() -> Iterator[None]:
    """What is made in the block bears the name of a process that has ended since."""
    ended = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    maker = leftovers._maker(ended.pid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leftovers, "_maker", lambda pid: maker)
        yield
    ended.communicate()
