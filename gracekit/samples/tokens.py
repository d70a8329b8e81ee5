"""Token ids and loss masks of every sample, cached on disk and memory-mapped.

One file holds the tokens of all contents one after another as int32, a token that carries loss as
its bitwise complement (so negative); a second one holds the contents' hashes and lengths and the
checksum of the first, and is written last. The name of both is a hash of the tokenizer and the
recipe's settings. When the data changes only contents that are not there yet are tokenised.
Damaged or missing files are made again.

A row that the chat template refuses has no tokens: it is told, listed, and stops nothing. Above 400
lines, because what writes the two files and what reads them stand together.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray
from tqdm import tqdm

from gracekit.errors import DataError
from gracekit.files import write_atomic
from gracekit.recipe import DataSection
from gracekit.samples.conversation import GivenTokens
from gracekit.samples.encode import Encoder
from gracekit.samples.formats import Conversation
from gracekit.samples.messages import MalformedRowError
from gracekit.samples.raw import SHOWN, RawSamples, Skipped
from gracekit.samples.render import Rendered, Renderer, UnrenderableError
from gracekit.samples.token_rows import as_trained
from gracekit.types import Bool, Int32, Int64, Rows, SampleTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EARLIER_KEY_FORMAT, KEY_FORMAT = 1, 2
"""Of tokens whose loss was found by searching the text, and of those whose turns are marked."""
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
    starts: Int64
    """[n] where a row's tokens start in `flat`."""
    flat: Int32
    """Memory-mapped; the complement of the id where the token carries loss."""
    unrendered: tuple[Skipped, ...] = ()
    """Rows that have no tokens, because they cannot be rendered: their places in the user's
    dataset, ascending, and why."""
    key: str
    """Hash of all that the tokens depend on: the tokenizer's content and chat template,
    `max_length`, `loss_on`, `chat_template` and the data, wherever they lie."""

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: Rows) -> list[tuple[Int32, Bool]]:
        """(ids, loss mask) of each row; the mask of a first token is False, nothing predicts it."""
        taken = []
        for row in rows:
            start = self.starts[row]
            stored = np.asarray(self.flat[start : start + self.lengths[row]])
            mask = stored < 0
            taken.append((np.where(mask, ~stored, stored), mask))
        return taken

    def arranged(self, places: Int64) -> TokenTable:
        """The rows at the given places, in that order; one without tokens at each -1."""
        there = places >= 0

        def at(values: NDArray[Any]) -> NDArray[Any]:
            return np.where(there, values[places], 0).astype(values.dtype)

        return dataclasses.replace(
            self,
            lengths=at(self.lengths),
            num_prompt_tokens=at(self.num_prompt_tokens),
            num_targets=at(self.num_targets),
            starts=at(self.starts),
        )


def tokenize(
    raw: RawSamples,
    tokenizer: PreTrainedTokenizerBase,
    data: DataSection,
    cache_dir: Path,
) -> TokenTable:
    """Tokens of all samples in the data's order, from the cache where it has them.

    Rows are cut off on the right at `data.max_length` tokens. A bar is shown where stderr is a
    terminal. A row that cannot be rendered gets no tokens and is listed in `unrendered`; those
    that are new, and texts that hold tokens of begin or end of sequence already, are warned of.
    Raises `DataError` when the tokenizer is not a fast one, when no row can be rendered, and when
    no token of any row carries loss.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} is a slow tokenizer; expected a fast one. Save the "
            "tokenizer with its tokenizer.json"
        )
    encoder = Encoder(tokenizer)
    name = _key("", tokenizer, encoder, data, KEY_FORMAT)
    cached = _open(cache_dir, name)
    wanted = raw.content_hashes.tolist()
    if cached is None or not cached.index.keys() >= set(wanted):
        renderer = Renderer(tokenizer, data)
        making = _Making(raw, cached, renderer, encoder, data, len(tokenizer))
        _write(making.contents(), making.problems, cache_dir, name)
        making.warn()
        _remove_others(cache_dir, name)
        cached = _open(cache_dir, name)
        assert cached is not None
    places = np.array([cached.index[digest] for digest in wanted], np.int64)
    table = TokenTable(
        lengths=cached.lengths,
        num_prompt_tokens=(cached.lengths - cached.num_targets).astype(np.int32),
        num_targets=cached.num_targets,
        starts=cached.starts,
        flat=cached.flat,
        unrendered=tuple(
            Skipped(int(raw.source_rows[row]), cached.problems[digest])
            for row, digest in enumerate(wanted)
            if cached.problems and digest in cached.problems
        ),
        key=_key(raw.fingerprint, tokenizer, encoder, data, KEY_FORMAT),
    ).arranged(places)
    if len(table) and len(table.unrendered) == len(table):
        raise DataError(_listed(data.name, "no row can be rendered", table.unrendered))
    if not table.num_targets.any():
        raise DataError(
            f"no token of {data.name} carries loss: all responses lie beyond the first "
            f"{data.max_length} tokens. Raise data.max_length"
        )
    return table


def tokens_key(tokenizer: PreTrainedTokenizerBase, data: DataSection, fingerprint: str) -> str:
    """The `TokenTable.key` that samples of this fingerprint would have."""
    return _key(fingerprint, tokenizer, Encoder(tokenizer), data, KEY_FORMAT)


def earlier_tokens_key(
    tokenizer: PreTrainedTokenizerBase, data: DataSection, fingerprint: str
) -> str:
    """The key that releases before turns were marked gave such samples.

    Most of them have the same tokens and masks as now, some chat templates' masks differ.
    """
    return _key(fingerprint, tokenizer, Encoder(tokenizer), data, EARLIER_KEY_FORMAT)


def sample_table(raw: RawSamples, tokens: TokenTable | None) -> SampleTable:
    """What the store keeps of the samples, in the data's order; without tokens, these count 0."""
    zeros = np.zeros(len(raw), np.int32)
    return SampleTable(
        sample_ids=raw.sample_ids,
        groups=raw.groups,
        group_names=raw.group_names,
        num_prompt_tokens=zeros if tokens is None else tokens.num_prompt_tokens,
        num_response_tokens=zeros if tokens is None else tokens.num_targets,
        content_hashes=raw.content_hashes,
        source_rows=raw.source_rows,
        previews=raw.previews,
        num_source_rows=raw.num_source_rows,
        fingerprint=raw.fingerprint,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cached:
    """The cache's files, [c] contents."""

    index: dict[str, int]
    """Content hash -> position."""
    lengths: Int64
    num_targets: Int32
    starts: Int64
    flat: Int32
    problems: dict[str, str]
    """Content hash -> why it cannot be rendered."""


class _Making:
    """Makes the tokens of contents that are not cached yet; says afterwards what was met."""

    def __init__(
        self,
        raw: RawSamples,
        cached: _Cached | None,
        renderer: Renderer,
        encoder: Encoder,
        data: DataSection,
        num_ids: int,
    ) -> None:
        self._raw, self._cached, self._data = raw, cached, data
        self._renderer, self._encoder, self._num_ids = renderer, encoder, num_ids
        self.problems: dict[str, str] = {}
        """Content hash -> why it cannot be rendered; whole when `contents` has ended."""
        self._refused: list[Skipped] = []
        self._rendered_before: list[int] = []

    def contents(self) -> Iterator[tuple[str, Int32]]:
        """Each different content once: its hash, and its tokens as the file holds them.

        Raises `DataError` at the end when not one can be rendered.
        """
        hashes, cached = self._raw.content_hashes, self._cached
        first = {digest: place for place, digest in reversed([*enumerate(hashes)])}
        places = sorted(first.values())
        known = {} if cached is None else cached.index
        num_new = sum(hashes[place] not in known for place in places)
        with tqdm(total=num_new, desc="tokens", unit="row", disable=None) as bar:
            for start in range(0, len(places), BATCH_ROWS):
                block = places[start : start + BATCH_ROWS]
                new = [place for place in block if hashes[place] not in known]
                encoded = self._encode(new)
                for place in block:
                    digest = hashes[place]
                    if place in encoded:
                        ids, mask = encoded[place]
                        yield digest, np.where(mask, ~ids, ids)
                    else:
                        assert cached is not None
                        if digest in cached.problems:
                            self.problems[digest] = cached.problems[digest]
                        at = known[digest]
                        start_at = cached.starts[at]
                        yield digest, cached.flat[start_at : start_at + cached.lengths[at]]
                bar.update(len(new))
        if places and len(self.problems) == len(places):
            raise DataError(_listed(self._data.name, "no row can be rendered", self._refused))

    def warn(self) -> None:
        """Log what was met in new contents."""
        if self._refused:
            what = f"{len(self._refused)} rows cannot be rendered and are left out"
            logger.warning("%s", _listed(self._data.name, what, self._refused))
        if self._rendered_before:
            logger.warning(
                "%s: %d texts (the first is row %d) hold the token that begins or ends a sequence "
                "already, as if a chat template had been applied to them; it is not put there a "
                "second time. If the trainer applies a template to these texts, give gracekit the "
                "conversations instead",
                self._data.name,
                len(self._rendered_before),
                self._rendered_before[0],
            )

    def _encode(self, places: list[int]) -> dict[int, tuple[Int32, Bool]]:
        """Tokens and masks of new contents; none of those that cannot be rendered."""
        rendered: dict[int, Rendered] = {}
        given: dict[int, tuple[Int32, Bool]] = {}
        for place, conversation in zip(places, self._raw.records.take(places), strict=True):
            if conversation.tokens is None:
                rendered[place] = self._render(place, conversation)
            else:
                given[place] = self._given(place, conversation.tokens)
        encoded = self._encoder.encode([*rendered.values()], self._data.max_length)
        return given | dict(zip(rendered, encoded, strict=True))

    def _given(self, place: int, tokens: GivenTokens) -> tuple[Int32, Bool]:
        """Tokens that the user has made; none where the tokenizer does not know them."""
        try:
            return as_trained(tokens, self._data, num_ids=self._num_ids)
        except MalformedRowError as problem:
            self._refuse(place, str(problem))
            return np.empty(0, np.int32), np.empty(0, bool)

    def _refuse(self, place: int, reason: str) -> None:
        self._refused.append(Skipped(int(self._raw.source_rows[place]), reason))
        self.problems[self._raw.content_hashes[place]] = reason

    def _render(self, place: int, conversation: Conversation) -> Rendered:
        source_row = int(self._raw.source_rows[place])
        try:
            rendered = self._renderer.render(conversation)
        except UnrenderableError as problem:
            self._refuse(place, str(problem))
            return Rendered("", [])
        except DataError as error:
            raise DataError(f"row {source_row}: {error}") from error
        if rendered.was_rendered:
            self._rendered_before.append(source_row)
        return rendered


def _listed(path: str, what: str, refused: Sequence[Skipped]) -> str:
    """What was refused, with the first reasons."""
    rows = [f"row {skipped.source_row}: {skipped.reason}" for skipped in refused[:SHOWN]]
    if len(refused) == 1:
        return f"{rows[0]} ({path}: {what})"
    more = f"\n  and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
    return f"{path}: {what} (rows count from 0):\n  " + "\n  ".join(rows) + more


def _files(cache_dir: Path, name: str) -> tuple[Path, Path]:
    """The file of the tokens and that of their lengths."""
    return cache_dir / f"tokens-{name}.bin", cache_dir / f"tokens-{name}.npz"


def _write(
    contents: Iterator[tuple[str, Int32]], problems: dict[str, str], cache_dir: Path, name: str
) -> None:
    hashes: list[str] = []
    lengths: list[int] = []
    num_targets: list[int] = []
    digest = xxhash.xxh3_128()

    def write_tokens(path: Path) -> None:
        with path.open("wb") as file:
            for content_hash, stored in contents:
                content = stored.tobytes()
                digest.update(content)
                file.write(content)
                hashes.append(content_hash)
                lengths.append(len(stored))
                num_targets.append(int((stored < 0).sum()))

    def write_index(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(
                file,
                hashes=np.array(hashes, np.str_),
                lengths=np.array(lengths, np.int64),
                num_targets=np.array(num_targets, np.int32),
                problems=np.array(json.dumps(problems)),
                digest=np.array(digest.hexdigest()),
            )

    tokens_file, index_file = _files(cache_dir, name)
    write_atomic(tokens_file, write_tokens)
    write_atomic(index_file, write_index)


def _open(cache_dir: Path, name: str) -> _Cached | None:
    """The cached tokens; None when they are missing or their checksum is wrong."""
    tokens_file, index_file = _files(cache_dir, name)
    try:
        with index_file.open("rb") as file, np.load(file, allow_pickle=False) as index:
            hashes = index["hashes"].tolist()
            lengths, num_targets = index["lengths"], index["num_targets"]
            problems = json.loads(str(index["problems"]))
            expected = str(index["digest"])
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
        return _Cached(
            index={digest: place for place, digest in enumerate(hashes)},
            lengths=lengths,
            num_targets=num_targets,
            starts=(ends - lengths).astype(np.int64),
            flat=flat,
            problems=problems,
        )
    except Exception:  # a damaged archive can fail in any way, and can always be made again
        return None


def _digest(file: BinaryIO) -> str:
    digest = xxhash.xxh3_128()
    while chunk := file.read(READ_BYTES):
        digest.update(chunk)
    return str(digest.hexdigest())


def _key(
    fingerprint: str,
    tokenizer: PreTrainedTokenizerBase,
    encoder: Encoder,
    data: DataSection,
    key_format: int,
) -> str:
    parts = [
        key_format,
        encoder.content,
        tokenizer.chat_template,
        tokenizer.bos_token,
        tokenizer.eos_token,
        data.max_length,
        data.loss_on,
        data.chat_template,
        fingerprint,
    ]
    return str(xxhash.xxh3_128_hexdigest(json.dumps(parts).encode()))[:16]


def _remove_others(cache_dir: Path, name: str) -> None:
    """Tokens of an earlier tokenizer or setting: nothing will ask for them again."""
    for path in cache_dir.glob("tokens-*"):
        if path not in _files(cache_dir, name):
            path.unlink(missing_ok=True)
