"""`gracekit explain` and `gracekit similar`: one sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

import gracekit
from gracekit.cli import cells
from gracekit.cli.options import answers_with_tables, clear_errors, takes_store, version_option
from gracekit.cli.output import Output, TableColumn
from gracekit.text_table import LEAST_ID

if TYPE_CHECKING:
    from gracekit.api.results import SampleExplanation

_SIMILARITY = TableColumn(
    key="similarity", title="similarity", show=cells.two_digits, is_number=True
)
_IMPORTANCE = TableColumn(
    key="importance", title="importance", show=cells.two_digits, is_number=True, priority=3
)
_ABOUT = (
    _IMPORTANCE,
    TableColumn(key="group", title="group", priority=4, least=8),
    TableColumn(key="preview", title="text", priority=1, least=20),
)
SIMILAR = (
    TableColumn(key="sample_id", title="sample", least=LEAST_ID),
    _SIMILARITY,
    TableColumn(key="is_selected", title="selected", priority=2),
    *_ABOUT,
)
NEAREST = (
    TableColumn(key="sample_id", title="sample", least=LEAST_ID),
    _SIMILARITY,
    TableColumn(key="rank", title="rank", show=cells.count, is_number=True, priority=2),
    *_ABOUT,
)


@click.command(
    epilog="\b\nExamples:\n  gracekit explain gsm8k-17\n  gracekit explain gsm8k-17 --version 3"
)
@click.argument("sample_id")
@version_option
@clear_errors
@takes_store
@answers_with_tables
def explain(sample_id: str, version: int | Literal["latest"], store: Path, out: Output) -> None:
    """Say why SAMPLE_ID is in a version's coreset, or why it is not."""
    found = gracekit.explain(store, sample_id, version=version)
    out.show(found, lambda: _print_explanation(out, found))


def _print_explanation(out: Output, found: SampleExplanation) -> None:
    out.paragraphs(found.sentences())
    out.line()
    numbers = {
        "text": found.preview,
        "group": found.group,
        "tokens": cells.count(found.tokens),
        "scores": ", ".join(f"{name} {cells.plain(v)}" for name, v in found.scores.items()),
    }
    if found.is_selected:
        numbers["rank, gain"] = f"{cells.count(found.rank)}, {cells.plain(found.gain)}"
    elif found.gain_if_added is not None:
        numbers["gain if added"] = cells.plain(found.gain_if_added)
    if found.graph_version != found.version:
        numbers["similarity by"] = f"the features of version {found.graph_version}"
    out.pairs(numbers)
    if found.nearest_selected:
        out.line()
        out.line("nearest selected samples")
        out.table(NEAREST, found.nearest_selected.to_json())


@click.command(
    short_help="List the samples most similar to SAMPLE_ID.",
    epilog="\b\nExample:\n  gracekit similar gsm8k-17 --count 20",
)
@click.argument("sample_id")
@click.option("-n", "--count", type=click.IntRange(min=1), default=10, show_default=True,
              help="How many.")  # fmt: skip
@version_option
@clear_errors
@takes_store
@answers_with_tables
def similar(
    sample_id: str, count: int, version: int | Literal["latest"], store: Path, out: Output
) -> None:
    """List the samples most similar to SAMPLE_ID, as the model sees them."""
    found = gracekit.similar(store, sample_id, version=version, count=count)
    out.show(found, lambda: out.table(SIMILAR, found.to_json()))
