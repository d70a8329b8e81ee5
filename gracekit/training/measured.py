"""What gracekit measured: the samples of a store with their tokens, as far as they are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples import CachedTokens, open_tokens, unpacked
from gracekit.store import StoreReader
from gracekit.types import Bool, Int32, Int64, Rows, SampleTable


class Tokens(NamedTuple):
    """Of one sample."""

    ids: Int32
    mask: Bool
    """Which of them carry loss."""


class Measured:
    """The samples that the trainer's rows are compared with.

    Args:
        samples: Their table, with the hashes of their tokens.
        settings: How they were read and rendered.
        layout: Name of the layout that they were read in.
        tokens: The tokens of a row of the table; None where they are not kept.
    """

    def __init__(
        self,
        samples: SampleTable,
        settings: DataSection,
        layout: str | None,
        tokens: Callable[[int], Tokens | None],
    ) -> None:
        self.samples = samples
        self.settings = settings
        self.layout = layout
        self.tokens = tokens

    @classmethod
    def of_store(cls, store: StoreReader) -> Measured:
        """Of the newest version, from the sample table and the cache of tokens.

        Raises:
            DataError: The store does not know the tokens: an earlier release made it, and the cache
                is lost.
        """
        samples, dataset = store.samples(), store.dataset()
        cached = _newest_cache(store.paths.cache / "tokens")
        if not samples.token_hashes.any():
            if cached is None:
                raise DataError(
                    f"the store {store.paths.root} does not hold the tokens of its samples; the "
                    "next refresh makes them again"
                )
            samples = _with_hashes(samples, cached)
        known = samples

        @cache
        def place_of() -> dict[tuple[int, int], int]:
            assert cached is not None
            pairs = zip(cached.token_hashes.tolist(), cached.loss_hashes.tolist(), strict=True)
            return {hashes: place for place, hashes in enumerate(pairs)}

        def tokens(row: int) -> Tokens | None:
            hashes = int(known.token_hashes[row]), int(known.loss_hashes[row])
            place = None if cached is None else place_of().get(hashes)
            if cached is None or place is None:
                return None
            start = int(cached.starts[place])
            return Tokens(*unpacked(np.asarray(cached.flat[start : start + cached.lengths[place]])))

        return cls(samples, dataset.settings, dataset.detected_format, tokens)

    @cached_property
    def rows(self) -> Rows:
        """Rows that are in the data and have tokens, ascending."""
        known = self.samples.present & (self.samples.token_hashes != 0) & (self.lengths > 0)
        return np.flatnonzero(known)

    @cached_property
    def lengths(self) -> Int64:
        """[n] tokens."""
        samples = self.samples
        total: Int64 = np.add(
            samples.num_prompt_tokens, samples.num_response_tokens, dtype=np.int64
        )
        return total

    @cached_property
    def row_at(self) -> dict[int, int]:
        """Position in the data -> row."""
        return {int(self.samples.source_rows[row]): row for row in self.rows.tolist()}

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Sample id -> row."""
        return dict(zip(self.samples.sample_ids[self.rows], self.rows.tolist(), strict=True))


def _newest_cache(folder: Path) -> CachedTokens | None:
    names = sorted(folder.glob("tokens-*.npz"), key=lambda path: path.stat().st_mtime)
    for path in reversed(names):
        cached = open_tokens(folder, path.stem.removeprefix("tokens-"))
        if cached is not None:
            return cached
    return None


def _with_hashes(samples: SampleTable, cached: CachedTokens) -> SampleTable:
    """The table of an earlier release with the hashes that the cache has."""
    where = cached.hashes.places_of(samples.content_hashes)
    return dataclasses.replace(
        samples,
        token_hashes=np.where(where >= 0, cached.token_hashes[where], 0),
        loss_hashes=np.where(where >= 0, cached.loss_hashes[where], 0),
    )
