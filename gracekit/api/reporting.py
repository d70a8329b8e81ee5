"""The verb that shows a store as one page: `report`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from gracekit.api.reading import status
from gracekit.api.stores import StoreLike, open_store, path
from gracekit.errors import ExportError
from gracekit.files import write_text_atomic
from gracekit.foreign import reason_of
from gracekit.reporting import Report, earlier_projection, is_report, make_report
from gracekit.store import output_file

__all__ = ["Report", "report"]


def report(
    store: StoreLike,
    output: str | Path | None = None,
    *,
    comparison: str | Path | None = None,
    now: float | None = None,
) -> Report:
    """What a store has come to, as one self-contained HTML file and as numbers.

    Args:
        store: Path of the store, or an open `Store`. Nothing in it is changed.
        output: The file to write, over an earlier report; its map keeps the earlier layout.
            Default: none is written, and `html()` of what is returned has the page.
        comparison: The directory of results of `gracekit compare`, or a file with what it printed
            with --json: its learning curves are shown too.
        now: Seconds since the epoch; default: the clock.

    Returns:
        The report: `answer`, `sections` of findings with their SQL, `to_json()`, `html()`.

    Raises:
        StoreError: There is no store, or it cannot be read.
        UsageError: There is no comparison at that place.
        ExportError: The file cannot be written, lies in a store, or is there and no report.

    Example:
        >>> found = gracekit.report("gracekit-store", "report.html")
        >>> print(found.answer.worth)
        >>> found.finding("coreset", "groups").columns["coreset_share"]
    """
    place = None if output is None else _place(path(output, "output"))
    opened = open_store(store)
    now = time.time() if now is None else now
    made = make_report(
        opened,
        status(opened, now=now),
        now=now,
        comparison=None if comparison is None else path(comparison, "comparison"),
        earlier=None if place is None else earlier_projection(place),
    )
    if place is None:
        return made
    made = dataclasses.replace(made, path=place)
    write_text_atomic(place, made.html())
    return made


def _place(wanted: Path) -> Path:
    """Where to write; raises `ExportError` for what is not ours to replace."""
    place = output_file(wanted)
    try:
        if place.exists() and not is_report(place):
            raise ExportError(
                f"cannot write {wanted}: there is a file that is no report of gracekit; name "
                "another, or remove it"
            )
    except OSError as error:
        raise ExportError(f"cannot write {wanted}: {reason_of(error)}; name another file") from None
    return place
