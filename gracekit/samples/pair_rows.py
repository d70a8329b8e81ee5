"""Preference pairs: the chosen side as a conversation, the rejected one kept beside it.

The sides are texts, messages, or lists of messages. The prompt stands in a column of its own, or is
what both sides begin with, as in TRL (`extract_prompt`). As with trainers of preferences, only what
follows the prompt carries loss.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import Any

from gracekit.samples.conversation import Conversation, says_something
from gracekit.samples.messages import ASSISTANT, MalformedRowError, as_text, read_messages
from gracekit.samples.row import Row
from gracekit.types import Json


def read_pair_row(row: Row) -> Conversation:
    """The chosen side; raises `MalformedRowError` where the row holds no pair."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    for what, side in (("chosen", chosen), ("rejected", rejected)):
        if side is None:
            raise MalformedRowError(f"{row.shown(what)} is missing")
    if _is_chat(chosen) != _is_chat(rejected):
        raise MalformedRowError("one of chosen and rejected is text, the other is messages")
    prompt, good, bad = (
        _of_chats(row, chosen, rejected) if _is_chat(chosen) else _of_texts(row, chosen, rejected)
    )
    for what, side in (("chosen", good), ("rejected", bad)):
        if not any(map(says_something, side)):
            raise MalformedRowError(f"the {what} side has no answer of the assistant")
    if good == bad:
        raise MalformedRowError("chosen and rejected are the same")
    if prompt and prompt[-1]["role"] == ASSISTANT:
        raise MalformedRowError("the prompt of the pair ends with a message of the assistant")
    quiet = [m | {"has_loss": False} if m["role"] == ASSISTANT else m for m in prompt]
    return Conversation(
        messages=(*quiet, *good), rejected=tuple(bad), num_prompt_messages=len(quiet)
    )


def rejected_side(pair: Conversation) -> Conversation:
    """The prompt of a pair with its rejected answer, as `read_pair_row` has it with the chosen."""
    assert pair.rejected is not None
    prompt = pair.messages[: pair.num_prompt_messages]
    return replace(pair, messages=(*prompt, *pair.rejected), rejected=None)


def _is_chat(side: Any) -> bool:
    return isinstance(side, dict | list)


def _of_chats(row: Row, chosen: Any, rejected: Any) -> tuple[list[Json], list[Json], list[Json]]:
    """Prompt, chosen answer, rejected answer of sides that are messages."""
    good, bad = (
        read_messages(side if isinstance(side, list) else [side], row.shown(what), row.roles)
        for what, side in (("chosen", chosen), ("rejected", rejected))
    )
    is_whole = good[0]["role"] != ASSISTANT  # the prompt stands in the sides
    if row.get("prompt") is not None and not is_whole:
        return _prompt(row), good, bad
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(good, bad, strict=False))
    num_common = sum(1 for _ in pairs)
    if not num_common:
        raise MalformedRowError(
            "there is no prompt, and chosen and rejected do not begin with the same message"
        )
    system = [] if good[0]["role"] == "system" else row.system()
    return system + good[:num_common], good[num_common:], bad[num_common:]


def _of_texts(row: Row, chosen: Any, rejected: Any) -> tuple[list[Json], list[Json], list[Json]]:
    """The same of sides that are texts."""
    good, bad = as_text(chosen, row.shown("chosen")), as_text(rejected, row.shown("rejected"))
    if row.get("prompt") is not None:
        prompt = _prompt(row)
    else:
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(good, bad, strict=False))
        num_common = sum(1 for _ in pairs)
        # As TRL does: a space before the first difference belongs to the answer.
        num_common -= good[:num_common].endswith(" ")
        if not num_common:
            raise MalformedRowError(
                "there is no prompt, and chosen and rejected have no beginning in common"
            )
        prompt = [*row.system(), {"role": "user", "content": good[:num_common]}]
        good, bad = good[num_common:], bad[num_common:]
    return prompt, _answer(good), _answer(bad)


def _answer(text: str) -> list[Json]:
    return [{"role": ASSISTANT, "content": text}]


def _prompt(row: Row) -> list[Json]:
    """The prompt of its own column, with what stands before and below it."""
    value = row.get("prompt")
    if isinstance(value, list):
        messages = row.messages("prompt")
        return messages if messages[0]["role"] == "system" else row.system() + messages
    text = row.text("prompt")
    if row.get("input"):
        text += "\n\n" + row.text("input")
    return [*row.system(), {"role": "user", "content": text}]
