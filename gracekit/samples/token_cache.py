"""The cache of tokens: two files, memory-mapped, checked by a checksum.

One holds the tokens of all contents one after another as int32, a token that carries loss as its
bitwise complement (so negative); the other one holds the contents' hashes and lengths, hashes of
each row's ids and loss mask, and the checksum of the first, and is written last. Damaged or
missing files are made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from gracekit.files import write_atomic
from gracekit.texts import Texts
from gracekit.types import Bool, Int32, Int64

READ_BYTES = 1 << 24


def hashes_of(ids: Int32, mask: Bool) -> tuple[int, int]:
    """xxh3_64 of a row's ids [T] (int32) and of its loss mask [T], as signed numbers, never 0."""
    found = (
        xxhash.xxh3_64_intdigest(np.ascontiguousarray(ids, np.dtype("<i4")).tobytes()),
        xxhash.xxh3_64_intdigest(np.ascontiguousarray(mask, np.uint8).tobytes()),
    )
    ids_hash, mask_hash = ((value - (1 << 64) if value >> 63 else value) or 1 for value in found)
    return ids_hash, mask_hash


def unpacked(stored: Int32) -> tuple[Int32, Bool]:
    """(ids, loss mask) of a row as the file of tokens holds it."""
    mask = stored < 0
    return np.where(mask, ~stored, stored), mask


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedTokens:
    """The cache's files, [c] contents."""

    hashes: Texts
    """Of the contents [c]."""
    lengths: Int64
    num_targets: Int32
    starts: Int64
    flat: Int32
    token_hashes: Int64
    loss_hashes: Int64
    problems: dict[str, str]
    """Content hash -> why it cannot be rendered."""


def token_files(cache_dir: Path, name: str) -> tuple[Path, Path]:
    """The file of the tokens and that of their lengths."""
    return cache_dir / f"tokens-{name}.bin", cache_dir / f"tokens-{name}.npz"


def write_tokens(
    contents: Iterator[tuple[str, Int32]], problems: dict[str, str], cache_dir: Path, name: str
) -> None:
    """Write both files.

    Args:
        contents: Hash and stored tokens of each content.
        problems: Content hash -> why it cannot be rendered; whole once `contents` has ended.
        cache_dir: Where to.
        name: Of both files.
    """
    hashes: list[str] = []
    lengths: list[int] = []
    num_targets: list[int] = []
    row_hashes: list[tuple[int, int]] = []
    digest = xxhash.xxh3_128()

    def write_flat(path: Path) -> None:
        with path.open("wb") as file:
            for content_hash, stored in contents:
                content = stored.tobytes()
                digest.update(content)
                file.write(content)
                hashes.append(content_hash)
                lengths.append(len(stored))
                num_targets.append(int((stored < 0).sum()))
                row_hashes.append(hashes_of(*unpacked(stored)))

    def write_index(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(
                file,
                hashes=np.array(hashes, np.str_),
                lengths=np.array(lengths, np.int64),
                num_targets=np.array(num_targets, np.int32),
                row_hashes=np.array(row_hashes, np.int64).reshape(-1, 2),
                problems=np.array(json.dumps(problems)),
                digest=np.array(digest.hexdigest()),
            )

    tokens_file, index_file = token_files(cache_dir, name)
    write_atomic(tokens_file, write_flat)
    write_atomic(index_file, write_index)


def open_tokens(cache_dir: Path, name: str) -> CachedTokens | None:
    """The cached tokens; None when they are missing or their checksum is wrong."""
    tokens_file, index_file = token_files(cache_dir, name)
    try:
        with index_file.open("rb") as file, np.load(file, allow_pickle=False) as index:
            hashes = Texts.of(index["hashes"])
            lengths, num_targets = index["lengths"], index["num_targets"]
            problems = json.loads(str(index["problems"]))
            expected = str(index["digest"])
            row_hashes = index.get("row_hashes")
        with tokens_file.open("rb") as file:
            if _digest(file) != expected:
                return None
        ends = np.cumsum(lengths)
        num_tokens = int(ends[-1]) if len(ends) else 0
        flat = (
            np.memmap(tokens_file, dtype=np.int32, mode="r", shape=(num_tokens,))
            if num_tokens
            else np.empty(0, np.int32)
        )
        starts = (ends - lengths).astype(np.int64)
        if row_hashes is None:  # of an earlier release
            rows = (flat[a:b] for a, b in zip(starts, ends, strict=True))
            row_hashes = np.array([hashes_of(*unpacked(row)) for row in rows], np.int64)
        token_hashes, loss_hashes = row_hashes.reshape(-1, 2).T
        return CachedTokens(
            hashes=hashes,
            lengths=lengths,
            num_targets=num_targets,
            starts=starts,
            flat=flat,
            token_hashes=np.ascontiguousarray(token_hashes),
            loss_hashes=np.ascontiguousarray(loss_hashes),
            problems=problems,
        )
    except Exception:  # a damaged archive can fail in any way, and can always be made again
        return None


def _digest(file: BinaryIO) -> str:
    digest = xxhash.xxh3_128()
    while chunk := file.read(READ_BYTES):
        digest.update(chunk)
    return str(digest.hexdigest())


def remove_others(cache_dir: Path, name: str) -> None:
    """Tokens of an earlier tokenizer or setting: nothing will ask for them again."""
    for path in cache_dir.glob("tokens-*"):
        if path not in token_files(cache_dir, name):
            path.unlink(missing_ok=True)
