"""The log of uses, from the trainer's side: written at checkpoints, taken up by a resumed run.

Nothing here stops a training: a store that cannot be written, or a log that cannot be taken up, is
a warning.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from gracekit.errors import StoreFormatError
from gracekit.store import (
    LoggedUses,
    StorePaths,
    UsesFacts,
    read_uses,
    remove_uses_ahead,
    require_uses_fit,
    uses_path,
    write_uses,
)
from gracekit.training.course import Course
from gracekit.training.stream import StoreRows, Stream
from gracekit.types import DrawState, Int64, TrainedLosses


def new_run() -> str:
    """A name for a run that begins now."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True)
class UsesLog:
    """The log of one run in a store."""

    paths: StorePaths
    run: str

    def write(
        self,
        step: int,
        epoch: int,
        *,
        start: Course,
        now: Course,
        num_trained: int,
        versions: tuple[int, ...],
        where: StoreRows,
        losses: TrainedLosses,
        content_version: int,
    ) -> str:
        """Log what the run has used; returns the name of the file.

        Args:
            step: Training step that was done last.
            epoch: Of that step.
            start: The course when the epoch began.
            now: The course after what the epoch was trained on.
            num_trained: Samples of the epoch that it was trained on.
            versions: What the epoch draws from.
            where: The rows of the store.
            losses: That were seen of the rows [n] of the trainer's dataset.
            content_version: Version whose samples the trainer's dataset has the contents of; rows
                that have changed since are logged without a loss.

        Raises:
            StoreWriteError: The store cannot be written.
        """
        before, after = start.state, now.now()
        added = after.uses - before.uses
        drawing = start.drawing
        logged = LoggedUses(
            facts=UsesFacts(
                run=self.run,
                step=step,
                epoch=epoch,
                data=where.data,
                versions=versions,
                newest_version=where.version,
                num_trained=num_trained,
                draw={
                    "version": None if drawing is None else drawing.version,
                    "num_taken": start.num_taken,
                    "numbers": {str(version): n for version, n in start.numbers.items()},
                },
                logged_at=time.time(),
            ),
            state=DrawState(
                uses=_by_row(before.uses, where, 0),
                owed=_by_row(before.owed, where, 0.0),
                start_low=_by_row(before.start_low, where, 0.0),
                start_high=_by_row(before.start_high, where, 1.0),
            ),
            draw_uses=_by_row(start.uses, where, 0),
            epoch_uses=_by_row(added, where, 0),
            epoch_due=_by_row(after.owed - before.owed + added, where, 0.0),
            trained=TrainedLosses(
                loss=_by_row(losses.loss, where, np.nan),
                step=_by_row(losses.step, where, -1),
            ).without(where.content_versions > content_version),
        )
        return write_uses(self.paths, logged).name

    def read(self, step: int, where: StoreRows) -> LoggedUses:
        """What the run had logged at a step.

        Raises:
            StoreFormatError: The file is missing, damaged, of another run or of other data.
        """
        path = uses_path(self.paths, self.run, step)
        logged = read_uses(path)
        if (logged.facts.run, logged.facts.step) != (self.run, step):
            raise StoreFormatError(
                f"{path} is a log of run {logged.facts.run!r} at step {logged.facts.step}: it was "
                "renamed or copied from elsewhere. Remove it"
            )
        known = {where.data, *where.sources}
        require_uses_fit(path, logged.facts, len(logged), known=known, n=where.num_rows)
        return logged

    def remove_ahead(self, step: int) -> int:
        """Remove files of later steps; returns how many. Raises `StoreWriteError`."""
        return remove_uses_ahead(self.paths, self.run, step)


def require_before(facts: UsesFacts, epoch: int, drawn: tuple[int, ...]) -> None:
    """Raise `StoreFormatError` when a log is not of the run up to a checkpoint.

    Args:
        facts: What the log says about itself.
        epoch: Of the checkpoint, from 0.
        drawn: Versions that the log's epoch has drawn from, as the checkpoint knows it.
    """
    is_same = bool(facts.versions) and drawn[: len(facts.versions)] == facts.versions
    if facts.epoch > epoch or not is_same:
        raise StoreFormatError(
            f"the log of uses of run {facts.run} at step {facts.step} is of epoch "
            f"{facts.epoch + 1}, drawn from versions {facts.versions}; the checkpoint is of epoch "
            f"{epoch + 1}, and that epoch was drawn from {drawn}: the log is ahead of the "
            "checkpoint, or of another run"
        )


def course_of(logged: LoggedUses, where: StoreRows, stream: Stream, n: int) -> Course:
    """The course at the start of the epoch that a file is of.

    Args:
        logged: The file.
        where: The rows of the store.
        stream: What the epoch draws from first.
        n: Rows of the trainer's dataset.
    """
    before, draw = logged.state, logged.facts.draw
    state = DrawState(
        uses=_by_position(before.uses, where, n, 0),
        owed=_by_position(before.owed, where, n, 0),
        start_low=_by_position(before.start_low, where, n, 0),
        start_high=_by_position(before.start_high, where, n, 1),
    )
    numbers = {int(version): int(number) for version, number in draw["numbers"].items()}
    drawing = None
    if draw["version"] == stream.version:
        drawing = stream.draw(numbers[stream.version] - 1, state)
    return Course(
        state=state,
        drawing=drawing,
        num_taken=int(draw["num_taken"]) if drawing is not None else 0,
        uses=_by_position(logged.draw_uses, where, n, 0),
        is_repeated=drawing is not None and stream.repeats,
        numbers=numbers,
    )


def losses_of(logged: LoggedUses, where: StoreRows, n: int) -> TrainedLosses:
    """The losses that a file has, of the rows [n] of the trainer's dataset.

    A row whose content is newer than the file has none.
    """
    trained = logged.trained.without(where.content_versions > logged.facts.newest_version)
    return TrainedLosses(
        loss=_by_position(trained.loss, where, n, np.nan),
        step=_by_position(trained.step, where, n, -1),
    )


def _by_row(values: Any, where: StoreRows, missing: float) -> Any:
    """[rows of the store] of values [n] by position."""
    found = np.full(where.num_rows, missing, values.dtype)
    known = where.rows >= 0
    found[where.rows[known]] = values[known]
    return found


def _by_position(values: Any, where: StoreRows, n: int, missing: float) -> Any:
    """[n] by position of values by row, of which later samples have none."""
    rows: Int64 = where.rows
    known = (rows >= 0) & (rows < len(values))
    found = np.full(n, missing, values.dtype)
    found[known] = values[rows[known]]
    return found
