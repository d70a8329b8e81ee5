"""The rows of an export as conversations, as they were measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gracekit.errors import DataError, ExportError
from gracekit.protocols import ExportContent
from gracekit.samples import Conversation
from gracekit.samples.formats import Format, choose_format, named_format
from gracekit.samples.messages import ASSISTANT, LOSS_KEYS, MalformedRowError
from gracekit.types import Json

OWN_KEYS = frozenset({"has_loss", *LOSS_KEYS})
"""Of a message: what says whether it carries loss, which is not the template's."""


def layout_of(content: ExportContent) -> Format:
    """The layout that the version's samples were read in; the columns say it where none is named.

    Raises `DataError` where no layout fits.
    """
    data = content.header.dataset
    if data.detected_format:
        return named_format(data.settings, data.detected_format)
    return choose_format(data.settings, content.columns)


def conversations_of(content: ExportContent) -> Iterator[tuple[Conversation, Json]]:
    """Each row as a conversation, and as it is.

    Raises `ExportError` for a row that cannot be read as one.
    """
    try:
        layout = layout_of(content)
    except DataError as error:
        raise ExportError(
            f"the rows cannot be read as conversations: {error}. Export as jsonl"
        ) from None
    for record, sample_id in zip(content.records(), content.sample_ids, strict=True):
        try:
            yield layout.conversation(record), record
        except MalformedRowError as error:
            raise ExportError(
                f"the sample {sample_id!r} cannot be read as a conversation: {error}. "
                "Export as jsonl"
            ) from None


def template_messages(messages: tuple[Json, ...]) -> list[dict[str, Any]]:
    """The messages with the keys that a chat template sees."""
    return [{key: m[key] for key in m if key not in OWN_KEYS} for m in messages]


def split_answer(conversation: Conversation) -> tuple[list[Json], list[Json]]:
    """Prompt and answer of a row that has one answer at its end."""
    messages = template_messages(conversation.messages)
    return messages[:-1], messages[-1:]


def has_one_answer(conversation: Conversation) -> bool:
    """Whether a row is a prompt with its answer, and no chat."""
    return (
        conversation.given_as in ("strings", "several columns")
        and conversation.messages[-1]["role"] == ASSISTANT
    )


def silent_turns(conversation: Conversation, loss_on: str) -> int:
    """Answers that are marked to carry no loss, of those that otherwise would."""
    if loss_on == "all":
        return 0
    answers = conversation.messages[conversation.num_prompt_messages :]
    return sum(not message.get("has_loss", True) for message in answers)


def num_silent(content: ExportContent) -> int:
    """Of all rows, where marks of a turn count at all (`Format.has_weights`)."""
    settings = content.header.dataset.settings
    if not layout_of(content).has_weights:
        return 0
    return sum(
        silent_turns(conversation, settings.loss_on)
        for conversation, _ in conversations_of(content)
    )
