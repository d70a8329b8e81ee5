"""Data that is not read, each kind by its name: what it is and what to do instead."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.layouts import Format


def require_one_meaning(
    data: DataSection, layout: Format, columns: Collection[str], *, is_strict: bool
) -> None:
    """`DataError` where it would be guessed which column is what, or one would be left out.

    With `is_strict` also where several columns may be the prompt or the response.
    """
    found = {
        what: [name for name in names if name in columns] for what, names in layout.names.items()
    }
    others = {data.id_column, data.group_column}
    beside = [name for name in layout.beside if name in columns and name not in others]
    once = {what: names[0] for what, names in found.items() if names and what in _SHOWN}
    for what, names in found.items():
        is_asked = what in layout.required if is_strict else False
        if len(names) > 1 and (is_asked or what in _OPTIONAL):
            what_is_it = f"{' and '.join(map(repr, names))} may both be meant"
            raise _unclear(data, what_is_it, once | {what: names[0]})
    if beside:
        asked = once[next(what for what in _SHOWN if what in once)]
        more = {"history" if beside[0] == "history" else "input": beside[0]}
        raise _unclear(
            data, f"{beside[0]!r} beside {asked!r} may belong to the prompt", once | more
        )


_SHOWN = ("prompt", "response", "chosen", "rejected")
_OPTIONAL = ("input", "system")


def _unclear(data: DataSection, what: str, named: dict[str, str]) -> DataError:
    columns = ", ".join(f"{key}: {name}" for key, name in named.items())
    key, name = next(iter(named.items()))
    return DataError(
        f"{data.name}: {what}. Say which column is what: data.columns: {{{columns}}} "
        f"(--column {key}={name} with init); what is not named is left out"
    )


def refuse_by_columns(data: DataSection, columns: Collection[str]) -> None:
    """`DataError` for data of another task, which would be taken for chats."""
    if "kto_tag" in columns:
        raise _kto(data, "kto_tag")


class Labels:
    """The column `label` of all rows: whether it calls answers good or bad, as KTO data does."""

    def __init__(self) -> None:
        self._is_binary = True
        self._has_words = self._has_bad = False

    def add(self, value: Any) -> None:
        """That of one more row; None or an empty text: it has none."""
        if value is None or value == "" or not self._is_binary:
            return
        word = str(value).casefold().removesuffix(".0")  # 1.0: of a column that has nulls
        self._is_binary = isinstance(value, bool | int | float | str) and word in _LABELS
        self._has_words |= word in ("true", "false")
        self._has_bad |= word in ("false", "0")

    def require_none(self, data: DataSection, layout: Format) -> None:
        """`DataError` for KTO data; 0 and 1 beside a plain text are classes of it."""
        is_kto = self._has_words or (self._has_bad and "response" in layout.required)
        if self._is_binary and is_kto and not data.columns.named:
            raise _kto(data, LABEL)


LABEL = "label"
_LABELS = ("true", "false", "1", "0")


def _kto(data: DataSection, column: str) -> DataError:
    return DataError(
        f"{data.name} holds KTO data (column {column}), where bad answers stand among good ones; "
        f"it is not read as such. Take the good rows into a file of their own; where {column} "
        "means something else, name the columns in data.columns"
    )


def missing_column(data: DataSection, name: str, columns: Collection[str]) -> DataError:
    """The error for a column that the recipe names and the dataset lacks."""
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "correct the recipe"
    return DataError(
        f"{data.name} has no column {name!r}; found the columns {column_names(columns)}; {hint}"
    )


def needs(layout: Format) -> str:
    """What a layout requires, for messages: `prompt and completion or response`."""
    return " and ".join(" or ".join(layout.names[what]) for what in layout.required)


def column_names(columns: Collection[str]) -> str:
    """Columns for messages."""
    return ", ".join(columns) or "(none)"
