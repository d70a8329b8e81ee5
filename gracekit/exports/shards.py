"""Formats that stream: rows in shards of some dozen megabytes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gracekit.exports.records import json_line
from gracekit.protocols import ExportContent
from gracekit.types import Json

SHARD_BYTES = 64 << 20
"""A shard is closed before the row that would make it larger."""
INT64 = range(-(2**63), 2**63)


class WebDataset:
    """`coreset-000000.tar` and so on: of each row a file `KEY.json`, its key counted from 0.

    The same rows give the same bytes.
    """

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """`webdataset.WebDataset(str(out / pattern)).decode()` reads it; `pattern` is returned."""
        names: list[str] = []
        rows = enumerate(json_line(record).rstrip("\n").encode() for record in content.records())
        for shard in _shards(rows):
            name = f"coreset-{len(names):06d}.tar"
            with tarfile.open(directory / name, "w", format=tarfile.USTAR_FORMAT) as file:
                for number, text in shard:
                    entry = tarfile.TarInfo(f"{number:012d}.json")
                    entry.size = len(text)
                    file.addfile(entry, io.BytesIO(text))
            names.append(name)
        last = f"{max(len(names) - 1, 0):06d}"
        return {"files": names, "pattern": f"coreset-{{000000..{last}}}.tar"}


class Mds:
    """Shards of MosaicML Streaming with their `index.json`, for `StreamingDataset(local=...)`.

    Columns that hold one kind of value in all rows are `str`, `int` or `float64`; any other column
    is `json`, and a key that a row lacks is null in it.
    """

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """The format of the library's version 2, written without it."""
        encodings = _encodings(content)
        names = sorted(encodings)
        config: Json = {
            "version": 2,
            "format": "mds",
            "compression": None,
            "hashes": [],
            "size_limit": SHARD_BYTES,
            "column_names": names,
            "column_encodings": [encodings[name] for name in names],
            "column_sizes": [SIZES.get(encodings[name]) for name in names],
        }
        head = json.dumps(config, sort_keys=True).encode()
        rows = enumerate(
            _mds_row([(encodings[name], record.get(name)) for name in names])
            for record in content.records()
        )
        listed: list[Json] = []
        for shard in _shards(rows):
            name = f"shard.{len(listed):05d}.mds"
            texts = [text for _, text in shard]
            first = 4 * (len(texts) + 2) + len(head)
            offsets = np.cumsum([first, *map(len, texts)]).astype("<u4")
            with (directory / name).open("wb") as file:
                file.write(np.uint32(len(texts)).astype("<u4").tobytes() + offsets.tobytes() + head)
                file.writelines(texts)
            size = (directory / name).stat().st_size
            raw = {"basename": name, "bytes": size, "hashes": {}}
            listed.append({**config, "samples": len(texts), "raw_data": raw, "zip_data": None})
        index = {"version": 2, "shards": listed}
        (directory / "index.json").write_text(json.dumps(index, sort_keys=True), encoding="utf-8")
        names_of_shards = [shard["raw_data"]["basename"] for shard in listed]
        return {"files": [*names_of_shards, "index.json"], "columns": encodings}


SIZES = {"int": 8, "float64": 8}
"""Bytes of encodings that have a fixed number of them."""


def _encodings(content: ExportContent) -> dict[str, str]:
    """Column -> how its values are written."""
    kinds: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for record in content.records():
        for name, value in record.items():
            kinds.setdefault(name, set()).add(_kind(value))
            counts[name] = counts.get(name, 0) + 1
    num_rows = len(content.rows)
    return {
        name: found.pop() if len(found) == 1 and counts[name] == num_rows else "json"
        for name, found in kinds.items()
    }


def _kind(value: Any) -> str:
    if isinstance(value, str) and _is_utf8(value):
        return "str"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "json"
    if isinstance(value, int):
        return "int" if value in INT64 else "json"
    return "float64"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:  # half a surrogate pair
        return False
    return True


def _mds_row(values: list[tuple[str, Any]]) -> bytes:
    """A row: the lengths of the values that have none of their own, then the values."""
    lengths, parts = [], []
    for encoding, value in values:
        if encoding == "int":
            part = np.int64(value).astype("<i8").tobytes()
        elif encoding == "float64":
            part = np.float64(value).astype("<f8").tobytes()
        else:
            text = value if encoding == "str" else json_line(value).rstrip("\n")
            part = text.encode()
            lengths.append(len(part))
        parts.append(part)
    return np.array(lengths, "<u4").tobytes() + b"".join(parts)


def _shards(rows: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """Rows in portions of at most `SHARD_BYTES`, but for a row that is larger by itself."""
    shard: list[tuple[int, bytes]] = []
    size = 0
    for number, text in rows:
        if shard and size + len(text) > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append((number, text))
        size += len(text)
    if shard:
        yield shard
