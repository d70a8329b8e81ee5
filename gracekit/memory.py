"""Memory that runs out, in the words of whatever library meets it first.

Each tells it in its own way: as `MemoryError`, as `OSError`, as text of a C++ exception, as a
library that cannot be loaded or a thread that cannot be started. The command line makes one line of
them. A library that ends the process itself (OpenBLAS, an exception in a thread of its own) cannot
be helped here; where that is known to happen, `require_room` is asked before.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from traceback import walk_tb
from typing import NoReturn

_TOLD = re.compile(
    r"bad_alloc|failed to map segment|cannot allocate (memory|write-access memory)|out of memory"
    r"|not enough memory|unable to allocate|can't allocate memory|can't start new thread"
    r"|failed to allocate|allocation fail",
    re.IGNORECASE,
)
_MOST_CHARACTERS = 200
_MIB = 2**20
_LITTLE = 512 * _MIB
"""With more left than this a library that cannot be loaded has another fault."""


class RanOutExit(SystemExit):
    """The end of a command that lacked memory, which was said."""


def end_at_once() -> NoReturn:
    """End the process with exit code 1 and without what the interpreter does at its end.

    Libraries that lack memory, or were loaded halfway, crash there.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


def limit_bytes() -> int | None:
    """How much address space this process may take (`ulimit -v`); None: there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def require_room(num_bytes: int, purpose: str) -> None:
    """Raise `MemoryError` where a limit of the address space leaves less than `num_bytes`.

    Without a limit nothing is asked.

    Args:
        num_bytes: What is to be left.
        purpose: What for, as a noun.
    """
    left = _left_bytes()
    if left is not None and left < num_bytes:
        raise MemoryError(
            f"{purpose} takes {num_bytes // _MIB} MiB, and {max(left, 0) // _MIB} are left"
        )


def free_bytes() -> int:
    """What the system could still give; all that it has where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _left_bytes() -> int | None:
    """What the process may still take; None where it has no limit, or the system does not tell."""
    limit = limit_bytes()
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # another system than Linux
        return None
    return None if limit is None else limit - taken


def shortage(error: BaseException) -> str | None:
    """What to say of an error that a lack of memory caused; None for every other error."""
    cause = next((one for one in _chain(error) if _tells(one)), None)
    if cause is None:
        return None
    limit = limit_bytes()
    lines = str(cause).strip().splitlines()
    what = lines[0][:_MOST_CHARACTERS] if lines else ""
    if not what or not (isinstance(cause, MemoryError) or _TOLD.search(what)):
        what = f"{type(cause).__name__}: {what}" if what else type(cause).__name__
    advice = (
        "end other programs, or use a machine with more"
        if limit is None
        else f"this process may take {limit // _MIB:,} MiB (`ulimit -v`): raise that"
    )
    if isinstance(cause, RuntimeError) and "thread" in what:
        advice += ", and the limit of processes (`ulimit -u`) if it is low"
    return f"there is not enough memory ({what}); {advice}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from or while they were handled."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _tells(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    is_of_duckdb = type(error).__module__.partition(".")[0] in ("_duckdb", "duckdb")
    is_native = isinstance(error, (ImportError, OSError, RuntimeError, SystemError))
    if (is_native or is_of_duckdb) and _TOLD.search(str(error)):
        return True
    # A library that is loaded with too little memory fails in any way: halfway, at an attribute.
    left = _left_bytes()
    return (
        left is not None
        and left < _LITTLE
        and not isinstance(error, ModuleNotFoundError)
        and any(
            # Python leaves its own frames out of what a module raises as it is loaded.
            frame.f_code.co_name == "<module>"
            or frame.f_code.co_filename.startswith("<frozen importlib")
            for frame, _ in walk_tb(error.__traceback__)
        )
    )
