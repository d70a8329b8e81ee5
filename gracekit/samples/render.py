"""Conversations as text, with the spans of characters that carry loss.

With a chat template its turns are told by marks (`spans.py`). With `data.rendering: trl` texts and
loss are those of TRL's `SFTTrainer`; those of LLaMA-Factory and Axolotl are in `llamafactory.py`
and `axolotl.py`. Without a template the turns follow one another. A newline ends each turn of the
others that does not end in whitespace; the end-of-sequence token ends each turn of the assistant.

Texts that are rendered already hold the tokens that begin and end a sequence: these are taken as
they are, and no second one is put beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.recipe.sections import LLAMAFACTORY
from gracekit.samples.axolotl import Axolotl
from gracekit.samples.conversation import called_by_name
from gracekit.samples.formats import ASSISTANT, Conversation
from gracekit.samples.llamafactory import LlamaFactory
from gracekit.samples.marks import Span
from gracekit.samples.rendered import Rendered
from gracekit.samples.spans import HAS_LOSS, ChatTemplate, UnrenderableError
from gracekit.samples.trl_templates import MARKS_GENERATED, training_template
from gracekit.types import Json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Rendered", "Renderer", "Span", "UnrenderableError"]

UNKNOWN_SOURCE = (
    "data.rendering is trl and data.loss_on is response (assistant_only_loss), and the tokenizer's "
    "chat template has no {% generation %} marks. TRL renders with a training template of its own "
    "then, which is not found here: the tokens are those of the tokenizer's template, and "
    "docs/templates.md says where the loss differs. Install the trainer's TRL beside gracekit, or "
    "train with a template that has the marks (SFTConfig.chat_template_path), and name a new store"
)


def source_of_trl(tokenizer: PreTrainedTokenizerBase, data: DataSection) -> str | None:
    """The template that TRL renders with in place of the tokenizer's, where it is known here."""
    if data.rendering != "trl" or data.loss_on != "response":
        return None
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return training_template(template) if template else None


def has_unknown_source(tokenizer: PreTrainedTokenizerBase, data: DataSection) -> bool:
    """Whether TRL renders with a template of its own that is not known here."""
    if data.rendering != "trl" or data.loss_on != "response" or not tokenizer.chat_template:
        return False
    known = MARKS_GENERATED.search(str(tokenizer.chat_template))
    return known is None and source_of_trl(tokenizer, data) is None


class Renderer:
    """Renders conversations for one tokenizer, as the recipe's data section asks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> None:
        self._loss_on = data.loss_on
        self._as_trl = data.rendering == "trl"
        self._trainer: LlamaFactory | Axolotl | None = None
        if data.rendering.startswith(LLAMAFACTORY):
            template = data.rendering.removeprefix(LLAMAFACTORY)
            self._trainer = LlamaFactory(tokenizer, template, data.loss_on)
        has_template = bool(tokenizer.chat_template)
        if (data.chat_template is True or data.rendering == "chat") and not has_template:
            asked = "chat_template is true" if data.chat_template is True else "rendering is chat"
            raise DataError(
                f"data.{asked}, but the tokenizer has no chat template; set it to auto, or add "
                "the template to the tokenizer"
            )
        use_template = has_template and data.chat_template is not False
        use_template &= data.rendering != "plain"
        source = source_of_trl(tokenizer, data)
        self._template = ChatTemplate(tokenizer, source) if use_template else None
        if data.rendering == "axolotl":
            self._trainer = Axolotl(tokenizer, self._template, data.loss_on)
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
        if self._trainer is not None:
            return self._trainer.render(conversation)
        messages = list(conversation.messages)
        if conversation.is_text:
            if self._loss_on == "response":
                raise DataError(
                    "data.loss_on is 'response', but plain text has none; set it to auto or all"
                )
            text = messages[0]["content"]
            return self._trl_text(text) if self._as_trl else self._text(text)
        if self._as_trl:
            return self._trl(conversation)
        if self._template is None:
            rendered = self._plain(messages)
            return self._all(rendered) if self._loss_on == "all" else rendered
        if self._loss_on == "all":
            return self._all(Rendered(self._template.text(messages, conversation.tools), []))
        return Rendered(*self._template.spans(messages, conversation.tools))

    @staticmethod
    def _all(rendered: Rendered) -> Rendered:
        return Rendered(rendered.text, [(0, len(rendered.text))], rendered.was_rendered)

    def _trl(self, conversation: Conversation) -> Rendered:
        """As TRL's `SFTTrainer` prepares chats, and prompts with completions."""
        messages, tools = list(conversation.messages), conversation.tools
        if conversation.given_as == "several columns":
            raise UnrenderableError(
                "data.rendering is trl, and TRL reads only the columns prompt and completion of "
                "such a row: its prompt also has a system message, earlier turns or an input. Put "
                "all of it into the prompt, as you do for TRL, or set data.rendering to chat or "
                "plain"
            )
        if conversation.given_as == "strings":
            return self._trl_text(messages[1]["content"], prompt=messages[0]["content"])
        if conversation.template_options:
            raise UnrenderableError(
                "data.rendering is trl, and the row has chat_template_kwargs, which TRL gives to "
                "the template and gracekit does not. Give gracekit the tokens of this data instead "
                "(input_ids and labels, as trainer.train_dataset has them)"
            )
        if conversation.has_old_calls:
            raise UnrenderableError(
                "data.rendering is trl, and TRL gives function_call of the older API to templates "
                "that know only tool_calls, so the call is lost. Write tool_calls into the data"
            )
        # TRL gives roles by the names that they have in the row, and knows no weight of a turn.
        messages = called_by_name(conversation, conversation.role_names)
        messages = [{key: m[key] for key in m if key != HAS_LOSS} for m in messages]
        if self._template is None:
            raise DataError(
                "data.rendering is trl, and TRL needs a chat template for messages; the tokenizer "
                "has none. Add the template to the tokenizer, or set data.rendering to plain"
            )
        if conversation.given_as == "lists" and self._loss_on != "all":
            prompt = messages[: conversation.num_prompt_messages]
            # With assistant_only_loss a token carries loss that is both of the completion and of
            # the assistant.
            text, spans = (
                self._template.spans(messages, tools)
                if self._loss_on == "response"
                else (self._template.text(messages, tools), [])
            )
            return Rendered(
                text,
                spans,
                prompt=self._template.text(prompt, tools, is_prompt=True),
                within_spans=self._loss_on == "response",
            )
        if self._loss_on == "response":
            return Rendered(*self._template.spans(messages, tools))
        return self._all(Rendered(self._template.text(messages, tools), []))

    def _trl_text(self, content: str, prompt: str | None = None) -> Rendered:
        """A text, or a completion behind its prompt: nothing between, end-of-sequence behind."""
        text = (prompt or "") + content
        if not content.endswith(self._eos):
            text += self._eos
        return Rendered(
            text,
            [],
            was_rendered=bool(self._bos) and text.startswith(self._bos),
            prompt="" if prompt is None or self._loss_on == "all" else prompt,
            adds_special=True,
        )

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
