"""Small stores for tests: samples, drafts and commits with known content."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from gracekit.recipe import DataSection
from gracekit.samples import merge
from gracekit.store import CachePayload, Store, VersionDraft
from gracekit.texts import Texts
from gracekit.types import (
    Measurement,
    Origin,
    Reason,
    RefreshPlan,
    SampleTable,
    ScoreTable,
    Selection,
)
from gracekit.version import FORMAT_VERSION
from gracekit.version.header import (
    CheckpointInfo,
    DataDescription,
    DatasetInfo,
    Header,
    Settings,
    Stats,
    Timings,
)
from gracekit.version.outcomes import Audit, Meter, RefreshOutcome

N = 24
GROUPS = ("chat", "code", "maths")


strings = Texts.of


def make_samples(n: int = N) -> SampleTable:
    return SampleTable(
        sample_ids=strings([f"id-{i:03d}" for i in range(n)]),
        groups=(np.arange(n) % len(GROUPS)).astype(np.int32),
        group_names=GROUPS,
        num_prompt_tokens=np.arange(n, dtype=np.int32),
        num_response_tokens=np.arange(n, dtype=np.int32) + 1,
        content_hashes=strings([f"{i:032x}" for i in range(n)]),
        source_rows=2 * np.arange(n, dtype=np.int64),
        previews=strings([f"sample {i}" for i in range(n)]),
        num_source_rows=2 * n,
        fingerprint="fingerprint-of-the-data",
    )


def changed_samples(store: Store) -> SampleTable:
    """The store's samples at its next version: two leave, one changes, three join, all move."""
    known, version = store.samples(), store.next_version()
    stay = np.flatnonzero(known.present)[2:][::-1]
    n = len(stay) + 3
    new = make_samples(len(known) + 3)
    rows = np.concatenate([stay, len(known) + np.arange(3)])
    hashes = [*known.content_hashes[stay], *new.content_hashes[rows[len(stay) :]]]
    hashes[0] = f"{version:032x}"
    data = SampleTable(
        sample_ids=new.sample_ids[rows],
        groups=new.groups[rows],
        group_names=GROUPS,
        num_prompt_tokens=new.num_prompt_tokens[rows],
        num_response_tokens=new.num_response_tokens[rows],
        content_hashes=strings(hashes),
        source_rows=3 * np.arange(n, dtype=np.int64),
        previews=new.previews[rows],
        num_source_rows=3 * n,
        fingerprint=f"fingerprint-of-the-data-of-version-{version}",
    )
    return merge(known, data, version=version).samples


def make_store(root: Path, n: int = N) -> Store:
    description = DataDescription(settings=DataSection(path="train.jsonl", format="messages"))
    return Store.create(root, samples=make_samples(n), dataset=description)


def outcome(header: Header) -> RefreshOutcome:
    """Of a version that measured something."""
    assert header.refresh is not None
    return header.refresh


def origins_of(header: Header) -> dict[str, int]:
    """Where the scores of a refresh came from."""
    assert header.stats.origins is not None
    return header.stats.origins


def make_header(version: int) -> Header:
    """Of a version that selected nothing, without a store."""
    data = DataDescription(settings=DataSection(path="train.jsonl"))
    return Header(
        format_version=FORMAT_VERSION,
        version=version,
        parent_version=None,
        created_at="2026-01-01T00:00:00Z",
        gracekit_version="0",
        operation="init",
        refresh_id="?",
        recipe_digest="?",
        scores_version=version,
        dataset=DatasetInfo(
            **dict(data), fingerprint="?", num_samples=0, num_rows=0, num_source_rows=0
        ),
        checkpoint=CheckpointInfo(step=10),
        settings=Settings(),
        stats=Stats(num_samples=0, num_selected=0),
        files={},
    )


def optimizer_of(header: Header) -> dict[str, Any]:
    """What a version tells of the trainer's optimizer."""
    found = outcome(header).optimizer
    assert found is not None
    return found


def make_scores(n: int, version: int, seed: int) -> ScoreTable:
    rng = np.random.default_rng(seed)
    return ScoreTable(
        scores={
            "gradient-norm": rng.random(n, dtype=np.float32),
            "loss": rng.random(n, dtype=np.float32),
        },
        importance=rng.random(n, dtype=np.float32),
        origin=np.where(np.arange(n) % 2, Origin.MEASURED, Origin.PROPAGATED).astype(np.uint8),
        measured_step=np.full(n, 100 * version, np.int64),
        measured_version=np.full(n, version, np.int64),
        confidence=rng.random(n, dtype=np.float32),
    )


def make_audit() -> Audit:
    return Audit(
        num_probe=4,
        num_measured=12,
        rank_correlation=0.8,
        rank_correlation_stale=0.6,
        rank_correlation_all=0.85,
        calibration=1.1,
        mean_abs_error=0.1,
        mean_abs_error_stale=0.2,
        feature_cosine=0.9,
        feature_cosine_stale=0.7,
        target=0.75,
    )


def make_meter() -> Meter:
    return Meter(
        value=1.2,
        value_low=1.1,
        value_high=1.3,
        best=1.4,
        best_low=1.3,
        best_high=1.5,
        value_kept=0.5,
        num_told_by=40,
        share_measured=0.5,
        can_gain=True,
    )


def make_selection(n: int, size: int, seed: int) -> Selection:
    rng = np.random.default_rng(seed)
    weights = rng.random(size, dtype=np.float32) + 0.5
    return Selection(
        rows=rng.permutation(n)[:size],
        gains=np.sort(rng.random(size, dtype=np.float32))[::-1].copy(),
        weights=weights / weights.mean(dtype=np.float32),
        objective=3.5,
        details={"num_candidates": n},
    )


def save_index(directory: Path) -> None:
    (directory / "lists.bin").write_bytes(b"neighbours")


def make_draft(
    store: Store,
    refresh_id: str,
    *,
    measure_id: str | None = None,
    samples: SampleTable | None = None,
) -> VersionDraft:
    """A refresh whose content follows from the version it will be, with changed data or not."""
    table = samples or store.samples()
    n, version = len(table), store.next_version()
    scores = make_scores(n, version, seed=version)
    scores.origin[~table.present] = Origin.REMOVED
    scores.importance[~table.present] = 0
    selection = make_selection(int(table.present.sum()), n // 3, seed=version)
    selection = dataclasses.replace(selection, rows=np.flatnonzero(table.present)[selection.rows])
    rows = np.random.default_rng(version).permutation(np.flatnonzero(scores.origin == 2))
    reasons = np.full(len(rows), Reason.PRIORITY, np.uint8)
    reasons[:3] = Reason.PROBE
    return VersionDraft(
        operation="init" if version == 1 else "refresh",
        refresh_id=refresh_id,
        recipe_digest="recipe",
        selection=selection,
        scores=scores,
        samples=samples,
        measurement=Measurement(
            rows=rows,
            scores={name: values[rows] for name, values in scores.scores.items()},
            features=np.zeros((len(rows), 4), np.float16),
        ),
        plan=RefreshPlan(rows=rows, reasons=reasons),
        audit=None if version == 1 else make_audit(),
        meter=None if version == 1 else make_meter(),
        cache=CachePayload(
            features=np.full((n, 4), version, np.float16),
            valid=np.ones(n, bool),
            save_index=save_index,
        ),
        measure_id=measure_id,
        checkpoint=CheckpointInfo(
            step=100 * version,
            path=f"/runs/checkpoint-{100 * version}",
            layout="trainer",
            digest=f"digest-{version}",
        ),
        timings=Timings(model_pass_s=2.0, other_s=0.5, total_s=2.5),
    )


def make_reselect(store: Store, refresh_id: str) -> VersionDraft:
    version, present = store.next_version(), np.flatnonzero(store.samples().present)
    selection = make_selection(len(present), 5, seed=version)
    return VersionDraft(
        operation="reselect",
        refresh_id=refresh_id,
        recipe_digest="recipe-2",
        selection=dataclasses.replace(selection, rows=present[selection.rows]),
        scores=None,
        checkpoint=CheckpointInfo(step=100),
    )
