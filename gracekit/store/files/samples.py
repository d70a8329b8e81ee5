"""`samples.parquet`, and `samples/v000012.parquet` where the data changed: the sample table."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gracekit.errors import DataError, StoreFormatError
from gracekit.files import sha256, write_atomic
from gracekit.store.files.parquet import damaged, read_table, text_column, write_table
from gracekit.store.files.tables import arrays, file_schema
from gracekit.texts import Texts
from gracekit.types import Int64, SampleTable
from gracekit.version.columns import SAMPLES
from gracekit.version.header import DataDescription, DatasetInfo, FileInfo

METADATA_KEY = b"gracekit"
_BLOCK = 65_536


def write_samples(path: Path, samples: SampleTable) -> None:
    """Write the table; ids and groups that UTF-8 cannot hold are cleaned (lone surrogates)."""
    ids, names = text_column(samples.sample_ids), text_column(samples.group_names)
    for kind, values in (("sample ids", ids), ("group names", names)):
        if pc.count_distinct(values).as_py() != len(values):
            raise DataError(
                f"two {kind} differ only in characters that UTF-8 cannot hold (lone surrogates); "
                "make them different"
            )
    table = samples_table(samples)
    facts = {
        "group_names": names.to_pylist(),
        "num_source_rows": samples.num_source_rows,
        "fingerprint": samples.fingerprint,
    }
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(facts).encode()})
    write_atomic(path, lambda p: write_table(p, table, SAMPLES.columns))


def dataset_info(
    description: DataDescription, samples: SampleTable, *, path: str, sources: dict[str, int]
) -> DatasetInfo:
    """What headers tell of the data that a sample table is of.

    Args:
        description: Where the data comes from.
        samples: The table.
        path: Of the table's file, relative to the store.
        sources: Of all data that the store followed before.
    """
    rows = np.flatnonzero(samples.present)
    rows = rows[np.argsort(samples.source_rows[rows])]
    ids = Texts.of_arrow(text_column(samples.sample_ids[rows]))
    digest = _digest_of_lists(samples.source_rows[rows], ids)[:16]
    return DatasetInfo(
        **{name: getattr(description, name) for name in DataDescription.model_fields},
        fingerprint=samples.fingerprint,
        num_samples=len(rows),
        num_rows=len(samples),
        num_source_rows=samples.num_source_rows,
        positions=digest,
        sources={**sources, digest: samples.num_source_rows},
        samples_file=path,
    )


def _digest_of_lists(*columns: Int64 | Texts) -> str:
    """sha256 of the JSON of a list of lists, of which there is never more than a block."""
    digest = hashlib.sha256(b"[")
    for position, column in enumerate(columns):
        digest.update(b", [" if position else b"[")
        for start in range(0, len(column), _BLOCK):
            block = json.dumps(column[start : start + _BLOCK].tolist())[1:-1]
            digest.update(f"{', ' if start else ''}{block}".encode())
        digest.update(b"]")
    digest.update(b"]")
    return digest.hexdigest()


def file_info(path: Path) -> FileInfo:
    """What a file was written as, for the header or the `store.json` that names it."""
    return FileInfo(sha256=sha256(path), num_bytes=path.stat().st_size)


def samples_table(samples: SampleTable) -> pa.Table:
    """The columns [n] as files have them."""
    return pa.Table.from_arrays(
        arrays(SAMPLES.columns, samples), schema=file_schema(SAMPLES.columns)
    )


def read_samples(path: Path) -> SampleTable:
    """The inverse of `write_samples`; raises `StoreFormatError` when the file is damaged."""
    table = read_table(path)
    try:
        facts = json.loads((table.schema.metadata or {})[METADATA_KEY])
        names = pa.array(facts["group_names"], pa.string())
        groups = pc.index_in(table["group"], value_set=names)
        samples = SampleTable(
            sample_ids=Texts.of_arrow(table["sample_id"]),
            groups=groups.to_numpy().astype(np.int32),
            group_names=tuple(facts["group_names"]),
            num_prompt_tokens=table["num_prompt_tokens"].to_numpy(),
            num_response_tokens=table["num_response_tokens"].to_numpy(),
            content_hashes=Texts.of_arrow(table["content_hash"]),
            source_rows=_integers(table, "source_row", -1),
            previews=Texts.of_arrow(table["preview"]),
            num_source_rows=facts["num_source_rows"],
            fingerprint=facts["fingerprint"],
            **{
                f"{name}s": _integers(table, name, 0)
                for name in ("added_version", "removed_version", "content_version")
                if name in table.column_names  # not in stores of format version 1
            },
            **{
                f"{name}es": _integers(table, name, 0)
                for name in ("token_hash", "loss_hash")
                if name in table.column_names  # not in stores of earlier releases
            },
        )
    except (KeyError, ValueError, TypeError) as error:
        raise damaged(path, error) from error
    if groups.null_count:
        raise StoreFormatError(f"{path} names groups that its own list lacks; restore it")
    del table, groups
    pa.default_memory_pool().release_unused()  # as much again, which Arrow would keep
    return samples


def _integers(table: pa.Table, name: str, missing: int) -> np.ndarray:
    return np.asarray(pc.fill_null(table[name], missing).to_numpy(), np.int64)
