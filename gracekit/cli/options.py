"""Options that several commands share, and the way from a mistake to one clear line."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gracekit.cli.logs import is_json
from gracekit.cli.render import say
from gracekit.errors import GracekitError, RecipeError

if TYPE_CHECKING:
    from gracekit.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_RECIPE = "gracekit.yaml"

recipe_option = click.option(
    "-r",
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path),
    default=DEFAULT_RECIPE,
    show_default=True,
    envvar="GRACEKIT_RECIPE",
    help="The recipe.",
)
store_option = click.option(
    "-s",
    "--store",
    "store_path",
    type=click.Path(path_type=Path),
    default=None,
    envvar="GRACEKIT_STORE",
    help="The store; default: the one that the recipe names.",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a value of the recipe, such as selection.fraction=0.2. May be repeated.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
strict_option = click.option(
    "--strict", is_flag=True, help="Stop at samples that cannot be used, and list them."
)


def clear_errors(command: Command) -> Command:
    """Print a gracekit error as one message on stderr and exit with its code; no traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except GracekitError as error:
            _say(str(error), type(error).__name__)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            _say("interrupted; the last published version is unchanged", "KeyboardInterrupt")
            sys.exit(130)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(0)

    return run  # type: ignore[return-value]


def _say(message: str, error: str) -> None:
    if is_json():
        logging.getLogger("gracekit").error(message, extra={"error": error})
    else:
        say(f"gracekit: {message}", err=True)


def load_recipe(path: Path, overrides: tuple[str, ...] = (), store: Path | None = None) -> Recipe:
    """The recipe with the command line's changes applied; values are read as YAML."""
    from gracekit.recipe import Recipe, read_yaml

    recipe = Recipe.load(path)
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise RecipeError(f"--set takes KEY=VALUE, found {override!r}")
        values[key.strip()] = read_yaml(text, f"--set {key}: {text!r}")
    if store is not None:
        values["store"] = str(store)
    return recipe.override(values) if values else recipe


def resolve_store(store: Path | None, recipe_path: Path) -> Path:
    """The store that was named, else the recipe's."""
    if store is not None:
        return store
    if not recipe_path.exists():
        raise RecipeError(
            f"which store? There is no recipe at {recipe_path}; name the store with --store, "
            "or the recipe with --recipe"
        )
    return Path(load_recipe(recipe_path).store)
