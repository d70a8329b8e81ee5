"""The recipe: what is accepted, what a mistake is told, and what its digest depends on."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import gracekit
from gracekit.errors import RecipeError
from gracekit.recipe import Recipe

MINIMAL: dict[str, Any] = {"data": {"path": "train.jsonl"}}


def recipe(**sections: Any) -> Recipe:
    return Recipe.from_dict({**MINIMAL, **sections})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "'data' is missing"),
        ({**MINIMAL, "selecton": {}}, "unknown key 'selecton'; did you mean 'selection'"),
        ({**MINIMAL, "selection": {"fration": 1}}, "did you mean 'fraction'"),
        ({**MINIMAL, "selection": {"fraction": 2}}, "less than or equal to 1, found 2"),
        (
            {**MINIMAL, "selection": {"fraction": 0.1, "count": 5}},
            "give one budget: fraction or count",
        ),
        ({**MINIMAL, "scoring": {"importance": "nope"}}, "add it to scores"),
        ({**MINIMAL, "refresh": {"min_fraction": 0.5, "max_fraction": 0.1}}, "is above"),
        ({**MINIMAL, "refresh": {"plan": "best"}}, "refresh.plan"),
        ({**MINIMAL, "data": "train.jsonl"}, "data"),
    ],
)
def test_a_mistake_is_named(content: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match="recipe") as caught:
        Recipe.from_dict(content)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: [", "not valid YAML"),
        ("- a\n- b\n", "keys and values"),
        ("data: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        Recipe.load(path)
    with pytest.raises(RecipeError, match="gracekit init"):
        Recipe.load(tmp_path / "missing.yaml")


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "pipelines"
    folder.mkdir()
    (tmp_path / "train.jsonl").write_text("")
    (folder / "r.yaml").write_text(yaml.safe_dump({"data": {"path": "../train.jsonl"}}))
    loaded = Recipe.load(folder / "r.yaml")
    assert loaded.data.path == str(tmp_path / "train.jsonl")
    assert loaded.store == str(folder / "gracekit-store")
    hub = Recipe.from_dict({"data": {"path": "org/some-data"}}, folder=folder)
    assert hub.data.path == "org/some-data"


def test_the_digest_changes_with_results_only() -> None:
    base = recipe().digest()
    for same in (
        recipe(store="elsewhere"),
        recipe(scoring={"batch_tokens": 100, "num_threads": 3, "shard_rows": 9}),
        recipe(checkpoints={"poll_interval_s": 9}),
        recipe(retention={"keep": 3}),
        Recipe.from_dict({"data": {"path": "moved.jsonl"}}),
    ):
        assert same.digest() == base
    for other in (
        recipe(seed=1),
        recipe(selection={"fraction": 0.2}),
        recipe(scoring={"length_correction": "none"}),
        recipe(checkpoints={"tokenizer": "another"}),
        Recipe.from_dict({"data": {"path": "train.jsonl", "max_length": 99}}),
    ):
        assert other.digest() != base
    assert recipe(selection={"fraction": 0.2}).digest("data", "scoring") == recipe().digest(
        "data", "scoring"
    )


def test_the_trainers_average_changes_what_is_selected_and_nothing_that_is_measured() -> None:
    over_tokens, over_samples = recipe(), recipe(scoring={"loss": "samples"})
    assert over_tokens.digest() != over_samples.digest()
    measured = ("data", "target", "scoring")
    assert over_tokens.digest(*measured) == over_samples.digest(*measured)


def test_override_is_checked_and_replaces_the_other_budget() -> None:
    base = recipe(selection={"fraction": 0.3})
    assert base.override({"selection.count": 7}).selection.fraction is None
    back = base.override({"selection.count": 7}).override({"selection.fraction": 0.2})
    assert (back.selection.count, back.selection.fraction) == (None, 0.2)
    by_tokens = base.override({"selection.tokens": 900}).selection
    assert (by_tokens.fraction, by_tokens.tokens) == (None, 900)
    for wrong in ({"data.path.x": 1}, {"selection.nope": 1}, {"selection.fraction": 0}):
        with pytest.raises(RecipeError):
            base.override(wrong)


SECTIONS = "selection|refresh|scoring|graph|retention|publish|compare"
KEY = re.compile(rf"(?<![\w./:-])({SECTIONS})\.([a-z_]+)\b(?!\.\w|/|\()")


def test_every_key_that_a_message_names_is_in_the_recipe() -> None:
    sections = Recipe.from_dict(MINIMAL)
    found = 0
    for path in sorted(Path(gracekit.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            for section, key in KEY.findall(node.value):
                found += 1
                assert key in type(getattr(sections, section)).model_fields, (
                    f"{path}:{node.lineno}: {section}.{key} is no key of a recipe"
                )
    assert found > 100
