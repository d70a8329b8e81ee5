"""The names of the user's columns."""

from __future__ import annotations

from gracekit.recipe.section import Section


class ColumnNames(Section):
    """Which column holds what, where the columns have names of your own."""

    prompt: str | None = None
    """What the user asks: text, or a list of messages."""
    input: str | None = None
    """More of the prompt, put below it after an empty line."""
    response: str | None = None
    """What the assistant answers: text, or a list of messages."""
    messages: str | None = None
    """Whole conversations: lists of messages, also as JSON text."""
    system: str | None = None
    """The system message."""
    history: str | None = None
    """Earlier turns: a list of (question, answer)."""
    tools: str | None = None
    """Definitions of tools for the chat template: a list, also as JSON text."""
    chosen: str | None = None
    """The better answer of a preference pair: text, a message, or a list of messages."""
    rejected: str | None = None
    """The other answer of the pair."""

    @property
    def named(self) -> dict[str, str]:
        """What is named -> its column."""
        return self.model_dump(exclude_none=True)
