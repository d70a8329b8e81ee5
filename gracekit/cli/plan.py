"""`gracekit plan`: what a refresh would cost."""

from __future__ import annotations

from pathlib import Path

import click

import gracekit
from gracekit.cli.options import answers, clear_errors, strict_option, takes_recipe
from gracekit.cli.output import Output
from gracekit.cli.results import in_at_most, print_plan
from gracekit.errors import MeasureError
from gracekit.words import size


@click.command(
    short_help="Say what a refresh of CHECKPOINT would cost.",
    epilog="\b\nExamples:\n"
    "  gracekit plan runs/sft/checkpoint-300\n"
    "  gracekit plan runs/sft/checkpoint-300 --set refresh.max_fraction=1.0 --json",
)
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@takes_recipe
@strict_option
@clear_errors
@answers
def plan(
    checkpoint: Path,
    recipe_path: Path,
    store_path: Path | None,
    changes: tuple[str, ...],
    strict: bool,
    out: Output,
) -> None:
    """Say what a refresh of CHECKPOINT would cost: rows, tokens, seconds, memory, disk.

    Loads the model and times it on a few samples; makes no version. Exit code 1 when it cannot
    fit.
    """
    found = gracekit.plan(recipe_path, checkpoint, store=store_path, set=changes, strict=strict)

    def print_text() -> None:
        print_plan(out, found.plan)
        out.line(
            f"model pass   {in_at_most(found.seconds, found.max_seconds)} "
            f"({found.tokens_per_s:,.0f} tokens/s on {found.device})"
        )
        out.line(f"memory       {size(found.memory_bytes)} of {size(found.memory_free_bytes)} free")
        out.line(
            f"disk         {size(found.disk_bytes)} at most of {size(found.disk_free_bytes)} free"
        )

    out.show(found, print_text)
    if found.obstacles:
        raise MeasureError("this refresh cannot fit: " + "; ".join(found.obstacles))
