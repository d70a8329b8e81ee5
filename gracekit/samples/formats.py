"""Which layout a dataset has: the one that the recipe names, or the first that fits.

With `format: auto` the first layout whose columns are all there is taken, in the order of
`FORMATS`: what a trainer takes before any text (tokens) or for another task (pairs) first, then the
others, in the order in which they came, so that a file is read as it always was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.conversation import Conversation
from gracekit.samples.layouts import FORMATS, Format, text_format
from gracekit.samples.messages import ASSISTANT, MalformedRowError
from gracekit.samples.refusals import (
    column_names,
    missing_column,
    needs,
    refuse_by_columns,
    require_one_meaning,
)

__all__ = [
    "ASSISTANT",
    "FORMATS",
    "Conversation",
    "Format",
    "MalformedRowError",
    "choose_format",
    "named_format",
    "text_format",
]


def named_format(data: DataSection, name: str) -> Format:
    """The layout of this name as the recipe has it: with its columns and roles."""
    layout = text_format(data.text_column) if name == "text" else FORMATS[name]
    roles = {name: role for role, names in data.roles.items() for name in names}
    knows_weights = data.rendering in ("auto", "chat", "plain")
    layout = layout.with_names(data.columns.named)
    return dataclasses.replace(layout, roles=roles, has_weights=knows_weights)


def choose_format(data: DataSection, columns: Collection[str]) -> Format:
    """The layout that the recipe names, or the first that fits; `DataError` where none does."""
    named = data.columns.named
    for column in named.values():
        if column not in columns:
            raise missing_column(data, column, columns)
    if data.format != "auto":
        return _as_named(data, columns)
    if not named:
        refuse_by_columns(data, columns)
    layouts = [named_format(data, name) for name in FORMATS]
    for layout, known in zip(layouts, FORMATS.values(), strict=True):
        if _unread(data, known) or not layout.matches(columns):
            continue
        if not named:
            require_one_meaning(data, layout, columns, is_strict=layout.name in _STRICT)
        return layout
    expected = "; ".join(f"{layout.name}: {needs(layout)}" for layout in layouts)
    said = f" with data.columns {named}" if named else ""
    raise DataError(
        f"{data.name}: no layout fits the columns {column_names(columns)}{said}. "
        f"Expected {expected}. "
        "Say which column is what in data.columns, such as {prompt: title, response: body}, or "
        "--column prompt=title with init; name the text's column in data.text_column"
    )


def _as_named(data: DataSection, columns: Collection[str]) -> Format:
    chosen = named_format(data, data.format)
    unknown = _unread(data, FORMATS[data.format])
    if unknown:
        raise DataError(
            f"data.format {data.format!r} has no {', '.join(sorted(unknown))}, which data.columns "
            "names; set data.format to auto"
        )
    if chosen.matches(columns):
        if not data.columns.named:
            refuse_by_columns(data, columns)
        return chosen
    raise DataError(
        f"{data.name}: format {data.format!r} needs {needs(chosen)}; "
        f"found the columns {column_names(columns)}. Set data.format, or leave it to be detected"
    )


# Newer ones, in which no store was made that would have to be read as before.
_STRICT = ("instruction-response", "question-answer", "query-response", "input-output")


def _unread(data: DataSection, layout: Format) -> set[str]:
    """What `data.columns` names and this layout does not look at."""
    also = {"system"} if layout.required[0] == "messages" else set()
    return data.columns.named.keys() - layout.names.keys() - also
