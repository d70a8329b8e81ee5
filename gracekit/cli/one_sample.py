"""Commands that look at one sample: `explain`, `similar`."""

from __future__ import annotations

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
from gracekit.cli.render import format_cell, print_json, print_table

version_option = click.option(
    "--version", "version", type=int, default=None, help="A version; default: the newest."
)


@click.command(epilog="\b\nExample:\n  gracekit explain gsm8k-17")
@click.argument("sample_id")
@version_option
@recipe_option
@store_option
@json_option
@clear_errors
def explain(
    sample_id: str,
    version: int | None,
    recipe_path: Path,
    store_path: Path | None,
    as_json: bool,
) -> None:
    """Say why SAMPLE_ID is in a version's coreset, or why it is not."""
    from gracekit.views import explain as compute

    found = compute(resolve_store(store_path, recipe_path), sample_id, version=version)
    if as_json:
        print_json(found)
        return
    verdict = "in" if found["is_selected"] else "not in"
    click.echo(f"{format_cell(sample_id)} is {verdict} version {found['version']}")
    lines: dict[str, Any] = {
        "why": found["reason"],
        "group": found["group"],
        "text": found["preview"],
        "importance": found["importance"],
        "percentile": found["percentile"],
        "scores": ", ".join(f"{k} {format_cell(v)}" for k, v in found["scores"].items()),
        "known from": f"{found['origin']}, measured at step {found['measured_step']}"
        if found["measured_step"] >= 0
        else "never measured",
        "tokens": found["tokens"],
        "similarity by": f"the features of version {found['graph_version']}",
    }
    if found["is_selected"]:
        lines |= {key: found[key] for key in ("rank", "gain", "weight")}
        lines["covers"] = f"{found['num_covered']} samples, itself included"
    else:
        coverer = found["covered_by"]
        lines["covered by"] = coverer and f"{coverer['sample_id']} ({coverer['similarity']:.3f})"
        lines["gain if added"] = found["gain_if_added"]
    for name, value in lines.items():
        click.echo(f"{name:<16} {format_cell(value)}")
    if found["nearest_selected"]:
        click.echo("nearest selected")
        _print_samples(found["nearest_selected"], ["similarity", "rank", "importance"])


@click.command(epilog="\b\nExample:\n  gracekit similar gsm8k-17 --count 20")
@click.argument("sample_id")
@click.option("-n", "--count", type=click.IntRange(min=1), default=10, show_default=True,
              help="How many.")  # fmt: skip
@version_option
@recipe_option
@store_option
@json_option
@clear_errors
def similar(
    sample_id: str,
    count: int,
    version: int | None,
    recipe_path: Path,
    store_path: Path | None,
    as_json: bool,
) -> None:
    """List the samples most similar to SAMPLE_ID, as the model sees them."""
    from gracekit.views import similar as compute

    found = compute(resolve_store(store_path, recipe_path), sample_id, version=version, count=count)
    if as_json:
        print_json(found)
        return
    _print_samples(found, ["similarity", "is_selected", "importance"])


def _print_samples(records: list[dict[str, Any]], keys: list[str]) -> None:
    columns = ["sample_id", *keys, "group", "preview"]
    print_table(columns, [[record[key] for key in columns] for record in records])
