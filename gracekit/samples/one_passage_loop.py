"""The compiled loop that compares samples word by word (see `near_copies`)."""

from __future__ import annotations

from numba import boolean, int32, int64, void

from gracekit.greedy.compiled import compiled, inlined, read_only
from gracekit.types import Bool, Int32, Int64

LONGEST = 64
"""Words of a passage that is looked for in a sample without its end."""


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
        read_only(int32), read_only(int64), read_only(boolean), read_only(boolean),
        read_only(int64), read_only(int64), boolean[::1],
    )
)  # fmt: skip
def one_passage_apart(
    codes: Int32,
    starts: Int64,
    is_cut: Bool,
    has_digit: Bool,
    first: Int64,
    second: Int64,
    found: Bool,
) -> None:
    """Say of each pair whether one sample is the other one with at most a passage more, in place.

    Args:
        codes: Words of all r samples, one sample behind the other: twice the word's number, and 1
            more where it carries loss.
        starts: [r + 1] where each sample starts.
        is_cut: [r] samples that lack their end.
        has_digit: [words]
        first: [p] one sample of each pair.
        second: [p] the other one.
        found: [p] the answer.
    """
    for pair in range(len(first)):
        one, two = first[pair], second[pair]
        a, b = codes[starts[one] : starts[one + 1]], codes[starts[two] : starts[two + 1]]
        found[pair] = _has_passage_more(a, b, is_cut[two], has_digit) or _has_passage_more(
            b, a, is_cut[one], has_digit
        )
