"""Samples that say the same but for one passage: against trying all passages, and by examples."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracekit.samples import TokenTable
from gracekit.samples.near_copies import OPENING, NearCopies
from gracekit.samples.one_passage_loop import LONGEST, one_passage_apart
from gracekit.types import Bool, Int64

Sample = list[tuple[str, bool]]
"""Words, and which of them carry loss."""


def table(samples: list[Sample], words: dict[str, int]) -> TokenTable:
    """Tokens of these words; new words get the next id."""
    rows = []
    for sample in samples:
        ids = np.array([words.setdefault(w, len(words)) for w, _ in sample], np.int32)
        mask = np.array([loss for _, loss in sample], bool)
        rows.append(np.where(mask, ~ids, ids).astype(np.int32))
    lengths = np.array([len(row) for row in rows], np.int64)
    num_targets = np.array([int((row < 0).sum()) for row in rows], np.int32)
    return TokenTable(
        lengths=lengths,
        num_prompt_tokens=(lengths - num_targets).astype(np.int32),
        num_targets=num_targets,
        starts=np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64),
        flat=np.concatenate([np.zeros(0, np.int32), *rows]),
        token_hashes=np.ones(len(rows), np.int64),
        loss_hashes=np.ones(len(rows), np.int64),
        key="",
    )


def judge(
    samples: list[Sample], rejected: list[Sample] | None = None, max_length: int = 1000
) -> NearCopies:
    words: dict[str, int] = {}
    tokens = table(samples, words)
    if rejected is not None:
        tokens = dataclasses.replace(tokens, rejected=table(rejected, words))

    def texts_of(ids: list[int]) -> list[str]:
        known = list(words)
        return [known[token] for token in ids]

    return NearCopies(tokens, texts_of, max_length)


def said(prompt: str, response: str) -> Sample:
    """Words with the spaces before them, as tokens have them."""
    first, *rest = prompt.split(" ")
    words = [(first, False)] + [(f" {word}", False) for word in rest]
    return words + [(f" {word}", True) for word in response.split(" ")]


def pairs_of(*pairs: tuple[int, int]) -> Int64:
    return np.array(pairs, np.int64).reshape(-1, 2).T


TEMPLATE = "Answer the question that follows in as few words as you can and give no reason for it."


@pytest.mark.parametrize(
    ("one", "two", "near"),
    [
        # a greeting before, an instruction behind, something in the middle
        (said("What is a bee ?", "An insect ."), said("Please: What is a bee ?", "An insect ."), 1),
        (said("What is a bee ?", "An insect"), said("What is a bee ? Be brief", "An insect"), 1),
        (said("What is a bee ?", "An insect ."), said("What then is a bee ?", "An insect ."), 1),
        (said("what is  a BEE ?", "an insect ."), said("What is a bee ?", "An insect ."), 1),
        # a sentence behind a response, where that is not most of it
        (said("Why ?", "Since it rains all day"), said("Why ?", "Since it rains all day . OK"), 1),
        (said("Why ?", "It rains ."), said("Why ?", "It rains . And the wind blows ."), 0),
        # another answer, another question, another number
        (said("What is a bee ?", "An insect ."), said("What is a bee ?", "A bird ."), 0),
        (said(f"{TEMPLATE} Is a bee blue ?", "No"), said(f"{TEMPLATE} Is a fly blue ?", "No"), 0),
        (said(f"{TEMPLATE} add 2 3", "more"), said(f"{TEMPLATE} add 2 4", "more"), 0),
        (said(f"{TEMPLATE} add 2 3", "more"), said(f"{TEMPLATE} add 2 3 4", "more"), 0),
        (said("Is it odd ?", "Yes"), said("Step1 Is it odd ?", "Yes"), 0),
        # two passages; one that is longer than all the rest
        (said("What is a bee ?", "An insect"), said("Hi What is a bee now ?", "An insect"), 0),
        (said("A bee ?", "Yes"), said("In the story of all that flies is A bee ?", "Yes"), 0),
    ],
)  # fmt: skip
def test_what_says_the_same(one: Sample, two: Sample, near: int) -> None:
    found = judge([one, two]).are_near(pairs_of((0, 1), (1, 0), (0, 0)))
    assert found.tolist() == [bool(near), bool(near), True]


def test_what_carries_loss_counts() -> None:
    one = [("a", False), ("b", True), ("c", True)]
    two = [("a", False), ("b", False), ("c", True)]
    assert judge([one, two]).are_near(pairs_of((0, 1))).tolist() == [False]


def test_an_end_that_was_cut_off_is_not_compared() -> None:
    whole = said("Tell me all that you know of bees", "They fly and they make honey all day")
    more = [("Please:", False), *whole]
    other = [("Please:", False), *said("Tell me all that you know of bees", "They do nothing")]
    samples = [whole[:14], more[:14], other]
    assert len(whole) > 14 and len(other) < 14
    assert judge(samples, max_length=14).are_near(pairs_of((0, 1), (1, 0), (0, 2))).tolist() == [
        True, True, False,
    ]  # fmt: skip
    # both are whole, so they differ
    assert judge(samples).are_near(pairs_of((0, 1))).tolist() == [False]
    long = [("well", False)] * (LONGEST + 1) + whole * 10
    both = [(whole * 10)[:150], long[:150]]
    assert judge(both, max_length=150).are_near(pairs_of((0, 1))).tolist() == [False]
    both[1] = long[1:151]
    assert judge(both, max_length=150).are_near(pairs_of((0, 1))).tolist() == [True]


def test_both_sides_of_a_pair_count() -> None:
    chosen = [said("What is a bee ?", "An insect ."), said("Hi What is a bee ?", "An insect .")]
    same = [said("What is a bee ?", "A bird ."), said("Hi What is a bee ?", "A bird .")]
    others = [same[0], said("Hi What is a bee ?", "A fish .")]
    assert judge(chosen, same).are_near(pairs_of((0, 1))).tolist() == [True]
    assert judge(chosen, others).are_near(pairs_of((0, 1))).tolist() == [False]


def test_halves_of_a_letter_and_no_pairs() -> None:
    """Tokens without a text of their own are the same only as themselves."""
    words = [[("\ufffd", False), ("x", True)], [("\ufffd ", False), ("x", True)]]
    assert judge(words).are_near(pairs_of((0, 1), (0, 0))).tolist() == [False, True]
    assert judge(words).are_near(pairs_of()).tolist() == []


def test_who_responds_alike() -> None:
    """Whatever the prompt; both sides of pairs count."""
    refusal = "I am sorry but with that I can not help you ."
    samples = [
        said("What is a bee ?", refusal),
        said("Add 2 and 3", refusal.upper()),
        said("Add 2 and 4", f"Well {refusal}"),
        said("Is it good ?", "Yes"),
        said("Is it bad ?", "Yes"),
        [("Is it cut ?", False)],
    ]
    by_tokens = judge(samples)
    found = by_tokens.responses(np.arange(6)).tolist()
    assert found[0] == found[1] >= 0 and found[3] == found[4] >= 0 and found[5] == -1
    assert len(set(found)) == 4
    assert by_tokens.responses(np.array([1, 4])).tolist() == [found[0], found[3]]
    assert by_tokens.responses(np.zeros(0, np.int64)).tolist() == []
    rejected = [said("?", word) for word in ("a", "b", "c", "d", "e", "f")]
    one, two, *_ = judge(samples, rejected).responses(np.arange(6)).tolist()
    assert one != two


def test_whose_prompts_begin_alike() -> None:
    few = " ".join(f"w{i}" for i in range(OPENING - 1))
    samples = [said(f"{few} more and {i}", f"answer {i}") for i in range(2)]
    samples += [said(f"{few} less", "answer"), said(few, "more"), said(few, "more or less")]
    found = judge(samples).openings(np.arange(5)).tolist()
    assert found[0] == found[1] and found[3] == found[4] and len(set(found)) == 3


def is_near(a: list[int], b: list[int], cut_b: bool, has_digit: Bool) -> bool:
    """Whether b is a, or a with a passage more: all passages are tried."""
    if a == b or (cut_b and b and a[: len(b)] == b):
        return True
    for start in range(len(b)):
        for end in range(start + 1, len(b) + 1):
            rest, passage = b[:start] + b[end:], b[start:end]
            fits = a[: len(rest)] == rest if cut_b else a == rest
            if cut_b and end - start > LONGEST:
                continue
            num_within, num_loss = sum(c & 1 for c in passage), sum(c & 1 for c in rest)
            if (
                fits
                and 2 * len(passage) <= len(b)
                and num_loss >= max(1, 2 * num_within)
                and not any(has_digit[c >> 1] for c in passage)
            ):
                return True
    return False


SEQUENCES = st.lists(st.integers(0, 7), max_size=9)


@settings(max_examples=400, deadline=None)
@given(SEQUENCES, SEQUENCES, st.integers(0, 9), st.booleans(), st.booleans(), st.booleans())
def test_it_is_the_same_as_trying_all_passages(
    base: list[int], passage: list[int], at: int, cut_a: bool, cut_b: bool, third_is_number: bool
) -> None:
    samples: list[Any] = [base, base[:at] + passage + base[at:], passage, base[:at] + passage]
    has_digit = np.array([False, False, third_is_number, False])
    codes = np.array([c for sample in samples for c in sample], np.int32)
    starts = np.concatenate([[0], np.cumsum([len(s) for s in samples])]).astype(np.int64)
    is_cut = np.array([cut_a, cut_b, cut_a, cut_b])
    pairs = np.array([(a, b) for a in range(4) for b in range(4)], np.int64)
    found = np.zeros(len(pairs), np.bool_)
    # a token that is no word in front of each word, and one behind all
    tokens = np.repeat(np.where(codes & 1, ~(codes >> 1), codes >> 1), 2).astype(np.int32)
    tokens[::2] = 4
    one_passage_apart(
        np.append(tokens, np.int32(~4)),
        2 * starts[:-1],
        np.diff(2 * starts) + (np.arange(4) == 3),
        is_cut,
        np.array([0, 1, 2, 3, -1], np.int32),
        has_digit,
        pairs[:, 0].copy(),
        pairs[:, 1].copy(),
        found,
    )
    slow = [
        is_near(samples[a], samples[b], bool(is_cut[b]), has_digit)
        or is_near(samples[b], samples[a], bool(is_cut[a]), has_digit)
        for a, b in pairs
    ]
    assert found.tolist() == slow
