"""The format `atlas`: all samples on a plane, for a browser of embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gracekit.protocols import ExportContent
from gracekit.types import Int64, Json, Origin, SampleMap


class Atlas:
    """`atlas.parquet`: a row for each sample of the data, whether it is selected or not.

    `id`, `text` (the first characters), `group`, `projection_x` and `projection_y` (null for a
    sample without features), `neighbors` (`ids`: rows of this file counted from 0, nearest first,
    and `distances`: 1 − cosine), `selected`, `weight` (null where not selected), `importance`,
    `origin`, `confidence`, `measured_step`, `probability` (where the version was drawn with known
    ones), and a column for each score. The names are those that Apple's Embedding Atlas takes.
    """

    file_name = "atlas.parquet"

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """`ExportError` where the version's features are not at hand."""
        pool = content.sample_map()
        rows = np.flatnonzero(pool.samples.present)
        table = _table(pool, rows, content)
        pq.write_table(table, directory / self.file_name, compression="zstd")
        return {"files": [self.file_name], "num_samples": len(rows)}


def _table(pool: SampleMap, rows: Int64, content: ExportContent) -> pa.Table:
    samples, scores = pool.samples, pool.scores
    weights = np.full(len(samples), np.nan, np.float32)
    weights[content.rows] = content.weights
    names = np.array(samples.group_names, object)
    origins = np.array([origin.name.lower() for origin in Origin], object)
    x, y = (pa.array(pool.coordinates[rows, axis], from_pandas=True) for axis in (0, 1))
    columns = {
        "id": pa.array(samples.sample_ids[rows], pa.string()),
        "text": pa.array(samples.previews[rows], pa.string()),
        "group": pa.array(names[samples.groups[rows]], pa.string()),
        "projection_x": x,
        "projection_y": y,
        "neighbors": _neighbors(pool, rows),
        "selected": pa.array(~np.isnan(weights[rows])),
        "weight": pa.array(weights[rows], from_pandas=True),
        "importance": pa.array(scores.importance[rows], from_pandas=True),
        "origin": pa.array(origins[scores.origin[rows]], pa.string()),
        "confidence": pa.array(scores.confidence[rows], from_pandas=True),
        "measured_step": pa.array(scores.measured_step[rows]),
    }
    if pool.probabilities is not None:
        columns["probability"] = pa.array(pool.probabilities[rows], from_pandas=True)
    for name, values in scores.scores.items():
        columns.setdefault(name, pa.array(values[rows], from_pandas=True))
    return pa.table(columns)


def _neighbors(pool: SampleMap, rows: Int64) -> pa.Array:
    """The neighbours of each row as places in the file."""
    place = np.full(len(pool.samples), -1, np.int64)
    place[rows] = np.arange(len(rows))
    near = pool.graph.neighbors[rows]
    found = np.where(near >= 0, place[near], -1)
    is_there = found >= 0
    offsets = np.concatenate([[0], np.cumsum(is_there.sum(axis=1))]).astype(np.int32)
    distances = (1 - pool.graph.similarities[rows])[is_there].astype(np.float32)
    lists = {
        "ids": pa.ListArray.from_arrays(offsets, found[is_there]),
        "distances": pa.ListArray.from_arrays(offsets, distances),
    }
    return pa.StructArray.from_arrays(list(lists.values()), names=list(lists))
