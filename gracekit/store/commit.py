"""The commit: how a version comes into being, all or nothing.

    samples, history and cache files     each under a temporary name, synced, renamed
      → manifests/v000012.parquet   `link` to its final name: THE commit point
        → headers/v000012.json → scores.duckdb → LATEST      published, from files alone

Invariants, whatever is killed or fails, and wherever:

1. A version is made when its manifest gets its final name, and exists as long as it has it and
   there is no removal record of it (`retention`). Everything that the manifest names was durable
   before and stays, so an existing version is whole.
2. `link` fails when the name exists: a version is made once, and never changes.
3. Before the commit point nothing that a reader sees has changed. What was written is an orphan,
   which `recover` removes.
4. After it, no failure loses the version or reports it as failed: what is left to publish follows
   from the files alone, so the next `recover` or commit publishes it.
5. Versions are numbered 1, 2, 3 … without gaps, and no number is given twice: each up to the latest
   is a version or has a removal record. The latest is never removed.
6. `refresh_id` is in the manifest, and later in the removal record: when a refresh is repeated, the
   version that it made is found (`find_refresh`).
7. What was measured at a version is never removed.

One process at a time commits: it holds the store's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from gracekit import files
from gracekit.errors import StoreWriteError, VersionNotFoundError
from gracekit.store.files.cache import CachePayload, save_cache
from gracekit.store.files.draws import write_draw
from gracekit.store.files.history import write_measured, write_scores
from gracekit.store.files.lock import tell_unfinished
from gracekit.store.files.manifests import coreset_table, write_manifest
from gracekit.store.files.paths import StorePaths
from gracekit.store.files.places import write_places
from gracekit.store.files.samples import dataset_info, file_info, write_samples
from gracekit.store.files.shards import clear_shards
from gracekit.store.publish import publish
from gracekit.store.reader import StoreReader
from gracekit.store.retention import finish, remove_old
from gracekit.types import (
    DrawState,
    Measurement,
    Places,
    RefreshPlan,
    Rows,
    SampleTable,
    ScoreTable,
    Selection,
)
from gracekit.version import FORMAT_VERSION, __version__
from gracekit.version.columns import ORIGIN_NAMES
from gracekit.version.header import (
    CheckpointInfo,
    DataDescription,
    Header,
    Operation,
    Overlap,
    Settings,
    Stats,
    Timings,
)
from gracekit.version.json_text import clean_text, plain_json
from gracekit.version.outcomes import Aim, Audit, Cost, Meter, RefreshOutcome, SelectionDetails
from gracekit.version.sources import DrawnRows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDraft:
    """All that a new version is made of."""

    operation: Operation
    refresh_id: str
    recipe_digest: str
    selection: Selection
    scores: ScoreTable | None
    """None for a reselect, which has those of the newest refresh, and for a rollback."""
    places: Places | None = None
    """What is to be trained on, factor by factor; None: all rows alike."""
    aim: Aim | None = None
    """What was found of the target; None where none is followed."""
    state: DrawState | None = None
    """What the draws before this one gave each row; None: that is not kept."""
    rollback_of: int | None = None
    """The version that a rollback goes back to, whose scores it has."""
    measurement: Measurement | None = None
    """None for a reselect or rollback; its features are not kept here but in the cache."""
    plan: RefreshPlan | None = None
    """Why rows were measured; None where all were."""
    audit: Audit | None = None
    meter: Meter | None = None
    cost: Cost | None = None
    samples: SampleTable | None = None
    """Where the data changed since the version before: the sample table, its known rows first."""
    dataset: DataDescription | None = None
    """Where changed data comes from; None: as before."""
    cache: CachePayload | None = None
    measure_id: str | None = None
    """Names the measurement, by which its shards are found; None where nothing was measured. Once
    the version exists all shards are removed: its own, and those of refreshes that were stopped or
    skipped, which will not be continued."""
    checkpoint: CheckpointInfo
    settings: Settings = field(default_factory=Settings)
    outcome: RefreshOutcome | None = None
    """What the refresh found out; None for a reselect or rollback."""
    timings: Timings = field(default_factory=Timings)


def commit(store: StoreReader, draft: VersionDraft, *, keep: int | None = None) -> int:
    """Make the draft the next version; the caller holds the lock.

    Args:
        store: The store.
        draft: The version.
        keep: Once it exists, remove all but so many newest versions as `collect` does; None: none.

    Raises:
        StoreWriteError: The disk failed before the commit point; the last version is unchanged.
        VersionNotFoundError: A reselect of a store without versions.
    """
    paths = store.paths
    version = store.next_version()
    parent = store.latest()
    samples = store.samples(parent) if draft.samples is None else draft.samples
    _assert_consistent(samples, draft)
    if draft.scores is None and parent is None:
        raise VersionNotFoundError(
            f"the store {paths.root} has no scores to select from yet; "
            "refresh it from a checkpoint first"
        )
    final = paths.manifest(version)
    with files.clear_write_errors(final):
        for leftover in _left_by_a_failed_try(paths, version):
            files.remove(leftover)
        _write_history(store, version, draft)
        if draft.cache is not None:
            save_cache(paths, version, draft.cache)
        header = _header(store, version, parent, draft, samples)
        scores = draft.scores or store.scores(header.scores_version)
        coreset = coreset_table(draft.selection, samples, scores, version=version)
        temporary = files.write_temporary(final, lambda p: write_manifest(p, coreset, header))
    try:
        is_new = files.link_new(temporary, final)
    finally:
        try:
            files.remove(temporary)
        except OSError:  # a leftover, which `recover` removes
            tell_unfinished(paths.root)
    if not is_new:
        raise StoreWriteError(
            f"{final} appeared meanwhile: another process commits to this store without its lock; "
            "stop it and run again"
        )
    with _log_failure(store, version, "it was not read back"):
        store.hold(store.snapshot.with_version(version, store.learn(version)))
    with _log_failure(store, version, "old versions are not removed yet"):
        files.sync_directory(final.parent)
        if keep is not None:
            remove_old(store, keep)
        else:
            finish(store)  # scores of removed versions that only the refresh before needed
    with _log_failure(store, version, "not all of it is published yet"):
        publish(store, has_new=True, has_new_cache=draft.cache is not None)
        if draft.measure_id is not None:
            clear_shards(paths)
    return version


@contextmanager
def _log_failure(store: StoreReader, version: int, what: str) -> Iterator[None]:
    """After the commit point any failure is only logged, because the version exists."""
    try:
        yield
    except Exception as error:
        store.renew()
        tell_unfinished(store.paths.root)
        logger.warning("version %d is committed, but %s (%s); the next start or version does the "
                       "rest", version, what, error)  # fmt: skip


def _assert_consistent(samples: SampleTable, draft: VersionDraft) -> None:
    """A version never changes, so a draft that is wrong by our own fault must not become one."""
    n, rows = len(samples), draft.selection.rows
    assert len(np.unique(rows)) == len(rows), "a row is selected twice"
    assert len(rows) == 0 or (rows.min() >= 0 and rows.max() < n), "no such row"
    assert samples.present[rows].all(), "a removed sample is selected"
    assert draft.scores is None or len(draft.scores) == n, "scores of other samples"
    assert draft.state is None or len(draft.state) == n, "draws of other samples"
    assert draft.places is None or len(draft.places) == n, "places of other samples"
    is_derived = draft.operation in ("reselect", "rollback")
    assert (draft.scores is None) == is_derived, "only a reselect or rollback has none"
    assert (draft.rollback_of is None) == (draft.operation != "rollback"), "back to which version?"
    assert draft.samples is None or draft.scores is not None, "new samples need scores"


def _left_by_a_failed_try(paths: StorePaths, version: int) -> list[Path]:
    """What an earlier try of the same number may have left."""
    return [
        paths.scores(version).parent,
        paths.measured(version).parent,
        paths.draw(version).parent,
        paths.samples_of(version),
        paths.cache_of(version),
    ]


def _write_history(store: StoreReader, version: int, draft: VersionDraft) -> None:
    if draft.samples is not None:
        write_samples(store.paths.samples_of(version), draft.samples)
    if draft.scores is not None:
        write_scores(store.paths.scores(version), draft.scores)
    if draft.measurement is not None:
        step = draft.checkpoint.step
        write_measured(store.paths.measured(version), draft.measurement, draft.plan, step)
    if draft.state is not None:
        write_draw(store.paths.draw(version), DrawnRows(draft.selection.draw, draft.state))
    if draft.places is not None:
        write_places(store.paths.places(version), draft.places)


def _header(
    store: StoreReader, version: int, parent: int | None, draft: VersionDraft, samples: SampleTable
) -> Header:
    paths = store.paths
    dataset = store.dataset(parent)
    if draft.samples is not None:
        dataset = dataset_info(
            draft.dataset or dataset,
            samples,
            path=paths.relative(paths.samples_of(version)),
            sources=dataset.sources,
        )
    scores_version: int | None = version
    if draft.rollback_of is not None:
        scores_version = store.header(draft.rollback_of).scores_version
    elif draft.scores is None:
        scores_version = store.newest_scores()
    assert scores_version is not None
    named = [paths.scores(scores_version)]
    if draft.measurement is not None:
        named.append(paths.measured(version))
    if draft.state is not None:
        named.append(paths.draw(version))
    if draft.places is not None:
        named.append(paths.places(version))
    if dataset.samples_file != paths.samples.name:
        named.append(paths.root / dataset.samples_file)
    return Header(
        format_version=FORMAT_VERSION,
        version=version,
        parent_version=parent,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        gracekit_version=__version__,
        operation=draft.operation,
        refresh_id=draft.refresh_id,
        recipe_digest=draft.recipe_digest,
        scores_version=scores_version,
        rollback_of=draft.rollback_of,
        measure_id=draft.measure_id,
        dataset=dataset,
        checkpoint=draft.checkpoint,
        settings=draft.settings,
        refresh=_outcome(draft),
        audit=draft.audit,
        meter=draft.meter,
        cost=draft.cost,
        aim=draft.aim,
        selection=_selection_details(draft),
        stats=_stats(store, parent, draft, samples),
        timings=draft.timings,
        files={paths.relative(path): file_info(path) for path in named},
    )


def _selection_details(draft: VersionDraft) -> SelectionDetails:
    source = None if draft.state is None else draft.state.source
    details = {**draft.selection.details, "uses_from": source}
    return SelectionDetails.model_validate(plain_json(details))


def _outcome(draft: VersionDraft) -> RefreshOutcome | None:
    if draft.measurement is None:
        return None
    return draft.outcome or RefreshOutcome(num_measured=len(draft.measurement.rows))


def _stats(
    store: StoreReader, parent: int | None, draft: VersionDraft, samples: SampleTable
) -> Stats:
    selection = draft.selection
    counts = np.bincount(samples.groups[selection.rows], minlength=len(samples.group_names))
    added, removed, changed = _data_changes(store, parent, samples)
    origins = None
    if draft.scores is not None:
        of_origin = np.bincount(draft.scores.origin, minlength=len(ORIGIN_NAMES)).tolist()
        origins = dict(zip(ORIGIN_NAMES, of_origin, strict=True))
    return Stats(
        num_samples=int(samples.present.sum()),
        num_added=added,
        num_removed=removed,
        num_changed=changed,
        num_selected=len(selection.rows),
        weight_sum=float(selection.weights.sum(dtype=np.float64)),
        objective=float(selection.objective),
        groups={
            clean_text(name): int(count)
            for name, count in zip(samples.group_names, counts, strict=True)
        },
        overlap_with_parent=_overlap(store, parent, selection.rows),
        num_measured=None if draft.measurement is None else len(draft.measurement.rows),
        origins=origins,
    )


def _data_changes(
    store: StoreReader, parent: int | None, samples: SampleTable
) -> tuple[int, int, int]:
    """Samples that joined, left, or stayed with other content since the version before."""
    before = None if parent is None else store.samples(parent)
    was = np.zeros(len(samples), bool)
    contents = np.zeros(len(samples), np.int64)
    if before is not None:
        was[: len(before)] = before.present
        contents[: len(before)] = before.content_versions
    now = samples.present
    is_changed = was & now & (contents != samples.content_versions)
    return int((now & ~was).sum()), int((was & ~now).sum()), int(is_changed.sum())


def _overlap(store: StoreReader, parent: int | None, rows: Rows) -> Overlap | None:
    """Jaccard index with the parent's coreset, and churn: the share of its rows replaced."""
    if parent is None:
        return None
    before = store.coreset(parent)["row"].to_numpy()
    kept = len(np.intersect1d(before, rows))
    union = len(before) + len(rows) - kept
    return Overlap(
        jaccard=kept / union if union else 1.0,
        churn=1 - kept / len(before) if len(before) else 0.0,
    )
