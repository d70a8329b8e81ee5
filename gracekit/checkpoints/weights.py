"""Which weight files a checkpoint directory has, and whether they are whole. No torch.

A safetensors file is an 8-byte little-endian length, that many bytes of JSON naming every tensor
and its byte range, then the tensors back to back. So a look at the header and the file size tells
a whole file from one that was cut anywhere, without reading the tensors.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from gracekit.documents import open_regular, read_json
from gracekit.foreign import whole_number

WHOLE = "model.safetensors"
"""The weights in one file; where it exists, transformers ignores an index beside it."""
INDEX = "model.safetensors.index.json"
"""Names the shard of every tensor; trainers write it after the shards."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_OF_TORCHTUNE = "adapter_model.pt"
"""The adapter under torchtune's own names, which only torchtune saves."""
ONE_MODEL = (
    "save only the one that is trained, or set checkpoints.convert_cmd to a command that writes it"
)
"""The way out where several models are saved as one."""
_SHARDS = "model-*-of-*.safetensors"
_CHUNK_BYTES = 1 << 22
_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}
"""Bits of an element, of the dtypes that have been there for long; others are not checked."""


_MOST_DIMENSIONS = 64
"""Of a tensor: what torch allows."""


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of the model, sorted; some may be missing from disk.

    Empty when there are none. Raises ValueError with the reason when the index makes no sense.
    """
    if is_adapter(directory):
        adapter = directory / ADAPTER_WEIGHTS
        return [adapter] if adapter.is_file() else []
    if (directory / WHOLE).is_file():
        return [directory / WHOLE]
    if (directory / INDEX).is_file():
        return [directory / shard for shard in sorted(_read_index(directory / INDEX))]
    return sorted(path for path in directory.glob(_SHARDS) if path.is_file())


def has_weights(directory: Path) -> bool:
    """Whether it holds weights in safetensors, also where their index makes no sense."""
    try:
        return bool(weight_files(directory))
    except ValueError:
        return True


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds a PEFT adapter: with its config there, its weights count."""
    return (directory / ADAPTER_CONFIG).is_file() and not holds_merged(directory)


def holds_merged(directory: Path) -> bool:
    """Whether an adapter lies beside the whole model that it is merged into, as torchtune saves."""
    whole = any((directory / name).is_file() for name in (WHOLE, INDEX))
    return whole and all(
        (directory / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_OF_TORCHTUNE)
    )


def incomplete_weights(directory: Path) -> str | None:
    """Why the model's weights are not whole; None when every file is there and complete."""
    try:
        files = weight_files(directory)
        if not files:
            return f"{WHOLE} (or shards with {INDEX}) is not there yet"
        if files == [directory / WHOLE]:
            read_header(files[0])
            return None
        if not (directory / INDEX).is_file():
            return f"{INDEX} is not there yet"
        tensors = _read_index(directory / INDEX)
        for file in files:
            if not file.is_file():
                return f"{file.name}, which {INDEX} names, is not there"
            absent = tensors[file.name] - read_header(file).keys()
            if absent:
                return f"{file.name} does not hold {min(absent)}, which {INDEX} places there"
    except ValueError as error:
        return str(error)
    return None


def weights_digest(files: list[Path]) -> str:
    """xxh3_128 over names, sizes and bytes, in the order of the names."""
    digest = xxhash.xxh3_128()
    for path in sorted(files):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return str(digest.hexdigest())


def read_header(path: Path) -> dict[str, Any]:
    """The tensors that a safetensors file declares: name -> {dtype, shape, data_offsets}.

    Raises ValueError with the reason when the header is not valid or the file's size is not the
    one that the header adds up to.
    """
    return read_whole_header(path).tensors


@dataclass(frozen=True, slots=True)
class Header:
    """What the beginning of a safetensors file says."""

    tensors: dict[str, Any]
    """Name -> {dtype, shape, data_offsets}."""
    notes: Any
    """What was written beside the tensors: name -> text, where the file is well-formed."""
    start: int
    """Byte of the file from which the offsets count."""


def read_whole_header(path: Path) -> Header:
    """The tensors with what was noted beside them; raises as `read_header`."""
    with open_regular(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ValueError(f"{path.name} is truncated: it has only {num_bytes} bytes")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > _MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} is not a safetensors file: its header is not valid")
        content = file.read(header_bytes)
    if len(content) < header_bytes:
        raise ValueError(f"{path.name} is truncated: it ends within its header")
    try:
        tensors = json.loads(content)
        notes = tensors.pop("__metadata__", None)
        ranges = sorted(_range(name, tensor) for name, tensor in tensors.items())
    except _EntryError as error:
        raise ValueError(f"{path.name} is damaged: its header {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f"{path.name} is not a safetensors file: its header is not valid"
        ) from None
    end = 0
    for start, stop in ranges:
        if start != end or stop < start:
            raise ValueError(f"{path.name} is damaged: its header leaves gaps between tensors")
        end = stop
    expected = 8 + header_bytes + end
    if num_bytes < expected:
        raise ValueError(f"{path.name} is truncated: {num_bytes:,} of {expected:,} bytes are there")
    if num_bytes > expected:
        raise ValueError(f"{path.name} is damaged: {num_bytes:,} bytes, expected {expected:,}")
    return Header(dict(tensors), notes, 8 + header_bytes)


class _EntryError(Exception):
    """What is wrong with one entry of a header, for a person."""


def _range(name: str, tensor: Any) -> tuple[int, int]:
    """Where the bytes of a tensor begin and end, once its entry is of the right types and adds up.

    Raises `_EntryError`.
    """
    entry = tensor if isinstance(tensor, dict) else {}
    dtype, shape, offsets = (entry.get(key, ()) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and _are_whole(shape) and _are_whole(offsets)) or (
        len(offsets) != 2
    ):
        raise _EntryError(f"has no valid dtype, shape and data_offsets for {name[:80]!r}")
    start, stop = offsets
    if dtype in _BITS and math.prod(shape) * _BITS[dtype] != 8 * (stop - start):
        raise _EntryError(
            f"gives {name[:80]!r} the shape {str(shape)[:80]} of {dtype} in {stop - start:,} bytes"
        )
    return start, stop


def _are_whole(numbers: Any) -> bool:
    is_list = isinstance(numbers, list) and len(numbers) <= _MOST_DIMENSIONS
    return is_list and all(whole_number(number) is not None for number in numbers)


def _read_index(path: Path) -> dict[str, set[str]]:
    """Shard file name -> names of its tensors. Raises ValueError when the index makes no sense."""
    try:
        index = read_json(path)
        weight_map = index["weight_map"]
        shards: dict[str, set[str]] = {}
        for tensor, shard in weight_map.items():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ValueError(f"{path.name} names a file outside the checkpoint: {shard}")
            shards.setdefault(shard, set()).add(tensor)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path.name} is cut off or is not an index of weights") from None
    if not shards:
        raise ValueError(f"{path.name} names no weights")
    if not isinstance(index.get("metadata"), dict):
        raise ValueError(
            f'{path.name} has no "metadata", which transformers asks for beside "weight_map"; add '
            "it, {} is enough"
        )
    return shards
