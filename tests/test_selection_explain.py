"""`selection.explain`: the numbers against the objective by its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gracekit.recipe import SelectionSection
from gracekit.selection.explain import Chosen, explain, percentile
from gracekit.types import Origin, Rows, Selection
from gracekit.version.outcomes import SelectionDetails
from tests.worlds import NUM_ROWS, World


def chosen_of(
    world: World, selection: Selection, settings: dict[str, Any], parent: Rows | None = None
) -> Chosen:
    return Chosen(
        settings=SelectionSection(**{"selector": "coverage", **settings}),
        details=SelectionDetails.model_validate(selection.details),
        rows=selection.rows,
        gains=selection.gains,
        inputs=world.inputs(parent),
    )


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_gain_and_coverer_are_those_of_the_definition(penalty: float) -> None:
    world = World.make(1)
    settings: dict[str, Any] = {"count": 12, "importance_weight": 0.4, "churn_penalty": penalty}
    parent = np.arange(20)
    selection = world.select(parent=parent, **settings)
    chosen = chosen_of(world, selection, settings, parent)
    rows = selection.rows.tolist()
    similarities = world.similarities + np.eye(NUM_ROWS)
    importance = world.scores.importance.astype(np.float64)

    def objective(some: list[int]) -> float:
        units = selection.details
        kept = units["kept_unit"] * len(set(some) & set(parent.tolist()))
        covered = similarities[some].max(axis=0).sum()
        return float(
            units["importance_unit"] * importance[some].sum()
            + units["coverage_unit"] * covered
            + kept
        )

    covered_by_selected = 0
    for row in range(NUM_ROWS):
        found = explain(row, chosen)
        best = similarities[rows, row].max()
        assert found.similarity == pytest.approx(best)
        if row in rows:
            assert found.gain_if_added is None
            assert f"number {rows.index(row) + 1} of 12" in found.reason
            covered_by_selected += found.num_covered
        else:
            added = objective([*rows, row]) - objective(rows)
            assert found.gain_if_added == pytest.approx(added, abs=1e-6)
            assert found.gain_if_added <= selection.gains.min() + 1e-6
            assert (found.covered_by is None) == (best == 0)
    assert covered_by_selected == NUM_ROWS - selection.details["num_uncovered"]


def test_reasons_name_what_kept_a_sample_out() -> None:
    world = World.make(0)
    world.similarities[:] = 0
    world.similarities[1, 2] = world.similarities[2, 1] = 0.99
    world.scores.importance[[1, 2]] = 0.5, 0.4
    world.scores.importance[9] = 2.0
    world.scores.origin[3] = Origin.NEVER
    world.samples.num_response_tokens[4] = 0
    ids = world.samples.sample_ids
    settings: dict[str, Any] = {
        "count": 30, "max_similarity": 0.9, "drop_hardest": 0.02, "never_in": (ids[5],),
        "always_in": (ids[6],), "group_quota": "equal",
    }  # fmt: skip
    chosen = chosen_of(world, world.select(**settings), settings)
    reasons = [explain(row, chosen).reason for row in range(NUM_ROWS)]
    assert "near-duplicate" in reasons[2]
    assert "its score is never" in reasons[3]
    assert "no token to train on" in reasons[4]
    assert reasons[5] == "never in: listed"
    assert reasons[6] == "always in: listed"
    assert "among the hardest 2%" in reasons[9]
    assert sum("quota of 10 is full" in reason for reason in reasons) > 5
    settings = {"selector": "random", "count": 10}
    chosen = chosen_of(world, world.select(**settings), settings)
    out = next(r for r in range(10, NUM_ROWS) if r not in chosen.rows)
    assert explain(out, chosen).reason == "selector random preferred others"


def test_percentile_is_among_the_scored() -> None:
    world = World.make(0)
    world.scores.importance[:] = np.arange(NUM_ROWS) / 100
    world.scores.origin[59] = Origin.NEVER
    assert percentile(0, world.scores) == 0
    assert percentile(58, world.scores) == pytest.approx(100 * 58 / 59)
    assert percentile(59, world.scores) is None
