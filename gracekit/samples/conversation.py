"""`Conversation`: one sample as the model will see it, whatever the layout it came in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gracekit.samples.messages import ASSISTANT
from gracekit.types import Json

GivenAs = Literal["chat", "text", "tokens", "strings", "lists", "several columns"]
"""Of a row: one conversation; a plain text; tokens; a prompt and its answer, as strings or as lists
of messages; or a prompt that is put together from several columns."""

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str)
SHOWN_IDS = 16
"""Ids of a tokenised row that its preview names."""


@dataclass(frozen=True, slots=True)
class GivenTokens:
    """The tokens of a row that the user has tokenised, without padding."""

    ids: tuple[int, ...]
    """[T], each in [0, 2³¹)."""
    has_loss: tuple[bool, ...]
    """[T] whether the trainer puts loss on the token, at the token's own place (not shifted)."""

    def __str__(self) -> str:
        shown = " ".join(map(str, self.ids[:SHOWN_IDS]))
        more = " …" if len(self.ids) > SHOWN_IDS else ""
        return f"{len(self.ids)} tokens, {sum(self.has_loss)} with loss: {shown}{more}"


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
    rejected: tuple[Json, ...] | None = None
    """Of a preference pair: the messages that stand instead of the chosen ones, which are the last
    of `messages`. They are content, but nothing is measured on them."""
    tokens: GivenTokens | None = None
    """Of a tokenised row, which has no messages: its tokens, to be used as they are."""
    given_as: GivenAs = "chat"
    """What the row held; trainers treat a prompt and its answer in ways of their own."""
    num_prompt_messages: int = 0
    """Of a prompt and an answer that are given by themselves: how many messages the prompt is."""
    role_names: tuple[str, ...] = ()
    """Of a chat: what the role of each message is called in the row; empty: by the roles' names."""
    has_old_calls: bool = False
    """Whether a message of the row has `function_call` of the older API, read as `tool_calls`."""
    template_options: bool = False
    """Whether the row has `chat_template_kwargs`, which TRL gives to the template."""
    layout: str = ""
    """Name of the row's layout."""
    prompt_columns: tuple[str, ...] = ()
    """Of a prompt that is text: it, and what the row has as input or "". Trainers differ in what
    they put between the two."""

    def canonical(self) -> str:
        """The same text for the same content, whatever the layout it came in; ASCII only."""
        content = [self.is_text, self.messages, *([self.tools] if self.tools else [])]
        if self.rejected is not None:
            content.append({"rejected": self.rejected})
        if self.tokens is not None:
            content.append({"ids": self.tokens.ids, "has_loss": self.tokens.has_loss})
        return _CANONICAL.encode(content)

    def given(self) -> str:
        """What trainers see of a row besides its content, as text: they make other tokens of it."""
        lengths = [len(column) for column in self.prompt_columns]
        flags = [self.has_old_calls, self.template_options]
        given = [self.layout, self.given_as, self.num_prompt_messages, lengths, self.role_names]
        return _CANONICAL.encode([*given, *flags])

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


def called_by_name(conversation: Conversation, names: Sequence[str]) -> list[Json]:
    """The messages, their roles called by the given names; by their own where there are none."""
    messages = list(conversation.messages)
    if not names:
        return messages
    return [m | {"role": name} for m, name in zip(messages, names, strict=True)]


def says_something(message: Json) -> bool:
    """Whether it is the assistant's and there is something to learn from it."""
    said = message["content"].strip() or message.get("tool_calls")
    return message["role"] == ASSISTANT and bool(said) and message.get("has_loss", True)
