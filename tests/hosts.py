"""Processes on several hosts, simulated in this one: real code, and one seed for all that happens.

Each process is a thread, of which one runs at a time. Before every file operation, and wherever it
sleeps or waits, the next one is drawn; time passes between. A process may die at such a point
(nothing that it would do later happens), meet a failing or lying disk, or be held up for so long
that others take it for dead. Hosts have names, boots, process numbers and clocks of their own.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gracekit import process as processes
from gracekit.refresher import joining, sharing
from gracekit.store import SharedWork
from gracekit.store.files import claims, lock, shared_work
from tests.faults import (
    DISK,
    Fault,
    Killed,
    Work,
    answered,
    disk_fails,
    disk_fails_after,
    tear,
    told_as_done,
)

KINDS = (
    "killed", "killed after", "killed half-way", "disk full", "disk fails", "told as failed",
    "told as done", "held up",
)  # fmt: skip
HELD_UP_S = 400.0
"""Several leases."""
_MOST_POINTS = 200_000
_FAILURES: dict[str, Fault] = {
    "disk full": disk_fails(errno.ENOSPC),
    "disk fails": disk_fails(errno.EIO),
    "told as failed": disk_fails_after(errno.EIO),
    "told as done": told_as_done,
}


@dataclass(eq=False)
class Host:
    """A machine, or a container of one."""

    name: str
    boot: str = "00000000-0000-0000-0000-000000000001"
    namespace: str = "pid:[1]"
    rate: float = 1.0
    """Seconds that its clock shows for each second."""
    offset_s: float = 0.0


@dataclass(eq=False)
class Process:
    """Work on a host; `result` or `error` tell how it ended, neither that it was killed."""

    host: Host
    pid: int
    name: str
    at: int
    """Number of the operation at which it meets its fault; 0: never."""
    kind: str
    is_dead: bool = False
    result: Any = None
    error: BaseException | None = None
    num_operations: int = 0
    threads: list[_Thread] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return all(thread.is_over for thread in self.threads)


class Room:
    """Where the hosts are; `entered` while they work.

    Args:
        rng: Draws who is next.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.now, self.met = rng, 0.0, Counter[str]()
        self.running: _Thread | None = None
        self.all: list[Process] = []
        self.back = threading.Semaphore(0)
        self._num_points = 0

    def start(
        self, host: Host, name: str, work: Work, *, at: int = 0, kind: str = "killed"
    ) -> Process:
        """A process that meets a fault of a kind at its so-many-th operation."""
        pid = 1 + sum(other.host is host for other in self.all)  # as in a container
        process = Process(host, pid, name, at, kind)
        self.all.append(process)

        def main() -> None:
            process.result = work()

        process.threads.append(_Thread(self, process, main))
        return process

    def wait(self, process: Process) -> None:
        """From within another process: until it has ended."""
        self.pause(lambda: process.is_over)

    def run(self) -> None:
        """Until all processes have ended."""
        while waiting := [t for p in self.all for t in p.threads if not t.is_over]:
            ready = [t for t in waiting if t.is_ready(self.now)]
            if not ready:
                self.now = min(t.wake_at for t in waiting)
                assert self.now < float("inf"), "all wait for each other"
                continue
            self._num_points += 1
            assert self._num_points < _MOST_POINTS, "it never ends"
            self.now += self.rng.random() * 0.02
            self.running = self.rng.choice(ready)
            self.running.go.release()
            self.back.acquire()
            self.running = None

    @property
    def process(self) -> Process:
        assert self.running is not None
        return self.running.process

    def clock(self) -> float:
        """Of the host that asks."""
        host = self.process.host
        return host.offset_s + host.rate * self.now

    def sleep(self, seconds: float) -> None:
        """By the host's clock."""
        self.pause(lambda: False, seconds / self.process.host.rate)

    def pause(self, is_due: Callable[[], bool] = lambda: True, most_s: float | None = None) -> None:
        """Let others go on until it is due, or for so many seconds."""
        thread = self.running
        assert thread is not None
        thread.is_due = is_due
        thread.wake_at = float("inf") if most_s is None else self.now + most_s
        self.back.release()
        thread.go.acquire()
        if thread.process.is_dead:
            raise Killed

    def _answer(self, count: int, name: str, call: Work, arguments: tuple[Any, ...]) -> Any:
        """A file operation of a process, or of the test itself."""
        if self.running is None:
            return call()
        process = self.process
        if process.is_dead:
            raise Killed
        self.pause()
        process.num_operations += 1
        if process.num_operations != process.at:
            return call()
        self.met[process.kind] += 1
        if process.kind in _FAILURES:
            return _FAILURES[process.kind](name, call)
        if process.kind == "held up":
            self.pause(lambda: False, HELD_UP_S)
            return call()
        if process.kind == "killed after":
            call()
        elif process.kind == "killed half-way":
            tear(name, arguments[0])
        self.kill(process)
        raise Killed

    def kill(self, process: Process) -> None:
        """It does nothing any more."""
        process.is_dead = True
        for thread in process.threads:
            thread.is_due = lambda: True

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Give the code of shared work these hosts, clocks, threads and disks."""
        with pytest.MonkeyPatch.context() as patch, answered([DISK], self._answer):
            for module in (sharing, joining, lock):
                patch.setattr(module, "time", _Time(self))
            patch.setattr(claims, "threading", _Threading(self))
            patch.setattr(SharedWork.__init__, "__defaults__", (self.clock,))
            real = (socket.gethostname, os.getpid, os.kill, processes.birth_of,
                    processes.pid_namespace)  # fmt: skip
            patch.setattr(socket, "gethostname", self._of_process(real[0], lambda p: p.host.name))
            patch.setattr(os, "getpid", self._of_process(real[1], lambda p: p.pid))
            patch.setattr(os, "kill", self._kill_of_system)
            own_space = self._of_process(real[4], lambda p: p.host.namespace)
            for module in (processes, claims, shared_work):
                patch.setattr(module, "pid_namespace", own_space)
            for module in (processes, claims):
                patch.setattr(module, "birth_of", self._birth_of)
            hook = sys.unraisablehook
            patch.setattr(sys, "unraisablehook", lambda u: _unless_killed(hook, u))
            yield

    def _of_process(self, real: Callable[[], Any], found: Callable[[Process], Any]) -> Any:
        return lambda: real() if self.running is None else found(self.process)

    def _seen(self, pid: int) -> Process | None:
        """The living process of this number on the host that asks."""
        return next(
            (
                p
                for p in self.all
                if p.host is self.process.host and p.pid == pid and self._lives(p)
            ),
            None,
        )

    @staticmethod
    def _lives(process: Process) -> bool:
        return not process.is_dead and not process.is_over

    def _birth_of(self, pid: int) -> str | None:
        found = self._seen(pid)
        if found is None:
            return None
        return f"{found.host.boot} {found.host.namespace} {1000 + self.all.index(found)}"

    def _kill_of_system(self, pid: int, number: int) -> None:
        assert number == 0, "nobody here kills"
        if self._seen(pid) is None:
            raise ProcessLookupError(errno.ESRCH, "no such process")


class _Thread:
    """One thread of a simulated process."""

    def __init__(self, room: Room, process: Process, work: Work) -> None:
        self.process, self.is_over = process, False
        self.wake_at = float("inf")
        self.is_due: Callable[[], bool] = lambda: True
        self.go = threading.Semaphore(0)
        self._room, self._work = room, work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def is_ready(self, now: float) -> bool:
        return now >= self.wake_at or self.is_due()

    def _run(self) -> None:
        self.go.acquire()
        try:
            if not self.process.is_dead:
                self._work()
        except Killed:
            pass
        except BaseException as error:
            self.process.error = error
        self.is_over = True
        self._room.back.release()


class _Time:
    """The module `time` as a process of the room has it."""

    def __init__(self, room: Room) -> None:
        self.monotonic, self.sleep = room.clock, room.sleep

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class _Threading:
    """The module `threading` as a process of the room has it."""

    def __init__(self, room: Room) -> None:
        class Event:
            def __init__(self) -> None:
                self._is_set = False

            def set(self) -> None:
                self._is_set = True

            def clear(self) -> None:
                self._is_set = False

            def wait(self, timeout: float) -> bool:
                room.pause(lambda: self._is_set, timeout / room.process.host.rate)
                return self._is_set

        class Thread:
            def __init__(self, *, target: Any, args: Any, name: str, daemon: bool) -> None:
                self._work = lambda: target(*args)

            def start(self) -> None:
                self._thread = _Thread(room, room.process, self._work)
                room.process.threads.append(self._thread)

            def join(self) -> None:
                room.pause(lambda: self._thread.is_over)

        self.Event, self.Thread = Event, Thread


def _unless_killed(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """A generator of a killed process that is let go of does nothing, and that is no error."""
    if not issubclass(unraisable.exc_type, Killed):
        hook(unraisable)
