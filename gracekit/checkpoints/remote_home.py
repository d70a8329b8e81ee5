"""The folder of this disk into which a URL is downloaded: one process at a time has it.

cache/HASH.lock    held while the folder is used; the system drops it when its holder dies
cache/HASH/        what was downloaded, where, and what is on its way
cache/HASH-1/      that of a second process, removed at its end
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gracekit import files
from gracekit.errors import StoreWriteError, UsageError
from gracekit.store import acquire_lock

logger = logging.getLogger(__name__)

NUM_UNUSED = 1
"""Folders of other URLs that stay when no process uses them, those that were used last."""
_LOOK_S = 0.5
_NAME = re.compile(r"[0-9a-f]{16}(-\d+)?")
_MOST_NAME_BYTES = 200


class RemoteHome:
    """The folder of one URL.

    Args:
        url: Its address.
        cache: Folder of this disk that holds those of all URLs.
        waits: Whether to wait for another process that has the folder; if not, a folder beside it
            is used, and removed by `close`.

    Raises:
        UsageError: The address has `.` or `..` as a part.
    """

    def __init__(self, url: str, cache: Path, *, waits: bool) -> None:
        parts = url.partition("://")[2].split("/")
        if not {".", ".."}.isdisjoint(parts):
            raise UsageError(f"{url} has . or .. as a part; expected an address without them")
        self._url = url
        self._cache = cache
        self._waits = waits
        self._lock: FileLock | None = None
        self._root = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
        # It may tell the step of a checkpoint.
        is_usable = 0 < len(os.fsencode(parts[-1])) <= _MOST_NAME_BYTES
        self._name = parts[-1] if is_usable else "run"

    @property
    def directory(self) -> Path:
        """Where the objects have their places; its name is the last part of the URL."""
        return self._root / "run" / self._name

    @property
    def arriving(self) -> Path:
        """Where downloads are until all of them are there."""
        return self._root / "arriving"

    @property
    def state(self) -> Path:
        """The file that tells what is there."""
        return self._root / "downloaded.json"

    def open(self, between: Callable[[], None]) -> bool:
        """Have the folder until `close`; whether that is new.

        Args:
            between: Called again and again while another process has it.

        Raises `StoreWriteError` where the folder cannot be made or locked.
        """
        if self._lock is not None:
            return False
        root, was_told = self._root, False
        for number in itertools.count(1):
            lock = _locked(self._root)
            if lock is not None:
                break
            if not was_told:
                what = "waiting for it" if self._waits else "downloading it a second time meanwhile"
                logger.info("another process uses the download of %s; %s", self._url, what)
                was_told = True
            if self._waits:
                between()
                time.sleep(_LOOK_S)
            else:
                self._root = root.with_name(f"{root.name}-{number}")
        self._lock = lock
        with files.clear_write_errors(self._root):
            files.make_directory(self._root)
            os.utime(self._root)
        self._remove_unused()
        return True

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock is None:
            return
        if _is_second(self._root):
            with suppress(OSError):
                files.remove(self._root)
        self._lock.release()
        self._lock = None

    def _remove_unused(self) -> None:
        """Remove what was downloaded of other URLs, and what killed processes left."""
        with suppress(OSError, StoreWriteError):
            found = [p for p in self._cache.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)]
            found.sort(key=lambda path: (not _is_second(path), path.stat().st_mtime))
            others = [path for path in found if path != self._root]
            num_kept = 0
            for path in reversed(others):
                if (lock := _locked(path)) is None:
                    continue
                if not _is_second(path) and num_kept < NUM_UNUSED:
                    num_kept += 1
                else:
                    logger.info("removing %s: no process uses it", path)
                    files.remove(path)
                lock.release()


def _locked(root: Path) -> FileLock | None:
    """The lock of a folder, which need not exist yet; None where another process has it."""
    path = root.with_name(f"{root.name}.lock")
    with files.clear_write_errors(path):
        files.make_directory(root)
        lock = FileLock(str(path), thread_local=False)
        try:
            acquire_lock(lock, timeout=0)
        except Timeout:
            return None
    return lock


def _is_second(root: Path) -> bool:
    return "-" in root.name
