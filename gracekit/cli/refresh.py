"""`gracekit refresh`: one version from one checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

import gracekit
from gracekit.cli.options import (
    answers,
    clear_errors,
    strict_option,
    takes_checkpoints,
    takes_recipe,
)
from gracekit.cli.output import Output
from gracekit.cli.results import show_plan, show_result


@click.command(
    epilog="\b\nExamples:\n"
    "  gracekit refresh runs/sft/checkpoint-300\n"
    "  gracekit refresh runs/sft/checkpoint-300 --dry-run"
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Print the plan and exit.")
@takes_checkpoints()
@takes_recipe
@strict_option
@clear_errors
@answers
def refresh(
    checkpoint: Path,
    recipe_path: Path,
    store_path: Path | None,
    changes: tuple[str, ...],
    dry_run: bool,
    strict: bool,
    out: Output,
) -> None:
    """Make one version from CHECKPOINT, then exit."""
    if dry_run:
        plan = gracekit.refresh(
            recipe_path, checkpoint, store=store_path, set=changes, dry_run=True, strict=strict
        )
        show_plan(out, plan)
        return
    with gracekit.stop_on_signals() as stop:
        result = gracekit.refresh(
            recipe_path, checkpoint, store=store_path, set=changes, strict=strict, stop=stop
        )
        show_result(out, result)
