"""Conversations through a chat template, and which of their characters carry loss.

No text is searched for. The template writes marks beside its text (`marks.py`), so each turn's
text is known whatever it says. Of an assistant's turn carries loss what follows the generation
prompt: what the template gives to the model, such as the role's header or the `<think>` that it
opens. Whitespace after the token that ends a turn carries none. Where a template puts nothing at
the end of a turn, the next role's token ends it, and carries loss. A template that marks what is
generated itself (`{% generation %}`) is followed to the letter.

A template that writes turns outside of a loop over the messages is read by prefixes: `chat[:i]`
with the generation prompt is what the model is given, `chat[:i+1]` adds what it should say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gracekit.errors import DataError
from gracekit.samples.formats import ASSISTANT
from gracekit.samples.marks import (
    BRACKETS,
    CLOSE,
    OPEN,
    Marked,
    MarkedTemplate,
    Span,
    brackets,
    numbered,
    read_marks,
    with_fixed_date,
)
from gracekit.types import Json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HAS_LOSS = "has_loss"
"""Key of a turn; false: no token of it carries loss. Not shown to the template."""
BLANK = "\U0010f1f0"
"""What stands for what a turn says, to see what the template writes around it."""


class UnrenderableError(DataError):
    """One conversation that the chat template makes no sense of; the others may be fine."""


@dataclass(frozen=True, slots=True)
class _Chat:
    """One conversation on its way through the template."""

    messages: list[Json]
    tools: list[Json] | None
    template: MarkedTemplate
    text: str
    marked: Marked


class ChatTemplate:
    """The chat template of one tokenizer.

    Args:
        tokenizer: Whose template it is.
        source: The text of another template that stands in its place.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self._templates: dict[str, MarkedTemplate] = {}
        self._closes: dict[str, bool] = {}

    def text(
        self, messages: list[Json], tools: list[Json] | None, *, is_prompt: bool = False
    ) -> str:
        """The conversation as the template renders it; raises `UnrenderableError`.

        With `is_prompt` it is followed by what asks the model for its answer.
        """
        source = self._template(tools).source
        return self._apply(_shown(messages), tools, source, add_generation_prompt=is_prompt)

    def spans(self, messages: list[Json], tools: list[Json] | None) -> tuple[str, list[Span]]:
        """The same, and the characters that carry loss: [start, end), ascending, disjoint.

        Raises:
            UnrenderableError: The template refuses the conversation, or it cannot be told where
                its turns stand.
        """
        learned = [
            k for k, m in enumerate(messages) if m["role"] == ASSISTANT and m.get(HAS_LOSS, True)
        ]
        messages = _shown(messages)
        template = self._template(tools)
        text = self._apply(messages, tools, template.source)
        if not learned:
            return text, []
        marked = self._marked(messages, tools, template, brackets(text))
        if marked is None or marked.text != text:
            return text, self._by_prefixes(messages, tools, text, learned)
        chat = _Chat(messages, tools, template, text, marked)
        if template.tells_generated:
            return text, _generated(chat, learned)
        spans = [span for turn in learned for span in self._of_turn(chat, turn)]
        if None in spans:
            return text, self._by_prefixes(messages, tools, text, learned)
        return text, sorted(span for span in spans if span is not None)

    def _of_turn(self, chat: _Chat, turn: int) -> list[Span | None]:
        """Where a turn carries loss; None: the template writes it, but not in a loop."""
        pieces = chat.marked.pieces(turn)
        if not pieces:
            written = BLANK in (self._blank(chat, turn) or chat).text
            return [None] if written else []
        start, end = pieces[0]
        pieces[0] = min(start + self._given(chat, turn, start, end), end), end
        start, end = pieces[-1]
        pieces[-1] = start, self._end(chat, turn, end)
        stripped = [(a, a + len(chat.text[a:b].rstrip())) for a, b in pieces]
        return [(a, b) for a, b in stripped if a < b]

    def _given(self, chat: _Chat, turn: int, start: int, end: int) -> int:
        """How many characters of a turn's text, at [start, end), the generation prompt gives."""
        before = self._before(chat, turn)
        if start < len(before) <= end and chat.text.startswith(before):
            return len(before) - start
        said = chat.text[start:end]
        prompt = self._prompt(chat, turn) or self._prompt(chat, self._first_answer(chat))
        if turn and said.startswith(prompt):
            return len(prompt)
        # The prompt may open something, such as a block for reasoning, that this turn does not
        # have: then what it shares with the turn whatever that says.
        blank = self._blank(chat, turn)
        own = "" if blank is None else blank.said(turn)
        head, found, _ = own.partition(BLANK)
        if not found:
            return len(_shared(prompt, said))
        if turn:
            return len(_shared(prompt, head, said))
        # The first turn may have the beginning of the text before its head.
        line = prompt.partition("\n")[0]
        at = head.find(line) if line else -1
        if at < 0:
            return len(_shared(head, said))
        return at + len(_shared(prompt, head[at:], said[at:]))

    def _before(self, chat: _Chat, turn: int) -> str:
        """What the model is given before a turn; empty where that cannot be rendered."""
        if not turn:
            return ""
        try:
            return self._apply(
                chat.messages[:turn],
                chat.tools,
                chat.template.source,
                add_generation_prompt=True,
            )
        except UnrenderableError:
            return ""

    @staticmethod
    def _first_answer(chat: _Chat) -> int:
        """The first turn after one of the user; 0 where there is none."""
        after_user = (k + 1 for k, m in enumerate(chat.messages[:-1]) if m["role"] == "user")
        return next(after_user, 0)

    def _prompt(self, chat: _Chat, turn: int) -> str:
        """What the template writes after the messages before a turn for the model to answer."""
        before = chat.messages[: turn or None]
        try:
            marked = self._marked(
                before, chat.tools, chat.template, brackets(chat.text), add_generation_prompt=True
            )
        except UnrenderableError:  # not a conversation by itself; where the whole one is
            return self._prompt(chat, 0) if turn else ""
        if marked is None or not marked.turns:
            return ""
        last, in_chat = marked.said(len(before) - 1), chat.marked.said(len(before) - 1)
        within = last[len(in_chat) :] if last.startswith(in_chat) else ""
        return within + marked.text[marked.turns[-1][2] :]

    def _end(self, chat: _Chat, turn: int, end: int) -> int:
        """Where a turn that the template has written up to `end` ends."""
        if turn == len(chat.messages) - 1:
            rest = chat.text[end:].strip() if chat.marked.turns[-1][2] == end else ""
            # An end-of-sequence; not a prompt that the template always puts there.
            return end if chat.marked.said(turn).startswith(rest) else len(chat.text)
        if chat.messages[turn + 1]["role"] != ASSISTANT and not self._closes_turns(chat):
            token = self._tokens.match(chat.text, end)
            return token.end() if token else end
        return end

    def _closes_turns(self, chat: _Chat) -> bool:
        """Whether the template writes something behind what an assistant says to a user."""
        source = chat.template.source
        if source not in self._closes:
            roles = ("user", ASSISTANT, "user")
            plain = [{"role": role, "content": BLANK} for role in roles]
            try:
                marked = self._marked(plain, None, chat.template, BRACKETS[0])
            except UnrenderableError:
                marked = None
            foot = "" if marked is None else marked.said(1).partition(BLANK)[2]
            self._closes[source] = marked is None or bool(foot.strip())
        return self._closes[source]

    @cached_property
    def _tokens(self) -> re.Pattern[str]:
        """Any of the tokenizer's added tokens, such as those of roles."""
        contents = [str(token) for token in self._tokenizer.get_added_vocab()]
        longest_first = sorted(filter(str.strip, contents), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _blank(self, chat: _Chat, turn: int) -> Marked | None:
        """The conversation with a turn that says nothing but `BLANK`; None where that fails."""
        messages = list(chat.messages)
        messages[turn] = {"role": messages[turn]["role"], "content": BLANK}
        try:
            return self._marked(messages, chat.tools, chat.template, brackets(chat.text))
        except UnrenderableError:
            return None

    def _by_prefixes(
        self, messages: list[Json], tools: list[Json] | None, text: str, learned: list[int]
    ) -> list[Span]:
        source = self._template(tools).source

        def apply(count: int, *, prompt: bool = False) -> str:
            if not count:
                return ""  # most templates fail on an empty chat
            return self._apply(messages[:count], tools, source, add_generation_prompt=prompt)

        spans = []
        for turn in learned:
            is_last = turn == len(messages) - 1
            given, after = apply(turn), text if is_last else apply(turn + 1)
            prompt = apply(turn, prompt=True)
            start = len(prompt if after.startswith(prompt) else _shared(prompt, after))
            if start < len(given) or not text.startswith(after):
                raise UnrenderableError(
                    f"the tokenizer's chat template renders message {turn} differently on its own "
                    "and within the conversation, so the tokens that carry loss cannot be told; "
                    "set data.chat_template to false, or data.loss_on to all"
                )
            spans.append((start, len(after.rstrip())))
        return spans

    def _template(self, tools: list[Json] | None) -> MarkedTemplate:
        source = self._source or self._own_source(tools)
        if source not in self._templates:
            self._templates[source] = MarkedTemplate(with_fixed_date(source))
        return self._templates[source]

    def _own_source(self, tools: list[Json] | None) -> str:
        """The tokenizer's template for chats with these tools."""
        try:
            source: str = self._tokenizer.get_chat_template(tools=tools)
        except ValueError as error:
            raise DataError(
                f"the tokenizer has several chat templates "
                f"({', '.join(sorted(self._tokenizer.chat_template))}), and none is the default. "
                "Call one of them 'default', or set data.chat_template to false"
            ) from error
        return source

    def _marked(
        self,
        messages: list[Json],
        tools: list[Json] | None,
        template: MarkedTemplate,
        around: tuple[str, str],
        *,
        add_generation_prompt: bool = False,
    ) -> Marked | None:
        """The conversation with marks; None where the template cannot be rendered with them."""
        silent = frozenset(k for k, m in enumerate(messages) if m["role"] != ASSISTANT)
        while True:
            rendered = self._apply(
                numbered(messages),
                tools,
                template.marked,
                add_generation_prompt=add_generation_prompt,
                **{OPEN: around[0], CLOSE: around[1]},
            )
            try:
                marked = read_marks(rendered, around, silent)
            except (ValueError, IndexError):  # the template took marks apart
                return None
            if not template.learn(marked.loops):
                return marked

    def _apply(
        self, messages: list[Json], tools: list[Json] | None, source: str, **options: Any
    ) -> str:
        try:
            text: Any = self._tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=source, tokenize=False, **options
            )
        except ImportError as error:
            raise DataError(
                f"chat templates need another package: {error}; install it, or set "
                "data.chat_template to false"
            ) from error
        except Exception as error:  # a template is a program, it can fail in any way
            roles = ", ".join(m["role"] for m in messages)
            raise UnrenderableError(
                f"the tokenizer's chat template refuses a conversation with the roles {roles}: "
                f"{error}. Correct the row, or set data.chat_template to false"
            ) from error
        assert isinstance(text, str)
        return text


def _shared(*texts: str) -> str:
    """What all of them begin with."""
    columns = enumerate(zip(*texts, strict=False))
    length = next((k for k, letters in columns if len(set(letters)) > 1), min(map(len, texts)))
    return texts[0][:length]


def _shown(messages: list[Json]) -> list[Json]:
    """The messages without what is not for the template."""
    return [{key: m[key] for key in m if key != HAS_LOSS} for m in messages]


def _generated(chat: _Chat, learned: list[int]) -> list[Span]:
    """What the template marks as generated, without turns of the assistant that carry no loss."""
    last = len(chat.messages) - 1
    silent = [
        (start, len(chat.text) if turn == last else end)
        for turn, start, end in chat.marked.turns
        if turn not in learned
    ]
    spans = chat.marked.generated
    for start, end in silent:
        spans = [
            part
            for a, b in spans
            for part in ((a, min(b, start)), (max(a, end), b))
            if part[0] < part[1]
        ]
    return sorted(spans)
