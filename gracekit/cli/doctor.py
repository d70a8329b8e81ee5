"""`gracekit doctor`: what a folder of checkpoints holds, and whether it can be used."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import gracekit
from gracekit.cli.options import (
    DEFAULT_RECIPE,
    answers_with_tables,
    clear_errors,
    takes_checkpoints,
    takes_recipe,
)
from gracekit.cli.output import Output, TableColumn
from gracekit.cli.results import print_plan

_COLUMNS = (
    TableColumn(key="name", title="checkpoint"),
    TableColumn(key="layout", title="layout", priority=2),
    TableColumn(key="step", title="step", is_number=True),
    TableColumn(key="state", title="state"),
    TableColumn(key="weights", title="weights", priority=3),
)


@click.command(
    short_help="Say what checkpoints PATH holds, and what they lack.",
    epilog="\b\nExamples:\n"
    "  gracekit doctor runs/sft\n"
    "  gracekit doctor runs/sft/checkpoint-300 --json\n"
    "  gracekit doctor lightning_logs --set checkpoints.base_model=models/base",
)
@click.argument("path", type=click.Path(path_type=Path))
@takes_checkpoints(depth=True)
@takes_recipe
@clear_errors
@answers_with_tables
def doctor(
    path: Path,
    recipe_path: Path,
    store_path: Path | None,
    changes: tuple[str, ...],
    out: Output,
) -> None:
    """Say what checkpoints PATH holds: layout, step, complete or why not, and what is missing.

    PATH is the trainer's output directory, one above it, or a checkpoint. Nothing is measured or
    written. Where there is a recipe, the cost of a refresh of the newest one is told as well. Exit
    code 1 when none can be used.
    """
    recipe = recipe_path if recipe_path.exists() or str(recipe_path) != DEFAULT_RECIPE else None
    found = gracekit.doctor(path, recipe, store=store_path, set=changes)

    def print_text() -> None:
        if found.checkpoints:
            out.table(_COLUMNS, [checkpoint.to_json() for checkpoint in found.checkpoints])
            out.line()
        out.paragraphs(found.sentences())
        if found.plan is not None:
            out.line()
            print_plan(out, found.plan)

    out.show(found, print_text)
    if not found.ok:
        sys.exit(1)
