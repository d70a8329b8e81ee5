"""Faults at the k-th operation: of the one file layer, or of any layer whose functions are named.

A layer is a module whose functions others call by the module's name. What is put in their place
counts all calls of all layers together, so that a process may die between a request to an object
store and a rename on the disk.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gracekit import files, leftovers

OPERATIONS = (
    "fill", "create", "sync_file", "sync_directory", "replace", "link", "make_directory", "remove",
)  # fmt: skip

Layer = tuple[ModuleType, tuple[str, ...]]
"""A module, and the names of its functions."""
DISK: Layer = (files, OPERATIONS)
Work = Callable[[], Any]
Answer = Callable[[int, str, Work, tuple[Any, ...]], Any]
"""Given the number of a call from 1, its name, the call itself and its arguments; returns what the
caller gets."""
Fault = Callable[[str, Work], Any]
"""Given the name of a call and the call itself; returns what the caller gets."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it, and nothing after it happens."""


@contextmanager
def answered(layers: Sequence[Layer], answer: Answer) -> Iterator[list[str]]:
    """Let `answer` answer every call of some layers; yields the names seen."""
    seen: list[str] = []

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            seen.append(name)
            return answer(len(seen), name, lambda: original(*arguments), arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, names in layers:
            for name in names:
                patch.setattr(module, name, wrap(name, getattr(module, name)))
        yield seen


@contextmanager
def faulted(
    layers: Sequence[Layer], is_meant: Callable[[int, str], bool], fault: Fault
) -> Iterator[list[str]]:
    """Let `fault` answer the calls that are meant, by number from 1 and name; yields the names."""

    def answer(count: int, name: str, call: Work, arguments: tuple[Any, ...]) -> Any:
        return fault(name, call) if is_meant(count, name) else call()

    with answered(layers, answer) as seen:
        yield seen


@contextmanager
def on_operation(react: Callable[[int, str, Path], None]) -> Iterator[list[str]]:
    """Call `react(count, name, path)` before every operation; yields the names seen."""

    def answer(count: int, name: str, call: Work, arguments: tuple[Any, ...]) -> Any:
        react(count, name, arguments[0])
        return call()

    with answered([DISK], answer) as seen:
        yield seen


def tear(name: str, path: Path) -> None:
    """Leave half of what a `fill` or a `create` was to write."""
    if name in ("fill", "create"):
        (path / "half" if path.is_dir() else path).write_bytes(b"half of a")


@contextmanager
def killed_at(k: int, *, torn: bool = False) -> Iterator[list[str]]:
    """Die before the k-th operation and at every later one; `torn` leaves half a file at a fill."""

    def react(count: int, name: str, path: Path) -> None:
        if count < k:
            return
        if torn and count == k:
            tear(name, path)
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


def lying_at(k: int, number: int) -> AbstractContextManager[list[str]]:
    """Let the k-th operation do its work and then tell an OSError of that errno."""
    return faulted([DISK], lambda count, name: count == k, disk_fails_after(number))


def idle_at(k: int) -> AbstractContextManager[list[str]]:
    """Let the k-th operation do nothing and tell that it is done."""
    return faulted([DISK], lambda count, name: count == k, told_as_done)


def disk_fails(number: int) -> Fault:
    """The operation is not done, and this is why."""

    def fault(name: str, call: Work) -> Any:
        raise OSError(number, os.strerror(number), name)

    return fault


def disk_fails_after(number: int) -> Fault:
    """The operation is done, and told as failed."""

    def fault(name: str, call: Work) -> Any:
        call()
        raise OSError(number, os.strerror(number), name)

    return fault


def told_as_done(name: str, call: Work) -> Any:
    """The call is not done, and nothing says so: for calls that answer nothing."""


def kill(name: str, call: Work) -> Any:
    """The process ends before the call; to be meant for all later ones too."""
    raise Killed


def kill_after(name: str, call: Work) -> Any:
    """The process ends when the call was done and its answer is not there yet."""
    call()
    raise Killed


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
