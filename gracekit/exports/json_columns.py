"""Rows for `datasets`, whose type for JSON (since 4.7) holds what types of Arrow would change."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from gracekit.errors import ExportError
from gracekit.exports.arrow_rows import ValueType, batch_of, require_same
from gracekit.types import Json


class JsonColumns:
    """Rows for `datasets`: columns of objects are JSON where Arrow would change them.

    So they are too where it would fill in nulls for keys that objects lack, which `datasets` would
    hand to a trainer. Any other column that Arrow would change is refused.

    Args:
        records: All rows.
        decode: What `datasets` makes of a JSON text; None: it has no such type, and what would need
            it is an `ExportError`.
    """

    def __init__(self, records: Iterable[Json], decode: Callable[[str], Any] | None) -> None:
        columns: dict[str, _Column] = {}
        for record in records:
            for name, value in record.items():
                if name not in columns:
                    columns[name] = _Column(name)
                columns[name].add(value)
        fields = [
            (name, column.arrow(has_json=decode is not None)) for name, column in columns.items()
        ]
        self.type: pa.StructType = pa.struct(fields)
        self.is_list = {name: column.is_list for name, column in columns.items() if column.is_json}
        """Columns of JSON -> whether each value is a list, whose items are JSON."""
        self._decode = decode

    def batch_of(self, records: list[Json]) -> pa.RecordBatch:
        """The rows, with JSON as text; `ExportError` where one would not be read back as it is."""
        names = self.is_list
        plain = [{k: v for k, v in record.items() if k not in names} for record in records]
        kinds = {field.name: field.type for field in self.type}
        others = pa.struct([(name, kind) for name, kind in kinds.items() if name not in names])
        arrays = {}
        if others.num_fields:
            batch = batch_of(plain, others)
            arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
        for name in names:
            texts = [self._text(name, record.get(name)) for record in records]
            arrays[name] = pa.array(texts, kinds[name])
        return pa.RecordBatch.from_pydict({name: arrays[name] for name in kinds})

    def _text(self, name: str, value: Any) -> Any:
        if value is None:
            return None
        if self.is_list[name]:
            return [self._dumped(name, item) for item in value]
        return self._dumped(name, value)

    def _dumped(self, name: str, value: Any) -> str:
        assert self._decode is not None
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
            found = self._decode(text)
        except (TypeError, ValueError) as error:
            raise ExportError(
                f"the column {name} fits no one type, and {value!r:.60} is no JSON that datasets "
                f"reads ({error}). Export as jsonl"
            ) from error
        require_same(name, value, found)
        return text


class _Column:
    """What the values of one column are."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found = ValueType(f"the column {name}")
        self._refused: ExportError | None = None
        self._has_others = False
        self.is_list, self.is_json = True, False

    def add(self, value: Any) -> None:
        if value is None:
            return
        self.is_list &= isinstance(value, list)
        self._has_others |= not _is_of_objects(value)
        if self._refused is None:
            try:
                self._found.add(value)
            except ExportError as error:
                self._refused = error

    def arrow(self, *, has_json: bool) -> pa.DataType:
        try:
            if self._refused is not None:
                raise self._refused
            kind = self._found.arrow()
            if self._found.is_uneven:
                raise ExportError(
                    f"the column {self._name} has objects that lack keys of others, and datasets "
                    "before 4.7 fills in nulls. Install a newer one, or export as jsonl"
                )
        except ExportError:
            if self._has_others or not has_json:
                raise
            self.is_json = True
            return pa.list_(pa.string()) if self.is_list else pa.string()
        return kind


def _is_of_objects(value: Any) -> bool:
    """Whether it is an object, or a list of such."""
    if isinstance(value, list):
        return all(map(_is_of_objects, value))
    return value is None or isinstance(value, dict)
