"""The messages of a chat, from whatever names their keys and roles have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gracekit.types import Json

ASSISTANT = "assistant"

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    ASSISTANT: ASSISTANT,
    "gpt": ASSISTANT,
    "model": ASSISTANT,
    "bot": ASSISTANT,
    "ai": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
    "function_call": ASSISTANT,
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "ipython",
    "environment": "environment",
    "documents": "documents",
    "context": "context",
}
"""Names of roles in small letters -> the role that the chat template sees."""

LOSS_KEYS = ("weight", "loss", "train", "training")
"""Of a message: 0 or false means that the trainer puts no loss on it."""
PAIR_KEYS = (("input", "output"), ("human", "assistant"))
"""Keys of an entry that holds a question and its answer instead of one message."""
MEDIA = ("image", "video", "audio")


class MalformedRowError(ValueError):
    """A row that cannot be used; the message is the reason."""


def as_text(value: Any, what: str) -> str:
    """A text, a number as JSON writes it, or the texts of content parts joined.

    Raises `MalformedRowError` for anything else, so for an image among the parts.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return "".join(_part_text(part, what) for part in value)
    raise MalformedRowError(f"{what} is a {type(value).__name__}, expected text")


def _part_text(part: Json, what: str) -> str:
    kind = part.get("type")
    if kind == "text":
        for key in ("text", "value", "content"):
            if isinstance(part.get(key), str):
                text: str = part[key]
                return text
        raise MalformedRowError(f"a part of {what} has no text; it has {', '.join(part)}")
    if isinstance(kind, str) and kind.split("_")[0] in MEDIA:
        raise MalformedRowError(f"{what} holds a part of type {kind!r}; only text is read")
    raise MalformedRowError(f"{what} is a list with a part of type {kind!r}, expected text")


def from_json_text(value: Any, what: str) -> Any:
    """What a text that is a JSON list says; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise MalformedRowError(f"{what} is text, but not a JSON list")
    return found


def read_messages(value: Any, what: str, roles: Mapping[str, str]) -> list[Json]:
    """Messages with `role` and `content`, from the key names of OpenAI or ShareGPT.

    Args:
        value: A list, or one written as JSON text.
        what: Its name in messages of errors.
        roles: Names of roles of the user's own -> the role that they stand for.

    A message of the assistant that carries no loss has `has_loss: False`.
    """
    value = from_json_text(value, what)
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
        messages += _turns(entry, what, roles)
    return messages


def role_names(value: Any, roles: Mapping[str, str]) -> tuple[str, ...]:
    """What the roles of messages are called in the row, which trainers may read in another way.

    Args:
        value: As `read_messages` has read it.
        roles: Names of roles of the user's own, which stand for what they mean.

    Returns:
        A name for each message; none where entries hold two turns.
    """
    entries = from_json_text(value, "")
    if not isinstance(entries, list):
        return ()
    names = [entry.get("role") or entry.get("from") for entry in entries]
    return tuple(roles.get(name, name) for name in names) if all(names) else ()


def has_old_calls(value: Any) -> bool:
    """Whether a message has `function_call` of the older API; `value` as in `role_names`."""
    entries = from_json_text(value, "")
    return isinstance(entries, list) and any(
        isinstance(entry.get("function_call"), dict) and not entry.get("tool_calls")
        for entry in entries
    )


def _turns(entry: Json, what: str, roles: Mapping[str, str]) -> list[Json]:
    rest = {key: item for key, item in entry.items() if item is not None}
    role = rest.pop("role", None) or rest.pop("from", None)
    if role is None:
        for question, answer in PAIR_KEYS:
            if question in rest and answer in rest:
                system = rest.get("system")
                texts = [("system", system)] if system else []
                texts += [("user", rest[question]), (ASSISTANT, rest[answer])]
                return [{"role": r, "content": as_text(t, f"a turn of {what}")} for r, t in texts]
    if not isinstance(role, str):
        raise MalformedRowError(f"a message of {what} has no role; it has {', '.join(entry)}")
    role = role_of(role, what, roles)
    content = rest.pop("content", None)
    content = rest.pop("value", None) if content is None else content
    call = rest.get("function_call")
    if role == ASSISTANT and isinstance(call, dict) and "tool_calls" not in rest:
        rest.pop("function_call")
        rest["tool_calls"] = [{"type": "function", "function": _function(call)}]
    if content is None and "tool_calls" not in rest:
        raise MalformedRowError(f"a message of {what} has no content; it has {', '.join(entry)}")
    text = as_text("" if content is None else content, f"the content of a message of {what}")
    message = {"role": role, "content": text, **rest}
    if role == ASSISTANT and not _has_loss(rest, what):
        message["has_loss"] = False
    return [message]


def role_of(name: str, what: str, roles: Mapping[str, str]) -> str:
    """The role that a name stands for; `MalformedRowError` that names one that is not known."""
    role = roles.get(name) or ROLES.get(name.casefold())
    if role is None:
        raise MalformedRowError(
            f"the role {name!r} in {what} is not known; say what it is, such as "
            f"data.roles: {{user: [{json.dumps(name, ensure_ascii=False)}]}}"
        )
    return role


def _function(call: Json) -> Json:
    """A function call of the older API as the newer one has it: its arguments as an object."""
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            return {**call, "arguments": parsed}
    return dict(call)


def _has_loss(message: Json, what: str) -> bool:
    for key in LOSS_KEYS:
        value = message.get(key)
        if key == "weight" and value in ("0", "1"):  # of a CSV or a column of texts
            value = int(value)
        if isinstance(value, bool | int | float) and (key == "weight" or value in (0, 1)):
            if value not in (0, 1):
                raise MalformedRowError(
                    f"a message of {what} has the weight {value}, expected 0 or 1"
                )
            if not value:
                return False
    return True
