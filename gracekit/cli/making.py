"""Commands that make new versions: `watch`, `refresh`, `select`."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gracekit.cli.logs import is_json
from gracekit.cli.options import (
    clear_errors,
    json_option,
    load_recipe,
    recipe_option,
    set_option,
    store_option,
    strict_option,
)
from gracekit.cli.plan import print_preview
from gracekit.cli.render import print_json, print_table

if TYPE_CHECKING:
    from gracekit.refresher import RefreshResult

logger = logging.getLogger(__name__)

directory = click.Path(path_type=Path)


@click.command(
    epilog="\b\nExamples:\n"
    "  gracekit watch runs/sft\n"
    "  gracekit watch runs/sft --once --dry-run\n"
    "  gracekit watch runs/sft --set selection.fraction=0.2 --max-checkpoints 5"
)
@click.argument("checkpoint_dir", type=directory)
@recipe_option
@store_option
@set_option
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
@strict_option
@json_option
@clear_errors
def watch(
    checkpoint_dir: Path,
    recipe_path: Path,
    store_path: Path | None,
    overrides: tuple[str, ...],
    once: bool,
    on_backlog: str | None,
    max_checkpoints: int | None,
    dry_run: bool,
    metrics_port: int | None,
    metrics_address: str,
    strict: bool,
    as_json: bool,
) -> None:
    """Follow CHECKPOINT_DIR: a new version for each complete checkpoint.

    Training is never paused. Stop with Ctrl-C or SIGTERM: the batch in progress is finished, what
    is measured is kept, and the next start goes on; a second one ends at once. docs/daemon.md says
    how to run it for weeks.
    """
    from gracekit import daemon
    from gracekit.checkpoints import find_checkpoints
    from gracekit.errors import CheckpointError
    from gracekit.refresher import Refresher, preview

    if on_backlog is not None:
        overrides = (*overrides, f"checkpoints.on_backlog={on_backlog}")
    recipe = load_recipe(recipe_path, overrides, store_path)
    if dry_run:
        found = find_checkpoints(checkpoint_dir, recipe.checkpoints)
        if not found:
            raise CheckpointError(f"there is no complete checkpoint in {checkpoint_dir} yet")
        print_preview(preview(recipe, found[-1], strict=strict), as_json=as_json)
        return
    with ExitStack() as stack:
        metrics = None
        if metrics_port is not None:
            metrics = daemon.Metrics(Path(recipe.store))
            port = stack.enter_context(metrics.serve(metrics_address, metrics_port))
            logger.info("metrics at http://%s:%d/metrics", metrics_address, port)
        refresher = Refresher.from_recipe(recipe, strict=strict)
        stop = stack.enter_context(daemon.stop_on_signals())
        daemon.watch(
            refresher,
            checkpoint_dir,
            stop=stop,
            once=once,
            max_checkpoints=max_checkpoints,
            on_version=lambda result: _report(result, as_json),
            metrics=metrics,
        )


@click.command(
    epilog="\b\nExamples:\n"
    "  gracekit refresh runs/sft/checkpoint-300\n"
    "  gracekit refresh runs/sft/checkpoint-300 --dry-run"
)
@click.argument("checkpoint", type=directory)
@recipe_option
@store_option
@set_option
@click.option("--dry-run", is_flag=True, help="Print the plan and exit.")
@strict_option
@json_option
@clear_errors
def refresh(
    checkpoint: Path,
    recipe_path: Path,
    store_path: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Make one version from CHECKPOINT, then exit."""
    from gracekit import daemon
    from gracekit.refresher import preview
    from gracekit.refresher import refresh as refresh_once

    recipe = load_recipe(recipe_path, overrides, store_path)
    if dry_run:
        from gracekit.checkpoints import check_checkpoint

        found = check_checkpoint(checkpoint, recipe.checkpoints)
        print_preview(preview(recipe, found, strict=strict), as_json=as_json)
        return
    with daemon.stop_on_signals() as stop:
        _print_result(refresh_once(recipe, checkpoint, strict=strict, stop=stop), as_json)


@click.command(
    epilog="\b\nExamples:\n"
    "  gracekit select --set selection.fraction=0.1\n"
    "  gracekit select --set selection.selector=top --set selection.count=2000\n"
    "  gracekit select --compare coverage,random,top"
)
@recipe_option
@store_option
@set_option
@click.option("--compare", "names", default=None, metavar="A,B,…",
              help="Print what these selectors would choose; makes no version.")  # fmt: skip
@json_option
@clear_errors
def select(
    recipe_path: Path,
    store_path: Path | None,
    overrides: tuple[str, ...],
    names: str | None,
    as_json: bool,
) -> None:
    """Make a new version from the stored scores with other selection settings; needs no model."""
    from gracekit.refresher import reselect
    from gracekit.views import compare

    recipe = load_recipe(recipe_path, overrides, store_path)
    if names is not None:
        found = compare(recipe, [name.strip() for name in names.split(",") if name.strip()])
        _print_comparison(found, as_json)
        return
    _print_result(reselect(recipe), as_json)


def _report(result: RefreshResult, as_json: bool) -> None:
    """To stdout, and to the logs of who reads only those."""
    if is_json():
        fields = {"version": result.version, "step": result.header.checkpoint.step}
        what = "published" if result.is_new else "was there already"
        logger.info("version %d %s", result.version, what, extra=fields)
    _print_result(result, as_json)


def _print_result(result: RefreshResult, as_json: bool) -> None:
    header = result.header
    if as_json:
        print_json({"is_new": result.is_new, **header.to_json()})
        return
    if not result.is_new:
        click.echo(f"version {result.version} was made of the same before: nothing to do")
        return
    stats = header.stats
    parts = [f"version {header.version}", f"step {header.checkpoint.step}"]
    if header.refresh is not None:
        parts.append(f"measured {header.refresh.num_measured:,} of {header.refresh.num_rows:,}")
    changes = [stats.num_added or 0, stats.num_removed or 0, stats.num_changed or 0]
    if header.parent_version is not None and any(changes):
        parts.append("data: {:,} joined, {:,} left, {:,} changed".format(*changes))
    if header.audit is not None:
        parts.append(
            f"audit rank correlation {header.audit.rank_correlation:.2f} "
            f"(stale {header.audit.rank_correlation_stale:.2f}, "
            f"over all {header.audit.rank_correlation_all:.2f})"
        )
    parts.append(f"coreset {stats.num_selected:,}")
    timings = header.timings
    parts.append(
        f"{timings.model_pass_s or 0:.1f} s in the model pass, "
        f"{timings.other_s or 0:.1f} s outside it"
    )
    click.echo(" · ".join(parts))


def _print_comparison(records: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(records)
        return
    columns = [
        "selector", "num_selected", "num_tokens", "coverage", "importance", "num_kept", "seconds",
    ]  # fmt: skip
    print_table(columns, [[record[key] for key in columns] for record in records])
    names = [record["selector"] for record in records]
    click.echo("overlap (intersection by union)")
    print_table(["", *names], [[r["selector"], *r["overlaps"].values()] for r in records])
    click.echo("selected by group")
    groups = list(records[0]["groups"])
    print_table(["", *names], [[g, *(r["groups"][g] for r in records)] for g in groups])
