"""What the columns of the rows mean, for trainers that want to be told."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from gracekit.errors import DataError, ExportError
from gracekit.protocols import ExportContent
from gracekit.samples import Conversation
from gracekit.samples.formats import choose_format, named_format
from gracekit.samples.messages import ASSISTANT, ROLES
from gracekit.types import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the columns of the rows mean. Empty: there is no such column."""

    messages: str = ""
    role_key: str = ""
    content_key: str = ""
    user: str = ""
    assistant: str = ""
    prompt: str = ""
    query: str = ""
    response: str = ""
    history: str = ""
    system: str = ""
    tools: str = ""
    text: str = ""
    chosen: str = ""
    rejected: str = ""
    names_of: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Of conversations: role -> what the selected rows call it."""
    has_tool_calls: bool = False
    """Of conversations: whether a message of the selected rows has `tool_calls`."""
    is_as_axolotl: bool = False
    """Whether roles were read as Axolotl reads them by itself, but for `data.roles`."""
    filled: frozenset[str] = frozenset()
    """Columns beside the prompt or the chat that some selected row fills: of `tools`, and of
    `history` or, beside a chat, of the system message."""
    own_roles: Mapping[str, str] = field(default_factory=dict)
    """Names of roles of the user's own -> role."""

    @classmethod
    def of(cls, content: ExportContent) -> Layout:
        """By the columns and the first row; `ExportError` for what these trainers do not know."""
        data = content.header.dataset
        record = next(content.records(), {})
        try:
            layout = choose_format(data.settings, content.columns)
        except DataError:
            layout = named_format(data.settings, data.detected_format or "text")

        def column(what: str) -> str:
            names = layout.names.get(what, ())
            return next((name for name in names if name in content.columns), "")

        messages, prompt, response = column("messages"), column("prompt"), column("response")
        if layout.name == "preference":  # one prompt or chat, and one answer on each side
            is_chat = isinstance(record.get(prompt), list)
            messages, prompt = (prompt, "") if is_chat else ("", prompt)
            sides = [record[column(what)] for what in ("chosen", "rejected")]
            response = column("chosen") if all(isinstance(side, str) for side in sides) else ""
            if is_chat and not all(isinstance(side, dict) for side in sides):
                messages = ""
        if messages and isinstance(record[messages], list) and record[messages]:
            user, assistant = _role_names(record[messages], layout.roles)
            turn = record[messages][0]
            return cls(
                messages=messages,
                role_key="role" if "role" in turn else "from",
                content_key="content" if "content" in turn else "value",
                user=user,
                assistant=assistant,
                system=column("system"),
                tools=column("tools"),
                chosen=column("chosen"),
                rejected=column("rejected"),
                own_roles=layout.roles,
                names_of=_names_of(content, messages, layout.roles),
                filled=_filled(content, [column("system"), column("tools")]),
                has_tool_calls=any(turn.get("tool_calls") for turn in _turns_of(content, messages)),
                is_as_axolotl=data.settings.rendering == "axolotl",
            )
        if prompt and response and isinstance(record.get(prompt), str):
            _require_texts(content, {prompt, response, column("chosen"), column("rejected")} - {""})
            return cls(
                prompt=prompt,
                query=column("input"),
                response=response,
                history=column("history"),
                system=column("system"),
                tools=column("tools"),
                chosen=column("chosen"),
                rejected=column("rejected"),
                filled=_filled(content, [column("history"), column("tools")]),
            )
        if column("text"):
            _require_texts(content, {column("text")})
            return cls(text=column("text"))
        raise ExportError(
            "expected conversations as lists, a prompt and a response as text, or a text column, "
            f"for this format; found the columns {', '.join(record)}. "
            "Export as jsonl, and describe the file to the trainer yourself"
        )


def messages_as_told(
    layout: Layout,
    conversation: Conversation,
    record: Json,
    kinds: Collection[type] = (str,),
) -> list[tuple[Json, Json]] | None:
    """The messages of a chat as the row has them, each with what was read of it.

    None where a message does not stand in the row as `layout` tells a trainer: a role as text and a
    content under its keys. So of a chat that is JSON text, entries that hold a question and its
    answer, other keys than those of the first row, and calls of the older API.

    Args:
        layout: What the trainer is told.
        conversation: The row as it was read.
        record: The row.
        kinds: Of contents that the trainer takes for what was read.
    """
    entries = record.get(layout.messages)
    if not isinstance(entries, list) or conversation.has_old_calls:
        return None
    read = conversation.messages[len(conversation.messages) - len(entries) :]
    if len(entries) > len(conversation.messages) or not all(
        isinstance(entry, dict)
        and isinstance(entry.get(layout.role_key), str)
        and (type(entry.get(layout.content_key)) in kinds or bool(entry.get("tool_calls")))
        for entry in entries
    ):
        return None
    return list(zip(entries, read, strict=True))


def _require_texts(content: ExportContent, columns: Collection[str]) -> None:
    """`ExportError` for a row with anything but text in a column of texts, such as a number: these
    trainers stop at it, or leave the row out.
    """
    for record, sample_id in zip(content.records(), content.sample_ids, strict=True):
        for name in columns:
            if not isinstance(record.get(name), str):
                raise ExportError(
                    f"the column {name} of the sample {sample_id!r} is {record.get(name)!r:.60}, "
                    "and this format is for rows with text there, as the first selected row has, "
                    "or with chats in all rows. Write it as text in the data, or export as trl"
                )


def _filled(content: ExportContent, columns: list[str]) -> frozenset[str]:
    """Those of the columns that hold something in a selected row."""
    asked = [name for name in columns if name]
    if not asked:
        return frozenset()
    empty: tuple[object, ...] = (None, "", "[]", [])
    records = content.records()
    return frozenset(name for row in records for name in asked if row.get(name) not in empty)


def _names_of(
    content: ExportContent, messages: str, roles: Mapping[str, str]
) -> dict[str, frozenset[str]]:
    """What the selected rows call each role."""
    found: dict[str, set[str]] = {}
    for turn in _turns_of(content, messages):
        name = turn.get("role") or turn.get("from")
        if isinstance(name, str):
            role = roles.get(name) or ROLES.get(name.casefold(), name)
            found.setdefault(role, set()).add(name)
    return {role: frozenset(names) for role, names in found.items()}


def _turns_of(content: ExportContent, messages: str) -> Iterator[Json]:
    """The messages of all selected rows."""
    for record in content.records():
        turns = record.get(messages)
        yield from (t for t in (turns if isinstance(turns, list) else ()) if isinstance(t, dict))


def _role_names(turns: list[Json], roles: Mapping[str, str]) -> tuple[str, str]:
    """What the user and the assistant are called in a conversation."""
    found = {ASSISTANT: "", "user": ""}
    for turn in turns:
        name = turn.get("role") or turn.get("from")
        if isinstance(name, str):
            role = roles.get(name) or ROLES.get(name.casefold(), name)
            found[role] = found.get(role) or name
    user = found["user"] or "user"
    return user, found[ASSISTANT] or ("gpt" if user == "human" else ASSISTANT)


def given(**values: str) -> Json:
    """Those that are not empty."""
    return {name: value for name, value in values.items() if value}
