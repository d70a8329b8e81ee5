"""The process of a tracker: `python -m gracekit.trackers.process`, started by `worker`.

It reads requests from stdin and answers each on stdout, an object of JSON a line: `open` with the
tracker's name and its run, then `log` with values and step. An answer is `{}`, or `error` with a
reason. The end of stdin, also because the daemon was killed, closes the tracker. What a library
prints goes to stderr, which `worker` keeps in a file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO

from gracekit.errors import GracekitError
from gracekit.foreign import reason_of
from gracekit.protocols import TrackedRun, Tracker
from gracekit.trackers.names import tracker_class
from gracekit.types import Json

WATCH_S = 1.0
"""Seconds between two looks whether the daemon is there."""
LEFT_ALONE_S = 60.0
"""Seconds that a tracker may still take when the daemon was killed."""


def main() -> int:
    """Answer until stdin ends; the exit code is 1 after an error."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    tracker: Tracker | None = None
    try:
        for line in sys.stdin:
            tracker = _do(json.loads(line), tracker)
            _say({}, answers)
        if tracker is not None:
            tracker.close()
            _say({}, answers)
    except BaseException as error:  # whatever a library or the user's class raises
        text = str(error) if isinstance(error, GracekitError) else reason_of(error)
        _say({"error": text}, answers)
        raise
    return 0


def _end_with(daemon: int) -> None:
    """Once the daemon is gone, give the tracker a while to close, and end all of it."""
    while os.getppid() == daemon:
        time.sleep(WATCH_S)
    time.sleep(LEFT_ALONE_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _do(request: Json, tracker: Tracker | None) -> Tracker:
    if tracker is None:
        run = TrackedRun(**{**request["run"], "folder": Path(request["run"]["folder"])})
        return tracker_class(request["open"])(run)
    tracker.log(request["log"], request["step"])
    return tracker


def _say(answer: Json, answers: IO[str]) -> None:
    try:
        print(json.dumps(answer), file=answers, flush=True)
    except BrokenPipeError:  # nobody is left to hear it
        sys.stderr.write("the daemon is gone\n")


if __name__ == "__main__":
    sys.exit(main())
