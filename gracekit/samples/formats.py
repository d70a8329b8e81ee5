"""Row layouts: how a row of the user's dataset becomes a conversation.

A layout is one entry of `FORMATS`: what it needs, in which columns that is found, and a function
from a row to messages. `data.columns` says other columns for it. With `format: auto` the first
layout whose columns are all there is taken, in the order of the dict; those that came later stand
last, so that a file is read as it always was. Above 400 lines, so that all layouts and their order
are seen together.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.messages import (
    ASSISTANT,
    MEDIA,
    MalformedRowError,
    as_text,
    from_json_text,
    read_messages,
)
from gracekit.types import Json

__all__ = [
    "ASSISTANT",
    "FORMATS",
    "Conversation",
    "Format",
    "MalformedRowError",
    "choose_format",
    "missing_column",
    "named_format",
    "refuse_labels",
    "says_something",
    "text_format",
]


GivenAs = Literal["chat", "text", "strings", "lists", "several columns"]
"""Of a row: one conversation; a plain text; a prompt and a completion, as strings or as lists of
messages; or a prompt that is put together from several columns."""

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One sample as the model will see it."""

    messages: tuple[Json, ...]
    """Each with `role` and `content`, both text, and perhaps more keys for the chat template.
    `has_loss: False` on a message of the assistant: the trainer puts no loss on it."""
    is_text: bool = False
    """Plain text: one message without a role, to be used as it is."""
    tools: list[Json] | None = None
    """What the assistant may call, as JSON schemas for the chat template; None: nothing."""
    given_as: GivenAs = "chat"
    """What the row held; trainers treat a prompt and its completion in ways of their own."""
    num_prompt_messages: int = 0
    """Of a prompt and a completion that are lists of messages: those of the prompt."""

    def canonical(self) -> str:
        """The same text for the same content, whatever the layout it came in; ASCII only."""
        content = [self.is_text, self.messages, *([self.tools] if self.tools else [])]
        return _CANONICAL.encode(content)

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
    return message["role"] == ASSISTANT and bool(said) and message.get("has_loss", True)


@dataclass(frozen=True, slots=True)
class Row:
    """One row, asked by what is in a column instead of by the column's name."""

    values: Json
    names: Mapping[str, tuple[str, ...]]
    """What -> columns that may hold it, of which the first that is not null does."""
    roles: Mapping[str, str]

    def get(self, what: str) -> Any:
        """The value; None where there is none."""
        for name in self.names[what]:
            value = self.values.get(name)
            if value is not None:
                return value
        return None

    def text(self, what: str) -> str:
        """The value as text; `MalformedRowError` where it is missing or cannot be one."""
        value = self.get(what)
        if value is None:
            raise MalformedRowError(f"{self.shown(what)} is missing")
        return as_text(value, repr(self.names[what][0]))

    def shown(self, what: str) -> str:
        """The columns for messages: `'completion' or 'response'`."""
        return " or ".join(map(repr, self.names[what]))

    def messages(self, what: str) -> list[Json]:
        """The value as messages."""
        return read_messages(self.get(what), self.shown(what), self.roles)

    def system(self) -> list[Json]:
        """The system message, if there is one."""
        return [{"role": "system", "content": self.text("system")}] if self.get("system") else []


@dataclass(frozen=True)
class Format:
    """One row layout."""

    name: str
    required: tuple[str, ...]
    """What must be there."""
    names: Mapping[str, tuple[str, ...]]
    """What -> columns that may hold it."""
    read: Callable[[Row], list[Json]]
    """From a row to its messages; raises `MalformedRowError`."""
    beside: tuple[str, ...] = ()
    """Columns that would change the prompt: with one of them the layout is not detected."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Names of roles of the user's own -> the role that they stand for."""

    def matches(self, columns: Collection[str]) -> bool:
        """Whether all that is required is there."""
        return all(any(name in columns for name in self.names[what]) for what in self.required)

    def columns(self, available: Collection[str]) -> list[str]:
        """Those of the available columns that `conversation` looks at."""
        known = {name for names in self.names.values() for name in names} | {*MEDIA_COLUMNS}
        return [name for name in available if name in known]

    def conversation(self, row: Json) -> Conversation:
        """Read a row; raises `MalformedRowError` where there is nothing to learn from."""
        asked = Row(row, self.names, self.roles)
        messages = self.read(asked)
        is_text = self.name == "text"
        _require_text_only(row)
        if is_text and not messages[0]["content"].strip():
            raise MalformedRowError("the text is empty")
        if not is_text and all(m["role"] != ASSISTANT for m in messages):
            raise MalformedRowError("there is no message of the assistant")
        if not is_text and not any(map(says_something, messages)):
            has_loss = any(m["role"] == ASSISTANT and m.get("has_loss", True) for m in messages)
            raise MalformedRowError(
                "the response is empty"
                if has_loss
                else "no message of the assistant carries loss (weight 0)"
            )
        tools = _tools(asked, is_chat="messages" in self.required)
        given_as, num_prompt = _given_as(asked, self.required)
        return Conversation(tuple(messages), is_text, tools, given_as, num_prompt)

    def with_names(self, named: Mapping[str, str]) -> Format:
        """The same, with the given columns for what they are said to hold."""
        names = dict(self.names) | {what: (column,) for what, column in named.items()}
        return dataclasses.replace(self, names=names)


MEDIA_COLUMNS = tuple(f"{kind}s" for kind in MEDIA)


def _require_text_only(row: Json) -> None:
    for name in MEDIA_COLUMNS:
        if row.get(name):
            raise MalformedRowError(f"the row has {name}; only text is read")


def _given_as(row: Row, required: tuple[str, ...]) -> tuple[GivenAs, int]:
    """`Conversation.given_as` and `num_prompt_messages`."""
    if "prompt" not in required:
        return ("text" if "text" in required else "chat"), 0
    prompt, response = row.get("prompt"), row.get("response")
    if any(row.get(more) for more in ("system", "history", "input") if more in row.names):
        return "several columns", 0
    if isinstance(prompt, list) and isinstance(response, list):
        return "lists", len(row.messages("prompt"))
    return "strings", 0


def _tools(row: Row, *, is_chat: bool) -> list[Json] | None:
    value = row.get("tools") if "tools" in row.names else None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        tools = from_json_text(value, row.shown("tools"))
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise MalformedRowError(f"{row.shown('tools')} is not a list of tool definitions")
    except MalformedRowError:
        if is_chat or row.names["tools"] != ("tools",):
            raise
        return None  # a column of texts that happens to have this name
    return tools or None


def _read_messages(row: Row) -> list[Json]:
    return (row.system() if "system" in row.names else []) + row.messages("messages")


def _read_pair(row: Row) -> list[Json]:
    prompt, response = row.get("prompt"), row.get("response")
    if isinstance(prompt, list) and isinstance(response, list) and not row.get("input"):
        return row.system() + row.messages("prompt") + row.messages("response")
    question = row.text("prompt")
    if row.get("input"):
        question += "\n\n" + row.text("input")
    messages = row.system()
    history = from_json_text(row.get("history") or [], row.shown("history"))
    for turn in history:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise MalformedRowError(f"{row.shown('history')} is not a list of (question, answer)")
        messages.append({"role": "user", "content": as_text(turn[0], row.shown("history"))})
        messages.append({"role": ASSISTANT, "content": as_text(turn[1], row.shown("history"))})
    return [
        *messages,
        {"role": "user", "content": question},
        {"role": ASSISTANT, "content": row.text("response")},
    ]


def _read_text(row: Row) -> list[Json]:
    return [{"role": "text", "content": row.text("text")}]


def text_format(column: str) -> Format:
    """Plain text in the given column."""
    return Format("text", ("text",), {"text": (column,)}, _read_text)


def _chat(name: str, column: str, **more: tuple[str, ...]) -> Format:
    names = {"messages": (column,), "tools": ("tools",), **more}
    return Format(name, ("messages",), names, _read_messages)


def _pair(
    name: str,
    prompt: tuple[str, ...],
    response: tuple[str, ...],
    *,
    beside: tuple[str, ...] = (),
    **more: tuple[str, ...],
) -> Format:
    """What is not given, such as `history`, is read only where `data.columns` names it."""
    nowhere: dict[str, tuple[str, ...]] = {"input": (), "history": (), "system": ("system",)}
    names = {"prompt": prompt, "response": response, **nowhere, **more}
    return Format(name, ("prompt", "response"), names, _read_pair, beside)


_SYSTEM = ("system", "system_prompt")
_CONTEXT = ("input", "context", "passage", "choices", "options")

FORMATS = {
    layout.name: layout
    for layout in (
        _chat("messages", "messages"),
        _chat("sharegpt", "conversations", system=("system",)),
        _pair("prompt-completion", ("prompt",), ("completion", "response"), tools=("tools",)),
        _pair("alpaca", ("instruction",), ("output",), input=("input",), history=("history",)),
        text_format("text"),
        _chat("conversation", "conversation", system=("system",)),
        _pair(
            "instruction-response",
            ("instruction",),
            ("response",),
            input=("context", "input"),
            history=("history",),
            system=_SYSTEM,
        ),
        _pair(
            "question-answer",
            ("question", "problem"),
            ("answer", "response", "solution"),
            beside=_CONTEXT,
            system=_SYSTEM,
        ),
        _pair(
            "query-response",
            ("query",),
            ("response", "answer"),
            beside=_CONTEXT,
            history=("history",),
            system=_SYSTEM,
        ),
        _pair(
            "input-output",
            ("inputs", "input"),
            ("targets", "target", "output"),
            beside=_CONTEXT[1:],
            system=_SYSTEM,
        ),
    )
}


def named_format(data: DataSection, name: str) -> Format:
    """The layout of this name as the recipe has it: with its columns and roles."""
    layout = text_format(data.text_column) if name == "text" else FORMATS[name]
    roles = {name: role for role, names in data.roles.items() for name in names}
    return dataclasses.replace(layout.with_names(data.columns.named), roles=roles)


def choose_format(data: DataSection, columns: Collection[str]) -> Format:
    """The layout that the recipe names, or the first that fits; `DataError` where none does."""
    named = data.columns.named
    for column in named.values():
        if column not in columns:
            raise missing_column(data, column, columns)
    if data.format != "auto":
        return _as_named(data, columns)
    if not named:
        _refuse_by_columns(data, columns)
    layouts = [named_format(data, name) for name in FORMATS]
    for layout, known in zip(layouts, FORMATS.values(), strict=True):
        if _unread(data, known) or not layout.matches(columns):
            continue
        if layout.name in _STRICT and not named:
            _require_one_meaning(data, layout, columns)
        return layout
    expected = "; ".join(f"{layout.name}: {_needs(layout)}" for layout in layouts)
    said = f" with data.columns {named}" if named else ""
    raise DataError(
        f"{data.path}: no layout fits the columns {_names(columns)}{said}. Expected {expected}. "
        "Say which column is what in data.columns, such as {prompt: title, response: body}, or "
        "--column prompt=title with init; name the text's column in data.text_column"
    )


def _as_named(data: DataSection, columns: Collection[str]) -> Format:
    chosen = named_format(data, data.format)
    unknown = _unread(data, FORMATS[data.format])
    if unknown:
        raise DataError(
            f"data.format {data.format!r} has no {', '.join(sorted(unknown))}, which data.columns "
            "names; set data.format to auto"
        )
    if chosen.matches(columns):
        if not data.columns.named:
            _refuse_by_columns(data, columns)
        return chosen
    raise DataError(
        f"{data.path}: format {data.format!r} needs {_needs(chosen)}; "
        f"found the columns {_names(columns)}. Set data.format, or leave it to be detected"
    )


_STRICT = ("instruction-response", "question-answer", "query-response", "input-output")


def _unread(data: DataSection, layout: Format) -> set[str]:
    """What `data.columns` names and this layout does not look at."""
    also = {"messages": {"system"}, "prompt": {"tools"}}.get(layout.required[0], set())
    return data.columns.named.keys() - layout.names.keys() - also


def _require_one_meaning(data: DataSection, layout: Format, columns: Collection[str]) -> None:
    """`DataError` where it would be guessed which column is the prompt or the response."""
    prompt, response = (
        [name for name in layout.names[what] if name in columns] for what in layout.required
    )
    beside = [name for name in layout.beside if name in columns]
    if len(prompt) == len(response) == 1 and not beside:
        return
    if beside:
        what = f"{beside[0]!r} beside {prompt[0]!r} may belong to the prompt"
        more = f", input: {beside[0]}"
    else:
        several = prompt if len(prompt) > 1 else response
        what, more = f"{' and '.join(map(repr, several))} may both be meant", ""
    raise DataError(
        f"{data.path}: {what}. Say which column is what: "
        f"data.columns: {{prompt: {prompt[0]}, response: {response[0]}{more}}} "
        f"(--column prompt={prompt[0]} with init)"
    )


def _refuse_by_columns(data: DataSection, columns: Collection[str]) -> None:
    """`DataError` for data of another task, which would be taken for chats."""
    if "chosen" in columns and "rejected" in columns:
        raise DataError(
            f"{data.path} holds preference pairs (columns chosen and rejected), which are not "
            "read as such. To work with the chosen side alone, name it: data.columns: {messages: "
            "chosen} where it holds whole conversations, else {prompt: prompt, response: chosen}"
        )
    if "kto_tag" in columns:
        raise _kto(data, "kto_tag")
    if "input_ids" in columns and not any(layout.matches(columns) for layout in FORMATS.values()):
        raise DataError(
            f"{data.path} is tokenised already (column input_ids), which is not read; name the "
            "data with its texts"
        )


def refuse_labels(data: DataSection, first_rows: Iterable[Json]) -> None:
    """`DataError` for KTO data: rows that the column `label` calls good or bad."""
    values = [row["label"] for row in first_rows if row.get("label") is not None]
    is_kto = values and all(
        isinstance(v, bool) or (isinstance(v, str) and v.casefold() in ("true", "false"))
        for v in values
    )
    if is_kto and not data.columns.named:
        raise _kto(data, "label")


def _kto(data: DataSection, column: str) -> DataError:
    return DataError(
        f"{data.path} holds KTO data (column {column}), where bad answers stand among good ones; "
        f"it is not read as such. Take the good rows into a file of their own; where {column} "
        "means something else, name the columns in data.columns"
    )


def missing_column(data: DataSection, name: str, columns: Collection[str]) -> DataError:
    """The error for a column that the recipe names and the dataset lacks."""
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "correct the recipe"
    return DataError(
        f"{data.path} has no column {name!r}; found the columns {_names(columns)}; {hint}"
    )


def _needs(layout: Format) -> str:
    return " and ".join(" or ".join(layout.names[what]) for what in layout.required)


def _names(columns: Collection[str]) -> str:
    return ", ".join(columns) or "(none)"
