"""Whole copies of weighted samples: each weight rounded down or up, the total kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit.rounding import ONE, rounded, unrounded, whole_copies
from gracekit.types import Float32, Float64

WEIGHTS = np.array([0.2, 0.5, 0.9, 1.1, 2.3, 1.0])


class Offset(np.random.Generator):
    """Draws the same number whenever one is asked for."""

    def __init__(self, offset: float) -> None:
        super().__init__(np.random.PCG64(0))
        self._offset = offset

    def random(self, *_: object, **__: object) -> float:  # type: ignore[override]
        return self._offset


def normalised(values: list[float]) -> Float64:
    weights = np.array(values)
    scaled: Float64 = weights * (len(weights) / weights.sum())
    return scaled


def require_rounded(weights: Float32 | Float64, random: np.random.Generator) -> None:
    copies = whole_copies(weights, random)
    assert copies.dtype == np.int64
    assert copies.sum() == len(weights)
    assert (copies >= np.floor(weights - 1e-4)).all()
    assert (copies <= np.ceil(weights + 1e-4)).all()


@given(
    st.lists(st.just(0.0) | st.floats(0.01, 50.0), max_size=60),
    st.floats(0.01, 50.0),
    st.integers(0, 100),
)
def test_copies_are_the_weights_rounded_and_keep_the_total(
    values: list[float], last: float, seed: int
) -> None:
    weights = normalised([*values, last])
    require_rounded(weights, np.random.default_rng(seed))
    require_rounded(weights.astype(np.float32), np.random.default_rng(seed))


@pytest.mark.parametrize("offset", [0.0, 0.5, np.nextafter(1.0, 0.0)])
def test_no_offset_makes_a_copy_too_many(offset: float) -> None:
    for zeros in range(20):
        require_rounded(normalised([1 / 3] * 30 + [0.0] * zeros), Offset(float(offset)))


def test_whole_weights_stay() -> None:
    weights = np.array([0, 3, 1, 0, 2, 0], np.float32)
    for seed in range(10):
        assert whole_copies(weights, np.random.default_rng(seed)).tolist() == weights.tolist()


def test_copies_are_right_on_average() -> None:
    random = np.random.default_rng(0)
    mean = np.mean([whole_copies(WEIGHTS, random) for _ in range(4000)], axis=0)
    # Standard error below 0.008.
    assert np.abs(mean - WEIGHTS).max() < 0.04


def test_the_same_seed_gives_the_same_copies() -> None:
    one, two = (whole_copies(WEIGHTS, np.random.default_rng(7)) for _ in range(2))
    assert one.tolist() == two.tolist()


@given(
    n=st.integers(0, 30),
    d=st.integers(1, 300),
    spread=st.floats(0, 5),
    seed=st.integers(0, 99),
)
def test_rounded_directions_are_near_and_their_products_stay_in_int32(
    n: int, d: int, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    unit = (rng.normal(size=(n, d)) * np.exp(spread * rng.normal(size=d))).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    unit[::5] = 0
    whole = rounded(unit)
    assert whole.dtype == np.int16 and rounded(whole) is whole
    again = unrounded(whole)
    assert again.dtype == np.float32 and unrounded(again) is again
    np.testing.assert_allclose(again, unit, atol=(0.51 + np.sqrt(d) / 2) / ONE)
    np.testing.assert_allclose(np.linalg.norm(again, axis=1), unit.any(axis=1), atol=1e-6)
    np.testing.assert_array_equal(unrounded(whole[None, ::-1])[0, ::-1], again)
    assert not again[::5].any()
    exact = whole.astype(np.int64)
    partial = np.abs(np.cumsum(exact[:, None] * exact[None], axis=2))
    assert (partial <= (ONE + np.sqrt(d)) ** 2).all() and (ONE + np.sqrt(d)) ** 2 < 2**31
    np.testing.assert_allclose(again @ again.T, unit @ unit.T, atol=2 * np.sqrt(d) / ONE)
