"""Standard streams that lead nowhere: closed by whoever started us, or onto a full disk."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from traceback import walk_tb

_LOST = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
"""Said of a write to a file that the shell has opened."""


def open_closed() -> None:
    """Let stdin, stdout and stderr lead nowhere where they are closed (`gracekit … >&-`).

    The next file that is opened would get the number of one, and what a library prints would stand
    in it, in a file of a store as well.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115  # for good
            setattr(sys, name, stream)


def lost_output(error: OSError) -> str | None:
    """What to say of an error while something was printed; None for every other error.

    What was to be printed is given up, so that nothing tries again at the end of the process.
    """
    if error.filename is not None or error.errno not in _LOST or not _was_printing(error):
        return None
    with suppress(OSError, ValueError):  # a stdout that is no file
        number = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    return (
        f"cannot write what it prints: {error.strerror}; free some space where stdout goes, or "
        "send it elsewhere"
    )


def _was_printing(error: OSError) -> bool:
    """Whether it comes from where answers are printed: the error itself tells no file."""
    places = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return bool(places) and places[-1].startswith(("click.", "gracekit.cli."))
