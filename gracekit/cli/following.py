"""A page that renews itself: on a terminal in place, elsewhere each time that it has changed."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Callable

import click

from gracekit import interrupts
from gracekit.cli import terminal

_AGE = re.compile(r"[\d.,]+ (second|minute|hour|day)s?\b")
"""What changes by itself, and is no change."""
_HOME_AND_CLEAR = "\x1b[H\x1b[2J"


def follow(page: Callable[[], None], *, every_s: float) -> None:
    """Print a page again and again until Ctrl-C, which ends it well.

    Args:
        page: Prints it to stdout, and raises what is wrong with it.
        every_s: Seconds from one to the next.
    """
    in_place = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    shown = None
    try:
        while True:
            text = _text_of(page)
            if in_place:
                text = _HOME_AND_CLEAR + _cut_to_terminal(text)
            told = text if in_place else _AGE.sub("", text)
            if told != shown:
                click.echo(text, nl=False)
                sys.stdout.flush()
                shown = told
            time.sleep(every_s)
    except KeyboardInterrupt:
        if interrupts.was_terminated():
            raise


def _text_of(page: Callable[[], None]) -> str:
    """What a page prints, laid out for the stdout of now; remarks about it are left out."""
    columns = terminal.width()
    before = os.environ.get("COLUMNS")
    if columns is not None:
        os.environ["COLUMNS"] = str(columns)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()) as text,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            page()
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = before
    return text.getvalue()


def _cut_to_terminal(text: str) -> str:
    """As many lines as there is room for: what is above the first line could not be cleared."""
    lines = text.splitlines()
    room = max(shutil.get_terminal_size().lines - 1, 1)
    return "".join(f"{line}\n" for line in lines[:room])
