"""`gracekit init`: look at the data and write a commented recipe for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import gracekit
from gracekit.cli import terminal
from gracekit.cli.options import answers, clear_errors, strict_option
from gracekit.cli.output import Output
from gracekit.cli.section_options import DataKeysCommand
from gracekit.words import count_of

MOST_REASONS = 5
"""Reasons why rows are left out that are listed."""
MOST_CHARACTERS = 240
"""Of a piece of a row that is shown."""


@click.command(
    cls=DataKeysCommand,
    epilog="\b\nExamples:\n  gracekit init data/train.jsonl --group-column source\n"
    "  gracekit init data/train.jsonl --target data/task.jsonl\n"
    "  gracekit init faq.jsonl --column prompt=q --column response=a --tokenizer runs/sft",
)
@click.argument("data", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("gracekit.yaml"),
              show_default=True, help="The recipe to write.")  # fmt: skip
@click.option("--store", default="gracekit-store", show_default=True, help="The store's directory.")
@click.option("--tokenizer", type=click.Path(path_type=Path), default=None, metavar="DIRECTORY",
              help="Show the first rows in this tokenizer's tokens, and what is cut off. May be "
              "a checkpoint or a folder of them.")  # fmt: skip
@click.option("--target", type=click.Path(path_type=Path), default=None, metavar="FILE",
              help="Samples of the task that training is for, of the same layout: what resembles "
              "them is trained on more often, and the loss on them is followed.")  # fmt: skip
@click.option("--column", "columns", multiple=True, metavar="WHAT=COLUMN",
              help="Which column is what, such as prompt=question. May be repeated.")  # fmt: skip
@click.option("--role", "roles", multiple=True, metavar="ROLE=NAME",
              help="What the chats call a role: assistant=bot. May be repeated.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing recipe.")
@strict_option
@clear_errors
@answers
def init(
    data: tuple[str, ...],
    output: Path,
    store: str,
    tokenizer: Path | None,
    target: Path | None,
    columns: tuple[str, ...],
    roles: tuple[str, ...],
    force: bool,
    strict: bool,
    out: Output,
    **keys: Any,
) -> None:
    """Look at DATA and write a commented recipe for it.

    DATA is a JSONL, JSON, Parquet or CSV file, a directory of them, a pattern such as
    'data/*.jsonl', a `save_to_disk` folder, or the name of a hub dataset; or several of them.
    """
    found = gracekit.init(
        data[0] if len(data) == 1 else data,
        output=output,
        store=store,
        tokenizer=tokenizer,
        target=target,
        columns={what: names[-1] for what, names in _pairs("--column", columns).items()},
        roles=_pairs("--role", roles),
        force=force,
        strict=strict,
        **keys,
    )
    has_groups = keys["group_column"] is not None or found.groups != ("all",)

    def print_text() -> None:
        groups = f", {count_of(len(found.groups), 'group')}" if has_groups else ""
        out.line(f"{count_of(found.num_samples, 'sample')} ({found.format}){groups}")
        if found.first_skipped is not None:
            out.line(
                f"{count_of(found.num_skipped, 'row')} cannot be used, the first is "
                f"{found.first_skipped} (--strict lists them)"
            )
        for reason, count, first in found.skipped[:MOST_REASONS] if len(found.skipped) > 1 else ():
            out.line(f"  {count_of(count, 'row')}, the first is row {first}: {reason}")
        for row in found.tokens.rows if found.tokens is not None else ():
            out.line(
                f"row {row.source_row}: {count_of(row.num_tokens, 'token')}, "
                f"{row.num_targets:,} with loss:"
            )
            click.echo("  " + "".join(_shown(text, has_loss) for text, has_loss in row.pieces))
        for warning in found.warnings:
            out.line(f"note: {warning}")
        out.line(f"wrote {output}; next: gracekit watch CHECKPOINT_DIR")

    out.show(found, print_text)


def _shown(text: str, has_loss: bool) -> str:
    """A piece of a row, without its middle where it is long."""
    if len(text) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        text = f"{text[:half]} [...] {text[-half:]}"
    return terminal.emphasised(text) if has_loss else terminal.printable(text)


def _pairs(option: str, given: tuple[str, ...]) -> dict[str, list[str]]:
    """`("assistant=bot", "assistant=ai")` -> `{"assistant": ["bot", "ai"]}`."""
    pairs: dict[str, list[str]] = {}
    for text in given:
        key, sign, name = text.partition("=")
        if not (key and sign and name):
            raise click.BadParameter(f"expected {option} KEY=NAME, found {text!r}")
        pairs.setdefault(key, []).append(name)
    return pairs
