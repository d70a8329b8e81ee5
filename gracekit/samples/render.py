"""Conversations as text, with the spans of characters that carry loss.

With a chat template the spans are found by rendering prefixes: `chat[:i]` with the generation
prompt is what the model is given, `chat[:i+1]` adds what it should say. Stock templates have no
generation markers, so the mask that the tokenizer could give would be all zero. Whitespace after
the token that ends a turn carries no loss.

Without a template the turns follow one another. A newline ends each turn of the others that does
not end in whitespace; the end-of-sequence token ends each turn of the assistant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.formats import ASSISTANT, Conversation, says_something
from gracekit.types import Json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of one sample, special tokens written out."""

    text: str
    spans: list[Span]
    """Characters that carry loss: [start, end), ascending."""


class Renderer:
    """Renders conversations for one tokenizer, as the recipe's data section asks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> None:
        self._tokenizer = tokenizer
        self._loss_on = data.loss_on
        has_template = bool(tokenizer.chat_template)
        if data.chat_template is True and not has_template:
            raise DataError(
                "data.chat_template is true, but the tokenizer has no chat template; set it to "
                "auto or false, or add the template to the tokenizer"
            )
        self._use_template = has_template and data.chat_template is not False
        # Written into the text, so that the text alone says what is tokenised.
        begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        self._bos = tokenizer.bos_token if begins else ""
        self._eos = tokenizer.eos_token or ""

    def render(self, conversation: Conversation) -> Rendered:
        """The text and its loss spans; `DataError` where the chat template makes no sense of it."""
        if conversation.is_text:
            if self._loss_on == "response":
                raise DataError(
                    "data.loss_on is 'response', but plain text has none; set it to auto or all"
                )
            return self._all(self._bos + conversation.messages[0]["content"] + self._eos)
        messages = list(conversation.messages)
        text, spans = self._with_template(messages) if self._use_template else self._plain(messages)
        return self._all(text) if self._loss_on == "all" else Rendered(text, spans)

    @staticmethod
    def _all(text: str) -> Rendered:
        return Rendered(text, [(0, len(text))])

    def _plain(self, messages: list[Json]) -> tuple[str, list[Span]]:
        text, spans = self._bos, []
        for message in messages:
            turn = message["content"]
            if message["role"] == ASSISTANT:
                turn += self._eos
                spans.append((len(text), len(text) + len(turn)))
            elif turn and not turn[-1].isspace():
                turn += "\n"
            text += turn
        return text, spans

    def _with_template(self, messages: list[Json]) -> tuple[str, list[Span]]:
        text = self._apply(messages)
        spans = []
        for i, message in enumerate(messages):
            if says_something(message) and self._loss_on != "all":
                is_last = i == len(messages) - 1
                after = text if is_last else self._apply(messages[: i + 1])
                spans.append(self._span(text, after, messages, i))
        return text, spans

    def _span(self, text: str, after: str, messages: list[Json], i: int) -> Span:
        """Where message i stands in `text`; `after` is the chat up to it and with it."""
        said = messages[i]["content"].strip()
        start = self._start(after, messages[:i]) if i else after.find(said)
        if start >= 0 and text.startswith(after):
            return start, len(after.rstrip())
        # Some templates render a turn differently once others follow it (they drop its reasoning):
        # then look for what was said, and for what ends a turn.
        said += after[after.rfind(said) + len(said) :]
        given = self._apply(messages[:i]) if i else ""  # most templates fail on an empty chat
        found = text.find(said, len(given))
        if start < 0 or found < 0 or not text.startswith(given):
            raise DataError(
                f"the tokenizer's chat template renders message {i} differently on its own and "
                "within the conversation, so the tokens that carry loss cannot be told; set "
                "data.chat_template to false, or data.loss_on to all"
            )
        return min(start, found), len(text[: found + len(said)].rstrip())

    def _start(self, after: str, messages: list[Json]) -> int:
        """Where the answer to the messages begins in `after`; -1 when it cannot be told."""
        before = self._apply(messages, add_generation_prompt=True)
        if after.startswith(before):
            return len(before)
        # The generation prompt may open something, such as a block for reasoning, that a finished
        # message does not have: what they share is the prompt.
        pairs = enumerate(zip(before, after, strict=False))
        start = next((k for k, (x, y) in pairs if x != y), min(len(before), len(after)))
        return start if start >= len(self._apply(messages)) else -1

    def _apply(self, messages: list[Json], *, add_generation_prompt: bool = False) -> str:
        try:
            text: Any = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except ImportError as error:
            raise DataError(
                f"chat templates need another package: {error}; install it, or set "
                "data.chat_template to false"
            ) from error
        except Exception as error:  # a template is a program, it can fail in any way
            roles = ", ".join(m["role"] for m in messages)
            raise DataError(
                f"the tokenizer's chat template refuses a conversation with the roles {roles}: "
                f"{error}. Correct the row, or set data.chat_template to false"
            ) from error
        assert isinstance(text, str)
        return text
