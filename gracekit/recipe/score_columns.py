"""The column of a score in files and SQL."""

from __future__ import annotations

from collections.abc import Iterable

RESERVED = frozenset(
    {
        *("row", "sample_id", "group_name", "version", "step", "reason", "origin"),
        *("measured_step", "measured_version", "confidence", "importance"),
    }
)
"""Columns that the tables of scores have besides the scores."""

PAIR_MARGIN = "pair-margin"
"""The score that `data.pair: margin` adds."""


def column_name(score: str) -> str:
    """The column of a score: `gradient-norm` is `gradient_norm`, which SQL need not quote."""
    name = "".join(c if c.isalnum() else "_" for c in score).lower()
    return f"score_{name}" if name in RESERVED else name


def shared_column(scores: Iterable[str]) -> tuple[str, str, str] | None:
    """Two of the scores that would share a column, and its name; None where no two would."""
    taken: dict[str, str] = {}
    for score in scores:
        column = column_name(score)
        if column in taken:
            return taken[column], score, column
        taken[column] = score
    return None
