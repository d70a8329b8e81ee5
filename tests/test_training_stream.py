"""The order of the draws: whole passes, exact totals, and the same stretch whoever asks for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit.training.stream import Stream
from gracekit.types import Float64


def normalised(values: list[float]) -> Float64:
    weights = np.array(values)
    scaled: Float64 = weights * (len(weights) / weights.sum())
    return scaled


def make_stream(size: int, weights: Float64 | None = None, seed: int = 0) -> Stream:
    return Stream(version=3, step=30, positions=10 * np.arange(size), weights=weights, seed=seed)


@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 60), st.booleans())
def test_a_stretch_is_the_same_however_it_is_cut(
    size: int, start: int, length: int, weighted: bool
) -> None:
    stream = make_stream(size, normalised(list(range(1, size + 1))) if weighted else None)
    whole = np.array([stream.take(i, i + 1)[0] for i in range(start, start + length)], np.int64)
    np.testing.assert_array_equal(stream.take(start, start + length), whole)


@given(st.integers(1, 30), st.integers(0, 5))
def test_each_pass_has_every_sample_once(size: int, number: int) -> None:
    drawn = make_stream(size).take(number * size, (number + 1) * size)
    np.testing.assert_array_equal(np.sort(drawn), 10 * np.arange(size))


def test_weighted_passes_repeat_samples_by_weight() -> None:
    stream = make_stream(4, normalised([1, 1, 2, 4]))
    counts = np.bincount(stream.take(0, 4000) // 10, minlength=4)
    np.testing.assert_allclose(counts, [500, 500, 1000, 2000], atol=60)
    assert counts[3] == 2000  # a whole number of copies a pass is met in every pass


@pytest.mark.parametrize("field", ["seed", "version", "pass"])
def test_another_seed_version_or_pass_is_another_order(field: str) -> None:
    stream = make_stream(50)
    other = {
        "seed": make_stream(50, seed=1).take(0, 50),
        "version": Stream(
            version=4, step=30, positions=stream.positions, weights=None, seed=0
        ).take(0, 50),
        "pass": stream.take(50, 100),
    }[field]
    assert other.tolist() != stream.take(0, 50).tolist()
