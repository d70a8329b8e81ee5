"""Tokens and loss as LLaMA-Factory prepares supervised data (`data.rendering: llamafactory:NAME`).

LLaMA-Factory has templates of its own, in `llamafactory_templates.py`. Each part of them is
tokenised by itself, so no token goes over the border of prompt and answer. All answers carry loss.
A row that is too long is cut turn by turn: what room is left goes to a prompt and its answer in
proportion to their lengths, or whole to the shorter one where that takes less than half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gracekit.errors import DataError
from gracekit.recipe.sections import LLAMAFACTORY
from gracekit.samples.conversation import Conversation
from gracekit.samples.llamafactory_templates import (
    BOS,
    CONTENT,
    END_OF_TEXT,
    EOS,
    TEMPLATES,
    Slots,
)
from gracekit.samples.messages import ASSISTANT
from gracekit.samples.rendered import EncodedTurn, Part, Pieces, Rendered
from gracekit.samples.spans import UnrenderableError
from gracekit.types import Bool, Int32

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LLAMAFACTORY_RENDERINGS = tuple(LLAMAFACTORY + name for name in TEMPLATES)
"""Values of `data.rendering`, the most used first."""
DROPPED = "LLaMA-Factory drops such a row"


class LlamaFactory:
    """One template of LLaMA-Factory for one tokenizer.

    Args:
        tokenizer: As LLaMA-Factory saves it in its checkpoints: with the template's tokens.
        name: Of the template.
        loss_on: `all` is LLaMA-Factory's `train_on_prompt`.

    Raises:
        DataError: The template is not known, or the tokenizer lacks tokens that it needs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, loss_on: str) -> None:
        if name not in TEMPLATES:
            raise DataError(
                f"data.rendering: LLaMA-Factory's template {name!r} is not built; expected one of "
                f"{', '.join(TEMPLATES)}. Or let LLaMA-Factory save its tokenised data and see "
                "with gracekit check how other settings differ from it"
            )
        self._template = template = TEMPLATES[name]
        self._name = name
        self._all = loss_on == "all"
        if self._all and template.ends_once:
            raise DataError(
                f"data.loss_on is all, but LLaMA-Factory refuses train_on_prompt with its template "
                f"{name!r}; set it to response"
            )
        added = tokenizer.get_added_vocab()
        ends = () if tokenizer.eos_token_id is not None or template.replaces_eos else (END_OF_TEXT,)
        missing = [token for token in (*template.stop_words, *ends) if token not in added]
        if missing:
            raise DataError(
                f"the tokenizer lacks {', '.join(missing)}, which LLaMA-Factory adds to it for its "
                f"template {name!r}. Use the tokenizer that LLaMA-Factory saved in its checkpoint "
                "(checkpoints.tokenizer), or another template in data.rendering"
            )
        self._bos = tokenizer.bos_token_id
        self._eos: int | None = tokenizer.eos_token_id
        if template.replaces_eos:
            self._eos = added[template.stop_words[0]]
        elif ends:
            self._eos = added[END_OF_TEXT]

    def render(self, conversation: Conversation) -> Rendered:
        """The conversation in pieces; `UnrenderableError` where LLaMA-Factory drops the row."""
        template = self._template
        system, turns = self._read(conversation)
        if template.ends_once and len(turns) > 1:
            raise UnrenderableError(
                f"LLaMA-Factory's template {self._name!r} puts the loss of an answer's end on the "
                "next turn's first token, which is another one; rows of several turns are not built"
            )
        pieces = []
        for k, (asked, answer) in enumerate(turns):
            before = self._parts(template.prefix) if k == 0 else []
            if k == 0 and system:
                if template.system_in_turn:
                    asked = "".join(map(str, _filled(template.system[:1], system))) + asked
                else:
                    before += self._parts(_filled(template.system, system))
            asked_text = asked if template.system_in_turn else asked.replace("{{idx}}", str(k), 1)
            thought = "".join(template.thought)
            if not thought or any(word.strip() in answer for word in template.thought):
                thought = ""
            pieces.append(
                (
                    before + self._parts(_filled(template.user, asked_text)),
                    self._parts((thought, *_filled(template.assistant, answer))),
                )
            )
        text = "".join(
            part for turn in pieces for side in turn for part in side if isinstance(part, str)
        )
        end = self._eos if template.ends_once else None
        join = partial(join_turns, end=end, loss_on_prompt=self._all)
        return Rendered(text, [], pieces=Pieces(pieces, join))

    def _parts(self, slots: Slots) -> list[Part]:
        ids: dict[str, Part | None] = {BOS: self._bos, EOS: self._eos}
        parts = [ids.get(slot, slot) for slot in slots]
        return [part for part in parts if part is not None and part != ""]

    def _read(self, conversation: Conversation) -> tuple[str, list[tuple[str, str]]]:
        """The system message, or the template's own, and each prompt with its answer."""
        messages = list(conversation.messages)
        kind = "plain text" if conversation.is_text else None
        if conversation.rejected is not None:
            kind = "a preference pair"
        elif conversation.given_as == "lists":
            kind = "a prompt that is a list of messages"
        if kind is not None:
            raise UnrenderableError(
                f"data.rendering is llamafactory:{self._name}, and {kind} is not in its layouts "
                "for supervised training"
            )
        calls = any(m["role"] == "tool" or "tool_calls" in m for m in messages)
        if conversation.tools or calls or "function_call" in conversation.role_names:
            raise UnrenderableError(
                f"data.rendering is llamafactory:{self._name}, and tools in LLaMA-Factory's "
                "templates are not built"
            )
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
        roles = [message["role"] for message in messages]
        if not roles or len(roles) % 2 or roles != ["user", ASSISTANT] * (len(roles) // 2):
            raise UnrenderableError(
                f"the turns are {', '.join(roles)}; {DROPPED}: it expects user and assistant in "
                "turn, the assistant last"
            )
        texts = [message["content"] for message in messages]
        if conversation.prompt_columns:
            texts[-2] = "\n".join(filter(None, conversation.prompt_columns))
        pairs = list(zip(texts[::2], texts[1::2], strict=True))
        return system or self._template.default_system, pairs


def _filled(slots: Slots, content: str) -> Slots:
    return tuple(slot.replace(CONTENT, content, 1) for slot in slots)


def join_turns(
    turns: Sequence[EncodedTurn], max_length: int, *, end: int | None, loss_on_prompt: bool
) -> tuple[Int32, Bool]:
    """(ids, loss mask) of at most `max_length` tokens; `end` is put behind all turns."""
    ids: list[int] = []
    mask: list[bool] = []
    room = max_length - (end is not None)
    for asked, answer in turns:
        if room <= 0:
            break
        num_asked, num_answer = shares(len(asked), len(answer), room)
        ids += asked[:num_asked] + answer[:num_answer]
        mask += [loss_on_prompt] * num_asked + [True] * num_answer
        room -= num_asked + num_answer
    if end is not None:
        ids.append(end)
        mask.append(True)
    mask[:1] = [False]
    return np.array(ids, np.int32), np.array(mask, bool)


def shares(num_asked: int, num_answer: int, room: int) -> tuple[int, int]:
    """How many tokens of a prompt and of its answer are kept where there is room for so many."""
    if 2 * num_answer < room:
        most = room
    elif 2 * num_asked < room:
        most = room - num_asked
    else:
        most = int(room * (num_answer / (num_asked + num_answer)))
    kept = min(most, num_answer)
    return min(max(room - kept, 0), num_asked), kept
