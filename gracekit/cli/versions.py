"""`gracekit versions`: a line per version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import gracekit
from gracekit.cli import cells
from gracekit.cli.options import answers_with_tables, clear_errors, takes_store
from gracekit.cli.output import Output, TableColumn

COLUMNS = (
    TableColumn(key="version", title="version", is_number=True),
    TableColumn(key="parent_version", title="parent", is_number=True, priority=12),
    TableColumn(key="step", title="step", show=cells.count, is_number=True, priority=1),
    TableColumn(key="operation", title="made by", priority=3),
    TableColumn(key="measured_percent", title="measured %", show=cells.percent, is_number=True,
                priority=4),
    TableColumn(key="value", title="value", show=cells.two_digits, is_number=True, priority=5),
    TableColumn(key="best", title="best", show=cells.two_digits, is_number=True, priority=10),
    TableColumn(key="value_kept", title="kept", show=cells.two_digits, is_number=True, priority=7),
    TableColumn(key="rank_correlation", title="audit corr", show=cells.two_digits, is_number=True,
                priority=7),
    TableColumn(key="rank_correlation_stale", title="stale corr", show=cells.two_digits,
                is_number=True, priority=10),
    TableColumn(key="rank_correlation_all", title="over all", show=cells.two_digits,
                is_number=True, priority=7),
    TableColumn(key="num_samples", title="samples", show=cells.count, is_number=True, priority=9),
    TableColumn(key="num_selected", title="coreset", show=cells.count, is_number=True, priority=2),
    TableColumn(key="churn_percent", title="churn %", show=cells.percent, is_number=True,
                priority=6),
    TableColumn(key="model_pass_s", title="model pass", show=cells.seconds, is_number=True,
                priority=8),
    TableColumn(key="other_s", title="other", show=cells.seconds, is_number=True, priority=11),
    TableColumn(key="state", title="state", priority=4),
)  # fmt: skip


_IF_ANY = ("state", "value", "value_kept")
"""Columns that are left out where no version has a value."""


@click.command(
    short_help="List the versions, and how good each is.",
    epilog="\b\nExamples:\n  gracekit versions\n  gracekit versions --all-columns",
)
@clear_errors
@takes_store
@answers_with_tables
def versions(store: Path, out: Output) -> None:
    """List the versions: step, measured share, value, audit, coreset, churn, seconds."""
    found = gracekit.versions(store)
    out.show(found, lambda: print_versions(found.to_json(), out))


def print_versions(records: Sequence[Mapping[str, Any]], out: Output) -> None:
    """A table of versions, without columns that none of them fills."""
    empty = {key for key in _IF_ANY if all(record[key] is None for record in records)}
    out.table([c for c in COLUMNS if c.key not in empty], records)
