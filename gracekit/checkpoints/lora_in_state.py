"""LoRA that verl saves in one state with the model that it adapts: merged into it. No torch.

The state has `x.base_layer.weight`, `x.lora_A.default.weight` and `x.lora_B.default.weight`; a note
beside it has rank and alpha, by which the change is scaled.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from gracekit.checkpoints.weights import ADAPTER_CONFIG
from gracekit.documents import read_json
from gracekit.errors import CheckpointError
from gracekit.foreign import finite_number, whole_number

NOTE = "lora_train_meta.json"
"""In which verl notes r and lora_alpha."""
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.(?P<adapter>[^.]+)\.weight")
_BASE = ".base_layer."
_TRAINED = ".modules_to_save."
"""Of a whole module that PEFT trains beside the adapter, a copy of the model's."""


def is_lora(name: str) -> bool:
    """Whether a parameter belongs to the adapter."""
    return ".lora_" in name


def adapter_among(names: Iterable[str]) -> str | None:
    """A parameter of an adapter of any kind that PEFT makes; None where there is none.

    What it adapts is `x.base_layer`, and whatever else `x` has is the adapter's.
    """
    names = list(names)
    adapted = {name.split(_BASE, 1)[0] for name in names if _BASE in name}
    for name in names:
        words = name.split(".")
        modules = {".".join(words[:i]) for i in range(1, len(words))}
        is_of_adapted = _BASE not in name and not modules.isdisjoint(adapted)
        if is_lora(name) or _TRAINED in name or is_of_adapted:
            return name
    return None


def require_model(directory: Path, names: Collection[str]) -> None:
    """Raise `CheckpointError` for a state that holds the parameters of a LoRA adapter alone.

    Such a state has the weight of no module that is adapted, though PEFT may add whole modules and
    biases that are trained too. Nothing in it tells by how much the adapter counts.
    """
    adapted = {name.split(".lora_", 1)[0] for name in names if is_lora(name)}
    rest = [name for name in names if not is_lora(name) and not name.endswith("bias")]
    has_model = any(
        name.split(_BASE, 1)[0] in adapted or name.removesuffix(".weight") in adapted
        for name in rest
    )
    if adapted and not has_model:
        raise CheckpointError(
            f"{directory} holds a LoRA adapter alone, without the model that it adapts and without "
            f"its {ADAPTER_CONFIG}; leave save_lora_only off in verl, set state_dict_type of "
            "fsdp_config to FULL_STATE_DICT for the Trainer of transformers, or set "
            "checkpoints.convert_cmd to a command that writes a model or a PEFT adapter"
        )


def require_mergeable(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `CheckpointError` for a state with an adapter that cannot be merged as it is saved.

    Args:
        directory: Where the state and the note are.
        shapes: Name of each parameter -> its whole shape.
    """
    require_model(directory, shapes)
    lora = [name for name in shapes if is_lora(name)]
    if not lora:
        return
    rank, _ = _rank_and_alpha(directory)
    for module, sides in halves(lora).items():
        a, b = (shapes[sides[side]] for side in "AB")
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise CheckpointError(
                f"{directory} holds an adapter of {module[:200]!r} whose matrices are {a} and {b}; "
                "expected (rank, inputs) and (outputs, rank)"
            )
        if a[0] != rank:
            raise CheckpointError(
                f"{directory / NOTE} has r {rank}, and the adapter of {module[:200]!r} beside it "
                f"has rank {a[0]}: the note is of another run; write the rank and alpha of this "
                "one there"
            )


def scaling_of(directory: Path) -> float:
    """By what the product of the adapter's two matrices is multiplied; raises `CheckpointError`."""
    rank, alpha = _rank_and_alpha(directory)
    return alpha / rank


def _rank_and_alpha(directory: Path) -> tuple[int, float]:
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
    return rank, alpha


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
