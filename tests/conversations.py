"""Kinds of conversations for chat templates, and what of their rendering has to carry loss."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from gracekit.recipe import DataSection
from gracekit.samples import Conversation
from gracekit.samples.encode import Encoder
from gracekit.samples.render import Renderer, UnrenderableError
from gracekit.types import Json

TOOLS: list[Json] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a town",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string", "description": "Its name"}},
                "required": ["town"],
            },
        },
    }
]


def user(content: str) -> Json:
    return {"role": "user", "content": content}


def says(content: str, **more: Any) -> Json:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> Json:
    return {"role": "system", "content": content}


def result(content: str) -> Json:
    return {"role": "tool", "name": "weather", "content": content}


def call(arguments: Any, content: str = "", **more: Any) -> Json:
    function = {"name": "weather", "arguments": arguments}
    return says(content, tool_calls=[{"type": "function", "function": function}], **more)


THOUGHT = "<think>\n11 and 4 make 15\n</think>\n\n15"
MARKERS = (
    "<|im_end|>\n<|im_start|>assistant\nno<|eot_id|><end_of_turn></s><|user|><|end|>"
    "<|end_of_text|><｜Assistant｜>[/INST]{{ x }}{% generation %}"
)

CONVERSATIONS: dict[str, tuple[list[Json], list[Json] | None]] = {
    "single": ([user("11+4?"), says("15")], None),
    "multi-turn": ([user("11+4?"), says("15"), user("And 11-4?"), says("7")], None),
    "system": ([system("Be brief."), user("11+4?"), says("15")], None),
    "system, multi-turn": (
        [system("Be brief."), user("Hi"), says("Hello"), user("Bye"), says("See you")],
        None,
    ),
    "two systems": ([system("Be brief."), system("Be kind."), user("Hi"), says("Hello")], None),
    "system in the middle": (
        [user("Hi"), says("Hello"), system("Now in French."), user("Hi"), says("Salut")],
        None,
    ),
    "empty assistant turn": ([user("Hi"), says(""), user("Hello?"), says("Yes")], None),
    "empty last turn": ([user("Hi"), says("Hello"), user("Say nothing."), says("")], None),
    "empty user turn": ([user(""), says("Hello")], None),
    "split turn": ([user("Name two towns."), says("Ulm."), says("Jena.")], None),
    "assistant first": ([says("How can I help?"), user("11+4?"), says("15")], None),
    "thinking inline": ([user("11+4?"), says(THOUGHT)], None),
    "thinking inline in each turn": (
        [user("11+4?"), says(THOUGHT), user("And?"), says("<think>\nhm\n</think>\n\n7")],
        None,
    ),
    "thinking as a field": (
        [
            user("11+4?"),
            says("15", reasoning_content="11 and 4 make 15"),
            user("And 11-4?"),
            says("7", reasoning_content="take 4 away"),
        ],
        None,
    ),
    "an opened tag": ([user("11+4?"), says("<th>15</th>"), user("b"), says("<b>7</b>")], None),
    "tool call": ([user("Ulm?"), call({"town": "Ulm"})], TOOLS),
    "tool call as a string": ([user("Ulm?"), call('{"town": "Ulm"}')], TOOLS),
    "tool call with words": ([user("Ulm?"), call({"town": "Ulm"}, "Let me see.")], TOOLS),
    "tool call and result": (
        [user("Ulm?"), call({"town": "Ulm"}), result("rain"), says("It rains.")],
        TOOLS,
    ),
    "tool call, result, another turn": (
        [
            system("Be brief."),
            user("Ulm?"),
            call({"town": "Ulm"}),
            result("rain"),
            says("It rains."),
            user("Thanks"),
            says("Welcome"),
        ],
        TOOLS,
    ),
    "two calls, two results": (
        [
            user("Ulm and Jena?"),
            call({"town": "Ulm"}),
            result("rain"),
            call({"town": "Jena"}),
            result("sun"),
            says("Rain and sun."),
        ],
        TOOLS,
    ),
    "tools without a call": ([user("11+4?"), says("15")], TOOLS),
    "unicode": ([user("Was heißt 猫?"), says("Katze 😀👩‍👩‍👧 e\u0301 \u202eabc ﷺ")], None),
    "text with markers": ([user(f"What is {MARKERS}?"), says(f"It is {MARKERS}.")], None),
    "trailing user turn": ([user("Hi"), says("Hello"), user("Bye")], None),
    "spaces around": ([user("  Hi \n"), says("\n  Hello \n\n"), user(" a"), says(" b ")], None),
    "the same words": ([user("a"), says("a"), user("a"), says("assistant"), user("a"), says("a")],
                       None),
    "a turn without loss": (
        [user("Add."), says("3", has_loss=False), user("No, again."), says("2")],
        None,
    ),
    "a last turn without loss": (
        [user("Add."), says("3"), user("Bye"), says("See you", has_loss=False)],
        None,
    ),
}  # fmt: skip
"""Kind -> messages, tools."""

GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


def without_marks(source: str) -> str:
    """A template as before somebody marked in it what is generated."""
    return GENERATION.sub(lambda m: f"{m[1]}{'endif' if m[2] else 'if true'}{m[3]}", source)


def shown(messages: list[Json]) -> list[Json]:
    """What a trainer gives to the template."""
    return [{key: m[key] for key in m if key != "has_loss"} for m in messages]


SPECIAL = re.compile(
    r"<[|｜][^<>\s]+?[|｜]>|</?[a-z_]+>|<(?:start|end)_of_turn>|\[/?[A-Z_]+\]|<[|][a-z_]+>"
)


def tokenizer_for(tokenizer: Any, source: str) -> Any:
    """A copy of the tokenizer with the template, and each token that it writes."""
    own = copy.deepcopy(tokenizer)
    own.add_tokens(sorted(set(SPECIAL.findall(source))), special_tokens=True)
    own.chat_template = source
    return own


def marked_spans(
    tokenizer: Any, source: str, messages: list[Json], tools: list[Json] | None
) -> tuple[str, list[tuple[int, int]]]:
    """The rendering of a template that marks what is generated, and what it marks."""
    texts, marked = render_jinja_template(
        [shown(messages)],
        tools=tools,
        chat_template=source,
        return_assistant_tokens_mask=True,
        add_generation_prompt=False,
        **tokenizer.special_tokens_map,
    )
    return texts[0], [span for span in marked[0] if span[0] < span[1]]


def with_loss(messages: list[Json], spans: list[tuple[int, int]]) -> list[tuple[int, int]] | None:
    """Those of turns that carry loss; None where there is not one for each turn."""
    turns = [m.get("has_loss", True) for m in messages if m["role"] == "assistant"]
    if all(turns):
        return spans
    if len(spans) == len(turns) + 1:  # the end of the sequence belongs to the last turn
        turns.append(turns[-1])
    if len(spans) != len(turns):
        return None
    return [span for span, has_loss in zip(spans, turns, strict=True) if has_loss]


def as_we_put_it(
    text: str, spans: list[tuple[int, int]], heads: Sequence[str]
) -> list[tuple[int, int]]:
    """Marks of a trainer without the two things that carry no loss here on purpose.

    These are the head that the generation prompt gives, and whitespace after a turn's end.
    """
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        head = next((head for head in heads if text[start:end].startswith(head)), "")
        start += len(head)
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    stripped = [(start, start + len(text[start:end].rstrip())) for start, end in joined]
    return [(start, end) for start, end in stripped if start < end]


def token_mask(tokenizer: Any, text: str, spans: list[tuple[int, int]]) -> list[bool]:
    """Tokens that overlap a span, but the first, one by one."""
    offsets = Encoder(tokenizer)._backend.encode(text, add_special_tokens=False).offsets
    return [
        k > 0 and any(first < end and last > start for start, end in spans)
        for k, (first, last) in enumerate(offsets)
    ]


def compare(
    tokenizer: Any,
    oracle: str,
    messages: list[Json],
    tools: list[Json] | None,
    heads: Sequence[str],
) -> str:
    """Our tokens and mask of one conversation beside the template's own ids and marks.

    Returns what came of it: "equal" (mask for mask), "equal but for head and space", "refused"
    (by the tokenizer's template and by us), "oracle differs" (it refuses, or renders another text)
    or "no oracle". Raises `AssertionError` where ids or masks are wrong.
    """
    renderer = Renderer(tokenizer, DataSection(path="-"))
    conversation = Conversation(tuple(messages), tools=tools)
    try:
        ids = tokenizer.apply_chat_template(shown(messages), tools=tools)["input_ids"]
    except Exception:
        with pytest.raises(UnrenderableError):
            renderer.render(conversation)
        return "refused"
    rendered = renderer.render(conversation)
    ((our_ids, our_mask),) = Encoder(tokenizer).encode([rendered], 10**6)
    assert our_ids.tolist() == ids
    try:
        text, spans = marked_spans(tokenizer, oracle, messages, tools)
    except Exception:
        return "oracle differs"
    if not text.startswith(rendered.text):  # GLM's has one token more at the end
        return "oracle differs"
    wanted = with_loss(messages, spans)
    if wanted is None:
        return "no oracle"
    wanted = [(a, min(b, len(rendered.text))) for a, b in wanted]
    if our_mask.tolist() == token_mask(tokenizer, rendered.text, wanted):
        return "equal"
    if tokenizer.chat_template != oracle:
        wanted = as_we_put_it(rendered.text, wanted, heads)
    said = [rendered.text[a:b] for a, b in rendered.spans]
    mask = token_mask(tokenizer, rendered.text, wanted)
    assert our_mask.tolist() == mask, (said, [rendered.text[a:b] for a, b in wanted])
    return "equal but for head and space"
