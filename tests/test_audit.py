"""The audit's numbers against SciPy and by hand, and on degenerate input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from gracekit.audit import audit, rank_correlation
from gracekit.refresher.budget import next_round, next_start
from gracekit.types import Float32
from gracekit.version.outcomes import Audit

SEEDS = st.integers(0, 999)


def make_audit(predicted: Float32, measured: Float32, **changes: object) -> Audit:
    p = len(predicted)
    eye = np.eye(p, 3, dtype=np.float32)
    features = {"predicted_features": eye, "measured_features": eye, "stale_features": eye}
    return audit(
        **{  # type: ignore[arg-type]
            "predicted": predicted,
            "measured": measured,
            "stale": np.zeros(p, np.float32),
            "centre": np.zeros(3, np.float32),
            "num_measured": 50,
            "num_rows": 200,
            "variance": 1.25,
            "calibration": 1.0,
            "target": 0.9,
            **features,
            **changes,
        }
    )


@given(n=st.integers(3, 40), levels=st.integers(2, 40), seed=st.integers(0, 999))
def test_rank_correlation_is_scipys(n: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, levels, (2, n)).astype(np.float32)
    a[0], b[0] = np.nan, np.inf
    if np.ptp(a[1:]) > 0 and np.ptp(b[1:]) > 0:
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a[1:], b[1:]).statistic)
    else:
        assert rank_correlation(a, b) == 0.0


@pytest.mark.parametrize(
    "a, b",
    [([], []), ([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0]), ([np.nan] * 3, [1.0, 2.0, 3.0])],
)
def test_rank_correlation_of_nothing_is_zero(a: list[float], b: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rank_correlation(np.array(a), np.array(b)) == 0.0


def test_audit_by_hand() -> None:
    result = make_audit(
        np.array([1, 2, 3, 4], np.float32),
        np.array([1, 3, 2, 5], np.float32),
        stale=np.array([4, 3, 2, 1], np.float32),
    )
    assert result.num_probe == 4 and result.num_measured == 50 and result.rounds == 1
    assert result.rank_correlation == pytest.approx(0.8)
    assert result.rank_correlation_stale == pytest.approx(-0.8)
    assert result.rank_correlation_all == pytest.approx(1 - 0.75 * 0.75 / 2.5)
    assert result.mean_abs_error == pytest.approx(0.75)
    assert result.mean_error == pytest.approx((1 - 1 + 2 - 3 + 3 - 2 + 4 - 5) / 4)
    assert result.mean_abs_error_stale == pytest.approx(1.75)
    assert not result.target_met


def test_features_are_compared_around_the_centre() -> None:
    rng = np.random.default_rng(0)
    measured = rng.normal(size=(20, 3)).astype(np.float32)
    result = make_audit(
        np.arange(20, dtype=np.float32),
        np.arange(20, dtype=np.float32),
        measured_features=measured + 100,
        predicted_features=2 * measured + 100,
        stale_features=-measured + 100,
        centre=np.full(3, 100, np.float32),
    )
    assert result.feature_cosine == pytest.approx(1, abs=1e-3)
    assert result.feature_cosine_stale == pytest.approx(-1, abs=1e-3)
    assert result.target_met


def test_what_is_not_finite_is_left_out() -> None:
    values = np.array([0, 1, np.nan, np.inf, -np.inf, 2], np.float32)
    features = np.ones((6, 3), np.float32)
    features[2] = np.nan
    result = make_audit(values, values, predicted_features=features, measured_features=features)
    assert result.rank_correlation == pytest.approx(1) and result.mean_abs_error == 0
    assert result.feature_cosine == pytest.approx(1)


def test_no_probe_gives_zeros() -> None:
    result = make_audit(np.zeros(0, np.float32), np.zeros(0, np.float32))
    assert result.num_probe == 0 and not result.target_met
    assert result.rank_correlation == result.mean_abs_error == result.feature_cosine == 0
    assert result.rank_correlation_all == 0.25


def test_a_probe_that_cannot_be_compared_says_nothing_of_the_others() -> None:
    result = make_audit(np.full(3, np.nan, np.float32), np.zeros(3, np.float32))
    assert result.rank_correlation_all == 0.25 and not result.target_met


@given(n=st.integers(200, 400), share=st.floats(0.05, 0.9), noise=st.floats(0.05, 3), seed=SEEDS)
def test_rank_correlation_over_all_is_what_the_probe_says_of_the_others(
    n: int, share: float, noise: float, seed: int
) -> None:
    """With all others as probe it is Spearman over everything, but for the few places that measured
    rows lose or win because others are misplaced.
    """
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n)
    rows = rng.permutation(n)[round(share * n) :]
    estimate = truth.copy()
    estimate[rows] += noise * rng.normal(size=len(rows))
    x, y = ((rankdata(v) - 0.5) / n for v in (estimate, truth))
    result = make_audit(
        x[rows].astype(np.float32),
        y[rows].astype(np.float32),
        num_measured=n - len(rows),
        num_rows=n,
        variance=float(y.var()),
    )
    over_all = spearmanr(x, y).statistic
    assert -1e-6 <= result.rank_correlation_all - over_all <= 0.1 * (1 - over_all) + 0.002


@given(
    over_all=st.floats(-0.5, 0.999),
    target=st.floats(0, 1),
    num_measured=st.integers(1, 999),
)
def test_next_round_goes_most_of_the_way_to_what_is_needed(
    over_all: float, target: float, num_measured: int
) -> None:
    nothing = np.zeros(3, np.float32)
    changes = {"num_measured": num_measured, "rank_correlation_all": over_all, "target": target}
    result = make_audit(nothing, nothing).model_copy(update=changes)
    wanted = next_round(result, 1000)
    assert num_measured < wanted <= min(1000, 2 * num_measured)
    if wanted in (min(num_measured + 5, 1000), 2 * num_measured):
        return  # as few or as many as a round adds
    # How many reach the target if the others are foretold no better then.
    needed = 1000 - (1 - target) * (1000 - num_measured) / (1 - over_all)
    assert 0.8 * (needed - num_measured) - 1e-6 <= wanted - num_measured < needed + 1 - num_measured
    assert wanted >= needed - 1e-6 or needed - num_measured > 20


def test_the_next_refresh_starts_with_less_than_this_one_needed() -> None:
    values = np.zeros(3, np.float32)
    result = make_audit(values, values).model_copy(update={"num_measured": 400, "target": 0.9})
    # 600 rows leave .08, so .1 is left by 750: 250 rows were needed.
    enough = result.model_copy(update={"rank_correlation_all": 0.92})
    assert next_start(enough, 400, 1000) == 200
    assert next_start(result.model_copy(update={"rank_correlation_all": 0.99}), 400, 1000) == 0
    assert next_start(result.model_copy(update={"rank_correlation_all": 0.2}), 400, 1000) == 500
    assert next_start(None, 400, 1000) == 320
    # Everything had to be measured: that nothing is left is no sign that few rows do.
    all_of_them = result.model_copy(update={"num_measured": 1000, "rank_correlation_all": 1.0})
    assert next_start(all_of_them, 1000, 1000) == 500
