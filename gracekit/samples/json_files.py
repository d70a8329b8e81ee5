"""What `datasets` cannot read in a JSON file: told by line, or repaired.

Its reader is fast but says little. So when it fails, the file is read again line by line, to name
the place, or to take away what it stumbles over: a byte order mark, and half of a surrogate pair,
which is legal JSON but no text.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash

from gracekit.errors import DataError
from gracekit.files import write_atomic

COMPRESSIONS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
MAX_DEPTH = 200
"""Of lists and objects in one another. The reader of `datasets` gives up a little above, and at
some ten thousand it takes the process with it."""
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def repaired(paths: list[Path], folder: Path) -> list[Path] | None:
    """Copies without a byte order mark and with U+FFFD for half of a surrogate pair.

    None when there is no such thing, so that something else must be wrong. The copies go into
    `folder` and are used again as long as a file does not change. Raises a `DataError` that names
    file and line where a file is not JSON, not UTF-8 or holds no objects.
    """
    needs_repair = False
    for path in paths:
        num_records = 0
        with _open(path, "rb") as file:  # datasets takes a byte order mark before a list amiss
            needs_repair = needs_repair or file.read(3) == codecs.BOM_UTF8
        for record in _records(path):
            num_records += 1
            needs_repair = needs_repair or bool(LONE_SURROGATE.search(_dump(record)))
        if num_records == 0:
            raise DataError(f"{path} holds no rows; expected one JSON object per line")
    return [_repaired_copy(path, folder) for path in paths] if needs_repair else None


def require_shallow(path: Path) -> None:
    """Raise a `DataError` for a file nested so deep that it can only be meant to do harm."""
    depth = 0
    with _open(path, "rb") as file:
        for line_number, line in enumerate(file, start=1):
            signs = _STRING.sub(b"", line)  # which hold no line ends
            num_opened = signs.count(b"[") + signs.count(b"{")
            if depth + num_opened > MAX_DEPTH and depth + _deepest(signs) > MAX_DEPTH:
                raise DataError(
                    f"{path}, line {line_number}: lists and objects are nested more than "
                    f"{MAX_DEPTH} deep. Correct or delete it"
                )
            depth = max(depth + num_opened - signs.count(b"]") - signs.count(b"}"), 0)


def _deepest(signs: bytes) -> int:
    values = np.frombuffer(signs, np.uint8)
    steps = np.isin(values, list(b"[{")).astype(np.int64) - np.isin(values, list(b"]}"))
    return int(np.max(np.cumsum(steps), initial=0))


def open_text(path: Path) -> IO[str]:
    """Open a UTF-8 text file, compressed or not; a byte order mark is dropped."""
    return _open(path, "rt", encoding="utf-8-sig", newline="")


def _open(path: Path, mode: str, **options: str) -> IO[Any]:
    opened: IO[Any] = COMPRESSIONS.get(path.suffix.lower(), open)(path, mode, **options)
    return opened


def _repaired_copy(path: Path, folder: Path) -> Path:
    status = path.stat()
    identity = f"{path.resolve()} {status.st_mtime_ns} {status.st_size}"
    copy = folder / f"{xxhash.xxh3_128_hexdigest(identity.encode())}.jsonl"

    def write(target: Path) -> None:
        with target.open("w", encoding="utf-8") as file:
            for record in _records(path):
                file.write(LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", _dump(record)) + "\n")

    if not copy.exists():
        write_atomic(copy, write)
    return copy


def _dump(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON file, one a line or all in one list."""
    line_number = 0
    try:
        with open_text(path) as file:
            is_list = file.read(4096).lstrip().startswith("[")
            file.seek(0)
            entries: Iterable[Any] = json.load(file) if is_list else file
            for line_number, entry in enumerate(entries, start=1):
                if not is_list and not entry.strip():
                    continue
                record = entry if is_list else json.loads(entry)
                if not isinstance(record, dict):
                    raise DataError(
                        f"{path}, {'entry' if is_list else 'line'} {line_number}: expected a JSON "
                        f"object with named fields, found {type(record).__name__}"
                    )
                yield record
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {line_number or error.lineno}, column {error.colno}: not valid JSON "
            f"({error.msg}). Correct or delete the line"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, after line {line_number}: not UTF-8 ({error.reason}). Save the file as UTF-8"
        ) from error
