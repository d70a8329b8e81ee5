"""`gracekit reference`: losses of all samples under a reference model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

import gracekit
from gracekit.cli.options import answers, clear_errors, strict_option, takes_recipe
from gracekit.cli.output import Output

if TYPE_CHECKING:
    from gracekit.api.making import ReferenceResult


@click.command(
    short_help="Measure every sample once with a reference model.",
    epilog="\b\nExamples:\n"
    "  gracekit reference models/base\n"
    "  gracekit reference runs/sft/checkpoint-100 -o early.parquet --json",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              help="The file; default: selection.reference, else reference.parquet beside the "
              "store.")  # fmt: skip
@takes_recipe
@strict_option
@clear_errors
@answers
def reference(
    checkpoint: Path,
    output: Path | None,
    recipe_path: Path,
    store_path: Path | None,
    changes: tuple[str, ...],
    strict: bool,
    out: Output,
) -> None:
    """Measure every sample once with the model of CHECKPOINT, which trains nothing.

    Its loss after its prompt, after another one and without: what the prompt tells. With
    `selection: {reference: FILE, trust: weigh}` a response of which its prompt tells little is
    trained on less; with `excess: 1` those more of which most is left to learn. What the file has
    is not measured again.
    """
    with gracekit.stop_on_signals() as stop:
        found = gracekit.reference(
            recipe_path,
            checkpoint,
            output=output,
            store=store_path,
            set=changes,
            strict=strict,
            stop=stop,
        )
    out.show(found, lambda: _print(out, found))


def _print(out: Output, found: ReferenceResult) -> None:
    loss = "-" if math.isnan(found.mean_loss) else f"{found.mean_loss:.3f} nats a target token"
    out.pairs(
        {
            "file": found.path,
            "samples": f"{found.num_samples:,}, the loss of {found.num_known:,} known",
            "measured now": f"{found.num_measured:,} contents",
            "mean loss": loss,
            "no evidence": f"{found.num_without_prompt:,}: no prompt, or none to compare it with",
            "distrusted": f"{found.num_distrusted:,}: their prompts tell little of the responses",
        }
    )
