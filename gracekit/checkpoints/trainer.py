"""Which trainer wrote a checkpoint, as far as its files say so. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

import yaml

MODEL_CARD = "README.md"
MAX_CARD_BYTES = 1 << 18
OTHERS = {"axolotl", "llama-factory", "unsloth"}
"""Trainers that build on TRL, and make tokens in ways of their own."""


def is_of_trl_sft(checkpoint: Path) -> bool:
    """Whether TRL's `SFTTrainer` wrote it.

    TRL writes a model card into the output directory before each checkpoint, with the tags `trl`
    and `sft`. A card in the checkpoint itself may be that of the base model, and says nothing.
    """
    card = checkpoint.parent / MODEL_CARD
    try:
        if card.stat().st_size > MAX_CARD_BYTES:
            return False
        _, begins, rest = card.read_text(encoding="utf-8").partition("---\n")
        head, ends, _ = rest.partition("\n---")
        content = yaml.safe_load(head) if begins and ends else None
    except (OSError, ValueError, yaml.YAMLError):
        return False
    tags = content.get("tags") if isinstance(content, dict) else None
    found = {str(tag) for tag in tags} if isinstance(tags, list) else set()
    return {"trl", "sft"} <= found and not found & OTHERS
