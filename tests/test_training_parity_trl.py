"""TRL's SFTTrainer itself: its tokens and labels beside those that are measured.

Run by `make test-trl`, with TRL in an environment of its own.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import gracekit
from gracekit import Recipe, check_tokens
from gracekit.samples import trl_templates
from gracekit.store import StoreReader
from gracekit.training import Coreset, CoresetCallback, CoresetTrainerMixin
from tests.templates_of_families import CHATML
from tests.test_samples_tokens import train_tokenizer
from tests.tiny import recipe_content

pytestmark = [
    pytest.mark.trl,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed"),
]
NUM_ROWS = 60
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def chat(i: int) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": f"What is {i} and {i + 1}?"},
        {"role": "assistant", "content": f"It is {2 * i + 1}."},
    ]
    if i % 2:
        turns += [
            {"role": "user", "content": f"And {i} times two?"},
            {"role": "assistant", "content": f"{2 * i}, naturally. " * (1 + i % 5)},
        ]
    return {"messages": turns}


def pair(i: int) -> dict[str, Any]:
    return {"prompt": f"{i} plus {i} is", "completion": f" {2 * i}, " + "so they say, " * (i % 7)}


def pair_of_lists(i: int) -> dict[str, Any]:
    messages = chat(i)["messages"]
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def plain(i: int) -> dict[str, Any]:
    return {"text": f"{i} bottles, " + "and one more, " * (i % 6)}


def with_tools(i: int) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": f"C{i}"}}}
    return {
        "messages": [
            {"role": "user", "content": f"The weather in C{i}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": f"{i} degrees"},
            {"role": "assistant", "content": f"It has {i} degrees."},
        ],
        "tools": TOOLS,
    }


KINDS = {
    "chat": chat,
    "strings": pair,
    "lists": pair_of_lists,
    "text": plain,
    "tools": with_tools,
}


def tokenizer(*, adds_bos: bool = False) -> Any:
    from tests.conversations import tokenizer_for

    made = tokenizer_for(train_tokenizer(trim_offsets=True, adds_bos=adds_bos), CHATML)
    made.pad_token = "</s>"
    return made


def model(num_tokens: int) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=num_tokens, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=512, eos_token_id=1, bos_token_id=0,
        )
    )  # fmt: skip


def trainer(
    folder: Path, rows: Any, tokens: Any, *callbacks: Any, lora: bool = False, **settings: Any
) -> Any:
    import trl

    if isinstance(rows, list):
        rows = datasets.Dataset.from_list(rows)
    if lora:
        import peft

        settings["peft_config"] = peft.LoraConfig(r=2, target_modules=["q_proj"])
    arguments = {
        "output_dir": str(folder / "run"), "num_train_epochs": 1, "report_to": "none",
        "per_device_train_batch_size": 4, "save_strategy": "epoch", "logging_strategy": "no",
        "use_cpu": True, "bf16": False, "disable_tqdm": True, "max_length": 120,
        "dataloader_pin_memory": False, "gradient_checkpointing": False,
    }  # fmt: skip
    peft_config = settings.pop("peft_config", None)
    return trl.SFTTrainer(
        model=model(len(tokens)),
        args=trl.SFTConfig(**{**arguments, **settings}),
        train_dataset=rows,
        processing_class=tokens,
        callbacks=list(callbacks),
        peft_config=peft_config,
    )


def recipe(folder: Path, rows: list[dict[str, Any]], **data: Any) -> Recipe:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"max_length": 120, "group_column": None, "rendering": "trl", **data}
    return Recipe.from_dict(recipe_content(data=settings), folder=folder)


@pytest.mark.parametrize("adds_bos", [False, True], ids=["no-bos", "bos"])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_labels_are_those_of_trl(kind: str, adds_bos: bool, tmp_path: Path) -> None:
    rows = [KINDS[kind](i) for i in range(NUM_ROWS)]
    made = trainer(tmp_path, rows, tokenizer(adds_bos=adds_bos))
    tokens = tokenizer(adds_bos=adds_bos)
    found = check_tokens(made.train_dataset, recipe(tmp_path, rows), tokenizer=tokens)
    assert found.ok, found.lines()
    assert found.num_compared == NUM_ROWS and found.matched_by == "position"
    collated = check_tokens(
        made.train_dataset, recipe(tmp_path, rows), tokenizer=tokens, collate=made.data_collator
    )
    assert collated.ok, collated.lines()


@pytest.mark.parametrize(
    ("kind", "trained", "recipe_has", "advice"),
    [
        ("chat", {}, {"rendering": "auto"}, "data.loss_on: all"),
        ("strings", {}, {"rendering": "auto"}, "data.rendering: trl"),
        ("strings", {"completion_only_loss": False}, {}, "data.loss_on: all"),
        ("chat", {"max_length": 24}, {}, "data.max_length: 24"),
        ("chat", {}, {"max_length": 16}, "data.max_length: "),
    ],
)
def test_a_difference_is_told_with_the_setting_that_mends_it(
    kind: str, trained: Any, recipe_has: Any, advice: str, tmp_path: Path
) -> None:
    rows = [KINDS[kind](i) for i in range(NUM_ROWS)]
    made = trainer(tmp_path, rows, tokenizer(), **trained)
    found = check_tokens(
        made.train_dataset, recipe(tmp_path, rows, **recipe_has), tokenizer=tokenizer()
    )
    assert not found.ok and found.num_different and found.differences
    assert found.advice is not None and advice in found.advice, found.lines()
    changes = dict(
        part.removeprefix("data.").split(": ")
        for part in found.advice.split(" in the recipe")[0].removeprefix("set ").split(", ")
    )
    mended = recipe(tmp_path, rows, **{**recipe_has, **changes})
    again = check_tokens(made.train_dataset, mended, tokenizer=tokenizer())
    assert not again.num_different, again.lines()


@pytest.mark.parametrize("kind", ["chat", "tools"])
def test_assistant_only_loss_follows_the_marks_of_the_template(kind: str, tmp_path: Path) -> None:
    rows = [KINDS[kind](i) for i in range(NUM_ROWS)]
    tokens = tokenizer()
    made = trainer(tmp_path, rows, tokens, assistant_only_loss=True, max_length=400)
    found = check_tokens(
        made.train_dataset,
        recipe(tmp_path, rows, loss_on="response", max_length=400),
        tokenizer=tokens,
    )
    assert found.ok, found.lines()


@pytest.mark.parametrize("names", [("human", "gpt"), ("User", "Assistant"), ("user", "model")])
def test_roles_are_called_what_the_data_calls_them(names: tuple[str, str], tmp_path: Path) -> None:
    rows = [
        {
            "conversations": [
                {"from": names[k % 2], "value": turn["content"]}
                for k, turn in enumerate(chat(i)["messages"])
            ]
        }
        for i in range(12)
    ]
    made = trainer(tmp_path, rows, tokenizer())
    found = check_tokens(made.train_dataset, recipe(tmp_path, rows), tokenizer=tokenizer())
    assert found.ok, found.lines()
    role = {"user": [names[0]], "assistant": [names[1]]}
    renamed = [chat(i) for i in range(12)]
    made = trainer(tmp_path / "b", renamed, tokenizer())
    found = check_tokens(
        made.train_dataset, recipe(tmp_path, rows, roles=role), tokenizer=tokenizer()
    )
    assert found.ok, found.lines()


def test_prompts_end_where_each_row_says(tmp_path: Path) -> None:
    """The same words, as prompt and completion in several ways."""
    turns = chat(1)["messages"]
    rows = [{"prompt": turns[:k], "completion": turns[k:]} for k in (1, 3)]
    made = trainer(tmp_path, rows, tokenizer())
    found = check_tokens(made.train_dataset, recipe(tmp_path, rows), tokenizer=tokenizer())
    assert found.ok and found.num_compared == 2, found.lines()


SWAPPED = ("qwen3", "qwen2_5", "llama3", "gemma3", "phi3", "deepseekv3", "glm4moe")
"""Templates without marks, in whose place TRL puts its own."""


@pytest.mark.parametrize("kind", ["chat", "lists", "tools"])
@pytest.mark.parametrize("name", SWAPPED)
def test_assistant_only_loss_where_trl_trains_with_a_template_of_its_own(
    name: str, kind: str, tmp_path: Path
) -> None:
    if kind == "tools" and name in ("gemma3", "phi3", "llama3"):
        pytest.skip("the template knows no tools")
    folder = trl_templates.templates_folder()
    assert folder is not None
    tokens = tokenizer()
    tokens.chat_template = (folder / f"{name}.jinja").read_text("utf-8")
    rows = [KINDS[kind](i) for i in range(12)]
    made = trainer(tmp_path, rows, tokens, assistant_only_loss=True, max_length=500)
    assert made.chat_template is not None
    settings = recipe(tmp_path, rows, loss_on="response", max_length=500)
    found = check_tokens(made.train_dataset, settings, tokenizer=tokens)
    assert found.ok, found.lines()


def test_a_store_that_was_made_without_trl_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = trl_templates.templates_folder()
    assert folder is not None
    tokens = tokenizer()
    tokens.chat_template = (folder / "qwen3.jinja").read_text("utf-8")
    rows = [chat(i) for i in range(NUM_ROWS)]
    made = trainer(tmp_path, rows, tokens, assistant_only_loss=True, max_length=400)
    made.train()
    settings = recipe(tmp_path, rows, loss_on="response", max_length=400)
    with monkeypatch.context() as patch:
        patch.setattr(trl_templates, "templates_folder", lambda: None)
        gracekit.refresh(settings, next((tmp_path / "run").glob("checkpoint-*")))
    assert "training template of its own" in caplog.text
    found = check_tokens(made.train_dataset, settings.store, tokenizer=tokens)
    assert found.num_different and found.advice is not None
    assert "Have the same TRL where gracekit refreshes" in found.advice


def first_version(folder: Path, rows: list[dict[str, Any]], checkpoint: Path) -> Recipe:
    made = recipe(folder, rows, rendering="auto")
    gracekit.refresh(made, checkpoint)
    return made


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_auto_is_trl_where_its_model_card_says_so_and_shuffled_rows_are_drawn_right(
    lora: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [pair(i) for i in range(NUM_ROWS)]
    first = trainer(tmp_path, rows, tokenizer())
    first.train()
    checkpoint = next((tmp_path / "run").glob("checkpoint-*"))
    made = first_version(tmp_path, rows, checkpoint)
    assert "TRL's SFTTrainer trains" in caplog.text
    assert check_tokens(first.train_dataset, made.store, tokenizer=tokenizer()).ok
    coreset = Coreset.load(made.store)

    shuffled = datasets.Dataset.from_list(rows).shuffle(seed=7)
    record = tmp_path / "drawn.jsonl"
    caplog.clear()
    callback = CoresetCallback(made.store, redraw="never", record=record)
    with caplog.at_level(logging.WARNING):
        again = trainer(tmp_path / "again", shuffled, tokenizer(), callback, lora=lora)
        again.train()
    assert "matched by their tokens" in caplog.text
    drawn = [json.loads(line) for line in record.read_text().splitlines()]
    ids = {sample_id for line in drawn for sample_id in line["sample_ids"]}
    assert ids == set(coreset.sample_ids.tolist())
    texts = {rows[row]["prompt"] for row in coreset.source_rows.tolist()}
    assert {shuffled[p]["prompt"] for line in drawn for p in line["positions"]} == texts


@pytest.mark.parametrize("names", ["nothing", "ids of all rows"])
@pytest.mark.parametrize("cut", [120, 400], ids=["cut alike", "cut later"])
def test_rows_that_trl_drops_do_not_turn_a_coreset_off(
    names: str, cut: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows whose answer is cut off; `cut later`: the store has answers there, and selects some."""
    rows = [pair(i) | {"id": f"id-{i}"} for i in range(NUM_ROWS)]
    dropped = {f"id-{i}" for i in range(0, NUM_ROWS, 10)}
    for i in range(0, NUM_ROWS, 10):
        rows[i]["prompt"] = f"{i} and " * 70
    first = trainer(tmp_path, rows, tokenizer())
    first.train()
    checkpoint = next((tmp_path / "run").glob("checkpoint-*"))
    made = recipe(tmp_path, rows, rendering="auto", max_length=cut, id_column="id")
    made = made.override({"selection.fraction": 0.9})
    gracekit.refresh(made, checkpoint)
    record = tmp_path / "drawn.jsonl"
    caplog.clear()
    ids = [row["id"] for row in rows] if names == "ids of all rows" else None
    callback = CoresetCallback(made.store, redraw="never", record=record, sample_ids=ids)
    again = trainer(tmp_path / "again", rows, tokenizer(), callback)
    assert len(again.train_dataset) == NUM_ROWS - len(dropped)
    again.train()
    drawn = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["version"] for line in drawn] == [1]
    found = {sample_id for line in drawn for sample_id in line["sample_ids"]}
    coreset = set(Coreset.load(made.store).sample_ids.tolist())
    assert found == coreset - dropped and bool(coreset & dropped) == (cut == 400)
    for line in drawn:
        at = [again.train_dataset[p]["id"] for p in line["positions"]]
        assert at == line["sample_ids"]
    if cut == 400:
        assert f"{len(dropped)} of {NUM_ROWS} samples are not in the trainer's" in caplog.text
    assert "id_column" not in caplog.text


def test_a_shuffled_dataset_in_other_tokens_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [chat(i) for i in range(NUM_ROWS)]
    first = trainer(tmp_path, rows, tokenizer())
    first.train()
    made = recipe(tmp_path, rows, rendering="plain")
    gracekit.refresh(made, next((tmp_path / "run").glob("checkpoint-*")))
    assert check_tokens(first.train_dataset, made.store).matched_by == "position"

    shuffled = datasets.Dataset.from_list(rows).shuffle(seed=7)
    record = tmp_path / "drawn.jsonl"
    caplog.clear()
    again = trainer(
        tmp_path / "again", shuffled, tokenizer(), CoresetCallback(made.store, record=record)
    )
    again.train()
    assert "may stand in another order" in caplog.text
    (line,) = record.read_text().splitlines()
    assert json.loads(line)["version"] is None


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "split": lambda rows: rows.train_test_split(0.2, seed=1)["train"],
    "filter": lambda rows: rows.filter(lambda row, i: i % 3 != 0, with_indices=True),
    "sort": lambda rows: rows.sort("completion"),
    "concatenate": lambda rows: datasets.concatenate_datasets(
        [datasets.Dataset.from_list([pair(i) for i in range(1000, 1020)]), rows]
    ),
    "replace": lambda rows: datasets.concatenate_datasets(
        [
            rows.select(range(30)),
            datasets.Dataset.from_list([pair(i) for i in range(1000, 1020)]),
            rows.select(range(50, NUM_ROWS)),
        ]
    ),
    "repeat": lambda rows: rows.select([0] * 5 + list(range(5, NUM_ROWS))),
    "join": lambda rows: rows.map(
        lambda batch: {name: ["".join(values[:3])] for name, values in batch.items()},
        batched=True, batch_size=3, remove_columns=rows.column_names,
    ),
}  # fmt: skip


def test_whatever_was_done_to_the_dataset_before_no_row_is_taken_for_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [pair(i) for i in range(NUM_ROWS)]
    trainer(tmp_path, rows, tokenizer()).train()
    made = first_version(tmp_path, rows, next((tmp_path / "run").glob("checkpoint-*")))
    samples = StoreReader.open(made.store).samples()
    row_of = dict(zip(samples.sample_ids.tolist(), samples.source_rows.tolist(), strict=True))
    for name, operation in OPERATIONS.items():
        changed = operation(datasets.Dataset.from_list(rows))
        record = tmp_path / f"{name}.jsonl"
        caplog.clear()
        callback = CoresetCallback(made.store, redraw="never", record=record)
        with caplog.at_level(logging.WARNING):
            trainer(tmp_path / name, changed, tokenizer(), callback, save_strategy="no").train()
        assert "the trainer's tokens:" in caplog.text
        (line,) = (json.loads(line) for line in record.read_text().splitlines())
        assert line["version"] == (None if name == "join" else 1)
        if name == "join":
            continue
        for position, sample_id in zip(line["positions"], line["sample_ids"], strict=True):
            assert changed[position] == rows[row_of[sample_id]]


def preference(i: int) -> dict[str, Any]:
    return {**pair(i), "chosen": f" {2 * i}, " + "so " * (i % 7), "rejected": " no"}


@pytest.mark.parametrize("mixes", [False, True], ids=["callback", "mixin"])
def test_shuffled_pairs_of_dpo_are_drawn_right(
    mixes: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import trl

    rows = [{k: v for k, v in preference(i).items() if k != "completion"} for i in range(NUM_ROWS)]
    tokens = tokenizer()
    base = tmp_path / "run/checkpoint-10"
    model(len(tokens)).save_pretrained(base)
    tokens.save_pretrained(base)
    (base / "trainer_state.json").write_text('{"global_step": 10}')
    made = recipe(tmp_path, rows)
    gracekit.refresh(made, base)
    samples = StoreReader.open(made.store).samples()
    row_of = dict(zip(samples.sample_ids.tolist(), samples.source_rows.tolist(), strict=True))
    shuffled = datasets.Dataset.from_list(rows).shuffle(seed=7)
    record = tmp_path / "drawn.jsonl"
    kind = type("Mixed", (CoresetTrainerMixin, trl.DPOTrainer), {}) if mixes else trl.DPOTrainer
    caplog.clear()
    kind(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "out"), num_train_epochs=1, report_to="none", use_cpu=True,
            per_device_train_batch_size=4, save_strategy="no", bf16=False, disable_tqdm=True,
            max_length=120, dataloader_pin_memory=False, gradient_checkpointing=False,
        ),
        train_dataset=shuffled,
        processing_class=tokens,
        callbacks=[CoresetCallback(made.store, redraw="never", record=record)],
    ).train()  # fmt: skip
    assert "matched by their tokens" in caplog.text
    (line,) = (json.loads(line) for line in record.read_text().splitlines())
    assert line["version"] == 1
    assert set(line["sample_ids"]) == set(Coreset.load(made.store).sample_ids.tolist())
    for position, sample_id in zip(line["positions"], line["sample_ids"], strict=True):
        assert shuffled[position] == rows[row_of[sample_id]]


@pytest.mark.parametrize("mixes", [False, True], ids=["callback", "mixin"])
def test_groups_of_answers_keep_their_sampler(
    mixes: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """GRPO compares several answers to one prompt: no coreset is drawn, and a warning says so."""
    import trl

    rows = [plain(i) for i in range(8)]
    tokens = tokenizer()
    prompts: list[list[str]] = []

    def reward(prompts: list[str], seen: list[list[str]] = prompts, **_: Any) -> list[float]:
        seen.append(prompts)
        return [1.0] * len(prompts)

    base = tmp_path / "base"
    model(len(tokens)).save_pretrained(base)
    kind = type("Mixed", (CoresetTrainerMixin, trl.GRPOTrainer), {}) if mixes else trl.GRPOTrainer
    kind(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path / "out"), max_steps=2, report_to="none", use_cpu=True,
            per_device_train_batch_size=4, save_strategy="no", bf16=False, disable_tqdm=True,
            num_generations=4, max_completion_length=4, dataloader_pin_memory=False,
            gradient_checkpointing=False,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": row["text"]} for row in rows]),
        processing_class=tokens,
        reward_funcs=reward,
        callbacks=[CoresetCallback(tmp_path / "store")],
    ).train()  # fmt: skip
    assert "each row several times in a row" in caplog.text
    assert prompts and all(len(set(group)) == 1 for group in prompts)


def test_packing_is_told(tmp_path: Path) -> None:
    rows = [pair(i) for i in range(NUM_ROWS)]
    made = trainer(tmp_path, rows, tokenizer(), packing=True, packing_strategy="wrapped")
    found = check_tokens(made.train_dataset, recipe(tmp_path, rows), tokenizer=tokenizer())
    assert not found.ok and "packed" in found.problems[0]
