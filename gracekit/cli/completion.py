"""What TAB completes besides commands, options and paths, which click does by itself.

docs/start.md says how it is switched on. Nothing here may fail: a shell has no place for a message,
so what cannot be read completes nothing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
from click.shell_completion import CompletionItem

import gracekit
from gracekit.cli.resolving import resolve_store
from gracekit.errors import GracekitError

TRACKERS = ("tensorboard", "wandb", "trackio")
"""Those that `gracekit watch --tracker` knows by name."""
_MOST_VERSIONS = 50
_SENTENCE = re.compile(r".+?(?=[.;:]( |$)|$)")


def recipe_keys(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Keys of the recipe, as `--set` takes them, with what they mean."""
    return [
        CompletionItem(f"{key}=", help=about)
        for key, about in _keys(gracekit.Recipe.model_fields, "")
        if key.startswith(incomplete)
    ]


def _keys(fields: dict[str, Any], before: str) -> Iterator[tuple[str, str]]:
    """Key -> the first sentence of its meaning, those of sections included."""
    for name, field in fields.items():
        section = next(
            (c for c in (field.annotation, *get_args(field.annotation)) if _is_section(c)), None
        )
        if section is None:
            text = " ".join((field.description or "").split())
            yield before + name, _SENTENCE.match(text)[0] if text else ""  # type: ignore[index]
        else:
            yield from _keys(section.model_fields, f"{before}{name}.")


def _is_section(candidate: object) -> bool:
    return isinstance(candidate, type) and hasattr(candidate, "model_fields")


def query_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of ready-made queries."""
    return [
        CompletionItem(query.name, help=query.about)
        for query in gracekit.named_queries()
        if query.name.startswith(incomplete)
    ]


def query_parameters(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The parameters of the ready-made query on the line."""
    # Of a line that ends with an option the words before it are not told apart.
    name = context.params.get("named") or context.params.get("query") or " ".join(context.args)
    try:
        query = gracekit.find_query(name or "")
    except GracekitError:
        return []
    return [
        CompletionItem(f"{key}=", help=taken.about)
        for key, taken in query.parameters.items()
        if key.startswith(incomplete)
    ]


def tracker_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Trackers that come with gracekit."""
    return [CompletionItem(name) for name in TRACKERS if name.startswith(incomplete)]


def versions_of_store(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Versions of the store that the line, or else the recipe, names and has kept; newest first."""
    found = [CompletionItem("latest", help="the newest version")]
    with contextlib.suppress(GracekitError, OSError):
        store = resolve_store(
            context.params.get("store_path"), Path(context.params.get("recipe_path") or "")
        )
        kept = [record for record in gracekit.versions(store) if record.removed_at is None]
        for record in kept[: -_MOST_VERSIONS - 1 : -1]:
            header = record.header
            about = f"{header.operation} at step {header.checkpoint.step}"
            found.append(CompletionItem(str(record.version), help=about))
    return [item for item in found if item.value.startswith(incomplete)]
