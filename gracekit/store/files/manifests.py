"""`manifests/v000012.parquet`: one version's coreset with its header; `headers/v000012.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gracekit.errors import StoreFormatError
from gracekit.store.files.formats import check_format
from gracekit.store.files.manifest_reading import METADATA_KEY, header_content, read_manifest
from gracekit.store.files.parquet import write_table
from gracekit.store.files.paths import present_name
from gracekit.store.files.tables import arrays, file_schema
from gracekit.types import SampleTable, ScoreTable, Selection
from gracekit.version.columns import MANIFEST
from gracekit.version.header import Header
from gracekit.version.sources import SelectedRows

SCHEMA = file_schema(MANIFEST.columns)
"""Columns of a manifest, sorted by row; `rank` 0 was picked first. `version` is the same in every
row, so that a reader of the whole directory knows which rows belong together; formats 1 and 2 had
no such column."""


def coreset_table(
    selection: Selection, samples: SampleTable, scores: ScoreTable, *, version: int
) -> pa.Table:
    """The manifest's columns [b], sorted by row."""
    selected = SelectedRows.of(selection, samples, scores, version)
    return pa.Table.from_arrays(arrays(MANIFEST.columns, selected), schema=SCHEMA)


def with_version(coreset: pa.Table, version: int) -> pa.Table:
    """The table with the column `version` in front, which formats 1 and 2 did not have."""
    if "version" in coreset.column_names:
        return coreset
    versions = pa.array(np.full(len(coreset), version, np.int32))
    return coreset.add_column(0, SCHEMA.field("version"), versions)


def write_manifest(path: Path, coreset: pa.Table, header: Header) -> None:
    """Write the coreset with the header in the schema metadata; not atomic by itself."""
    text = header.to_text()
    write_table(
        path, coreset.replace_schema_metadata({METADATA_KEY: text.encode()}), MANIFEST.columns
    )


def read_coreset(path: Path, version: int) -> pa.Table:
    """The coreset in a manifest of any format, with the columns of `SCHEMA`.

    Raises `StoreFormatError` when the file is missing or damaged.
    """
    return with_version(read_manifest(path), version)


def read_header(path: Path) -> Header:
    """The header of a manifest.

    Raises `StoreFormatError` when the file is missing, damaged, or of a newer format.
    """
    return parse_header(header_content(path), path)


def read_sidecar(path: Path) -> Header:
    """The header in the JSON beside a manifest; raises as `read_header`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreFormatError(f"cannot read {path}: {error}; restore it from a backup") from None
    return parse_header(content, path)


def parse_header(content: Any, path: Path) -> Header:
    """The header that a file of any format holds as JSON, with the present names of its files.

    Raises `StoreFormatError` when it is damaged, or of a newer format.
    """
    check_format(content, path)
    try:
        header = Header.from_json(content)
    except ValueError as error:
        raise StoreFormatError(
            f"the header of {path} is damaged: {error}; restore the file from a backup"
        ) from None
    named = {present_name(name): file for name, file in header.files.items()}
    return (
        header
        if named.keys() == header.files.keys()
        else header.model_copy(update={"files": named})
    )
