"""Commands that only read a store: `status`, `versions`, `diff`, `verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from gracekit.cli.options import (
    clear_errors,
    json_option,
    recipe_option,
    resolve_store,
    store_option,
)
from gracekit.cli.render import format_bytes, format_cell, print_json, print_table, say


@click.command(epilog="\b\nExamples:\n  gracekit status --json\n  gracekit status --check")
@recipe_option
@store_option
@click.option("--check", is_flag=True,
              help="Say in one line whether the daemon is well; exit 3 if not.")  # fmt: skip
@click.option("--max-age", "max_age_s", type=click.FloatRange(min=0, min_open=True),
              default=120.0, show_default=True, metavar="SECONDS",
              help="With --check: seconds without a sign of the daemon.")  # fmt: skip
@json_option
@clear_errors
def status(
    recipe_path: Path, store_path: Path | None, check: bool, max_age_s: float, as_json: bool
) -> None:
    """Say what the store holds, how fresh it is, and what the daemon does."""
    from gracekit.views import status as compute

    if check:
        _check(resolve_store(store_path, recipe_path), max_age_s, as_json)
        return
    found = compute(resolve_store(store_path, recipe_path))
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        if name.endswith("_bytes") and isinstance(value, int):
            name, value = name.removesuffix("_bytes"), format_bytes(value)
        if isinstance(value, dict):
            value = ", ".join(f"{k} {format_cell(v)}" for k, v in value.items()) or "-"
        elif isinstance(value, list):
            value = "; ".join(format_cell(v) for v in value) or "none"
        click.echo(f"{name.replace('_', ' '):<24} {format_cell(value)}")


@click.command(epilog="\b\nExample:\n  gracekit versions")
@recipe_option
@store_option
@json_option
@clear_errors
def versions(recipe_path: Path, store_path: Path | None, as_json: bool) -> None:
    """List the versions: step, measured share, audit, churn, seconds."""
    from gracekit.views import versions_table

    rows = versions_table(resolve_store(store_path, recipe_path))
    if as_json:
        print_json(rows)
        return
    columns = [
        ("version", "version"), ("parent", "parent_version"), ("step", "step"),
        ("operation", "operation"), ("measured %", "measured_percent"),
        ("audit corr", "rank_correlation"), ("stale corr", "rank_correlation_stale"),
        ("over all", "rank_correlation_all"),
        ("samples", "num_samples"), ("coreset", "num_selected"), ("churn %", "churn_percent"),
        ("model pass s", "model_pass_s"), ("other s", "other_s"), ("state", "state"),
    ]  # fmt: skip
    print_table([title for title, _ in columns], [[row[key] for _, key in columns] for row in rows])


@click.command(epilog="\b\nExample:\n  gracekit diff 3 4")
@click.argument("first", type=int)
@click.argument("second", type=int)
@recipe_option
@store_option
@json_option
@clear_errors
def diff(
    first: int, second: int, recipe_path: Path, store_path: Path | None, as_json: bool
) -> None:
    """Compare the coresets and scores of two versions."""
    from gracekit.views import diff as compute

    found = compute(resolve_store(store_path, recipe_path), first, second)
    if as_json:
        print_json(found)
        return
    click.echo(
        f"version {first} to {second}: {found['num_kept']:,} kept, {found['num_added']:,} added, "
        f"{found['num_removed']:,} removed"
    )
    data = found["data"]
    if any(data.values()):
        click.echo(
            f"the data: {data['num_added']:,} samples joined, {data['num_removed']:,} left, "
            f"{data['num_changed']:,} changed"
        )
    _print_records("groups", found["groups"])
    _print_records("biggest movers", found["movers"])


@click.command(epilog="\b\nExample:\n  gracekit verify && echo fine")
@recipe_option
@store_option
@json_option
@clear_errors
def verify(recipe_path: Path, store_path: Path | None, as_json: bool) -> None:
    """Check every checksum and reference of the store; exit 1 and say what is wrong."""
    from gracekit.store import Store

    store = Store.open(resolve_store(store_path, recipe_path))
    problems = store.verify()
    if as_json:
        print_json({
            "ok": not problems,
            "versions": store.versions(),
            "problems": [{"path": str(p.path), "what": p.what, "advice": p.advice}
                         for p in problems],
        })  # fmt: skip
    elif not problems:
        number = len(store.versions())
        click.echo(f"{number} version{' verifies' if number == 1 else 's verify'}")
    else:
        for problem in problems:
            say(f"{problem.path}: {problem.what}; {problem.advice}")
    if problems:
        sys.exit(1)


def _check(store: Path, max_age_s: float, as_json: bool) -> None:
    from gracekit.store import ailment, read_heartbeat

    heartbeat = read_heartbeat(store)
    reason = ailment(heartbeat, max_age_s=max_age_s)
    if as_json:
        print_json({"healthy": reason is None, "reason": reason, "daemon": heartbeat})
    elif reason is None:
        click.echo(f"healthy: {heartbeat['state']}")
    else:
        click.echo(format_cell(f"unhealthy: {reason}"))
    if reason is not None:
        sys.exit(3)


def _print_records(title: str, records: list[dict[str, Any]]) -> None:
    if records:
        click.echo(title)
        print_table(list(records[0]), [list(record.values()) for record in records])
