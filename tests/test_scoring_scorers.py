"""Names of scores, length correction, importance: all that needs no model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import rankdata

from gracekit import scores
from gracekit.errors import RecipeError
from gracekit.model_pass.features import FEATURES
from gracekit.model_pass.scorers import SCORERS, build_scorers, scorer_class
from gracekit.protocols import FeatureReader, Scorer
from gracekit.recipe import LengthCorrection, Recipe, ScoringSection
from gracekit.recipe.score_columns import RESERVED, column_name, shared_column
from gracekit.rounding import to_float16
from gracekit.scores.importance import corrected_score, importance
from gracekit.scores.length import correct_length, ranks_within
from gracekit.scores.meaning import MEANINGS, ScoreMeaning, score_meaning

PLUGIN = """
from gracekit.protocols import Scorer

class Longest(Scorer):
    shrinks_with_length = False

    def finish(self, batch):
        return batch.num_targets.float()

class NotAScorer:
    pass

class OddScale(Longest):
    scale = "cubic"

longest = Longest()
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_scores.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scores", raising=False)
    return "my_scores"


def test_every_name_builds_what_it_says() -> None:
    built = build_scorers(SCORERS)
    assert list(built) == list(SCORERS)
    assert all(isinstance(scorer, Scorer) for scorer in built.values())
    assert all(isinstance(features(), FeatureReader) for features in FEATURES.values())
    assert set(ScoringSection().scores) <= set(SCORERS)


def test_own_class_is_built_by_its_path(plugin: str) -> None:
    name = f"{plugin}:Longest"
    assert list(build_scorers(["loss", name])) == ["loss", name]
    assert score_meaning(name) == ScoreMeaning(scale="linear")
    signed = {name for name, scorer in SCORERS.items() if scorer.scale == "linear"}
    assert signed == {
        *("delta-loss", "delta-loss-first", "influence", "influence-dot"),
        *("margin", "pair-margin"),
    }


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("loss", "Loss"), "'loss' and 'Loss' would share the column loss"),
        (
            ("my_scores:Long_est", "my_scores:Long-est"),
            "'my_scores:Long_est' and 'my_scores:Long-est' would share the column "
            "my_scores_long_est",
        ),
        (("Importance", "score-importance"), "would share the column score_importance"),
        (("loss", "loss"), "scores names 'loss' twice"),
    ],
)
def test_scores_that_would_share_a_column_are_refused_in_the_recipe(
    tmp_path: Path, names: tuple[str, str], says: str
) -> None:
    content = {
        "data": {"path": "train.jsonl"},
        "scoring": {"scores": ["gradient-norm", *names]},
    }
    with pytest.raises(RecipeError, match=f"scoring: .*{says}.*; leave one out"):
        Recipe.from_dict(content)
    path = tmp_path / "gracekit.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=says):
        Recipe.load(path)


@given(st.lists(st.sampled_from([*SCORERS, "row", "Row", "a:B", "a-b", "A_B"]), unique=True))
def test_columns_of_a_recipe_are_distinct_and_not_reserved(names: list[str]) -> None:
    columns = [column_name(name) for name in names]
    assert not RESERVED & {*columns}
    assert (shared_column(names) is None) == (len({*columns}) == len(names))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gradient", "there are adam-norm, .*gradient-norm, .*, loss, "),
        ("no_such_package:Score", "cannot import.*PYTHONPATH"),
        (":Score", "cannot import"),
        ("my_scores:Missing", "my_scores has no 'Missing'"),
        ("my_scores:NotAScorer", "lacks shrinks_with_length, scale.*derive it from"),
        ("my_scores:OddScale", "scale is 'cubic'; set it to 'log'"),
        ("my_scores:longest", "is not a class"),
    ],
)
def test_wrong_names_say_what_to_do(plugin: str, name: str, message: str) -> None:
    for ask in (scorer_class, score_meaning):
        with pytest.raises(RecipeError, match=message):
            ask(name)


def test_the_classes_say_what_the_table_of_meanings_says() -> None:
    assert MEANINGS.keys() == SCORERS.keys()
    for name, scorer in SCORERS.items():
        facts = {field.name: getattr(scorer, field.name) for field in fields(ScoreMeaning)}
        assert ScoreMeaning(**facts) == score_meaning(name), name


def test_name_given_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="'loss' twice"):
        build_scorers(["loss", "loss"])


def test_what_scores_mean_loads_without_torch() -> None:
    modules = [f"gracekit.scores.{path.stem}" for path in Path(scores.__path__[0]).glob("[!_]*.py")]
    assert "gracekit.scores.importance" in modules
    code = (
        f"import sys, gracekit.rounding, gracekit.recipe, {', '.join(modules)}\n"
        "heavy = {'torch', 'transformers', 'scipy', 'datasets', 'duckdb', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_root_correction_multiplies_by_the_root_of_length() -> None:
    scores = np.array([1, 2, np.nan, 4], np.float32)
    corrected = correct_length(scores, np.array([1, 4, 9, 16], np.int32), "sqrt")
    np.testing.assert_array_equal(corrected, np.array([1, 4, np.nan, 16], np.float32))
    assert corrected.dtype == np.float32


def test_no_correction_returns_a_copy() -> None:
    scores = np.array([1, 2], np.float32)
    same = correct_length(scores, np.array([1, 4], np.int32), "none")
    assert same is not scores
    np.testing.assert_array_equal(same, scores)


@pytest.mark.parametrize("how", ["sqrt", "bins"])
def test_correction_takes_the_effect_of_length_out(how: LengthCorrection) -> None:
    random = np.random.default_rng(0)
    num_targets = np.clip(random.lognormal(3, 1, 4000), 1, 500).astype(np.int32)
    signal = random.lognormal(0, 0.3, 4000)
    scores = (signal / np.sqrt(num_targets)).astype(np.float32)
    corrected = correct_length(scores, num_targets, how)

    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])

    assert correlation(scores, num_targets) < -0.7
    assert abs(correlation(corrected, num_targets)) < 0.05
    assert correlation(corrected, signal) > 0.9


@pytest.mark.parametrize("n", [0, 1, 7])
def test_bins_take_few_rows_and_keep_nan(n: int) -> None:
    scores = np.arange(n, dtype=np.float32)
    scores[:1] = np.nan
    corrected = correct_length(scores, np.ones(n, np.int32), "bins")
    assert np.isnan(corrected[:1]).all()
    assert (np.diff(corrected[1:]) > 0).all()


finite_scores = arrays.arrays(
    np.float32, st.integers(1, 40), elements=st.integers(-5, 5).map(float)
)


@given(finite_scores, st.data())
def test_ranks_within_labels_against_a_loop(values: np.ndarray, data: st.DataObject) -> None:
    labels = np.array(
        data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values))),
        np.int32,
    )
    found = ranks_within(values, labels)
    for label in set(labels.tolist()):
        members = labels == label
        expected = (rankdata(values[members]) - 0.5) / members.sum()
        np.testing.assert_allclose(found[members], expected)
        assert found[members].mean() == pytest.approx(0.5)


def test_importance_ranks_within_groups_and_drops_what_is_not_finite() -> None:
    corrected = np.array([1, 2, np.nan, 100, 300, 300, np.inf], np.float32)
    groups = np.array([0, 0, 0, 1, 1, 1, 1], np.int32)
    within = importance(corrected, groups=groups)
    np.testing.assert_allclose(within, [1 / 4, 3 / 4, 0, 1 / 6, 2 / 3, 2 / 3, 0], rtol=1e-6)
    among_all = importance(corrected, groups=None)
    np.testing.assert_allclose(among_all, [0.1, 0.3, 0, 0.5, 0.8, 0.8, 0], rtol=1e-6)
    assert importance(corrected[:0], groups=None).shape == (0,)


def test_only_scores_that_shrink_are_corrected() -> None:
    score = np.array([1, 2], np.float32)
    num_targets = np.array([4, 9], np.int32)
    scores = {"gradient-norm": score, "loss": score}
    by_norm = corrected_score(scores, num_targets, ScoringSection())
    by_loss = corrected_score(scores, num_targets, ScoringSection(importance="loss"))
    np.testing.assert_array_equal(by_norm, [2, 6])
    np.testing.assert_array_equal(by_loss, [1, 2])


def test_float16_features_are_cut_to_the_range_and_rows_not_finite_become_nan() -> None:
    features = np.array([[1.5, 1e6], [-1e6, 0], [np.nan, 1], [np.inf, 1]], np.float32)
    found = to_float16(features)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found[:2], [[1.5, 65504], [-65504, 0]])
    assert np.isnan(found[2:]).all()
