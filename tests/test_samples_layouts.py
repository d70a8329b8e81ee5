"""Columns and roles of the user's own, common layouts, and data that is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gracekit.errors import DataError, RecipeError
from gracekit.recipe import DataSection, Recipe
from gracekit.samples import Conversation, load_samples, tokenize
from gracekit.samples.formats import choose_format
from gracekit.samples.messages import MalformedRowError, read_messages
from gracekit.samples.row_source import BATCH_ROWS
from gracekit.types import Json
from tests.tiny import make_tokenizer

USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}
HISTORY = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def settings(**keys: Any) -> DataSection:
    return DataSection.model_validate({"path": "x", **keys})


def read(row: Json, **keys: Any) -> Conversation:
    return choose_format(settings(**keys), row).conversation(row)


LAYOUTS: list[tuple[str, Json, list[Json]]] = [
    ("question-answer", {"question": "Q", "answer": "A"}, [USER, ASSISTANT]),
    ("question-answer", {"question": "Q", "response": "A", "system_prompt": "S"},
     [SYSTEM, USER, ASSISTANT]),
    ("question-answer", {"problem": "Q", "solution": "A"}, [USER, ASSISTANT]),
    ("query-response", {"query": "Q", "response": "A"}, [USER, ASSISTANT]),
    ("query-response", {"query": "Q", "response": "A", "history": [["q", "a"]], "system": "S"},
     [SYSTEM, *HISTORY, USER, ASSISTANT]),
    ("query-response", {"query": "Q", "response": "A", "history": '[["q", "a"]]'},
     [*HISTORY, USER, ASSISTANT]),
    ("query-response", {"query": "Q", "response": "A", "history": None}, [USER, ASSISTANT]),
    ("prompt-completion", {"prompt": "Q", "response": "A", "system_prompt": "S"},
     [SYSTEM, USER, ASSISTANT]),
    ("alpaca", {"instruction": "Q", "output": "A", "system_prompt": "S"},
     [SYSTEM, USER, ASSISTANT]),
    ("sharegpt", {"conversations": [USER, ASSISTANT], "system_prompt": "S"},
     [SYSTEM, USER, ASSISTANT]),
    ("messages", {"messages": [SYSTEM, USER, ASSISTANT], "system_prompt": "S"},
     [SYSTEM, USER, ASSISTANT]),
    ("instruction-response", {"instruction": "Q", "context": "", "response": "A"},
     [USER, ASSISTANT]),
    ("instruction-response", {"instruction": "Q", "context": "C", "response": "A"},
     [USER | {"content": "Q\n\nC"}, ASSISTANT]),
    ("input-output", {"inputs": "Q", "targets": "A"}, [USER, ASSISTANT]),
    ("input-output", {"input": "Q", "output": "A"}, [USER, ASSISTANT]),
    ("conversation", {"conversation": [USER, ASSISTANT]}, [USER, ASSISTANT]),
    ("conversation", {"conversation": [{"system": "S", "input": "Q", "output": "A"}]},
     [SYSTEM, USER, ASSISTANT]),
    ("conversation", {"conversation": [{"human": "q", "assistant": "a"},
                                       {"human": "Q", "assistant": "A"}]},
     [*HISTORY, USER, ASSISTANT]),
    ("messages", {"messages": json.dumps([USER, ASSISTANT])}, [USER, ASSISTANT]),
    ("messages", {"messages": [{"role": "Human", "content": "Q"},
                               {"role": "Assistant", "content": "A"}]}, [USER, ASSISTANT]),
    ("messages", {"messages": [{"role": "user", "content": "Q"}, {"role": "bot", "content": "A"}]},
     [USER, ASSISTANT]),
    ("messages", {"messages": [USER | {"content": [{"type": "text", "value": "Q"}]}, ASSISTANT]},
     [USER, ASSISTANT]),
    ("messages",
     {"messages": [USER, {"role": "assistant", "content": None,
                          "function_call": {"name": "f", "arguments": '{"x": 1}'}},
                   {"role": "function", "name": "f", "content": "1"}, ASSISTANT]},
     [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]},
      {"role": "tool", "name": "f", "content": "1"}, ASSISTANT]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "messages"), LAYOUTS)
def test_layouts_are_recognised(name: str, row: Json, messages: list[Json]) -> None:
    layout = choose_format(settings(), [*row, "other"])
    assert layout.name == name
    assert sorted(layout.columns([*row, "other"])) == sorted(row)
    assert list(layout.conversation(row).messages) == messages
    assert choose_format(settings(format=name), row).conversation(row) == layout.conversation(row)


NAMED: list[tuple[Json, Json, list[Json]]] = [
    ({"prompt": "title", "response": "body"}, {"title": "Q", "body": "A"}, [USER, ASSISTANT]),
    ({"response": "body"}, {"prompt": "Q", "body": "A", "text": "T"}, [USER, ASSISTANT]),
    ({"prompt": "t", "response": "b", "input": "c", "system": "s", "history": "h"},
     {"t": "Q", "b": "A", "c": "C", "s": "S", "h": [["q", "a"]]},
     [SYSTEM, *HISTORY, USER | {"content": "Q\n\nC"}, ASSISTANT]),
    ({"prompt": "question", "response": "answer"},
     {"question": "Q", "answer": "A", "context": "C"}, [USER, ASSISTANT]),
    ({"messages": "dialog"}, {"dialog": [USER, ASSISTANT], "prompt": "p", "response": "r"},
     [USER, ASSISTANT]),
    ({"messages": "dialog", "system": "s"}, {"dialog": [USER, ASSISTANT], "s": "S"},
     [SYSTEM, USER, ASSISTANT]),
    ({"prompt": "prompt", "response": "chosen"},
     {"prompt": "Q", "chosen": "A", "rejected": "B"}, [USER, ASSISTANT]),
    ({"messages": "chosen"}, {"chosen": [USER, ASSISTANT], "rejected": []}, [USER, ASSISTANT]),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "row", "messages"), NAMED)
def test_columns_can_be_named(columns: Json, row: Json, messages: list[Json]) -> None:
    assert list(read(row, columns=columns).messages) == messages


def test_names_go_with_a_format_and_with_other_keys(tmp_path: Path) -> None:
    row = {"q": "Q", "more": "C", "a": "A", "key": 7, "kind": "k"}
    columns = {"prompt": "q", "input": "more", "response": "a", "id": "key", "group": "kind"}
    data = settings(format="alpaca", columns=columns)
    assert (data.id_column, data.group_column) == ("key", "kind")
    assert set(data.columns.named) == {"prompt", "input", "response"}
    assert DataSection.model_validate(data.model_dump(mode="json")) == data
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row) + "\n")
    raw = load_samples(data.model_copy(update={"path": str(path)}))
    assert (raw.sample_ids.tolist(), raw.group_names) == (["7"], ("k",))
    assert raw.records[0].prompt == "Q\n\nC"
    assert settings(columns={"text": "body"}).text_column == "body"
    with pytest.raises(RecipeError, match=r"columns\.id and id_column name two columns"):
        Recipe.from_dict({"data": {"path": "x", "id_column": "a", "columns": {"id": "b"}}})
    with pytest.raises(RecipeError, match=r"unknown key 'data.columns.promt'; did you mean"):
        Recipe.from_dict({"data": {"path": "x", "columns": {"promt": "b"}}})
    with pytest.raises(RecipeError, match="names 'bot' twice"):
        Recipe.from_dict({"data": {"path": "x", "roles": {"user": ["bot"], "assistant": ["bot"]}}})
    with pytest.raises(DataError, match=r"no column 'questoin'.*did you mean 'question'"):
        read({"question": "Q", "answer": "A"}, columns={"prompt": "questoin"})
    with pytest.raises(DataError, match=r"'messages' has no prompt, which data\.columns names"):
        read({"messages": []}, format="messages", columns={"prompt": "messages"})


def test_roles_can_be_named() -> None:
    row = {"messages": [{"role": "Kundin", "content": "Q"}, {"role": "Hilfe", "content": "A"}]}
    roles = {"user": ["Kundin"], "assistant": ["Hilfe", "gpt"]}
    assert list(read(row, roles=roles).messages) == [USER, ASSISTANT]
    with pytest.raises(MalformedRowError, match=r"role 'Kundin' in 'messages' is not known.*roles"):
        read(row)
    # A role of the template's own is one that is named; and names go before ours.
    row = {"messages": [{"role": "narrator", "content": "N"}, {"role": "human", "content": "A"}]}
    named = read(row, roles={"narrator": ["narrator"], "assistant": ["human"]})
    assert [m["role"] for m in named.messages] == ["narrator", "assistant"]


def test_turns_without_loss() -> None:
    for off in ({"weight": 0}, {"weight": 0.0}, {"loss": False}, {"train": False}):
        first, _, last = read(
            {"messages": [ASSISTANT | off, USER, ASSISTANT | {"weight": 1}]}
        ).messages
        assert first["has_loss"] is False
        assert "has_loss" not in last
    with pytest.raises(MalformedRowError, match="carries loss"):
        read({"messages": [USER, ASSISTANT | {"weight": 0}]})
    with pytest.raises(MalformedRowError, match=r"the weight 0\.5, expected 0 or 1"):
        read({"messages": [USER, ASSISTANT | {"weight": 0.5}]})


def test_turns_without_loss_have_none_in_the_mask(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "sum"}, {"role": "assistant", "content": "two", "weight": 0},
        {"role": "user", "content": "is"}, {"role": "assistant", "content": "one", "weight": 1},
    ]  # fmt: skip
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"messages": chat}) + "\n")
    data, tokenizer = DataSection(path=str(path)), make_tokenizer()
    ((ids, mask),) = tokenize(load_samples(data), tokenizer, data, tmp_path).take(np.array([0]))
    assert tokenizer.decode(ids[mask]).split() == ["one", "<eos>"]


def test_tools_are_handed_on_and_are_content() -> None:
    plain = {"messages": [USER, ASSISTANT]}
    for tools in ([TOOL], json.dumps([TOOL])):
        conversation = read({**plain, "tools": tools})
        assert conversation.tools == [TOOL]
        assert conversation.canonical() != read(plain).canonical()
    none: list[Any] = [None, "", "[]", []]
    for empty in none:
        assert read({**plain, "tools": empty}).canonical() == read(plain).canonical()
    with pytest.raises(MalformedRowError, match="'tools' is text, but not a JSON list"):
        read({**plain, "tools": "hammer"})
    pair = {"prompt": "Q", "response": "A", "tools": "hammer"}
    assert read(pair).tools is None, "a column of the user's own that has this name"
    assert read({"q": "Q", "output": "A", "fs": [TOOL]},
                columns={"prompt": "q", "tools": "fs"}).tools == [TOOL]  # fmt: skip


BAD: list[tuple[Json, str]] = [
    ({"messages": "[{'role': 'user'}]"}, "'messages' is text, but not a JSON list"),
    ({"messages": [{"role": "user", "text": "Q"}, ASSISTANT]}, "no content; it has role, text"),
    ({"messages": [USER | {"content": [{"type": "image_url"}]}, ASSISTANT]}, "'image_url'; only"),
    ({"messages": [USER | {"content": [{"type": "text"}]}, ASSISTANT]}, "has no text; it has type"),
    ({"messages": [USER, ASSISTANT], "images": ["a.png"]}, "the row has images; only text"),
    ({"query": "Q", "response": "A", "history": "no"}, "'history' is text, but not"),
    ({"conversation": ["Hi", "Hello"]}, "'conversation' holds a str"),
    (
        {"messages": [USER, ASSISTANT], "system_prompt": "S"},
        "has 'system_prompt' beside its messages.*messages: messages, system: system_prompt}",
    ),
    ({"messages": [USER, ASSISTANT], "system": "S"}, "has 'system' beside its messages"),
    (
        {"conversations": [USER, ASSISTANT], "functions": [TOOL]},
        "has 'functions' beside its messages.*messages: conversations, tools: functions}",
    ),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_rows_that_cannot_be_used_say_why(row: Json, reason: str) -> None:
    with pytest.raises(MalformedRowError, match=reason):
        read(row)


REFUSED: list[tuple[Json, str]] = [
    ({"messages": [USER, ASSISTANT], "kto_tag": True}, "KTO data.*kto_tag"),
    ({"prompt": "Q", "completion": "A", "label": False}, "KTO data.*label"),
    ({"question": "Q", "answer": "A", "context": "C"},
     r"'context' beside 'question'.*input: context"),
    ({"question": "Q", "choices": ["a"], "answer": 0}, "'choices' beside 'question'"),
    ({"problem": "Q", "solution": "A", "answer": "1"}, "'answer' and 'solution' may both"),
    ({"instruction": "Q", "output": "A", "context": "C"},
     r"'context' beside 'instruction'.*prompt: instruction, response: output, input: context}"),
    ({"prompt": "Q", "response": "A", "context": "C"}, "'context' beside 'prompt'"),
    ({"prompt": "Q", "completion": "A", "input": "C"}, r"'input' beside 'prompt'.*input: input"),
    ({"question": "Q", "answer": "A", "history": []}, r"'history' beside.*history: history}"),
    ({"instruction": "Q", "response": "A", "context": "C", "input": "I"},
     r"'context' and 'input' may both be meant.*response: response, input: context}"),
    ({"prompt": "Q", "response": "A", "system": "S", "system_prompt": "T"},
     "'system' and 'system_prompt' may both"),
    ({"prompt": "Q", "chosen": "A", "rejected": "B", "context": "C"},
     r"'context' beside 'prompt'.*chosen: chosen, rejected: rejected"),
    ({"prompt": "Q", "completion": "A", "label": 0}, "KTO data.*label"),
    ({"title": "Q", "body": "A"}, r"no layout fits the columns title, body.*--column prompt="),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), REFUSED)
def test_data_of_another_task_is_refused_by_name(tmp_path: Path, row: Json, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message) as caught:
        load_samples(DataSection(path=str(path)))
    assert str(path) in str(caught.value)


def test_a_label_that_means_something_else(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "Q", "completion": "A", "label": true}\n')
    named = settings(path=str(path), columns={"prompt": "prompt", "response": "completion"})
    assert len(load_samples(named)) == 1
    path.write_text('{"prompt": "Q", "completion": "A", "label": 1}\n')
    assert len(load_samples(DataSection(path=str(path)))) == 1
    path.write_text('{"text": "Q", "label": 1}\n{"text": "A", "label": 0}\n')
    assert len(load_samples(DataSection(path=str(path)))) == 2, "classes of texts"
    rows = "".join(f'{{"prompt": "Q", "completion": "{k}", "label": {k}}}\n' for k in range(3))
    path.write_text(rows)
    assert len(load_samples(DataSection(path=str(path)))) == 3, "classes of answers"


@pytest.mark.parametrize("bad", ["false", "0", "0.0", '"False"', '"0"'])
def test_a_bad_answer_is_found_in_any_row(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "t.jsonl"
    good = '{"prompt": "Q", "completion": "A", "label": null}\n' * (BATCH_ROWS + 1)
    path.write_text(f'{good}{{"prompt": "Q", "completion": "B", "label": {bad}}}\n')
    with pytest.raises(DataError, match=r"KTO data.*label"):
        load_samples(settings(path=str(path)))
    path = tmp_path / "t.csv"
    path.write_text("prompt,completion,label\na,b,1\na,c,\na,d," + bad.strip('"') + "\n")
    with pytest.raises(DataError, match=r"KTO data.*label"):
        load_samples(settings(path=str(path)))


def test_tools_of_prompts_and_answers_are_read() -> None:
    for row in (
        {"query": "Q", "answer": "A"}, {"instruction": "Q", "output": "A"},
        {"question": "Q", "answer": "A"}, {"input": "Q", "output": "A"},
        {"instruction": "Q", "response": "A"}, {"prompt": "Q", "completion": "A"},
    ):  # fmt: skip
        assert read({**row, "tools": [TOOL]}).tools == [TOOL]
        assert read({**row, "tools": "hammer"}).tools is None


def test_an_id_or_group_is_no_part_of_the_prompt() -> None:
    row = {"prompt": "Q", "response": "A", "context": "C"}
    assert list(read(row, group_column="context").messages) == [USER, ASSISTANT]
    with pytest.raises(DataError, match="'context' beside 'prompt'"):
        read(row)


@pytest.mark.parametrize("rendering", ["trl", "axolotl", "llamafactory:qwen"])
def test_weights_that_a_trainer_does_not_know_leave_no_row_out(rendering: str) -> None:
    row = {"messages": [USER, ASSISTANT | {"weight": 0}]}
    assert len(read(row, rendering=rendering).messages) == 2
    with pytest.raises(MalformedRowError, match="carries loss"):
        read(row, rendering="chat")
    with pytest.raises(MalformedRowError, match="response is empty"):
        read({"messages": [USER, ASSISTANT | {"content": ""}]}, rendering=rendering)


@pytest.mark.parametrize("key", ["weight", "loss", "train"])
def test_a_zero_takes_the_loss_as_false_does(key: str) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for value in (0, 0.0, False):
        found = read_messages([turns[0], turns[1] | {key: value}], "x", {})
        assert found[1]["has_loss"] is False
    for value in (1, 1.0, True):
        assert "has_loss" not in read_messages([turns[0], turns[1] | {key: value}], "x", {})[1]
    assert read_messages([turns[1] | {"weight": "0"}], "x", {})[0]["has_loss"] is False
    assert "has_loss" not in read_messages([turns[1] | {"loss": 0.7}], "x", {})[0]


def test_one_image_beside_a_chat_that_names_it_is_refused() -> None:
    chat = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    row = {"image": "0.jpg", "conversations": chat}
    layout = choose_format(DataSection(path="x"), [*row])
    assert "image" in layout.columns([*row])
    with pytest.raises(MalformedRowError, match="the row has image, named in its text"):
        layout.conversation(row)
    chat[0]["value"] = "What?"
    assert layout.conversation(row).messages[0]["content"] == "What?"


def test_options_of_the_template_in_a_row_are_refused_under_trl(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"}]
    rows: list[Json] = [{"messages": turns, "chat_template_kwargs": {"enable_thinking": False}}]
    rows.append({"messages": turns})
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    for rendering, refused in (("trl", [0]), ("chat", [])):
        data = DataSection(path=str(path), rendering=rendering)
        table = tokenize(load_samples(data), tokenizer, data, tmp_path / rendering)
        assert [row.source_row for row in table.unrendered] == refused
