"""The daemon: next complete checkpoint, refresh, publish; and what can go wrong between them.

The loop is over a generator of complete checkpoints, so that it has no clock of its own. One
daemon works on a store (lock). The last version stays valid whatever happens:

- A checkpoint that vanished, does not fit, or that the model pass fails on (no memory, nothing
  finite) is reported and skipped.
- A store that cannot be written (full or failing disk) is tried again with growing pauses.
- An error nobody foresaw is logged with its traceback, and the checkpoint skipped.
- What every checkpoint would meet (recipe, data, a damaged store) ends the daemon.

A stop request takes effect between two shards: finished shards are kept and the next start goes on
from them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from gracekit import files
from gracekit.errors import (
    CheckpointError,
    GracekitError,
    MeasureError,
    RefreshStoppedError,
    StoreWriteError,
)
from gracekit.types import Checkpoint, Json

if TYPE_CHECKING:
    from gracekit.refresher import Refresher, RefreshResult

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 300.0
IDLE_BEAT_S = 10.0
"""Seconds between two heartbeats of a waiting daemon, at least."""
OF_ONE_CHECKPOINT = (CheckpointError, MeasureError)
"""Errors that the next checkpoint may not have: this one is skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchReport:
    """What a daemon did until it ended."""

    num_published: int
    num_skipped: int
    was_stopped: bool


def watch(
    refresher: Refresher,
    checkpoint_dir: Path,
    *,
    stop: threading.Event,
    once: bool = False,
    max_checkpoints: int | None = None,
    on_version: Callable[[RefreshResult], None] = lambda result: None,
) -> WatchReport:
    """Follow `checkpoint_dir` until `stop` is set, one refresh for each complete checkpoint.

    Args:
        refresher: Made from the recipe; it holds the store's lock while this runs.
        checkpoint_dir: Where the trainer writes its checkpoints; may not exist yet.
        stop: Ends the loop after the shard in progress.
        once: Handle the newest complete checkpoint, if there is one, and return.
        max_checkpoints: Return after so many refreshes.
        on_version: Called with each new version.

    Raises:
        GracekitError: What every checkpoint would meet; with `once` also what this one met.
    """
    from gracekit.store import StorePaths

    num_published = num_skipped = 0
    with (
        refresher.locked() as store_root,
        heartbeats(StorePaths(store_root).heartbeat, checkpoint_dir) as heartbeat,
    ):
        for checkpoint in _checkpoints(refresher, checkpoint_dir, stop, once, heartbeat):
            heartbeat.beat("refreshing", checkpoint=checkpoint)
            try:
                result = _refresh_with_retries(refresher, checkpoint, stop, heartbeat)
            except OF_ONE_CHECKPOINT as error:
                if once:
                    raise
                logger.warning("skipping %s: %s", checkpoint.path.name, error)
                heartbeat.beat("waiting", error=str(error))
                num_skipped += 1
                continue
            except RefreshStoppedError as stopped:
                logger.info("%s", stopped)
                break
            except GracekitError:
                raise
            except Exception as error:  # a daemon of weeks outlives a bug that one checkpoint met
                if once:
                    raise
                logger.exception("skipping %s after an unexpected error", checkpoint.path.name)
                message = f"{type(error).__name__}: {error}"
                heartbeat.beat("failing", error=message, checkpoint=checkpoint)
                num_skipped += 1
                continue
            if result is None:
                break
            heartbeat.beat("waiting", version=result.version)
            if result.is_new:
                num_published += 1
            on_version(result)
            if max_checkpoints is not None and num_published >= max_checkpoints:
                break
    return WatchReport(
        num_published=num_published, num_skipped=num_skipped, was_stopped=stop.is_set()
    )


def _checkpoints(
    refresher: Refresher,
    checkpoint_dir: Path,
    stop: threading.Event,
    once: bool,
    heartbeat: Heartbeat,
) -> Iterator[Checkpoint]:
    """The newest complete checkpoint alone (`once`), or each as it appears."""
    from gracekit.checkpoints import find_checkpoints, watch_checkpoints

    settings = refresher.recipe.checkpoints
    if once:
        return iter(find_checkpoints(checkpoint_dir, settings)[-1:])

    def wait(seconds: float) -> bool:
        heartbeat.keep()
        return stop.wait(seconds)

    return watch_checkpoints(
        checkpoint_dir, settings, is_done=refresher.is_done, stop=stop, wait=wait
    )


def _refresh_with_retries(
    refresher: Refresher, checkpoint: Checkpoint, stop: threading.Event, heartbeat: Heartbeat
) -> RefreshResult | None:
    """One refresh; None when stopped. A failing disk is tried again with growing pauses."""
    pause_s = FIRST_PAUSE_S
    while not stop.is_set():
        try:
            return refresher.refresh(checkpoint, stop=stop)
        except StoreWriteError as error:
            logger.error("refresh of %s failed, next try in %.0f s: %s",
                         checkpoint.path.name, pause_s, error)  # fmt: skip
            heartbeat.beat("failing", error=str(error), checkpoint=checkpoint)
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    return None


class Heartbeat:
    """A small JSON file that says what the daemon does; `gracekit status` reads it.

    It beats at every change, and while the daemon waits about every `IDLE_BEAT_S`, or at every look
    for checkpoints where those are rarer. It does not beat in the middle of a refresh, nor in the
    pause after a failed write.
    """

    def __init__(self, path: Path, checkpoint_dir: Path) -> None:
        self._path = path
        self._content: Json = {}
        self._last = 0.0
        self._fixed: Json = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "checkpoint_dir": str(checkpoint_dir.absolute()),
            "started_at": _now(),
        }

    def beat(
        self,
        state: str,
        *,
        checkpoint: Checkpoint | None = None,
        version: int | None = None,
        error: str | None = None,
    ) -> None:
        """Say what the daemon does now."""
        content: Json = {**self._fixed, "state": state}
        if checkpoint is not None:
            content["checkpoint"] = str(checkpoint.path)
        if version is not None:
            content["version"] = version
        if error is not None:
            content["error"] = error
        self._content = content
        self._write()

    def keep(self) -> None:
        """Say the same again, if the last time is long enough ago."""
        if time.monotonic() - self._last >= IDLE_BEAT_S:
            self._write()

    def _write(self) -> None:
        """Swap the file, unsynced: after a crash of the machine no daemon runs anyway.

        A disk that fails here does not stop the daemon.
        """
        self._last = time.monotonic()
        content = {**self._content, "at": _now(), "unix_time": time.time()}
        temporary = files.temporary_path(self._path)
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            files.replace(temporary, self._path)


@contextlib.contextmanager
def heartbeats(path: Path, checkpoint_dir: Path) -> Iterator[Heartbeat]:
    """A heart that beats from here on, and says `stopped` at the end, however it ends."""
    heartbeat = Heartbeat(path, checkpoint_dir)
    heartbeat.beat("waiting")
    try:
        yield heartbeat
    except Exception as error:
        heartbeat.beat("stopped", error=str(error) or type(error).__name__)
        raise
    except BaseException:
        heartbeat.beat("stopped")
        raise
    heartbeat.beat("stopped")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets; a second one ends the process at once."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        logger.warning("stopping after the shard in progress; once more to stop at once")
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
