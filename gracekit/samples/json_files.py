"""Rows of JSON files, one object a line or all in one list, exactly as they stand there.

No schema is made of them: each row keeps its own keys and types, "007" and "2024-01-15" stay text,
integers keep all digits. Of a file an index of where its objects lie is held, not the objects.
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from gracekit.errors import DataError
from gracekit.samples.byte_files import BLOCK_BYTES
from gracekit.samples.row_source import PlacedRows
from gracekit.types import Int64, Json

MAX_DEPTH = 200
"""Of lists and objects in one another; more can only be meant to do harm."""
ROW_KEYS = ("data", "rows", "examples")
"""Under one of these keys a file that is one object holds its rows."""
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_SPACES = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class FileRow(dict[str, Any]):
    """One row of a JSON file with the text that it was read from."""

    __slots__ = ("text",)

    text: str | None
    """The object as it stands in the file; None where it is no strict JSON or was repaired."""

    def __init__(self, values: Json, text: str | None) -> None:
        super().__init__(values)
        self.text = text


def with_columns(row: Json, columns: Json) -> Json:
    """The row with more columns, and with its text where it has one."""
    text = getattr(row, "text", None)
    if text is None or not row or columns.keys() & row.keys():
        return {**row, **columns}
    if columns:
        end = text.rindex("}")
        text = f"{text[:end].rstrip()}, {json.dumps(columns, ensure_ascii=False)[1:]}"
    return FileRow({**row, **columns}, text)


class JsonRows(PlacedRows):
    """The objects of JSON files."""

    def places(self, number: int) -> tuple[Int64, Int64]:
        """Where the objects of a file start and end; `DataError` where it holds none."""
        head = self.byte_files.read(number, 0, 4096)
        begin = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        first = head[begin:].lstrip()[:1]
        at = begin + head[begin:].index(b"[") if first == b"[" else None
        if first == b"{" and self._may_be_one_object(number, begin):
            at = self._list_in_object(number, begin)
        starts, ends = (
            self._line_places(number, begin) if at is None else self._list_places(number, at)
        )
        if not len(starts):
            path = self.byte_files.paths[number]
            raise DataError(f"{path} holds no rows; expected one JSON object per line")
        return starts, ends

    def parse(self, content: bytes, number: int, start: int) -> Json:
        """One object; `DataError` that names the line where it is none."""
        try:
            if content.count(b"[") + content.count(b"{") > MAX_DEPTH:
                _require_shallow(content)
            text = content.decode()
            constants: list[str] = []  # which Python reads and JSON lacks

            def constant(name: str) -> float:
                constants.append(name)
                return float(name)

            may_have_some = "NaN" in text or "Infinity" in text
            decoder = json.JSONDecoder(parse_constant=constant) if may_have_some else _DECODER
            values = decoder.decode(text)
        except json.JSONDecodeError as error:
            column = error.pos - error.doc.rfind("\n", 0, error.pos)
            place = start + len(error.doc[: error.pos].encode())
            raise self._not_json(number, place, column, error.msg) from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self._where(number, start + error.start)}: not UTF-8 ({error.reason}). Save the "
                "file as UTF-8"
            ) from error
        except (RecursionError, ValueError) as error:  # ValueError: a number of 4,300 digits
            what = str(error) if isinstance(error, ValueError) else _TOO_DEEP
            raise DataError(f"{self._where(number, start)}: {what}. Correct or delete it") from None
        if not isinstance(values, dict):
            raise DataError(
                f"{self._where(number, start)}: expected a JSON object with named fields, found "
                f"{type(values).__name__}"
            )
        is_exact = not constants
        if _SURROGATE_ESCAPE.search(text):
            repaired = _without_lone_surrogates(values)
            is_exact, values = is_exact and repaired == values, repaired
        return FileRow(values, text if is_exact else None)

    def _line_places(self, number: int, begin: int) -> tuple[Int64, Int64]:
        starts, ends, firsts = [], [], []
        base, is_new_line = 0, True
        for block in self.byte_files.blocks(number):
            values = np.frombuffer(block, np.uint8)
            line_ends = np.flatnonzero(values == ord("\n"))
            inside = line_ends[line_ends < len(values) - 1] + 1
            inside = np.concatenate([[0], inside]) if is_new_line else inside
            starts.append(inside + base)
            firsts.append(values[inside])
            ends.append(line_ends + base)
            base += len(block)
            is_new_line = block.endswith(b"\n")
        if not is_new_line:
            ends.append(np.array([base]))
        first, end = np.concatenate(starts).astype(np.int64), np.concatenate(ends).astype(np.int64)
        first[0] += begin
        may_be_blank = np.concatenate(firsts) <= ord(" ")
        may_be_blank[0] = True
        keep = np.ones(len(first), bool)
        for k in np.flatnonzero(may_be_blank).tolist():
            keep[k] = bool(self.byte_files.read(number, int(first[k]), int(end[k])).strip())
        return first[keep], end[keep]

    def _may_be_one_object(self, number: int, begin: int) -> bool:
        """Whether the file is perhaps one object in which the rows are, instead of one a line."""
        name = self.byte_files.paths[number].name.lower()
        if ".json" not in (Path(name).suffix, Path(Path(name).stem).suffix):
            return False
        line, end, rest = self.byte_files.read(number, begin, begin + BLOCK_BYTES).partition(b"\n")
        if not end:
            return True
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return True
        return not rest.strip()

    def _list_in_object(self, number: int, begin: int) -> int | None:
        """Where the list of rows begins in `{"data": [{ … }, … ]}`; None for one object a line."""
        size, window = self.byte_files.sizes[number], BLOCK_BYTES
        while True:
            text = self.byte_files.read(number, begin, begin + window).decode("latin-1")
            try:
                at, is_list = _list_of_rows(text)
            except (ValueError, IndexError, RecursionError):
                if begin + len(text) >= size:
                    return None  # no JSON: the lines say where
                window *= 2
                continue
            if is_list:
                return begin + at
            if "\n" in text[:at] and not text[at:].strip() and begin + len(text) >= size:
                raise DataError(
                    f"{self.byte_files.paths[number]} is one JSON object over several lines; "
                    "expected rows: an object per line, a list of objects, or a list under the key "
                    f"{' or '.join(map(repr, ROW_KEYS))}"
                )
            return None

    def _list_places(self, number: int, begin: int) -> tuple[Int64, Int64]:
        """The objects of the list whose bracket stands at byte `begin`, to the end of the file.

        Every element of the list is decoded once to see where it ends.

        The bytes are decoded as Latin-1 here, so that one character is one byte; what JSON is made
        of is ASCII, and the texts in it are not looked at.
        """
        size, window = self.byte_files.sizes[number], BLOCK_BYTES
        starts: list[int] = []
        ends: list[int] = []
        at = begin + 1
        wants_comma = False
        while True:
            text = self.byte_files.read(number, at, at + window).decode("latin-1")
            is_last = at + len(text) >= size
            i = 0
            while True:
                skipped = _SPACES.match(text, i)
                assert skipped is not None
                k = skipped.end()
                sign = text[k : k + 1]
                if sign == "]" and (wants_comma or not starts):
                    rest = self.byte_files.read(number, at + k + 1, size)
                    if rest.strip() and not _ends_object(rest):
                        raise self._not_json(number, at + k + 1, None, "Extra data")
                    return np.array(starts, np.int64), np.array(ends, np.int64)
                if not sign:
                    break
                if wants_comma:
                    if sign != ",":
                        raise self._not_json(number, at + k, None, "Expecting ',' delimiter")
                    i, wants_comma = k + 1, False
                    continue
                if sign != "{":
                    entry = len(starts) + 1
                    raise DataError(
                        f"{self.byte_files.paths[number]}, entry {entry}: expected a JSON object "
                        f"with named fields, found {text[k : k + 20]!r}"
                    )
                try:
                    _, end = _DECODER.raw_decode(text, k)
                except json.JSONDecodeError as error:
                    if is_last:
                        raise self._not_json(number, at + error.pos, None, error.msg) from None
                    break
                except (RecursionError, ValueError) as error:
                    what = str(error) if isinstance(error, ValueError) else _TOO_DEEP
                    raise DataError(
                        f"{self._where(number, at + k)}: {what}. Correct or delete it"
                    ) from None
                starts.append(at + k)
                ends.append(at + end)
                i, wants_comma = end, True
            if is_last:
                raise self._not_json(number, size, None, "the list does not end")
            window = BLOCK_BYTES if i else 2 * window
            at += i

    def _where(self, number: int, place: int) -> str:
        return f"{self.byte_files.paths[number]}, line {self.byte_files.line_of(number, place)}"

    def _not_json(self, number: int, place: int, column: int | None, message: str) -> DataError:
        if column is None:
            before = self.byte_files.read(number, max(place - BLOCK_BYTES, 0), place)
            column = len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1
        return DataError(
            f"{self._where(number, place)}, column {column}: not valid JSON ({message}). Correct "
            "or delete the line"
        )


_TOO_DEEP = f"lists and objects are nested more than {MAX_DEPTH} deep"


def _list_of_rows(text: str) -> tuple[int, bool]:
    """Where the list of rows begins in the JSON object that a text starts with, and True; where the
    object ends, and False, when it has none.

    Raises ValueError or IndexError where the text is no JSON or ends before that is known.
    """

    def after_spaces(place: int) -> int:
        found = _SPACES.match(text, place)
        assert found is not None
        return found.end()

    at = after_spaces(0) + 1
    while text[at := after_spaces(at)] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = after_spaces(at)
        if text[at] != ":":
            raise ValueError("no key")
        at = after_spaces(at + 1)
        if key in ROW_KEYS and text[at] == "[" and text[after_spaces(at + 1)] == "{":
            return at, True
        _, at = _DECODER.raw_decode(text, at)
        at = after_spaces(at)
        if text[at] == ",":
            at += 1
        elif text[at] != "}":
            raise ValueError("no end")
    return at + 1, False


def _ends_object(rest: bytes) -> bool:
    """Whether this follows a list in one JSON object, up to its end."""
    try:
        json.loads('{"_": 0' + rest.decode())
    except (ValueError, RecursionError):
        return False
    return True


def _require_shallow(content: bytes) -> None:
    """Raise `RecursionError` for an object that is nested deeper than `MAX_DEPTH`."""
    values = np.frombuffer(_STRING.sub(b"", content), np.uint8)
    steps = np.isin(values, list(b"[{")).astype(np.int64) - np.isin(values, list(b"]}"))
    if int(np.max(np.cumsum(steps), initial=0)) > MAX_DEPTH:
        raise RecursionError


def _without_lone_surrogates(value: Any) -> Any:
    """With U+FFFD for half of a surrogate pair, which is legal JSON but no text."""
    if isinstance(value, str):
        return LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [_without_lone_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_lone_surrogates(k): _without_lone_surrogates(v) for k, v in value.items()}
    return value
