"""LoRA that verl saves in one state with the model that it adapts: merged into it. No torch.

The state has `x.base_layer.weight`, `x.lora_A.default.weight` and `x.lora_B.default.weight`; a note
beside it has rank and alpha, by which the change is scaled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gracekit.errors import CheckpointError
from gracekit.files import read_json
from gracekit.foreign import finite_number, whole_number

NOTE = "lora_train_meta.json"
"""In which verl notes r and lora_alpha."""
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.(?P<adapter>[^.]+)\.weight")


def is_lora(name: str) -> bool:
    """Whether a parameter belongs to the adapter."""
    return ".lora_" in name


def require_mergeable(directory: Path, names: Iterable[str]) -> None:
    """Raise `CheckpointError` for a state with an adapter that cannot be merged as it is saved."""
    names = list(names)
    lora = [name for name in names if is_lora(name)]
    if not lora:
        return
    if len(lora) == len(names):
        raise CheckpointError(
            f"{directory} holds a LoRA adapter alone, without the model that it adapts; leave "
            "save_lora_only off in verl, or set checkpoints.convert_cmd to a command that writes "
            "a model or a PEFT adapter"
        )
    halves(lora)
    scaling_of(directory)


def scaling_of(directory: Path) -> float:
    """By what the product of the adapter's two matrices is multiplied; raises `CheckpointError`."""
    place = directory / NOTE
    if not place.is_file():
        raise CheckpointError(
            f"{directory} holds a model and a LoRA adapter, and no {NOTE}, in which verl notes by "
            'how much the adapter counts; write it there as {"r": 8, "lora_alpha": 16}, with the '
            "values of your run"
        )
    try:
        note = read_json(place)
    except ValueError:
        note = None
    r, lora_alpha = (
        note.get(key) if isinstance(note, dict) else None for key in ("r", "lora_alpha")
    )
    rank, alpha = whole_number(r), finite_number(lora_alpha)
    if not rank or not alpha:
        raise CheckpointError(
            f"{place} has r {repr(r)[:40]} and lora_alpha {repr(lora_alpha)[:40]}; expected the "
            "rank and alpha of the run"
        )
    return alpha / rank


def halves(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Module -> side (A, B) -> name; raises `CheckpointError` for anything but one plain LoRA."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        parts = _LORA.fullmatch(name)
        sides = found.setdefault(parts["module"], {}) if parts else {}
        if parts is None or parts["side"] in sides:
            raise CheckpointError(
                f"the state holds {name[:200]!r}, which is not of one plain LoRA adapter; only "
                "such a one is merged into its model: set checkpoints.convert_cmd"
            )
        sides[parts["side"]] = name
    for module, sides in found.items():
        if len(sides) < 2:
            raise CheckpointError(f"the state holds half an adapter of {module[:200]!r}")
    return found


def merged(weight: Any, a: Any, b: Any, scaling: float) -> Any:
    """The weight with the adapter's change, in the weight's own dtype."""
    return (weight.float() + scaling * (b.float() @ a.float())).to(weight.dtype)
