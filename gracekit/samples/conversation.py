"""`Conversation`: one sample as the model will see it, whatever the layout it came in."""

from __future__ import annotations

import json
from dataclasses import dataclass

from gracekit.samples.messages import ASSISTANT
from gracekit.types import Json

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
