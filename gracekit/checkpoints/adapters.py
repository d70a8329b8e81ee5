"""PEFT adapters: a checkpoint that holds only low-rank changes to a base model. No torch.

The adapter's folder names its base model, which lies elsewhere and does not change while training
runs: it is read in place, and its bytes are part of the checkpoint's identity.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from gracekit.checkpoints.quantised import quantisation_of
from gracekit.checkpoints.weights import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    incomplete_weights,
    is_adapter,
    read_header,
    weight_files,
    weights_digest,
)
from gracekit.errors import CheckpointError
from gracekit.files import read_json
from gracekit.recipe import CheckpointSection
from gracekit.types import Json

SUPPORTED = ("LORA",)


def incomplete_adapter(directory: Path) -> str | None:
    """Why the adapter's files are not complete; `CheckpointError` for what cannot be read."""
    try:
        config = read_json(directory / ADAPTER_CONFIG)
        kind = config.get("peft_type")
    except (ValueError, AttributeError):
        return f"{ADAPTER_CONFIG} does not parse: it is cut off or damaged"
    if kind not in SUPPORTED or config.get("use_dora"):
        what = "DoRA" if config.get("use_dora") else kind
        raise CheckpointError(
            f"{directory} holds a PEFT adapter of type {what}, which gracekit cannot read; it "
            f"reads {', '.join(SUPPORTED)}, and full models: merge it into its base model "
            "(merge_and_unload, then save_pretrained)"
        )
    if not (directory / ADAPTER_WEIGHTS).is_file():
        if (directory / "adapter_model.bin").is_file():
            raise CheckpointError(
                f"{directory} holds a pickled adapter, which gracekit does not load; save "
                "safetensors (the default of save_pretrained) in the trainer"
            )
        return f"{ADAPTER_WEIGHTS} is not there yet"
    try:
        read_header(directory / ADAPTER_WEIGHTS)
    except ValueError as error:
        return str(error)
    return None


def read_adapter(directory: Path) -> Json:
    """Type, rank and target modules: equal for the adapters of one run."""
    config = read_json(directory / ADAPTER_CONFIG)
    targets = config.get("target_modules")
    return {
        "type": config.get("peft_type"),
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "targets": sorted(targets) if isinstance(targets, list) else targets,
    }


def num_saved_rows(directory: Path, module: str) -> int | None:
    """Rows of the whole weight of a module that an adapter's file holds; None where it has none.

    Args:
        directory: The adapter.
        module: Its name in the base model, such as `model.embed_tokens`.
    """
    name = re.compile(rf"base_model\.model\.{re.escape(module)}(\.[a-z_]+)?\.weight")
    header = read_header(directory / ADAPTER_WEIGHTS)
    shapes = [entry["shape"] for key, entry in header.items() if name.fullmatch(key)]
    return int(shapes[0][0]) if shapes else None


def model_directory(directory: Path, settings: CheckpointSection) -> Path:
    """Where the config and the weights of the whole model are: the adapter's base, or here.

    The base is the recipe's `checkpoints.base_model`, else the directory that the adapter names,
    else that name in the local cache of the model hub. Nothing is downloaded.

    Raises `CheckpointError` when there is none, or it is not whole.
    """
    if not is_adapter(directory):
        return directory
    config = read_json(directory / ADAPTER_CONFIG)
    named = settings.base_model or config.get("base_model_name_or_path")
    where = "checkpoints.base_model" if settings.base_model else ADAPTER_CONFIG
    base = _find(str(named)) if named else None
    if base is None:
        raise CheckpointError(
            f"{directory} is an adapter, and its base model {named!r} (from {where}) is no "
            "directory here, nor in the local cache of the model hub; set "
            "checkpoints.base_model in the recipe to the directory of the base model"
        )
    reason: str | None
    if is_adapter(base):
        reason = "it is an adapter itself"
    elif not (base / "config.json").is_file():
        reason = "no config.json"
    else:
        reason = incomplete_weights(base)
    if reason:
        raise CheckpointError(
            f"the base model {base} (from {where}) of {directory} cannot be read: {reason}; it "
            "must be a full model saved as safetensors"
        )
    quantised = quantisation_of(base)
    if quantised is not None and not quantised.is_read:
        raise CheckpointError(
            f"the base model {base} (from {where}) of {directory} has {quantised.what}, which "
            "gracekit cannot read; set checkpoints.base_model in the recipe to the directory of "
            "the full-precision model that it was made from (for QLoRA, the model's name without "
            "-bnb-4bit)"
        )
    return base


def base_digest(base: Path) -> str:
    """xxh3_128 over config and weights of a base model; kept while their times are the same."""
    files = [base / "config.json", *weight_files(base)]
    stamps = tuple((f, f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return _digest(stamps)


@lru_cache(maxsize=4)
def _digest(stamps: tuple[tuple[Path, int, int], ...]) -> str:
    return weights_digest([path for path, _, _ in stamps])


def _find(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
