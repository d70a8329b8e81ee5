"""Chats as trainers want them that expect a prompt and an answer in turn.

LLaMA-Factory drops a row whose turns do not alternate, and torchtune stops at it. What is changed
here never touches the words of an answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from gracekit.samples.messages import ASSISTANT
from gracekit.types import Json

FUNCTION_CALL = "function_call"
"""ShareGPT's name of the assistant's turn that calls a tool."""
CALL, OBSERVATION = "call", "observation"
"""Kinds of turns: the assistant calls tools, and what these gave."""
JOINT = "\n\n"


class Turn(NamedTuple):
    """One turn of a chat."""

    kind: str
    """`system`, `user`, `assistant`, `call` or `observation`."""
    text: str


@dataclass(slots=True)
class Changes:
    """How often rows had to be changed so that prompts and answers alternate."""

    rows: int = 0
    """Rows that were changed at all."""
    joined: int = 0
    """Turns that were joined to the one before, by an empty line."""
    empty_turns: int = 0
    """Empty turns of the user that were put in front of an answer that follows nothing."""
    cut_off: int = 0
    """Turns at the end that no answer follows, and that carry no loss."""
    later_system: int = 0
    """System messages behind the first turn, which became prompts of the user."""

    def to_json(self) -> Json:
        """As a JSON object."""
        return {
            "rows": self.rows,
            "joined": self.joined,
            "empty_turns": self.empty_turns,
            "cut_off": self.cut_off,
            "later_system": self.later_system,
        }


def turns_of(messages: Sequence[Json], names: Sequence[str] = ()) -> list[Turn]:
    """The turns of a chat that was read; a call is JSON: `name` and `arguments`, or a list of such.

    A message that says something and calls tools too is two turns.

    Args:
        messages: As a `Conversation` has them.
        names: What each one's role is called in the row; ShareGPT's `function_call` is a call.
    """
    found = []
    for message, name in zip(messages, names or [""] * len(messages), strict=True):
        role, text = message["role"], message["content"]
        calls = message.get("tool_calls")
        if role == ASSISTANT and name == FUNCTION_CALL:
            found.append(Turn(CALL, text))
        elif role == ASSISTANT and calls:
            if text.strip():
                found.append(Turn(ASSISTANT, text))
            found.append(Turn(CALL, json.dumps(list(map(_call, calls)), ensure_ascii=False)))
        elif role in ("tool", "ipython"):
            found.append(Turn(OBSERVATION, text))
        elif role in ("system", "developer"):
            found.append(Turn("system", text))
        elif role == ASSISTANT:
            found.append(Turn(ASSISTANT, text))
        else:
            found.append(Turn("user", text))
    return found


def alternating(turns: Sequence[Turn], changes: Changes) -> list[Turn]:
    """The turns with the system's first, then prompt and answer in turn, an answer last.

    A later system message becomes a prompt, or joins the one that it stands beside. What is given
    twice on one side is joined; where a text of the assistant and a call meet, and where an answer
    comes first, an empty turn of the user stands between. `changes` counts what was done.
    """
    system = [turn.text for turn in _leading_system(turns)]
    found: list[Turn] = []
    joined, empty, later = max(len(system) - 1, 0), 0, 0
    for turn in turns[len(system) :]:
        if turn.kind == "system":
            turn = Turn("user", turn.text)
            later += 1
        last = found[-1] if found else None
        if _answers(turn):
            one = None if last is None else _one_answer(last, turn)
            if one is not None:
                found[-1] = one
                joined += 1
                continue
            if last is None or _answers(last):
                found.append(Turn("user", ""))
                empty += 1
        elif last is not None and not _answers(last):
            found[-1] = Turn(last.kind, last.text + JOINT + turn.text)
            joined += 1
            continue
        found.append(turn)
    num_cut = 1 if found and not _answers(found[-1]) else 0
    found = found[: len(found) - num_cut]
    changes.rows += bool(joined or empty or num_cut or later)
    changes.joined += joined
    changes.empty_turns += empty
    changes.cut_off += num_cut
    changes.later_system += later
    return [Turn("system", JOINT.join(system)), *found] if system else found


def alternate(turns: Sequence[Turn]) -> bool:
    """Whether nothing of them would be changed."""
    changes = Changes()
    alternating(turns, changes)
    return not changes.rows


def _leading_system(turns: Sequence[Turn]) -> list[Turn]:
    count = next((k for k, turn in enumerate(turns) if turn.kind != "system"), len(turns))
    return list(turns[:count])


def _one_answer(first: Turn, second: Turn) -> Turn | None:
    """Two answers of one kind as one; None where they are not, or a call is not JSON."""
    if first.kind != second.kind or not _answers(first):
        return None
    if first.kind == ASSISTANT:
        return Turn(ASSISTANT, first.text + JOINT + second.text)
    try:
        calls = [json.loads(turn.text) for turn in (first, second)]
    except ValueError:
        return None
    merged = [call for found in calls for call in (found if isinstance(found, list) else [found])]
    return Turn(CALL, json.dumps(merged, ensure_ascii=False))


def _answers(turn: Turn) -> bool:
    return turn.kind in (ASSISTANT, CALL)


def _call(call: Any) -> Json:
    """Name and arguments of a call, the arguments as an object where they are one."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError):
            arguments = json.loads(arguments)
    return {"name": function.get("name", ""), "arguments": arguments}
