"""Token ids and loss masks of every sample, cached on disk and memory-mapped.

`token_cache.py` has the files; their name is a hash of the tokenizer and the recipe's settings.
When the data changes only contents that are not there yet are tokenised.

A row that the chat template refuses has no tokens: it is told, listed, and stops nothing.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from tqdm import tqdm

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.conversation import GivenTokens
from gracekit.samples.encode import Encoder
from gracekit.samples.formats import Conversation
from gracekit.samples.messages import MalformedRowError
from gracekit.samples.raw import SHOWN, RawSamples, Skipped
from gracekit.samples.render import (
    UNKNOWN_SOURCE,
    Rendered,
    Renderer,
    UnrenderableError,
    has_unknown_source,
    source_of_trl,
)
from gracekit.samples.token_cache import (
    CachedTokens,
    open_tokens,
    remove_others,
    unpacked,
    write_tokens,
)
from gracekit.samples.token_rows import as_trained
from gracekit.texts import Texts
from gracekit.types import Bool, Int32, Int64, Rows, SampleTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EARLIER_KEY_FORMAT, KEY_FORMAT = 1, 2
"""Of tokens whose loss was found by searching the text, and of those whose turns are marked."""
BATCH_ROWS = 512


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
    token_hashes: Int64
    """[n] `hashes_of` the ids."""
    loss_hashes: Int64
    """[n] `hashes_of` which tokens carry loss."""
    rejected: TokenTable | None = None
    """Of pairs with `data.pair: margin`: the n rejected sides."""
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
            taken.append(unpacked(np.asarray(self.flat[start : start + self.lengths[row]])))
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
            token_hashes=at(self.token_hashes),
            loss_hashes=at(self.loss_hashes),
            rejected=self.rejected and self.rejected.arranged(places),
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
    cached = open_tokens(cache_dir, name)
    hashes = _hashes(raw, data)
    places = None if cached is None else cached.hashes.places_of(hashes)
    if cached is None or places is None or (places < 0).any():
        renderer = Renderer(tokenizer, data)
        if has_unknown_source(tokenizer, data):
            logger.warning("%s", UNKNOWN_SOURCE)
        making = _Making(raw, hashes, cached, renderer, encoder, data, len(tokenizer))
        write_tokens(making.contents(), making.problems, cache_dir, name)
        making.warn()
        remove_others(cache_dir, name)
        cached = open_tokens(cache_dir, name)
        assert cached is not None
        places = cached.hashes.places_of(hashes)
    table = TokenTable(
        lengths=cached.lengths,
        num_prompt_tokens=(cached.lengths - cached.num_targets).astype(np.int32),
        num_targets=cached.num_targets,
        starts=cached.starts,
        flat=cached.flat,
        token_hashes=cached.token_hashes,
        loss_hashes=cached.loss_hashes,
        unrendered=tuple(
            Skipped(int(raw.source_rows[row]), cached.problems[digest])
            for row, digest in enumerate(hashes if cached.problems else ())
            if digest in cached.problems
        ),
        key=_key(raw.fingerprint, tokenizer, encoder, data, KEY_FORMAT),
    ).arranged(places)
    if len(table) and len(table.unrendered) == len(table):
        raise DataError(_listed(data.name, "no row can be rendered", table.unrendered))
    if not table.num_targets.any():
        raise DataError(
            f"no token of {data.name} carries loss: all responses lie beyond the first "
            f"{data.max_length} tokens. Raise max_length in the recipe's section that names it"
        )
    return table


def _hashes(raw: RawSamples, data: DataSection) -> Texts:
    """[n] what tokens are cached by. Content alone does not say what a trainer makes of it: a chat,
    or a prompt and its completion, and what roles are called.
    """
    if data.rendering in ("auto", "chat", "plain"):
        return raw.content_hashes
    pairs = zip(raw.content_hashes, raw.given, strict=True)
    return Texts.of(
        xxhash.xxh3_128_hexdigest(f"{digest} {given}".encode()) for digest, given in pairs
    )


def rendered_tokens(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    data: DataSection,
    *,
    encoder: Encoder | None = None,
) -> list[tuple[Int32, Bool]]:
    """(ids, loss mask) of each, as `tokenize` makes them; raises `DataError` where it cannot.

    A large tokenizer takes long to be copied: who calls often gives the `encoder` made of it.
    """
    renderer = Renderer(tokenizer, data)
    encoder = encoder or Encoder(tokenizer)
    encoded = []
    for conversation in conversations:
        if conversation.tokens is None:
            encoded += encoder.encode([renderer.render(conversation)], data.max_length)
            continue
        try:
            encoded.append(as_trained(conversation.tokens, data, num_ids=len(tokenizer)))
        except MalformedRowError as error:
            raise DataError(str(error)) from error
    return encoded


def can_be_trl(raw: RawSamples, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether TRL's `SFTTrainer` would make tokens of rows of this kind, with this tokenizer."""
    given_as = raw.records[0].given_as
    if given_as == "tokens":
        return False  # they are what they are
    needs_template = given_as in ("chat", "lists")
    return given_as != "several columns" and (bool(tokenizer.chat_template) or not needs_template)


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
        **(
            {}
            if tokens is None
            else {"token_hashes": tokens.token_hashes, "loss_hashes": tokens.loss_hashes}
        ),
        content_hashes=raw.content_hashes,
        source_rows=raw.source_rows,
        previews=raw.previews,
        num_source_rows=raw.num_source_rows,
        fingerprint=raw.fingerprint,
    )


class _Making:
    """Makes the tokens of contents that are not cached yet; says afterwards what was met."""

    def __init__(
        self,
        raw: RawSamples,
        hashes: Texts,
        cached: CachedTokens | None,
        renderer: Renderer,
        encoder: Encoder,
        data: DataSection,
        num_ids: int,
    ) -> None:
        self._raw, self._hashes, self._cached, self._data = raw, hashes, cached, data
        self._renderer, self._encoder, self._num_ids = renderer, encoder, num_ids
        self.problems: dict[str, str] = {}
        """Content hash -> why it cannot be rendered; whole when `contents` has ended."""
        self._refused: list[Skipped] = []
        self._rendered_before: list[int] = []

    def contents(self) -> Iterator[tuple[str, Int32]]:
        """Each different content once: its hash, and its tokens as the file holds them.

        Raises `DataError` at the end when not one can be rendered.
        """
        hashes, cached = self._hashes, self._cached
        _, firsts = np.unique(hashes.codes(), return_index=True)
        places = np.sort(firsts).tolist()
        known = Texts.of([]) if cached is None else cached.hashes
        place_known = known.places_of(hashes)
        num_new = int((place_known[places] < 0).sum())
        with tqdm(total=num_new, desc="tokens", unit="row", disable=None) as bar:
            for start in range(0, len(places), BATCH_ROWS):
                block = places[start : start + BATCH_ROWS]
                new = [place for place in block if place_known[place] < 0]
                encoded = self._encode(new)
                for place, digest in zip(block, hashes[block], strict=True):
                    if place in encoded:
                        ids, mask = encoded[place]
                        yield digest, np.where(mask, ~ids, ids)
                    else:
                        assert cached is not None
                        if digest in cached.problems:
                            self.problems[digest] = cached.problems[digest]
                        at = place_known[place]
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
                "already, as if a chat template had been applied to them; %s. If the trainer "
                "applies a template to these texts, give gracekit the conversations instead",
                self._data.name,
                len(self._rendered_before),
                self._rendered_before[0],
                "TRL's tokenizer puts it there a second time, and so do we; take it out of the data"
                if self._data.rendering == "trl"
                else "it is not put there a second time",
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
        self.problems[self._hashes[place]] = reason

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
    if data.rendering != "auto":  # a key that was made before renderings were named stays as it is
        parts.append(data.rendering)
    if (source := source_of_trl(tokenizer, data)) is not None:
        parts.append(source)
    return str(xxhash.xxh3_128_hexdigest(json.dumps(parts).encode()))[:16]
