"""The daemon's end of a tracker's process: started, asked, and ended when it does not answer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from gracekit.errors import GracekitError
from gracekit.protocols import TrackedRun
from gracekit.types import Json
from gracekit.version.json_text import plain_json

OUTPUT = "output.txt"
"""In the tracker's folder: what its library printed since its last start."""
OPEN_S = 120.0
"""Longest wait in seconds for a tracker to begin; wandb itself gives up after 90 s."""
LOG_S = 60.0
"""... and for one version to be logged."""


class TrackerError(GracekitError):
    """A tracker failed; nothing but its own log depends on it."""


class TrackerProcess:
    """A tracker in a process of its own.

    It is a session of its own, so that Ctrl-C in a terminal ends the daemon alone, which then
    closes the tracker.

    Raises OSError when no process can be started.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._output = run.folder / OUTPUT
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gracekit.trackers.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    def open(self, name: str) -> None:
        """Begin the tracker of that name; raises `TrackerError`."""
        facts = dataclasses.asdict(self._run)
        self._ask({"open": name, "run": plain_json(facts)}, OPEN_S)

    def log(self, values: dict[str, float], step: int) -> None:
        """As `Tracker.log`; raises `TrackerError`."""
        self._ask({"log": values, "step": step}, LOG_S)

    def close(self, timeout_s: float) -> None:
        """Close the tracker, and end it after so many seconds.

        Raises `TrackerError` when it fails, or is not done by then.
        """
        deadline = time.monotonic() + timeout_s
        try:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._answer(timeout_s)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(deadline - time.monotonic(), 0.1))
        finally:
            self.kill()

    def check(self) -> None:
        """Raises `TrackerError` when the process has ended."""
        if self._process.poll() is not None:
            raise self._has_ended()

    def end(self) -> None:
        """End the process, and what it has started, at once; harmless when they have ended.

        Its pipes stay open: another thread may wait for its answer, which is then its end.
        """
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # it leads a group of its own
        self._process.wait()

    def kill(self) -> None:
        """`end`, and let go of its pipes."""
        self.end()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _ask(self, request: Json, timeout_s: float) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its answer says why
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            self._process.stdin.flush()
        self._answer(timeout_s)

    def _answer(self, timeout_s: float) -> None:
        answer: Any = json.loads(self._line(timeout_s))
        if "error" in answer:
            raise TrackerError(str(answer["error"]))

    def _line(self, timeout_s: float) -> bytes:
        """One line from the process; raises `TrackerError` where there is none in time."""
        assert self._process.stdout is not None
        source, line = self._process.stdout.fileno(), b""
        deadline = time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([source], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise TrackerError(f"no answer within {timeout_s:g} s; see {self._output}")
            more = os.read(source, 1 << 16)
            if not more:
                raise self._has_ended()
            line += more
        return line

    def _has_ended(self) -> TrackerError:
        code = self._process.wait()
        return TrackerError(f"its process ended with code {code}; see {self._output}")
