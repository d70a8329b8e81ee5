"""The space in which scores are propagated."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit.scores.working_values import SMALLEST, from_working, to_working

positive = st.floats(1e-6, 1e6)

PLUGIN = """
from gracekit.protocols import Scorer

class Margin(Scorer):
    shrinks_with_length = False

class Influence(Scorer):
    shrinks_with_length = True
"""


@pytest.fixture
def _own_scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_signed_scores.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_signed_scores", raising=False)


@given(st.lists(st.tuples(positive, st.integers(1, 5000)), min_size=1))
def test_there_and_back(pairs: list[tuple[float, int]]) -> None:
    score = np.array([p for p, _ in pairs], np.float32)
    num_targets = np.array([n for _, n in pairs], np.int32)
    scores = {"gradient-norm": score, "loss": score}
    back = from_working(to_working(scores, num_targets), num_targets)
    for name in scores:
        np.testing.assert_allclose(back[name], score, rtol=1e-4)


@pytest.mark.usefixtures("_own_scorers")
def test_scores_of_any_sign_survive() -> None:
    score = np.array([0.0, -1.5, 2e-9, 3.3, np.nan, np.inf], np.float32)
    num_targets = np.array([1, 4, 9, 16, 25, 36], np.int32)
    margin, influence = "my_signed_scores:Margin", "my_signed_scores:Influence"
    working = to_working({margin: score, influence: score}, num_targets)
    expected = score.copy()
    expected[5] = np.nan
    np.testing.assert_array_equal(working[margin], expected)
    np.testing.assert_allclose(working[influence], expected * np.sqrt(num_targets), rtol=1e-6)
    back = from_working(working, num_targets)
    for name in (margin, influence):
        assert back[name].dtype == np.float32
        np.testing.assert_allclose(back[name], expected, rtol=1e-6)


def test_length_is_taken_out_of_gradient_norms_only() -> None:
    num_targets = np.array([1, 4, 100], np.int32)
    score = np.array([8.0, 4.0, 0.8], np.float32)
    working = to_working({"gradient-norm": score, "loss": score}, num_targets)
    np.testing.assert_allclose(working["gradient-norm"], np.log(8.0), rtol=1e-6)
    np.testing.assert_allclose(working["loss"], np.log(score), rtol=1e-6)


def test_unknown_stays_unknown_and_zero_has_a_place() -> None:
    score = np.array([np.nan, np.inf, 0.0], np.float32)
    loss = to_working({"loss": score}, np.ones(3, np.int32))["loss"]
    assert np.isnan(loss[:2]).all()
    assert loss[2] == np.float32(np.log(SMALLEST))
