"""What the trainer's rows have in common with samples, where their tokens are not the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from gracekit.training.measured import Measured
from gracekit.training.trainer_rows import FedRow, TrainerRows
from gracekit.types import Bool, Float64, Int32, Int64, Rows

NUM_RESEMBLED = 128
"""Rows that are compared with samples at other places."""
SHARE_AT_PLACES = 0.75
"""Of these rows, how many have more in common with their own sample than with half of the others.
All of them where the order is the data's; one half in any other, and 3 quarters of 128 only once
in 10⁸ times."""
MOST_COMPARED = 10_000
"""Rows that are compared with their own sample and others, each by itself."""
MOST_TOKENS = 5_000_000
"""Tokens of these rows, where they are long: then fewer rows are compared."""
BLOCK_TOKENS = 1_000_000
"""Tokens that are compared at a time."""


def stand_at_places(rows: TrainerRows, measured: Measured, store_rows: Rows) -> bool:
    """Whether rows with other tokens than the samples' may stand where the data has them.

    Each of some rows is compared with its own sample and with those of the others: by the tokens
    that both hold, or where the store's are not kept by their number alone.

    Args:
        rows: The trainer's.
        measured: The store's.
        store_rows: [m] the sample at each row's place; -1: none.
    """
    places = _spread(np.flatnonzero(store_rows >= 0), NUM_RESEMBLED)
    return _are_nearer(rows.take(places.tolist()), store_rows[places], measured)


def _are_nearer(fed: Sequence[FedRow], own: Rows, measured: Measured) -> bool:
    """Whether most of some rows have more in common with their own sample than the median of the
    others' has.
    """
    alike, _ = _likeness(fed, _samples(own, measured))
    others = np.median(alike, axis=1)
    num_nearer = int((alike.diagonal() > others).sum())
    num_farther = int((alike.diagonal() < others).sum())
    # Where all samples are alike nothing is told, and nothing speaks against the place.
    return num_nearer >= SHARE_AT_PLACES * (num_nearer + num_farther)


def may_stand_at_places(
    rows: TrainerRows, measured: Measured, store_rows: Rows, positions: Int64
) -> Bool:
    """[k] whether each of these rows, whose tokens no sample has, may be the sample at its place.

    As where a trainer cuts, marks or dates rows otherwise; not where other rows were put in their
    place. None of `NUM_RESEMBLED` samples has more in common with such a row than its own. Where
    the store's tokens are not kept most rows speak for all, for a number of tokens alone tells no
    row from another.

    Args:
        rows: The trainer's.
        measured: The store's.
        store_rows: [m] the sample at each row's place.
        positions: [k] of these rows, ascending. Of more than `MOST_COMPARED`, or
            `MOST_TOKENS`, so many, evenly spread, are compared; most of these speak for the rest.
    """
    if not len(positions):
        return np.ones(0, bool)
    if measured.tokens(int(store_rows[positions[0]])) is None:
        seen = _spread(positions, NUM_RESEMBLED)
        are_nearer = _are_nearer(rows.take(seen.tolist()), store_rows[seen], measured)
        return np.full(len(positions), are_nearer)
    num_tokens = float(measured.lengths[store_rows[positions]].mean())
    most = min(MOST_COMPARED, max(NUM_RESEMBLED, int(MOST_TOKENS / max(num_tokens, 1.0))))
    compared = _spread(positions, most)
    samples = _samples(_spread(measured.rows, NUM_RESEMBLED), measured)
    is_nearest = np.ones(len(compared), bool)
    for start, stop in _blocks(measured.lengths[store_rows[compared]]):
        some = compared[start:stop]
        fed = rows.take(some.tolist())
        own = _alike_in_pairs(fed, store_rows[some], measured)
        others = _likeness(fed, samples)
        is_nearest[start:stop] = np.any(
            [mine >= theirs.max(axis=1) for mine, theirs in zip(own, others, strict=True)], axis=0
        )
    if len(compared) == len(positions):
        return is_nearest
    may_stand = np.full(len(positions), is_nearest.mean() >= SHARE_AT_PLACES)
    may_stand[np.searchsorted(positions, compared)] = is_nearest
    return may_stand


def _blocks(lengths: Int64) -> Iterator[tuple[int, int]]:
    """Start and end of blocks of rows, each of about `BLOCK_TOKENS`."""
    numbers = np.cumsum(lengths) // BLOCK_TOKENS
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(lengths)]
    yield from itertools.pairwise(edges)


def _spread(values: Int64, most: int) -> Int64:
    """At most so many of them, evenly spread."""
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).astype(np.int64)]


class _Samples(NamedTuple):
    """Samples of the store that rows are compared with."""

    lengths: Int64
    """[s] tokens."""
    numbered: _Numbered | None
    """Their tokens; None: the store's are not kept."""


def _samples(store_rows: Rows, measured: Measured) -> _Samples:
    kept = [measured.tokens(row) for row in store_rows.tolist()]
    ids = [tokens.ids for tokens in kept if tokens is not None]
    lengths = measured.lengths[store_rows]
    return _Samples(lengths, _numbered(ids) if len(ids) == len(kept) else None)


def _likeness(fed: Sequence[FedRow], samples: _Samples) -> tuple[Float64, Float64]:
    """[k, s] how much each of the trainer's rows has in common with each of some samples.

    As a share of the longer of the two, and of the shorter one, which tells a row that was cut.
    Where the store's tokens are not kept both are their difference in length, below 0, as far as
    neither side cuts.
    """
    lengths, ours = samples.lengths, samples.numbered
    own_lengths = np.array([len(row.ids) for row in fed], np.int64)[:, None]
    if ours is None:
        cut = min(int(lengths.max(initial=0)), int(own_lengths.max(initial=0)))  # by either side
        nearness = -np.abs(np.minimum(lengths, cut) - np.minimum(own_lengths, cut)).astype(float)
        return nearness, nearness
    theirs = _numbered([row.ids for row in fed])
    kinds, index = np.unique(np.concatenate([theirs.kinds, ours.kinds]), return_inverse=True)
    tables = [
        sparse.csr_array(
            (np.ones(len(columns), np.int64), (numbered.owners, columns)),
            shape=(num_rows, len(kinds)),
        )
        for numbered, columns, num_rows in (
            (theirs, index[: len(theirs.kinds)], len(fed)),
            (ours, index[len(theirs.kinds) :], len(lengths)),
        )
    ]
    return _shares((tables[0] @ tables[1].T).toarray(), own_lengths, lengths)


def _alike_in_pairs(
    fed: Sequence[FedRow], samples: Rows, measured: Measured
) -> tuple[Float64, Float64]:
    """[k] how much each of the trainer's rows has in common with one sample, as `_likeness`."""
    kept = [measured.tokens(row) for row in samples.tolist()]
    theirs = _numbered([row.ids for row in fed])
    ours = _numbered([np.zeros(0, np.int32) if t is None else t.ids for t in kept])
    kinds, index = np.unique(np.concatenate([theirs.kinds, ours.kinds]), return_inverse=True)
    codes = np.concatenate([theirs.owners, ours.owners]) * len(kinds) + index
    num_theirs = len(theirs.kinds)
    common = np.intersect1d(codes[:num_theirs], codes[num_theirs:], assume_unique=True)
    shared = np.bincount(common // max(len(kinds), 1), minlength=len(fed))
    lengths = np.array([len(row.ids) for row in fed], np.int64)
    return _shares(shared, lengths, measured.lengths[samples])


def _shares(shared: Int64, lengths: Int64, others: Int64) -> tuple[Float64, Float64]:
    """Of the longer and of the shorter one."""
    longer, shorter = np.maximum(lengths, others), np.minimum(lengths, others)
    return shared / np.maximum(longer, 1), shared / np.maximum(shorter, 1)


class _Numbered(NamedTuple):
    """The tokens of some rows, each with which of its occurrences in the row it is."""

    owners: Int64
    """[t] the row."""
    kinds: Int64
    """[t] token and occurrence in one number; in a row no two are equal."""


def _numbered(rows: Sequence[Int32]) -> _Numbered:
    owners = np.repeat(np.arange(len(rows)), [len(ids) for ids in rows])
    tokens = np.concatenate([*rows, np.zeros(0, np.int32)]).astype(np.int64)
    order = np.lexsort((tokens, owners))
    owners, tokens = owners[order], tokens[order]
    places = np.arange(len(tokens))
    is_first = np.ones(len(tokens), bool)
    is_first[1:] = (tokens[1:] != tokens[:-1]) | (owners[1:] != owners[:-1])
    occurrences = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return _Numbered(owners, (tokens << 32) + occurrences)
