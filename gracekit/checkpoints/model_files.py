"""Whether the files of a model are complete and can be loaded, in whatever form its weights are.

Forms that transformers loads as they are: safetensors with a config.json, and PEFT adapters. Forms
that are put together or converted first, with config and tokenizer of `checkpoints.base_model`
where the checkpoint has none: safetensors alone, and torch distributed shards. Anything else is
listed in `UNSUPPORTED` with the way out, or goes through `checkpoints.convert_cmd`.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from gracekit.checkpoints.adapters import base_named, incomplete_adapter
from gracekit.checkpoints.distributed import (
    incomplete_shards,
    require_one_form,
    shard_files,
    shards_directory,
)
from gracekit.checkpoints.quantised import quantisation_of
from gracekit.checkpoints.weights import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    incomplete_weights,
    is_adapter,
    weight_files,
)
from gracekit.documents import read_json
from gracekit.errors import CheckpointError
from gracekit.recipe import CheckpointSection

CONFIG = "config.json"
_LOADED_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".py"}
"""Config, weights, tokenizer, chat template and model code; not optimizer state or pickles."""
_WHOLE_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json")
"""Files of a tokenizer that end with a bracket when they are whole."""
_END_BYTES = 64
_ARCHIVE = b"PK\x03\x04"
"""What files of `torch.save` begin with."""
_MOST_LOOKED = 200
"""Folders in which those of steps are looked for."""
STEP_NAME = re.compile(r"(?:^|[-_=])(\d+)$")
"""What names of checkpoints end with."""
_STEP_WORDS = r"(?:checkpoint|ckpt|chkpt|global_?step|steps?|epoch|iter|iteration|round|save)"
_STEP_FOLDER = re.compile(rf"(?:.*[-_.])?{_STEP_WORDS}[-_=]?\d+(?:[-_=].*)?(?:\.ckpt)?|\d+", re.I)
OTHER_SAVES = {"final", "final_model", "final_checkpoint", "best", "last", "latest", "merged"}
"""Names of checkpoints that have no number."""

UNSUPPORTED = (
    (
        "pytorch_model_fsdp_rank*.bin",
        "the flattened parameters of each process (LOCAL_STATE_DICT)",
        "set state_dict_type to FULL_STATE_DICT or SHARDED_STATE_DICT",
    ),
    (
        "pytorch_model*.bin",
        "pickled weights",
        "save safetensors (the default of save_pretrained) in the trainer",
    ),
    (
        "*.gguf",
        "GGUF weights",
        "convert them with transformers (from_pretrained with gguf_file, then save_pretrained)",
    ),
    (
        "global_step*/*_states.pt",
        "DeepSpeed ZeRO shards",
        "set stage3_gather_16bit_weights_on_model_save in the trainer, or set "
        "checkpoints.base_model and checkpoints.convert_cmd: "
        "'python {src}/zero_to_fp32.py {src} {dst} --safe_serialization'",
    ),
    (
        "*_model_states.pt",
        "DeepSpeed ZeRO shards",
        "set checkpoints.base_model and checkpoints.convert_cmd: 'python {src}/../zero_to_fp32.py "
        "{src}/.. {dst} --tag global_step{step} --safe_serialization'",
    ),
    (
        "pytorch_model/*_states.pt",
        "DeepSpeed ZeRO shards",
        "set checkpoints.base_model and checkpoints.convert_cmd: "
        "'python {src}/zero_to_fp32.py {src} {dst} --safe_serialization'",
    ),
    (
        "ft-model-*-of-*.safetensors",
        "weights under torchtune's older names, without an index",
        "update torchtune, or set checkpoints.convert_cmd",
    ),
    (
        "lit_model.pth",
        "LitGPT weights",
        "set checkpoints.convert_cmd to LitGPT's convert_from_litgpt and its conversion to "
        "safetensors",
    ),
)
"""(file pattern, what it is, the way out) of weights that cannot be read as they are."""


def unsupported(directory: Path) -> tuple[str, str] | None:
    """What a directory holds that cannot be read, and the way out; None where nothing is known."""
    for pattern, what, way_out in UNSUPPORTED:
        if next(directory.glob(pattern), None):
            return what, way_out
    return None


def uses_command(parts: Sequence[Path], settings: CheckpointSection) -> bool:
    """Whether `checkpoints.convert_cmd` makes the model: it is set, and this is no model yet."""
    if settings.convert_cmd is None or is_adapter(parts[0]):
        return False
    try:
        return not weight_files(parts[0])
    except ValueError:
        return False


def incomplete_model(parts: Sequence[Path], settings: CheckpointSection) -> str | None:
    """Why the files of a model are not complete; None when they are and can be loaded.

    Args:
        parts: The directories that hold it, as `CheckpointLayout.parts` gives them.
        settings: What stands in for what the checkpoint lacks.

    Raises `CheckpointError` for what waiting does not mend.
    """
    directory = parts[0]
    if is_adapter(directory):
        return incomplete_adapter(directory) or _incomplete_tokenizer(parts)
    try:
        weights = weight_files(directory)
    except ValueError as error:
        return str(error)
    shards = None if weights else shards_directory(directory)
    if shards is not None:
        is_for_command = uses_command(parts, settings)
        try:
            require_one_form(directory, [])
            reason = incomplete_shards(shards)
        except CheckpointError:
            if not is_for_command:
                raise
            reason = _cut_off(directory, shard_files(shards))
        if reason or is_for_command:
            return reason or _incomplete_tokenizer(parts)
        return _incomplete_rest(parts, settings)
    if weights:
        require_one_form(directory, weights)
    else:
        found = unsupported(directory)
        if found is not None:
            if not uses_command(parts, settings):
                raise unsupported_error(directory, *found)
            return _incomplete_archive(directory) or _incomplete_tokenizer(parts)
    if config_in(parts) is None and settings.base_model is None:
        missing = f"{CONFIG} is not there yet"
        whole = weights and incomplete_weights(directory) is None
        hint = "; if the trainer never writes one, set checkpoints.base_model in the recipe to the "
        return missing + (f"{hint}directory of the model that training began from" if whole else "")
    config = config_in(parts)
    reason = _incomplete_rest(parts, settings) or incomplete_weights(directory)
    if reason or config is None:
        return reason
    try:
        quantised = quantisation_of(directory, read_json(config))
    except ValueError as error:
        return str(error)
    if quantised is not None and not quantised.is_read:
        raise unsupported_error(directory, quantised.what, quantised.way_out)
    return None


def _incomplete_rest(parts: Sequence[Path], settings: CheckpointSection) -> str | None:
    """Why config and tokenizer are not complete; raises where they have to come from a base."""
    config = config_in(parts)
    if config is None:
        base_of(parts[0], settings)
        return _incomplete_tokenizer(parts)
    try:
        read_json(config).get("model_type")
    except (ValueError, AttributeError):
        return f"{CONFIG} does not parse: it is cut off or damaged"
    return _incomplete_tokenizer(parts)


def config_in(parts: Sequence[Path]) -> Path | None:
    """The config.json of a checkpoint that has one."""
    return next((part / CONFIG for part in parts if (part / CONFIG).is_file()), None)


def base_of(directory: Path, settings: CheckpointSection) -> Path:
    """The directory of `checkpoints.base_model`, for the config and tokenizer of a checkpoint.

    Raises `CheckpointError` where it is not named or holds no config.
    """
    if settings.base_model is None:
        raise CheckpointError(
            f"{directory} holds weights but no {CONFIG} and no tokenizer; set "
            "checkpoints.base_model in the recipe to the directory of the model that training "
            "began from"
        )
    base = base_named(settings.base_model)
    if base is None or not (base / CONFIG).is_file():
        found = "is no directory here, nor in the local cache of the model hub"
        raise CheckpointError(
            f"checkpoints.base_model {settings.base_model!r}, which {directory} needs for its "
            f"config, {found if base is None else f'holds no {CONFIG}'}"
        )
    return base


def _incomplete_archive(directory: Path) -> str | None:
    """Why files of `torch.save` that a command reads are not whole: their table is at the end."""
    known = [path for pattern, _, _ in UNSUPPORTED for path in directory.glob(pattern)]
    beside = {other for path in known for other in path.parent.glob(f"*{path.suffix}")}
    return _cut_off(directory, sorted(path for path in beside if path.is_file()))


def _cut_off(directory: Path, paths: Sequence[Path]) -> str | None:
    """Which of these files is empty, or an archive without its table; None when none is."""
    for path in paths:
        with path.open("rb") as file:
            begins = file.read(len(_ARCHIVE))
            if not begins or (begins == _ARCHIVE and not zipfile.is_zipfile(file)):
                return f"{path.relative_to(directory)} is cut off"
    return None


def _incomplete_tokenizer(parts: Sequence[Path]) -> str | None:
    """Why a tokenizer that is there is not whole; None also where there is none."""
    for part in parts:
        for name in _WHOLE_JSON:
            if (part / name).is_file() and not _ends_with_bracket(part / name):
                return f"{name} is cut off"
    return None


def _ends_with_bracket(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _END_BYTES))
        return file.read().rstrip().endswith((b"}", b"]"))


def unsupported_error(directory: Path, what: str, way_out: str) -> CheckpointError:
    """The error for weights that cannot be read."""
    return CheckpointError(
        f"{directory} holds {what}, which gracekit cannot read; it reads full models saved as "
        f"safetensors in floating point: {way_out}"
    )


def loaded_files(directory: Path) -> list[Path]:
    """Config, weights, tokenizer and model code of a directory, sorted."""
    files = [path for path in directory.iterdir() if path.suffix in _LOADED_SUFFIXES]
    files += directory.glob("additional_chat_templates/*.jinja")
    return sorted(path for path in files if path.is_file())


def model_weights(directory: Path) -> list[Path]:
    """The weight files of a directory in the form that they are in; raises `CheckpointError`."""
    try:
        found = weight_files(directory)
    except ValueError as error:
        raise CheckpointError(f"{directory}: {error}") from None
    shards = None if found else shards_directory(directory)
    return found if shards is None else shard_files(shards)


def is_step_folder(name: str) -> bool:
    """Whether a name says that it is of a step: checkpoint-N, step_N, global_stepN, epoch_E_step_S.

    A number alone does not: that of `run-1` or `Llama-3` is none of a step.
    """
    return _STEP_FOLDER.fullmatch(name) is not None


def holds_steps(path: Path, depth: int = 3) -> bool:
    """Whether folders of steps lie below, so that it is the folder of a run or of several.

    In the folder of a step itself one of the same number is part of it: Trainer and DeepSpeed
    save `checkpoint-10/global_step10`. Links are not followed.
    """
    own = _numbers(path.name)[-1:] if is_step_folder(path.name) else []
    waiting = [(path, depth)]
    for _ in range(_MOST_LOOKED):
        if not waiting:
            break
        place, left = waiting.pop(0)
        for child in place.iterdir():
            if not own and child.suffix == ".ckpt":
                return True
            if child.is_symlink() or not child.is_dir():
                continue
            if is_step_folder(child.name) and _numbers(child.name)[-1:] != own:
                return True
            if left > 1:
                waiting.append((child, left - 1))
    return False


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def named_adapters(directory: Path) -> dict[str, Path]:
    """Name -> folder of adapters that PEFT saved under names of their own.

    Folders that are called as checkpoints are (epoch_1, final) hold adapters of other steps; in the
    folder of a step itself a number alone (expert_1) does not make them such.
    """
    is_of_step = is_step_folder(directory.name)
    found = (path.parent for path in sorted(directory.glob(f"*/{ADAPTER_CONFIG}")))
    half = (path.parent for path in sorted(directory.glob(f"*/{ADAPTER_WEIGHTS}")))
    return {
        folder.name: folder
        for folder in (*found, *half)
        if folder.name not in OTHER_SAVES
        and not (is_step_folder(folder.name) if is_of_step else STEP_NAME.search(folder.name))
    }
