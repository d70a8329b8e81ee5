"""Weights of which each process of the trainer saved its own part. No torch.

Two forms. Safetensors shards of a torch distributed checkpoint (NeMo AutoModel) note in their
headers where each part begins. The files of verl, and those of accelerate's FSDP, hold `DTensor`s,
whose parts follow each other in the order of the processes, or the whole model in one file
(`FULL_STATE_DICT`); their pickles are read as plain records.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gracekit.checkpoints.inert_pickle import (
    Record,
    SavedTensor,
    mapping,
    read_archive,
    saved_tensors,
)
from gracekit.checkpoints.lora_in_state import require_mergeable
from gracekit.checkpoints.weights import read_whole_header
from gracekit.documents import read_json
from gracekit.errors import CheckpointError
from gracekit.foreign import whole_number

_SHARDS = "shard-*-model-*.safetensors"
_RANKS = "model_world_size_*_rank_*.pt"
_RANK_NAME = re.compile(r"model_world_size_(\d{1,6})_rank_(\d{1,6})\.pt")
WHOLE_OF_FSDP = "pytorch_model_fsdp.bin"
"""The gathered model, as accelerate saves it with `FULL_STATE_DICT`."""
_RANKS_OF_FSDP = "pytorch_model_fsdp_0_rank*.bin"
_RANK_OF_FSDP = re.compile(r"pytorch_model_fsdp_0_rank(\d{1,6})\.bin")
_NOTE = "DCP_SHARDING_INFO"
"""Note of a header: name -> {saved_offsets}, where its part begins in each dimension."""
_NAMES = ".hf_metadata/fqn_to_file_index_mapping.json"
"""In which NeMo AutoModel lists all tensors of the model."""
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor."""

    file: Path
    saved: SavedTensor
    offsets: tuple[int, ...]
    """Where it begins in the whole tensor."""

    @property
    def ends(self) -> tuple[int, ...]:
        """Where it ends in the whole tensor."""
        return tuple(o + n for o, n in zip(self.offsets, self.saved.shape, strict=True))


def piece_files(directory: Path) -> list[Path]:
    """The files of parts that a directory holds, sorted; empty where there are none."""
    patterns = (_SHARDS, _RANKS, WHOLE_OF_FSDP, _RANKS_OF_FSDP)
    found = (path for pattern in patterns for path in directory.glob(pattern))
    return sorted(path for path in found if path.is_file())


def forms_of_fsdp(directory: Path) -> list[str]:
    """The first file of each form in which FSDP saves parts or the gathered model, by name."""
    patterns = (WHOLE_OF_FSDP, _RANKS_OF_FSDP, _RANKS)
    found = ([p.name for p in directory.glob(pattern) if p.is_file()] for pattern in patterns)
    return sorted(min(names) for names in found if names)


def incomplete_pieces(directory: Path) -> str | None:
    """Why the parts are not whole; None when they are. Raises `CheckpointError` as `read_pieces`.

    Of safetensors shards nothing tells how many there are: a missing one is seen where the rest
    leaves a gap.
    """
    try:
        pieces = read_pieces(directory)
        names = read_json(directory / _NAMES) if (directory / _NAMES).is_file() else {}
    except ValueError as error:
        return str(error)
    require_mergeable(directory, {name: whole_shape(found) for name, found in pieces.items()})
    missing = sorted(set(names) - pieces.keys()) if isinstance(names, dict) else []
    return f"no file holds {missing[0]} yet" if missing else None


def read_pieces(directory: Path) -> dict[str, list[Piece]]:
    """Name -> its parts, which cover the tensor.

    Raises ValueError with the reason while they do not, or a file is cut off, and `CheckpointError`
    for what cannot be put together.
    """
    parts: dict[str, list[Piece]] = {}
    for name, piece in _of_ranks(directory) or _of_shards(directory):
        parts.setdefault(name, []).append(piece)
    return {name: _covering(name, found) for name, found in parts.items()}


def whole_shape(pieces: list[Piece]) -> tuple[int, ...]:
    """The shape of the tensor that parts cover."""
    return tuple(max(ends) for ends in zip(*(piece.ends for piece in pieces), strict=True))


def _of_shards(directory: Path) -> Iterator[tuple[str, Piece]]:
    for file in piece_files(directory):
        header = read_whole_header(file)
        try:
            begins = json.loads(header.notes[_NOTE])
            offsets = {name: tuple(begins[name]["saved_offsets"]) for name in header.tensors}
        except (KeyError, TypeError, ValueError, RecursionError):
            raise CheckpointError(
                f"{file} does not note where its tensors belong ({_NOTE}), as shards of a torch "
                "distributed checkpoint do; let the trainer consolidate them"
            ) from None
        for name, entry in header.tensors.items():
            shape = tuple(entry["shape"])
            if len(offsets[name]) != len(shape) or None in map(whole_number, offsets[name]):
                raise ValueError(f"{file.name} is damaged: it places {name[:80]!r} nowhere")
            if entry["dtype"] not in _DTYPES:
                raise CheckpointError(f"{file} holds {entry['dtype']}, which gracekit cannot read")
            start, stop = (header.start + end for end in entry["data_offsets"])
            yield name, Piece(
                file,
                SavedTensor(
                    dtype=_DTYPES[entry["dtype"]], shape=shape, stride=_stride(shape),
                    start=start, stop=stop,
                ),
                offsets[name],
            )  # fmt: skip


def _rank_files(directory: Path) -> list[Path]:
    """The files in the order of their processes; empty where there are none.

    accelerate's do not tell how many there are: a missing one is seen where the rest leaves a gap.
    """
    names = [found for path in directory.glob(_RANKS) if (found := _RANK_NAME.match(path.name))]
    if not names:
        if (directory / WHOLE_OF_FSDP).is_file():
            return [directory / WHOLE_OF_FSDP]
        of_fsdp = directory.glob(_RANKS_OF_FSDP)
        count = len([path for path in of_fsdp if _RANK_OF_FSDP.fullmatch(path.name)])
        files = [directory / _RANKS_OF_FSDP.replace("*", str(rank)) for rank in range(count)]
    else:
        num_ranks = {int(found[1]) for found in names}
        if len(num_ranks) > 1:
            raise CheckpointError(
                f"{directory} holds weights of runs with "
                f"{' and '.join(map(str, sorted(num_ranks)))} processes, and nothing tells which "
                "are the last; remove the older ones"
            )
        (count,) = num_ranks
        if len(names) < count:
            raise ValueError(f"weights of {len(names)} of {count} processes are there")
        files = [directory / f"model_world_size_{count}_rank_{rank}.pt" for rank in range(count)]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file.name} is not there yet")
    return files


def _of_ranks(directory: Path) -> list[tuple[str, Piece]]:
    """The parts in files of `torch.save`, one of each process; empty where there are none."""
    files = _rank_files(directory)
    if not files:
        return []
    reached: dict[str, int] = {}
    ends: dict[str, int] = {}
    rows: dict[str, list[int]] = {}
    parts = []
    for rank, file in enumerate(files):
        archive = read_archive(file)
        values = mapping(archive.content)
        sharded = {name: _distributed(file, value) for name, value in values.items()}
        own = {n: v if (s := sharded[n]) is None else s.local for n, v in values.items()}
        for name, saved in saved_tensors(archive, own):
            offsets = [0] * len(saved.shape)
            told = sharded[name] or _Distributed(None, saved.shape, None)
            whole, along = told.shape, told.dimension
            if along is None and rank > 0:
                continue  # every process has all of it
            if along is not None:
                at = reached.get(name, 0)
                if along >= len(whole) or len(whole) != len(saved.shape):
                    raise ValueError(f"{file.name} is damaged: it places {name[:80]!r} nowhere")
                if at >= whole[along]:
                    continue  # of a second group of processes, which has the same
                offsets[along] = at
                reached[name] = at + saved.shape[along]
                ends[name] = whole[along]
                rows.setdefault(name, []).append(saved.shape[along])
            parts.append((name, Piece(file, saved, tuple(offsets))))
    for name, end in ends.items():
        if reached[name] != end:
            raise ValueError(f"the files hold {reached[name]:,} of {end:,} rows of {name[:80]!r}")
        _require_one_run(name, rows[name])
    if not parts:
        raise ValueError("the weights of all processes hold no tensors")
    return parts


def _require_one_run(name: str, rows: list[int]) -> None:
    """Raise ValueError where parts are not of the sizes in which `torch.chunk` splits a tensor.

    All are as long as the first, and the last one no longer. Files of two runs with different
    numbers of processes may add up to the whole tensor too.
    """
    if set(rows[:-1]) - {rows[0]} or rows[-1] > rows[0]:
        raise ValueError(
            f"the files hold {', '.join(map(str, rows[:8]))} rows of {name[:80]!r}, which no one "
            "run splits so: they are of runs with different numbers of processes; remove the older "
            "ones"
        )


@dataclass(frozen=True, slots=True)
class _Distributed:
    """What a record of a `DTensor` says."""

    local: Any
    shape: tuple[int, ...]
    dimension: int | None
    """Along which it is split; None where every process has all of it."""


def _distributed(file: Path, value: Any) -> _Distributed | None:
    """The record of a `DTensor`; None for anything else.

    Raises `CheckpointError` for one that is split in another way than by whole slices, and for a
    `ShardedTensor`.
    """
    if not (isinstance(value, Record) and value.path == "torch._tensor._rebuild_from_type_v2"):
        return None
    try:
        kind = value.args[1].path
        if kind.endswith(".ShardedTensor"):
            raise CheckpointError(
                f"{file} holds parts of FSDP1 (ShardedTensor), which gracekit does not put "
                "together; save with use_dcp=True, or set state_dict_type to FULL_STATE_DICT"
            )
        if not kind.endswith(".DTensor"):
            return None
        _, _, made_of, (_, state) = value.args
        shape = tuple(int(n) for n in made_of[2])
        placements = state["_spec"].state["placements"]
        kinds = [placement.path.rpartition(".")[2] for placement in placements]
        split = [p.state["dim"] for p, k in zip(placements, kinds, strict=True) if k == "Shard"]
        local = state["_local_tensor"]
        if whole_number(split[0] if split else 0) is None:
            raise ValueError
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ValueError(f"{file.name} is damaged: a tensor of it makes no sense") from None
    if not set(kinds) <= {"Shard", "Replicate"} or len(split) > 1 or "Shard" in kinds[:-1]:
        raise CheckpointError(
            f"{file} holds tensors that are split over processes in a way that gracekit does not "
            f"put together ({', '.join(kinds)}); let the trainer save the whole model (verl: "
            "hf_model, accelerate: FULL_STATE_DICT), or set checkpoints.convert_cmd to verl's "
            "merger"
        )
    return _Distributed(local, shape, split[0] if split else None)


def _covering(name: str, pieces: list[Piece]) -> list[Piece]:
    """The parts in order; ValueError where they leave gaps or lie over each other."""
    pieces = sorted(pieces, key=lambda piece: piece.offsets)
    if len({(len(piece.offsets), piece.saved.dtype) for piece in pieces}) > 1:
        raise ValueError(f"the parts of {name[:80]!r} do not fit together")
    shape = whole_shape(pieces)
    num_values = sum(math.prod(piece.saved.shape) for piece in pieces)
    if num_values != math.prod(shape) or _overlap(pieces, shape):
        raise ValueError(f"the files hold {num_values:,} of {math.prod(shape):,} of {name[:80]!r}")
    return pieces


def _overlap(pieces: list[Piece], shape: tuple[int, ...]) -> bool:
    """Whether two parts have a value in common."""
    split = [i for i, n in enumerate(shape) if any(piece.saved.shape[i] != n for piece in pieces)]
    if len(split) <= 1:
        along = split[0] if split else 0
        return bool(shape) and any(a.ends[along] > b.offsets[along] for a, b in pairwise(pieces))
    return any(
        all(a.offsets[i] < b.ends[i] and b.offsets[i] < a.ends[i] for i in split)
        for n, a in enumerate(pieces)
        for b in pieces[:n]
    )


def _stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
