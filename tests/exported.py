"""Coresets to export, made of given rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gracekit.exports import ExportedRows
from gracekit.types import Json, Rows
from tests.stores import make_header


def content_of(
    records: Sequence[Json],
    weights: list[float] | None = None,
    *,
    groups: Sequence[str] | None = None,
    **section: Any,
) -> ExportedRows:
    """A coreset of every other row of a data set, whose rows are the given records.

    Args:
        records: The rows.
        weights: Of each; default: 1.
        groups: Of each.
        section: What the recipe says of the data.
    """
    b = len(records)
    header = make_header(7)
    settings = header.dataset.settings.model_copy(update=section)
    dataset = header.dataset.model_copy(update={"settings": settings})

    def open_records(wanted: Rows) -> Iterator[Json]:
        return (dict(records[(row - 3) // 2]) for row in wanted.tolist())

    return ExportedRows(
        rows=np.arange(b) * 2,
        source_rows=3 + 2 * np.arange(b),
        sample_ids=[f"id {i}" for i in range(b)],
        weights=np.array(weights or [1.0] * b, np.float32),
        header=header.model_copy(update={"dataset": dataset}),
        groups=None if groups is None else np.array(groups, object),
        open_records=open_records,
    )
