"""With equal truth it does not matter for selection whether a row was measured or carried over."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from benchmarks.replay import Run, refreshed
from gracekit.protocols import SelectionInputs
from gracekit.recipe import Recipe, ScoringSection, SelectionSection
from gracekit.refresher.step import Refreshed
from gracekit.scores.working_values import to_working
from gracekit.selection import select
from gracekit.types import Float64, Origin
from tests.stores import make_samples

N = 600
SEEDS = range(4)


def recipe(seed: int, fraction: float, rule: str) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"path": "-"},
            "seed": seed,
            "refresh": {"min_fraction": fraction, "max_fraction": fraction, "min_probe": 20},
            "propagation": {"rule": rule},
            "selection": {"selector": "top"},
        }
    )


@cache
def run_where(kind: str) -> Run:
    """Two checkpoints of a run: all norms move by one factor, or each group's by its own."""
    rng = np.random.default_rng(3)
    samples = make_samples(N)
    cluster = rng.integers(0, 15, N)
    features = rng.normal(size=(15, 8))[cluster] + 0.3 * rng.normal(size=(N, 8))
    num_groups = int(samples.groups.max()) + 1
    factor = {
        "all move": np.full(N, 0.4),
        "groups move": np.exp(np.linspace(-1.2, 0.3, num_groups))[samples.groups],
        "all come together": np.ones(N),
    }[kind]
    norms = rng.lognormal(0, 0.8, N)
    after = factor * norms ** (0.5 if kind == "all come together" else 1)
    both = np.array([norms, after * np.exp(0.15 * rng.normal(size=N))], np.float32)
    exact: dict[str, Any] = {
        "gradient-norm": both / np.sqrt(samples.num_response_tokens),
        "loss": both,
    }
    working = [
        to_working({s: each[c] for s, each in exact.items()}, samples.num_response_tokens)
        for c in (0, 1)
    ]
    return Run(
        steps=np.array([10, 20]),
        exact=exact,
        working={s: np.stack([each[s] for each in working]) for s in exact},
        features=np.array([features, features + 0.02 * rng.normal(size=(N, 8))], np.float16),
        samples=samples,
        dense_steps=np.zeros(0),
        dense=np.zeros((0, 0)),
    )


def chances(table: Refreshed, selector: str) -> Float64:
    inputs = SelectionInputs(
        scores=table.scores, samples=table.samples, graph=table.graph, features=table.features,
        scoring=ScoringSection(),
    )  # fmt: skip
    chosen = select(SelectionSection(selector=selector, fraction=0.3), inputs, seed=0, version=1)
    if chosen.draw is not None:
        return chosen.draw.probabilities
    found = np.zeros(N)
    found[chosen.rows] = 1
    return found


@cache
def tables(kind: str, fraction: float, rule: str) -> list[tuple[Refreshed, Refreshed]]:
    """With a share measured, and with all, for every seed."""
    run, found = run_where(kind), []
    for seed in SEEDS:
        asked = recipe(seed, fraction, rule)
        last = refreshed(run, asked, 0, None).as_last(None)
        found.append((refreshed(run, asked, 1, last), refreshed(run, asked, 1, None)))
    return found


def differences(kind: str, fraction: float, rule: str, selector: str) -> Float64:
    """[seeds] share selected of the measured rows less that of the others, less the exact one."""
    found = []
    for after, exact in tables(kind, fraction, rule):
        measured = after.scores.origin == Origin.MEASURED
        extra = chances(after, selector) - chances(exact, selector)
        found.append(extra[measured].mean() - extra[~measured].mean())
    return np.array(found)


@pytest.mark.parametrize("selector", ["balanced", "top", "coverage"])
@pytest.mark.parametrize(
    "kind, fraction",
    [("all move", 0.1), ("all move", 0.3), ("groups move", 0.3), ("all come together", 0.3)],
)
def test_origin_does_not_decide(kind: str, fraction: float, selector: str) -> None:
    found = differences(kind, fraction, "gated", selector)
    m = fraction * N
    by_chance = np.sqrt(0.3 * 0.7 * (1 / m + 1 / (N - m)))
    assert np.abs(found).max() < 1.5 * by_chance
    assert abs(found.mean()) < max(0.03, by_chance / np.sqrt(len(found))), found


@pytest.mark.parametrize("kind", ["all move", "groups move"])
def test_it_does_where_rows_stay_as_they_were(kind: str) -> None:
    """Rule `none` leaves rows on the old level, as it should: what the test above would see."""
    assert differences(kind, 0.3, "none", "top").mean() < -0.1


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_what_the_version_says_of_the_level(fraction: float) -> None:
    for after, _ in tables("all move", fraction, "gated"):
        propagation: Any = after.outcome.propagation
        gate = propagation.scores.scores["gradient-norm"]
        assert propagation.scores.rule == ("shift" if fraction == 0.1 else "gated")
        assert gate.shift == pytest.approx(np.log(0.4), abs=0.05)
        assert gate.held_out_rmse["shift"] == pytest.approx(0.15, abs=0.05)
        assert gate.held_out_rmse["stale"] > 0.8
        others = after.scores.origin != Origin.MEASURED
        assert (after.scores.origin[others] == Origin.PROPAGATED).all()
        assert (after.scores.confidence[others] > 0.7).all()
        assert after.audit is not None and after.audit.rank_correlation_all > 0.9
