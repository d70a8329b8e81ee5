"""The order of the draws: whole passes, exact totals, and the same stretch whoever asks for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit.training.course import Course
from gracekit.training.stream import Stream
from gracekit.types import Int64


def make_stream(size: int, weights: list[float] | None = None, seed: int = 0) -> Stream:
    of_rows = np.ones(10 * size, np.float32)
    if weights is not None:
        of_rows[::10] = weights
    return Stream(
        version=3,
        step=30,
        positions=10 * np.arange(size),
        weights=of_rows,
        repeats=weights is not None,
        seed=seed,
    )


def take(stream: Stream, start: int, stop: int) -> Int64:
    course, _ = Course.none(len(stream.weights)).taken(stream, start, start)
    return course.taken(stream, stop - start, stop - start)[1].positions


@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 60), st.booleans())
def test_a_stretch_is_the_same_however_it_is_cut(
    size: int, start: int, length: int, weighted: bool
) -> None:
    stream = make_stream(size, list(range(1, size + 1)) if weighted else None)
    whole = np.array([take(stream, i, i + 1)[0] for i in range(start, start + length)], np.int64)
    np.testing.assert_array_equal(take(stream, start, start + length), whole)
    course, parts = Course.none(10 * size), []
    for _ in range(start + length):
        course, taken = course.taken(stream, 1, 1)
        parts += taken.positions.tolist()
    assert parts[start:] == whole.tolist()
    used = np.bincount(np.array(parts, np.int64), minlength=10 * size)
    np.testing.assert_array_equal(course.now().uses, used)
    assert not course.now().owed.any()


@given(st.integers(1, 30), st.integers(0, 5))
def test_each_pass_has_every_sample_once(size: int, number: int) -> None:
    drawn = take(make_stream(size), number * size, (number + 1) * size)
    np.testing.assert_array_equal(np.sort(drawn), 10 * np.arange(size))


def test_weighted_passes_repeat_samples_by_weight() -> None:
    stream = make_stream(4, [1, 1, 2, 4])
    counts = np.bincount(take(stream, 0, 4000) // 10, minlength=4)
    np.testing.assert_allclose(counts, [500, 500, 1000, 2000], atol=60)
    assert counts[3] == 2000  # a whole number of copies a pass is met in every pass


@pytest.mark.parametrize("field", ["seed", "version", "pass"])
def test_another_seed_version_or_pass_is_another_order(field: str) -> None:
    stream = make_stream(50)
    other = {
        "seed": take(make_stream(50, seed=1), 0, 50),
        "version": take(dataclasses.replace(stream, version=4), 0, 50),
        "pass": take(stream, 50, 100),
    }[field]
    assert other.tolist() != take(stream, 0, 50).tolist()
