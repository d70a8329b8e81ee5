"""`gracekit work`: measure for a refresh that runs on another host."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

import gracekit
from gracekit.cli.options import Seconds, answers, clear_errors
from gracekit.cli.output import Output


@click.command(
    short_help="Measure for refreshes of STORE that run elsewhere.",
    epilog="\b\nExamples:\n"
    "  gracekit work /shared/gracekit-store\n"
    "  gracekit work /shared/gracekit-store --device cuda:1 --once\n"
    "  srun --ntasks=16 gracekit work /shared/gracekit-store --max-idle 600",
)
@click.argument("store", type=click.Path(path_type=Path))
@click.option("-r", "--recipe", "recipe_path", type=click.Path(path_type=Path), default=None,
              help="Refuse a refresh that goes by another recipe; default: take any.")  # fmt: skip
@click.option("--device", default="auto", show_default=True,
              help="Where to measure; of the kind that the refresh has.")  # fmt: skip
@click.option("--once", is_flag=True, help="Exit when the refresh that it joined has ended.")
@click.option("--max-idle", type=Seconds(0), default=None, metavar="SECONDS",
              help="Exit after so many seconds without work.")  # fmt: skip
@clear_errors
@answers
def work(
    store: Path,
    recipe_path: Path | None,
    device: str,
    once: bool,
    max_idle: float | None,
    out: Output,
) -> None:
    """Measure for refreshes of STORE that run on other hosts and have scoring.share: true.

    Start it on any host that sees the store and the checkpoints, once for each device, before or
    during a refresh; stop or kill it at any time: what it worked on is measured by another. The
    versions are the same with and without it. docs/scale.md says what hosts must have in common.
    """
    with gracekit.stop_on_signals() as stop:
        report = gracekit.work(
            store, recipe=recipe_path, device=device, once=once, max_idle_s=max_idle, stop=stop
        )
    out.show(
        dataclasses.asdict(report),
        lambda: out.line(
            f"measured {report.num_rows:,} rows in {report.num_shards} shards, "
            f"in {report.num_refreshes} refreshes"
        ),
    )
