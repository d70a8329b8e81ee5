"""The terminal: text that cannot steer it, how wide it is, what it can show."""

from __future__ import annotations

import codecs
import logging
import os
import shutil
import sys

import click


def printable(text: str, *, keep: str = "") -> str:
    """Text for a terminal: what is no visible character is written as an escape.

    So neither data nor file names can move the cursor, change colours or titles, or turn the
    direction of what follows. The characters in `keep` stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def say(text: str, *, err: bool = False) -> None:
    """Lines for people in which names and data cannot steer the terminal."""
    click.echo(printable(text, keep="\n"), err=err)


def width() -> int | None:
    """Characters of a line of stdout; None where nothing limits it (a pipe or a file).

    The variable COLUMNS, where it is set, counts for a pipe too.
    """
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdecimal():
        return None
    return max(shutil.get_terminal_size().columns, 1)


def is_ascii() -> bool:
    """Whether stdout can show no more than ASCII."""
    return codecs.lookup(sys.stdout.encoding or "utf-8").name == "ascii"


def emphasised(text: str) -> str:
    """Text that stands out: in colour on a terminal that has colours, else between marks."""
    has_colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if has_colours and os.environ.get("TERM") != "dumb":
        return click.style(printable(text), fg="green", bold=True)
    return f"<<{printable(text)}>>" if is_ascii() else f"«{printable(text)}»"


class LogLines(logging.Formatter):
    """`12:00:00 message`, safe for a terminal; what follows in further lines is indented, so that
    no name can pretend to be a line of its own.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The lines."""
        return printable(super().format(record), keep="\n").replace("\n", "\n    ")
