"""`gracekit publish`: copy versions to an object store."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

import gracekit
from gracekit.cli.options import answers, clear_errors
from gracekit.cli.output import Output
from gracekit.words import count_of, size


@click.command(
    short_help="Copy the versions of STORE to an object store.",
    epilog="\b\nExamples:\n"
    "  gracekit publish gracekit-store s3://bucket/run\n"
    "  gracekit publish gracekit-store",
)
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("url", required=False)
@clear_errors
@answers
def publish(store: Path, url: str | None, out: Output) -> None:
    """Copy the versions of STORE to URL, from where trainers read them; what is there stays.

    Without URL: to where it was published last. It takes no lock, and may be stopped and repeated
    at any time. With `publish: {url: ...}` in the recipe each new version is published by itself.
    Needs gracekit[s3]; docs/how-to/use-an-object-store.md says the rest.
    """
    report = gracekit.publish(store, url)
    newest = "no version yet" if report.latest is None else f"up to version {report.latest}"
    new = count_of(len(report.published), "new version")
    gone = f", {count_of(len(report.removed), 'version')} removed" if report.removed else ""
    out.show(
        dataclasses.asdict(report),
        lambda: out.line(
            f"{report.url}: {newest}; {new}{gone}, {count_of(report.num_objects, 'object')} "
            f"written ({size(report.num_bytes)})"
        ),
    )
