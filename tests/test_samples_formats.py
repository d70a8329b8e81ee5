"""Every row layout gives the conversation it means, and says why where it cannot."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.formats import (
    FORMATS,
    Conversation,
    MalformedRowError,
    choose_format,
    text_format,
)
from gracekit.samples.raw import PREVIEW, UNPRINTABLE, preview
from gracekit.types import Json

USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}

ROWS: list[tuple[str, Json, list[Json]]] = [
    ("prompt-completion", {"prompt": "Q", "completion": "A"}, [USER, ASSISTANT]),
    ("prompt-completion", {"prompt": "Q", "response": "A"}, [USER, ASSISTANT]),
    ("prompt-completion", {"prompt": "Q", "response": "A", "system": "S"},
     [SYSTEM, USER, ASSISTANT]),
    ("prompt-completion", {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
     [SYSTEM, USER, ASSISTANT]),
    ("prompt-completion", {"prompt": "Q", "response": 42}, [USER, ASSISTANT | {"content": "42"}]),
    ("alpaca", {"instruction": "Q", "output": "A"}, [USER, ASSISTANT]),
    ("alpaca", {"instruction": "Q", "input": "", "output": "A"}, [USER, ASSISTANT]),
    ("alpaca", {"instruction": "Do", "input": "it", "output": "A"},
     [USER | {"content": "Do\n\nit"}, ASSISTANT]),
    ("alpaca", {"instruction": "Q", "output": "A", "system": "S", "history": [["q", "a"]]},
     [SYSTEM, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, USER,
      ASSISTANT]),
    ("messages", {"messages": [SYSTEM, USER, ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
    ("messages", {"messages": [USER | {"name": None}, ASSISTANT]}, [USER, ASSISTANT]),
    ("messages", {"messages": {"role": ["user", "assistant"], "content": ["Q", "A"]}},
     [USER, ASSISTANT]),
    ("messages", {"messages": [USER, ASSISTANT | {"content": [{"type": "text", "text": "A"}]}]},
     [USER, ASSISTANT]),
    ("messages", {"messages": [USER, ASSISTANT | {"content": None, "tool_calls": [{"id": 1}]}]},
     [USER, ASSISTANT | {"content": "", "tool_calls": [{"id": 1}]}]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Q"},
                                    {"from": "gpt", "value": "A"}]}, [USER, ASSISTANT]),
    ("sharegpt", {"system": "S", "conversations": [USER, ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Q"},
                                    {"from": "function_call", "value": "f()"},
                                    {"from": "observation", "value": "1"},
                                    {"from": "gpt", "value": "A"}]},
     [USER, {"role": "assistant", "content": "f()"}, {"role": "tool", "content": "1"}, ASSISTANT]),
    ("text", {"text": "T"}, [{"role": "text", "content": "T"}]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "messages"), ROWS)
def test_layout_is_detected_and_read(name: str, row: Json, messages: list[Json]) -> None:
    layout = choose_format(DataSection(path="x"), [*row, "other"])
    assert layout.name == name
    assert sorted(layout.columns([*row, "other"])) == sorted(row)
    conversation = layout.conversation(row)
    assert list(conversation.messages) == messages
    assert conversation.is_text == (name == "text")


BAD: list[tuple[str, Json, str]] = [
    ("prompt-completion", {"prompt": None, "response": "A"}, "'prompt' is missing"),
    ("prompt-completion", {"prompt": "Q"}, "'completion' or 'response' is missing"),
    ("prompt-completion", {"prompt": "Q", "response": " \n"}, "the response is empty"),
    ("prompt-completion", {"prompt": "Q", "response": {"a": 1}}, "is a dict, expected text"),
    ("alpaca", {"instruction": "Q", "output": ""}, "the response is empty"),
    ("alpaca", {"instruction": "Q", "output": "A", "history": ["x"]}, "'history' is not"),
    ("messages", {"messages": None}, "is not a list of messages"),
    ("messages", {"messages": []}, "is not a list of messages"),
    ("messages", {"messages": ["hello"]}, "holds a str"),
    ("messages", {"messages": [{"content": "A"}]}, "has no role"),
    ("messages", {"messages": [{"role": "assistant"}]}, "has no content"),
    ("messages", {"messages": [USER]}, "no message of the assistant"),
    ("messages", {"messages": [USER, ASSISTANT | {"content": ""}]}, "the response is empty"),
    ("sharegpt", {"conversations": [{"from": "gpt", "value": {}}]}, "expected text"),
    ("text", {"text": "  "}, "the text is empty"),
    ("text", {"text": None}, "'text' is missing"),
]


@pytest.mark.parametrize(("name", "row", "reason"), BAD)
def test_rows_that_cannot_be_used_say_why(name: str, row: Json, reason: str) -> None:
    with pytest.raises(MalformedRowError, match=reason):
        FORMATS[name].conversation(row)


def test_the_first_layout_that_fits_is_taken_unless_the_recipe_names_one() -> None:
    columns = ["prompt", "messages", "response", "text"]
    assert choose_format(DataSection(path="x"), columns).name == "messages"
    named = DataSection(path="x", format="prompt-completion")
    assert choose_format(named, columns).name == "prompt-completion"


def test_plain_text_may_have_another_column() -> None:
    data = DataSection(path="x", text_column="body")
    assert choose_format(data, ["body"]).conversation({"body": "T"}).prompt == "T"
    assert text_format("body").columns(["body", "text"]) == ["body"]


def test_no_fitting_layout_lists_what_was_expected_and_found() -> None:
    with pytest.raises(DataError, match=r"fits the columns title, body\..*alpaca.*data\.columns"):
        choose_format(DataSection(path="x"), ["title", "body"])
    with pytest.raises(DataError, match="'messages' needs messages; found the columns prompt"):
        choose_format(DataSection(path="x", format="messages"), ["prompt"])


def test_equal_content_has_one_canonical_form_in_every_layout() -> None:
    rows = [row for _, row, messages in ROWS if messages == [USER, ASSISTANT]]
    forms = {
        choose_format(DataSection(path="x"), row).conversation(row).canonical() for row in rows
    }
    assert len(rows) > 5
    assert len(forms) == 1


def test_plain_text_differs_from_a_conversation_of_the_same_words() -> None:
    messages = ({"role": "assistant", "content": "T"},)
    assert Conversation(messages).canonical() != Conversation(messages, is_text=True).canonical()


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, gracekit.samples; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "transformers", "datasets", "pyarrow", "pandas", "tokenizers", "duckdb"}
    assert heavy.isdisjoint(loaded.stdout.split())


@given(prompt=st.text(), response=st.text(min_size=1))
def test_previews_are_short_harmless_lines(prompt: str, response: str) -> None:
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": response})
    line = preview(Conversation(messages))
    assert len(line) <= PREVIEW
    assert "→" in line
    assert not UNPRINTABLE.search(line)
    assert len(line.splitlines()) == 1
    line.encode()
