"""Texts that a chat template was applied to before, told without a tokenizer."""

from __future__ import annotations

import re

from gracekit.samples.conversation import Conversation
from gracekit.samples.raw import RawSamples

NUM_SEARCHED = 1000
"""Rows that are searched, the first."""
AT_THE_BEGINNING = re.compile(
    r"\s*(?:<s>|<bos>|<\|startoftext\|>|<｜begin▁of▁sentence｜>|\[gMASK\]|<\|start\|>|"
    r"<\|(?:system|user|assistant)\|>)"
)
"""What templates of common families begin with, and what may mean other things further on: `<s>` is
also HTML."""
ANYWHERE = re.compile(
    r"<\|(?:im_start|im_end|begin_of_text|start_header_id|end_header_id|eot_id|endoftext)\|>|"
    r"<(?:start|end)_of_turn>|\[/?INST\]"
)
"""What they write around turns."""


def is_rendered(conversation: Conversation) -> bool:
    """Whether a chat template seems to have been applied to one of its texts."""
    return any(
        AT_THE_BEGINNING.match(message["content"]) or ANYWHERE.search(message["content"])
        for message in conversation.messages
    )


def rendered_rows(raw: RawSamples) -> tuple[int, ...]:
    """Of the first rows, those in whose texts a chat template seems to have been applied.

    As positions in the user's dataset, ascending.
    """
    num_searched = min(len(raw), NUM_SEARCHED)
    return tuple(
        int(raw.source_rows[row])
        for row, conversation in enumerate(raw.records[:num_searched])
        if is_rendered(conversation)
    )
