"""`gracekit verify`: every checksum, schema and reference of a store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gracekit.errors import StoreError, StoreFormatError
from gracekit.store.file_checks import check_manifest_seal, check_named, check_unversioned, listed
from gracekit.store.files import cache
from gracekit.store.files.formats import UnreadableError, cannot_open
from gracekit.store.files.manifest_reading import METADATA_KEY
from gracekit.store.files.manifests import SCHEMA, read_coreset, read_sidecar
from gracekit.store.files.migrations import is_old
from gracekit.store.files.parquet import read_schema, read_table
from gracekit.store.files.paths import (
    CACHE_NAME,
    JSON_NAME,
    PARTITION_NAME,
    TABLE_NAME,
    is_there,
)
from gracekit.store.files.pinned import pinned
from gracekit.store.files.samples import read_samples
from gracekit.store.problems import RECOVER, RESTORE, RESTORE_ALL, Problem, problem, told
from gracekit.store.reader import StoreReader
from gracekit.store.recomputed import recompute
from gracekit.store.retention import leftovers, looked_back_at
from gracekit.store.sql import database
from gracekit.texts import Texts
from gracekit.types import SampleTable
from gracekit.version.header import Header

_REMEASURE = (
    "delete it: scores and versions are not affected, but the next refresh measures every sample "
    "once to make it anew, and `gracekit select` has to wait for that"
)
_LOOKED_BACK_AT = (
    "restore it from a backup, or do without: versions are not affected, but the next refresh does "
    "not know how scores changed at the last one"
)
_MOST_SHOWN = 20
_SAMPLES = "restore it from a backup: versions need it"


def verify(store: StoreReader, *, deep: bool = False) -> list[Problem]:
    """All that is wrong with a store, worst first; empty when it is whole.

    Every file is read and compared with its checksum. Nothing is changed. Work in progress of
    another process is not a problem.

    Args:
        store: The store.
        deep: Also make again what other files tell (`recomputed`), and compare.
    """
    return list(problems_of(store, deep=deep))


def problems_of(store: StoreReader, *, deep: bool = False) -> Iterator[Problem]:
    """The same one by one, as they are found."""
    paths = store.renew().paths
    versions = store.manifests()
    yield from check_samples(store, versions)
    for version in versions:
        yield from check_version(store, version)
    removed = sorted(store.look().records)
    # Beside a damaged manifest it is not known which scores stay.
    needed = looked_back_at(store) if versions == store.versions() else None
    for version in removed:
        yield from check_removed(store, version, needs_scores=version == needed)
    made = {*versions, *removed}
    if (what := missing_versions(made)) is not None:
        yield problem(store, paths.manifests, what, RESTORE)
    for path in leftovers(store):
        yield problem(store, path, "is left of a version that gc removed", RECOVER)
    yield from check_unversioned(store)
    yield from _check_pinned(store, versions)
    yield from _check_published(store, made)
    if deep:
        yield from recompute(store)


def missing_versions(made: Collection[int]) -> str | None:
    """Which versions below the highest one are missing; None: none. A name may be of any number."""
    gaps = [range(a + 1, b) for a, b in pairwise([0, *sorted(made)]) if b - a > 1]
    if not gaps:
        return None
    num_more = sum(gap.stop - gap.start for gap in gaps) - _MOST_SHOWN
    more = f" and {num_more:,} more" if num_more > 0 else ""
    return f"versions {list(islice(chain(*gaps), _MOST_SHOWN))}{more} are missing"


def check_samples(store: StoreReader, versions: list[int]) -> Iterator[Problem]:
    """Of every sample table: what is wrong with it by itself, and beside the one before."""
    tables = {store.paths.samples.name: store.info.dataset}
    for version in versions:
        try:
            dataset = store.dataset(version)
        except StoreError:
            continue  # `check_version` reports it
        tables.setdefault(dataset.samples_file, dataset)
    before: SampleTable | None = None
    for name, dataset in tables.items():
        path = store.paths.root / name
        try:
            samples = read_samples(path)
        except StoreError as error:
            yield told(store, path, error, _SAMPLES)
            continue
        if (samples.fingerprint, len(samples)) != (dataset.fingerprint, dataset.num_rows):
            yield problem(store, path, "fingerprint or number of rows are not as written",
                           RESTORE_ALL)  # fmt: skip
        if samples.sample_ids.num_distinct != len(samples):
            yield problem(store, path, "sample ids are not unique", "restore it from a backup")
        if before is not None and not _continues(before, samples):
            yield problem(store, path, "its first rows are other samples than in the table before",
                           RESTORE_ALL)  # fmt: skip
        before = samples


def _continues(before: SampleTable, samples: SampleTable) -> bool:
    return before.sample_ids == samples.sample_ids[: len(before)]


def check_version(store: StoreReader, version: int) -> Iterator[Problem]:
    """Of a kept version: its manifest, its header, and all files that this names."""
    path = store.paths.manifest(version)
    try:
        header = store.header(version)
        coreset = read_coreset(path, version)
    except StoreFormatError as error:
        yield told(store, path, error)
        return
    yield from check_manifest_seal(store, version)
    if header.version != version:
        yield problem(store, path, f"its header says version {header.version}", RESTORE)
    named = ((store.paths.root / name, entry) for name, entry in header.files.items())
    yield from check_named(store, ((store.paths.find(path), entry) for path, entry in named))
    samples = _samples_if_whole(store, version)
    whole = [
        *_coreset_damage(store, coreset, header, samples),
        *_history_damage(store, header, samples),
    ]
    for file, what in whole:
        yield problem(store, file, what, RESTORE)


def _samples_if_whole(store: StoreReader, version: int) -> SampleTable | None:
    """The sample table of a version; None where it is damaged, which `check_samples` reports."""
    try:
        return store.samples(version)
    except StoreError:
        return None


def check_removed(
    store: StoreReader, version: int, *, needs_scores: bool = False
) -> Iterator[Problem]:
    """Of a removed version its record and what was measured at it are left, and no manifest.

    Args:
        store: The store.
        version: One with a removal record.
        needs_scores: Its scores have to be there too: the next refresh looks back at them.
    """
    record = store.paths.find(store.paths.removal(version))
    try:
        header = store.header(version)
    except StoreFormatError as error:
        yield told(store, record, error)
        return
    if header.version != version:
        yield problem(store, record, f"its header says version {header.version}", RESTORE)
    for named, advice in (
        (store.paths.measured(version), RESTORE),
        *([(store.paths.scores(version), _LOOKED_BACK_AT)] if needs_scores else []),
    ):
        entry = header.files.get(store.paths.relative(named))
        if entry is None:  # a reselect, of which nothing is left
            return
        yield from check_named(store, [(store.paths.find(named), entry)], advice)
    for file, what in _history_damage(store, header, None):
        yield problem(store, file, what, RESTORE)


def _check_pinned(store: StoreReader, versions: list[int]) -> Iterator[Problem]:
    try:
        found = pinned(store.paths)
    except OSError:
        return  # `check_unversioned` told it
    for version in found:
        if version not in versions:
            marker = store.paths.pinned_marker(version)
            advice = f"restore the version from a backup, or `gracekit unpin {version}`"
            yield problem(store, marker, "pins a version that is gone", advice)


def _coreset_damage(
    store: StoreReader, coreset: pa.Table, header: Header, samples: SampleTable | None
) -> Iterator[tuple[Path, str]]:
    path = store.paths.manifest(header.version)
    if not coreset.schema.equals(SCHEMA):
        yield path, f"has columns {coreset.column_names}, expected {SCHEMA.names}"
        return
    if (coreset["version"].to_numpy() != header.version).any():
        yield path, f"has rows of another version than {header.version}"
    rows, n = coreset["row"].to_numpy(), header.dataset.num_rows
    if len(rows) != header.stats.num_selected:
        yield path, f"has {len(rows)} rows, its header says {header.stats.num_selected}"
    if not _ascending_rows(rows, n):
        yield path, f"rows are not ascending numbers below {n}"
        return
    weights, ranks = coreset["weight"].to_numpy(), np.sort(coreset["rank"].to_numpy())
    if not (np.isfinite(weights) & (weights > 0)).all():
        yield path, "weights are not positive numbers"
    if not np.array_equal(ranks, np.arange(len(ranks))):
        yield path, "ranks are not 0, 1, 2 …"
    if samples is None or len(samples) != n:
        return
    ids, source_rows = coreset["sample_id"], coreset["source_row"].to_numpy()
    if ids.null_count or samples.sample_ids[rows] != Texts.of_arrow(ids):
        yield path, "sample ids are not those of the sample table"
    elif not np.array_equal(samples.source_rows[rows], source_rows):
        yield path, "source rows are not those of the sample table"


def _history_damage(
    store: StoreReader, header: Header, samples: SampleTable | None
) -> Iterator[tuple[Path, str]]:
    n = header.dataset.num_rows
    checks: dict[Path, Callable[[np.ndarray], bool]] = {
        store.paths.scores(header.version): lambda rows: np.array_equal(rows, np.arange(n)),
        store.paths.draw(header.version): lambda rows: np.array_equal(rows, np.arange(n)),
        store.paths.places(header.version): lambda rows: np.array_equal(rows, np.arange(n)),
        store.paths.measured(header.version): lambda rows: _ascending_rows(rows, n),
    }
    for named, holds in checks.items():
        path = store.paths.find(named)
        if store.paths.relative(named) not in header.files or not is_there(path):
            continue
        try:
            table = read_table(path)
            rows = table["row"].to_numpy()
            gone = None
            if "origin" in table.column_names:
                gone = pc.fill_null(pc.equal(table["origin"], "removed"), False).to_numpy()
        except UnreadableError:
            continue  # `check_named` told it
        except (StoreFormatError, KeyError, pa.ArrowException) as error:
            yield path, str(error)
            continue
        if not holds(rows):
            yield path, f"rows are not those of {n} samples in ascending order"
        elif samples is None or gone is None or len(samples) != n:
            continue
        elif not np.array_equal(gone, ~samples.present):
            yield path, "the removed samples are not those of the sample table"


def _check_published(store: StoreReader, versions: set[int]) -> Iterator[Problem]:
    """What is derived from the manifests: a reader may miss it, nothing is lost."""
    paths = store.paths
    places = (
        (paths.score_history, PARTITION_NAME),
        (paths.measurements, PARTITION_NAME),
        (paths.draws, PARTITION_NAME),
        (paths.old_history, PARTITION_NAME),
        (paths.headers, JSON_NAME),
        (paths.manifests, JSON_NAME),
    )
    orphans: list[Path] = []
    for directory, pattern in places:
        found, obstacles = listed(store, directory, pattern)
        yield from obstacles
        orphans += [path for path, version in found.items() if version not in versions]
    tables, obstacles = listed(store, paths.changed_samples, TABLE_NAME)
    yield from obstacles
    orphans += [path for path, version in tables.items() if version > max(versions, default=0)]
    for path in orphans:
        yield problem(store, path, "belongs to no version (a refresh may be in progress)",
                       RECOVER)  # fmt: skip
    try:
        good = store.versions()
    except StoreFormatError:
        return
    # Beside versions that cannot be read it is not known which one is the latest.
    is_known = not store.unreadable()
    if is_known:
        yield from check_hints(store, good)
    # The database of a store of an older format is of an older schema: the next start replaces it.
    if good and is_known and not is_old(store.info):
        yield from _check_database(store)
    caches, obstacles = listed(store, paths.cache, CACHE_NAME)
    yield from obstacles
    for path in caches:
        try:
            what = cache.damage(path)
        except UnreadableError as error:
            yield told(store, path, error)
            continue
        if what is not None:
            yield problem(store, path, what, _REMEASURE)


def _check_database(store: StoreReader) -> Iterator[Problem]:
    path = store.paths.database
    if (without_access := cannot_open(path)) is not None:
        yield told(store, path, without_access)
    elif (what := database.damage(store)) is not None:
        yield problem(store, path, what, RECOVER)


def check_hints(store: StoreReader, good: list[int]) -> Iterator[Problem]:
    """The headers as JSON of the versions that can be read, ascending; the name of the latest."""
    paths = store.paths
    for version in good:
        sidecar = paths.find(paths.sidecar(version))
        if (without_access := cannot_open(sidecar)) is not None:
            yield told(store, sidecar, without_access)
        elif not _is_header(store, sidecar, version):
            yield problem(store, sidecar, "is missing or differs from its manifest",
                           RECOVER)  # fmt: skip
    if (without_access := cannot_open(paths.latest)) is not None:
        yield told(store, paths.latest, without_access)
    elif good and _content(paths.latest) != f"{good[-1]}\n".encode():
        yield problem(store, paths.latest, f"does not name the latest version, {good[-1]}",
                       RECOVER)  # fmt: skip


def _is_header(store: StoreReader, sidecar: Path, version: int) -> bool:
    """Whether a sidecar says what its manifest does: to the letter, but in an older format."""
    header, found = store.header(version), _content(sidecar)
    if is_old(store.info):
        try:
            return read_sidecar(sidecar).to_json() == header.to_json()
        except StoreFormatError:
            return False
    metadata = read_schema(store.paths.manifest(version)).metadata or {}
    return found in (metadata.get(METADATA_KEY), header.to_text().encode())


def _ascending_rows(rows: np.ndarray, num_samples: int) -> bool:
    if not len(rows):
        return True
    return bool((np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < num_samples)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
