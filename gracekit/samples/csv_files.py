"""Rows of CSV and TSV files: every value is the text that stands there."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np

from gracekit.errors import DataError
from gracekit.samples.byte_files import ByteFiles
from gracekit.samples.row_source import PlacedRows
from gracekit.types import Int64, Json


class CsvRows(PlacedRows):
    """The rows below each file's header. A row that ends early lacks the last keys."""

    def __init__(self, files: ByteFiles) -> None:
        csv.field_size_limit(sys.maxsize)  # a text may well be longer than the module's 128 KiB
        self._headers: list[list[str]] = []
        super().__init__(files)

    def places(self, number: int) -> tuple[Int64, Int64]:
        """Where the rows start and end; `DataError` that names the line of one that is too long."""
        consumed, line_number = 0, 0

        def lines() -> Iterator[str]:
            nonlocal consumed, line_number
            for line in self._lines(number):
                consumed += len(line)
                line_number += 1
                yield line.decode("utf-8-sig" if line_number == 1 else "utf-8")

        starts, ends = [], []
        start = 0
        fields: list[str] = []
        try:
            for fields in self._reader(number, lines()):
                is_blank = len(fields) < 2 and not "".join(fields).strip()
                if not is_blank and len(self._headers) <= number:
                    self._headers.append(_column_names(fields))
                elif not is_blank:
                    most = len(self._headers[number])
                    if len(fields) > most:
                        raise self._broken(
                            number, line_number, f"expected {most} fields, found {len(fields)}"
                        )
                    starts.append(start)
                    ends.append(consumed)
                start = consumed
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.byte_files.paths[number]}, line {line_number}: not UTF-8 ({error.reason}). "
                "Save the file as UTF-8"
            ) from error
        except csv.Error as error:
            raise self._broken(number, line_number, str(error)) from error
        if len(self._headers) <= number:
            raise DataError(
                f"{self.byte_files.paths[number]} holds no rows; expected a header and rows"
            )
        if starts and self._is_open(number, starts[-1], ends[-1]):
            at = self.byte_files.line_of(number, starts[-1])
            raise self._broken(number, at, "a quotation mark is never closed")
        return np.array(starts, np.int64), np.array(ends, np.int64)

    def _is_open(self, number: int, start: int, end: int) -> bool:
        """Whether a quotation mark of the row is never closed: another line would belong to it."""
        row = self.byte_files.read(number, start, end).decode().rstrip("\r\n")
        return len(list(self._reader(number, io.StringIO(f"{row}\nx\n", newline="")))) < 2

    def parse(self, content: bytes, number: int, start: int) -> Json:
        """One row: column name -> text."""
        fields = next(self._reader(number, io.StringIO(content.decode(), newline="")))
        return dict(zip(self._headers[number], fields, strict=False))

    def _reader(self, number: int, lines: Iterator[str]) -> Iterator[list[str]]:
        is_tsv = ".tsv" in (suffix.lower() for suffix in self.byte_files.paths[number].suffixes)
        return csv.reader(lines, delimiter="\t" if is_tsv else ",")

    def _lines(self, number: int) -> Iterator[bytes]:
        end_of_line = b"\n" if b"\n" in self.byte_files.read(number, 0, 1 << 20) else b"\r"
        rest = b""
        for block in self.byte_files.blocks(number):
            *lines, rest = (rest + block).split(end_of_line)
            for line in lines:
                yield line + end_of_line
        if rest:
            yield rest

    def _broken(self, number: int, line_number: int, what: str) -> DataError:
        return DataError(
            f"cannot read {self.byte_files.paths[number]} as csv: line {line_number}: {what}. "
            "Correct the line"
        )


def _column_names(header: list[str]) -> list[str]:
    """Unique names: `Unnamed: 0` for an empty one, `a.1` for a second `a`, as pandas has it."""
    seen: Counter[str] = Counter()
    names = []
    for k, name in enumerate(header):
        name = name or f"Unnamed: {k}"
        names.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names
