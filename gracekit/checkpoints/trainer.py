"""Which trainer wrote a checkpoint, as far as its files say so. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gracekit.documents import open_regular
from gracekit.errors import CheckpointError
from gracekit.foreign import foreign

MODEL_CARD = "README.md"
MAX_CARD_BYTES = 1 << 18
MAX_BRACKETS = 1000
"""In the head of a card: the reader of YAML takes time by the square of how deep they stand."""
OTHERS = {"axolotl", "llama-factory", "unsloth"}
"""Trainers that build on TRL, and make tokens in ways of their own."""


def is_of_trl_sft(checkpoint: Path) -> bool:
    """Whether TRL's `SFTTrainer` wrote it.

    TRL writes a model card into the output directory before each checkpoint, with the tags `trl`
    and `sft`. A card in the checkpoint itself may be that of the base model, and says nothing.
    """
    card = checkpoint.parent / MODEL_CARD
    try:
        with foreign(card, CheckpointError):
            content = _head_of(card)
    except CheckpointError:
        return False
    tags = content.get("tags") if isinstance(content, dict) else None
    found = {str(tag) for tag in tags} if isinstance(tags, list) else set()
    return {"trl", "sft"} <= found and not found & OTHERS


def _head_of(card: Path) -> Any:
    """What stands between the lines `---`; None where there is nothing, or the card is too large.

    Aliases are not read: nine short lines of them make a document that no memory holds.
    """
    with open_regular(card) as file:
        text = file.read(MAX_CARD_BYTES + 1)
    _, begins, rest = text.decode("utf-8").replace("\r\n", "\n").partition("---\n")
    head, ends, _ = rest.partition("\n---")
    if len(text) > MAX_CARD_BYTES or not (begins and ends):
        return None
    if head.count("[") + head.count("{") > MAX_BRACKETS:
        return None
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(head, yaml.SafeLoader)):
        return None
    return yaml.safe_load(head)
