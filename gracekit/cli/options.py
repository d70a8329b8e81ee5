"""Options that several commands share, and the way from a mistake to one clear line."""

from __future__ import annotations

import errno
import functools
import json
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from gracekit import interrupts
from gracekit.cli.completion import recipe_keys, versions_of_store
from gracekit.cli.logs import is_json
from gracekit.cli.output import Output
from gracekit.cli.resolving import resolve_store
from gracekit.cli.terminal import say
from gracekit.errors import GracekitError
from gracekit.memory import RanOutExit, shortage
from gracekit.streams import lost_output

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_RECIPE = "gracekit.yaml"
MOST_S = 1e6
"""Of an option in seconds: eleven days."""
_BAD_NAMES = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ}
"""What the system says of a name that no file can have, or of a link that leads to itself."""

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
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=recipe_keys,
    help="Replace a value of the recipe, such as selection.fraction=0.2. May be repeated.",
)
strict_option = click.option(
    "--strict", is_flag=True, help="Stop at samples that cannot be used, and list them."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
_all_columns_option = click.option(
    "--all-columns", is_flag=True, help="Print tables whole, wider than the terminal."
)


class VersionType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """A version: a number, or `latest`. What exists is known to the store, which is asked later."""

    name = "version"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Numbers as numbers; any other text goes on to the store, which says what there is."""
        text = str(value)
        return int(text) if text.isascii() and text.removeprefix("-").isdigit() else text

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Those of the store that the line names."""
        return versions_of_store(ctx, incomplete)


VERSION = VersionType()


class Seconds(click.FloatRange):
    """Seconds that can be waited for; NaN, which is in no range and outside of none, is refused."""

    def __init__(self, least: float, *, is_open: bool = False) -> None:
        super().__init__(min=least, max=MOST_S, min_open=is_open)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number of seconds."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return seconds


version_option = click.option(
    "--version", type=VERSION, default="latest", show_default=True,
    help="A version's number, or `latest`.",
)  # fmt: skip


_ready_marker_option = click.option(
    "--ready-marker",
    metavar="NAME",
    default=None,
    help="A file that the trainer writes into each checkpoint once it is complete.",
)
_convert_option = click.option(
    "--convert-cmd",
    metavar="CMD",
    default=None,
    help="A command that makes a model folder of other checkpoints: 'CMD {src} {dst}'.",
)
_depth_option = click.option(
    "--depth",
    type=click.IntRange(0, 12),
    default=None,
    help="How many folders below to look for checkpoints; default: 4, or as the recipe says.",
)


def answers(command: Command) -> Command:
    """Give the command `out`, where its answer goes, from the option --json."""
    return _with_output(_json_option(command))


def answers_with_tables(command: Command) -> Command:
    """The same, with the option --all-columns."""
    return _with_output(_json_option(_all_columns_option(command)))


def _with_output(command: Command) -> Command:
    @functools.wraps(command)
    def run(*args: Any, as_json: bool, all_columns: bool = False, **kwargs: Any) -> Any:
        return command(*args, out=Output(as_json, all_columns), **kwargs)

    return run  # type: ignore[return-value]


def takes_store(command: Command) -> Command:
    """Give the command `store`, the path of the store, from the options --store and --recipe."""

    @functools.wraps(command)
    def run(*args: Any, recipe_path: Path, store_path: Path | None, **kwargs: Any) -> Any:
        return command(*args, store=resolve_store(store_path, recipe_path), **kwargs)

    return recipe_option(store_option(run))  # type: ignore[return-value]


def takes_recipe(command: Command) -> Command:
    """Give the command what a verb takes of a recipe: `recipe_path`, `store_path`, `changes`."""
    return recipe_option(store_option(set_option(command)))


def takes_checkpoints(*, depth: bool = False) -> Callable[[Command], Command]:
    """Options that are short for keys of the recipe's section `checkpoints`: part of `changes`.

    Args:
        depth: Also how deep below a folder to look.
    """
    keys = ("ready_marker", "convert_cmd", "depth")

    def wrap(command: Command) -> Command:
        @functools.wraps(command)
        def run(*args: Any, changes: tuple[str, ...], **kwargs: Any) -> Any:
            given = {key: kwargs.pop(key, None) for key in keys}
            own = tuple(
                f"checkpoints.{key}={json.dumps(value)}"
                for key, value in given.items()
                if value is not None
            )
            return command(*args, changes=(*changes, *own), **kwargs)

        wrapped = _ready_marker_option(_convert_option(run))
        return _depth_option(wrapped) if depth else wrapped  # type: ignore[return-value]

    return wrap


def clear_errors(command: Command) -> Command:
    """Print a gracekit error as one message on stderr and exit with its code; no traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            with interrupts.raised():
                result = command(*args, **kwargs)
                sys.stdout.flush()  # what cannot be written is told here and not amid the end
                return result
        except GracekitError as error:
            _say(str(error), type(error).__name__)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            if interrupts.was_terminated():
                _say("ended by SIGTERM; the last published version is unchanged", "Terminated")
                sys.exit(interrupts.TERMINATED)
            _say("interrupted; the last published version is unchanged", "KeyboardInterrupt")
            sys.exit(130)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(0)
        except PermissionError as error:
            _say(
                f"cannot read {error.filename}: {error.strerror}; check the owner and the rights "
                "of the file and of the directories above it",
                "PermissionError",
            )
            sys.exit(1)
        except OSError as error:
            if (lost := lost_output(error)) is not None:
                _say(lost, "OSError")
                sys.exit(1)
            if (what := shortage(error)) is not None:
                _say(what, "OSError")
                raise RanOutExit(1) from None
            if error.filename is None or error.errno is None:
                raise  # not of a file, so there is no more to say than where it happened
            advice = "name another" if error.errno in _BAD_NAMES else "check the disk and the mount"
            _say(f"cannot open {error.filename}: {error.strerror}; {advice}", "OSError")
            sys.exit(1)
        except Exception as error:
            if (what := shortage(error)) is None:
                raise
            _say(what, type(error).__name__)
            raise RanOutExit(1) from None

    return run  # type: ignore[return-value]


def _say(message: str, error: str) -> None:
    if is_json():
        logging.getLogger("gracekit").error(message, extra={"error": error})
    else:
        say(f"gracekit: {message}", err=True)
