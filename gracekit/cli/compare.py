"""`gracekit compare`: train several arms, and say which is better."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import gracekit
from gracekit.cli import cells
from gracekit.cli.options import answers_with_tables, clear_errors, set_option
from gracekit.cli.output import Output, TableColumn

if TYPE_CHECKING:
    from gracekit.api.comparing import ArmOutcome, Comparison


def _loss(value: float | None) -> str:
    return cells.NOTHING if value is None or math.isnan(value) else f"{value:.4f}"


def _apart(value: float | None) -> str:
    return cells.NOTHING if value is None or math.isnan(value) else f"{value:+.4f}"


def _share(value: float | None) -> str:
    return cells.NOTHING if value is None or math.isnan(value) else f"{value:.0%}"


COLUMNS = (
    TableColumn(key="arm", title="arm"),
    TableColumn(key="loss", title="loss", show=_loss, is_number=True),
    TableColumn(key="apart", title="less control", show=_apart, is_number=True),
    TableColumn(key="interval", title="95 % interval", priority=1),
    TableColumn(key="spread", title="± seeds", show=_loss, is_number=True, priority=4),
    TableColumn(key="steps", title="steps", show=cells.count, is_number=True, priority=3),
    TableColumn(key="reach", title="steps to control's", show=_share, is_number=True, priority=2),
    TableColumn(key="compute", title="compute to it", show=_share, is_number=True, priority=5),
    TableColumn(key="selection", title="selection", show=_share, is_number=True, priority=6),
    TableColumn(key="distinct", title="rows", show=cells.count, is_number=True, priority=7),
    TableColumn(key="seeds", title="seeds", show=cells.count, is_number=True, priority=8),
    TableColumn(key="closed", title="to oracle", show=_share, is_number=True, priority=9),
    TableColumn(key="metric", title="metric", show=cells.two_digits, is_number=True, priority=10),
)


@click.command(
    short_help="Train several arms from one start, and say which is better.",
    epilog="\b\nExamples:\n"
    "  gracekit compare gracekit.yaml --set compare.start=models/base\n"
    "  gracekit compare gracekit.yaml --arms random,once,recipe --seeds 5\n"
    "  gracekit compare gracekit.yaml --train 'python train.py --subset {subset} "
    "--output {output} --seed {seed}'",
)
@click.argument("recipe_path", metavar="RECIPE", type=click.Path(path_type=Path))
@click.option("--arms", default=None, metavar="A,B,…",
              help="What is compared; default: compare.arms of the recipe.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=None,
              help="Runs of each arm; default: compare.seeds of the recipe.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None,
              help="Directory of the results; default: beside the store.")  # fmt: skip
@click.option("--train", default=None, metavar="COMMAND",
              help="A command of yours, with {subset}, {output} and {seed}.")  # fmt: skip
@click.option("--report-only", is_flag=True, help="Train nothing; show what is there.")
@click.option("--mix-code", is_flag=True,
              help="Go on although another gracekit made runs that are there.")  # fmt: skip
@set_option
@clear_errors
@answers_with_tables
def compare(
    recipe_path: Path,
    arms: str | None,
    seeds: int | None,
    output: Path | None,
    train: str | None,
    report_only: bool,
    mix_code: bool,
    changes: tuple[str, ...],
    out: Output,
) -> None:
    """Train the same model on what several arms choose, and say which is better, if any.

    Runs that are done are kept; started again, a comparison goes on with those that are missing.
    """
    names = None
    if arms is not None:
        names = [name.strip() for name in arms.split(",") if name.strip()]
    found = gracekit.compare(
        recipe_path,
        arms=names,
        seeds=seeds,
        output=output,
        set=changes,
        train=train,
        report_only=report_only,
        mix_code=mix_code,
    )
    out.show(found, lambda: _print(out, found))


def _print(out: Output, found: Comparison) -> None:
    out.table(COLUMNS, [_record(arm) for arm in found.arms])
    out.line()
    if found.control is not None:
        out.line(f"control: {found.control}, the stronger of those that know nothing")
    for arm in found.arms:
        for column, share in arm.marked.items():
            out.line(f"{arm.arm}: {share:.1%} of what it trained on is marked by {column!r}")
    out.paragraphs(found.remarks)
    out.line()
    out.paragraphs(found.verdict)
    if found.missing:
        out.line(f"{found.missing} runs are missing; run again without --report-only")
    out.line(f"curves: {found.page}")


def _record(arm: ArmOutcome) -> dict[str, Any]:
    apart = arm.against_control
    return {
        "arm": arm.arm,
        "loss": arm.loss,
        "apart": apart and apart.mean,
        "interval": "" if apart is None else f"{apart.low:+.4f} {apart.high:+.4f}",
        "spread": arm.spread,
        "steps": arm.num_taken,
        "reach": arm.steps_to_control,
        "compute": arm.compute_to_control,
        "selection": arm.selection_share,
        "distinct": round(arm.num_distinct),
        "seeds": arm.seeds,
        "closed": arm.closed,
        "metric": arm.metric,
    }
