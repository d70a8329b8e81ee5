"""Samples that say the same: by their tokens, which features cannot tell.

Short tasks of one template with other numbers are as near to each other by their features as copies
are. Two samples are near-copies where one of them is the other one with a passage put in at one
place (a greeting, an instruction, a sentence at the end), and

- the passage holds no number and at most as many words as all that is around it,
- of what carries loss it holds at most half as much as there is around it.

A sample that was cut off at `max_length` lacks an end, which is then not compared. And samples
have the same response where all that carries loss is the same. Case and whitespace never count.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gracekit.samples.one_passage_loop import hash_words, one_passage_apart
from gracekit.samples.token_cache import unpacked
from gracekit.samples.tokens import TokenTable
from gracekit.types import Bool, Int32, Int64, Rows

OPENING = 12
"""Words at the beginning of a prompt by which tasks with a template are told."""
_BLOCK = 1 << 22
"""Tokens that are looked at together, to learn which there are."""
_UNREADABLE = "\ufffd"


class NearCopies:
    """Tells of samples whether they say the same but for one passage, or respond alike.

    Args:
        tokens: Of the n samples; of pairs of a chosen and a rejected response both sides count.
        texts_of: The text of each of some token ids by itself.
        max_length: Tokens at which samples were cut off.
    """

    def __init__(
        self, tokens: TokenTable, texts_of: Callable[[list[int]], list[str]], max_length: int
    ) -> None:
        self._sides = [tokens] if tokens.rejected is None else [tokens, tokens.rejected]
        self._texts_of = texts_of
        self._max_length = max_length
        self._codes: dict[str, int] = {}
        self._code_of = np.zeros(0, np.int32)
        """[ids] -2: not looked at yet, -1: whitespace."""
        self._has_digit = np.zeros(0, np.bool_)
        self._is_learned = False

    def responses(self, rows: Rows) -> Int64:
        """[r] the same number, here, for rows with the same response; -1: nothing carries loss."""
        found = self._hashes(rows, with_loss=True, most=0)
        return np.where(self._sides[0].num_targets[rows] > 0, found, -1)

    def openings(self, rows: Rows) -> Int64:
        """[r] the same number, here, for rows with the same first `OPENING` words of a prompt."""
        return self._hashes(rows, with_loss=False, most=OPENING)

    def _hashes(self, rows: Rows, *, with_loss: bool, most: int) -> Int64:
        hashes, chosen = np.zeros(len(rows), np.uint64), np.asarray(rows, np.int64)
        if len(rows):
            self._learn_all()
            for side in self._sides:
                hash_words(
                    np.asarray(side.flat),
                    side.starts,
                    side.lengths,
                    self._code_of,
                    chosen,
                    with_loss,
                    most,
                    hashes,
                )
        return (hashes >> np.uint64(1)).astype(np.int64)

    def are_near(self, pairs: Int64) -> Bool:
        """[p] whether the rows of each pair [2, p] are near-copies; equal samples are.

        Fastest where the pairs of one row are together, and it is the first.
        """
        found = np.ones(pairs.shape[1], np.bool_)
        if not len(found):
            return found
        self._learn_all()
        for side in self._sides:
            first, second = np.ascontiguousarray(pairs[:, found], np.int64)
            of_side = np.zeros(len(first), np.bool_)
            one_passage_apart(
                np.asarray(side.flat),
                side.starts,
                side.lengths,
                side.lengths >= self._max_length,
                self._code_of,
                self._has_digit,
                first,
                second,
                of_side,
            )
            found[found] = of_side
        return found

    def _learn_all(self) -> None:
        """Give a code to each token of the samples, once."""
        if self._is_learned:
            return
        for side in self._sides:
            for start in range(0, len(side.flat), _BLOCK):
                self._learn(unpacked(np.asarray(side.flat[start : start + _BLOCK]))[0])
        self._is_learned = True

    def _learn(self, ids: Int32) -> None:
        """Give codes to tokens that had none: the same where texts differ in case or spaces."""
        num_more = int(ids.max(initial=-1)) + 1 - len(self._code_of)
        self._code_of = np.concatenate([self._code_of, np.full(max(0, num_more), -2, np.int32)])
        is_here = np.zeros(len(self._code_of), np.bool_)
        is_here[ids] = True
        new = np.flatnonzero(is_here & (self._code_of == -2)).tolist()
        digits: list[bool] = []
        for token, text in zip(new, self._texts_of(new) if new else [], strict=True):
            said = f"{text}{token}" if _UNREADABLE in text else text.strip().casefold()
            if not said:
                self._code_of[token] = -1
                continue
            if said not in self._codes:
                self._codes[said] = len(self._codes)
                digits.append(any(letter.isdigit() for letter in text))
            self._code_of[token] = self._codes[said]
        self._has_digit = np.concatenate([self._has_digit, np.array(digits, np.bool_)])
