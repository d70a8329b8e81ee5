"""Kinds of conversations for chat templates, and what of their rendering has to carry loss."""

from __future__ import annotations

import re
from typing import Any

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
