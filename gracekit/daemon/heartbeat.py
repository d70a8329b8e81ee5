"""The heartbeat: a small JSON file that says what the daemon does, and that it lives.

It beats at every change, and from a thread of its own every few seconds, also in the middle of a
refresh and in a pause. The thread alone would beat on while the work hangs; so it looks when the
work last gave a sign of life (a batch, a stage, a look for checkpoints), and after `STUCK_AFTER_S`
without one it says `stuck` and no longer pings systemd's watchdog.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gracekit import files
from gracekit.daemon.notify import Notifier
from gracekit.process import birth_of
from gracekit.progress import Progress
from gracekit.types import Json

BEAT_S = 10.0
"""Seconds between two beats; fewer where systemd's watchdog asks for it."""
STUCK_AFTER_S = 1800.0
"""Seconds without a sign of life of the work. The longest step without one is to build the graph of
some million samples."""


class Heartbeat:
    """What the daemon does, for `gracekit status`, systemd and Prometheus.

    Args:
        path: The file.
        checkpoint_dir: What the daemon follows.
        progress: Of the work.
        notifier: Told the same.
        on_beat: Called with each content, after it was written.
    """

    def __init__(
        self,
        path: Path,
        checkpoint_dir: Path,
        progress: Progress,
        notifier: Notifier,
        on_beat: Callable[[Json], None] = lambda content: None,
    ) -> None:
        self._path = path
        self._progress = progress
        self._notifier = notifier
        self._on_beat = on_beat
        self._lock = threading.Lock()
        self._now: Json = {}
        self._fixed: Json = {
            "pid": os.getpid(),
            "birth": birth_of(os.getpid()),
            "host": socket.gethostname(),
            "checkpoint_dir": str(checkpoint_dir.absolute()),
            "started_at": _iso(time.time()),
        }

    def beat(self, state: str, **facts: Any) -> None:
        """Say what the daemon does now, and what belongs to it; facts of None are left out."""
        known = {name: fact for name, fact in facts.items() if fact is not None}
        with self._lock:
            self._now = {"state": state, **known}
            self._write()

    def keep(self) -> None:
        """Say the same again, with the progress since."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        """Swap the file, unsynced: after a crash of the machine no daemon runs anyway.

        A disk that fails here does not stop the daemon.
        """
        content = {**self._fixed, **self._now}
        if content["state"] == "refreshing":
            content["progress"] = self._progress.to_json()
        is_stuck = content["state"] != "stopped" and self._progress.silent_s > STUCK_AFTER_S
        if is_stuck:
            content["state"] = "stuck"
            content["error"] = f"no sign of life of the work for {self._progress.silent_s:.0f} s"
        now = time.time()
        content |= {"at": _iso(now), "unix_time": now}
        temporary = files.temporary_path(self._path)
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            files.replace(temporary, self._path)
        self._notifier.status(in_words(content))
        if not is_stuck:
            self._notifier.alive()
        self._on_beat(content)


@contextlib.contextmanager
def beating(heartbeat: Heartbeat, notifier: Notifier) -> Iterator[None]:
    """A heart that beats from here on, and says `stopped` at the end, however it ends."""
    ended = threading.Event()
    period_s = min(BEAT_S, (notifier.watchdog_s or BEAT_S) / 2)

    def run() -> None:
        while not ended.wait(period_s):
            heartbeat.keep()

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    heartbeat.beat("starting")
    thread.start()
    last_words: str | None = None
    try:
        yield
    except Exception as error:
        last_words = str(error) or type(error).__name__
        raise
    finally:
        ended.set()
        thread.join()
        heartbeat.beat("stopped", error=last_words)


def in_words(content: Json) -> str:
    """A heartbeat in one line."""
    name = Path(content.get("checkpoint") or content["checkpoint_dir"]).name
    text = f"{content['state']} · {name}"
    progress = content.get("progress")
    if progress:
        text += f" · {progress['stage']}"
        if "num_planned" in progress:
            text += f" {progress['num_done']:,} of {progress['num_planned']:,} rows"
    if "error" in content:
        text += f" · {content['error']}"
    return text


def _iso(unix_time: float) -> str:
    moment = datetime.fromtimestamp(unix_time, UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
