"""`manifests/v000012.parquet`: one version's coreset with its header; `headers/v000012.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gracekit.errors import StoreFormatError
from gracekit.store.files.history import ORIGIN_NAMES, named
from gracekit.store.files.info import check_format
from gracekit.store.files.parquet import clean_text, read_schema, read_table, write_table
from gracekit.store.files.paths import present_name
from gracekit.types import Json, ManifestHeader, SampleTable, ScoreTable, Selection

METADATA_KEY = b"gracekit"

SCHEMA = pa.schema(
    {
        "version": pa.int32(),
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
"""Columns of a manifest, sorted by row; `rank` 0 was picked first. `version` is the same in every
row, so that a reader of the whole directory knows which rows belong together; formats 1 and 2 had
no such column."""


def coreset_table(
    selection: Selection, samples: SampleTable, scores: ScoreTable, *, version: int
) -> pa.Table:
    """The manifest's columns [b], sorted by row."""
    order = np.argsort(selection.rows)
    rows = selection.rows[order]
    groups = np.array(samples.group_names, object)[samples.groups[rows]]
    return pa.table(
        {
            "version": np.full(len(rows), version, np.int32),
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


def write_manifest(path: Path, coreset: pa.Table, header: ManifestHeader) -> None:
    """Write the coreset with the header in the schema metadata; not atomic by itself."""
    text = header_text(header)
    write_table(path, coreset.replace_schema_metadata({METADATA_KEY: text.encode()}))


def read_coreset(path: Path, version: int) -> pa.Table:
    """The coreset in a manifest of any format, with the columns of `SCHEMA`.

    Raises `StoreFormatError` when the file is missing or damaged.
    """
    return with_version(read_table(path), version)


def with_version(coreset: pa.Table, version: int) -> pa.Table:
    """The table with the column `version` in front, which formats 1 and 2 did not have."""
    if "version" in coreset.column_names:
        return coreset
    versions = pa.array(np.full(len(coreset), version, np.int32))
    return coreset.add_column(0, SCHEMA.field("version"), versions)


def read_header(path: Path) -> ManifestHeader:
    """The header of a manifest.

    Raises `StoreFormatError` when the file is missing, damaged, or of a newer format.
    """
    metadata = read_schema(path).metadata or {}
    try:
        content = json.loads(metadata[METADATA_KEY])
    except (KeyError, ValueError):
        raise StoreFormatError(
            f"{path} has no gracekit header in its schema metadata: another program rewrote it; "
            "restore it from a backup"
        ) from None
    return parse_header(content, path)


def read_sidecar(path: Path) -> ManifestHeader:
    """The header in the JSON beside a manifest; raises as `read_header`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreFormatError(f"cannot read {path}: {error}; restore it from a backup") from None
    return parse_header(content, path)


def parse_header(content: Any, path: Path) -> ManifestHeader:
    """The header that a file of any format holds as JSON, with the present names of its files.

    Raises `StoreFormatError` when it is damaged, or of a newer format.
    """
    check_format(content, path)
    try:
        named = {present_name(name): entry for name, entry in content["files"].items()}
        content = {**content, "files": named}
        return ManifestHeader.from_json(content)
    except (KeyError, AttributeError) as error:
        raise StoreFormatError(f"the header of {path} lacks {error}; restore the file") from None


def header_text(header: ManifestHeader) -> str:
    """The header as strict JSON: what the manifest and the sidecar hold."""
    return json_text(header_json(header))


def header_json(header: ManifestHeader) -> Json:
    """The header in values that strict JSON has."""
    plain: Json = plain_json(header.to_json())
    return plain


def json_text(content: Json) -> str:
    """Strict JSON as the store writes it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def plain_json(value: Any) -> Any:
    """The same in values that strict JSON has.

    NumPy scalars become numbers, NaN and infinities null; keys, paths and other objects become
    text that UTF-8 can hold.
    """
    if isinstance(value, Mapping):
        result: Json = {_text(key): plain_json(item) for key, item in value.items()}
        return result
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain_json(value.tolist())
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _text(value)


def _text(value: object) -> str:
    return clean_text(np.array([str(value)], object))[0]
