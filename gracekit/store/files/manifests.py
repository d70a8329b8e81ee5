"""`manifests/v000012.parquet`: one version's coreset with its header, and the JSON beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from gracekit.errors import StoreFormatError
from gracekit.store.files.formats import check_format
from gracekit.store.files.history import ORIGIN_NAMES, named
from gracekit.store.files.manifest_reading import METADATA_KEY, header_content
from gracekit.store.files.parquet import clean_text, write_table
from gracekit.types import Json, SampleTable, ScoreTable, Selection
from gracekit.version.header import Header

SCHEMA = pa.schema(
    {
        "sample_id": pa.string(),
        "row": pa.int64(),
        "source_row": pa.int64(),
        "group": pa.string(),
        "weight": pa.float32(),
        "rank": pa.int32(),
        "gain": pa.float32(),
        "importance": pa.float32(),
        "origin": pa.string(),
        "measured_step": pa.int64(),
    }
)
"""Columns of a manifest, sorted by row; `rank` 0 was picked first."""


def coreset_table(selection: Selection, samples: SampleTable, scores: ScoreTable) -> pa.Table:
    """The manifest's columns [b], sorted by row."""
    order = np.argsort(selection.rows)
    rows = selection.rows[order]
    groups = np.array(samples.group_names, object)[samples.groups[rows]]
    return pa.table(
        {
            "sample_id": clean_text(samples.sample_ids[rows]),
            "row": rows,
            "source_row": samples.source_rows[rows],
            "group": clean_text(groups),
            "weight": selection.weights[order],
            "rank": order.astype(np.int32),
            "gain": selection.gains[order],
            "importance": scores.importance[rows],
            "origin": named(scores.origin[rows], ORIGIN_NAMES),
            "measured_step": scores.measured_step[rows],
        },
        schema=SCHEMA,
    )


def write_manifest(path: Path, coreset: pa.Table, header: Header) -> None:
    """Write the coreset with the header in the schema metadata; not atomic by itself."""
    text = header.to_text()
    write_table(path, coreset.replace_schema_metadata({METADATA_KEY: text.encode()}))


def read_header(path: Path) -> Header:
    """The header of a manifest.

    Raises `StoreFormatError` when the file is missing, damaged, or of a newer format.
    """
    return _header(header_content(path), path)


def read_sidecar(path: Path) -> Header:
    """The header in the JSON beside a manifest; raises as `read_header`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreFormatError(f"cannot read {path}: {error}; restore it from a backup") from None
    return _header(content, path)


def _header(content: Json, path: Path) -> Header:
    check_format(content, path)
    try:
        return Header.from_json(content)
    except ValueError as error:
        raise StoreFormatError(
            f"the header of {path} is damaged: {error}; restore the file from a backup"
        ) from None
