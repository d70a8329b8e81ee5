"""Options of a command that are the keys of a section of the recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal, get_args, get_origin

import click

import gracekit


class DataKeysCommand(click.Command):
    """A command with an option for each key of the recipe's data section that has one value.

    They are made when the command is used: `gracekit --help` does not load the recipe.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own, those of the section, and --help."""
        *own, help_option = super().get_params(ctx)
        return [*own, *self._of_section, help_option]

    @cached_property
    def _of_section(self) -> list[click.Option]:
        return list(_options(gracekit.Recipe.model_fields["data"].annotation))


def _options(section: Any) -> Iterator[click.Option]:
    for name, field in section.model_fields.items():
        choices = _choices(field.annotation)
        if not _has_one_value(field.annotation) or len(choices) == 1:
            continue
        kind = click.Choice(choices) if choices else None
        number = click.INT if field.annotation is int else None
        default = "" if field.default is None else f" [default: {field.default}]"
        text = " ".join((field.description or "").split()).replace("`", "")
        text = re.split("[:;] ", text)[0] if choices else text  # what each choice means is docs
        help_text = f"{text.removesuffix('.')}.{default}"
        yield click.Option([f"--{name.replace('_', '-')}"], type=kind or number, help=help_text)


def _has_one_value(annotation: Any) -> bool:
    """Whether a value can be given as one word: no list, no mapping, no section."""
    kinds = {get_origin(kind) or kind for kind in (annotation, *get_args(annotation))}
    return not any(kind in (dict, tuple, list) or hasattr(kind, "model_fields") for kind in kinds)


def _choices(annotation: Any) -> list[str]:
    """The values of literals and switches; none for anything else."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if annotation is bool:
        return ["true", "false"]
    found = [_choices(kind) for kind in get_args(annotation)]
    return [name for names in found for name in names] if all(found) else []
