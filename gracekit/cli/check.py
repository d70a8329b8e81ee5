"""`gracekit check`: whether the trainer's tokens are those that were measured."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import gracekit
from gracekit.cli.options import answers, clear_errors
from gracekit.cli.output import Output


@click.command(
    short_help="Compare the trainer's tokens with what was measured.",
    epilog="\b\nExamples:\n"
    "  gracekit check gracekit-store --dataset tokenised/ --tokenizer runs/sft/checkpoint-300\n"
    "  gracekit check gracekit.yaml --dataset tokenised.jsonl --tokenizer base-model --json",
)
@click.argument("store_or_recipe", type=click.Path(path_type=Path))
@click.option("--dataset", required=True, metavar="PATH",
              help="The data as the trainer tokenised it.")  # fmt: skip
@click.option("--split", default="train", show_default=True, help="Its split.")
@click.option("--tokenizer", type=click.Path(path_type=Path), default=None, metavar="DIR",
              help="The trainer's tokenizer: shows tokens as text, tries settings.")  # fmt: skip
@clear_errors
@answers
def check(
    store_or_recipe: Path, dataset: str, split: str, tokenizer: Path | None, out: Output
) -> None:
    """Compare the trainer's tokens and loss masks with what gracekit measured.

    STORE_OR_RECIPE is the store, or a recipe: its store, or before there is one its data in the
    tokens of --tokenizer. The dataset has the columns input_ids and labels, or completion_mask and
    assistant_masks, as `trainer.train_dataset.save_to_disk(PATH)` writes them. Exit code 1 when
    anything differs.
    """
    found = gracekit.check_tokens(dataset, store_or_recipe, tokenizer=tokenizer, split=split)

    def print_text() -> None:
        for line in found.lines():
            out.line(line)

    out.show(found, print_text)
    if not found.ok:
        sys.exit(1)
