"""`Source`: the user's rows as they stand in the files, at any position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby, pairwise

import numpy as np

from gracekit.samples.byte_files import ByteFiles
from gracekit.types import Int64, Json

BATCH_ROWS = 1000
"""Rows that are read at once."""


class Source(ABC):
    """Rows with named values. Nothing of a row is changed: neither types nor which keys it has."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, rows: Sequence[int]) -> list[Json]:
        """The rows at the given positions, in that order; fast where these follow one another.

        Raises `DataError` for a row that cannot be read.
        """

    def select(self, columns: Sequence[str]) -> Source:
        """The same with at least the given columns; others may be left out where that is faster."""
        return self

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names in the order in which they appear; perhaps only those of the first rows."""
        return _names(self.take(range(min(BATCH_ROWS, len(self)))))

    @cached_property
    def all_columns(self) -> tuple[str, ...]:
        """Names in all rows; this may read all of them."""
        names: dict[str, None] = {}
        for block in self.blocks():
            names |= dict.fromkeys(_names(block))
        return tuple(names)

    def blocks(self) -> Iterator[list[Json]]:
        """All rows in order, `BATCH_ROWS` at a time."""
        for start in range(0, len(self), BATCH_ROWS):
            yield self.take(range(start, min(start + BATCH_ROWS, len(self))))

    def files(self) -> list[tuple[str, int, int]]:
        """(name, start, stop) of each file: rows [start, stop) are its own."""
        return [("", 0, len(self))]


class Chain(Source):
    """The rows of several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self._first_rows: Int64 = np.cumsum([0] + [len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """See `Source.columns`: those of the first rows of each."""
        return tuple(dict.fromkeys(name for source in self._sources for name in source.columns))

    def select(self, columns: Sequence[str]) -> Source:
        """See `Source.select`."""
        return Chain([source.select(columns) for source in self._sources])

    def take(self, rows: Sequence[int]) -> list[Json]:
        """See `Source.take`."""
        wanted = np.asarray(rows, np.int64)
        numbers = np.searchsorted(self._first_rows, wanted, side="right") - 1
        found: list[Json] = []
        for number, group in groupby(range(len(wanted)), key=lambda k: int(numbers[k])):
            local = wanted[list(group)] - self._first_rows[number]
            found += self._sources[number].take(local.tolist())
        return found

    def files(self) -> list[tuple[str, int, int]]:
        """See `Source.files`."""
        return [
            (name, int(first) + start, int(first) + stop)
            for source, first in zip(self._sources, self._first_rows[:-1], strict=True)
            for name, start, stop in source.files()
        ]


class Part(Source):
    """Rows [start, stop) of another source."""

    def __init__(self, whole: Source, start: int, stop: int) -> None:
        self._whole, self._start, self._stop = whole, start, max(stop, start)

    def __len__(self) -> int:
        return self._stop - self._start

    def take(self, rows: Sequence[int]) -> list[Json]:
        """See `Source.take`."""
        return self._whole.take([self._start + row for row in rows])

    def select(self, columns: Sequence[str]) -> Source:
        """See `Source.select`."""
        return Part(self._whole.select(columns), self._start, self._stop)

    def files(self) -> list[tuple[str, int, int]]:
        """See `Source.files`: those of which rows are in the part."""
        return [
            (name, max(start, self._start) - self._start, min(stop, self._stop) - self._start)
            for name, start, stop in self._whole.files()
            if start < self._stop and stop > self._start
        ]


class PlacedRows(Source):
    """Rows of which it is known where they stand in text files: an index, not the rows."""

    def __init__(self, files: ByteFiles) -> None:
        self.byte_files = files
        places = [self.places(number) for number in range(len(files.paths))]
        self._starts: Int64 = np.concatenate([starts for starts, _ in places])
        self._ends: Int64 = np.concatenate([ends for _, ends in places])
        self._first_rows: Int64 = np.cumsum([0] + [len(starts) for starts, _ in places])

    def __len__(self) -> int:
        return len(self._starts)

    def files(self) -> list[tuple[str, int, int]]:
        """See `Source.files`."""
        bounds = pairwise(self._first_rows.tolist())
        paths = self.byte_files.paths
        return [(str(path), *bound) for path, bound in zip(paths, bounds, strict=True)]

    @abstractmethod
    def places(self, number: int) -> tuple[Int64, Int64]:
        """Where the rows of a file start and end, in bytes."""

    @abstractmethod
    def parse(self, content: bytes, number: int, start: int) -> Json:
        """One row of a file, which starts at byte `start`."""

    def take(self, rows: Sequence[int]) -> list[Json]:
        """See `Source.take`."""
        wanted = np.asarray(rows, np.int64)
        if not len(wanted):
            return []
        numbers = np.searchsorted(self._first_rows, wanted, side="right") - 1
        # Rows that follow one another in a file are read at once.
        breaks = np.flatnonzero((np.diff(wanted) != 1) | (np.diff(numbers) != 0)) + 1
        starts, ends = self._starts[wanted].tolist(), self._ends[wanted].tolist()
        bounds = [0, *breaks.tolist(), len(starts)]
        found: list[Json] = []
        for first, after in pairwise(bounds):
            number, base = int(numbers[first]), starts[first]
            content = self.byte_files.read(number, base, ends[after - 1])
            for start, end in zip(starts[first:after], ends[first:after], strict=True):
                found.append(self.parse(content[start - base : end - base], number, start))
        return found


def _names(rows: list[Json]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for row in rows:
        if not row.keys() <= names.keys():
            names |= dict.fromkeys(row)
    return tuple(names)
