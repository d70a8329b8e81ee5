"""What killed processes left behind, told from what a living one is at work on.

The name of every temporary file and directory says who made it: the process, and a digest of the
host, boot and container that its number counts in. Whoever comes to the same place later removes
what its maker, which has ended, left there, and never what a living one still writes. Of a maker
that cannot be seen from here (another host, an earlier boot, an earlier release, whose names say
nothing) that counts as left which nobody has changed for a day.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from gracekit.errors import StoreWriteError
from gracekit.process import birth_of, is_alive, pid_namespace

MARK = ".partial-"
"""Part of every temporary name beside the place that it is for."""
UNCHANGED_S = 86_400.0
"""Seconds after which what a process that cannot be seen made counts as left."""
_SCRATCH_UNCHANGED_S = 7 * UNCHANGED_S
"""The same of folders for temporary files: one may lie idle for as long as a notebook is open."""
_MAKER = r"-(?P<pid>\d+)-(?P<where>[0-9a-f]{8})-(?P<start>\d+)"
_BESIDE = re.compile(rf"(?P<final>.+){re.escape(MARK)}[0-9a-f]{{8}}(?:{_MAKER})?", re.DOTALL)
_SCRATCH = re.compile(rf"gracekit-[a-z]+-[0-9a-f]{{8}}{_MAKER}")


def token() -> str:
    """A fresh part of a name, which says that this process made it."""
    return f"{secrets.token_hex(4)}-{_maker(os.getpid())}"


def left_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """What processes that have ended left in a folder on the way to a place in it.

    Yields:
        The name of the place, cut where both together were too long for a name, and what was left.

    Raises:
        OSError: The folder cannot be listed.
    """
    for path in sorted(folder.iterdir()):
        found = _BESIDE.fullmatch(path.name)
        if found is not None and _is_left(found, path):
            yield found["final"], path


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder for temporary files that only this user can open; it goes with the block.

    Args:
        purpose: Lower-case letters: part of its name.

    Raises:
        StoreWriteError: It cannot be made.
    """
    folder = make_scratch_folder(purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_scratch_folder(purpose: str) -> Path:
    """The same, for the caller to remove. Those of processes that have ended are removed first."""
    parent = temporary_directory()
    try:
        sweep_scratch_folders(parent)
        while True:
            folder = parent / f"gracekit-{purpose}-{token()}"
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                return folder
    except OSError as error:
        raise _no_room(f"in {parent}", error) from error


def remove_own_folders(parent: Path, purpose: str) -> None:
    """Remove what `make_scratch_folder` made in a directory for this process and purpose."""
    for folder in parent.glob(f"gracekit-{purpose}-*-{_maker(os.getpid())}"):
        shutil.rmtree(folder, ignore_errors=True)


def temporary_directory() -> Path:
    """Where temporary files go; raises `StoreWriteError` where there is no place for them."""
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise _no_room("anywhere", error) from error


def _no_room(where: str, error: OSError) -> StoreWriteError:
    return StoreWriteError(
        f"cannot make a folder for temporary files {where}: {error.strerror or error}; "
        "free some space there, or set TMPDIR to a directory that can be written"
    )


def sweep_scratch_folders(parent: Path) -> None:
    """Remove those of this user's processes that have ended."""
    with suppress(OSError):
        for path in parent.glob("gracekit-*"):
            found = _SCRATCH.fullmatch(path.name)
            with suppress(OSError):
                is_own = found is not None and path.lstat().st_uid == os.getuid()
                if found is not None and is_own and _is_left(found, path, _SCRATCH_UNCHANGED_S):
                    shutil.rmtree(path, ignore_errors=True)


def _is_left(found: re.Match[str], path: Path, unchanged_s: float = UNCHANGED_S) -> bool:
    """Whether the maker has ended; where that is not seen, whether nothing changed for so long."""
    if found["where"] == _where():
        own = (birth_of(os.getpid()) or "").split()
        is_known = len(own) == 3 and int(found["start"]) > 0
        birth = f"{own[0]} {own[1]} {found['start']}" if is_known else None
        return not is_alive(int(found["pid"]), birth)
    try:
        changed = max(_changed(path))
    except OSError:  # it goes at this moment
        return False
    return time.time() - changed > unchanged_s


def _changed(path: Path) -> Iterator[float]:
    """When each thing at and below a path was changed."""
    yield path.lstat().st_mtime
    for folder, folders, names in os.walk(path):
        for name in [*folders, *names]:
            yield (Path(folder) / name).lstat().st_mtime


@cache
def _maker(pid: int) -> str:
    """The process in a name: its number, where that counts, and when it began; 0: unknown."""
    start = (birth_of(pid) or "0").split()[-1]
    return f"{pid}-{_where()}-{start}"


@cache
def _where() -> str:
    """Digest of where the numbers of processes count that can be seen from here."""
    boot = (birth_of(os.getpid()) or "").partition(" ")[0]
    place = [socket.gethostname(), boot, pid_namespace()]  # known also where no birth is
    return hashlib.sha256("\n".join(place).encode()).hexdigest()[:8]
