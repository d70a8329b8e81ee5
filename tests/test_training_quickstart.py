"""The quickstart's trainer and recipes: what it trains on is what gracekit measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gracekit import samples
from gracekit.recipe import Recipe
from gracekit.training import Coreset
from pipelines import train_quickstart
from tests.patience import LAST_RESORT_S
from tests.stores import N, make_draft, make_store

PIPELINES = Path(train_quickstart.__file__).parent
NUM_ROWS = 2 * N


def run_trainer(output: Path, store: Path, *arguments: str) -> str:
    """Run the script as a user does; returns its standard output."""
    done = subprocess.run(
        [
            sys.executable, PIPELINES / "train_quickstart.py", "--output", output, "--store", store,
            "--threads", "1", "--wait-s", "0", *arguments,
        ],
        capture_output=True, text=True, timeout=LAST_RESORT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("name", ["quickstart", "smollm2"])
def test_the_recipes_name_the_shipped_data(name: str) -> None:
    recipe = Recipe.load(PIPELINES / f"{name}.yaml")
    assert Path(recipe.data.name).resolve() == PIPELINES.parent / "data" / "train.jsonl"
    assert Path(recipe.store).resolve() == PIPELINES.parent / "runs" / name / "store"


def test_masks_are_those_that_gracekit_measures(tmp_path: Path) -> None:
    data = Recipe.load(PIPELINES / "quickstart.yaml").data
    rows = train_quickstart.read_rows(Path(data.name), None)
    _, tokenizer = train_quickstart.tiny_llama(rows)
    raw = samples.load_samples(data)
    assert raw.num_source_rows == len(rows)
    table = samples.tokenize(raw, tokenizer, data, tmp_path)
    some = np.arange(0, len(table), 13)
    for row, (ids, mask) in zip(some, table.take(some), strict=True):
        encoded = train_quickstart.encode(rows[raw.source_rows[row]], tokenizer, data.max_length)
        assert encoded["input_ids"] == ids.tolist()
        assert [label != -100 for label in encoded["labels"]] == mask.tolist()
    again = train_quickstart.tiny_llama(rows)[1]
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_the_script_trains_on_the_coreset(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    rows = [{"prompt": f"What is {i} + {i}?", "response": str(2 * i)} for i in range(NUM_ROWS)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "refresh-1"))
    output = run_trainer(
        tmp_path / "run", store.paths.root, "--data", str(data), "--epochs", "3",
        "--samples-per-epoch", "16",
    )  # fmt: skip
    lines = [line for line in output.splitlines() if not line.startswith("step ")]  # if slow
    assert [line.partition(":")[0] for line in lines] == [
        text
        for epoch in (1, 2, 3)
        for text in (
            f"epoch {epoch} trains on coreset version 1 (step 100)",
            f"epoch {epoch} ended at step {2 * epoch}",
        )
    ]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    drawn = [json.loads(line) for line in (tmp_path / "run" / "drawn.jsonl").open()]
    coreset = set(Coreset.load(store.paths.root).sample_ids)
    assert [len(epoch["sample_ids"]) for epoch in drawn] == [16] * 3
    assert all(set(epoch["sample_ids"]) == coreset for epoch in drawn)


@pytest.mark.slow
def test_the_script_trains_smollm2(tmp_path: Path) -> None:
    output = run_trainer(
        tmp_path / "run", tmp_path / "store", "--model", "smollm2", "--rows", "12",
        "--samples-per-epoch", "4", "--epochs", "2",
    )  # fmt: skip
    assert "epoch 2 trains on all samples (no coreset yet)" in output
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-1" / "model.safetensors").is_file()


def test_columns_have_any_names(tmp_path: Path) -> None:
    data = tmp_path / "maths.jsonl"
    data.write_text('{"answer": "4", "question": "2 + 2?"}\n' * 3)
    found = train_quickstart.read_rows(data, 2, "question, answer")
    assert found == [{"prompt": "2 + 2?", "response": "4"}] * 2
    with pytest.raises(SystemExit, match=r"line 1: expected texts 'prompt' and 'response'.*answer"):
        train_quickstart.read_rows(data, None)
    with pytest.raises(SystemExit, match="two names such as question,answer; found 'question'"):
        train_quickstart.read_rows(data, None, "question")
    data.write_text("[\n")
    with pytest.raises(SystemExit, match="line 1: expected JSON Lines"):
        train_quickstart.read_rows(data, None)


def test_rows_are_read_as_gracekit_reads_them(tmp_path: Path) -> None:
    data = tmp_path / "maths.jsonl"
    row = '{"prompt": "2 + 2?", "response": "4"}\n'
    data.write_bytes(f"\ufeff{row}\n{row}".encode())
    assert len(train_quickstart.read_rows(data, 2)) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b'{"prompt": "\xe9", "response": "4"}\n', "line 1: not UTF-8"),
        (b'{"prompt": "2 + 2?", "response": null}\n', "found 'response' = null"),
        (b'{"prompt": "2 + 2?", "response": 4}\n', "found 'response' = 4"),
        (b"{}\n", "found no columns"),
    ],
)
def test_rows_without_texts_are_told(tmp_path: Path, content: bytes, said: str) -> None:
    data = tmp_path / "maths.jsonl"
    data.write_bytes(content)
    with pytest.raises(SystemExit, match=said):
        train_quickstart.read_rows(data, None)


def test_slow_steps_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    teller, state = train_quickstart.EpochEnd(), SimpleNamespace(global_step=3, max_steps=9)
    teller.on_epoch_begin(None, state, None)
    teller.on_step_end(None, state, None)
    assert capsys.readouterr().out == ""
    teller._spoke_at -= 2 * train_quickstart.LONGEST_SILENCE_S
    teller.on_step_end(None, state, None)
    teller.on_step_end(None, state, None)
    assert capsys.readouterr().out == "step 3 of 9\n"
