"""What is exported: the rows of one version, with the user's own columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from gracekit.errors import ExportError
from gracekit.recipe import DataSection
from gracekit.rounding import whole_copies
from gracekit.samples import open_hashed_records, with_columns
from gracekit.store import Store
from gracekit.types import Float32, Json, Rows
from gracekit.version.header import Header

Weighting = Literal["column", "repeat", "none"]


@dataclass(frozen=True, kw_only=True)
class ExportedRows:
    """[m] rows of a coreset in the data's order; one that is repeated stands several times."""

    rows: Rows
    source_rows: Rows
    sample_ids: list[str]
    weights: Float32
    header: Header
    open_records: Callable[[Rows], Iterator[Json]]
    """The user's rows at the given source rows, in that order, repeats included."""
    has_weights: bool = True

    def weighted(self, how: Weighting) -> ExportedRows:
        """The same with the weights as a column, as repeated rows, or ignored.

        `repeat` rounds each weight up or down at random, so that its expectation is the weight
        and the number of rows stays what it is; a version is always rounded the same way.
        """
        if how != "repeat":
            return dataclasses.replace(self, has_weights=how == "column")
        copies = whole_copies(self.weights, np.random.default_rng(self.header.version))
        return dataclasses.replace(
            self,
            rows=self.rows.repeat(copies),
            source_rows=self.source_rows.repeat(copies),
            sample_ids=np.array(self.sample_ids, object).repeat(copies).tolist(),
            weights=np.ones(copies.sum(), np.float32),
            has_weights=False,
        )

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the user's columns in any of the rows, in the order of their appearance.

        Reads the rows, which need not have the same columns.
        """
        names: dict[str, None] = {}
        for record in self.open_records(self.source_rows):
            if not record.keys() <= names.keys():
                names |= dict.fromkeys(record)
        return tuple(names)

    @cached_property
    def _own_names(self) -> tuple[str, str]:
        """What our two columns are called beside the user's."""
        is_same = "sample_id" not in self.columns or all(
            str(record.get("sample_id", sample_id)) == sample_id
            for record, sample_id in zip(
                self.open_records(self.source_rows), self.sample_ids, strict=True
            )
        )
        return (
            "sample_id" if is_same else "gracekit_sample_id",
            "gracekit_weight" if "weight" in self.columns else "weight",
        )

    def records(self) -> Iterator[Json]:
        """The user's rows with `sample_id` and, where wanted, `weight`.

        Where the user's data has another column of that name, ours is `gracekit_sample_id` or
        `gracekit_weight`.
        """
        id_name, weight_name = self._own_names
        records = self.open_records(self.source_rows)
        for record, sample_id, weight in zip(
            records, self.sample_ids, self.weights.tolist(), strict=True
        ):
            extra: Json = {} if id_name in record else {id_name: sample_id}
            if self.has_weights:
                extra[weight_name] = weight
            yield with_columns(record, extra)


def rows_of(
    store: Store, version: int, *, data_path: str | tuple[str, ...] | None = None
) -> ExportedRows:
    """The coreset of a version, with the data that the version was made from.

    Every row is checked against the store's hash when it is read.

    Args:
        store: The store.
        version: Number of the version.
        data_path: Where the data is now, when it moved.

    Raises:
        VersionNotFoundError, StoreFormatError: The version cannot be read.
    """
    header = store.header(version)
    coreset = store.coreset(version).sort_by("source_row")
    rows = coreset["row"].to_numpy()
    source_rows = coreset["source_row"].to_numpy()
    data = header.dataset.settings
    format_name = header.dataset.detected_format
    if data_path is not None:
        data = data.model_copy(update={"path": data_path})
    hashes = dict(
        zip(source_rows.tolist(), store.samples(version).content_hashes[rows].tolist(), strict=True)
    )
    return ExportedRows(
        rows=rows,
        source_rows=source_rows,
        sample_ids=coreset["sample_id"].to_pylist(),
        weights=coreset["weight"].to_numpy(),
        header=header,
        open_records=lambda wanted: _checked_records(data, wanted, hashes, format_name),
    )


def _checked_records(
    data: DataSection, source_rows: Rows, hashes: dict[int, str], format_name: str | None
) -> Iterator[Json]:
    """The user's rows; `ExportError` for one that is not what the store was made from."""
    records = open_hashed_records(data, source_rows, format_name=format_name)
    for source_row, (record, content_hash) in zip(source_rows.tolist(), records, strict=True):
        if content_hash != hashes[source_row]:
            raise ExportError(
                f"row {source_row} of {data.name} is not what it was when this version was made: "
                "the data has changed since, or is other data. Export a newer version (the next "
                "refresh makes one), or name the data as it was with --data"
            )
        yield record
