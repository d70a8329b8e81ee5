"""What shared work offers, with its checksum behind it: the tokens of each shard, and its rows.

Whoever measures takes the tokens as they are, and a result says only which rows it is of: a changed
token would be a changed score that nothing else tells.

    int32 of each token of a shard, the complement of the id where it carries loss; SHA-256 of these
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gracekit.errors import StoreFormatError
from gracekit.foreign import foreign
from gracekit.types import Bool, Int32, Int64, Rows

Tokens = list[tuple[Int32, Bool]]
"""(token ids, loss mask) of some rows."""
_DIGEST_BYTES = hashlib.sha256().digest_size


class DamagedTokensError(OSError):
    """They are another number than was offered, or differ from their checksum."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The shards of one round."""

    number: int
    rows: Rows
    """[m] of all shards, one after the other."""
    ends: Int64
    """[s] where each shard ends in `rows`."""
    lengths: Int64
    """[m] tokens of each row."""
    is_look: bool
    """Whether only features are wanted."""

    def __len__(self) -> int:
        return len(self.ends)

    def place(self, shard: int) -> slice:
        """Where the rows of a shard stand."""
        return slice(int(self.ends[shard - 1]) if shard else 0, int(self.ends[shard]))

    def to_bytes(self) -> bytes:
        """As a file."""
        buffer, is_look = io.BytesIO(), np.array(self.is_look)
        np.savez(buffer, rows=self.rows, ends=self.ends, lengths=self.lengths, is_look=is_look)
        return with_checksum(buffer.getvalue())


def read_offer(path: Path, number: int) -> Offer:
    """The offer of a file; raises `StoreFormatError`, also where it is gone."""
    with foreign(path, StoreFormatError):
        content = io.BytesIO(without_checksum(path.read_bytes()))
        with np.load(content, allow_pickle=False) as file:
            arrays = file["rows"], file["ends"], file["lengths"]
            return Offer(number, *arrays, is_look=bool(file["is_look"]))


def tokens_of(path: Path, offer: Offer, shard: int) -> Tokens:
    """The tokens of a shard of the offer of a file; raises as `read_tokens`."""
    place = offer.place(shard)
    num_before = int(offer.lengths[: place.start].sum())
    return read_tokens(path.with_suffix(".tokens"), offer.lengths[place], shard, num_before)


def packed(tokens: Tokens) -> bytes:
    """The bytes of a shard."""
    flat = b"".join(np.where(mask, ~ids, ids).astype(np.int32).tobytes() for ids, mask in tokens)
    return with_checksum(flat)


def with_checksum(content: bytes) -> bytes:
    """A content with its SHA-256 behind it."""
    return content + hashlib.sha256(content).digest()


def without_checksum(content: bytes) -> bytes:
    """The content alone; raises ValueError where it differs from its checksum."""
    content, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("it is cut off or differs from its checksum")
    return content


def read_tokens(path: Path, lengths: Int64, shard: int = 0, num_before: int = 0) -> Tokens:
    """The tokens of a shard.

    Args:
        path: The file.
        lengths: [m] tokens of each of its rows.
        shard: How many shards are before it.
        num_before: Tokens of these.

    Raises:
        OSError: The file is gone, or it is a `DamagedTokensError`.
    """
    num_bytes = 4 * int(lengths.sum())
    with path.open("rb") as file:
        file.seek(4 * num_before + _DIGEST_BYTES * shard)
        content = file.read(num_bytes + _DIGEST_BYTES)
    try:
        flat = without_checksum(content)
    except ValueError as error:
        raise DamagedTokensError(f"{path}: {error}") from None
    if len(flat) != num_bytes:
        raise DamagedTokensError(f"{path}: it is cut off")
    parts = np.split(np.frombuffer(flat, np.int32), np.cumsum(lengths)[:-1]) if len(lengths) else []
    return [(np.where(part < 0, ~part, part), part < 0) for part in parts]
