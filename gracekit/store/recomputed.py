"""`gracekit verify --deep`: what can be made again from other files of the store is made again.

Checksums tell that a file is as it was written. These checks tell that what was written is right:
counts of the headers, the columns that a coreset has from the sample table and the scores, weights
that follow from a draw, and the published database.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from gracekit.errors import StoreError, StoreFormatError
from gracekit.store.files.draws import read_draw
from gracekit.store.files.migrations import is_old
from gracekit.store.files.samples import dataset_info
from gracekit.store.problems import RECOVER, RESTORE, Problem, problem
from gracekit.store.reader import StoreReader
from gracekit.store.sql import database
from gracekit.types import SampleTable, ScoreTable
from gracekit.version.columns import ORIGIN_NAMES
from gracekit.version.header import Header

_WEIGHT_TOLERANCE = 1e-5
"""Relative, of sums and weights in float32."""


def recompute(store: StoreReader) -> Iterator[Problem]:
    """What differs from what other files say, of all versions that verify and of the database."""
    for version in store.versions():
        try:
            header, samples = store.header(version), store.samples(version)
            scores, coreset = store.scores(version), store.coreset(version)
        except StoreError:
            continue  # which the check before this one reports
        path = store.paths.manifest(version)
        found = [
            *_counts(header, samples, scores, coreset),
            *_columns(header, samples, scores, coreset),
            *_overlap(store, header, coreset),
            *_positions(header, samples),
            *_weights(store, header, coreset),
        ]
        for what in found:
            yield problem(store, path, what, RESTORE)
    yield from _database(store)


def _counts(
    header: Header, samples: SampleTable, scores: ScoreTable, coreset: pa.Table
) -> Iterator[str]:
    stats, rows = header.stats, coreset["row"].to_numpy()
    counts = np.bincount(samples.groups[rows], minlength=len(samples.group_names)).tolist()
    told = [stats.groups.get(str(name), 0) for name in samples.group_names]
    if len(told) == len(stats.groups) and counts != told:
        yield f"its header counts {told} selected samples by group, there are {counts}"
    weight_sum = float(coreset["weight"].to_numpy().sum(dtype=np.float64))
    if stats.weight_sum is not None and not np.isclose(
        stats.weight_sum, weight_sum, rtol=_WEIGHT_TOLERANCE, equal_nan=True
    ):
        yield f"its header says weights of {stats.weight_sum} in all, they are {weight_sum}"
    if stats.num_samples != (present := int(samples.present.sum())):
        yield f"its header says {stats.num_samples} samples, the sample table has {present}"
    if stats.origins is not None and header.scores_version == header.version:
        of_origin = np.bincount(scores.origin, minlength=len(ORIGIN_NAMES)).tolist()
        if stats.origins != dict(zip(ORIGIN_NAMES, of_origin, strict=True)):
            yield f"its header says {stats.origins} of scores, the origins are {of_origin}"


def _columns(
    header: Header, samples: SampleTable, scores: ScoreTable, coreset: pa.Table
) -> Iterator[str]:
    rows = coreset["row"].to_numpy()
    groups = np.array(samples.group_names, object)[samples.groups[rows]].tolist()
    expected = {"group": groups, "importance": scores.importance[rows].tolist()}
    for name, values in expected.items():
        if name in coreset.column_names and coreset[name].to_pylist() != values:
            yield f"its column {name} is not what the scores and the sample table say"


def _overlap(store: StoreReader, header: Header, coreset: pa.Table) -> Iterator[str]:
    parent, told = header.parent_version, header.stats.overlap_with_parent
    if parent is None or told is None or parent not in store.versions():
        return
    before, rows = store.coreset(parent)["row"].to_numpy(), coreset["row"].to_numpy()
    kept = len(np.intersect1d(before, rows))
    union = len(before) + len(rows) - kept
    if not np.isclose(told.jaccard, kept / union if union else 1.0):
        yield f"its header says an overlap of {told.jaccard} with version {parent}, it is otherwise"


def _positions(header: Header, samples: SampleTable) -> Iterator[str]:
    dataset = header.dataset
    now = dataset_info(dataset, samples, path=dataset.samples_file, sources={})
    if dataset.positions not in ("first", now.positions):
        yield "its header tells other positions of the samples in the data than the sample table"


def _weights(store: StoreReader, header: Header, coreset: pa.Table) -> Iterator[str]:
    """Weights of a draw are those of the draw's rows, but for a factor that makes their mean 1."""
    path: Path = store.paths.draw(header.version)
    if store.paths.relative(path) not in header.files or header.rollback_of is not None:
        return
    try:
        draw = read_draw(path).draw
    except StoreError:
        return
    if draw is None or not len(coreset):
        return
    expected = draw.weights[coreset["row"].to_numpy()].astype(np.float64)
    found = coreset["weight"].to_numpy().astype(np.float64)
    factor = found.sum() / expected.sum() if expected.sum() else np.nan
    if not np.allclose(found, factor * expected, rtol=_WEIGHT_TOLERANCE):
        yield "its weights are not those of its draw"


def _database(store: StoreReader) -> Iterator[Problem]:
    """Each table of the published database beside one that is made anew from the files."""
    if is_old(store.info) or not store.versions() or store.unreadable():
        return
    try:
        differing = database.differing_tables(store)
    except (duckdb.Error, StoreFormatError):
        return  # damaged, which was reported
    for name in differing:
        what = f"its table {name} is not what the files say"
        yield problem(store, store.paths.database, what, RECOVER)
