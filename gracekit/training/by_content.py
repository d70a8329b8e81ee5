"""Which sample of the store each row of a trainer's dataset is, told by its tokens."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gracekit.samples import hashes_of
from gracekit.training.measured import Measured
from gracekit.training.trainer_rows import BLOCK_ROWS, TrainerRows, hashes_of_ids
from gracekit.types import Bool, Int32, Int64, Rows

MAX_PACKED_TOKENS = 1 << 16


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


def match(rows: TrainerRows, measured: Measured, placed: Rows | None = None) -> Matched:
    """Find each row of the trainer's dataset among the samples.

    Rows with equal tokens are given out in order, the sample at a row's own place first: it is no
    matter which is which. Where one side cuts its rows shorter than the other, those that are cut
    are compared as far as both have them.

    Args:
        rows: The trainer's.
        measured: The store's.
        placed: [m] the sample at each row's place; -1: none. None: places say nothing.
    """
    hashes, lengths = hashes_of_ids(rows, hash_ids)
    found = np.full(len(hashes), -1, np.int64)
    ambiguous = np.zeros(len(hashes), bool)
    known = measured.samples.token_hashes
    cut = _Cut(rows, measured, lengths)
    if placed is not None:
        at_place = (placed >= 0) & (hashes == known[placed])
        first = np.unique(placed[at_place], return_index=True)[1]
        at_place = np.flatnonzero(at_place)[first]
        found[at_place] = placed[at_place]
        cut.give_at_places(found, placed)
    taken = set(found[found >= 0].tolist())
    free: dict[int, list[int]] = defaultdict(list)
    for row in measured.rows[::-1].tolist():
        if row not in taken:
            free[int(known[row])].append(row)
    for position in np.flatnonzero(found < 0).tolist():
        if free.get(int(hashes[position])):
            found[position] = free[int(hashes[position])].pop()
    cut.give_anywhere(found, ambiguous)
    repeated = (found < 0) & ~ambiguous & np.isin(hashes, known[measured.rows])
    return Matched(
        rows=found, ambiguous=ambiguous, repeated=repeated, lengths=lengths, hashes=hashes
    )


class _Cut:
    """Rows that one side has cut: where both are cut at the same length, none."""

    def __init__(self, rows: TrainerRows, measured: Measured, lengths: Int64) -> None:
        self._rows, self._measured = rows, measured
        here = measured.lengths[measured.rows]
        longest, longest_here = int(lengths.max(initial=0)), int(here.max(initial=0))
        self._length = min(longest, longest_here)
        is_by_trainer = longest < longest_here
        theirs = lengths == self._length if is_by_trainer else lengths > self._length
        ours = here > self._length if is_by_trainer else here == self._length
        is_any = longest != longest_here
        self._positions = np.flatnonzero(theirs & is_any)
        """Of the trainer's rows that may be cut, or may be whole where the store's are cut."""
        self._samples = measured.rows[ours & is_any]

    def give_at_places(self, found: Int64, placed: Rows) -> None:
        """Fill in rows that are the sample at their place, as far as both go."""
        of_sample = np.zeros(len(self._measured.lengths), bool)
        of_sample[self._samples[~np.isin(self._samples, found)]] = True
        positions = self._positions
        positions = positions[(found[positions] < 0) & (placed[positions] >= 0)]
        positions = positions[of_sample[placed[positions]]]
        for position, value in self._prefixes(positions):
            row = int(placed[position])
            if of_sample[row] and value == self._prefix_of(row):
                found[position], of_sample[row] = row, False

    def give_anywhere(self, found: Int64, ambiguous: Bool) -> None:
        """Fill in rows that one sample alone may be; those that several may be are ambiguous."""
        positions = self._positions[found[self._positions] < 0]
        if not len(positions):
            return
        of_prefix: dict[int, list[int]] = defaultdict(list)
        for row in self._samples[~np.isin(self._samples, found)].tolist():
            value = self._prefix_of(row)
            if value is not None:
                of_prefix[value].append(row)
        prefixes = dict(self._prefixes(positions))
        num_of = Counter(prefixes.values())
        for position, value in prefixes.items():
            candidates = of_prefix.get(value, [])
            if len(candidates) == num_of[value] == 1:
                found[position] = candidates[0]
            elif candidates:
                ambiguous[position] = True

    def _prefixes(self, positions: Int64) -> Iterator[tuple[int, int]]:
        """(position, hash of what is compared) of the trainer's rows."""
        for start in range(0, len(positions), BLOCK_ROWS):
            some = positions[start : start + BLOCK_ROWS].tolist()
            for position, row in zip(some, self._rows.take(some), strict=True):
                yield position, hash_ids(row.ids[: self._length])

    def _prefix_of(self, row: int) -> int | None:
        tokens = self._measured.tokens(row)
        return None if tokens is None else hash_ids(tokens.ids[: self._length])


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
