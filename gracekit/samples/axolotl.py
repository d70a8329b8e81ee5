"""Tokens and loss as Axolotl prepares supervised data by default (`data.rendering: axolotl`).

Chats are a dataset of type `chat_template` with the tokenizer's own template: the text of each
turn of the assistant carries loss, and the end-of-sequence token that follows it (`train_on_eos:
turn`). Where a turn stands is told as Axolotl tells it: by what changes when the turn says
something else. Rows of instruction, input and output are of type `alpaca`: a prompt without the
chat template, and the answer tokenised by itself. Rows that are too long are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gracekit.errors import DataError
from gracekit.samples.conversation import Conversation, called_by_name
from gracekit.samples.marks import Span
from gracekit.samples.messages import ASSISTANT
from gracekit.samples.rendered import EncodedTurn, Pieces, Rendered
from gracekit.samples.spans import HAS_LOSS, ChatTemplate, UnrenderableError
from gracekit.types import Bool, Int32, Json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = {"human": "user", "gpt": ASSISTANT}
"""Axolotl's roles; the template gets any other name as it is, in whatever letters, and no loss is
on such turns but for `assistant`."""
STAND_INS = ("[[dummy_message]]", "zzdummymessagezz")
"""What a turn says instead; they neither begin nor end with the same character."""
TASK = "Below is an instruction that describes a task"
REQUEST = "Write a response that appropriately completes the request.\n\n### Instruction:\n"


class Axolotl:
    """Axolotl's `chat_template` and `alpaca` datasets for one tokenizer.

    Args:
        tokenizer: The trainer's.
        template: Its chat template; None: it has none.
        loss_on: `all` is Axolotl's `train_on_inputs`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None, loss_on: str
    ) -> None:
        self._template = template
        self._source = str(tokenizer.chat_template)
        self._all = loss_on == "all"
        self._bos: int | None = tokenizer.bos_token_id
        self._eos: int | None = tokenizer.eos_token_id

    def render(self, conversation: Conversation) -> Rendered:
        """Text with spans, or pieces; `UnrenderableError` where the layout is not built."""
        if conversation.given_as == "chat":
            names = [ROLES.get(name, name) for name in conversation.role_names]
            return self._chat(called_by_name(conversation, names), conversation.tools)
        is_alpaca = conversation.layout == "alpaca" and len(conversation.messages) == 2
        if not is_alpaca or not conversation.prompt_columns:
            raise UnrenderableError(
                "data.rendering is axolotl, of whose datasets only chats (chat_template) and "
                "instruction, input and output (alpaca, without system message or history) are "
                "built"
            )
        instruction, given = conversation.prompt_columns
        return self._alpaca(instruction, given, conversation.messages[1]["content"])

    def _chat(self, messages: list[Json], tools: list[Json] | None) -> Rendered:
        if self._template is None:
            raise DataError(
                "data.rendering is axolotl, which needs a chat template for messages; the "
                "tokenizer has none. Add the template to the tokenizer"
            )
        keys = {key for message in messages for key in message} - {"role", "content", HAS_LOSS}
        unseen = sorted(key for key in keys if key in self._source and not self._is_seen(key))
        if unseen:
            raise UnrenderableError(
                f"data.rendering is axolotl, and the chat template takes {unseen[0]!r} of a turn "
                "by a name other than 'message', where Axolotl may leave it out; this is not built"
            )
        text = self._template.text(messages, tools)
        spans = []
        for k, message in enumerate(messages):
            if self._all or message["role"] == ASSISTANT:
                others = [
                    self._template.text(
                        [
                            *messages[:k],
                            {"role": message["role"], "content": said},
                            *messages[k + 1 :],
                        ],
                        tools,
                    )
                    for said in STAND_INS
                ]
                found = [difference(text, other) for other in others]
                span = min(start for start, _ in found), max(end for _, end in found)
                if span[0] < span[1]:
                    spans.append(span)
        return Rendered(text, spans, end=self._eos, drops_long=True)

    def _is_seen(self, key: str) -> bool:
        """Whether Axolotl, which gives the template only keys that it finds in it, finds this."""
        name = re.escape(key)
        taken = rf"\bmessage(\.{name}\b|\[['\"]{name}['\"]\]|\.get\(['\"]{name}['\"])"
        return re.search(taken, self._source) is not None

    def _alpaca(self, instruction: str, given: str, answer: str) -> Rendered:
        prompt = (
            f"{TASK}, paired with an input that provides further context. "
            if given
            else (f"{TASK}. ")
        )
        prompt += f"{REQUEST}{instruction}\n\n"
        prompt += f"### Input:\n{given}\n\n### Response:\n" if given else "### Response:\n"
        join = partial(_join, bos=self._bos, eos=self._eos, loss_on_prompt=self._all)
        pieces = Pieces([((prompt,), (answer,))], join, adds_special=True)
        return Rendered(prompt + answer, [], pieces=pieces)


def difference(text: str, other: str) -> Span:
    """The characters of a text between those that it begins and ends with like another."""
    start = _shared(text, other)
    most = min(len(text), len(other)) - start
    return start, len(text) - _shared(text[::-1][:most], other[::-1][:most])


def _shared(text: str, other: str) -> int:
    """How many characters two texts begin with alike; by halves, each compared at once."""
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if text[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _join(
    turns: Sequence[EncodedTurn],
    max_length: int,
    *,
    bos: int | None,
    eos: int | None,
    loss_on_prompt: bool,
) -> tuple[Int32, Bool]:
    ((asked, answer),) = turns
    asked, answer = asked[:max_length], answer[:max_length]
    if eos is not None and answer and answer[-1] != eos and len(answer) < max_length:
        answer = [*answer, eos]
    if answer and answer[0] == bos:
        answer = answer[1:]
    ids = np.array(asked + answer, np.int32)
    mask = np.arange(len(ids)) >= (1 if loss_on_prompt else max(1, len(asked)))
    return ids[:max_length], mask[:max_length] & (len(ids) <= max_length)
