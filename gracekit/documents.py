"""Documents that somebody else wrote: read with a bound, and never from what is no file."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MAX_JSON_BYTES = 1 << 28
"""Of a document that somebody else wrote: more than the history of any training run, and less than
the memory of any machine."""

MAX_TEXT_BYTES = 1 << 26
"""Of a text that a user writes: more than a recipe with a million ids."""

_BLOCK_BYTES = 1 << 16


def open_regular(path: Path) -> BinaryIO:
    """Open for reading what somebody else wrote; never waits for it, as for the end of a pipe.

    Raises OSError, also for what is neither a file nor a link to one.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            what = "it is a directory" if stat.S_ISDIR(mode) else "it is a pipe or a device"
            raise OSError(number, f"{what}, expected a file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_named_text(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """UTF-8 text that a user names: of a file, or of a pipe that somebody writes to, as in
    `--file <(command)`.

    Raises OSError where it cannot be read, also for a directory, a socket or a device;
    ValueError for what is no UTF-8, or larger. A pipe that nobody has open is empty. Lines end with
    a newline alone, and there is no byte order mark.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode):
            os.set_blocking(descriptor, True)
        elif not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a device or a socket, expected a file", str(path))
        content = _read_up_to(file, max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"it is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}; save it as UTF-8"
        ) from None
    return io.StringIO(text, newline=None).read()


def _read_up_to(file: BinaryIO, num_bytes: int) -> bytes:
    """At most so many bytes, in memory for those that there are; `read` takes it for all."""
    blocks = []
    while num_bytes > 0 and (block := file.read(min(num_bytes, _BLOCK_BYTES))):
        blocks.append(block)
        num_bytes -= len(block)
    return b"".join(blocks)


def read_json(path: Path) -> Any:
    """A JSON document that somebody else wrote.

    Raises ValueError, also for one nested so deep that it can only be meant to do harm, or larger
    than `MAX_JSON_BYTES`; OSError when it cannot be read.
    """
    with open_regular(path) as file:
        is_large = os.fstat(file.fileno()).st_size > MAX_JSON_BYTES
        content = b"" if is_large else _read_up_to(file, MAX_JSON_BYTES + 1)
    if is_large or len(content) > MAX_JSON_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_JSON_BYTES:,} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deep") from None
