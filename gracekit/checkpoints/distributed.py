"""Torch distributed checkpoints: which files and tensors there are, and whether all are whole.

No torch: the table `.metadata`, a pickle that is written last, is read as plain records. Weights
in parts without such a table are those of `pieces.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gracekit.checkpoints import pieces
from gracekit.checkpoints.inert_pickle import Record, mapping, read_records
from gracekit.checkpoints.lora_in_state import require_model
from gracekit.documents import open_regular
from gracekit.errors import CheckpointError
from gracekit.foreign import whole_number

TABLE = ".metadata"
SHARDS = "*.distcp"
INNER = ("pytorch_model_fsdp_0", "pytorch_model_fsdp", "model")
"""Folders of a checkpoint in which accelerate, the Trainer and others keep the model's shards."""
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Table:
    """What `.metadata` says."""

    sizes: dict[str, int]
    """File name -> bytes that it has at least."""
    shapes: dict[str, tuple[int, ...]]
    """Name of a tensor -> its whole shape."""


def shards_directory(directory: Path) -> Path | None:
    """Where the model's shards are: the directory or one in it; None where there are none."""
    place = _place_of_table(directory)
    if place is None and pieces.piece_files(directory):
        return directory
    return place


def require_one_form(directory: Path, weights: Sequence[Path]) -> None:
    """Raise `CheckpointError` where weights lie in several forms, as of runs with other settings.

    Args:
        directory: Of the model.
        weights: Its weights in safetensors. Where there are some, other forms may lie beside them
            that are no newer: what they were merged from, or the file that is saved with them.
    """
    forms = {name: [directory / name] for name in pieces.forms_of_fsdp(directory)}
    place = _place_of_table(directory)
    if place is not None:
        name = TABLE if place == directory else f"{place.name}/{TABLE}"
        forms[name] = shard_files(place)
    if weights:
        forms.pop(pieces.WHOLE_OF_FSDP, None)
        made_at = _newest(weights)
        forms = {name: files for name, files in forms.items() if _newest(files) > made_at}
    if len(forms) + bool(weights) > 1:
        named = ", ".join([*(["safetensors"] if weights else []), *forms])
        raise CheckpointError(
            f"{directory} holds weights in {len(forms) + bool(weights)} forms ({named}), and "
            "nothing tells which are the last; remove the older ones"
        )


def _newest(files: Sequence[Path]) -> float:
    """When the newest one was written; those that are gone do not count."""
    times = []
    for file in files:
        with suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times, default=0.0)


def _place_of_table(directory: Path) -> Path | None:
    for place in (directory, *(directory / name for name in INNER)):
        if (place / TABLE).is_file() or next(place.glob(SHARDS), None) is not None:
            return place
    return None


def has_table(place: Path) -> bool:
    """Whether shards are those of a table, or parts without one."""
    return not pieces.piece_files(place)


def incomplete_shards(place: Path) -> str | None:
    """Why the shards in a directory are not whole; None when they are.

    Raises `CheckpointError` for what cannot be put together.
    """
    if not has_table(place):
        return pieces.incomplete_pieces(place)
    if not (place / TABLE).is_file():
        return f"{TABLE}, which is written after all shards, is not there yet"
    try:
        table = read_table(place)
    except ValueError as error:
        return str(error)
    for name, num_bytes in table.sizes.items():
        file = place / name
        if not file.is_file():
            return f"{name}, which {TABLE} names, is not there"
        found = file.stat().st_size
        if found < num_bytes:
            return f"{name} is truncated: {found:,} of {num_bytes:,} bytes are there"
    require_model(place, table.shapes)
    return None


def shard_files(place: Path) -> list[Path]:
    """The table and all shards, sorted."""
    if not has_table(place):
        return pieces.piece_files(place)
    return sorted(path for path in (place / TABLE, *place.glob(SHARDS)) if path.is_file())


def read_table(place: Path) -> Table:
    """The table of a directory of shards; ValueError with the reason where it makes no sense."""
    status = (place / TABLE).stat()
    return _read_table(place / TABLE, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _read_table(path: Path, size: int, _time: int) -> Table:
    if size > _MOST_BYTES:
        raise ValueError(f"{path.name} is larger than {_MOST_BYTES:,} bytes")
    with open_regular(path) as file:
        content = read_records(file.read(), path.name)
    state = mapping(_state(content))
    try:
        sizes: dict[str, int] = {}
        for stored in mapping(state["storage_data"]).values():
            facts = _state(stored)
            name, end = facts["relative_path"], facts["offset"] + facts["length"]
            if not isinstance(name, str) or whole_number(end) is None:
                raise TypeError
            if Path(name).name != name:
                raise ValueError(f"{path.name} names a file outside the checkpoint: {name[:80]!r}")
            sizes[name] = max(sizes.get(name, 0), end)
        shapes = {
            name: _shape(mapping(_state(entry))["size"])
            for name, entry in mapping(state["state_dict_metadata"]).items()
            if isinstance(name, str) and "size" in mapping(_state(entry))
        }
    except (KeyError, TypeError):
        raise ValueError(
            f"{path.name} is not the table of a torch distributed checkpoint, or is damaged"
        ) from None
    if not sizes:
        raise ValueError(f"{path.name} names no files")
    return Table(sizes, shapes)


def _state(value: Any) -> Any:
    return value.state if isinstance(value, Record) else value


def _shape(size: Any) -> tuple[int, ...]:
    values = size.args[0] if isinstance(size, Record) else size
    return tuple(int(n) for n in values)
