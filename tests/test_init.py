"""`gracekit init`: the keys of the data section, the first rows in tokens, what it warns of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import gracekit
from gracekit.cli import main
from gracekit.errors import RecipeError
from gracekit.recipe import DataSection, Recipe
from gracekit.samples import load_samples
from gracekit.types import Json
from tests.tiny import tiny_recipe, write_checkpoint


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["init", *arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trainer's directory with a checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder, 10)
    return folder


def write(path: Path, rows: list[Json]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(i: int, **more: Any) -> Json:
    return {"prompt": f"sum of {i}", "response": "two three", **more}


VALUES = {
    "split": "train[:2]", "format": "alpaca", "id_column": "id", "group_column": "g",
    "text_column": "output", "max_length": "77", "loss_on": "all", "chat_template": "false",
}  # fmt: skip


def test_every_key_of_the_data_section_is_an_option(tmp_path: Path) -> None:
    texts = "".join(run("--help").output.split())
    for name in DataSection.model_fields:
        option = {"columns": "--column", "roles": "--role"}.get(name, f"--{name}")
        if name not in ("path", "pair"):  # the argument, and a key with one value
            assert option.replace("_", "-") in texts
    rows = [{"instruction": "Q", "output": "A", "id": i, "g": "x"} for i in range(3)]
    data, recipe = write(tmp_path / "t.jsonl", rows), tmp_path / "r.yaml"
    options = [x for k, v in VALUES.items() for x in (f"--{k.replace('_', '-')}", v)]
    assert run(data, "-o", str(recipe), *options).exit_code == 0
    found = Recipe.load(recipe).data.model_dump(mode="json")
    assert {name: str(found[name]) for name in VALUES} == {**VALUES, "chat_template": "False"}
    for option, message in [("--format=alpca", "'alpca' is not one of"),
                            ("--max-length=many", "not a valid integer"),
                            ("--max-length=1", "greater than or equal to 8")]:  # fmt: skip
        result = run(data, "-o", str(recipe), "--force", option)
        assert result.exit_code == 2
        assert message in result.stderr
    with pytest.raises(RecipeError, match=r"unknown key 'data.max_lenght'; did you mean"):
        gracekit.init(data, output=recipe, force=True, max_lenght=5)


def test_several_files_stand_in_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [write(tmp_path / name, [pair(0), pair(1)]) for name in ("a.jsonl", "b.jsonl")]
    result = run("a.jsonl", "b.jsonl", "--json")
    assert json.loads(result.stdout)["num_samples"] == 4
    assert "path: [a.jsonl, b.jsonl]" in (tmp_path / "gracekit.yaml").read_text()
    assert Recipe.load("gracekit.yaml").data.places == ("a.jsonl", "b.jsonl")
    (tmp_path / "sub").mkdir()
    assert run("*.jsonl", "-o", "sub/r.yaml").exit_code == 0
    assert Recipe.load(tmp_path / "sub/r.yaml").data.path == str(tmp_path / "*.jsonl")
    assert len(load_samples(Recipe.load("sub/r.yaml").data)) == 2 * len(files)


def test_the_first_rows_are_shown_as_tokens(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [pair(1), pair(2, response="two \x1b[31m"), {"prompt": "Q"}, pair(4)]
    data = write(tmp_path / "t.jsonl", rows)
    options = [data, "-o", str(tmp_path / "r.yaml"), "--force", "--tokenizer", str(run_dir)]
    output = run(*options).output
    assert "row 0: 6 tokens, 3 with loss:\n  sum of 1«two three <eos>»\n" in output
    assert "row 3: 6 tokens" in output, "row 2 is left out"
    assert "\x1b" not in output
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    found = json.loads(run(*options, "--json").stdout)
    assert [row["source_row"] for row in found["tokens"]] == [0, 1, 3]
    first = found["tokens"][0]
    assert (first["num_targets"], len(first["ids"])) == (3, 6)
    assert [piece["has_loss"] for piece in first["pieces"]] == [False, True]


def test_a_directory_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    data = write(tmp_path / "t.jsonl", [pair(0)])
    result = run(data, "-o", str(tmp_path / "r.yaml"), "--tokenizer", str(tmp_path))
    assert result.exit_code == 1
    assert f"there is no tokenizer in {tmp_path}; expected one of tokenizer.json" in result.stderr
    assert not (tmp_path / "r.yaml").exists()


def warnings_of(tmp_path: Path, rows: list[Json], **keys: Any) -> tuple[str, ...]:
    data = write(tmp_path / "t.jsonl", rows)
    return gracekit.init(data, output=tmp_path / "r.yaml", force=True, **keys).warnings


def test_warnings(tmp_path: Path, run_dir: Path) -> None:
    groups = [pair(i, source="a" if i else "b") for i in range(12)]
    assert warnings_of(tmp_path, groups) == ()
    (small,) = warnings_of(tmp_path, groups, group_column="source")
    assert small.startswith("1 group has fewer than 10 samples ('b' (1)), too few to rank")
    (ids,) = warnings_of(tmp_path, groups, group_column="prompt")
    assert ids.startswith("all 12 groups of column 'prompt' have fewer")

    texts = [{"text": "<s>[INST] Add [/INST] 2</s>"}, {"text": "plain"}]
    (rendered,) = warnings_of(tmp_path, texts)
    assert rendered.startswith("1 of the first 2 samples (row 0 is one) hold what a chat template")

    (pairs,) = warnings_of(tmp_path, [{"prompt": "Q", "chosen": "A", "rejected": "B"}])
    assert pairs.startswith("the data holds preference pairs: the chosen side is measured")

    # 3 + 5 tokens with the end fit into 8; 3 + 6 lose the last; 9 + 6 all of the answer.
    lengths = [(3, 4), (3, 5), (9, 5)]
    rows = [{"prompt": "sum " * p, "response": "two " * r} for p, r in lengths]
    (cut,) = warnings_of(tmp_path, rows, tokenizer=run_dir, max_length=8)
    assert cut.startswith(
        "2 of 3 samples have more than 8 tokens (data.max_length) and are cut off; 2 lose a part "
        "of the answer by that, 1 all of it"
    )
    tokens = [{"input_ids": [5, 6]}, {"input_ids": [5, 99]}]
    (unknown,) = warnings_of(tmp_path, tokens, tokenizer=run_dir)
    assert unknown.startswith("1 row has no tokens and is left out, the first is row 1: it holds")


def test_reasons_are_counted(tmp_path: Path) -> None:
    rows = [pair(0), pair(1, response=" "), {"prompt": "Q"}, pair(3, response="")]
    data = write(tmp_path / "t.jsonl", rows)
    found = gracekit.init(data, output=tmp_path / "r.yaml")
    assert found.skipped == (
        ("the response is empty", 2, 1),
        ("'completion' or 'response' is missing", 1, 2),
    )
    output = run(data, "-o", str(tmp_path / "r.yaml"), "--force").output
    assert "3 rows cannot be used, the first is row 1: the response is empty" in output
    assert "  2 rows, the first is row 1: the response is empty" in output


def test_status_says_what_takes_no_part(tmp_path: Path, run_dir: Path) -> None:
    ids = [[3 + (i + k) % 28 for k in range(5)] for i in range(24)]
    rows: list[Json] = [{"input_ids": row} for row in [*ids, [5, 60], [5, 61], []]]
    write(tmp_path / "train.jsonl", rows)
    recipe = tiny_recipe(tmp_path, data={"group_column": None})
    gracekit.refresh(recipe, run_dir / "checkpoint-10")
    status = gracekit.status(recipe.store)
    assert "1 row of the data is left out as unusable (`gracekit init` says why)" in str(status)
    assert "2 samples have no tokens: the chat template or the tokenizer refuses" in str(status)
    found = status.to_json()
    assert (found["num_skipped_rows"], found["num_unrendered"]) == (1, 2)
