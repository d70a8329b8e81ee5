"""`leases/*.json`: which versions a running trainer draws from, so that gc leaves them.

The trainer's side writes, as well as it can: a store that it cannot write to is no obstacle to
training. A lease ends with its process; one from another host, where that cannot be seen, and one
that cannot be read, when it was not renewed for `LIFE_S`.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gracekit import files
from gracekit.documents import read_json
from gracekit.errors import StoreFormatError
from gracekit.foreign import finite_number, foreign, whole_number
from gracekit.process import birth_of, is_alive, pid_namespace
from gracekit.store.files.formats import unreadable
from gracekit.store.files.paths import StorePaths, names_in
from gracekit.store.files.sealing import sealed_json

BEAT_S = 60.0
"""Seconds after which a trainer that draws renews its lease."""
RETRY_S = 1.0
"""Seconds after which it tries again where it could not: a store may be read-only."""
LIFE_S = 24 * 3600.0
"""Seconds that a lease from another host holds. Long, for evaluations between two draws: it costs
no more than to keep a version for a day."""


class Lease:
    """A trainer's own lease on versions of a store, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self._paths = StorePaths(root)
        self._file = self._paths.leases / f"{secrets.token_hex(8)}.json"
        self._versions: frozenset[int] = frozenset()
        self._due = 0.0
        weakref.finalize(self, _release, self._file, os.getpid())

    def add(self, version: int) -> None:
        """Hold this version too; to be called before it is read."""
        if version not in self._versions:
            self._write(self._versions | {version})

    def limit(self, versions: set[int]) -> None:
        """Let go of all but these."""
        if not self._versions <= versions:
            self._write(self._versions & versions)

    def keep(self) -> None:
        """Renew what is held, if the last time is long enough ago."""
        if self._versions and time.monotonic() >= self._due:
            self._write(self._versions)

    def release(self) -> None:
        """Let go of all."""
        self.limit(set())

    def _write(self, versions: frozenset[int]) -> None:
        """Swap the file, unsynced: after a crash of the machine no trainer runs anyway."""
        self._versions, self._due = versions, time.monotonic() + RETRY_S
        if not versions:
            _release(self._file, os.getpid())
            return
        if not self._paths.info.is_file():  # not made yet, or a copy of the manifests alone
            return
        content = {
            "pid": os.getpid(),
            "birth": birth_of(os.getpid()),
            "host": socket.gethostname(),
            "pid_namespace": pid_namespace(),
            "versions": sorted(versions),
            "unix_time": time.time(),
        }
        temporary = files.temporary_path(self._file)
        with suppress(OSError):
            files.make_directory(self._file.parent)
            temporary.write_text(sealed_json(content), encoding="utf-8")
            files.replace(temporary, self._file)
            self._due += BEAT_S - RETRY_S


def _release(file: Path, pid: int) -> None:
    if os.getpid() == pid:  # not in a fork of the trainer, such as a worker that loads data
        with suppress(OSError):
            files.remove(file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Follower:
    """A lease as gc finds it."""

    file: Path
    who: str
    """For people."""
    versions: tuple[int, ...]
    holds: bool
    """False: the trainer has ended, or was not heard of for `LIFE_S`."""
    obstacle: StoreFormatError | None = None
    """Why it cannot be read, though it need not be damaged: while it holds, it may hold any."""


def followers(paths: StorePaths, *, now: float | None = None) -> list[Follower]:
    """All leases of a store, those that no longer hold included.

    Args:
        paths: The store's paths.
        now: Seconds since the epoch; default: the clock.
    """
    now = time.time() if now is None else now
    try:
        names = sorted(name for name in names_in(paths.leases) if name.endswith(".json"))
    except OSError as error:
        if (obstacle := unreadable(paths.leases, error)) is None:
            raise
        return [_unknown(paths.leases, obstacle)]
    found = (_follower(paths.leases / name, now) for name in names)
    return [follower for follower in found if follower is not None]


def followed(paths: StorePaths) -> dict[int, str]:
    """Versions that a running trainer draws from -> who that is."""
    return {
        version: follower.who
        for follower in followers(paths)
        if follower.holds
        for version in follower.versions
    }


def _unknown(path: Path, obstacle: StoreFormatError, *, holds: bool = True) -> Follower:
    who = "a lease that cannot be read"
    return Follower(file=path, who=who, versions=(), holds=holds, obstacle=obstacle)


def _is_overdue(path: Path, now: float) -> bool:
    try:
        return now - path.lstat().st_mtime >= LIFE_S
    except OSError:
        return False


def _follower(path: Path, now: float) -> Follower | None:
    try:
        with foreign(path, StoreFormatError):
            try:
                # Whatever its checksum: to hold what it says is safer than to hold nothing.
                content = read_json(path)
            except OSError as error:
                if (obstacle := unreadable(path, error)) is None:
                    return None  # released just now, or no file
                return _unknown(path, obstacle, holds=not _is_overdue(path, now))
            pid, host = content["pid"], str(content["host"])
            is_here = (host, content["pid_namespace"]) == (socket.gethostname(), pid_namespace())
            versions = tuple(content["versions"])
            written = finite_number(content["unix_time"])
            numbers = [whole_number(number) for number in (pid, *versions)]
            if written is None or None in numbers:
                raise StoreFormatError(f"{path} is no lease: its numbers make no sense")
    except StoreFormatError:
        return Follower(file=path, who="a lease that cannot be read", versions=(), holds=False)
    # One from the future, by another host's clock, holds until this clock is a day behind it.
    holds = is_alive(pid, content.get("birth")) if is_here else now - written < LIFE_S
    return Follower(file=path, who=f"process {pid} on {host}", versions=versions, holds=holds)
