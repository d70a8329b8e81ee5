"""Load the model and the tokenizer of a pinned checkpoint, quietly, offline, never unpickling."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as transformers_logging

from gracekit.checkpoints.adapted import with_adapter
from gracekit.checkpoints.adapters import is_told_by_shapes, model_directory
from gracekit.checkpoints.assembly import needs_conversion
from gracekit.checkpoints.claims import require_claim
from gracekit.checkpoints.convert import ensure_weights, require_names
from gracekit.checkpoints.devices import resolve_device, resolve_dtype
from gracekit.checkpoints.layouts import layout_of
from gracekit.checkpoints.load_errors import load_error, require_all_weights
from gracekit.checkpoints.model_files import base_of
from gracekit.checkpoints.optimizer import AdamState, read_adam_state
from gracekit.checkpoints.pins import (
    in_place,
    named_as_found,
    require_unchanged,
    vanished,
    vanished_errors,
)
from gracekit.checkpoints.placement import spread
from gracekit.checkpoints.quantised import DEQUANTISED, quantisation_of
from gracekit.checkpoints.vocabulary import (
    TOKENIZER_SUFFIXES,
    VOCABULARY_FILES,
    has_vocabulary,
)
from gracekit.documents import MAX_JSON_BYTES
from gracekit.errors import (
    CheckpointError,
    CheckpointIncompleteError,
    CheckpointMismatchError,
    MeasureError,
    StoreWriteError,
)
from gracekit.foreign import foreign
from gracekit.leftovers import temporary_directory
from gracekit.recipe import CheckpointSection
from gracekit.recipe.sections import SPLIT
from gracekit.types import Checkpoint, PinnedCheckpoint

logger = logging.getLogger(__name__)


def load_checked(
    device: str,
    *,
    pinned: PinnedCheckpoint,
    settings: CheckpointSection,
    dtype: str,
    tokenizer: Any,
    with_optimizer: bool,
) -> tuple[torch.nn.Module, AdamState | None]:
    """`load_model` and `check_compatible`, and Adam's state; it can be sent to another process."""
    model = load_model(pinned, settings, device=device, dtype=dtype)
    check_compatible(model, tokenizer)
    return model, read_adam_state(pinned.directory, model) if with_optimizer else None


def load_model(
    pinned: PinnedCheckpoint,
    settings: CheckpointSection,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> torch.nn.Module:
    """The causal language model of a checkpoint: in eval mode, frozen, without cache.

    The weights are copied into memory, so the model outlives its files.

    Raises:
        CheckpointIncompleteError: A weight file is truncated or missing, or is being written.
        CheckpointVanishedError: The trainer deleted the checkpoint, which was read in place.
        CheckpointMismatchError: An architecture that transformers does not know, or weights that
            are missing from the files or have another shape than its config says.
        MeasureError: It does not fit into the memory of the device, or cannot be split.
        RecipeError: `device` or `dtype` does not exist here.
        StoreWriteError: There is no place for temporary files, which torch asks for as it loads;
            it would seem to be the checkpoint's fault.
    """
    torch_device = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, torch_device)
    temporary_directory()
    with named_as_found(pinned), foreign(pinned.checkpoint.path, CheckpointError):
        return _load(pinned, settings, SPLIT if device == SPLIT else torch_device, torch_dtype)


def _load(
    pinned: PinnedCheckpoint,
    settings: CheckpointSection,
    device: torch.device | str,
    torch_dtype: torch.dtype,
) -> torch.nn.Module:
    try:
        with _quiet():
            ensure_weights(pinned, settings)
            base = model_directory(pinned.directory, settings)
            config = _config(base, settings)
            model, info = _from_pretrained(base, config, settings, torch_dtype)
            require_all_weights(pinned, info)
            if base != pinned.directory:
                model = with_adapter(model, pinned)
            _prepare(model, device)
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        place = "all GPUs and the CPU" if device == SPLIT else device
        raise MeasureError(
            f"the model of {pinned.checkpoint.path} does not fit into the memory of {place}: free "
            f"some, or set scoring.device ({SPLIT}: all GPUs together) or scoring.dtype in the "
            "recipe"
        ) from error
    except (StoreWriteError, MeasureError):
        raise
    except Exception as error:  # transformers and model code raise anything
        _require_whole(pinned, settings)
        if isinstance(error, CheckpointError):
            raise
        raise load_error(pinned, settings, error) from error
    require_unchanged(pinned, settings)
    loaded: torch.nn.Module = model
    return loaded


def require_loadable(checkpoint: Checkpoint, settings: CheckpointSection) -> None:
    """Raise what `load_model` would, as far as names, shapes and settings tell.

    The model is made without memory for its numbers, and none of these is read but an adapter's.
    Nothing is told of quantised weights, and of what `checkpoints.convert_cmd` would make.
    """
    with (
        foreign(checkpoint.path, CheckpointError),
        in_place(checkpoint, settings) as seen,
        _quiet(),
    ):
        if seen is not None:
            with named_as_found(seen):
                _require_loadable(seen, settings)


def _require_loadable(seen: PinnedCheckpoint, settings: CheckpointSection) -> None:
    try:
        require_names(seen, settings)
        base = model_directory(seen.directory, settings)
        if needs_conversion(seen) or quantisation_of(base) is not None:
            return
        config = _config(base, settings)
    except CheckpointError:
        raise
    except Exception as error:  # as when it is loaded
        raise load_error(seen, settings, error) from error
    try:
        model, info = _from_pretrained(base, config, settings, torch.float32, device_map="meta")
        require_all_weights(seen, info)
        if base != seen.directory and is_told_by_shapes(seen.directory):
            with_adapter(model, seen)
    except CheckpointError:
        raise
    except (LookupError, OverflowError, TypeError, ValueError, AttributeError) as error:
        raise load_error(seen, settings, error) from error
    except Exception as error:  # it may be that of a model without numbers alone
        logger.debug("what loading %s would say is not known: %r", seen.checkpoint.path, error)


def load_tokenizer(pinned: PinnedCheckpoint, settings: CheckpointSection) -> Any:
    """The checkpoint's tokenizer; where it holds none, the one that the recipe names.

    Raises `CheckpointError` when there is none or it cannot be read.
    """
    what = f"the tokenizer of {pinned.checkpoint.path}"
    with named_as_found(pinned), foreign(what, CheckpointError):
        return _load_tokenizer(pinned, settings)


def _load_tokenizer(pinned: PinnedCheckpoint, settings: CheckpointSection) -> Any:
    directory = pinned.directory
    if not has_vocabulary(directory) and settings.tokenizer is None:
        directory = model_directory(directory, settings)  # an adapter's base
        if directory == pinned.directory and settings.base_model is not None:
            directory = base_of(pinned.checkpoint.path, settings)
    if not has_vocabulary(directory):
        if settings.tokenizer is None:
            _require_whole(pinned, settings)
            raise CheckpointError(
                f"{pinned.checkpoint.path} holds no tokenizer; name a directory with one as "
                "checkpoints.tokenizer in the recipe, or let the trainer save it (processing_class)"
            )
        directory = Path(settings.tokenizer)
        if not has_vocabulary(directory):
            raise CheckpointError(
                f"checkpoints.tokenizer: expected a directory with one of "
                f"{', '.join(VOCABULARY_FILES)}; found none in {directory}"
            )
    try:
        return read_tokenizer(directory, trust_remote_code=settings.trust_remote_code)
    except CheckpointError:
        if directory == pinned.directory:
            _require_whole(pinned, settings)
        raise


def read_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a directory, or of the newest checkpoint in it.

    Raises `CheckpointError` when there is none or it cannot be read.
    """
    with foreign(f"the tokenizer of {directory}", CheckpointError, doing="load"):
        return _read_tokenizer(directory, trust_remote_code)


def _read_tokenizer(directory: Path, trust_remote_code: bool) -> Any:
    if not has_vocabulary(directory):
        inner = [path.parent for name in VOCABULARY_FILES for path in directory.glob(f"*/{name}")]
        if not inner:
            raise CheckpointError(
                f"there is no tokenizer in {directory}; expected one of "
                f"{', '.join(VOCABULARY_FILES)}, in it or in a checkpoint in it"
            )
        directory = max(inner, key=lambda path: path.stat().st_mtime)
    for file in directory.iterdir():
        if file.suffix in TOKENIZER_SUFFIXES and file.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{file} is larger than {MAX_JSON_BYTES:,} bytes, which no tokenizer is; name the "
                "directory of another one as checkpoints.tokenizer in the recipe"
            )
    with _quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            directory, trust_remote_code=trust_remote_code, local_files_only=True
        )
        tokenizer.get_vocab()  # reads what is read late
    return tokenizer


def check_compatible(model: torch.nn.Module, tokenizer: Any) -> None:
    """Raise `CheckpointMismatchError` when the tokenizer has ids that the model cannot embed."""
    num_embeddings = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    with foreign("the tokenizer's vocabulary", CheckpointError):
        highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= num_embeddings:
        raise CheckpointMismatchError(
            f"the tokenizer has ids up to {highest}, but the model embeds only {num_embeddings} "
            "tokens: they do not belong together (or the embeddings were not resized); check "
            "checkpoints.tokenizer in the recipe"
        )


def _config(directory: Path, settings: CheckpointSection) -> Any:
    """Of a model that transformers knows, and whose weights are those of such a model in number."""
    config = transformers.AutoConfig.from_pretrained(
        directory, trust_remote_code=settings.trust_remote_code, local_files_only=True
    )
    # None lets transformers take sdpa where the model has it, whatever kernel the trainer used.
    config._attn_implementation = None
    require_claim(directory, config, settings)
    return config


def _from_pretrained(
    directory: Path,
    config: Any,
    settings: CheckpointSection,
    dtype: torch.dtype,
    *,
    device_map: str | None = None,
) -> tuple[Any, dict[str, Any]]:
    quantised = quantisation_of(directory)
    plain = {}
    if quantised is not None:
        to_plain = getattr(transformers, DEQUANTISED[quantised.method])
        plain["quantization_config"] = to_plain(dequantize=True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        config=config,
        trust_remote_code=settings.trust_remote_code,
        local_files_only=True,
        use_safetensors=True,
        dtype=dtype,
        device_map=device_map,
        ignore_mismatched_sizes=True,  # to be reported by us
        output_loading_info=True,
        **plain,
    )
    _require_plain(directory, model)
    return model, info


def _require_plain(directory: Path, model: Any) -> None:
    """Weights that are still quantised, as older versions of transformers leave them."""
    kinds = {p.dtype for p in model.parameters() if not p.is_floating_point() or p.itemsize < 2}
    if kinds:
        raise CheckpointError(
            f"transformers {transformers.__version__} does not dequantise the weights of "
            f"{directory} ({', '.join(map(str, kinds))}); update it, or use the full-precision "
            "model that they were made from"
        )


def _prepare(model: Any, device: torch.device | str) -> None:
    if device == SPLIT:
        spread(model)
    else:
        model.to(device)
    if torch.device("cpu") == device:
        # Loading on a CPU maps the files. A trainer that writes them again in place would change
        # the weights under the pass, or kill the process when it truncates them (SIGBUS).
        for tensor in chain(model.parameters(), model.buffers()):
            tensor.data = tensor.data.clone()
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    if model.is_gradient_checkpointing:
        model.gradient_checkpointing_disable()


def _require_whole(pinned: PinnedCheckpoint, settings: CheckpointSection) -> None:
    """Raise the error that fits when files were deleted, cut off or written again."""
    checkpoint = pinned.checkpoint
    require_unchanged(pinned, settings)
    with vanished_errors(checkpoint):
        reason = layout_of(checkpoint, settings).unready(pinned.original)
    if reason is None:
        return
    if not pinned.is_linked:
        # It was whole when it was found and nothing was written since: files were deleted.
        raise vanished(checkpoint)
    raise CheckpointIncompleteError(f"{checkpoint.path} is not complete: {reason}")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, reports or warnings of transformers: this daemon reports by itself."""
    verbosity = transformers_logging.get_verbosity()
    had_progress_bar = transformers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if had_progress_bar:
                transformers_logging.enable_progress_bar()
