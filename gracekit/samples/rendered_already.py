"""Texts that a chat template was applied to before, told without a tokenizer."""

from __future__ import annotations

import re

from gracekit.samples.formats import Conversation

BEGINNINGS = re.compile(
    r"\s*(<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<｜begin▁of▁sentence｜>|\[gMASK\]|"
    r"<\|im_start\|>|<\|start_header_id\|>|<\|start\|>|<start_of_turn>|\[INST\]|"
    r"<\|(?:system|user|assistant)\|>)"
)
"""What the templates of common families begin with."""


def rendered_beginning(conversation: Conversation) -> str | None:
    """The token with which a text begins that a chat template was applied to, else None."""
    found = BEGINNINGS.match(conversation.messages[0]["content"])
    return found[1] if found else None
