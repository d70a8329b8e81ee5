"""The model pass of a refresh, resumable: finished shards are kept until the version is made."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gracekit.errors import MeasureError, RefreshStoppedError
from gracekit.progress import Progress
from gracekit.protocols import Executor
from gracekit.scores.changes import as_changes
from gracekit.store import ShardFiles
from gracekit.types import Bool, Float32, MeasuredTarget, Measurement, Rows

logger = logging.getLogger(__name__)


class MeasuredRows:
    """Implements `step.Measure` for one checkpoint: no row is measured twice.

    Rows of a run that was stopped or killed are taken from its shards.

    Args:
        executor: Runs the model; let go of by `finish`, or at the end of the block. The caller
            keeps no reference to it, so that the model's memory is free for what follows.
        shards: Where finished shards are kept.
        look_shards: Where those are kept that have features alone.
        present: [n] rows of the store that are in the data.
        progress: Told of the pass; ends it after the batch in progress.
        earlier: Losses that some scores are compared with (see `scores.changes`).
        when_finished: Called by `finish`: lets go of what else was held for measuring.
    """

    def __init__(
        self,
        executor: Executor,
        shards: ShardFiles,
        look_shards: ShardFiles,
        present: Bool,
        progress: Progress | None = None,
        earlier: dict[str, Float32] | None = None,
        *,
        when_finished: Callable[[], object] = lambda: None,
    ) -> None:
        self._executor: Executor | None = executor
        self._shards, self._look_shards = shards, look_shards
        self._progress = progress or Progress()
        self._earlier = earlier or {}
        self._when_finished = when_finished
        self._parts = shards.load()
        self._is_known = np.zeros(len(present), bool)
        for part in self._parts:
            self._is_known[part.rows] = True
        self._num_done = self.num_resumed = sum(len(part.rows) for part in self._parts)
        """Rows that an earlier run had measured."""
        self.model_pass_s = 0.0
        """Wall seconds so far."""
        self.optimizer: dict[str, Any] | None = None
        """What was found of the trainer's optimizer, if a score asked for it; known at the end."""
        if self.num_resumed:
            logger.info("going on from %d rows of an earlier run", self.num_resumed)

    def __call__(self, rows: Rows) -> Measurement:
        """Measure the rows that are not measured yet; returns all of them in the given order.

        Raises `RefreshStoppedError` when a stop was asked for.
        """
        assert self._executor is not None, "finished"
        started = time.perf_counter()
        missing = rows[~self._is_known[rows]]
        if len(missing):
            still = np.zeros(len(self._is_known), bool)
            still[missing] = True
            with closing(self._saved(missing, still)) as shards:
                found = Measurement.arranged(shards, missing)
            if self._progress.is_stopping:
                raise RefreshStoppedError(
                    f"stopped after {self._num_done} of the rows to measure; the next start "
                    "goes on from them, and the last published version is unchanged"
                )
            _require_none(still, self._executor)
            if found is not None:
                self._parts.append(found)
            self._is_known[missing] = True
        self.model_pass_s += time.perf_counter() - started
        self._put_in_order(rows)
        (whole,) = self._parts
        return as_changes(whole.first(len(rows)), self._earlier)

    def look(self, rows: Rows) -> NDArray[np.float16]:
        """[rows, d] the features alone; those that an earlier run had are taken from its shards.

        Raises `RefreshStoppedError` when a stop was asked for.
        """
        assert self._executor is not None, "finished"
        started = time.perf_counter()
        found = self._look_shards.load()
        known = np.concatenate([part.rows for part in found]) if found else rows[:0]
        missing = rows[~np.isin(rows, known)]
        if len(missing):
            still = np.zeros(len(self._is_known), bool)
            still[missing] = True
            shards = self._executor.look(missing, self._progress)
            with closing(_asked_for(shards, still, self._executor)) as looks:
                for shard in looks:
                    self._look_shards.save(shard)
                    found.append(shard)
            if self._progress.is_stopping:
                raise RefreshStoppedError(
                    f"stopped after the features of {sum(len(part.rows) for part in found)} rows; "
                    "the next start goes on from them, and the last published version is unchanged"
                )
            _require_none(still, self._executor)
        self.model_pass_s += time.perf_counter() - started
        if not found:
            return np.zeros((0, 1), np.float16)
        is_known = np.zeros(len(self._is_known), bool)
        for part in found:
            is_known[part.rows] = True
        every = Measurement.arranged(_one_by_one(found), _these_first(rows, is_known))
        assert every is not None
        return np.asarray(every.features[: len(rows)], np.float16)

    def finish(self) -> MeasuredTarget | None:
        """What the model says of the target set, if there is one; its memory is free afterwards."""
        assert self._executor is not None, "finished"
        target = self._executor.target()
        self.optimizer = self._executor.optimizer()
        self._close()
        self._when_finished()
        return target

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def _put_in_order(self, rows: Rows) -> None:
        """Make one part of all, these rows first: what is returned is a view of it, no copy."""
        if len(self._parts) == 1 and np.array_equal(self._parts[0].rows[: len(rows)], rows):
            return
        order = _these_first(rows, self._is_known)
        whole = Measurement.arranged(_one_by_one(self._parts), order)
        self._parts = [] if whole is None else [whole]

    def _saved(self, missing: Rows, still: Bool) -> Generator[Measurement]:
        """The shards of these rows, each once it is on disk; see `_asked_for`."""
        assert self._executor is not None
        shards = self._executor.measure(missing, self._progress)
        with closing(_asked_for(shards, still, self._executor)) as asked_for:
            for shard in asked_for:
                self._shards.save(shard)
                self._num_done += len(shard.rows)
                yield shard


def _asked_for(
    shards: Iterator[Measurement], still: Bool, executor: Executor
) -> Generator[Measurement]:
    """The shards; `still` [n], the rows that are asked for, becomes those that are not there yet.

    When it is closed so are they, whatever still refers to them: claims of a shard end with it.

    A row that comes twice counts as the last one of them. Raises `MeasureError` for rows that
    nobody asked for: an executor may be a class of the user's.
    """
    asked = still.copy()
    try:
        for shard in shards:
            was_asked = (shard.rows >= 0) & (shard.rows < len(asked))
            was_asked[was_asked] = asked[shard.rows[was_asked]]
            others = shard.rows[~was_asked]
            if len(others):
                raise MeasureError(
                    f"{type(executor).__name__} gave {len(others)} rows that it was not asked "
                    f"for, such as row {others[0]}; an executor gives exactly the rows that it is "
                    "asked for"
                )
            still[shard.rows] = False
            yield shard
    finally:
        if isinstance(shards, Generator):
            shards.close()


def _require_none(still: Bool, executor: Executor) -> None:
    """Raise `MeasureError` where rows [n] that were asked for are not there."""
    left = np.flatnonzero(still)
    if len(left):
        raise MeasureError(
            f"{type(executor).__name__} left out {len(left)} of the rows that it was asked for, "
            f"such as row {left[0]}; an executor gives exactly the rows that it is asked for"
        )


def _one_by_one(parts: list[Measurement]) -> Iterator[Measurement]:
    """The parts, which the list then no longer has."""
    while parts:
        yield parts.pop(0)


def _these_first(rows: Rows, is_known: Bool) -> Rows:
    """All known rows: these in their order, then the others."""
    is_other = is_known.copy()
    is_other[rows] = False
    return np.concatenate([rows, np.flatnonzero(is_other)])
