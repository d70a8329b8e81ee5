"""Well-known layouts go from `init` over a refresh to an export, and no file is edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

import gracekit
from gracekit.cli import main
from gracekit.errors import ExportError
from gracekit.recipe import Recipe
from gracekit.training import Coreset
from gracekit.types import Json
from tests.tiny import write_checkpoint

torch.set_num_threads(1)
NUM_ROWS = 24
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def gsm8k(i: int) -> Json:
    return {"question": f"Of {i} cats one is red?", "answer": f"one {i}\n#### {i}"}


def dolly(i: int) -> Json:
    return {"instruction": f"sum of {i}", "context": "the tree" * (i % 2),
            "response": f"the house is {i}", "category": "ab"[i % 2]}  # fmt: skip


def alpaca(i: int) -> Json:
    return {"instruction": f"is {i} large", "input": "", "output": f"the {i} is small"}


def sharegpt(i: int) -> Json:
    return {"id": f"identity_{i}", "conversations": [
        {"from": "human", "value": f"one {i}"}, {"from": "gpt", "value": f"two {i}"}]}  # fmt: skip


def functions(i: int) -> Json:
    return {"tools": json.dumps(TOOLS), "messages": [
        {"role": "user", "content": f"sum of {i} one"},
        {"role": "assistant", "content": None,
         "function_call": {"name": "add", "arguments": json.dumps({"a": i, "b": 1})}},
        {"role": "function", "name": "add", "content": str(i + 1)},
        {"role": "assistant", "content": f"the sum is {i + 1}"}]}  # fmt: skip


def faq(i: int) -> Json:
    return {"Frage": f"is {i} green", "Antwort": f"{i:03} is blue", "Nr": f"{i:03}"}


def bots(i: int) -> Json:
    return {"dialog": [{"role": "Kunde", "content": f"cat {i}"},
                       {"role": "Hilfe", "content": f"dog {i}"}]}  # fmt: skip


def pairs(i: int) -> Json:
    return {"prompt": f"sum of {i}", "chosen": f"the sum is {i}", "rejected": f"{i:02}"}


def chat_pairs(i: int) -> Json:
    return {"conversations": [{"from": "human", "value": f"is {i} red"}],
            "chosen": {"from": "gpt", "value": f"the {i} is red"},
            "rejected": {"from": "gpt", "value": "1.10"}}  # fmt: skip


def tokens(i: int) -> Json:
    ids = [3 + (i + k) % 28 for k in range(4 + i % 3)]
    return {"input_ids": ids, "labels": [-100, *ids[1:]], "attention_mask": [1] * len(ids)}


SETS: dict[str, tuple[Callable[[int], Json], list[str], str]] = {
    "gsm8k": (gsm8k, [], "question-answer"),
    "dolly": (dolly, ["--group-column", "category"], "instruction-response"),
    "alpaca": (alpaca, [], "alpaca"),
    "sharegpt": (sharegpt, ["--id-column", "id"], "sharegpt"),
    "functions": (functions, [], "messages"),
    "faq": (faq, ["--column", "prompt=Frage", "--column", "response=Antwort", "--column", "id=Nr"],
            "prompt-completion"),
    "bots": (bots, ["--column", "messages=dialog", "--role", "user=Kunde", "--role",
                    "assistant=Hilfe", "--role", "assistant=Auskunft"], "messages"),
    "pairs": (pairs, [], "preference"),
    "chat-pairs": (chat_pairs, [], "preference"),
    "tokens": (tokens, [], "tokens"),
}  # fmt: skip


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.mark.parametrize("name", SETS)
def test_from_init_to_an_export(tmp_path: Path, name: str) -> None:
    make, options, layout = SETS[name]
    lines = [json.dumps(make(i)) for i in range(NUM_ROWS)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    recipe = tmp_path / "gracekit.yaml"
    result = run("init", str(tmp_path / "train.jsonl"), "-o", str(recipe), *options, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["num_samples"], found["num_skipped"], found["format"]) == (NUM_ROWS, 0, layout)
    loaded = Recipe.load(recipe).override({"scoring.device": "cpu", "data.max_length": 64})
    gracekit.refresh(loaded, write_checkpoint(tmp_path / "run", 10))
    written = gracekit.export(loaded.store, tmp_path / "out")
    assert written.num_rows == round(0.3 * NUM_ROWS)
    for line in (tmp_path / "out/coreset.jsonl").read_text().splitlines():
        source = next(x for x in lines if line.startswith(x[:-1] + ", "))
        assert json.loads(line).items() >= json.loads(source).items()
    ids = [json.loads(x)["sample_id"] for x in (tmp_path / "out/coreset.jsonl").open()]
    if name == "faq":
        assert all(len(i) == 3 and i.isdigit() for i in ids)


def test_the_weights_of_a_draw_are_exported(tmp_path: Path) -> None:
    lines = [json.dumps(alpaca(i)) for i in range(NUM_ROWS)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    recipe = tmp_path / "gracekit.yaml"
    assert run("init", str(tmp_path / "train.jsonl"), "-o", str(recipe)).exit_code == 0
    written = Recipe.load(recipe)
    assert written.selection == Recipe(data=written.data).selection.model_copy(
        update={"fraction": 0.3}
    ), "the written recipe selects as one without the section does"
    loaded = written.override({"scoring.device": "cpu", "selection.fraction": 0.5})
    gracekit.refresh(loaded, write_checkpoint(tmp_path / "run", 10))
    coreset = Coreset.load(loaded.store)
    assert len(set(coreset.weights.tolist())) > 3
    gracekit.export(loaded.store, tmp_path / "out")
    rows = [json.loads(x) for x in (tmp_path / "out/coreset.jsonl").open()]
    weights = dict(zip(coreset.sample_ids, coreset.weights.tolist(), strict=True))
    assert {r["sample_id"]: r["weight"] for r in rows} == pytest.approx(weights)
    # Whole copies: the total is kept, and each is its weight rounded down or up.
    gracekit.export(loaded.store, tmp_path / "copies", weights="repeat")
    ids = [json.loads(x)["sample_id"] for x in (tmp_path / "copies/coreset.jsonl").open()]
    assert len(ids) == len(coreset)
    assert all(abs(ids.count(name) - weight) < 1 for name, weight in weights.items())


REFUSED = {
    ("pairs", "axolotl"): "preference pairs need more.*Export as jsonl",
    ("chat-pairs", "axolotl"): "preference pairs need more.*Export as jsonl",
    ("tokens", "axolotl"): "found the columns input_ids.*Export as jsonl",
    ("tokens", "llamafactory"): "found the columns input_ids.*Export as jsonl",
}


def test_trainers_are_told_what_was_named(tmp_path: Path) -> None:
    for name in ("dolly", "faq", "bots", "pairs", "chat-pairs", "tokens"):
        make, options, _ = SETS[name]
        folder = tmp_path / name
        folder.mkdir()
        data = folder / "train.jsonl"
        data.write_text("".join(json.dumps(make(i)) + "\n" for i in range(NUM_ROWS)))
        assert run("init", str(data), "-o", str(folder / "r.yaml"), *options).exit_code == 0
        recipe = Recipe.load(folder / "r.yaml").override({"scoring.device": "cpu"})
        gracekit.refresh(recipe, write_checkpoint(folder / "run", 10))
        for short, trainer in {"lf": "llamafactory", "ax": "axolotl"}.items():
            refusal = REFUSED.get((name, trainer))
            with pytest.raises(ExportError, match=refusal) if refusal else nullcontext():
                gracekit.export(recipe.store, folder / short, format=trainer)
    info = json.loads((tmp_path / "dolly/lf/dataset_info.json").read_text())["lf"]
    assert info["columns"] == {"prompt": "instruction", "query": "context", "response": "response"}
    info = json.loads((tmp_path / "faq/lf/dataset_info.json").read_text())["lf"]
    assert info["columns"] == {"prompt": "Frage", "response": "Antwort"}
    info = json.loads((tmp_path / "bots/lf/dataset_info.json").read_text())["lf"]
    assert (info["columns"]["messages"], info["tags"]["user_tag"], info["tags"]["assistant_tag"]) \
        == ("dialog", "Kunde", "Hilfe")  # fmt: skip
    info = json.loads((tmp_path / "pairs/lf/dataset_info.json").read_text())["lf"]
    assert info["ranking"] is True
    assert info["columns"] == {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    info = json.loads((tmp_path / "chat-pairs/lf/dataset_info.json").read_text())["lf"]
    assert (info["ranking"], info["formatting"]) == (True, "sharegpt")
    assert info["columns"] == {
        "messages": "conversations", "chosen": "chosen", "rejected": "rejected",
    }  # fmt: skip
    assert info["tags"]["assistant_tag"] == "gpt"
    options = yaml.safe_load((tmp_path / "dolly/ax/axolotl.yaml").read_text())["datasets"][0]
    assert options["type"] == {
        "field_instruction": "instruction", "field_input": "context", "field_output": "response",
        "format": "{instruction}\n\n{input}", "no_input_format": "{instruction}",
    }  # fmt: skip


def test_init_takes_a_split_and_says_what_is_wrong(tmp_path: Path) -> None:
    for split, count in {"train": 5, "test": 3}.items():
        rows = "".join(json.dumps(gsm8k(i)) + "\n" for i in range(count))
        (tmp_path / f"{split}.jsonl").write_text(rows)
    recipe = tmp_path / "r.yaml"
    result = run("init", str(tmp_path), "-o", str(recipe), "--split", "test", "--json")
    assert json.loads(result.stdout)["num_samples"] == 3
    assert Recipe.load(recipe).data.split == "test"
    for options, message in [
        (["--column", "prompt"], "expected --column KEY=NAME, found 'prompt'"),
        (["--column", "promt=question"], "did you mean 'prompt'"),
        (["--column", "prompt=questio"], "did you mean 'question'"),
    ]:
        result = run("init", str(tmp_path), "-o", str(recipe), "--force", *options)
        assert result.exit_code in (1, 2)
        assert message in result.stderr
