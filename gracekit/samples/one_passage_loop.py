"""The compiled loops that compare samples word by word (see `near_copies`).

They read tokens where they lie, so that what they need does not grow with the pairs.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, int32, int64, uint64, void
from numpy.typing import NDArray

from gracekit.greedy.compiled import compiled, inlined, read_only
from gracekit.types import Bool, Int32, Int64

LONGEST = 64
"""Words of a passage that is looked for in a sample without its end."""
_START, _FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)


@inlined
def _words(flat: Int32, start: int, length: int, code_of: Int32, words: Int32) -> int:
    """Put the words of a sample into `words`, and say how many they are."""
    count = 0
    for place in range(start, start + length):
        token = flat[place]
        loss = token < 0
        code = code_of[~token if loss else token]
        if code >= 0:
            words[count] = 2 * code + (1 if loss else 0)
            count += 1
    return count


@inlined
def _is_small(b: Int32, start: int, end: int, has_digit: Bool) -> bool:
    """Whether b [m] may have this passage more than another sample."""
    if 2 * (end - start) > len(b):
        return False
    num_loss = num_within = 0
    for place in range(len(b)):
        num_loss += b[place] & 1
        if start <= place < end:
            num_within += b[place] & 1
            if has_digit[b[place] >> 1]:
                return False
    return num_loss > num_within and 2 * num_within <= num_loss - num_within


@inlined
def _has_passage_more(a: Int32, b: Int32, b_is_cut: bool, has_digit: Bool) -> bool:
    """Whether b is a, or a with a passage more; where b is cut off, as far as it goes."""
    n, m = len(a), len(b)
    same = 0
    while same < min(n, m) and a[same] == b[same]:
        same += 1
    if same == m:
        return n == m or (b_is_cut and m > 0)
    if same == n and not b_is_cut:
        return _is_small(b, n, m, has_digit)
    # Where the passage could lie further in front too, it is a rotation: the same words.
    shortest, longest = m - n, m - n
    if b_is_cut:
        shortest, longest = max(1, m - n), min(LONGEST, m - same)
    if shortest < 1:
        return False
    for length in range(shortest, longest + 1):
        at = same
        while at + length < m and a[at] == b[at + length]:
            at += 1
        if at + length == m and _is_small(b, same, same + length, has_digit):
            return True
    return False


@compiled(
    void(
        read_only(int32), read_only(int64), read_only(int64), read_only(boolean), read_only(int32),
        read_only(boolean), read_only(int64), read_only(int64), boolean[::1],
    )
)  # fmt: skip
def one_passage_apart(
    flat: Int32,
    starts: Int64,
    lengths: Int64,
    is_cut: Bool,
    code_of: Int32,
    has_digit: Bool,
    first: Int64,
    second: Int64,
    found: Bool,
) -> None:
    """Say of each pair whether one sample is the other one with at most a passage more, in place.

    Args:
        flat: Tokens, the complement of the id where one carries loss.
        starts: [n] where each sample starts in `flat`.
        lengths: [n] its tokens.
        is_cut: [n] samples that lack their end.
        code_of: [ids] number of the word that a token is; below 0: it is no word.
        has_digit: [words]
        first: [p] one sample of each pair; those of one sample are best together.
        second: [p] the other one.
        found: [p] the answer.
    """
    longest = 0
    for pair in range(len(first)):
        longest = max(longest, lengths[first[pair]], lengths[second[pair]])
    of_one, of_two = np.empty(longest, np.int32), np.empty(longest, np.int32)
    held = int64(-1)
    a = of_one[:0]
    for pair in range(len(first)):
        one, two = first[pair], second[pair]
        if one != held:
            a = of_one[: _words(flat, starts[one], lengths[one], code_of, of_one)]
            held = one
        b = of_two[: _words(flat, starts[two], lengths[two], code_of, of_two)]
        found[pair] = _has_passage_more(a, b, is_cut[two], has_digit) or _has_passage_more(
            b, a, is_cut[one], has_digit
        )


@compiled(
    void(
        read_only(int32), read_only(int64), read_only(int64), read_only(int32), read_only(int64),
        boolean, int64, uint64[::1],
    )
)  # fmt: skip
def hash_words(
    flat: Int32,
    starts: Int64,
    lengths: Int64,
    code_of: Int32,
    rows: Int64,
    with_loss: bool,
    most: int,
    hashes: NDArray[np.uint64],
) -> None:
    """Mix the first words that carry loss, or none, into the hash of each row [r], in place.

    Args:
        flat: As for `one_passage_apart`, and so are `starts`, `lengths` and `code_of`.
        starts: [n]
        lengths: [n]
        code_of: [ids]
        rows: [r]
        with_loss: Of those that carry loss; else of the others.
        most: So many words at most; 0: all.
        hashes: [r]
    """
    for place in range(len(rows)):
        row = rows[place]
        mixed, left = hashes[place] ^ _START, most
        for at in range(starts[row], starts[row] + lengths[row]):
            token = flat[at]
            if (token < 0) == with_loss:
                code = code_of[~token if token < 0 else token]
                if code >= 0:
                    mixed = (mixed + np.uint64(code + 1)) * _START
                    mixed = (mixed ^ (mixed >> _HALF)) * _FACTOR
                    mixed ^= mixed >> _HALF
                    left -= 1
            if most > 0 and left == 0:
                break
        hashes[place] = mixed
