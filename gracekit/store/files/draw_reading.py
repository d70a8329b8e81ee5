"""How a version was drawn, as the trainer's side reads it: with NumPy and PyArrow only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gracekit.errors import StoreFormatError
from gracekit.store.files.parquet import damaged, numbers, read_table
from gracekit.store.files.paths import StorePaths
from gracekit.texts import Texts
from gracekit.types import Draw, DrawState, Int64
from gracekit.version.trainer_view import TrainerView

_SAMPLES_FILE = re.compile(r"samples\.parquet|samples/v\d{6,}\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRows:
    """Where the samples of a store lie in the data, by its rows."""

    source_rows: Int64
    """[n] position in the data file; -1 for a sample that has left the data."""
    content_versions: Int64
    """[n] version since which the sample has its present content."""
    sample_ids: Texts | None
    """[n]; None where they were not asked for."""

    def __len__(self) -> int:
        return len(self.source_rows)


def read_draw_columns(path: Path) -> tuple[Draw | None, DrawState]:
    """The probabilities of a version's rows, where they are known, and the state before its draw.

    Raises `StoreFormatError` when the file is missing or damaged.
    """
    table = read_table(path)
    try:
        state = DrawState(
            uses=numbers(table["uses"]),
            owed=numbers(table["owed"]),
            start_low=numbers(table["start_low"]),
            start_high=numbers(table["start_high"]),
        )
        if table["inclusion_probability"].null_count:
            return None, state
        draw = Draw(
            probabilities=numbers(table["inclusion_probability"]),
            weights=numbers(table["draw_weight"]),
            places=numbers(table["place"]),
            parts=numbers(table["part"]),
        )
        return draw, state
    except (KeyError, ValueError) as error:
        raise damaged(path, error) from error


def read_trainer_draw(paths: StorePaths, version: int, view: TrainerView) -> Draw | None:
    """The probabilities of all rows [n] of a version; None where its selector knows none.

    Raises `StoreFormatError` when the version has a file of them that is missing or damaged.
    """
    path = paths.draw(version)
    if paths.relative(path) not in view.files:
        return None
    return read_draw_columns(path)[0]


def read_sample_rows(paths: StorePaths, view: TrainerView, *, with_ids: bool) -> SampleRows:
    """The sample table of a version, as far as a trainer needs it.

    Raises `StoreFormatError` when it is missing or damaged.
    """
    name = view.samples_file
    if not _SAMPLES_FILE.fullmatch(name):
        raise StoreFormatError(
            f"the header of a version in {paths.root} names {name!r} as its sample table, expected "
            "samples.parquet or samples/v000012.parquet; run `gracekit verify`"
        )
    path = paths.root / name
    columns = ["source_row", "content_version", *(["sample_id"] if with_ids else [])]
    try:
        table = read_table(path, columns)
        source_rows = numbers(table["source_row"], missing=-1)
        since = np.ones(len(source_rows), np.int64)
        if "content_version" in table.column_names:  # stores of early releases did not know it
            since = numbers(table["content_version"])
        ids = Texts.of_arrow(table["sample_id"]) if with_ids else None
    except (ValueError, KeyError) as error:
        raise damaged(path, error) from error
    return SampleRows(source_rows=source_rows, content_versions=since, sample_ids=ids)
