"""Greedy against two independent libraries, on precomputed similarities."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pytest

from gracekit.greedy import lazy_greedy
from gracekit.types import Float64
from tests.test_greedy import graph_of, random_weights, value


def ours(weights: Float64, budget: int) -> Any:
    n = len(weights)
    return lazy_greedy(
        graph_of(weights), modular=np.zeros(n), need=np.ones(n), budget=budget,
        order=np.arange(n), candidates=np.ones(n, bool),
    )  # fmt: skip


def problems() -> list[tuple[Float64, int]]:
    """Sparse and dense, with and without ties, with rows that nobody is joined to."""
    found = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(5, 60))
        density = [0.05, 0.2, 0.6, 1.0][seed % 4]
        weights = random_weights(rng, n, density, ties=seed % 3 == 0)
        found.append((weights, int(rng.integers(1, n))))
    return found


def test_apricot_naive_picks_the_same() -> None:
    from apricot import FacilityLocationSelection
    from scipy.sparse import csr_matrix

    for number, (weights, budget) in enumerate(problems()[:8]):  # it compiles anew each time
        result = ours(weights, budget)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = FacilityLocationSelection(budget, metric="precomputed", optimizer="naive")
            model.fit(csr_matrix(weights))
        need = np.ones(len(weights))
        theirs = value(weights, np.zeros(len(weights)), need, model.ranking.tolist())
        assert result.objective == pytest.approx(theirs, rel=1e-6), number
        assert result.gains == pytest.approx(np.asarray(model.gains), rel=1e-5, abs=1e-6), number
        if number % 3:  # no ties
            assert result.rows.tolist() == model.ranking.tolist(), number


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="submodlib-py has no wheel for it")
def test_submodlib_reaches_the_same() -> None:
    from submodlib import FacilityLocationFunction

    for number, (weights, budget) in enumerate(problems()):
        n = len(weights)
        result = ours(weights, budget)
        function = FacilityLocationFunction(
            n=n, mode="dense", sijs=weights.astype(np.float32), separate_rep=False
        )
        for optimizer in ("NaiveGreedy", "LazyGreedy"):
            picked = function.maximize(
                budget=budget, optimizer=optimizer, stopIfZeroGain=False,
                stopIfNegativeGain=False, show_progress=False,
            )  # fmt: skip
            rows = [row for row, _ in picked]
            theirs = value(weights, np.zeros(n), np.ones(n), rows)
            # Ties may be broken otherwise, and then the ways part: both are greedy.
            tolerance = 0.02 if number % 3 == 0 else 1e-5
            assert result.objective == pytest.approx(theirs, rel=tolerance), (number, optimizer)
