"""Checksums that a file carries itself: no second file can get lost, or lag behind after a kill.

A Parquet file has its seal between the last page and the footer, where readers look at nothing,
for they find pages by their positions from the start and the footer from the end:

    PAR1 | pages | mark, digest of the pages, digest of the footer | footer | its length | PAR1

So whoever reads the footer alone, as for a header, checks that alone. A JSON file has its checksum
as the last value, a digest of the text without the checksum's own digits.

The digests are xxh3_128: they are for disks and copies that go wrong, not against forgery. What was
written without a seal, by an earlier release or by another program, is read unchecked; `verify`
tells it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import xxhash

from gracekit.version.json_text import json_text

_MAGIC = b"PAR1"
_MARK = b"\x89gkSeal\n"
"""Nothing that stands in a footer, in a name or, but by a rare chance, among packed values."""
_DIGEST_BYTES = 16
_SEAL_BYTES = len(_MARK) + 2 * _DIGEST_BYTES
_END_BYTES = 4 + len(_MAGIC)
"""The length of the footer and the magic behind it."""
_TAIL_BYTES = 1 << 16
"""Read at once for the footer; few are larger."""

_BLANK = "0" * (2 * _DIGEST_BYTES)
_CHECKSUM = re.compile(rb'"checksum": "([0-9a-f]{32})"\s*\}\s*\Z')
_KEY, _DIGITS = b'"checksum"', re.compile(rb"[0-9a-f]{32}")
_JSON_TAIL = 40
"""Bytes from the first digit of a checksum to the end of its file, and a few more."""


class SealError(ValueError):
    """A file is not as it was written."""

    def __init__(self) -> None:
        super().__init__("it differs from its checksum")


def sealed_parquet(content: memoryview) -> list[bytes | memoryview]:
    """The bytes of a Parquet file with its seal, in parts to be written one after the other."""
    cut = _start_of_footer(content, len(content))
    pages, footer = content[:cut], content[cut:]
    return [pages, _MARK, _digest(pages), _digest(footer), footer]


def check_parquet(content: memoryview) -> bool:
    """Whether a Parquet file has a seal; raises `SealError` where it does not fit its bytes."""
    try:
        cut = _start_of_footer(content, len(content))
    except SealError:
        if _MARK in bytes(content):  # sealed once; what is no Parquet file is for its reader to say
            raise
        return False
    start = max(cut - _SEAL_BYTES, 0)
    if _check(content[:start], content[start:cut], content[cut:]):
        return True
    if _MARK in bytes(content):  # elsewhere: the footer's length changed, or something was put in
        raise SealError
    return False


def read_footer(path: Path) -> bytes:
    """The end of a Parquet file as a file of its own without rows, of which the schema can be read.

    Raises `SealError` where it does not fit its seal, OSError where it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - _TAIL_BYTES, 0))
        tail = file.read()
        try:
            cut = _start_of_footer(memoryview(tail), size)
        except SealError:
            return tail  # its reader says what it misses
        if (wanted := size - cut + _SEAL_BYTES) > len(tail):
            file.seek(max(size - wanted, 0))
            tail = file.read()
    start = len(tail) - (size - cut)
    _check(None, memoryview(tail)[max(start - _SEAL_BYTES, 0) : start], memoryview(tail)[start:])
    return _MAGIC + tail[start:]


def sealed_json(content: dict[str, Any]) -> str:
    """The text of a JSON object with its checksum at the end."""
    text = json_text({**content, "checksum": _BLANK})
    start, after = text.rindex(_BLANK), len(_BLANK)
    return text[:start] + _text_digest(text.encode(), start) + text[start + after :]


def check_json(raw: bytes) -> bool:
    """Whether a JSON file has a checksum; raises `SealError` where it does not fit its text."""
    found = _CHECKSUM.search(raw)
    if found is None:
        if _KEY in raw[-2 * _JSON_TAIL :] or _DIGITS.search(raw[-_JSON_TAIL:]):
            raise SealError  # there was one
        return False
    if found[1].decode() != _text_digest(raw, found.start(1)):
        raise SealError
    return True


def read_sealed_json(path: Path) -> Any:
    """The content of a JSON file, without its checksum.

    Raises `SealError` where it does not fit, ValueError for what is no JSON, OSError where it
    cannot be read.
    """
    raw = path.read_bytes()
    content = json.loads(raw.decode("utf-8"))
    check_json(raw)
    return without_checksum(content)


def without_checksum(content: Any) -> Any:
    """The content of a sealed JSON file as it was before it was sealed."""
    if isinstance(content, dict):
        content.pop("checksum", None)
    return content


def _check(pages: memoryview | None, seal: memoryview, footer: memoryview) -> bool:
    alike = sum(a == b for a, b in zip(seal, _MARK, strict=False))
    if 2 * alike < len(_MARK):
        return False
    if alike < len(_MARK):
        raise SealError
    of_pages, of_footer = seal[len(_MARK) :][:_DIGEST_BYTES], seal[-_DIGEST_BYTES:]
    if _digest(footer) != of_footer or (pages is not None and _digest(pages) != of_pages):
        raise SealError
    return True


def _start_of_footer(tail: memoryview, size: int) -> int:
    """Where the footer of a Parquet file of `size` bytes begins, which ends like this.

    Raises `SealError` for what does not end as a Parquet file does.
    """
    if len(tail) < _END_BYTES or bytes(tail[-len(_MAGIC) :]) != _MAGIC:
        raise SealError
    length = int.from_bytes(tail[-_END_BYTES : -len(_MAGIC)], "little")
    start = size - _END_BYTES - length
    if start < len(_MAGIC):
        raise SealError
    return start


def _digest(content: memoryview | bytes) -> bytes:
    return bytes(xxhash.xxh3_128_digest(content))


def _text_digest(raw: bytes, start: int) -> str:
    """Of a text without the digits of its checksum, which begin at `start`."""
    digest = xxhash.xxh3_128(raw[:start])
    digest.update(raw[start + len(_BLANK) :])
    return str(digest.hexdigest())
