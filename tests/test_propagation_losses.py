"""What the trainer saw of losses, as evidence of how scores changed: a ridge regression, gated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracekit.propagation import propagate_scores
from gracekit.propagation.ridge import PENALTIES, fit_ridge
from gracekit.recipe import PropagationSection
from gracekit.types import Float32
from tests.test_propagation import N, world

SETTINGS = PropagationSection(min_measured=100)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(5, 40), st.integers(1, 3))
def test_the_penalty_is_the_one_by_which_each_row_is_best_left_out(
    seed: int, m: int, c: int
) -> None:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(m, c)).astype(np.float32)
    change = inputs @ rng.normal(size=c) * rng.choice([0.0, 0.3, 3]) + rng.normal(size=m)
    at = inputs.astype(np.float64)
    at = (at - at.mean(axis=0)) / at.std(axis=0)
    centred = change - change.mean()

    def weights(penalty: float) -> Any:
        return np.linalg.solve(at.T @ at + penalty * m * np.eye(c), at.T @ centred)

    def error(penalty: float) -> float:
        hat = at @ np.linalg.inv(at.T @ at + penalty * m * np.eye(c)) @ at.T + 1 / m
        return float((((change - hat @ change) / (1 - np.diagonal(hat))) ** 2).mean())

    best = weights(min(PENALTIES, key=error))
    fit = fit_ridge(change, inputs)
    np.testing.assert_allclose(fit.weights, best, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(fit(inputs), change.mean() + at @ best, rtol=1e-5, atol=1e-6)
    outside = inputs[:1].copy()
    outside[0, 0] = 1e6
    highest = inputs[:1].copy()
    highest[0, 0] = inputs[:, 0].max()
    np.testing.assert_allclose(fit(outside), fit(highest))


def test_columns_that_do_not_vary_tell_nothing() -> None:
    fit = fit_ridge(np.arange(4.0), np.ones((4, 2), np.float32))
    assert fit(np.full((3, 2), 9, np.float32)).tolist() == [1.5] * 3
    assert len(fit.used) == 0


def carried(num_measured: int, told: float, seen: Float32 | None, seed: int = 0) -> Any:
    """Scores after a change that follows the losses by so much, and how far the others are off."""
    rng = np.random.default_rng(seed)
    losses = rng.normal(size=N)
    known = rng.random(N) < 0.8
    if seen is None:
        seen = np.stack([losses * known, known], axis=1).astype(np.float32)
    new = (world(N).old + 1 + told * losses + 0.5 * rng.normal(size=N)).astype(np.float32)
    rows = rng.permutation(N)[:num_measured]
    found = propagate_scores(
        "gated",
        old={"s": world(N).old},
        measured_rows=rows,
        new={"s": new[rows]},
        covariates=seen,
        seen=seen,
        directions=world(N).directions,
        graph=world(N).graph,
        usable=np.ones(N, bool),
        settings=SETTINGS,
        seed=seed,
    )
    rest = np.setdiff1d(np.arange(N), rows)
    return found, float(((found.values["s"] - new)[rest] ** 2).mean())


NOTHING = np.zeros((N, 0), np.float32)


@pytest.mark.parametrize(
    ("num_measured", "rule", "way"), [(40, "shift", "losses"), (150, "gated", "kernel")]
)
def test_losses_that_tell_the_change_are_used(num_measured: int, rule: str, way: str) -> None:
    found, error = carried(num_measured, 1.0, None)
    _, without = carried(num_measured, 1.0, NOTHING)
    gate = found.outcome.scores["s"]
    assert found.outcome.rule == rule and gate.used.startswith(way)
    assert error < 0.7 * without
    assert gate.held_out_rmse[way] < 0.8 * gate.held_out_rmse["shift"]


def test_losses_that_tell_nothing_are_left_alone() -> None:
    used = [carried(40, 0.0, None, seed)[0].outcome.scores["s"].used for seed in range(20)]
    assert sum(way == "losses" for way in used) <= 3


def test_below_thirty_measured_rows_nobody_tries() -> None:
    found, _ = carried(29, 3.0, None)
    assert set(found.outcome.scores["s"].held_out_rmse) == {"stale", "shift"}


@pytest.mark.parametrize("num_measured", [40, 150])
def test_without_losses_all_is_as_it_was(num_measured: int) -> None:
    found, _ = carried(num_measured, 1.0, NOTHING)
    assert not any("losses" in way for way in found.outcome.scores["s"].held_out_rmse)
