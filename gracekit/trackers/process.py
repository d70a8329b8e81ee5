"""The process of a tracker: `python -m gracekit.trackers.process`, started by `worker`.

It reads requests from stdin and answers each on stdout, an object of JSON a line: `open` with the
tracker's name and its run, then `log` with values and step. An answer is `{}`, or `error` with a
reason. The end of stdin, also because the daemon was killed, closes the tracker. What a library
prints goes to stderr, which `worker` keeps in a file.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import IO

from gracekit.errors import GracekitError
from gracekit.foreign import reason_of
from gracekit.protocols import TrackedRun, Tracker
from gracekit.trackers.names import tracker_class
from gracekit.types import Json


def main() -> int:
    """Answer until stdin ends; the exit code is 1 after an error."""
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
