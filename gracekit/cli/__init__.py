"""The command line: parse, call one function of the library, render. It computes nothing.

Data goes to stdout, everything else to stderr. Exit codes: 0 ok, 1 failed, 2 usage or recipe error,
3 `status --check`: the daemon is not well.
"""

from __future__ import annotations

import io
import logging
import sys

import click

from gracekit.cli import (
    check,
    compare,
    diff,
    doctor,
    export,
    gc,
    init,
    logs,
    pin,
    plan,
    publish,
    reference,
    refresh,
    report,
    rollback,
    samples,
    select,
    sql,
    status,
    verify,
    versions,
    watch,
    work,
)
from gracekit.version import __version__

EPILOG = """
\b
A first run:
  gracekit init data/train.jsonl            writes gracekit.yaml
  gracekit watch runs/sft                   a new version per checkpoint
  gracekit status                           what there is, and what to do next
  gracekit report                           the same to look at: writes report.html
  gracekit export --format jsonl -o subset  the newest coreset as training data
  gracekit sql --list                       questions to ask the score history
"""


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="gracekit")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr but warnings and errors.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text",
              envvar="GRACEKIT_LOG_FORMAT", show_default=True,
              help="What stderr gets: text, or one JSON object a line.")  # fmt: skip
def main(verbose: bool, quiet: bool, log_format: str) -> None:
    """Follow a fine-tuning run from outside and keep a fresh coreset for its trainer."""
    for stream in (sys.stdout, sys.stderr):
        # A character that it lacks, and half of a pair in a file name, end nothing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logs.configure(level, as_json=log_format == "json")


COMMANDS = (
    init.init,
    watch.watch,
    work.work,
    refresh.refresh,
    plan.plan,
    doctor.doctor,
    reference.reference,
    check.check,
    compare.compare,
    select.select,
    export.export,
    samples.explain,
    samples.similar,
    report.report,
    status.status,
    versions.versions,
    diff.diff,
    rollback.rollback,
    pin.pin,
    pin.unpin,
    publish.publish,
    gc.gc,
    sql.sql,
    verify.verify,
)
for command in COMMANDS:
    main.add_command(command)
