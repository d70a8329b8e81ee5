"""What the sections of a recipe have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the recipe: frozen; unknown keys and infinities are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def not_plain(
    section: type[Section], content: Mapping[Any, Any], before: str = ""
) -> Iterator[str]:
    """What in the content of a section pydantic would take and nobody can have meant, a sentence
    each: true or false for a number, which `keep: yes` is to YAML, and texts that no file and no
    table can hold.
    """
    for key, value in content.items():
        field = section.model_fields.get(key) if isinstance(key, str) else None
        if field is None:
            continue  # an unknown key, which is told as that
        kinds = (field.annotation, *get_args(field.annotation))
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, Section)]
        if inner and isinstance(value, Mapping):
            yield from not_plain(inner[0], value, f"{before}{key}.")
        elif isinstance(value, bool) and {int, float} & set(kinds) and bool not in kinds:
            yield f"{before}{key} should be a number, found {str(value).lower()}"
        else:
            for text in _texts(value):
                if (why := _unwritable(text)) is not None:
                    yield f"{before}{key} holds {text!r}, which has {why}; leave that out"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _unwritable(text: str) -> str | None:
    """Why no file can be named so; names may hold bytes that are no UTF-8, kept as Python does."""
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return None
