"""Features at most so wide: the projection, and stores that were made with another width."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gracekit.model_pass.features import EmbeddingMean, HiddenMean
from gracekit.model_pass.projection import projection
from gracekit.protocols import Reader
from gracekit.recipe import Recipe, ScoringSection
from gracekit.refresher.flow import Refresher, refresh
from gracekit.store import Store
from gracekit.version.header import Header, Settings
from tests.test_scoring_pass import make_samples, run, tiny
from tests.tiny import tiny_recipe, write_checkpoint, write_data

WIDE = 32
"""Hidden width of the tiny models."""


def test_orthogonal_directions_keep_inner_products_better_than_signs() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 576)).astype(np.float32)
    exact = vectors @ vectors.T
    errors = {}
    for way in ("orthogonal", "signs"):
        narrow = vectors @ projection(way, 576, 256, 0, "hidden")
        errors[way] = np.abs(narrow @ narrow.T - exact)[~np.eye(200, dtype=bool)]
        assert np.mean(narrow @ narrow.T - exact) == pytest.approx(0, abs=1.0)
    assert errors["orthogonal"].mean() < 0.85 * errors["signs"].mean()  # .745 in theory
    directions = projection("orthogonal", 576, 256, 0, "hidden")
    np.testing.assert_allclose(directions.T @ directions, np.eye(256) * 576 / 256, atol=1e-5)


def test_directions_are_orthonormal_where_signs_are_dependent() -> None:
    for seed in range(60):
        directions = projection("orthogonal", 9, 8, seed, "hidden")
        np.testing.assert_allclose(directions.T @ directions, np.eye(8) * 9 / 8, atol=1e-5)


def test_projection_is_the_same_in_every_process_and_release() -> None:
    code = (
        "from gracekit.model_pass.projection import projection\n"
        "matrix = projection('orthogonal', 40, 12, 3, 'embedding')\n"
        "print([round(float(x), 4) for x in matrix[::13, ::5].ravel()])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == PINNED
    other = projection("orthogonal", 40, 12, 4, "embedding")
    assert not np.allclose(other, projection("orthogonal", 40, 12, 3, "embedding"))


PINNED = (
    "[-0.2887, 0.2629, 0.4467, 0.2887, "
    "-0.2019, 0.3104, 0.2887, -0.1783, -0.2615, -0.2887, -0.1898, 0.1637]"
)


@pytest.mark.parametrize("kind", [EmbeddingMean, HiddenMean])
def test_narrower_models_are_left_as_they_are(kind: type[Any]) -> None:
    default = kind(ScoringSection())
    assert (default.width(576), default.width(256), default.width(WIDE)) == (256, 256, WIDE)
    assert kind(ScoringSection(feature_width=None)).width(576) == 576
    earlier = kind(ScoringSection(feature_width=64, feature_projection="signs"))
    assert earlier.width(WIDE) == 64  # as stores of earlier releases have them


def test_hidden_means_are_projected_onto_the_directions() -> None:
    model, samples = tiny("llama"), make_samples((9, 8, 7, 6, 5))
    readers: list[Reader] = [
        HiddenMean(ScoringSection(feature_width=width, sketch_seed=5)) for width in (None, 16, 256)
    ]
    wide, narrow, default = run(model, readers, samples)
    directions = projection("orthogonal", WIDE, 16, 5, "hidden")
    np.testing.assert_allclose(narrow.numpy(), wide.numpy() @ directions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(default, wide, rtol=0, atol=0)


def test_header_of_an_earlier_release_has_its_width_and_signs() -> None:
    of_now = Settings(scoring=ScoringSection()).model_dump(mode="json")
    del of_now["scoring"]["feature_projection"]
    for width in (None, 128):
        of_now["scoring"]["feature_width"] = width
        scoring = Settings.model_validate(of_now).scoring
        assert scoring is not None
        assert (scoring.feature_width, scoring.feature_projection) == (width, "signs")


def test_digest_of_the_features_of_earlier_releases_is_what_it_was() -> None:
    def digest(**scoring: Any) -> str:
        content = {"data": {"path": "d.jsonl"}, "store": "s", "scoring": scoring}
        return Recipe.model_validate(content).digest()

    assert digest(feature_width=None) == "56239a26b1c5a852"
    assert digest(feature_width=128, feature_projection="signs") == "d91c749dc23f3f66"
    assert len({digest(), digest(feature_width=None), digest(feature_width=128)}) == 3


def widths(store: Store, version: int) -> tuple[int, int | None, str]:
    """Of the features kept, and what the header says."""
    cache, scoring = store.load_cache(version), store.header(version).settings.scoring
    assert cache is not None and scoring is not None
    return cache.features.shape[1], scoring.feature_width, scoring.feature_projection


@pytest.mark.parametrize(
    "before",
    [
        {"feature_width": None},
        {"feature_width": 16, "feature_projection": "signs"},
        {"feature_width": 16},
    ],
)
def test_store_of_another_width_goes_on(tmp_path: Path, before: dict[str, Any]) -> None:
    write_data(tmp_path / "train.jsonl")
    run_dir = tmp_path / "run"
    first = write_checkpoint(run_dir, 100)
    recipe, plain = tiny_recipe(tmp_path, scoring=before), tiny_recipe(tmp_path)
    refresh(recipe, first)
    made_with = widths(Store.open(plain.store), 1)
    of_store = Refresher.from_recipe(plain).recipe
    assert of_store.digest() == recipe.digest()  # so a checkpoint is not refreshed twice
    result = refresh(plain, write_checkpoint(run_dir, 200))
    assert widths(Store.open(plain.store), 2) == made_with
    assert result.header.refresh is not None and result.header.refresh.num_since_full > 0


def test_another_width_by_name_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_data(tmp_path / "train.jsonl")
    run_dir = tmp_path / "run"
    refresh(tiny_recipe(tmp_path, scoring={"feature_width": None}), write_checkpoint(run_dir, 100))
    narrow = tiny_recipe(tmp_path, scoring={"feature_width": 16})
    result: Header = refresh(narrow, write_checkpoint(run_dir, 200)).header
    assert "the recipe asks for other features" in caplog.text
    assert widths(Store.open(narrow.store), 2) == (16, 16, "orthogonal")
    assert result.refresh is not None and result.refresh.num_since_full == 0


def test_how_to_project_is_no_other_space_where_nothing_is_projected(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    run_dir, before = tmp_path / "run", {"feature_width": None, "feature_projection": "signs"}
    refresh(tiny_recipe(tmp_path, scoring=before), write_checkpoint(run_dir, 100))
    named = tiny_recipe(tmp_path, scoring={"feature_projection": "orthogonal"})
    result: Header = refresh(named, write_checkpoint(run_dir, 200)).header
    assert widths(Store.open(named.store), 2) == (WIDE, None, "orthogonal")
    assert result.refresh is not None and result.refresh.num_since_full == 1


@pytest.mark.parametrize(
    ("before", "named"),
    [
        ({}, {"feature_width": 64}),  # the model is 48 wide
        ({}, {"feature_width": None}),
        (
            {"feature_width": None, "feature_projection": "signs"},
            {"feature_width": 64, "feature_projection": "orthogonal"},
        ),
        ({"features": "gradient-sketch", "sketch_side": 4}, {"feature_width": 16}),
        (
            {"features": "gradient-sketch", "sketch_side": 4},
            {"feature_width": None, "feature_projection": "signs"},
        ),
    ],
)
def test_what_changes_no_feature_begins_nothing_anew(
    tmp_path: Path, before: dict[str, Any], named: dict[str, Any]
) -> None:
    write_data(tmp_path / "train.jsonl")
    run_dir = tmp_path / "run"
    refresh(tiny_recipe(tmp_path, scoring=before), write_checkpoint(run_dir, 100))
    recipe = tiny_recipe(tmp_path, scoring={**before, **named})
    result: Header = refresh(recipe, write_checkpoint(run_dir, 200)).header
    assert result.refresh is not None and result.refresh.num_since_full == 1
    scoring = result.settings.scoring
    assert scoring is not None
    assert {key: getattr(scoring, key) for key in named} == named, "the header says what was asked"


@pytest.mark.parametrize(
    ("before", "named", "then"),
    [
        # What is not named stays as the store has it: the width too, where it begins anew.
        ({"feature_width": 16, "feature_projection": "signs"},
         {"feature_projection": "orthogonal"}, (16, 16, "orthogonal")),
        ({}, {"feature_width": 64, "feature_projection": "signs"}, (64, 64, "signs")),
        ({"features": "gradient-sketch", "sketch_side": 4},
         {"features": "hidden-mean"}, (WIDE, 256, "orthogonal")),
    ],
)  # fmt: skip
def test_what_changes_features_is_told(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    before: dict[str, Any],
    named: dict[str, Any],
    then: tuple[int, int | None, str],
) -> None:
    write_data(tmp_path / "train.jsonl")
    run_dir = tmp_path / "run"
    refresh(tiny_recipe(tmp_path, scoring=before), write_checkpoint(run_dir, 100))
    recipe = tiny_recipe(tmp_path, scoring=named)
    result: Header = refresh(recipe, write_checkpoint(run_dir, 200)).header
    key, value = list(named.items())[-1]
    assert f"{value} now" in caplog.text and f"{key} " in caplog.text
    assert result.refresh is not None and result.refresh.num_since_full == 0
    assert widths(Store.open(recipe.store), 2) == then
