"""Stores whose versions can be drawn from anew, for tests of the trainer's side."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from gracekit.recipe import SelectionSection
from gracekit.store import Store
from gracekit.types import Draw, DrawState, Float64, Selection
from gracekit.version.header import CheckpointInfo, Settings
from tests.stores import make_draft, make_store


def make_draw(n: int, *, seed: int, sizes: tuple[int, ...] = (4, 6)) -> Draw:
    """Unequal probabilities in parts that have so many rows each in every draw."""
    rng = np.random.default_rng(seed)
    parts = np.sort(np.arange(n) % len(sizes)).astype(np.int32)
    places = np.empty(n, np.int32)
    for part in range(len(sizes)):  # rows of a part are together
        rows = np.flatnonzero(parts == part)
        places[rows] = rng.permutation(len(rows)) + rows.min()
    probabilities: Float64 = rng.random(n) + 0.3
    for part, size in enumerate(sizes):
        rows = np.flatnonzero(parts == part)
        probabilities[rows] *= size / probabilities[rows].sum()
    assert probabilities.max() < 1
    mean = np.bincount(parts, probabilities) / np.bincount(parts)
    return Draw(
        probabilities=probabilities,
        weights=(mean[parts] / probabilities).astype(np.float32),
        places=places,
        parts=parts,
    )


def selection_of(draw: Draw) -> Selection:
    """Some rows: those of largest probability."""
    size = round(float(draw.probabilities.sum()))
    rows = np.argsort(-draw.probabilities, kind="stable")[:size]
    weights = draw.weights[rows]
    return Selection(
        rows=rows,
        gains=np.zeros(size, np.float32),
        weights=weights / weights.mean(dtype=np.float32),
        objective=0.0,
        draw=draw,
    )


def publish_draw(
    store: Store, *, step: int | None = None, draw: Draw | None = None, **selection: Any
) -> Draw:
    """Commit the next version with probabilities; returns them."""
    version, n = store.next_version(), len(store.samples())
    draw = draw or make_draw(n, seed=version)
    draft = make_draft(store, f"refresh-{version}")
    draft = dataclasses.replace(
        draft,
        selection=selection_of(draw),
        state=DrawState.none(n),
        checkpoint=CheckpointInfo(step=100 * version if step is None else step),
        settings=Settings(selection=SelectionSection(selector="balanced", **selection)),
    )
    store.commit(draft)
    return draw


def drawable_store(root: Path, n: int = 24, versions: int = 1) -> Store:
    """A store with versions that can be drawn from anew."""
    store = make_store(root, n)
    for _ in range(versions):
        publish_draw(store)
    return store
