"""`gracekit plan`: what a refresh would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gracekit.cli.options import (
    clear_errors,
    json_option,
    load_recipe,
    recipe_option,
    set_option,
    store_option,
    strict_option,
)
from gracekit.cli.render import format_bytes, print_json, say

if TYPE_CHECKING:
    from gracekit.refresher import CostEstimate, PlanPreview


@click.command(
    epilog="\b\nExamples:\n"
    "  gracekit plan runs/sft/checkpoint-300\n"
    "  gracekit plan runs/sft/checkpoint-300 --set refresh.max_fraction=1.0 --json"
)
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@recipe_option
@store_option
@set_option
@strict_option
@json_option
@clear_errors
def plan(
    checkpoint: Path,
    recipe_path: Path,
    store_path: Path | None,
    overrides: tuple[str, ...],
    strict: bool,
    as_json: bool,
) -> None:
    """Say what a refresh of CHECKPOINT would cost: rows, tokens, seconds, memory, disk.

    Loads the model and times it on a few samples; makes no version. Exit code 1 when it cannot
    fit.
    """
    from gracekit.checkpoints import check_checkpoint
    from gracekit.errors import MeasureError
    from gracekit.refresher import estimate

    recipe = load_recipe(recipe_path, overrides, store_path)
    found = estimate(recipe, check_checkpoint(checkpoint, recipe.checkpoints), strict=strict)
    if as_json:
        print_json(found.to_json())
    else:
        print_preview(found.plan, as_json=False)
        _print_cost(found)
    if found.obstacles:
        raise MeasureError("this refresh cannot fit: " + "; ".join(found.obstacles))


def print_preview(plan: PlanPreview, *, as_json: bool) -> None:
    """The plan without its cost."""
    if as_json:
        print_json(plan.to_json())
        return
    say(f"checkpoint   {plan.checkpoint} (step {plan.step})")
    click.echo(f"would make   version {plan.version}")
    click.echo(f"measure      {plan.num_rows:,} of {plan.num_samples:,} rows "
               f"({plan.num_rows / max(plan.num_samples, 1):.0%}), "
               f"{plan.num_tokens:,} tokens in {plan.num_shards} shards")  # fmt: skip
    for reason, count in plan.reasons.items():
        say(f"  {reason:<16} {count:,}")
    if plan.max_rows > plan.num_rows:
        click.echo(f"at most      {plan.max_rows:,} rows while the audit misses the target")
    click.echo(f"model        {format_bytes(plan.weight_bytes)} of weights")


def _print_cost(found: CostEstimate) -> None:
    seconds = _duration(found.seconds)
    if found.max_seconds > 1.01 * found.seconds:
        seconds += f", at most {_duration(found.max_seconds)}"
    click.echo(f"model pass   {seconds} ({found.tokens_per_s:,.0f} tokens/s on {found.device})")
    click.echo(f"memory       {format_bytes(found.memory_bytes)} of "
               f"{format_bytes(found.memory_free_bytes)} free")  # fmt: skip
    click.echo(f"disk         {format_bytes(found.disk_bytes)} at most of "
               f"{format_bytes(found.disk_free_bytes)} free")  # fmt: skip


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
