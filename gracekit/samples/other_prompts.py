"""Samples, and their responses after another prompt or none, to ask what the own prompt tells."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from gracekit.samples.tokens import TokenTable
from gracekit.texts import Texts
from gracekit.types import Bool, Int32, Int64, Rows

_BLOCK = 4096
_TRIES = 32
"""Followers in the ring that are looked at for one with another prompt."""


class WithOtherPrompts:
    """Token source of 3n samples: as they are, after their partners' prompts, and without one.

    The prompt is what comes before the first token with loss. A partner's prompt that would make
    a sample longer than the longest of all loses tokens in its middle: it keeps its beginning,
    where templates begin, and its end, where the response does.

    Args:
        tokens: The samples [n].
        groups: int32 [n] within which partners are looked for first.
        content_hashes: [n]
    """

    def __init__(self, tokens: TokenTable, groups: Int32, content_hashes: Texts) -> None:
        self._tokens = tokens
        self._firsts, prompts = _prompts_of(tokens)
        """[n] position of the first token with loss."""
        has_prompt = (self._firsts > 1) & (tokens.num_targets > 0)
        self.partners = partners(groups, content_hashes, prompts, has_prompt)
        """[n] row whose prompt is taken; -1: none."""
        own = tokens.lengths - self._firsts
        most = int(tokens.lengths.max(initial=0))
        swapped = np.minimum(self._firsts[self.partners], most - own) + own
        there = self.partners >= 0
        self.lengths: Int64 = np.concatenate(
            [
                tokens.lengths,
                np.where(there, swapped, 0),
                np.where(there, tokens.num_targets + 1, 0),
            ]
        )
        """[3n] tokens; 0 where a sample has no partner."""

    def take(self, rows: Rows) -> list[tuple[Int32, Bool]]:
        """(token ids, loss mask) of each row."""
        kinds, rows = np.divmod(rows, len(self._tokens))
        own = self._tokens.take(rows)
        others = iter(self._tokens.take(self.partners[rows[kinds == 1]]))
        found = []
        for kind, row, sample in zip(kinds.tolist(), rows.tolist(), own, strict=True):
            other = next(others)[0] if kind == 1 else None
            if kind and self.partners[row] < 0:
                sample = sample[0][:0], sample[1][:0]
            elif other is not None:
                sample = self._swapped(row, sample, other)
            elif kind:
                sample = without_prompt(sample)
            found.append(sample)
        return found

    def _swapped(self, row: int, sample: tuple[Int32, Bool], other: Int32) -> tuple[Int32, Bool]:
        ids, mask = (part[int(self._firsts[row]) :] for part in sample)
        room = int(self.lengths[len(self._tokens) + row]) - len(ids)
        prompt = other[: int(self._firsts[self.partners[row]])]
        if len(prompt) > room:
            head = room // 2
            prompt = np.concatenate([prompt[:head], prompt[len(prompt) - (room - head) :]])
        return np.concatenate([prompt, ids]), np.concatenate([np.zeros(len(prompt), bool), mask])


def without_prompt(sample: tuple[Int32, Bool]) -> tuple[Int32, Bool]:
    """The target tokens of a sample after its very first token, which begins any text."""
    ids, mask = sample
    targets = np.flatnonzero(mask[1:]) + 1
    kept = np.concatenate([[0], targets])
    return ids[kept], kept > 0


def partners(groups: Int32, content_hashes: Texts, prompts: Int64, has_prompt: Bool) -> Int64:
    """[n] a partner of each sample: another of its group with another prompt, as if at random.

    Where a group has no other prompt it is any sample with one; where no sample has, and for
    samples without a prompt, it is -1. The order of the samples does not matter.

    Args:
        groups: int32 [n]
        content_hashes: [n]
        prompts: int64 [n] hash of each prompt.
        has_prompt: [n]
    """
    found = np.full(len(groups), -1, np.int64)
    keys = Texts.of(hashlib.sha256(h.encode()).hexdigest() for h in content_hashes)
    rows = np.flatnonzero(has_prompt)
    ring = rows[keys[rows].order()]
    for group in np.unique(groups[ring]):
        _pair(found, ring[groups[ring] == group], ring, prompts)
    return found


def _pair(found: Int64, some: Rows, every: Rows, prompts: Int64) -> None:
    """Each row takes the next of its ring that has another prompt, else one of all rows."""
    for shift in range(1, min(len(some), _TRIES + 1)):
        left = found[some] < 0
        if not left.any():
            return
        following = np.roll(some, -shift)
        fits = left & (prompts[some] != prompts[following])
        found[some[fits]] = following[fits]
    waiting = some[found[some] < 0]
    for ring in (some, every):  # one row of each of two prompts serves all that are left
        other = np.flatnonzero(prompts[ring] != prompts[ring[0]])[:1]
        if len(other):
            first, second = ring[0], ring[other[0]]
            found[waiting] = np.where(prompts[waiting] != prompts[first], first, second)
            return


def _prompts_of(tokens: TokenTable) -> tuple[Int64, Int64]:
    """([n] position of the first token with loss, [n] hash of what is before it)."""
    n = len(tokens)
    firsts, hashes = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for start in range(0, n, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, n))
        for row, (ids, mask) in zip(rows.tolist(), tokens.take(rows), strict=True):
            first = int(np.argmax(mask)) if mask.any() else len(mask)
            firsts[row], hashes[row] = first, _hash(ids[:first])
    return firsts, hashes


def _hash(ids: NDArray[Any]) -> int:
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(ids, "<i4").tobytes()) >> 1
