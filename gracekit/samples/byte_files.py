"""The bytes of the user's files, decompressed, at any place.

A compressed file is unpacked into a temporary file without a name, which is gone with the process.
So nothing is ever read from a copy of an earlier state. A plain file stays open: replaced by a
rename, it is read on as it was.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from gracekit.errors import DataError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
"""Endings of the file names that are decompressed."""
BLOCK_BYTES = 1 << 22
MOST_OPEN = 64
"""Files that are held open at once."""


def is_compressed(path: Path) -> bool:
    """Whether the file's name says so."""
    return path.suffix.lower() in COMPRESSIONS


def open_bytes(path: Path) -> IO[bytes]:
    """The file's content as a stream, decompressed where its name says that it is compressed."""
    match path.suffix.lower():
        case ".gz":
            return cast("IO[bytes]", gzip.open(path, "rb"))
        case ".bz2":
            return bz2.open(path, "rb")
        case ".xz":
            return lzma.open(path, "rb")
        case ".zst":
            import pyarrow as pa

            stream: Any = pa.input_stream(str(path), compression="zstd")
            return stream  # type: ignore[no-any-return]
    return path.open("rb")


def unpack(path: Path, target: IO[bytes]) -> None:
    """Append the decompressed content; `DataError` where it is damaged or the disk is full."""
    try:
        with open_bytes(path) as packed:
            shutil.copyfileobj(packed, target, BLOCK_BYTES)
        target.flush()
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"cannot unpack {path}: {error}. Pack it again, or unpack it yourself; the room for it "
            f"is taken in {tempfile.gettempdir()} (set TMPDIR)"
        ) from error


class _Descriptor:
    """An open file that is closed when it is no longer used."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


def _require_content(path: Path, size: int) -> None:
    if size == 0:
        raise DataError(f"{path} is empty; expected one sample per line or row")


class ByteFiles:
    """Random access to the decompressed bytes of several files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises `DataError` for a file that is empty, missing or cannot be unpacked."""
        self.paths = tuple(paths)
        self.sizes: list[int] = []
        """Bytes of each file, decompressed."""
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()
        self._identities: list[tuple[int, int]] = []
        self._spool: _Descriptor | None = None
        self._starts: dict[int, int] = {}
        """Number of a compressed file -> where its content starts in the spool."""
        for path in self.paths:
            status = path.stat()
            _require_content(path, status.st_size)
            self._identities.append((status.st_dev, status.st_ino))
            self.sizes.append(status.st_size)
        self._unpack()

    def _unpack(self) -> None:
        packed = [number for number, path in enumerate(self.paths) if is_compressed(path)]
        if not packed:
            return
        with tempfile.TemporaryFile(prefix="gracekit-") as spool:
            for number in packed:
                self._starts[number] = spool.tell()
                unpack(self.paths[number], spool)
                self.sizes[number] = spool.tell() - self._starts[number]
                _require_content(self.paths[number], self.sizes[number])
            self._spool = _Descriptor(os.dup(spool.fileno()))

    def read(self, number: int, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file, fewer at its end."""
        end = min(end, self.sizes[number])
        if number in self._starts:
            assert self._spool is not None
            handle, shift = self._spool, self._starts[number]
        else:
            handle, shift = self._handle(number), 0
        parts = []
        while start < end and (part := os.pread(handle.number, end - start, start + shift)):
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def blocks(self, number: int) -> Iterator[bytes]:
        """The whole content of a file, in order."""
        for start in range(0, self.sizes[number], BLOCK_BYTES):
            yield self.read(number, start, start + BLOCK_BYTES)

    def line_of(self, number: int, place: int) -> int:
        """The line, from 1, of the byte at a place."""
        num_before = 0
        for start in range(0, place, BLOCK_BYTES):
            num_before += self.read(number, start, min(start + BLOCK_BYTES, place)).count(b"\n")
        return num_before + 1

    def _handle(self, number: int) -> _Descriptor:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        path = self.paths[number]
        try:
            handle = _Descriptor(os.open(path, os.O_RDONLY))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}. Check the file") from error
        status = os.fstat(handle.number)
        if (status.st_dev, status.st_ino) != self._identities[number]:
            raise DataError(f"{path} was replaced while it was read; start again")
        if len(self._open) >= MOST_OPEN:
            self._open.popitem(last=False)
        self._open[number] = handle
        return handle
