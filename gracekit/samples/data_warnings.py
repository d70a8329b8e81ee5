"""What is probably not meant in a dataset: the warnings of `gracekit init`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gracekit.recipe import DataSection
from gracekit.samples.raw import RawSamples
from gracekit.samples.rendered_already import NUM_SEARCHED, rendered_rows
from gracekit.samples.token_preview import TokenPreview
from gracekit.words import count_of

FEW_SAMPLES = 10
"""In a smaller group the rank of a sample says little: importance has so many different values."""
SHOWN_GROUPS = 3


def data_warnings(raw: RawSamples, data: DataSection, tokens: TokenPreview | None) -> Iterator[str]:
    """A sentence each, with what to do.

    Args:
        raw: The samples.
        data: How they were read.
        tokens: Their tokens, where a tokenizer is known.
    """
    if data.group_column is not None:
        yield from _small_groups(raw, data.group_column)
    rendered = rendered_rows(raw)
    if rendered:
        yield (
            f"{len(rendered):,} of the first {count_of(min(len(raw), NUM_SEARCHED), 'sample')} "
            f"(row {rendered[0]} is one) hold what a chat template writes, such as <s> or "
            "<|im_start|>, as if it had been applied already. Applied again, by gracekit or by "
            "the trainer, it is doubled (two tokens that begin the sequence): name the "
            "conversations themselves, or the rendered text as a text column, and compare the "
            "trainer's tokens with `gracekit check`"
        )
    if raw.format == "preference":
        yield (
            "the data holds preference pairs: the chosen side is measured, with loss on what "
            "follows the prompt, and exports give the pairs whole"
            + ("; data.pair: margin compares it with the rejected side" * (data.pair == "chosen"))
        )
    if tokens is not None:
        yield from _cut(tokens, len(raw), data.max_length)


def _small_groups(raw: RawSamples, column: str) -> Iterator[str]:
    sizes = np.bincount(raw.groups, minlength=len(raw.group_names))
    small = np.flatnonzero(sizes < FEW_SAMPLES)
    if not len(small):
        return
    if len(sizes) > 1 and len(small) == len(sizes):
        yield (
            f"all {len(sizes):,} groups of column {column!r} have fewer than {FEW_SAMPLES} "
            "samples: is it a column of groups? With scoring.normalise: all, samples are ranked "
            "among all"
        )
        return
    names = ", ".join(f"{raw.group_names[k]!r} ({sizes[k]})" for k in small[:SHOWN_GROUPS])
    more = f" and {len(small) - SHOWN_GROUPS} more" if len(small) > SHOWN_GROUPS else ""
    yield (
        f"{count_of(len(small), 'group has', 'groups have')} fewer than {FEW_SAMPLES} samples "
        f"({names}{more}), too few to rank them within the group: put small groups together, or "
        "set scoring.normalise: all; selection.keep_groups_below takes them whole"
    )


def _cut(tokens: TokenPreview, num_samples: int, limit: int) -> Iterator[str]:
    if tokens.num_cut:
        text = (
            f"{tokens.num_cut:,} of {count_of(num_samples, 'sample')} have more than {limit:,} "
            f"tokens (data.max_length) and are cut off; {tokens.num_answers_cut:,} lose a part of "
            "the answer by that"
        )
        if tokens.num_without_answer:
            text += f", {tokens.num_without_answer:,} all of it, so that they are never selected"
        yield text + ". Set it as in your trainer"
    if tokens.unrendered:
        first = tokens.unrendered[0]
        yield (
            f"{count_of(len(tokens.unrendered), 'row has', 'rows have')} no tokens and "
            f"{'is' if len(tokens.unrendered) == 1 else 'are'} left out, the first is row "
            f"{first.source_row}: {first.reason}"
        )
