"""Row layouts: how a row of the user's dataset becomes a conversation.

A layout is one entry of `FORMATS`: the columns it needs and a function from a row to messages.
With `format: auto` the first layout whose columns are all there is taken, in the order of the dict.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.types import Json

ASSISTANT = "assistant"

ROLES = {
    "human": "user",
    "gpt": ASSISTANT,
    "model": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
    "function_call": ASSISTANT,
    "observation": "tool",
    "function_response": "tool",
}
"""Role names of other layouts; any other name stays as it is."""


class MalformedRowError(ValueError):
    """A row that cannot be used; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One sample as the model will see it."""

    messages: tuple[Json, ...]
    """Each with `role` and `content`, both text, and perhaps more keys for the chat template."""
    is_text: bool = False
    """Plain text: one message without a role, to be used as it is."""
    tools: list[Json] | None = None
    """What the assistant may call, as JSON schemas for the chat template."""

    def canonical(self) -> str:
        """The same text for the same content, whatever the layout it came in; ASCII only."""
        content = [self.is_text, self.messages, *([] if self.tools is None else [self.tools])]
        return json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)

    @property
    def prompt(self) -> str:
        """What comes first and is not the assistant's, for people to read."""
        texts: list[str] = [m["content"] for m in self.messages if m["role"] in ("user", "text")]
        return texts[0] if texts else ""

    @property
    def response(self) -> str:
        """The assistant's first words; empty for plain text."""
        texts = (m["content"] for m in self.messages if m["role"] == ASSISTANT)
        return next(filter(str.strip, texts), "")


def says_something(message: Json) -> bool:
    """Whether it is the assistant's and there is something to learn from it."""
    said = message["content"].strip() or message.get("tool_calls")
    return message["role"] == ASSISTANT and bool(said)


@dataclass(frozen=True)
class Format:
    """One row layout."""

    name: str
    required: tuple[tuple[str, ...], ...]
    """Columns that must be there; each entry lists names of which one is enough."""
    optional: tuple[str, ...]
    read: Callable[[Json], list[Json]]
    """From a row to its messages; raises `MalformedRowError`."""

    def matches(self, columns: Collection[str]) -> bool:
        """Whether all required columns are there."""
        return all(any(name in columns for name in names) for names in self.required)

    def columns(self, available: Collection[str]) -> list[str]:
        """Those of the available columns that `read` looks at."""
        known = [name for names in self.required for name in names] + list(self.optional)
        return [name for name in available if name in known]

    def conversation(self, row: Json) -> Conversation:
        """Read a row; raises `MalformedRowError` where there is nothing to learn from."""
        messages = self.read(row)
        is_text = self.name == "text"
        if is_text and not messages[0]["content"].strip():
            raise MalformedRowError("the text is empty")
        if not is_text and all(m["role"] != ASSISTANT for m in messages):
            raise MalformedRowError("there is no message of the assistant")
        if not is_text and not any(map(says_something, messages)):
            raise MalformedRowError("the response is empty")
        return Conversation(messages=tuple(messages), is_text=is_text)


def _text(row: Json, *names: str) -> str:
    """The text in the first of the named columns that holds something."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if value is None:
        raise MalformedRowError(f"{' or '.join(map(repr, names))} is missing")
    return _as_text(value, repr(names[0]))


def _as_text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return json.dumps(value)
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in value
    ):
        return "".join(part.get("text") or "" for part in value)
    raise MalformedRowError(f"{what} is a {type(value).__name__}, expected text")


def _system(row: Json) -> list[Json]:
    return [{"role": "system", "content": _text(row, "system")}] if row.get("system") else []


def _messages(value: Any, what: str) -> list[Json]:
    """A list of messages, in the key names of OpenAI (role, content) or ShareGPT (from, value)."""
    if isinstance(value, dict):  # how older versions of `datasets` give a sequence of structs
        value = [
            dict(zip(value, entry, strict=True)) for entry in zip(*value.values(), strict=True)
        ]
    if not isinstance(value, list) or not value:
        raise MalformedRowError(f"{what} is not a list of messages")
    messages: list[Json] = []
    for entry in value:
        if not isinstance(entry, dict):
            raise MalformedRowError(f"{what} holds a {type(entry).__name__}, expected messages")
        rest = {key: item for key, item in entry.items() if item is not None}
        role = rest.pop("role", None) or rest.pop("from", None)
        content = rest.pop("content", None)
        content = rest.pop("value", None) if content is None else content
        if not isinstance(role, str):
            raise MalformedRowError(f"a message of {what} has no role")
        if content is None and "tool_calls" not in rest:
            raise MalformedRowError(f"a message of {what} has no content")
        text = _as_text("" if content is None else content, f"the content of a message of {what}")
        messages.append({"role": ROLES.get(role, role), "content": text, **rest})
    return messages


def _read_messages(row: Json) -> list[Json]:
    return _messages(row.get("messages"), "'messages'")


def _read_sharegpt(row: Json) -> list[Json]:
    return _system(row) + _messages(row.get("conversations"), "'conversations'")


def _read_prompt_completion(row: Json) -> list[Json]:
    prompt = row.get("prompt")
    completion = next((row[n] for n in RESPONSES if row.get(n) is not None), None)
    if isinstance(prompt, list) and isinstance(completion, list):
        return _messages(prompt, "'prompt'") + _messages(completion, "'completion'")
    return [
        *_system(row),
        {"role": "user", "content": _text(row, "prompt")},
        {"role": ASSISTANT, "content": _text(row, *RESPONSES)},
    ]


def _read_alpaca(row: Json) -> list[Json]:
    instruction = _text(row, "instruction")
    if row.get("input"):
        instruction += "\n\n" + _text(row, "input")
    messages = _system(row)
    for turn in row.get("history") or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise MalformedRowError("'history' is not a list of (question, answer)")
        messages.append({"role": "user", "content": _as_text(turn[0], "'history'")})
        messages.append({"role": ASSISTANT, "content": _as_text(turn[1], "'history'")})
    return [
        *messages,
        {"role": "user", "content": instruction},
        {"role": ASSISTANT, "content": _text(row, "output")},
    ]


def text_format(column: str) -> Format:
    """Plain text in the given column."""
    return Format(
        "text", ((column,),), (), lambda row: [{"role": "text", "content": _text(row, column)}]
    )


RESPONSES = ("completion", "response")

FORMATS = {
    layout.name: layout
    for layout in (
        Format("messages", (("messages",),), (), _read_messages),
        Format("sharegpt", (("conversations",),), ("system",), _read_sharegpt),
        Format("prompt-completion", (("prompt",), RESPONSES), ("system",), _read_prompt_completion),
        Format(
            "alpaca",
            (("instruction",), ("output",)),
            ("input", "system", "history"),
            _read_alpaca,
        ),
        text_format("text"),
    )
}


def choose_format(data: DataSection, columns: Collection[str]) -> Format:
    """The layout that the recipe names, or the first that fits; `DataError` where none does."""
    formats = FORMATS | {"text": text_format(data.text_column)}
    if data.format != "auto":
        chosen = formats[data.format]
        if chosen.matches(columns):
            return chosen
        raise DataError(
            f"{data.path}: format {data.format!r} needs {_needs(chosen)}; "
            f"found the columns {_names(columns)}. Set data.format, or leave it to be detected"
        )
    for candidate in formats.values():
        if candidate.matches(columns):
            return candidate
    expected = "; ".join(f"{name}: {_needs(layout)}" for name, layout in formats.items())
    raise DataError(
        f"{data.path}: no layout fits the columns {_names(columns)}. Expected {expected}. "
        "Rename the columns, or name the text's column in data.text_column"
    )


def _needs(layout: Format) -> str:
    return " and ".join(" or ".join(names) for names in layout.required)


def _names(columns: Collection[str]) -> str:
    return ", ".join(columns) or "(none)"
