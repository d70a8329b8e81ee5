"""Texts of which there is one a row, in Arrow's memory: what their bytes take, and 8 bytes each.

A string of Python takes some 50 bytes more than its text, and 8 in an array of NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gracekit.arrow import arrow

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 65_536
"""Texts that are Python's at a time."""
_MOST_BYTES = 2**31 - 1
"""Of one array of Arrow's type `string`."""

_Int64: TypeAlias = NDArray[np.int64]
_Bool: TypeAlias = NDArray[np.bool_]


class Texts(Sequence[str]):
    """Texts [n] that never change.

    An index is as one of NumPy's: a number gives a `str`, and a slice, an array of positions (none
    below 0) or a mask gives `Texts`. Two are equal where all texts are. `numpy.asarray` and
    `pyarrow.array` take them; the second one raises `ValueError` where a text holds a lone
    surrogate, which UTF-8 cannot.
    """

    __slots__ = ("_array",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: pa.LargeBinaryArray) -> None:
        self._array = array
        """In UTF-8, lone surrogates as if they were characters; so the order is that of `str`."""

    @classmethod
    def of(cls, values: Iterable[str]) -> Texts:
        """The given texts."""
        rest = iter(values)
        blocks = iter(lambda: list(islice(rest, _BLOCK)), [])
        return cls.joined(cls(_from_python(block)) for block in blocks)

    @classmethod
    def of_arrow(cls, column: pa.Array | pa.ChunkedArray) -> Texts:
        """A column of strings; raises `ValueError` where it is no such column, or has a NULL."""
        pa = arrow()
        if column.type not in (pa.string(), pa.large_string()) or column.null_count:
            raise ValueError(
                f"expected a column of texts, found {column.null_count} NULL in {column.type}"
            )
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        return cls.joined(cls(chunk.cast(pa.large_binary())) for chunk in chunks)

    @classmethod
    def joined(cls, parts: Iterable[Texts]) -> Texts:
        """All parts one after another; where all but one are empty, that one itself."""
        filled = [part for part in parts if len(part)]
        if len(filled) == 1:
            return filled[0]
        arrays = [part._array for part in filled]
        return cls(arrow().concat_arrays(arrays) if arrays else _from_python([]))

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> str: ...
    @overload
    def __getitem__(self, index: slice | _Int64 | _Bool | Sequence[int]) -> Texts: ...
    def __getitem__(self, index: Any) -> str | Texts:
        if isinstance(index, (int, np.integer)):
            return _text(self._array[int(index)].as_py())
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            if chosen.step == 1:
                return Texts(self._array.slice(chosen.start, len(chosen)))
            index = np.fromiter(chosen, np.int64, len(chosen))
        rows = np.asarray(index)
        if rows.ndim == 0 and rows.dtype.kind in "iu":
            return self[int(rows)]
        if rows.ndim != 1 or (rows.dtype.kind not in "biu" and len(rows)):
            raise IndexError(
                "expected a number, a slice, whole numbers or a mask as an index, found "
                f"{rows.dtype} of shape {rows.shape}"
            )
        if rows.dtype == np.bool_:
            if rows.shape != (len(self),):
                raise IndexError(f"expected a mask of {len(self)} texts, found one of {rows.shape}")
            rows = np.flatnonzero(rows)
        return Texts(self._array.take(_of_numbers(rows)))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BLOCK):
            yield from self._to_python(start, start + _BLOCK)

    def tolist(self) -> list[str]:
        """As a list, of which each text takes some 50 bytes more than here."""
        return list(self)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self.place_of(text) >= 0

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            raise TypeError(
                f"texts are compared as a whole; numpy.asarray(texts) == {other[:40]!r} is a mask"
            )
        if not isinstance(other, Texts):
            return NotImplemented
        return bool(self._array.equals(other._array))

    def __reduce__(self) -> tuple[type[Texts], tuple[Any]]:
        """Without what the texts are a slice of."""
        pa, (offsets, data) = arrow(), self._buffers()
        ends = offsets - offsets[0]
        own = [None, pa.py_buffer(ends), data.slice(int(offsets[0]), int(ends[-1]))]
        return Texts, (pa.Array.from_buffers(pa.large_binary(), len(self), own),)

    def same(self, other: Texts) -> _Bool:
        """[n] whether each text is that of others [n] at its place."""
        return _truths(arrow().compute.equal(self._array, other._array))

    def place_of(self, text: str) -> int:
        """Where the first one is that equals a text; -1: nowhere. Of several ask `places_of`."""
        return int(arrow().compute.index(self._array, _from_python([text])[0]).as_py())

    def places_of(self, texts: Texts) -> _Int64:
        """[m] where the first one here is that equals each of the given texts [m]; -1: nowhere."""
        found = arrow().compute.index_in(texts._array, value_set=self._array)
        places = _numbers(found, np.int32).astype(np.int64)
        places[_truths(found.is_null())] = -1
        return places

    def codes(self) -> _Int64:
        """[n] a number for each text, the same for equal ones: 0, 1, 2 … as they first appear."""
        return _numbers(self._array.dictionary_encode().indices, np.int32).astype(np.int64)

    @property
    def num_distinct(self) -> int:
        """How many different texts there are."""
        return int(arrow().compute.count_distinct(self._array).as_py())

    def order(self) -> _Int64:
        """[n] places of the texts in ascending order, by code points; equal ones as they stand."""
        return _numbers(arrow().compute.array_sort_indices(self._array), np.uint64).astype(np.int64)

    def __repr__(self) -> str:
        return f"Texts[{len(self)}]"

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        found = np.array(self.tolist(), object)
        return found if dtype is None else found.astype(dtype)

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array | pa.ChunkedArray:
        """As Arrow's `string`; in chunks where there are more bytes than one array of it holds."""
        pa, (offsets, data) = arrow(), self._buffers()
        arrays: list[Any] = []
        start = 0
        while start < len(self) or not arrays:
            most = offsets[start] + _MOST_BYTES
            stop = max(int(np.searchsorted(offsets, most, "right")) - 1, min(start + 1, len(self)))
            own = offsets[start : stop + 1] - offsets[start]
            array = pa.StringArray.from_buffers(
                stop - start,
                pa.py_buffer(own.astype(np.int32)),
                data.slice(int(offsets[start]), int(own[-1])),
            )
            array.validate(full=True)
            arrays.append(array if type is None else array.cast(type))
            start = stop
        return arrays[0] if len(arrays) == 1 else pa.chunked_array(arrays)

    def _buffers(self) -> tuple[_Int64, pa.Buffer]:
        """Where in the second buffer each text begins [n], and the last one ends [1]."""
        _, offsets, data = self._array.buffers()
        if not len(self) or data is None:
            return np.zeros(len(self) + 1, np.int64), data or arrow().py_buffer(b"")
        found = np.frombuffer(offsets, np.int64)[self._array.offset :][: len(self) + 1]
        return found, data

    def _to_python(self, start: int, stop: int) -> list[str]:
        offsets, data = self._buffers()
        ends = (offsets[start : stop + 1] - offsets[start]).tolist()
        content = data.slice(int(offsets[start]), ends[-1]).to_pybytes()
        if content.isascii():
            text = content.decode("ascii")
            return [text[begin:end] for begin, end in pairwise(ends)]
        return [_text(content[begin:end]) for begin, end in pairwise(ends)]


# Below without `pyarrow.array` and `to_numpy`, which load pandas wherever that is installed.


def _from_python(values: list[str]) -> pa.LargeBinaryArray:
    pa, text = arrow(), "".join(values)
    if text.isascii():
        content, lengths = text.encode(), map(len, values)
    else:
        encoded = [value.encode("utf-8", "surrogatepass") for value in values]
        content, lengths = b"".join(encoded), map(len, encoded)
    ends = np.zeros(len(values) + 1, np.int64)
    np.cumsum(np.fromiter(lengths, np.int64, len(values)), out=ends[1:])
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.large_binary(), len(values), buffers)


def _of_numbers(rows: NDArray[Any]) -> pa.Int64Array:
    pa, values = arrow(), np.ascontiguousarray(rows, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def _truths(array: pa.BooleanArray) -> _Bool:
    return _numbers(array.cast(arrow().uint8()), np.uint8) > 0


def _numbers(array: pa.Array, kind: DTypeLike) -> NDArray[Any]:
    """The values of an array; any where it has a NULL."""
    return np.frombuffer(array.buffers()[1] or b"", kind)[array.offset :][: len(array)]
