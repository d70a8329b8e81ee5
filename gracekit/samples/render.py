"""Conversations as text, with the spans of characters that carry loss.

With a chat template its turns are told by marks (`spans.py`). Without one the turns follow one
another. A newline ends each turn of the others that does not end in whitespace; the
end-of-sequence token ends each turn of the assistant.

Texts that are rendered already hold the tokens that begin and end a sequence: these are taken as
they are, and no second one is put beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.formats import ASSISTANT, Conversation
from gracekit.samples.marks import Span
from gracekit.samples.spans import HAS_LOSS, ChatTemplate, UnrenderableError
from gracekit.types import Json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Rendered", "Renderer", "Span", "UnrenderableError"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of one sample, special tokens written out."""

    text: str
    spans: list[Span]
    """Characters that carry loss: [start, end), ascending."""
    was_rendered: bool = False
    """Whether it came with a token that begins or ends a sequence, which was not doubled."""


class Renderer:
    """Renders conversations for one tokenizer, as the recipe's data section asks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> None:
        self._loss_on = data.loss_on
        has_template = bool(tokenizer.chat_template)
        if data.chat_template is True and not has_template:
            raise DataError(
                "data.chat_template is true, but the tokenizer has no chat template; set it to "
                "auto or false, or add the template to the tokenizer"
            )
        use_template = has_template and data.chat_template is not False
        self._template = ChatTemplate(tokenizer) if use_template else None
        # Written into the text, so that the text alone says what is tokenised.
        begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        self._bos = tokenizer.bos_token if begins else ""
        self._eos = tokenizer.eos_token or ""

    def render(self, conversation: Conversation) -> Rendered:
        """The text and its loss spans.

        Raises:
            UnrenderableError: The chat template makes no sense of this conversation.
            DataError: The settings do not fit the data, or a package is missing.
        """
        rendered = self._render(conversation)
        try:
            rendered.text.encode()
        except UnicodeEncodeError as error:
            raise UnrenderableError(
                f"character {error.start} of the text is half of a surrogate pair, which is not "
                "text. Correct the row"
            ) from error
        return rendered

    def _render(self, conversation: Conversation) -> Rendered:
        messages = list(conversation.messages)
        if conversation.is_text:
            if self._loss_on == "response":
                raise DataError(
                    "data.loss_on is 'response', but plain text has none; set it to auto or all"
                )
            return self._text(messages[0]["content"])
        if self._template is None:
            rendered = self._plain(messages)
            return self._all(rendered) if self._loss_on == "all" else rendered
        if self._loss_on == "all":
            return self._all(Rendered(self._template.text(messages, conversation.tools), []))
        return Rendered(*self._template.spans(messages, conversation.tools))

    @staticmethod
    def _all(rendered: Rendered) -> Rendered:
        return Rendered(rendered.text, [(0, len(rendered.text))], rendered.was_rendered)

    def _text(self, content: str) -> Rendered:
        text = self._begin(content) + content + self._end(content)
        return self._all(Rendered(text, [], self._has_own(content)))

    def _plain(self, messages: list[Json]) -> Rendered:
        text, spans, was_rendered = self._begin(messages[0]["content"]), [], False
        for k, message in enumerate(messages):
            turn = message["content"]
            if message["role"] == ASSISTANT:
                was_rendered |= bool(self._eos) and not self._end(turn)
                turn += self._end(turn)
                if message.get(HAS_LOSS, True):
                    spans.append((len(text), len(text) + len(turn)))
            elif turn and not turn[-1].isspace():
                turn += "\n"
            was_rendered |= k == 0 and bool(self._bos) and not text
            text += turn
        return Rendered(text, spans, was_rendered)

    def _begin(self, content: str) -> str:
        return "" if content.startswith(self._bos) else self._bos

    def _end(self, content: str) -> str:
        return "" if self._eos and content.rstrip().endswith(self._eos) else self._eos

    def _has_own(self, content: str) -> bool:
        has_bos = bool(self._bos) and not self._begin(content)
        return has_bos or (bool(self._eos) and not self._end(content))
