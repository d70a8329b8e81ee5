"""`leases/*.json`: which versions a running trainer draws from, so that gc leaves them.

The trainer's side writes, as well as it can: a store that it cannot write to is no obstacle to
training. A lease ends with its process; one from another host, where that cannot be seen, when it
was not renewed for `LIFE_S`.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gracekit import files
from gracekit.store.files.lock import is_alive
from gracekit.store.files.paths import StorePaths

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
            "host": socket.gethostname(),
            "pid_namespace": _pid_namespace(),
            "versions": sorted(versions),
            "unix_time": time.time(),
        }
        temporary = files.temporary_path(self._file)
        with suppress(OSError):
            files.make_directory(self._file.parent)
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
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


def followers(paths: StorePaths, *, now: float | None = None) -> list[Follower]:
    """All leases of a store, those that no longer hold included.

    Args:
        paths: The store's paths.
        now: Seconds since the epoch; default: the clock.
    """
    now = time.time() if now is None else now
    found = (_follower(path, now) for path in sorted(paths.leases.glob("*.json")))
    return [follower for follower in found if follower is not None]


def followed(paths: StorePaths) -> dict[int, str]:
    """Versions that a running trainer draws from -> who that is."""
    return {
        version: follower.who
        for follower in followers(paths)
        if follower.holds
        for version in follower.versions
    }


def _follower(path: Path, now: float) -> Follower | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pid, host = int(content["pid"]), str(content["host"])
        is_here = (host, content["pid_namespace"]) == (socket.gethostname(), _pid_namespace())
        versions = tuple(int(version) for version in content["versions"])
        age_s = now - float(content["unix_time"])
    except OSError:  # released just now
        return None
    except (ValueError, KeyError, TypeError):
        return Follower(file=path, who="a lease that cannot be read", versions=(), holds=False)
    holds = is_alive(pid) if is_here else age_s < LIFE_S
    return Follower(file=path, who=f"process {pid} on {host}", versions=versions, holds=holds)


def _pid_namespace() -> str:
    """Where this process's number counts: containers of one host may share its name."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
