"""Who may work on a store: one writer at a time, and one daemon.

The writer's lock, `.lock`, is held while versions are made or removed; the daemon's,
`.daemon.lock`, for as long as a daemon runs. Beside each, a JSON file says who holds it. The system
drops a lock when its holder dies, however it dies, so a holder file without a lock is stale and is
taken over. Readers never lock.

On a file system without such locks (`flock`) nothing is written. `filelock` would fall back there
to a file whose presence is the lock: it outlives a killed holder, and other hosts may see it late.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from gracekit.documents import read_json
from gracekit.errors import GracekitError, StoreLockedError, StoreWriteError
from gracekit.files import clear_write_errors, fill, make_directory, remove
from gracekit.process import birth_of, is_alive
from gracekit.store.files.paths import StorePaths
from gracekit.types import Json

logger = logging.getLogger(__name__)

WAIT_S = 10.0
"""Seconds that a writer waits for another one, where nothing else is said."""
_LOOK_S = 0.05
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}

_held: dict[Path, int] = {}
"""Lock files held by this process -> the thread that took them."""
_unfinished: set[Path] = set()
"""Of these the ones whose holder has told that it leaves something to clean up."""
_guard = threading.Lock()


@contextmanager
def lock_store(root: Path, *, timeout_s: float | None = None) -> Iterator[bool]:
    """Be the only writer of a store, which need not exist yet. May be nested within a thread.

    Yields whether the holder before was killed or failed, so that there may be something to clean
    up. An error that leaves this block counts as a failure, but for those that tell of the caller's
    own input (every `GracekitError` besides `StoreWriteError`).

    Args:
        root: The store.
        timeout_s: Seconds to wait for another writer; default: `WAIT_S`.

    Raises:
        StoreLockedError: Another process or thread still holds it then.
        StoreWriteError: The directory cannot be written.
    """
    paths = StorePaths(root)
    timeout_s = WAIT_S if timeout_s is None else timeout_s
    what = f"works on the store {paths.root}"
    with _hold(paths, paths.lock, what, timeout_s, {}, tells_failure=True) as is_unfinished:
        yield is_unfinished


def holds_lock(root: Path) -> bool:
    """Whether this thread is the store's writer already."""
    with _guard:
        return _held.get(StorePaths(root).lock) == threading.get_ident()


def tell_unfinished(root: Path) -> None:
    """Let the next writer clean up; for a failure that is no error for the caller. Without the lock
    this does nothing.
    """
    with _guard:
        if StorePaths(root).lock in _held:
            _unfinished.add(StorePaths(root).lock)


@contextmanager
def lock_daemon(root: Path, checkpoint_dir: Path) -> Iterator[None]:
    """Be the only daemon of a store, which need not exist yet.

    Raises:
        StoreLockedError: Another process or thread is.
        StoreWriteError: The directory cannot be written.
    """
    paths = StorePaths(root)
    about = {"checkpoint_dir": str(checkpoint_dir.absolute())}
    with _hold(paths, paths.daemon_lock, f"is the daemon of the store {paths.root}", 0.0, about):
        yield


@contextmanager
def _hold(
    paths: StorePaths,
    lock_path: Path,
    what: str,
    timeout_s: float,
    about: Json,
    *,
    tells_failure: bool = False,
) -> Iterator[bool]:
    """Hold one lock within this process and among processes, in the holder file's name."""
    me = threading.get_ident()
    deadline = time.monotonic() + timeout_s
    while (owner := _claim(lock_path, me)) not in {None, me}:
        if time.monotonic() >= deadline:
            raise StoreLockedError(f"another thread of this process {what}")
        time.sleep(_LOOK_S)
    if owner == me:
        yield False
        return
    try:
        held = _hold_file(paths, lock_path, what, deadline, about, tells_failure=tells_failure)
        with held as is_unfinished:
            yield is_unfinished
    finally:
        with _guard:
            del _held[lock_path]


def _claim(lock_path: Path, me: int) -> int | None:
    """The thread that holds the lock already; None when it is ours now."""
    with _guard:
        owner = _held.get(lock_path)
        if owner is None:
            _held[lock_path] = me
        return owner


@contextmanager
def _hold_file(
    paths: StorePaths,
    lock_path: Path,
    what: str,
    deadline: float,
    about: Json,
    *,
    tells_failure: bool,
) -> Iterator[bool]:
    """Hold the lock among processes; `tells_failure` leaves the holder file after a failure."""
    holder_path = paths.holder_of(lock_path)
    with clear_write_errors(lock_path):
        make_directory(paths.root)
        lock = FileLock(str(lock_path), thread_local=False)
        try:
            acquire_lock(lock, timeout=0)
        except Timeout:
            who = _who(holder_path, lock_path, what)
            left_s = deadline - time.monotonic()
            if left_s > 0:
                logger.info("waiting up to %.0f s: %s", left_s, who)
            try:
                acquire_lock(lock, timeout=max(left_s, 0))
            except Timeout:
                who = _who(holder_path, lock_path, what)
                raise StoreLockedError(f"{who}; wait for it or stop it") from None
    is_finished = True
    try:
        stale = _holder(holder_path)
        if stale:
            logger.info("%s", _what_it_left(stale))
        _sign(holder_path, about)
        try:
            yield bool(stale)
        except BaseException as error:
            is_input = isinstance(error, GracekitError) and not isinstance(error, StoreWriteError)
            is_finished = is_input or not tells_failure
            raise
    finally:
        # Unsigned before released: afterwards the file may be the next holder's.
        if is_finished and lock_path not in _unfinished:
            with suppress(OSError):
                remove(holder_path)
        _unfinished.discard(lock_path)
        lock.release()


def acquire_lock(lock: FileLock, timeout: float) -> None:
    """Take a lock that the system keeps; `StoreWriteError` where the file system has none.

    Raises `filelock.Timeout` where it is still held after so many seconds.
    """
    try:
        with warnings.catch_warnings():  # of the fallback
            warnings.simplefilter("ignore")
            lock.acquire(timeout=timeout, poll_interval=_LOOK_S)
    except Timeout:
        if isinstance(lock, SoftFileLock):
            raise _without_locks(lock.lock_file) from None
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise _without_locks(lock.lock_file) from error
        raise
    if isinstance(lock, SoftFileLock):
        lock.release()
        raise _without_locks(lock.lock_file)


def _without_locks(lock_file: str) -> StoreWriteError:
    return StoreWriteError(
        f"cannot lock {lock_file}: its file system has no locks (flock), which keep two writers "
        "apart. Mount it with locks, or move the store to a file system that has them; reading it "
        "needs none"
    )


def _what_it_left(holder: Json) -> str:
    pid, host = holder.get("pid"), holder.get("host")
    if host == socket.gethostname() and is_alive(pid, holder.get("birth")):
        return f"process {pid} wrote last and failed; what it left is cleaned up"
    return f"took over the lock of process {pid}, which has ended"


def _sign(holder_path: Path, about: Json) -> None:
    holder = {
        "pid": os.getpid(),
        "birth": birth_of(os.getpid()),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        **about,
    }
    text = json.dumps(holder) + "\n"
    # In place: the clean-up of a writer beside a daemon would remove an unfinished file.
    with clear_write_errors(holder_path):
        fill(holder_path, lambda path: _write(path, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _holder(holder_path: Path) -> Json:
    try:
        content = read_json(holder_path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _who(holder_path: Path, lock_path: Path, what: str) -> str:
    holder = _holder(holder_path)
    if not holder:
        return f"another process {what}"
    pid, host = holder.get("pid"), holder.get("host")
    if host == socket.gethostname() and not is_alive(pid, holder.get("birth")):
        return (
            f"process {pid}, which has ended, {what} by its lock: a child of it still runs (stop "
            f"that), or the file system keeps locks of the dead (then delete {lock_path})"
        )
    return f"process {pid} on {host} {what} since {holder.get('since')}"
