"""One writer per store: a lock on `.lock`, and who holds it in `.lock.json`.

The system drops the lock when its holder dies, however it dies, so a holder file without a lock
is stale and is taken over. Readers never lock.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from gracekit.errors import StoreLockedError
from gracekit.files import clear_write_errors, make_directory, remove, write_text_atomic
from gracekit.store.paths import StorePaths

logger = logging.getLogger(__name__)

_held: dict[Path, int] = {}
"""Stores locked by this process -> the thread that did."""
_guard = threading.Lock()


@contextmanager
def lock_store(root: Path, *, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a store, which need not exist yet. May be nested within a thread.

    Raises:
        StoreLockedError: Another process or thread holds it, after waiting `timeout_s`.
        StoreWriteError: The directory cannot be written.
    """
    paths = StorePaths(root)
    me = threading.get_ident()
    with _guard:
        owner = _held.get(paths.root)
        if owner not in {None, me}:
            raise StoreLockedError(f"another thread of this process works on the store {root}")
        _held[paths.root] = me
    if owner == me:
        yield
        return
    try:
        with _hold(paths, timeout_s):
            yield
    finally:
        with _guard:
            del _held[paths.root]


@contextmanager
def _hold(paths: StorePaths, timeout_s: float) -> Iterator[None]:
    with clear_write_errors(paths.lock):
        make_directory(paths.root)
        lock = FileLock(str(paths.lock), thread_local=False)
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout:
            raise StoreLockedError(_who(paths)) from None
    try:
        stale = _holder(paths)
        if stale:
            logger.info("took over the lock of process %s, which has ended", stale.get("pid"))
        _sign(paths)
        yield
    finally:
        # Unsigned before released: afterwards the file may be the next holder's.
        with suppress(OSError):
            remove(paths.lock_holder)
        lock.release()


def _sign(paths: StorePaths) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text_atomic(paths.lock_holder, json.dumps(holder) + "\n")


def _holder(paths: StorePaths) -> dict[str, object]:
    try:
        content = json.loads(paths.lock_holder.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _who(paths: StorePaths) -> str:
    holder = _holder(paths)
    if not holder:
        return f"another process works on the store {paths.root}; wait for it or stop it"
    pid, host = holder.get("pid"), holder.get("host")
    message = (
        f"process {pid} on {host} works on the store {paths.root} since {holder.get('since')}; "
        "wait for it or stop it"
    )
    if host == socket.gethostname() and isinstance(pid, int) and not is_alive(pid):
        message = (
            f"the store {paths.root} is locked in the name of process {pid}, which has ended: a "
            f"child of it still runs (stop that), or the file system keeps locks of the dead "
            f"(then delete {paths.lock})"
        )
    return message


def is_alive(pid: int) -> bool:
    """Whether a process of that number runs on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
