"""Row layouts: how a row of the user's dataset becomes a conversation.

A layout is one entry of `FORMATS`: what it needs, in which columns that is found, and a function
from a row to messages. `data.columns` says other columns for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gracekit.samples.conversation import Conversation, GivenAs, says_something
from gracekit.samples.messages import (
    ASSISTANT,
    MEDIA,
    MalformedRowError,
    as_text,
    from_json_text,
    has_old_calls,
    role_names,
)
from gracekit.samples.pair_rows import read_pair_row
from gracekit.samples.row import Row
from gracekit.samples.token_rows import LOSS_MASKS, OTHER_LOSS, read_token_row
from gracekit.types import Json


@dataclass(frozen=True)
class Format:
    """One row layout."""

    name: str
    required: tuple[str, ...]
    """What must be there."""
    names: Mapping[str, tuple[str, ...]]
    """What -> columns that may hold it."""
    read: Callable[[Row], Conversation]
    """From a row to its conversation, but for the tools; raises `MalformedRowError`."""
    beside: tuple[str, ...] = ()
    """Columns that may belong to the prompt: with one of them the layout is not detected."""
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What belongs to the prompt -> columns of it that are not read: a row that has it there and
    not in what is read is refused."""
    has_weights: bool = True
    """Whether the trainer puts no loss on a turn of weight 0."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Names of roles of the user's own -> the role that they stand for."""

    def matches(self, columns: Collection[str]) -> bool:
        """Whether all that is required is there."""
        return all(any(name in columns for name in self.names[what]) for what in self.required)

    def columns(self, available: Collection[str]) -> list[str]:
        """Those of the available columns that `conversation` looks at."""
        known = {name for names in self.names.values() for name in names}
        known |= {name for names in self.left_out.values() for name in names}
        known |= {*MEDIA, *MEDIA_COLUMNS, TEMPLATE_OPTIONS}
        return [name for name in available if name in known]

    def conversation(self, row: Json) -> Conversation:
        """Read a row; raises `MalformedRowError` where there is nothing to learn from."""
        asked = Row(row, self.names, self.roles)
        found = self.read(asked)
        _require_text_only(row, found.messages)
        self._require_whole(row, found.messages)
        if found.tokens is not None:
            return dataclasses.replace(found, given_as="tokens")
        if not found.is_text:
            has_weights = self.has_weights or found.rejected is not None
            _require_answer(found.messages, has_weights=has_weights)
        elif not found.messages[0]["content"].strip():
            raise MalformedRowError("the text is empty")
        return dataclasses.replace(
            found,
            tools=_tools(asked, is_chat="messages" in self.required),
            given_as=_given_as(asked, self.required),
            template_options=bool(row.get(TEMPLATE_OPTIONS)),
            layout=self.name,
            prompt_columns=_prompt_columns(asked, self.required),
        )

    def _require_whole(self, row: Json, messages: Sequence[Json]) -> None:
        """`MalformedRowError` where a column that is not read belongs to the prompt."""
        for what, names in self.left_out.items():
            if any(message["role"] == what for message in messages):
                continue
            for name in names:
                if row.get(name):
                    columns = f"messages: {self.names['messages'][0]}"
                    raise MalformedRowError(
                        f"the row has {name!r} beside its messages; say what it is: "
                        f"data.columns: {{{columns}, {what}: {name}}}, or leave it out with "
                        f"data.columns: {{{columns}}}"
                    )

    def with_names(self, named: Mapping[str, str]) -> Format:
        """The same, with the given columns for what they are said to hold."""
        names = dict(self.names) | {what: (column,) for what, column in named.items()}
        return dataclasses.replace(self, names=names, left_out={} if named else self.left_out)


TEMPLATE_OPTIONS = "chat_template_kwargs"
MEDIA_COLUMNS = tuple(f"{kind}s" for kind in MEDIA)


def _require_text_only(row: Json, messages: Sequence[Json]) -> None:
    for name in MEDIA_COLUMNS:
        if row.get(name):
            raise MalformedRowError(f"the row has {name}; only text is read")
    for kind in MEDIA:  # one file beside a chat that names it, as LLaVA's
        if row.get(kind) and any(f"<{kind}>" in message["content"] for message in messages):
            raise MalformedRowError(f"the row has {kind}, named in its text; only text is read")


def _require_answer(messages: Sequence[Json], *, has_weights: bool) -> None:
    if all(m["role"] != ASSISTANT for m in messages):
        raise MalformedRowError("there is no message of the assistant")
    weighed = messages if has_weights else [m | {"has_loss": True} for m in messages]
    if not any(map(says_something, weighed)):
        has_loss = any(m["role"] == ASSISTANT and m.get("has_loss", True) for m in messages)
        raise MalformedRowError(
            "the response is empty"
            if has_loss
            else "no message of the assistant carries loss (weight 0)"
        )


def _given_as(row: Row, required: tuple[str, ...]) -> GivenAs:
    """`Conversation.given_as` of a row that is not given as tokens."""
    is_pair = "rejected" in required
    if not is_pair and "prompt" not in required:
        return "text" if "text" in required else "chat"
    if any(row.get(more) for more in ("system", "history", "input")):
        return "several columns"
    prompt, answer = row.get("prompt"), row.get("chosen" if is_pair else "response")
    if is_pair:
        return "lists" if any(isinstance(v, list | dict) for v in (prompt, answer)) else "strings"
    return "lists" if isinstance(prompt, list) and isinstance(answer, list) else "strings"


def _prompt_columns(row: Row, required: tuple[str, ...]) -> tuple[str, ...]:
    """`Conversation.prompt_columns`."""
    if "prompt" not in required or "response" not in required:
        return ()
    if isinstance(row.get("prompt"), list):
        return ()
    has_input = "input" in row.names and bool(row.get("input"))
    return row.text("prompt"), row.text("input") if has_input else ""


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


def _read_messages(row: Row) -> Conversation:
    system, messages = row.system(), row.messages("messages")
    names = role_names(row.get("messages"), row.roles)
    if names:
        names = (*(m["role"] for m in system), *names)
    return Conversation(
        (*system, *messages),
        role_names=names,
        has_old_calls=has_old_calls(row.get("messages")),
    )


def _read_turns(row: Row) -> Conversation:
    prompt, response = row.get("prompt"), row.get("response")
    if isinstance(prompt, list) and isinstance(response, list) and not row.get("input"):
        asked = [*row.system(), *row.messages("prompt")]
        return Conversation((*asked, *row.messages("response")), num_prompt_messages=len(asked))
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
    messages.append({"role": "user", "content": question})
    messages.append({"role": ASSISTANT, "content": row.text("response")})
    return Conversation(tuple(messages))


def _read_text(row: Row) -> Conversation:
    return Conversation(({"role": "text", "content": row.text("text")},), is_text=True)


_SYSTEM = ("system", "system_prompt", "system_message")
_OLD_TOOLS = ("functions",)
_CONTEXT = ("context", "passage", "choices", "options")
_MORE = ("input", *_CONTEXT, "history")


def text_format(column: str) -> Format:
    """Plain text in the given column."""
    return Format("text", ("text",), {"text": (column,)}, _read_text)


def _chat(name: str, column: str, **more: tuple[str, ...]) -> Format:
    names = {"messages": (column,), "tools": ("tools",), **more}
    left_out = {"system": () if "system" in more else _SYSTEM, "tools": _OLD_TOOLS}
    return Format(name, ("messages",), names, _read_messages, left_out=left_out)


def _pair(
    name: str,
    prompt: tuple[str, ...],
    response: tuple[str, ...],
    *,
    beside: tuple[str, ...] = (),
    **more: tuple[str, ...],
) -> Format:
    """What is not given, such as `history`, is read only where `data.columns` names it."""
    nowhere: dict[str, tuple[str, ...]] = {"input": (), "history": ()}
    always = {"system": _SYSTEM, "tools": ("tools",)}
    names = {"prompt": prompt, "response": response, **nowhere, **always, **more}
    return Format(name, ("prompt", "response"), names, _read_turns, beside)


_PREFERENCE = Format(
    "preference",
    ("chosen", "rejected"),
    {
        "chosen": ("chosen",),
        "rejected": ("rejected",),
        "prompt": ("prompt", "conversations", "question", "instruction", "query", "messages"),
        "input": ("input",),
        "system": _SYSTEM,
        "tools": ("tools",),
    },
    read_pair_row,
    beside=(*_CONTEXT, "history"),
)
_TOKENS = (
    *("input_ids", "labels", "attention_mask", *LOSS_MASKS, "position_ids", "seq_lengths"),
    *OTHER_LOSS,
)

FORMATS = {
    layout.name: layout
    for layout in (
        Format("tokens", ("input_ids",), {name: (name,) for name in _TOKENS}, read_token_row),
        _PREFERENCE,
        _chat("messages", "messages"),
        _chat("sharegpt", "conversations", system=_SYSTEM),
        _pair("prompt-completion", ("prompt",), ("completion", "response"), beside=_MORE),
        _pair(
            "alpaca",
            ("instruction",),
            ("output",),
            beside=_CONTEXT,
            input=("input",),
            history=("history",),
        ),
        text_format("text"),
        _chat("conversation", "conversation", system=_SYSTEM),
        _pair(
            "instruction-response",
            ("instruction",),
            ("response",),
            beside=_CONTEXT[1:],
            input=("context", "input"),
            history=("history",),
        ),
        _pair(
            "question-answer",
            ("question", "problem"),
            ("answer", "response", "solution"),
            beside=_MORE,
        ),
        _pair(
            "query-response",
            ("query",),
            ("response", "answer"),
            beside=("input", *_CONTEXT),
            history=("history",),
        ),
        _pair(
            "input-output",
            ("inputs", "input"),
            ("targets", "target", "output"),
            beside=(*_CONTEXT, "history"),
        ),
    )
}
