"""What trainers log of the rows that they trained on: `uses/<run>/s000120.parquet`, by step.

A file says how often a run had used every row when its epoch began, what it owed them then, and
what the epoch has added up to the step; and which loss the trainer saw of the row when it last
trained on it. The trainer's side writes, with NumPy and PyArrow only; the
daemon reads what a run had used at a checkpoint.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gracekit import files
from gracekit.errors import StoreError, StoreFormatError
from gracekit.store.files.parquet import damaged, numbers, read_schema, read_table, write_table
from gracekit.store.files.paths import StorePaths, names_in, numbered
from gracekit.store.files.tables import arrays, file_schema
from gracekit.types import DrawState, Float64, Int32, Json, TrainedLosses
from gracekit.version.table import Column

KEPT_USES = 20
"""Files of a run that are kept: as many checkpoints back can its uses be taken up."""

_STEP_NAME = re.compile(r"s(\d{6,})\.parquet")
_RUN_NAME = re.compile(r"[\w-]{1,64}")
_METADATA_KEY = b"gracekit"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsesFacts:
    """What a file says about itself, without its rows."""

    run: str
    step: int
    """Training step up to which uses are counted."""
    epoch: int
    """Epoch of that step, from 0."""
    data: str
    """Hash of which sample lies where in the data that the run knew last."""
    versions: tuple[int, ...]
    """Versions that the epoch has drawn from, in turn; 0: the whole dataset."""
    newest_version: int
    """Whose sample table the rows are of."""
    num_trained: int
    """Samples of the epoch that were trained on."""
    draw: Json
    """Where the draws stood when the epoch began, as the trainer's side needs it to go on."""
    logged_at: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedUses:
    """The content of a file, of all rows [n] of the sample table."""

    facts: UsesFacts
    state: DrawState
    """When the epoch began, or the draw that it began within."""
    draw_uses: Int32
    """[n] uses from that draw before the epoch."""
    epoch_uses: Int32
    """[n] times that the row was trained on since `state`."""
    epoch_due: Float64
    """[n] sum of its probabilities over the draws since then, as far as they were trained on."""
    trained: TrainedLosses
    """Of files of earlier releases, none."""

    def __len__(self) -> int:
        return len(self.state)


_COLUMNS: tuple[Column[LoggedUses], ...] = (
    Column("row", "int64", "", lambda u: np.arange(len(u)), packing="ascending"),
    Column("uses", "int32", "", lambda u: u.state.uses),
    Column("owed", "float64", "", lambda u: u.state.owed),
    Column("start_low", "float64", "", lambda u: u.state.start_low),
    Column("start_high", "float64", "", lambda u: u.state.start_high),
    Column("draw_uses", "int32", "", lambda u: u.draw_uses),
    Column("epoch_uses", "int32", "", lambda u: u.epoch_uses),
    Column("epoch_due", "float64", "", lambda u: u.epoch_due),
    Column("trained_loss", "float32", "", lambda u: u.trained.loss),
    Column("trained_step", "int64", "", lambda u: u.trained.step),
)


def uses_path(paths: StorePaths, run: str, step: int) -> Path:
    """Where a run logs what it had used at a step."""
    assert _RUN_NAME.fullmatch(run), f"{run!r} is no name of a run"
    return paths.uses / run / f"s{step:06d}.parquet"


def write_uses(paths: StorePaths, logged: LoggedUses) -> Path:
    """Write a file, and remove the run's files beyond the newest `KEPT_USES`; returns its path.

    Raises `StoreWriteError` where the store cannot be written.
    """
    facts = {name: getattr(logged.facts, name) for name in UsesFacts.__dataclass_fields__}
    table = pa.Table.from_arrays(arrays(_COLUMNS, logged), schema=file_schema(_COLUMNS))
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(facts).encode()})
    path = uses_path(paths, logged.facts.run, logged.facts.step)
    files.write_atomic(path, lambda p: write_table(p, table, _COLUMNS))
    by_step = sorted(logged_steps(paths, logged.facts.run).items())
    for _, old in by_step[:-KEPT_USES]:
        with suppress(OSError):  # the next one removes it
            files.remove(old)
    return path


def read_uses_facts(path: Path) -> UsesFacts:
    """What a file says about itself; raises `StoreFormatError` when it is missing or damaged."""
    metadata = read_schema(path).metadata or {}
    try:
        facts = UsesFacts(**json.loads(metadata[_METADATA_KEY]))
        for name, kind in (("run", str), ("data", str), ("draw", dict)):
            if not isinstance(getattr(facts, name), kind):
                raise ValueError(f"{name} is no {kind.__name__}")
        return replace(
            facts,
            step=int(facts.step),
            epoch=int(facts.epoch),
            versions=tuple(map(int, facts.versions)),
            newest_version=int(facts.newest_version),
            num_trained=int(facts.num_trained),
            logged_at=float(facts.logged_at),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def read_uses(path: Path) -> LoggedUses:
    """The inverse of `write_uses`; raises `StoreFormatError` for a missing or damaged file."""
    facts, table = read_uses_facts(path), read_table(path)
    try:
        found = {name: numbers(table[name]) for name in table.column_names}
        logged = LoggedUses(
            facts=facts,
            state=DrawState(
                uses=found["uses"],
                owed=found["owed"],
                start_low=found["start_low"],
                start_high=found["start_high"],
            ),
            draw_uses=found["draw_uses"],
            epoch_uses=found["epoch_uses"],
            epoch_due=found["epoch_due"],
            trained=_trained(found, len(found["row"])),
        )
        state, trained = logged.state, logged.trained
        sums = (state.owed, state.start_low, state.start_high, logged.epoch_due)
        counts = (state.uses, logged.draw_uses, logged.epoch_uses)
        if not (
            np.array_equal(found["row"], np.arange(len(logged)))
            and all(np.isfinite(values).all() for values in sums)
            and all((values >= 0).all() for values in counts)
            and (state.start_low < state.start_high).all()
            and np.array_equal(trained.known, np.isfinite(trained.loss))
            and ((trained.step >= -1) & (trained.step <= facts.step)).all()
        ):
            raise ValueError("its rows are not those that a trainer writes")
        return logged
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def _trained(found: dict[str, Any], n: int) -> TrainedLosses:
    """Losses that were seen; none where the file is of a release that did not log them."""
    if "trained_step" not in found:
        return TrainedLosses.none(n)
    return TrainedLosses(
        loss=found["trained_loss"].astype(np.float32, copy=False),
        step=found["trained_step"].astype(np.int64, copy=False),
    )


def logged_steps(paths: StorePaths, run: str) -> dict[int, Path]:
    """Steps at which a run logged its uses -> file, ascending."""
    if not _RUN_NAME.fullmatch(run):
        return {}
    return {step: path for path, step in numbered(paths.uses / run, _STEP_NAME).items()}


def newest_run(paths: StorePaths) -> dict[int, Path]:
    """The files of the run that logged its uses last, by step, ascending; none where none did.

    A run none of whose files can be read is passed over.
    """
    newest: tuple[float, dict[int, Path]] = (0.0, {})
    for run in names_in(paths.uses):
        steps = logged_steps(paths, run)
        for path in reversed(steps.values()):
            with suppress(StoreError):
                newest = max(newest, (read_uses_facts(path).logged_at, steps), key=lambda n: n[0])
                break
    return newest[1]


def remove_uses_ahead(paths: StorePaths, run: str, step: int) -> int:
    """Remove what a run logged after a step that it goes on from; returns how many files.

    Raises `StoreWriteError` where the store cannot be written.
    """
    ahead = [path for s, path in logged_steps(paths, run).items() if s > step]
    for path in ahead:
        with files.clear_write_errors(path):
            files.remove(path)
    return len(ahead)


def require_uses_fit(
    path: Path, facts: UsesFacts, num_logged: int, *, known: set[str], n: int
) -> None:
    """Raise `StoreFormatError` when a log is not of the rows of this store.

    Args:
        path: Of the log.
        facts: What it says about itself.
        num_logged: Its rows.
        known: Hashes of all data that the store has followed.
        n: Rows of the store's sample table.
    """
    if facts.data not in known or num_logged > n:
        raise StoreFormatError(
            f"{path} is a log of other data: it has {num_logged} rows of data {facts.data!r}, the "
            f"store has {n} rows of {', '.join(sorted(known))}; remove it"
        )
