"""What is in a folder, in words: why nothing of it can be used, and what is waited for."""

from __future__ import annotations

from pathlib import Path

from gracekit.checkpoints.places import Sight
from gracekit.recipe import CheckpointSection
from gracekit.words import count_of

EXPECTED = "a folder such as checkpoint-N with config.json and *.safetensors, or a file *.ckpt"


def nothing_there(root: Path, sight: Sight, settings: CheckpointSection) -> str:
    """That nothing below a folder looks like a checkpoint, what there is, and what is expected."""
    deep = f"down to {count_of(settings.depth, 'folder')} below it"
    return (
        f"{root} holds no checkpoint yet, {deep}: {sight}; waiting for {EXPECTED}; "
        "`gracekit doctor` says more"
    )
