"""Data that is not read, each kind by its name: what it is and what to do instead."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.layouts import Format
from gracekit.types import Json


def require_one_meaning(data: DataSection, layout: Format, columns: Collection[str]) -> None:
    """`DataError` where it would be guessed which column is the prompt or the response."""
    prompt, response = (
        [name for name in layout.names[what] if name in columns] for what in layout.required
    )
    beside = [name for name in layout.beside if name in columns]
    if len(prompt) == len(response) == 1 and not beside:
        return
    if beside:
        what = f"{beside[0]!r} beside {prompt[0]!r} may belong to the prompt"
        more = f", input: {beside[0]}"
    else:
        several = prompt if len(prompt) > 1 else response
        what, more = f"{' and '.join(map(repr, several))} may both be meant", ""
    raise DataError(
        f"{data.name}: {what}. Say which column is what: "
        f"data.columns: {{prompt: {prompt[0]}, response: {response[0]}{more}}} "
        f"(--column prompt={prompt[0]} with init)"
    )


def refuse_by_columns(data: DataSection, columns: Collection[str]) -> None:
    """`DataError` for data of another task, which would be taken for chats."""
    if "kto_tag" in columns:
        raise _kto(data, "kto_tag")


def refuse_labels(data: DataSection, first_rows: Iterable[Json]) -> None:
    """`DataError` for KTO data: rows that the column `label` calls good or bad."""
    values = [row["label"] for row in first_rows if row.get("label") is not None]
    is_kto = values and all(
        isinstance(v, bool) or (isinstance(v, str) and v.casefold() in ("true", "false"))
        for v in values
    )
    if is_kto and not data.columns.named:
        raise _kto(data, "label")


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
