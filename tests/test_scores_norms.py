"""The norms that a draw expects: what the trainer averages over, and how sure they are."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit.recipe import ScoringSection
from gracekit.scores.importance import sample_importance, spread_out
from gracekit.scores.norms import expected_norms, has_norms, part_norms
from gracekit.scores.portable import exp, log
from gracekit.types import Float32, Float64, Origin, ScoreTable
from tests.worlds import World

SCORING = ScoringSection(importance="gradient-norm", scores=("gradient-norm", "loss"))


def table_of(norms: Float64, origin: Float64, confidence: Float64) -> ScoreTable:
    n = len(norms)
    return ScoreTable(
        scores={"gradient-norm": norms.astype(np.float32)},
        importance=np.linspace(0, 1, n, dtype=np.float32),
        origin=origin.astype(np.uint8),
        measured_step=np.zeros(n, np.int64),
        measured_version=np.ones(n, np.int64),
        confidence=confidence.astype(np.float32),
    )


def test_the_norm_is_that_of_the_rows_part_in_the_trainers_average() -> None:
    """Against gradients of tokens: their sum over the row, or their mean."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 50)
    tokens = [rng.normal(size=(n, 8)) for n in lengths]
    norms = np.array([np.linalg.norm(each.mean(axis=0)) for each in tokens])
    parts = {
        "tokens": [np.linalg.norm(each.sum(axis=0)) for each in tokens],
        "samples": [np.linalg.norm(each.mean(axis=0)) for each in tokens],
    }
    for loss, expected in parts.items():
        for correction in ("sqrt", "bins", "none"):  # it is for ranks only
            scoring = SCORING.model_copy(update={"loss": loss, "length_correction": correction})
            assert part_norms(norms, lengths.astype(np.int32), scoring) == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["tokens", "samples"])
@pytest.mark.parametrize("score", ["loss", "adam-norm"])
def test_what_does_not_shrink_with_length_adds_up_like_a_random_walk(score: str, loss: str) -> None:
    scoring = ScoringSection(importance=score, scores=("loss", "adam-norm")).model_copy(
        update={"loss": loss}
    )
    lengths = np.array([1, 4, 9, 0], np.int32)
    factor = [1, 2, 3, 1] if loss == "tokens" else [1, 1 / 2, 1 / 3, 1]
    found = part_norms(np.full(4, 5.0), lengths, scoring)
    assert found == pytest.approx(5 * np.array(factor))
    assert has_norms(scoring) and not has_norms(None)


@pytest.mark.parametrize("loss", ["tokens", "samples"])
def test_expected_second_moments_are_those_of_what_the_rows_turn_out_to_be(loss: str) -> None:
    """Carried-over logs that miss the truth by a normal error of the size they claim."""
    rng = np.random.default_rng(0)
    n, sd = 40_000, 0.9
    lengths = rng.integers(1, 40, n).astype(np.int32)
    error: Float64 = np.where(rng.random(n) < 0.3, 0.0, rng.uniform(0.1, sd, n))
    foretold = np.sqrt(sd**2 - error**2) * rng.normal(size=n)
    truth = foretold + error * rng.normal(size=n)
    origin = np.where(error == 0, Origin.MEASURED, Origin.PROPAGATED)
    confidence = np.asarray(1 - error / sd, np.float64)
    table = table_of(np.exp(foretold) / np.sqrt(lengths), origin, confidence)
    scoring = SCORING.model_copy(update={"loss": loss})
    found = expected_norms(table, lengths, scoring)
    true = part_norms(np.exp(truth) / np.sqrt(lengths), lengths, scoring)
    for some in (error == 0, (error > 0) & (error < 0.4), error > 0.6):
        assert (found[some] ** 2).sum() / (true[some] ** 2).sum() == pytest.approx(1, abs=0.06)
    assert found[error == 0] == pytest.approx(true[error == 0], rel=1e-5)


def test_a_row_that_was_never_measured_is_expected_to_be_like_the_others_of_its_length() -> None:
    rng = np.random.default_rng(1)
    n = 300
    lengths = rng.integers(1, 40, n).astype(np.int32)
    sizes = rng.lognormal(0, 0.7, n)
    origin = np.where(np.arange(n) < 20, Origin.NEVER, Origin.MEASURED)
    norms = np.where(np.arange(n) < 20, np.nan, sizes / np.sqrt(lengths))
    confidence = (np.arange(n) >= 20).astype(np.float64)
    found = expected_norms(table_of(norms, origin, confidence), lengths, SCORING)
    expected = math.sqrt(np.mean(sizes[20:] ** 2)) * np.sqrt(lengths)
    assert found[:20] == pytest.approx(expected[:20], rel=1e-5)


@given(st.integers(0, 999))
def test_norms_are_the_same_to_the_bit_in_every_order_of_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 50
    origin = rng.choice([Origin.MEASURED, Origin.PROPAGATED, Origin.NEVER], n)
    norms, lengths = rng.lognormal(0, 1, n), rng.integers(1, 40, n).astype(np.int32)
    confidence, order = rng.random(n), rng.permutation(n)
    found = expected_norms(table_of(norms, origin, confidence), lengths, SCORING)
    moved = table_of(norms[order], origin[order], confidence[order])
    assert expected_norms(moved, lengths[order], SCORING).tolist() == found[order].tolist()
    assert np.isfinite(found).all() and (found >= 0).all()


def test_an_error_beyond_all_measure_stays_a_number() -> None:
    norms = np.array([1e-30, 1e30, 1.0, 0.0])
    origin = np.array([Origin.MEASURED, Origin.MEASURED, Origin.PROPAGATED, Origin.PROPAGATED])
    found = expected_norms(
        table_of(norms, origin, np.array([1, 1, 0, 0])), np.ones(4, np.int32), SCORING
    )
    assert np.isfinite(found).all() and found[2] == pytest.approx(math.exp(4)) and found[3] == 0


# What has to be the same on every machine


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=20))
def test_portable_log(values: list[float]) -> None:
    for value, found in zip(values, log(np.array(values)).tolist(), strict=True):
        assert found == pytest.approx(math.log(value), rel=1e-14, abs=1e-15)


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=20))
def test_portable_exp(values: list[float]) -> None:
    for value, found in zip(values, exp(np.array(values)).tolist(), strict=True):
        assert found == pytest.approx(math.exp(value), rel=2e-13)


def test_portable_functions_do_as_exact_fractions_do() -> None:
    """The series of 1/8, added up exactly and rounded once."""
    terms = [Fraction(1, 8**k * math.factorial(k)) for k in range(25)]
    assert exp(np.array([0.125]))[0] == float(sum(terms))
    assert log(np.array([1.0, 2.0, 0.5])).tolist() == [0, math.log(2), -math.log(2)]


# Spread before ranks are made


def test_estimates_are_spread_out_around_the_mean_of_their_group_before_they_are_ranked() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=90).astype(np.float32)
    groups = rng.integers(0, 3, 90).astype(np.int32)
    rows = rng.random(90) < 0.7
    values[4] = np.nan
    found = spread_out(values, rows, groups, 1.5)
    np.testing.assert_array_equal(found[~rows], values[~rows])
    for group in range(3):
        some = rows & (groups == group) & np.isfinite(values)
        mean = values[some].mean()
        np.testing.assert_allclose(found[some] - mean, 1.5 * (values[some] - mean), atol=1e-6)


def test_neither_measured_scores_nor_orders_among_estimates_change_with_the_spread() -> None:
    world = World.make(n=90)
    rng = np.random.default_rng(0)
    norms: Float32 = rng.lognormal(0, 1, 90).astype(np.float32)
    carried = rng.random(90) < 0.7
    scores = {"gradient-norm": norms, "loss": norms}
    plain, wide = (
        sample_importance(scores, world.samples, SCORING, carried=carried, stretch=stretch)
        for stretch in (1.0, 2.0)
    )
    np.testing.assert_array_equal(plain, sample_importance(scores, world.samples, SCORING))
    for group in range(3):
        for kind in (carried, ~carried):
            some = kind & (world.samples.groups == group)
            assert np.argsort(plain[some]).tolist() == np.argsort(wide[some]).tolist()
    assert wide[carried].std() > plain[carried].std()
    assert wide[~carried].std() < plain[~carried].std()
