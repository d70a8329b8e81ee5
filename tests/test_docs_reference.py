"""docs/recipe.md, docs/cli.md and docs/python.md tell every key, command and function there is.

python -m tests.test_docs_reference      # writes them anew; `make docs` does that
"""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import gracekit
from gracekit.cli import COMMANDS, main
from gracekit.recipe import Recipe

DOCS = Path(__file__).parent.parent / "docs"
WIDTH = 80

RECIPE = """\
# The recipe, key by key

A recipe is a YAML file; `gracekit init DATA` writes one with the keys that matter most. Every
command takes it by `--recipe` (`gracekit.yaml` by default), and single keys by
`--set selection.fraction=0.2`. Unknown keys are refused. This page is written by `make docs`."""
CLI = """\
# The command line

What `gracekit COMMAND --help` prints; [commands.md](commands.md) shows answers. Data goes to
stdout, everything else to stderr. Exit codes: 0 ok, 1 failed, 2 usage or recipe error, 3
`status --check`: the daemon is not well. This page is written by `make docs`."""
PYTHON = """\
# From Python

`import gracekit` gives the verbs of the command line under the same names; each loads what it needs
when it is first used. This page is written by `make docs` from the docstrings."""


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a key of the recipe holds; None for a value."""
    candidates = [field.annotation, *get_args(field.annotation)]
    found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
    return found[0] if found else None


_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def kind(field: FieldInfo) -> str:
    """What a key may be, in short."""
    if section_of(field) is not None:
        return "keys of their own"
    annotation = field.annotation
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    text = re.sub(r"typing\.|gracekit\.[a-z_.]+\.", "", text)
    text = re.sub(r"Literal\[(.*?)\]", lambda m: m[1].replace("'", "").replace(", ", " / "), text)
    text = re.sub(r"Union\[(.*)\]", lambda m: m[1].replace(", ", " / "), text)
    text = re.sub(r"tuple\[(\w+), \.\.\.\]", r"list of \1", text)
    text = re.sub(r"dict\[str, (.*)\]", r"names, each with \1", text)
    for name, word in (("str", "text"), ("int", "whole number"), ("float", "number"),
                       ("bool", "true / false"), ("None", "null")):  # fmt: skip
        text = re.sub(rf"\b{name}\b", word, text)
    told = [
        f"{word} {getattr(rule, name)}"
        for rule in field.metadata
        for name, word in _BOUNDS.items()
        if hasattr(rule, name)
    ]
    return ", ".join([text.replace(" | ", " / "), *told])


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "`null`"
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        value = list(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def recipe_page() -> str:
    lines = [RECIPE]
    plain: dict[str, FieldInfo] = {}
    sections: dict[str, FieldInfo] = {}
    for name, field in Recipe.model_fields.items():
        (plain if section_of(field) is None else sections)[name] = field
    tables: list[tuple[str, str, dict[str, FieldInfo]]] = [("", "Outside of sections.", plain)]
    for name, field in sections.items():
        section = section_of(field)
        assert section is not None
        about = field.description or inspect.getdoc(section) or ""
        tables.append((name, about, dict(section.model_fields)))
    for name, about, fields in tables:
        title = f"## `{name}`" if name else "## Top level"
        lines += ["", title, "", " ".join(about.split()), "", "| key | default | may be | |",
                  "|---|---|---|---|"]  # fmt: skip
        for key, field in fields.items():
            text = " ".join((field.description or "").split()).replace("|", "\\|")
            lines.append(f"| `{key}` | {default(field)} | {kind(field)} | {text} |")
    return "\n".join(lines) + "\n"


def every_command() -> Iterator[tuple[str, click.Command]]:
    for command in COMMANDS:
        assert command.name is not None
        yield command.name, command


def cli_page() -> str:
    lines = [CLI, "", "```", help_of([]), "```"]
    for name, _ in every_command():
        lines += ["", f"## {name}", "", "```", help_of([name]), "```"]
    return "\n".join(lines) + "\n"


def help_of(command: list[str]) -> str:
    shown = CliRunner().invoke(
        main, [*command, "--help"], prog_name="gracekit", terminal_width=WIDTH
    )
    assert shown.exit_code == 0, shown.output
    return shown.output.rstrip()


def python_page() -> str:
    lines = [PYTHON]
    for name in gracekit.__all__:
        thing = getattr(gracekit, name)
        if not inspect.isfunction(thing):
            continue
        signature = f"{name}{inspect.signature(thing)}"
        signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)  # annotations are texts
        signature = re.sub(
            r"<[^<>]* at 0x[0-9a-f]+>|<function [^ ]*<lambda>[^>]*>", "...", signature
        )
        lines += ["", f"## {name}", "", "```python", *wrapped(signature), "```",
                  "", "```text", inspect.getdoc(thing) or "", "```"]  # fmt: skip
    return "\n".join(lines) + "\n"


def wrapped(signature: str) -> list[str]:
    if len(signature) <= 100:
        return [signature]
    return textwrap.wrap(signature, 100, subsequent_indent="    ", break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


PAGES: dict[str, Any] = {"recipe.md": recipe_page, "cli.md": cli_page, "python.md": python_page}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_up_to_date(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "run `make docs`"


def test_every_key_has_a_meaning() -> None:
    for line in recipe_page().splitlines():
        if line.startswith("| `"):
            assert len(line.rsplit(" | ", 1)[1].rstrip(" |")) > 10, line


if __name__ == "__main__":
    os.environ.pop("COLUMNS", None)
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
