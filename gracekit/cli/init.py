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
@click.option("--column", "columns", multiple=True, metavar="WHAT=COLUMN",
              help="Which column is what, such as prompt=question. May be repeated.")  # fmt: skip
@click.option("--role", "roles", multiple=True, metavar="ROLE=NAME",
              help="What the chats call a role: assistant=bot. May be repeated.")  # fmt: skip
@click.option("--split", default="train", show_default=True,
              help="Split, where there are several.")  # fmt: skip
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
    columns: tuple[str, ...],
    roles: tuple[str, ...],
    split: str,
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
        columns={what: names[-1] for what, names in _pairs("--column", columns).items()},
        roles=_pairs("--role", roles),
        split=split,
        force=force,
        strict=strict,
    )

    has_groups = group_column is not None or found.groups != ("all",)

    def print_text() -> None:
        groups = f", {count_of(len(found.groups), 'group')}" if has_groups else ""
        out.line(f"{count_of(found.num_samples, 'sample')} ({found.format}){groups}")
        if found.first_skipped is not None:
            out.line(
                f"{count_of(found.num_skipped, 'row')} cannot be used, the first is "
                f"{found.first_skipped} (--strict lists them)"
            )
        if found.rendered_already is not None:
            out.line(found.rendered_already)
        out.line(f"wrote {output}; next: gracekit watch CHECKPOINT_DIR")

    out.show(found, print_text)


def _pairs(option: str, given: tuple[str, ...]) -> dict[str, list[str]]:
    """`("assistant=bot", "assistant=ai")` -> `{"assistant": ["bot", "ai"]}`."""
    pairs: dict[str, list[str]] = {}
    for text in given:
        key, sign, name = text.partition("=")
        if not (key and sign and name):
            raise click.BadParameter(f"expected {option} KEY=NAME, found {text!r}")
        pairs.setdefault(key, []).append(name)
    return pairs
