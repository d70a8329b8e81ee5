"""`gracekit init`: look at the data and write a commented recipe for it."""

from __future__ import annotations

from pathlib import Path

import click

import gracekit
from gracekit.cli.options import answers, clear_errors, strict_option
from gracekit.cli.output import Output
from gracekit.words import count_of


@click.command(epilog="\b\nExample:\n  gracekit init data/train.jsonl --group-column source")
@click.argument("data")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("gracekit.yaml"),
              show_default=True, help="The recipe to write.")  # fmt: skip
@click.option("--store", default="gracekit-store", show_default=True, help="The store's directory.")
@click.option("--id-column", default=None, help="Column with unique sample ids.")
@click.option("--group-column", default=None, help="Column with the group of a sample.")
@click.option("--force", is_flag=True, help="Replace an existing recipe.")
@strict_option
@clear_errors
@answers
def init(
    data: str,
    output: Path,
    store: str,
    id_column: str | None,
    group_column: str | None,
    force: bool,
    strict: bool,
    out: Output,
) -> None:
    """Look at DATA and write a commented recipe for it.

    DATA is a JSONL, JSON, Parquet or CSV file, a directory of them, a `save_to_disk` folder, or
    the name of a hub dataset.
    """
    found = gracekit.init(
        data,
        output=output,
        store=store,
        id_column=id_column,
        group_column=group_column,
        force=force,
        strict=strict,
    )

    def print_text() -> None:
        groups = f", {count_of(len(found.groups), 'group')}" if group_column else ""
        out.line(f"{count_of(found.num_samples, 'sample')} ({found.format}){groups}")
        if found.first_skipped is not None:
            out.line(
                f"{count_of(found.num_skipped, 'row')} cannot be used, the first is "
                f"{found.first_skipped} (--strict lists them)"
            )
        out.line(f"wrote {output}; next: gracekit watch CHECKPOINT_DIR")

    out.show(found, print_text)
