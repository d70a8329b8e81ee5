"""`gracekit watch`: follow a training run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

import gracekit
from gracekit.cli.completion import tracker_names
from gracekit.cli.logs import is_json
from gracekit.cli.options import (
    answers,
    clear_errors,
    strict_option,
    takes_checkpoints,
    takes_recipe,
)
from gracekit.cli.output import Output
from gracekit.cli.results import show_plan, show_result

if TYPE_CHECKING:
    from gracekit.api.results import RefreshResult

logger = logging.getLogger(__name__)


@click.command(
    short_help="Follow CHECKPOINT_DIR: a version for each checkpoint.",
    epilog="\b\nExamples:\n"
    "  gracekit watch runs/sft\n"
    "  gracekit watch runs/sft --once --dry-run\n"
    "  gracekit watch runs/own --ready-marker DONE --convert-cmd 'python to_hf.py {src} {dst}'\n"
    "  gracekit watch runs/sft --tracker tensorboard --tracker wandb\n"
    "  gracekit watch runs/sft --set selection.fraction=0.2 --max-checkpoints 5",
)
@click.argument("checkpoint_dir", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Handle the newest complete checkpoint, then exit.")
@click.option("--on-backlog", type=click.Choice(["latest", "all"]), default=None,
              help="When several checkpoints wait; default: as the recipe says.")  # fmt: skip
@click.option("--max-checkpoints", type=click.IntRange(min=1), default=None,
              help="Exit after so many new versions.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan of the next refresh and exit.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=None,
              help="Serve metrics for Prometheus; needs gracekit[metrics].")  # fmt: skip
@click.option("--metrics-address", default="127.0.0.1", show_default=True,
              help="Where to serve them.")  # fmt: skip
@click.option("--tracker", "trackers", multiple=True, metavar="NAME",
              shell_complete=tracker_names,
              help="Log each version with tensorboard, wandb, trackio or package.module:Class; "
              "default: as the recipe says. May be repeated.")  # fmt: skip
@takes_checkpoints(depth=True)
@takes_recipe
@strict_option
@clear_errors
@answers
def watch(
    checkpoint_dir: Path,
    recipe_path: Path,
    store_path: Path | None,
    changes: tuple[str, ...],
    once: bool,
    on_backlog: Literal["latest", "all"] | None,
    max_checkpoints: int | None,
    dry_run: bool,
    metrics_port: int | None,
    metrics_address: str,
    trackers: tuple[str, ...],
    strict: bool,
    out: Output,
) -> None:
    """Follow CHECKPOINT_DIR: a new version for each complete checkpoint.

    CHECKPOINT_DIR is the trainer's output directory, one above it, or a checkpoint; `gracekit
    doctor` says what it holds. Training is never paused. Stop with Ctrl-C or SIGTERM: the batch in
    progress is finished, what is measured is kept, and the next start goes on; a second one ends at
    once. docs/daemon.md says how to run it for weeks.
    """
    if dry_run:
        plan = gracekit.watch(
            recipe_path, checkpoint_dir, store=store_path, set=changes, dry_run=True, strict=strict
        )
        show_plan(out, plan)
        return
    with gracekit.stop_on_signals() as stop:
        gracekit.watch(
            recipe_path,
            checkpoint_dir,
            store=store_path,
            set=changes,
            once=once,
            on_backlog=on_backlog,
            max_checkpoints=max_checkpoints,
            metrics_port=metrics_port,
            metrics_address=metrics_address,
            trackers=trackers or None,
            strict=strict,
            stop=stop,
            on_version=lambda result: _report(out, result),
        )


def _report(out: Output, result: RefreshResult) -> None:
    """To stdout, and to the logs for those who read only them."""
    if is_json():
        fields = {"version": result.version, "step": result.header.checkpoint.step}
        what = "published" if result.is_new else "was there already"
        logger.info("version %d %s", result.version, what, extra=fields)
    show_result(out, result)
