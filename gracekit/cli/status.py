"""`gracekit status`: what the store holds, how fresh it is, and what the daemon does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import gracekit
from gracekit.cli.following import follow as renew
from gracekit.cli.options import Seconds, answers, clear_errors, takes_store
from gracekit.cli.output import Output
from gracekit.cli.versions import print_versions
from gracekit.errors import UsageError

if TYPE_CHECKING:
    from gracekit.api.results import Status

NUM_VERSIONS = 8
"""Of the newest versions, that a page shows."""


@click.command(
    short_help="Say what the store holds and what to do next.",
    epilog="\b\nExamples:\n"
    "  gracekit status\n"
    "  gracekit status --follow\n"
    "  gracekit status --check",
)
@click.option("--check", is_flag=True,
              help="Say in one line whether the daemon is well; exit 3 if not.")  # fmt: skip
@click.option("--follow", is_flag=True,
              help="Show it again and again, with the newest versions, until Ctrl-C.")  # fmt: skip
@click.option("--every", "every_s", type=Seconds(0.1), default=2.0,
              show_default=True, metavar="SECONDS", help="With --follow: how often.")  # fmt: skip
@click.option("--max-age", "max_age_s", type=Seconds(0, is_open=True),
              default=120.0, show_default=True, metavar="SECONDS",
              help="With --check: seconds without a sign of the daemon.")  # fmt: skip
@clear_errors
@takes_store
@answers
def status(
    store: Path, check: bool, follow: bool, every_s: float, max_age_s: float, out: Output
) -> None:
    """Say what the store holds, how fresh it is, how far to trust it, and what to do next."""
    if follow:
        if check or out.as_json:
            other = "--check" if check else "--json"
            raise UsageError(
                f"--follow shows a page for people; {other} gives one answer, so leave one out"
            )
        renew(lambda: _page(store, out), every_s=every_s)
        return
    if not check:
        found = gracekit.status(store)
        out.show(found, lambda: _print(found, out))
        return
    health = gracekit.status(store, check=True, max_age=max_age_s)
    text = f"healthy: {health.daemon['state']}" if health.is_healthy else (
        f"unhealthy: {health.reason}"
    )  # fmt: skip
    out.show(health, lambda: out.line(text))
    if not health.is_healthy:
        sys.exit(3)


def _print(found: Status, out: Output) -> None:
    here = f"{Path.cwd()}{os.sep}"
    out.paragraphs(text.replace(here, "") for text in found.sentences())


def _page(store: Path, out: Output) -> None:
    """What the daemon does first, because that is what moves; then the versions, and the rest."""
    found = gracekit.status(store)
    here = f"{Path.cwd()}{os.sep}"
    first, *others = (text.replace(here, "") for text in found.sentences())
    doing = found.doing.replace(here, "")
    out.paragraphs([first, doing])
    if found.contents is not None:
        out.line()
        print_versions(gracekit.versions(store).to_json()[-NUM_VERSIONS:], out)
        out.line()
    out.paragraphs(text for text in others if text != doing)
