"""What the rows of the tables are made from, where that is more than one value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.types import (
    Draw,
    DrawState,
    Int64,
    Measurement,
    Reason,
    RefreshPlan,
    Rows,
    SampleTable,
    ScoreTable,
    Selection,
    UInt8,
)
from gracekit.version.header import DatasetInfo, Header


@dataclass(frozen=True, slots=True)
class ListedVersion:
    """One row of `versions`."""

    header: Header
    removed_at: str | None = None
    """UTC, when gc removed it."""


@dataclass(frozen=True, slots=True)
class PublishedStore:
    """The row of `store`."""

    dataset: DatasetInfo
    latest_version: int | None


@dataclass(frozen=True, slots=True)
class MeasuredRows:
    """What was measured at a version, in ascending order of the rows."""

    rows: Rows
    reasons: UInt8
    """[m] of `Reason`."""
    step: int
    order: Int64
    """[m] where each row is in the measurement."""

    @classmethod
    def of(cls, measurement: Measurement, plan: RefreshPlan | None, step: int) -> MeasuredRows:
        """Without a plan, everything was measured."""
        order = np.argsort(measurement.rows)
        rows = measurement.rows[order]
        return cls(rows, _reasons(rows, plan), step, order)


@dataclass(frozen=True, slots=True)
class SelectedRows:
    """The rows of a manifest, in ascending order of the rows."""

    version: int
    rows: Rows
    ranks: Int64
    """[b] place in the order in which they were picked."""
    selection: Selection
    samples: SampleTable
    scores: ScoreTable

    @classmethod
    def of(
        cls, selection: Selection, samples: SampleTable, scores: ScoreTable, version: int
    ) -> SelectedRows:
        """A selection, whose own order is that of picking."""
        order = np.argsort(selection.rows)
        return cls(version, selection.rows[order], order, selection, samples, scores)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """How a version was drawn, of all rows [n]."""

    draw: Draw | None
    """None where the selector does not draw with known probabilities."""
    state: DrawState
    """Before this version's draw."""

    def __len__(self) -> int:
        return len(self.state)


def _reasons(rows: Rows, plan: RefreshPlan | None) -> UInt8:
    """[m] the plan's reason for each measured row."""
    if plan is None:
        return np.full(len(rows), Reason.FIRST, np.uint8)
    order: Int64 = np.argsort(plan.rows)
    where = np.searchsorted(plan.rows, rows, sorter=order)
    index = order[np.minimum(where, len(order) - 1)]
    assert (plan.rows[index] == rows).all(), "a measured row is not in the plan"
    reasons: UInt8 = plan.reasons[index]
    return reasons
