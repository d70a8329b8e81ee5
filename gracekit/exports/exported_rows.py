"""What is exported: the rows of one version, with the user's own columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gracekit.errors import ExportError
from gracekit.exports.score_columns import score_columns
from gracekit.recipe import DataSection
from gracekit.rounding import whole_copies
from gracekit.samples import open_hashed_records, with_columns
from gracekit.store import Store
from gracekit.texts import Texts
from gracekit.types import Float32, Json, Rows, SampleMap, Strings
from gracekit.version.header import Header

Weighting = Literal["column", "repeat", "none"]
QUIET_S = 1.0
"""A pass over the rows that is shorter than this shows no progress."""


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
    groups: Strings | None = None
    """[m] the user's label of each row when it was selected; None: there is none."""
    scores: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Name -> [m] what else is joined to each row; NaN or None where nothing is known."""
    open_map: Callable[[], SampleMap] | None = None
    """All samples with their places on a plane; None: there is no such map."""
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
            groups=None if self.groups is None else self.groups.repeat(copies),
            scores={name: values.repeat(copies) for name, values in self.scores.items()},
            has_weights=False,
        )

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the user's columns in any of the rows, in the order of their appearance.

        Reads the rows, which need not have the same columns.
        """
        names: dict[str, None] = {}
        for record in self._shown(self.open_records(self.source_rows), "columns"):
            if not record.keys() <= names.keys():
                names |= dict.fromkeys(record)
        return tuple(names)

    @cached_property
    def _id_name(self) -> str:
        """What our column of ids is called beside the user's."""
        if "sample_id" not in self.columns:
            return "sample_id"
        records = self.open_records(self.source_rows)
        is_same = all(
            str(record.get("sample_id", sample_id)) == sample_id
            for record, sample_id in zip(records, self.sample_ids, strict=True)
        )
        return "sample_id" if is_same else self._own_name("sample_id")

    def beside(self) -> Iterator[Json]:
        """Of each row what stands beside the user's columns: `sample_id`, and where they are wanted
        `weight` and the scores.

        Where the user's data has another column of that name, ours is called `gracekit_` and that,
        as often as it takes.
        """
        names = {name: self._own_name(name) for name in self.scores}
        weight = self._own_name("weight")
        for k, sample_id in enumerate(self.sample_ids):
            own: Json = {self._id_name: sample_id}
            if self.has_weights:
                own[weight] = float(self.weights[k])
            yield own | {names[name]: _plain(values[k]) for name, values in self.scores.items()}

    def _own_name(self, name: str) -> str:
        while name in self.columns:  # of an export of an export `gracekit_weight` is the user's too
            name = f"gracekit_{name}"
        return name

    def records(self) -> Iterator[Json]:
        """The user's rows with the columns of `beside`."""
        id_name = self._id_name
        rows = self._shown(self.open_records(self.source_rows), "rows")
        for record, own in zip(rows, self.beside(), strict=True):
            if id_name in record:  # the user's own, which is the same
                own.pop(id_name)
            yield with_columns(record, own)

    def sample_map(self) -> SampleMap:
        """All samples of the version's data, with their places on a plane; `ExportError` where
        there is no such map.
        """
        if self.open_map is None:
            raise ExportError(
                "these rows come without the samples' features, which an atlas is made of; export "
                "a version of a store with gracekit.export or `gracekit export`"
            )
        return self.open_map()

    def _shown(self, records: Iterator[Json], what: str) -> Iterator[Json]:
        """The records, with a bar where stderr is a terminal."""
        bar = tqdm(
            records,
            desc=what,
            total=len(self.rows),
            unit="row",
            unit_scale=True,
            disable=None,
            delay=QUIET_S,
            leave=False,
        )
        yield from bar


def _plain(value: Any) -> Any:
    """A value of NumPy as JSON has it; None where nothing is known."""
    found = value.item() if isinstance(value, np.generic) else value
    return None if found != found else found


def rows_of(
    store: Store,
    version: int,
    *,
    data_path: str | tuple[str, ...] | None = None,
    with_scores: bool = False,
    open_map: Callable[[], SampleMap] | None = None,
) -> ExportedRows:
    """The coreset of a version, with the data that the version was made from.

    Every row is checked against the store's hash when it is read.

    Args:
        store: The store.
        version: Number of the version.
        data_path: Where the data is now, when it moved.
        with_scores: Join what is known of each row: its scores, and how it was selected.
        open_map: Gives all samples with their places on a plane, for the format `atlas`.

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
    samples = store.samples(version)
    hashes = _Hashes(source_rows, samples.content_hashes[rows])
    names = np.array(samples.group_names, object)
    return ExportedRows(
        rows=rows,
        source_rows=source_rows,
        sample_ids=coreset["sample_id"].to_pylist(),
        weights=coreset["weight"].to_numpy(),
        header=header,
        groups=names[samples.groups[rows]],
        scores=score_columns(store, version, rows) if with_scores else {},
        open_map=open_map,
        open_records=lambda wanted: _checked_records(data, wanted, hashes, format_name),
    )


class _Hashes:
    """The hash of each row's content.

    Args:
        source_rows: [m] ascending.
        hashes: [m] 32 hexadecimal digits each.
    """

    def __init__(self, source_rows: Rows, hashes: Texts) -> None:
        self._source_rows = source_rows
        self._hashes = hashes

    def of(self, source_row: int) -> str:
        """Of a row that is among them."""
        return self._hashes[np.searchsorted(self._source_rows, source_row)]


def _checked_records(
    data: DataSection, source_rows: Rows, hashes: _Hashes, format_name: str | None
) -> Iterator[Json]:
    """The user's rows; `ExportError` for one that is not what the store was made from."""
    records = open_hashed_records(data, source_rows, format_name=format_name)
    for source_row, (record, content_hash) in zip(source_rows.tolist(), records, strict=True):
        if content_hash != hashes.of(source_row):
            raise ExportError(
                f"row {source_row} of {data.name} is not what it was when this version was made: "
                "the data has changed since, or is other data. Export a newer version (the next "
                "refresh makes one), or name the data as it was with --data"
            )
        yield record
