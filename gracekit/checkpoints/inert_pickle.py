"""Pickles read as plain records: nothing that they name is imported, made or called. No torch.

A pickle is a program that names classes and functions and calls them. Here every such name stands
for an empty record that only keeps what it was called with, so a file of any origin can be looked
into: the table of a torch distributed checkpoint, and what a file of `torch.save` holds.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from gracekit.documents import open_regular
from gracekit.foreign import reason_of

_MOST_BYTES = 1 << 30
"""Of a table of names: a model of a million tensors has a tenth of that."""
_MOST_KINDS = 10_000
_MOST_NESTED = 50
"""Tuples in tuples; tables and training states have a few."""
_MOST_IN_KEY = 100
_LOCAL_HEADER = struct.Struct("<26xHH")
"""The part of a zip entry before its name: lengths of the name and of what follows it."""


class Record:
    """What stands in a pickle for an object: the name of its class and what it was made with."""

    path = ""
    """Module and name, such as `torch._utils._rebuild_tensor_v2`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        """With what a pickle calls the class with."""
        record = super().__new__(cls)
        record.args, record.state, record.items = args, None, []
        return record

    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Record:
        """What a function that was made by a pickle would give."""
        return Record(self, *args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """As a list has it."""
        self.items.append(value)

    def extend(self, values: Any) -> None:
        """As a list has it."""
        self.items.extend(values)

    def pairs(self) -> dict[Any, Any]:
        """The items of one that was a mapping."""
        pairs = (p for p in self.items if isinstance(p, tuple) and len(p) == 2)
        return {p[0]: p[1] for p in pairs if _is_key(p[0])}


class _Inert(pickle._Unpickler):
    """Makes records alone.

    It is the unpickler that is written in Python: the one in C takes memory by what a file says,
    and tuples that are nested a million times end the process where one of them is a key.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    memo: dict[int, Any]
    read: Callable[[int], bytes]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._kinds: dict[str, type[Record]] = {}
        self._depths: dict[int, tuple[Any, int]] = {}
        """Of each tuple of tuples, which is held so that no other one gets its number."""
        self._num_bytes = len(content)

    def find_class(self, module: str, name: str, /) -> Any:
        path = f"{module}.{name}"
        if path not in self._kinds:
            if len(self._kinds) == _MOST_KINDS:
                raise ValueError(f"it names more than {_MOST_KINDS:,} classes")
            self._kinds[path] = type("Record", (Record,), {"path": path})
        return self._kinds[path]

    def persistent_load(self, pid: Any, /) -> Any:
        return Stored(pid)

    def _operation(self, code: int) -> None:
        operation: Callable[[Any], None] = pickle._Unpickler.dispatch[code]
        if code in _MEMO:
            index = _MEMO[code].unpack(self.read(_MEMO[code].size))[0]
            if index > self._num_bytes:
                raise ValueError("it numbers more values than it has bytes")
            self.memo[index] = self.stack[-1]
        elif code in _CALLS:
            if code == pickle.NEWOBJ_EX[0]:
                self.stack.pop()
            args, made = self.stack.pop(), self.stack.pop()
            self.stack.append(_called(made, args))
        elif code == pickle.BYTEARRAY8[0]:
            self.stack.append(self.read(_EIGHT_BYTES.unpack(self.read(8))[0]))
        else:
            if code in _OF_MARK:
                _require_keys(self.stack[:: _OF_MARK[code]])
            elif code == pickle.SETITEM[0]:
                _require_keys(self.stack[-2:-1])
            operation(self)
            if code in _TUPLES:
                self._require_flat(self.stack[-1])

    def _require_flat(self, made: tuple[Any, ...]) -> None:
        inner = [self._depths.get(id(v), (v, 1))[1] for v in made if type(v) is tuple]
        depth = 1 + max(inner, default=0)
        if depth > _MOST_NESTED:
            raise ValueError(f"it nests more than {_MOST_NESTED} tuples")
        if depth > 1:
            self._depths[id(made)] = made, depth


_EIGHT_BYTES = struct.Struct("<Q")
_MEMO = {pickle.BINPUT[0]: struct.Struct("<B"), pickle.LONG_BINPUT[0]: struct.Struct("<I")}
_CALLS = {pickle.REDUCE[0], pickle.NEWOBJ[0], pickle.NEWOBJ_EX[0]}
_TUPLES = {pickle.TUPLE[0], pickle.TUPLE1[0], pickle.TUPLE2[0], pickle.TUPLE3[0]}
_OF_MARK = {
    pickle.DICT[0]: 2, pickle.SETITEMS[0]: 2, pickle.ADDITEMS[0]: 1, pickle.FROZENSET[0]: 1
}  # fmt: skip
"""Operations on all values since a mark -> of how many one is hashed."""


def _guarded(code: int) -> Callable[[_Inert], None]:
    return lambda inert: inert._operation(code)


for _code in (*_MEMO, *_CALLS, *_TUPLES, *_OF_MARK, pickle.SETITEM[0], pickle.BYTEARRAY8[0]):
    _Inert.dispatch[_code] = _guarded(_code)
# A number in decimal digits, of the oldest protocol, which torch does not write.
del _Inert.dispatch[pickle.PUT[0]]


def _called(made: Any, args: Any) -> Record:
    """The record of what a call would give; it shares the arguments, which may be many."""
    if not isinstance(args, tuple):
        raise ValueError("it calls something with no tuple")
    if isinstance(made, type) and issubclass(made, Record):
        record = made()
        record.args = args
        return record
    if not isinstance(made, Record):
        raise ValueError("it calls what is no class")
    record = Record()
    record.args = (made, *args[:_MOST_NESTED])
    return record


def _require_keys(keys: list[Any]) -> None:
    if not all(map(_is_key, keys)):
        raise ValueError("it has keys other than texts, numbers and plain objects")


def _is_key(value: Any) -> bool:
    """Whether it can be hashed at no cost: a tuple only of such that are no tuples."""
    if type(value) is tuple:
        return len(value) <= _MOST_IN_KEY and all(
            type(v) is not tuple and _is_key(v) for v in value
        )
    return value is None or isinstance(value, str | bytes | int | float | type | Record | Stored)


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """What a pickle says is kept outside of it."""

    pid: Any


def read_records(content: bytes, name: str) -> Any:
    """The value of a pickle, with a `Record` for every object that is not plain.

    Raises ValueError, with `name`, for what is no pickle or was cut off.
    """
    try:
        return _Inert(content).load()
    except Exception as error:
        raise ValueError(f"{name} is cut off or damaged: {reason_of(error)}") from None


def mapping(value: Any) -> dict[Any, Any]:
    """A dict, or a record that was one (`OrderedDict`); empty for anything else."""
    if isinstance(value, dict):
        return value
    return value.pairs() if isinstance(value, Record) else {}


# --- files of torch.save


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTensor:
    """Where the numbers of a tensor lie in a file of `torch.save`."""

    dtype: str
    """As torch calls it: `float32`, `bfloat16`."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int
    """Byte of the file at which its first number lies."""
    stop: int
    """Byte after the last number that its storage holds."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A file of `torch.save`: a zip with one pickle, and one uncompressed entry a storage."""

    path: Path
    content: Any
    entries: dict[str, tuple[int, int]]
    """Key of a storage -> its first byte in the file and the byte after its last."""


_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2}
_BYTES |= {"int16": 2, "int8": 1, "uint8": 1, "bool": 1}


def read_archive(path: Path) -> Archive:
    """What a file of `torch.save` holds, its tensors unread; kept while size and time are the same.

    Raises ValueError with the reason for a file that was cut off, damaged or is none.
    """
    status = path.stat()
    return _read_archive(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _read_archive(path: Path, _size: int, _time: int) -> Archive:
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
                table = next((i for i in infos if i.filename.endswith("/data.pkl")), None)
                is_usable = table is not None and table.file_size <= _MOST_BYTES
                if table is None or not is_usable or table.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{path.name} is no file of torch.save: it has no data.pkl")
                content = read_records(archive.read(table), path.name)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError):
            raise ValueError(
                f"{path.name} is cut off, or is no file of torch.save: the table at its end is "
                "not there"
            ) from None
        root = table.filename.removesuffix("data.pkl")
        order = next((i for i in infos if i.filename == f"{root}byteorder"), None)
        entries = {}
        for info in infos:
            if info.filename.startswith(f"{root}data/") and info.compress_type == 0:
                start = _data_start(file, info)
                entries[info.filename.removeprefix(f"{root}data/")] = start, start + info.file_size
        if order is not None:
            start = _data_start(file, order)
            file.seek(start)
            if file.read(order.file_size) != b"little":
                raise ValueError(f"{path.name} was written by a big-endian machine")
    return Archive(path, content, entries)


def _data_start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    file.seek(info.header_offset)
    name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return int(info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes)


def saved_tensors(archive: Archive, values: dict[Any, Any]) -> Iterator[tuple[str, SavedTensor]]:
    """The tensors among values of an archive, by their names.

    Raises ValueError for one that leads outside of its storage.
    """
    for name, value in values.items():
        tensor = _tensor(archive, value)
        if isinstance(name, str) and tensor is not None:
            yield name, tensor


def _tensor(archive: Archive, value: Any) -> SavedTensor | None:
    if isinstance(value, Record) and value.path == "torch._utils._rebuild_parameter":
        value = value.args[0] if value.args else None
    if not (isinstance(value, Record) and value.path == "torch._utils._rebuild_tensor_v2"):
        return None
    try:
        storage, offset, shape, stride = value.args[:4]
        _, kind, key, _, _ = storage.pid
        if not isinstance(key, str | int):
            raise ValueError("no key of a storage")
        dtype = _STORAGES[kind.path.rpartition(".")[2]]
        shape, stride = tuple(map(int, shape)), tuple(map(int, stride))
        first, stop = archive.entries[str(key)]
        start = first + int(offset) * _BYTES[dtype]
        reach = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        fits = min((*shape, *stride, offset), default=0) >= 0
        num_bytes = math.prod(shape) * _BYTES[dtype]
        fits &= not num_bytes or start + reach * _BYTES[dtype] <= stop
        fits &= num_bytes <= stop - first  # none is larger than what is stored of it
    except (ValueError, TypeError, KeyError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(f"{archive.path.name} is damaged: a tensor leads outside of its numbers")
    return SavedTensor(dtype=dtype, shape=shape, stride=stride, start=start, stop=stop)
