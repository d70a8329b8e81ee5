"""PEFT adapters: a checkpoint that holds only low-rank changes to a base model. No torch.

The adapter's folder names its base model, which lies elsewhere and does not change while training
runs: it is read in place, and its bytes are part of the checkpoint's identity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

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
from gracekit.documents import read_json
from gracekit.errors import CheckpointError, CheckpointMismatchError
from gracekit.foreign import finite_number, whole_number
from gracekit.recipe import CheckpointSection
from gracekit.types import Json

SUPPORTED = ("LORA",)
_SMALL_CLAIM = 1024
"""Up to this rank, or so many tokens, memory is to be had for any layer."""
_FEW_LAYERS = 1024
_CONVERT = "save the adapter with path_initial_model_for_weight_conversion"
_MERGE = "merge it into its base model (merge_and_unload, then save_pretrained)"


def incomplete_adapter(directory: Path) -> str | None:
    """Why the adapter's files are not complete; `CheckpointError` for what cannot be read."""
    try:
        config = read_adapter_config(directory)
    except ValueError:
        return f"{ADAPTER_CONFIG} does not parse: it is cut off or damaged"
    kind = config.get("peft_type")
    if kind not in SUPPORTED:
        what = " ".join(str(kind)[:80].split())
        raise CheckpointError(
            f"{directory} holds a PEFT adapter of type {what}, which gracekit cannot read; it "
            f"reads {', '.join(SUPPORTED)}, and full models: {_MERGE}"
        )
    _require_reproducible(directory, config)
    if not (directory / ADAPTER_WEIGHTS).is_file():
        if (directory / "adapter_model.bin").is_file():
            raise CheckpointError(
                f"{directory} holds a pickled adapter, which gracekit does not load; save "
                "safetensors (the default of save_pretrained) in the trainer"
            )
        return f"{ADAPTER_WEIGHTS} is not there yet"
    try:
        header = read_header(directory / ADAPTER_WEIGHTS)
    except ValueError as error:
        return str(error)
    _require_claim(directory, config, header)
    return None


def _require_claim(directory: Path, config: Json, header: Json) -> None:
    """Raise `CheckpointMismatchError` where a config claims far more than the weights hold.

    PEFT makes all layers that the config says, and takes memory for them, before it looks at the
    weights: one wrong digit would take all memory.
    """
    longest = max((size for entry in header.values() for size in entry["shape"]), default=0)
    claims = {
        "ranks up to {:,}": [config.get("r"), *_as_object(config.get("rank_pattern")).values()],
        "{:,} trained tokens": [len(one) for one in token_lists(config)],
        "{:,} samples of matrices": [
            _as_object(config.get("monteclora_config")).get("num_samples")
        ],
    }
    for what, values in claims.items():
        most = max((value for value in map(whole_number, values) if value is not None), default=0)
        if most > max(longest, _SMALL_CLAIM):
            raise _claims(directory, what.format(most), f"no side longer than {longest:,}")
    replicated: Any = config.get("layer_replication")
    pairs = [pair for pair in replicated if _is_list(pair)] if _is_list(replicated) else []
    ends = [[whole_number(end) or 0 for end in pair] for pair in pairs if len(pair) == 2]
    num_layers = sum(stop - start for start, stop in ends if start < stop)
    if num_layers > max(len(header), _FEW_LAYERS):
        raise _claims(directory, f"{num_layers:,} layers", f"{len(header):,} tensors")


def _claims(directory: Path, claimed: str, held: str) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"the {ADAPTER_CONFIG} of {directory} says {claimed}, and its weights have {held}: they "
        "do not belong together; save the checkpoint again"
    )


def token_lists(config: Json) -> list[list[Any]]:
    """Numbers of the tokens that are trained beside the adapter, a list for each embedding."""
    tokens = config.get("trainable_token_indices")
    return [one for one in (tokens, *_as_object(tokens).values()) if _is_list(one)]


def _as_object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _require_reproducible(directory: Path, config: Json) -> None:
    """Raise `CheckpointError` for LoRA whose model is not its base and the matrices added."""
    if config.get("alora_invocation_tokens") is not None:
        raise CheckpointError(
            f"{directory} holds an activated LoRA (alora_invocation_tokens), which counts only "
            "from these tokens of a sequence on; gracekit reads LoRA that counts everywhere, so it "
            "cannot measure the model that is trained"
        )
    began = str(config.get("init_lora_weights"))[:40]
    if began.startswith("pissa_niter_"):
        raise CheckpointError(
            f"{directory} holds a LoRA that began as {began}: it took a part of the base "
            "model away by a random approximation, which no loading gives again; begin with pissa, "
            f"{_CONVERT}, or {_MERGE}"
        )
    if began == "lora_ga" or began.startswith("corda"):
        raise CheckpointError(
            f"{directory} holds a LoRA that began as {began}: it took a part of the base model "
            "away that it had found with data, which no loading gives again, so another model "
            f"would be measured; {_CONVERT}, or {_MERGE}. Where its base model was saved without "
            'that part, write "init_lora_weights": true into the trainer\'s adapter configuration'
        )


def read_adapter_config(directory: Path) -> Json:
    """adapter_config.json; ValueError where it is no JSON object."""
    config = read_json(directory / ADAPTER_CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"{ADAPTER_CONFIG} holds a {type(config).__name__}, expected an object")
    return config


def is_dora(directory: Path) -> bool:
    """Whether an adapter decomposes weights into direction and magnitude (DoRA)."""
    return bool(read_adapter_config(directory).get("use_dora"))


def is_told_by_shapes(directory: Path) -> bool:
    """Whether PEFT makes its layers also beside a model without numbers; not MonteCLoRA's."""
    return not read_adapter_config(directory).get("monteclora_config")


def read_adapter(directory: Path) -> Json:
    """Type, rank and target modules: equal for the adapters of one run.

    Raises `CheckpointError` for values of another kind than PEFT writes.
    """
    config = read_adapter_config(directory)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    targets = config.get("target_modules")
    if isinstance(targets, list):
        fits = all(isinstance(target, str) for target in targets)
    else:
        fits = targets is None or isinstance(targets, str)
    fits &= rank is None or whole_number(rank) is not None
    fits &= alpha is None or finite_number(alpha) is not None
    if not fits:
        raise CheckpointError(
            f"{directory / ADAPTER_CONFIG} has r {repr(rank)[:40]}, lora_alpha "
            f"{repr(alpha)[:40]} and target_modules {repr(targets)[:80]}; expected a whole number, "
            "a number, and names: it is damaged; save the checkpoint again"
        )
    facts: Json = {
        "type": config.get("peft_type"),
        "rank": rank,
        "alpha": alpha,
        "targets": sorted(targets) if isinstance(targets, list) else targets,
    }
    return {**facts, "dora": True} if config.get("use_dora") else facts


def require_whole_adapter(path: Path, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise `CheckpointMismatchError` where the file is not of the adapter that its config says.

    PEFT leaves out what it does not know, and begins what it does not find as a new adapter would.

    Args:
        path: The checkpoint.
        missing: Parameters that PEFT did not find in the file; those of the base may be among them.
        unexpected: Tensors of the file that PEFT did not use.
    """
    lost, spare = (sorted(name for name in names if ".lora_" in name)
                   for names in (missing, unexpected))  # fmt: skip
    if not lost and not spare:
        return
    told = [f"{len(lost)} of its tensors are missing, such as {lost[0][:200]}"] if lost else []
    if spare:
        told.append(f"{len(spare)} belong to no layer of it, such as {spare[0][:200]}")
    raise CheckpointMismatchError(
        f"{path} holds another adapter than its {ADAPTER_CONFIG} and its base model say: "
        f"{' and '.join(told)}. Was it saved by a wrapper, or trained on another base model?"
    )


def num_saved_rows(directory: Path, module: str) -> int | None:
    """Rows of the whole weight of a module that an adapter's file holds; None where it has none.

    Args:
        directory: The adapter.
        module: Its name in the base model, such as `model.embed_tokens`.
    """
    wrapped = r"(\.token_adapter)?(\.[a-z_]+)?\.weight"
    name = re.compile(rf"base_model\.model\.{re.escape(module)}{wrapped}")
    header = read_header(directory / ADAPTER_WEIGHTS)
    shapes = [entry["shape"] for key, entry in header.items() if name.fullmatch(key)]
    return int(shapes[0][0]) if shapes and all(shapes[0]) else None


def model_directory(directory: Path, settings: CheckpointSection) -> Path:
    """Where the config and the weights of the whole model are: the adapter's base, or here.

    The base is the recipe's `checkpoints.base_model`, else the directory that the adapter names,
    else that name in the local cache of the model hub. Nothing is downloaded.

    Raises `CheckpointError` when there is none, or it is not whole.
    """
    if not is_adapter(directory):
        return directory
    config = read_adapter_config(directory)
    named = settings.base_model or config.get("base_model_name_or_path")
    where = "checkpoints.base_model" if settings.base_model else ADAPTER_CONFIG
    base = base_named(named) if named and isinstance(named, str) else None
    if base is None:
        raise CheckpointError(
            f"{directory} is an adapter, and its base model {repr(named)[:200]} (from {where}) is "
            "no directory here, nor in the local cache of the model hub; set "
            "checkpoints.base_model in the recipe to the directory of the base model"
        )
    reason: str | None
    if (base / ADAPTER_CONFIG).is_file():
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


def base_named(name: str) -> Path | None:
    """The directory of that path, or of that name in the local cache of the model hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError):
        return None
