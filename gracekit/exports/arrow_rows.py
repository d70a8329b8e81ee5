"""Rows as Arrow holds them: one type for each value of all rows, or a refusal that names it.

Arrow would rather change values than refuse them: integers beside fractions become fractions, a
key that one row lacks becomes null in it, nanoseconds are cut off. Here a value that would not be
read back as it is is an `ExportError` instead. In Parquet a nested key that is null is one that the
row lacks, as gracekit reads it, so no row may have both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from typing import Any

import pyarrow as pa

from gracekit.errors import ExportError
from gracekit.samples.arrow_files import without_nested_nulls
from gracekit.types import Json

INT64, UINT64 = (-(2**63), 2**63 - 1), (0, 2**64 - 1)
WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number with a fraction",
    str: "a text",
    bytes: "binary data",
    dict: "an object",
    list: "a list",
}


class ValueType:
    """What the values at one place in the rows are: `add` them all, then ask for `arrow`.

    Args:
        where: The place for messages, such as `messages[].content`.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._kind: type | None = None
        """Of the values that are not null; None: there was none."""
        self._least, self._most = 0, 0
        """Of integers."""
        self._other: pa.DataType = pa.null()
        """Of kinds that JSON lacks."""
        self._item: ValueType | None = None
        self.keys: dict[str, ValueType] = {}
        self._num_objects = 0
        self._num_with: Counter[str] = Counter()
        """Key -> objects that have it."""
        self._follows: dict[str, set[str]] = {}
        """Key of an object -> those that stood right before it in a row."""

    def add(self, value: Any) -> None:
        """One more value; `ExportError` where it is of another kind than those before."""
        if value is None:
            return
        kind = type(value)
        if kind not in WORDS:
            kind = next((known for known in (dict, list) if isinstance(value, known)), object)
        if self._kind is None:
            self._kind = kind
        elif kind is not self._kind:
            raise self._refused(f"is {_word(self._kind)} in one place and {_word(kind)} in another")
        if kind is int:
            self._least, self._most = min(self._least, value), max(self._most, value)
        elif kind is list:
            self._item = self._item or ValueType(f"{self._where}[]")
            for item in value:
                self._item.add(item)
        elif kind is dict:
            self._add_object(value)
        elif kind is object:
            self._add_other(value)

    def _add_object(self, value: Json) -> None:
        before = None
        self._num_objects += 1
        self._num_with.update(value.keys())
        for key, item in value.items():
            if item is None:
                raise self._refused(f"has the key {key!r} with null, which would be left out")
            if key not in self.keys:
                self.keys[key] = ValueType(f"{self._where}.{key}")
                self._follows[key] = set()
            if before is not None:
                self._follows[key].add(before)
            self.keys[key].add(item)
            before = key

    def _add_other(self, value: Any) -> None:
        found = pa.scalar(value).type
        # Arrow takes the times of pandas for those of Python, which end at microseconds.
        if pa.types.is_timestamp(found) and hasattr(value, "nanosecond"):
            found = pa.timestamp("ns", found.tz)
        elif pa.types.is_duration(found) and hasattr(value, "nanoseconds"):
            found = pa.duration("ns")
        fields = [pa.schema([("x", kind)]) for kind in (self._other, found)]
        self._other = pa.unify_schemas(fields, promote_options="permissive").field(0).type

    @property
    def is_uneven(self) -> bool:
        """Whether an object, however deep, lacks a key that another one at its place has."""
        if any(count < self._num_objects for count in self._num_with.values()):
            return True
        parts = [*self.keys.values(), *([] if self._item is None else [self._item])]
        return any(part.is_uneven for part in parts)

    def arrow(self) -> pa.DataType:
        """The type that holds all of them; `ExportError` where there is none."""
        if self._kind is None:
            return pa.null()
        if self._kind is int:
            for kind, (least, most) in ((pa.int64(), INT64), (pa.uint64(), UINT64)):
                if least <= self._least and self._most <= most:
                    return kind
            raise self._refused("holds integers that 64 bits do not")
        if self._kind is list:
            return pa.list_(pa.null() if self._item is None else self._item.arrow())
        if self._kind is dict:
            return pa.struct([(key, self.keys[key].arrow()) for key in self._order()])
        simple = {bool: pa.bool_(), float: pa.float64(), str: pa.string(), bytes: pa.binary()}
        return simple.get(self._kind, self._other)

    def _order(self) -> list[str]:
        """The keys in an order that is that of each row, which templates may print."""
        try:
            return list(TopologicalSorter(self._follows).static_order())
        except CycleError as error:
            first, second = error.args[1][:2]
            raise self._refused(
                f"has the keys {first!r} and {second!r} in one order here and in another there"
            ) from None

    def _refused(self, what: str) -> ExportError:
        return ExportError(
            f"{self._where} {what}; parquet and hf-dataset hold one type for all rows, so the data "
            "would be changed. Export as jsonl"
        )


def row_type(records: Iterable[Json]) -> pa.StructType:
    """The type that holds every row; `ExportError` names the first value that it cannot."""
    columns: dict[str, ValueType] = {}
    for record in records:
        for name, value in record.items():
            if name not in columns:
                columns[name] = ValueType(f"the column {name}")
            columns[name].add(value)
    return pa.struct([(name, found.arrow()) for name, found in columns.items()])


def batch_of(records: list[Json], kind: pa.StructType) -> pa.RecordBatch:
    """The rows as a batch; `ExportError` where one would not be read back as it is."""
    rows = pa.array(records, type=kind)
    for record, read in zip(records, rows.to_pylist(), strict=True):
        found = without_nested_nulls(read)
        for name, value in record.items():
            require_same(name, value, found[name])
    return pa.RecordBatch.from_struct_array(rows)


def require_same(name: str, value: Any, found: Any) -> None:
    """`ExportError` where a value of the column would be read back as another or in other types."""
    if not _is_same(value, found):
        raise ExportError(
            f"the column {name} of a row is {value!r:.60}, and would be read back as "
            f"{found!r:.60}. Export as jsonl"
        )


def _is_same(value: Any, found: Any) -> bool:
    if isinstance(value, dict):
        return (
            isinstance(found, dict)
            and list(value) == list(found)
            and all(map(_is_same, value.values(), found.values()))
        )
    if isinstance(value, list):
        return (
            isinstance(found, list)
            and len(value) == len(found)
            and all(map(_is_same, value, found))
        )
    return type(value) is type(found) and (value == found or value != value)


def _word(kind: type) -> str:
    return WORDS.get(kind, "a date, a time or another value that JSON lacks")


@contextmanager
def arrow_errors() -> Iterator[None]:
    """What Arrow cannot hold becomes an `ExportError` with a way out."""
    try:
        yield
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        if isinstance(error, OSError):
            raise
        raise ExportError(
            f"a column of the data fits no one Arrow type: {error}. Export as jsonl"
        ) from error
