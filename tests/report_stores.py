"""Stores for the tests of reports, with content that a report should find.

Features lie in four clouds, one a group. Losses fall from version to version, but those of
`DOUBTFUL` rows stay the highest, and `FORGOTTEN` ones rise again. Rows 0 and 1 have one content,
rows 2 and 3 nearly the same features. With `is_aimed`, cloud 0 is like the target.

    python -m tests.report_stores DIRECTORY [ROWS] [VERSIONS]     # a large one, to look at
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gracekit.graph import build_index, unit_features
from gracekit.recipe import DataSection, GraphSection, ScoringSection
from gracekit.store import CachePayload, Store, VersionDraft
from gracekit.types import (
    Draw,
    DrawState,
    Float32,
    Measurement,
    Origin,
    Places,
    Reason,
    RefreshPlan,
    SampleTable,
    ScoreTable,
    Selection,
)
from gracekit.version.header import CheckpointInfo, DataDescription, Settings, Timings
from gracekit.version.outcomes import Cost, Meter
from tests.stores import make_audit, strings

GROUPS = ("chat", "code", "maths", "stories")
WIDTH = 16
DOUBTFUL = (10, 11)
FORGOTTEN = (12,)


def text_of(row: int) -> str:
    """A text for a preview."""
    return f"Question {row}: how far is it? → It is {row} miles."


def samples_of(n: int, preview: Callable[[int], str] = text_of) -> SampleTable:
    """[n] samples; rows 0 and 1 have one content."""
    rng = np.random.default_rng(1)
    hashes = [f"{i:032x}" for i in range(n)]
    hashes[1] = hashes[0]
    return SampleTable(
        sample_ids=strings([f"id-{i:06d}" for i in range(n)]),
        groups=(np.arange(n) % len(GROUPS)).astype(np.int32),
        group_names=GROUPS,
        num_prompt_tokens=rng.integers(1, 200, n).astype(np.int32),
        num_response_tokens=np.maximum(1, rng.lognormal(3.5, 1.0, n)).astype(np.int32),
        content_hashes=strings(hashes),
        source_rows=np.arange(n, dtype=np.int64),
        previews=strings([preview(i) for i in range(n)]),
        num_source_rows=n,
        fingerprint=f"report-{n}",
    )


def features_of(n: int, version: int) -> Float32:
    """[n, WIDTH] clouds that drift slowly."""
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(len(GROUPS), WIDTH)) * 3
    found = centres[np.arange(n) % len(GROUPS)] + rng.normal(size=(n, WIDTH))
    found[3] = found[2] + 0.001
    drift = np.random.default_rng(version).normal(size=found.shape)
    return np.asarray(found + 0.02 * version * drift, np.float32)


def losses_of(n: int, version: int) -> Float32:
    """[n] that fall, but for some."""
    start = np.random.default_rng(3).uniform(1.0, 3.0, n)
    found = start * 0.8 ** (version - 1)
    found[list(DOUBTFUL)] = 6.0 + 0.1 * version
    found[list(FORGOTTEN)] = 0.5 + 0.8 * version
    return np.asarray(found, np.float32)


def draft_of(
    store: Store, *, measured: float = 0.5, is_aimed: bool = False, is_indexed: bool = True
) -> VersionDraft:
    """The next version of a store: measures a share of the rows, and draws an eighth of them.

    Of many rows the graph takes longest: `is_indexed=False` leaves it out.
    """
    n, version = len(store.samples()), store.next_version()
    rng = np.random.default_rng(100 + version)
    losses = losses_of(n, version)
    norms = (losses * rng.uniform(0.8, 1.2, n)).astype(np.float32)
    importance = (np.argsort(np.argsort(norms)) / max(n - 1, 1)).astype(np.float32)
    always = [*DOUBTFUL, *FORGOTTEN]
    rows = np.unique(np.concatenate([always, rng.permutation(n)[: int(measured * n)]]))
    origin = np.full(n, Origin.PROPAGATED, np.uint8)
    origin[rows] = Origin.MEASURED
    scores = ScoreTable(
        scores={"gradient-norm": norms, "loss": losses},
        importance=importance,
        origin=origin,
        measured_step=np.where(origin == Origin.MEASURED, 100 * version, -1).astype(np.int64),
        measured_version=np.where(origin == Origin.MEASURED, version, 0).astype(np.int64),
        confidence=np.ones(n, np.float32),
    )
    size = n // 8
    chosen = rng.choice(n, size, replace=False, p=(importance + 0.2) / (importance + 0.2).sum())
    probabilities = np.minimum(size * (importance + 0.2) / (importance + 0.2).sum(), 1.0)
    weights = (1 / probabilities[chosen]).astype(np.float32)
    features = features_of(n, version)
    unit = unit_features(features, np.ones(n, bool))
    save_index = None
    if is_indexed:
        save_index = build_index(unit, GraphSection(), valid=np.ones(n, bool), seed=0).save
    places = None
    if is_aimed:
        likeness = (unit @ unit[0]).astype(np.float32)
        places = Places(factors={"aim": np.exp(likeness)}, signals={"likeness": likeness})
    return VersionDraft(
        operation="init" if version == 1 else "refresh",
        refresh_id=f"refresh-{version}",
        recipe_digest="recipe",
        selection=Selection(
            rows=chosen,
            gains=np.zeros(size, np.float32),
            weights=weights / weights.mean(dtype=np.float32),
            objective=0.0,
            details={"num_candidates": n},
            draw=Draw(
                probabilities=probabilities,
                weights=(probabilities.mean() / probabilities).astype(np.float32),
                places=np.arange(n, dtype=np.int32),
                parts=np.zeros(n, np.int32),
            ),
        ),
        scores=scores,
        places=places,
        state=DrawState(
            uses=rng.poisson((version - 1) / 8, n).astype(np.int32),
            owed=np.zeros(n),
            start_low=np.zeros(n),
            start_high=np.ones(n),
        ),
        measurement=Measurement(
            rows=rows,
            scores={name: values[rows] for name, values in scores.scores.items()},
            features=features[rows],
        ),
        plan=RefreshPlan(rows=rows, reasons=np.full(len(rows), Reason.PROBE, np.uint8)),
        audit=make_audit(),
        meter=Meter(
            value=1.3 + 0.02 * version, value_low=1.2, value_high=1.45, best=1.5, best_low=1.4,
            best_high=1.6, value_kept=0.6 + 0.04 * version, value_kept_low=0.45,
            value_kept_high=0.8, num_told_by=len(rows), share_measured=0.5, can_gain=True,
            target=0.5, target_met=True,
        ),
        cost=Cost(
            cost=2000.0, cost_in_all=2000.0 * version, allowance=5000.0, trained_tokens=1e4,
            training_tokens=1e5, cost_seconds=3.0 * version, training_seconds=200.0, max_cost=0.1,
        ),
        cache=CachePayload(
            features=features.astype(np.float16), valid=np.ones(n, bool), save_index=save_index
        ),
        checkpoint=CheckpointInfo(step=100 * version, path=f"/runs/checkpoint-{100 * version}"),
        settings=Settings(
            scoring=ScoringSection(scores=("gradient-norm", "loss")), graph=GraphSection()
        ),
        timings=Timings(model_pass_s=2.0, other_s=0.5, total_s=2.5),
    )  # fmt: skip


def report_store(
    root: Path,
    n: int = 240,
    versions: int = 3,
    *,
    preview: Callable[[int], str] = text_of,
    is_aimed: bool = False,
) -> Store:
    """A store with content that a report should find."""
    description = DataDescription(settings=DataSection(path="train.jsonl", format="messages"))
    store = Store.create(root, samples=samples_of(n, preview), dataset=description)
    for _ in range(versions):
        store.commit(draft_of(store, is_aimed=is_aimed))
    return store


if __name__ == "__main__":
    report_store(Path(sys.argv[1]), *map(int, sys.argv[2:]))
