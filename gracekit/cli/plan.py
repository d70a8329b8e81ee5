"""`gracekit plan`: what a refresh would cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

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
from gracekit.cli.results import in_at_most, print_plan
from gracekit.errors import MeasureError
from gracekit.words import size

if TYPE_CHECKING:
    from gracekit.api.making import Prospect


@click.command(
    short_help="Say what a refresh of CHECKPOINT would cost.",
    epilog="\b\nExamples:\n"
    "  gracekit plan runs/sft/checkpoint-300\n"
    "  gracekit plan runs/sft/checkpoint-300 --set refresh.max_fraction=1.0 --json\n"
    "  gracekit plan models/base --worth",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--worth", is_flag=True, help="Say what selection could bring on this data.")
@takes_checkpoints()
@takes_recipe
@strict_option
@clear_errors
@answers
def plan(
    checkpoint: Path,
    worth: bool,
    recipe_path: Path,
    store_path: Path | None,
    changes: tuple[str, ...],
    strict: bool,
    out: Output,
) -> None:
    """Say what a refresh of CHECKPOINT would cost: rows, tokens, seconds, memory, disk.

    Loads the model and times it on a few samples; makes no version. Exit code 1 when it cannot
    fit. With --worth: what selection could bring on this data, or that it is not worth it.
    """
    if worth:
        prospect = gracekit.plan(
            recipe_path, checkpoint, store=store_path, set=changes, strict=strict, worth=True
        )
        out.show(prospect, lambda: _print_prospect(out, prospect))
        return
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


def _print_prospect(out: Output, found: Prospect) -> None:
    def share(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.1%}"

    best = saved = spread = "-"
    if not math.isnan(found.best):
        low, high = 1000 * found.best_low, 1000 * found.best_high
        best = f"worth {1000 * found.best:,.0f} [{low:,.0f}, {high:,.0f}] random ones"
        saved = share(found.most_saved)
    if not math.isnan(found.norm_spread):
        spread = f"{found.norm_spread:.1f} from the 10th to the 90th percentile"
    out.pairs(
        {
            "samples": f"{found.num_samples:,}, {found.num_measured:,} of them measured",
            "1,000 drawn by perfect norms": best,
            "steps that would save at most": saved,
            "spread of norms": spread,
            "exact copies": share(found.exact_copies),
            "near-copies": f"{share(found.near_copies)} of {found.num_compared:,} compared",
            "like the target": share(found.like_target),
            "steps that these are good for": (
                "-" if math.isnan(found.steps_of_target) else f"{found.steps_of_target:,.0f}"
            ),
            "passes over the pool": "-" if math.isnan(found.passes) else f"{found.passes:.2f}",
        }
    )
    out.line()
    out.paragraphs(found.words)
