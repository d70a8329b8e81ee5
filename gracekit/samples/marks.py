"""Chat templates that tell which turn they are writing.

A template writes the turns of a conversation in loops. So marks are put into its source: one at
the start of each loop's body, which writes the number of the turn that the loop is at (in a loop
over numbers, where it takes its message), and one after the loop. What stands between two marks
belongs to a turn, whatever the turn says and however the template cuts, trims or escapes it. A
mark is written by statements that take over the whitespace control of the tag that they follow, so
that a rendering without its marks is the template's own, character by character; who renders
compares the two.

Only loops over messages write marks: a message carries the number of its turn under `TURN`, other
values do not. A template's own marks of what is generated (`{% generation %}`) are told as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gracekit.types import Json

Span = tuple[int, int]

TURN = "gracekit_turn"
"""Key of a message that holds the number of its turn."""
OPEN, CLOSE = "gracekit_mark_open", "gracekit_mark_close"
"""Names under which the two characters around a mark are given to the template."""
BRACKETS = [(chr(k), chr(k + 1)) for k in range(0x10F100, 0x10F110, 2)]
"""Pairs of characters for private use; one whose characters the conversation does not hold is
taken."""

STRINGS = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
TAGS = re.compile(
    r"\{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\}"
    r"|\{\#.*?\#\}"
    r"|\{\{(?:" + STRINGS + r"|[^'\"])*?\}\}"
    r"|\{%[-+]?(?P<body>(?:" + STRINGS + r"|[^'\"])*?)(?P<trim>[-+]?)%\}",
    re.DOTALL,
)
LOOP = re.compile(r"for\s+([A-Za-z_]\w*)\s+in\b\s*(range\b)?")
TAKEN = re.compile(r"set\s+([A-Za-z_]\w*)\s*=\s*\w+\[\s*(\w+)\s*\]")
"""A loop over numbers takes its message by one."""

DATE = {
    "%Y": "2024", "%y": "24", "%m": "07", "%B": "July", "%b": "Jul", "%d": "26", "%e": "26",
    "%-d": "26", "%-m": "7", "%j": "208", "%A": "Friday", "%a": "Fri", "%H": "00", "%I": "12",
    "%p": "AM", "%M": "00", "%S": "00", "%F": "2024-07-26", "%T": "00:00:00", "%D": "07/26/24",
}  # fmt: skip
"""Today, for templates that ask for it: the date that the templates of Llama 3 write themselves
where they are not told one."""


def with_fixed_date(source: str) -> str:
    """The template with the same date on every day, in whatever form it asks for one."""
    if "strftime_now" not in source:
        return source
    replaced = "".join(f" | replace({key!r}, {value!r})" for key, value in DATE.items())
    macro = "{%- macro strftime_now(format) -%}{{- format" + replaced + " -}}{%- endmacro %}\n"
    return macro + source  # the newline ends the tag, it is not written


@dataclass(frozen=True, slots=True)
class Marked:
    """One rendering without its marks, and what they said."""

    text: str
    turns: list[tuple[int, int, int]]
    """(turn, start, end) of each piece of text that was written at a turn, ascending."""
    generated: list[Span]
    """What the template itself marks as generated."""
    loops: frozenset[int]
    """Numbers of the loops that were at turns."""

    def pieces(self, turn: int) -> list[Span]:
        """Where a turn stands, without pieces that are only whitespace."""
        return [
            (start, end)
            for number, start, end in self.turns
            if number == turn and not self.text[start:end].isspace()
        ]

    def said(self, turn: int) -> str:
        """All that was written at a turn."""
        return "".join(self.text[a:b] for number, a, b in self.turns if number == turn)


@dataclass
class MarkedTemplate:
    """The source of a template, with marks."""

    source: str
    loops: frozenset[int] = field(default=frozenset())
    """Loops that are known to be over messages; a mark is put after those."""
    tells_generated: bool = False
    """Whether the template itself marks what is generated."""

    def __post_init__(self) -> None:
        self.marked = self._with_marks()

    def learn(self, loops: frozenset[int]) -> bool:
        """Put marks after these loops too; whether any of them is new."""
        if loops <= self.loops:
            return False
        self.loops |= loops
        self.marked = self._with_marks()
        return True

    def _with_marks(self) -> str:
        written, at, number = [], 0, 0
        inside: list[tuple[int, str]] = []  # (loop, its variable where that is a number)
        for tag in TAGS.finditer(self.source):
            body = (tag["body"] or "").strip()
            mark = ""
            if body.startswith("for ") or body.startswith("for\n"):
                loop = LOOP.match(body)
                if loop and not loop[2]:
                    mark = _begins(number, loop[1], tag["trim"])
                inside.append((number, loop[1] if loop and loop[2] else ""))
                number += 1
            elif body.startswith("set ") and inside and inside[-1][1]:
                taken = TAKEN.fullmatch(body)
                if taken and taken[2] == inside[-1][1]:
                    mark = _begins(inside[-1][0], taken[1], tag["trim"])
            elif body == "endfor" and inside:
                ended, _ = inside.pop()
                mark = _mark(f"'e{ended}.'", "true", tag["trim"]) if ended in self.loops else ""
            elif body in ("generation", "endgeneration"):
                self.tells_generated = True
                mark = _mark("'g.'" if body == "generation" else "'h.'", "true", tag["trim"])
            if mark:
                written += [self.source[at : tag.end()], mark]
                at = tag.end()
        return "".join([*written, self.source[at:]])


def numbered(messages: list[Json]) -> list[Json]:
    """The messages, each with its number."""
    return [message | {TURN: k} for k, message in enumerate(messages)]


def brackets(text: str) -> tuple[str, str]:
    """Two characters that the text does not hold."""
    return next(
        (pair for pair in BRACKETS if pair[0] not in text and pair[1] not in text), BRACKETS[0]
    )


def read_marks(rendered: str, around: tuple[str, str], silent: frozenset[int]) -> Marked:
    """Take the marks out of a rendering.

    Args:
        rendered: The text with marks.
        around: The two characters around each mark.
        silent: Turns that are not the assistant's. What is written while the template is at one
            belongs to it, also where it looks at other turns meanwhile, such as for the number of
            the call that a tool answers. Otherwise it belongs to the turn looked at last, such as
            a tool's answer within the turn that called it.
    """
    opening, closing = around
    first, *others = rendered.split(opening)
    pieces, length = [first], len(first)
    turns: list[tuple[int, int, int]] = []
    generated: list[Span] = []
    within: list[tuple[int, int]] = []  # (loop, turn) from the outermost loop to the innermost
    loops: set[int] = set()
    begun: list[int] = []
    for other in others:
        mark, _, piece = other.partition(closing)
        kind, (loop, _, turn) = mark[0], mark[1:].partition(".")
        if kind == "g":
            begun.append(length)
        elif kind == "h":
            generated.append((begun.pop(), length))
        else:
            places = [k for k, (known, _) in enumerate(within) if known == int(loop)]
            within = within[: places[0]] if places else within
            if kind == "b":
                within.append((int(loop), int(turn)))
                loops.add(int(loop))
        if piece:
            pieces.append(piece)
            if within:
                at = next((turn for _, turn in within if turn in silent), within[-1][1])
                _extend(turns, at, length, length + len(piece))
            length += len(piece)
    return Marked("".join(pieces), turns, generated, frozenset(loops))


def _extend(turns: list[tuple[int, int, int]], turn: int, start: int, end: int) -> None:
    if turns and turns[-1][0] == turn and turns[-1][2] == start:
        start = turns.pop()[1]
    turns.append((turn, start, end))


def _begins(loop: int, name: str, trim: str) -> str:
    """The mark of the turn that a variable holds, if it holds one."""
    is_message = f"{name} is mapping and {name}['{TURN}'] is defined"
    return _mark(f"'b{loop}.' ~ {name}['{TURN}']", is_message, trim)


def _mark(value: str, condition: str, trim: str) -> str:
    return f"{{% if {condition} %}}{{{{ {OPEN} ~ {value} ~ {CLOSE} }}}}{{% endif {trim}%}}"
