"""Token ids and loss masks of every sample, cached on disk and memory-mapped.

One file holds the tokens of all rows one after another as int32, a token that carries loss as its
bitwise complement (so negative); a second one holds the rows' lengths and the checksum of the
first, and is written last. The name of both is a hash of everything that the tokens depend on: the
tokenizer, the recipe's settings and the data. Damaged or missing files are made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import xxhash
from tqdm import tqdm

from gracekit.errors import DataError
from gracekit.files import write_atomic
from gracekit.recipe import DataSection
from gracekit.samples.encode import Encoder
from gracekit.samples.formats import Conversation
from gracekit.samples.raw import RawSamples
from gracekit.samples.render import Rendered, Renderer
from gracekit.types import Bool, Int32, Int64, Rows, SampleTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHE_FORMAT = 1
BATCH_ROWS = 512
READ_BYTES = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTable:
    """Tokens of n samples. A token carries loss where the model has to predict it."""

    lengths: Int64
    """[n] tokens, at most `max_length`."""
    num_prompt_tokens: Int32
    """[n] tokens that carry no loss."""
    num_targets: Int32
    """[n] tokens that carry loss; 0 where the response was cut off."""
    offsets: Int64
    """[n + 1] where a row's tokens start in `flat`."""
    flat: Int32
    """[sum of lengths] memory-mapped; the complement of the id where the token carries loss."""
    key: str
    """Hash of all that the tokens depend on: the tokenizer's content and chat template,
    `max_length`, `loss_on`, `chat_template` and the data, wherever they lie."""

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: Rows) -> list[tuple[Int32, Bool]]:
        """(ids, loss mask) of each row; the mask of a first token is False, nothing predicts it."""
        taken = []
        for row in rows:
            stored = np.asarray(self.flat[self.offsets[row] : self.offsets[row + 1]])
            mask = stored < 0
            taken.append((np.where(mask, ~stored, stored), mask))
        return taken


def tokenize(
    raw: RawSamples,
    tokenizer: PreTrainedTokenizerBase,
    data: DataSection,
    cache_dir: Path,
) -> TokenTable:
    """Tokens of all samples, from the cache where it has them.

    Rows are cut off on the right at `data.max_length` tokens. A bar is shown where stderr is a
    terminal. Raises `DataError` when the tokenizer is not a fast one, when its chat template fails
    on a row, and when no token of any row carries loss.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} is a slow tokenizer; expected a fast one. Save the "
            "tokenizer with its tokenizer.json"
        )
    encoder = Encoder(tokenizer)
    key = _key(raw, tokenizer, encoder, data)
    table = _open(cache_dir, key)
    if table is None or len(table) != len(raw):
        renderer = Renderer(tokenizer, data)
        _write(_batches(raw, renderer, encoder, data.max_length), cache_dir, key)
        _remove_others(cache_dir, key)
        table = _open(cache_dir, key)
        assert table is not None
    if not table.num_targets.any():
        raise DataError(
            f"no token of {data.path} carries loss: all responses lie beyond the first "
            f"{data.max_length} tokens. Raise data.max_length"
        )
    return table


def sample_table(raw: RawSamples, tokens: TokenTable) -> SampleTable:
    """What the store keeps of the samples."""
    return SampleTable(
        sample_ids=raw.sample_ids,
        groups=raw.groups,
        group_names=raw.group_names,
        num_prompt_tokens=tokens.num_prompt_tokens,
        num_response_tokens=tokens.num_targets,
        content_hashes=raw.content_hashes,
        source_rows=raw.source_rows,
        previews=raw.previews,
        num_source_rows=raw.num_source_rows,
        fingerprint=raw.fingerprint,
    )


def _batches(
    raw: RawSamples, renderer: Renderer, encoder: Encoder, max_length: int
) -> Iterator[list[tuple[Int32, Bool]]]:
    with tqdm(total=len(raw), desc="tokens", unit="row", disable=None) as bar:
        for start in range(0, len(raw), BATCH_ROWS):
            conversations = raw.records[start : start + BATCH_ROWS]
            rendered = [
                _render(renderer, conversation, int(raw.source_rows[start + k]))
                for k, conversation in enumerate(conversations)
            ]
            yield encoder.encode(rendered, max_length)
            bar.update(len(conversations))


def _render(renderer: Renderer, conversation: Conversation, source_row: int) -> Rendered:
    try:
        return renderer.render(conversation)
    except DataError as error:
        raise DataError(f"row {source_row}: {error}") from error


def _files(cache_dir: Path, key: str) -> tuple[Path, Path]:
    """The file of the tokens and that of their lengths."""
    return cache_dir / f"tokens-{key}.bin", cache_dir / f"tokens-{key}.npz"


def _write(batches: Iterator[list[tuple[Int32, Bool]]], cache_dir: Path, key: str) -> None:
    lengths: list[int] = []
    num_targets: list[int] = []
    digest = xxhash.xxh3_128()

    def write_tokens(path: Path) -> None:
        with path.open("wb") as file:
            for batch in batches:
                for ids, mask in batch:
                    content = np.where(mask, ~ids, ids).tobytes()
                    digest.update(content)
                    file.write(content)
                    lengths.append(len(ids))
                    num_targets.append(int(mask.sum()))

    def write_index(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(
                file,
                lengths=np.array(lengths, np.int64),
                num_targets=np.array(num_targets, np.int32),
                digest=np.array(digest.hexdigest()),
            )

    tokens_file, index_file = _files(cache_dir, key)
    write_atomic(tokens_file, write_tokens)
    write_atomic(index_file, write_index)


def _open(cache_dir: Path, key: str) -> TokenTable | None:
    """The cached table; None when it is missing or its checksum is wrong."""
    tokens_file, index_file = _files(cache_dir, key)
    try:
        with index_file.open("rb") as file, np.load(file, allow_pickle=False) as index:
            lengths, num_targets = index["lengths"], index["num_targets"]
            expected = str(index["digest"])
        with tokens_file.open("rb") as file:
            if _digest(file) != expected:
                return None
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = (
            np.memmap(tokens_file, dtype=np.int32, mode="r", shape=(int(offsets[-1]),))
            if offsets[-1]
            else np.empty(0, np.int32)
        )
    except Exception:  # a damaged archive can fail in any way, and can always be made again
        return None
    return TokenTable(
        lengths=lengths,
        num_prompt_tokens=(lengths - num_targets).astype(np.int32),
        num_targets=num_targets,
        offsets=offsets,
        flat=flat,
        key=key,
    )


def _digest(file: BinaryIO) -> str:
    digest = xxhash.xxh3_128()
    while chunk := file.read(READ_BYTES):
        digest.update(chunk)
    return str(digest.hexdigest())


def _key(
    raw: RawSamples, tokenizer: PreTrainedTokenizerBase, encoder: Encoder, data: DataSection
) -> str:
    parts = [
        CACHE_FORMAT,
        encoder.content,
        tokenizer.chat_template,
        tokenizer.bos_token,
        tokenizer.eos_token,
        data.max_length,
        data.loss_on,
        data.chat_template,
        raw.fingerprint,
    ]
    return str(xxhash.xxh3_128_hexdigest(json.dumps(parts).encode()))[:16]


def _remove_others(cache_dir: Path, key: str) -> None:
    """Tokens of an earlier tokenizer or setting: nothing will ask for them again."""
    for path in cache_dir.glob("tokens-*"):
        if path not in _files(cache_dir, key):
            path.unlink(missing_ok=True)
