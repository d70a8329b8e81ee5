"""A training command as a process: what it says, and its end, whatever becomes of gracekit."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gracekit.documents import read_json
from gracekit.errors import MeasureError
from gracekit.process import birth_of

logger = logging.getLogger("gracekit.comparing")

_STARTED = "command.json"
"""Who trains, in the folder of a run: for whoever comes after a kill of gracekit."""
_END_S = 10.0
"""Seconds that a command has to end by itself when it is told to."""
_LAST_LINES, _LAST_BYTES = 12, 8192
_WAYS_OUT = {
    errno.ENOEXEC: "a script begins with the program that runs it, such as #!/bin/sh",
    errno.EACCES: "make the file executable (chmod +x), or name the program that runs it before it",
}


def run_words(words: list[str], folder: Path, whose: str) -> int:
    """Exit code of a command, which gets no input and says what it says to two files.

    It leads a session of its own, so that a stop ends what it has started too, and nothing that it
    leaves running is waited for.

    Args:
        words: The command.
        folder: Of the run.
        whose: The run, for messages.

    Raises:
        MeasureError: It cannot be started.
    """
    if words[0] in ("python", "python3"):
        words = [sys.executable, *words[1:]]
    logger.info("the command says what it does in %s and %s", *_outputs(folder))
    try:
        with contextlib.ExitStack() as files:
            out, err = (files.enter_context(path.open("wb")) for path in _outputs(folder))
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
    except OSError as error:
        raise MeasureError(
            f"{whose}: cannot start the training command {words[0]!r}: {error.strerror}; "
            f"{_WAYS_OUT.get(error.errno or 0, 'name a program that is there')}"
        ) from None
    try:
        with _hang_up_raised():
            started = {"pid": process.pid, "birth": birth_of(process.pid)}
            (folder / _STARTED).write_text(json.dumps(started), encoding="utf-8")
            return process.wait()
    except BaseException:
        _end(process.pid, lambda: process.poll() is None)
        process.wait()
        raise


def end_left(folder: Path) -> None:
    """End the command that a killed comparison left at work for a run, if it still runs here."""
    try:
        started: Any = read_json(folder / _STARTED)
        pid, birth = int(started["pid"]), str(started["birth"])
    except (OSError, ValueError, TypeError, KeyError):
        return
    if birth_of(pid) == birth:
        logger.warning(
            "a training command that a killed comparison began still runs and is ended: process %d",
            pid,
        )
        _end(pid, lambda: birth_of(pid) == birth)


def _end(pid: int, is_running: Callable[[], bool]) -> None:
    """End a command and its group: it is asked, and after a while made to."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGTERM)
        deadline = time.monotonic() + _END_S
        try:
            while is_running() and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:  # a second Ctrl-C does not wait, and leaves nothing either
            os.killpg(pid, signal.SIGKILL)


@contextlib.contextmanager
def _hang_up_raised() -> Iterator[None]:
    """A terminal that is closed raises `KeyboardInterrupt` in the block: the command, in a session
    of its own, hears nothing of it. Where somebody sees to SIGHUP (`nohup`), nothing is changed.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _outputs(folder: Path) -> tuple[Path, Path]:
    return folder / "command.out", folder / "command.err"


def last_lines(folder: Path) -> str:
    """The last lines of what the command said, of its errors where it said any."""
    for path in reversed(_outputs(folder)):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LAST_BYTES))
            text = file.read().decode("utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        if lines:
            return "\n".join(f"  {line}" for line in lines[-_LAST_LINES:])
    return "  (it printed nothing)"
