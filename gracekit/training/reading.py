"""From a version in a store to the stream that a trainer draws from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from gracekit.errors import DataError, GracekitError, StoreError
from gracekit.store import Lease, StorePaths, bring, read_sample_rows, read_trainer_draw
from gracekit.texts import Texts
from gracekit.training.chances import Chances
from gracekit.training.coreset import Coreset
from gracekit.training.ranks import decide_on_rank_zero
from gracekit.training.stream import StoreRows, Stream
from gracekit.types import Int64

Mode = Literal["cycle", "weighted"]
Redraw = Literal["pass", "epoch", "never"]


logger = logging.getLogger("gracekit.training")


class VersionReader:
    """Reads versions for one trainer, which holds a lease on those that it reads."""

    def __init__(
        self,
        store: Path,
        dataset: int | Sequence[str],
        lease: Lease,
        *,
        seed: int,
        mode: Mode,
        redraw: Redraw,
        weighs: bool = True,
    ) -> None:
        self.dataset = dataset
        """Sample id of each row of the trainer's dataset, or its number of rows."""
        self._store, self._lease = store, lease
        self._seed: int = seed
        self._mode: Mode = mode
        self._redraw: Redraw = redraw
        self._weighs = weighs
        self._warned: set[str] = set()

    def read(self, version: int) -> Stream | None:
        """What is drawn from a version; None, with a warning, where it cannot be used."""
        self._lease.add(version)  # before reading: gc looks for it after it marked a version
        try:
            bring(self._store, version)
            return read_stream(
                self._store,
                version,
                self.dataset,
                seed=self._seed,
                mode=self._mode,
                redraw=self._redraw,
                weighs=self._weighs,
                warn=self.warn_once,
            )
        except GracekitError as error:
            self.warn_once(f"coreset version {version} is not used: {error}")
            return None

    def read_together(self, version: int) -> Stream | None:
        """`read` on rank 0, for all ranks."""
        return decide_on_rank_zero(lambda: self.read(version))

    def warn_once(self, message: str, key: str | None = None) -> None:
        """Warn, unless the same (or something of the same key) was told before."""
        if (key or message) not in self._warned:
            self._warned.add(key or message)
            logger.warning("%s", message)


def whole_dataset(num_rows: int, seed: int) -> Stream:
    """What is drawn from while there is no version."""
    return Stream(
        version=0,
        step=-1,
        positions=np.arange(num_rows),
        weights=np.ones(num_rows, np.float32),
        seed=seed,
    )


def read_stream(
    store: Path,
    version: int,
    dataset: int | Sequence[str],
    *,
    seed: int,
    mode: Mode,
    redraw: Redraw,
    weighs: bool,
    warn: Callable[[str], None],
) -> Stream:
    """The stream of a version.

    Args:
        store: Directory of the store.
        version: A version that has a manifest.
        dataset: Sample id of each row of the trainer's dataset, or its number of rows.
        seed: Of the order.
        mode: Whether samples are repeated by weight.
        redraw: When the coreset is drawn anew, where probabilities are known.
        weighs: Whether weights reach the trainer's loss (`Chances.of`).
        warn: Told of what does not keep the version from being used.

    Raises:
        GracekitError: The version cannot be read, or is of other data.
    """
    coreset = Coreset.load(store, version)
    positions = coreset.locate(dataset)
    there = positions >= 0
    if not there.any():
        raise DataError(f"coreset version {version} is empty")
    if not there.all():
        warn(
            f"coreset version {version}: {int((~there).sum())} of its {len(there)} samples are "
            "not in the trainer's dataset and are left out"
        )
    num_rows = dataset if isinstance(dataset, int) else len(dataset)
    weights = np.ones(num_rows, np.float32)
    weights[positions[there]] = coreset.weights[there]
    stream = Stream(
        version=version,
        step=coreset.step,
        positions=positions[there],
        weights=weights,
        repeats=mode == "weighted",
        seed=seed,
        is_rollback=coreset.view.rollback_of is not None,
        once_an_epoch=redraw == "epoch",
    )
    paths = StorePaths(store)
    if not paths.info.is_file():  # a copy of the manifests alone
        return stream
    try:
        where = _store_rows(paths, coreset, dataset)
        stream = replace(stream, store_rows=where)
        draw = None if redraw == "never" else read_trainer_draw(paths, version, coreset.view)
    except StoreError as error:
        warn(f"coreset version {version} is not drawn anew: {error}")
        return stream
    if draw is None:
        return stream
    if len(draw.probabilities) != where.num_rows:
        warn(
            f"coreset version {version} is not drawn anew: it has probabilities of "
            f"{len(draw.probabilities)} rows and a sample table of {where.num_rows}; run "
            "`gracekit verify`"
        )
        return stream
    chances = Chances.of(
        draw, where.rows, coreset.view.max_uses, weighs=weighs or mode == "weighted"
    )
    num_absent = int((draw.probabilities > 0).sum() - (chances.probabilities > 0).sum())
    if num_absent:
        warn(
            f"coreset version {version} is drawn from "
            f"{int((chances.probabilities > 0).sum())} rows: {num_absent} more that it could have "
            "drawn are not in the trainer's dataset, so the others are drawn more often"
        )
    return replace(stream, chances=chances)


def _store_rows(paths: StorePaths, coreset: Coreset, dataset: int | Sequence[str]) -> StoreRows:
    """Which row of the store each row of the dataset is, once `Coreset.locate` has found it fit."""
    samples = read_sample_rows(paths, coreset.view, with_ids=not isinstance(dataset, int))
    rows: Int64
    if samples.sample_ids is None:
        assert isinstance(dataset, int)
        rows = np.full(dataset, -1, np.int64)
        present = np.flatnonzero(samples.source_rows >= 0)
        rows[samples.source_rows[present]] = present
    else:
        assert not isinstance(dataset, int)
        rows = samples.sample_ids.places_of(Texts.of(dataset))
    return StoreRows(
        rows=rows,
        num_rows=len(samples),
        content_versions=samples.content_versions,
        data=coreset.view.positions,
        sources=frozenset(coreset.view.sources),
        version=coreset.version,
    )
