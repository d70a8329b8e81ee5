"""Weights in a form of torch written as safetensors, under the names that transformers has.

Torch distributed shards (FSDP, DCP) are read by torch's own reader, with a table that is read by an
unpickler that knows the classes of such a table and nothing else; files of `torch.save` (Lightning)
without any unpickling. Of a training state only what the model has is read: no optimizer.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load

from gracekit import files
from gracekit.checkpoints.assembly import (
    conversion_of,
    link_or_point,
    needs_conversion,
    shards_of,
)
from gracekit.checkpoints.claims import require_layers
from gracekit.checkpoints.distributed import SHARDS, TABLE, has_table, read_table
from gracekit.checkpoints.inert_pickle import SavedTensor, mapping, read_archive, saved_tensors
from gracekit.checkpoints.layouts import layout_of
from gracekit.checkpoints.lora_in_state import (
    NOTE,
    adapter_among,
    halves,
    is_lora,
    merged,
    require_mergeable,
    scaling_of,
)
from gracekit.checkpoints.pieces import Piece, read_pieces, whole_shape
from gracekit.checkpoints.weights import ONE_MODEL, WHOLE
from gracekit.errors import CheckpointError, CheckpointMismatchError
from gracekit.recipe import CheckpointSection
from gracekit.types import PinnedCheckpoint

logger = logging.getLogger(__name__)

_WRAPPERS = re.compile(
    r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|base_layer)\."
)
"""What wrappers of a module put into the names of its parameters."""
_MOST_SHOWN = 3


def ensure_weights(pinned: PinnedCheckpoint, settings: CheckpointSection) -> None:
    """Put `model.safetensors` into a directory that was assembled without weights.

    Converted once for each checkpoint, kept where `pinned.conversion` says. Does nothing where
    there are weights.

    Raises:
        CheckpointMismatchError: The checkpoint's tensors are not those of the model that its config
            describes.
        CheckpointError: They cannot be read.
        StoreWriteError: They cannot be written.
    """
    if not needs_conversion(pinned):
        return
    how = f"safetensors 1 torch {torch.__version__}"
    if pinned.original.is_dir():
        how += "".join(files.sha256(note) for note in sorted(pinned.original.rglob(NOTE)))
    final = conversion_of(pinned, how)
    if not (final / WHOLE).is_file():
        logger.info("converting %s to safetensors", pinned.checkpoint.path)
        tensors = _tensors(pinned, settings)

        def write(target: Path) -> None:
            save_file(tensors, target / WHOLE, metadata={"format": "pt"})

        files.write_directory_atomic(final, write)
    with suppress(OSError):
        os.utime(final)
    link_or_point(final / WHOLE, pinned.directory / WHOLE)


def require_names(pinned: PinnedCheckpoint, settings: CheckpointSection) -> None:
    """Raise what `ensure_weights` would, as far as names and shapes tell; no numbers are read."""
    if needs_conversion(pinned):
        _planned(pinned, settings)


def _tensors(pinned: PinnedCheckpoint, settings: CheckpointSection) -> dict[str, torch.Tensor]:
    """Our name -> tensor, each with memory of its own."""
    return _planned(pinned, settings)()


def _planned(
    pinned: PinnedCheckpoint, settings: CheckpointSection
) -> Callable[[], dict[str, torch.Tensor]]:
    """What reads the tensors, once their names and shapes have been found to be the model's."""
    original = pinned.original
    if original.is_file():
        archive = read_archive(original)
        saved = dict(saved_tensors(archive, mapping(mapping(archive.content)["state_dict"])))
        return partial(_from_file, original, saved, _names(pinned, saved, settings))
    parts = layout_of(pinned.checkpoint, settings).parts(original)
    place = shards_of(pinned, parts)
    if place is None:
        raise CheckpointError(f"{pinned.checkpoint.path} holds no weights that can be converted")
    if has_table(place):
        return partial(_from_shards, place, _names(pinned, read_table(place).shapes, settings))
    try:
        pieces = read_pieces(place)
    except ValueError as error:
        raise CheckpointError(f"{pinned.checkpoint.path}: {error}") from None
    shapes = {name: whole_shape(parts) for name, parts in pieces.items()}
    require_mergeable(place, shapes)
    plain = {name: parts for name, parts in pieces.items() if not is_lora(name)}
    names = _names(pinned, plain, settings)
    of_weight = {}
    for module, sides in halves(name for name in pieces if is_lora(name)).items():
        name = _longest_ending(_WRAPPERS.sub("", f"{module}.weight"), set(names))
        whole = None if name is None else shapes[names[name]]
        if name is None or whole != (shapes[sides["B"]][0], shapes[sides["A"]][1]):
            raise CheckpointError(
                f"{pinned.checkpoint.path} holds an adapter of {module[:200]!r}, which fits no "
                "weight of its model"
            )
        of_weight[name] = sides
    return partial(_merged, place, pieces, names, of_weight)


def _from_file(
    path: Path, saved: dict[str, SavedTensor], ours: dict[str, str]
) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        return {name: _read(file, saved[theirs]) for name, theirs in ours.items()}


def _merged(
    place: Path,
    pieces: dict[str, list[Piece]],
    ours: dict[str, str],
    lora: dict[str, dict[str, str]],
) -> dict[str, torch.Tensor]:
    """Tensors put together from parts; `lora` names the two halves of what is added to some."""
    tensors = {name: _from_pieces(pieces[theirs]) for name, theirs in ours.items()}
    for name, sides in lora.items():
        a, b = (_from_pieces(pieces[sides[side]]) for side in "AB")
        tensors[name] = merged(tensors[name], a, b, scaling_of(place))
    return tensors


def _names(
    pinned: PinnedCheckpoint, theirs: Mapping[str, Any], settings: CheckpointSection
) -> dict[str, str]:
    """Name in the model -> name in the checkpoint, whatever wrappers put before it."""
    config = transformers.AutoConfig.from_pretrained(
        pinned.directory, trust_remote_code=settings.trust_remote_code, local_files_only=True
    )
    require_layers(config, len(theirs), pinned.checkpoint.path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, trust_remote_code=settings.trust_remote_code
        )
    wanted = set(model.state_dict())
    # The second is what transformers has before 5.0.
    tied = set(getattr(model, "all_tied_weights_keys", None) or model._tied_weights_keys or ())
    if not config.get_text_config().tie_word_embeddings:
        tied = set()
    plain: dict[str, str] = {}
    for name in theirs:
        first = plain.setdefault(_WRAPPERS.sub("", name), name)
        if not _is_same(theirs, first, name):
            raise CheckpointError(
                f"{pinned.checkpoint.path} holds both {first} and {name}, which are one parameter "
                f"without the names of wrappers: {ONE_MODEL}"
            )
    prefixes = Counter(
        name.removesuffix(ours)
        for name in plain
        for ours in (_longest_ending(name, wanted),)
        if ours is not None
    )
    whole: dict[str, dict[str, str]] = {}
    for prefix, _ in sorted(prefixes.items(), key=lambda p: (-p[1], len(p[0]))):
        found = {
            name.removeprefix(prefix): original
            for name, original in plain.items()
            if name.startswith(prefix) and name.removeprefix(prefix) in wanted
        }
        if wanted - found.keys() <= tied:
            whole[prefix] = found
    chosen = next(iter(whole.values()), None)
    if chosen is not None:
        adapter = adapter_among(theirs)
        if adapter is not None:
            raise CheckpointError(
                f"{pinned.checkpoint.path} holds a whole model and an adapter ({adapter}), which "
                f"would be left out: {ONE_MODEL}"
            )
        for other in whole.values():
            common = chosen.keys() & other.keys()
            if not all(_is_same(theirs, chosen[name], other[name]) for name in common):
                names = " and ".join(repr(prefix) for prefix in sorted(whole))
                raise CheckpointError(
                    f"{pinned.checkpoint.path} holds {len(whole)} models, under names that begin "
                    f"with {names}, and nothing tells which one is trained: {ONE_MODEL}"
                )
        _require_sizes(pinned, model.state_dict(), theirs, chosen)
        return chosen
    missing = sorted(wanted - tied - {n.removeprefix(p) for n in plain for p in (*prefixes, "")})
    raise CheckpointMismatchError(
        f"{pinned.checkpoint.path} does not hold the weights of its model under the names of "
        f"transformers: expected {_few(missing or sorted(wanted))}, found {_few(sorted(plain))}. "
        "Is it of another model than checkpoints.base_model? Weights under other names are "
        "converted by the trainer's own export; set checkpoints.convert_cmd to run it"
    )


def _require_sizes(
    pinned: PinnedCheckpoint,
    expected: Mapping[str, torch.Tensor],
    theirs: Mapping[str, Any],
    chosen: dict[str, str],
) -> None:
    """Raise `CheckpointMismatchError` where a tensor has not the size that the config says."""
    for name, original in chosen.items():
        told = theirs[original]
        found = told.shape if isinstance(told, SavedTensor) else told
        size = whole_shape(found) if isinstance(found, list) else tuple(found)
        if size != tuple(expected[name].shape):
            raise CheckpointMismatchError(
                f"{pinned.checkpoint.path} holds {original} of {size}, expected "
                f"{tuple(expected[name].shape)}, as its config says: a file of it is missing, or "
                "it is of another model than checkpoints.base_model"
            )


def _is_same(theirs: Mapping[str, Any], first: str, second: str) -> bool:
    """Whether two names are of the same numbers of the file, as of a module with two names."""
    if first == second:
        return True
    place = theirs[first]
    return isinstance(place, SavedTensor) and place == theirs[second]


def _longest_ending(name: str, wanted: set[str]) -> str | None:
    """The longest of our names that theirs ends with, from a dot on."""
    words = name.split(".")
    endings = (".".join(words[i:]) for i in range(len(words)))
    return next((ending for ending in endings if ending in wanted), None)


def _read(file: Any, saved: SavedTensor) -> torch.Tensor:
    """The numbers of one tensor."""
    dtype = getattr(torch, saved.dtype)
    last = sum((n - 1) * step for n, step in zip(saved.shape, saved.stride, strict=True))
    num_bytes = (1 + last) * dtype.itemsize if math.prod(saved.shape) else 0
    file.seek(saved.start)  # many tensors may lie in one storage
    content = bytearray(file.read(num_bytes))
    whole = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return whole.as_strided(saved.shape, saved.stride).clone(memory_format=torch.contiguous_format)


def _from_pieces(pieces: list[Piece]) -> torch.Tensor:
    """A tensor put together from the parts that cover it."""
    dtype = getattr(torch, pieces[0].saved.dtype)
    tensor = torch.empty(whole_shape(pieces), dtype=dtype)
    for piece in pieces:
        with piece.file.open("rb") as file:
            bounds = zip(piece.offsets, piece.ends, strict=True)
            tensor[tuple(slice(*ends) for ends in bounds)] = _read(file, piece.saved)
    return tensor


class _Reader(FileSystemReader):
    """Torch's reader; its table names only the classes of such tables."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """As the reader of torch, which would run what the pickle says."""
        with (Path(self.path) / TABLE).open("rb") as file:
            metadata = _TableUnpickler(file).load()
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        is_of_table = module in (
            "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem",
        ) and name in (
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
            "TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
            "_StorageInfo", "_StoragePrefix",
        )  # fmt: skip
        is_plain = (module, name) in (
            ("torch", "Size"), ("torch.serialization", "_get_layout"),
            ("collections", "OrderedDict"),
        )  # fmt: skip
        if module.partition(".")[0] == "pathlib" and name.endswith("Path"):
            return PurePosixPath  # where it was saved, which nobody reads
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not (is_of_table or is_plain or is_dtype):
            raise pickle.UnpicklingError(f"{TABLE} names {module}.{name}, which is not run")
        return super().find_class(module, name)


def _from_shards(place: Path, ours: dict[str, str]) -> dict[str, torch.Tensor]:
    reader = _Reader(place)
    metadata = reader.read_metadata()
    entries = metadata.state_dict_metadata
    _require_covered(place, [entries[theirs] for theirs in ours.values()])
    tensors = {
        name: torch.empty(entries[theirs].size, dtype=entries[theirs].properties.dtype)
        for name, theirs in ours.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no process group is there, which is meant
        load(
            {theirs: tensors[name] for name, theirs in ours.items()},
            storage_reader=reader,
            no_dist=True,
        )
    return tensors


def _require_covered(place: Path, entries: Iterable[Any]) -> None:
    """Raise `CheckpointError` where tensors are claimed that the files do not hold whole."""
    num_bytes = 0
    for entry in entries:
        num_bytes += math.prod(entry.size) * entry.properties.dtype.itemsize
        if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
            raise CheckpointError(
                f"{place / TABLE} does not place all parts of a tensor of {place}"
            )
    found = sum(file.stat().st_size for file in place.glob(SHARDS))
    if num_bytes > found:
        raise CheckpointError(
            f"{place / TABLE} says tensors of {num_bytes:,} bytes, and its files have {found:,}: "
            "it is damaged"
        )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(names[:_MOST_SHOWN]) + more
