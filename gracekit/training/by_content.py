"""Which sample of the store each row of a trainer's dataset is, told by its tokens."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gracekit.samples import hashes_of
from gracekit.training.measured import Measured
from gracekit.training.trainer_rows import FedRow, TrainerRows, hashes_of_ids
from gracekit.types import Bool, Float64, Int32, Int64, Rows

MAX_PACKED_TOKENS = 1 << 16
NUM_RESEMBLED = 128
"""Rows that are compared with samples at other places."""
SHARE_AT_PLACES = 0.75
"""Of these rows, how many have more in common with their own sample than with half of the others.
All of them where the order is the data's; one half in any other, and 3 quarters of 128 only once
in 10⁸ times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Rows of the trainer's dataset [m] and of the store [n], brought together."""

    rows: Rows
    """[m] row of the store; -1: not found, or not to be told."""
    ambiguous: Bool
    """[m] rows of which several different samples have the tokens, as far as they are not cut."""
    repeated: Bool
    """[m] rows whose tokens stand there more often than in the store."""
    lengths: Int64
    """[m] tokens."""
    hashes: Int64
    """[m] hash of the ids."""


def hash_ids(ids: Int32) -> int:
    """As `SampleTable.token_hashes` has it."""
    return hashes_of(ids, np.zeros(0, bool))[0]


def match(rows: TrainerRows, measured: Measured) -> Matched:
    """Find each row of the trainer's dataset among the samples.

    Rows with equal tokens are given out in order: it is no matter which is which. Where one side
    cuts its rows shorter than the other, those that are cut are compared as far as both have them.
    """
    hashes, lengths = hashes_of_ids(rows, hash_ids)
    num_rows = len(hashes)
    found = np.full(num_rows, -1, np.int64)
    ambiguous, repeated = np.zeros(num_rows, bool), np.zeros(num_rows, bool)
    free: dict[int, list[int]] = defaultdict(list)
    for row in measured.rows[::-1].tolist():
        free[int(measured.samples.token_hashes[row])].append(row)
    is_known = set(free)
    for position, value in enumerate(hashes.tolist()):
        if free.get(value):
            found[position] = free[value].pop()
        elif value in is_known:
            repeated[position] = True
    open_positions = np.flatnonzero((found < 0) & ~repeated)
    if len(open_positions):
        taken = set(found.tolist())
        left = np.array([row for row in measured.rows.tolist() if row not in taken], np.int64)
        _match_cut(rows, measured, lengths, open_positions, left, found, ambiguous)
    return Matched(
        rows=found, ambiguous=ambiguous, repeated=repeated, lengths=lengths, hashes=hashes
    )


def _match_cut(
    rows: TrainerRows,
    measured: Measured,
    lengths: Int64,
    positions: Int64,
    left: Rows,
    found: Int64,
    ambiguous: Bool,
) -> None:
    """Fill in rows that one side has cut; `found` and `ambiguous` are changed."""
    here = measured.lengths
    if not len(left) or not len(here):
        return
    longest, longest_here = int(lengths.max()), int(here.max())
    cut = min(longest, longest_here)
    if longest < longest_here:  # the trainer's are shorter
        positions = positions[lengths[positions] == cut]
        left = left[here[left] > cut]
    else:
        positions = positions[lengths[positions] > cut]
        left = left[here[left] == cut]
    if longest == longest_here or not len(positions) or not len(left):
        return
    of_prefix: dict[int, list[int]] = defaultdict(list)
    for row in left.tolist():
        tokens = measured.tokens(row)
        if tokens is not None:
            of_prefix[hash_ids(tokens.ids[:cut])].append(row)
    num_of: dict[int, int] = defaultdict(int)
    prefixes = {}
    for position, row in zip(positions.tolist(), rows.take(positions.tolist()), strict=True):
        prefixes[position] = hash_ids(row.ids[:cut])
        num_of[prefixes[position]] += 1
    for position, value in prefixes.items():
        candidates = of_prefix.get(value, [])
        if len(candidates) == num_of[value] == 1:
            found[position] = candidates[0]
        elif candidates:
            ambiguous[position] = True


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
    alike, _ = _likeness(fed, own, measured)
    others = np.median(alike, axis=1)
    num_nearer = int((alike.diagonal() > others).sum())
    num_farther = int((alike.diagonal() < others).sum())
    # Where all samples are alike nothing is told, and nothing speaks against the place.
    return num_nearer >= SHARE_AT_PLACES * (num_nearer + num_farther)


def may_stand_at_places(
    rows: TrainerRows, measured: Measured, store_rows: Rows, positions: Int64
) -> Bool:
    """[k] whether each of these rows, whose tokens no sample has, may be the sample at its place.

    As where a trainer cuts, marks or dates some rows otherwise; not where other rows were put in
    their place. No sample has more in common with such a row than its own. Of more than
    `NUM_RESEMBLED` rows as many are looked at, and most of them speak for all; so they do where the
    store's tokens are not kept, for a number of tokens alone tells no row from another.
    """
    seen = _spread(positions, NUM_RESEMBLED)
    if len(seen) and measured.tokens(int(store_rows[seen[0]])) is None:
        are_nearer = _are_nearer(rows.take(seen.tolist()), store_rows[seen], measured)
        return np.full(len(positions), are_nearer)
    samples = np.concatenate([store_rows[seen], _spread(measured.rows, NUM_RESEMBLED)])
    is_nearest = np.zeros(len(seen), bool)
    for alike in _likeness(rows.take(seen.tolist()), samples, measured):
        is_nearest |= alike[:, : len(seen)].diagonal() >= alike.max(axis=1)
    if len(seen) == len(positions):
        return is_nearest
    return np.full(len(positions), is_nearest.mean() >= SHARE_AT_PLACES)


def _spread(values: Int64, most: int) -> Int64:
    """At most so many of them, evenly spread."""
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).astype(np.int64)]


def _likeness(fed: Sequence[FedRow], samples: Rows, measured: Measured) -> tuple[Float64, Float64]:
    """[k, s] how much each of the trainer's rows has in common with each of some samples.

    As a share of the longer of the two, and of the shorter one, which tells a row that was cut.
    Where the store's tokens are not kept both are their difference in length, below 0, as far as
    neither side cuts.
    """
    kept = [measured.tokens(row) for row in samples.tolist()]
    lengths = measured.lengths[samples]
    own_lengths = np.array([len(row.ids) for row in fed], np.int64)[:, None]
    if any(tokens is None for tokens in kept):
        cut = min(int(lengths.max(initial=0)), int(own_lengths.max(initial=0)))  # by either side
        nearness = -np.abs(np.minimum(lengths, cut) - np.minimum(own_lengths, cut)).astype(float)
        return nearness, nearness
    shared = np.empty((len(fed), len(samples)))
    bags = [Counter(tokens.ids.tolist()) for tokens in kept if tokens is not None]
    for k, row in enumerate(fed):
        bag = Counter(row.ids.tolist())
        shared[k] = [(bag & other).total() for other in bags]
    longer, shorter = np.maximum(lengths, own_lengths), np.minimum(lengths, own_lengths)
    return shared / np.maximum(longer, 1), shared / np.maximum(shorter, 1)


def is_packed(rows: TrainerRows, measured: Measured, positions: Sequence[int]) -> bool:
    """Whether rows hold the tokens of several samples, one behind another."""
    if "seq_lengths" in rows.columns:
        return True
    known = set(measured.samples.token_hashes[measured.rows].tolist())
    lengths = np.unique(measured.lengths[measured.rows])[::-1]
    return any(
        _num_samples_in(row.ids[:MAX_PACKED_TOKENS], known, lengths) >= 2
        for row in rows.take(positions)
    )


def _num_samples_in(ids: Int32, known: set[int], lengths: Int64) -> int:
    """How many whole samples the ids begin with."""
    count = start = 0
    while start < len(ids) and count < 2:
        fitting = lengths[(lengths > 1) & (lengths <= len(ids) - start)].tolist()
        length = next((n for n in fitting if hash_ids(ids[start : start + n]) in known), 0)
        if not length:
            break
        count, start = count + 1, start + length
    return count
