"""The last line of defence around what somebody else wrote, and checks of numbers from outside.

Files of a trainer, of a tokenizer or of another process can fail in any way when they are read: a
value of another type, a number without end, a loop of links, a size that no memory holds, a panic
of a library in another language. Whoever reads such a thing does it within `foreign`; then every
failure is one error of one kind, with its reason, that concerns this thing alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gracekit.errors import GracekitError

logger = logging.getLogger(__name__)

HIGHEST = 2**63 - 1
"""The largest whole number that Parquet and DuckDB hold in a column of int64."""

ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What ends the work, and is no failure of what is read. Not every other error is an `Exception`:
the panic of a library in Rust is a `BaseException` alone."""

_MOST_CHARACTERS = 300


@contextmanager
def foreign(what: object, error: type[GracekitError], *, doing: str = "read") -> Iterator[None]:
    """Turn whatever goes wrong in the block into `error`, with the reason.

    A `GracekitError` passes: it has its reason already. The traceback of another one is logged at
    the level DEBUG, because it may be a bug of ours.

    Args:
        what: What is read, for the message: a path, or words.
        error: The kind of error that such a thing causes.
        doing: What is done with it, for the message.
    """
    try:
        yield
    except (GracekitError, *ENDS):
        raise
    except BaseException as cause:
        logger.debug("while reading %s", what, exc_info=True)
        where = getattr(cause, "filename", None) if isinstance(cause, OSError) else None
        raise error(f"cannot {doing} {where or what}: {reason_of(cause)}") from cause


def reason_of(error: BaseException) -> str:
    """Why something cannot be read, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "there is not enough memory for the size that it claims"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    lines = str(error).strip().splitlines()
    text = lines[0][:_MOST_CHARACTERS] if lines else ""
    if type(error) is ValueError and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def whole_number(value: Any) -> int | None:
    """A whole number from 0 to `HIGHEST`; None for every other value. True and 1.0 are none."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return int(value) if is_whole and 0 <= value <= HIGHEST else None


def finite_number(value: Any) -> float | None:
    """A number that a double holds; None for NaN, infinities, larger ones and other values."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
