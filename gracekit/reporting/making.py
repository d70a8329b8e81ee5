"""`make_report`: from an open store to a report.

A part that cannot be made, because files were removed or are damaged, says why; the others are
made all the same.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from gracekit.documents import open_regular
from gracekit.errors import GracekitError, QueryError, StoreError
from gracekit.reporting.answer import answer
from gracekit.reporting.copies import copies
from gracekit.reporting.curves import Curves, curves
from gracekit.reporting.feature_map import Projection
from gracekit.reporting.finding import Finding, Section
from gracekit.reporting.map_section import map_of, map_section
from gracekit.reporting.newest_coreset import newest_coreset
from gracekit.reporting.over_time import over_time
from gracekit.reporting.page import LAYOUT_ID, MARK
from gracekit.reporting.questions import Questions
from gracekit.reporting.report import Report
from gracekit.reporting.texts import without_folders
from gracekit.reporting.timeline import timeline
from gracekit.store import StoreCache, StoreReader
from gracekit.version.header import Header
from gracekit.views.status import Status

logger = logging.getLogger("gracekit.reporting")

_Made = TypeVar("_Made")
_LAYOUT = re.compile(rf'<script type="application/json" id="{LAYOUT_ID}">([^<]*)</script>')
_HEAD = 4096
"""Characters of a file in which the mark of a report stands."""


def make_report(
    store: StoreReader,
    status: Status,
    *,
    now: float,
    comparison: Path | None = None,
    earlier: Projection | None = None,
) -> Report:
    """Everything that a report tells.

    Args:
        store: The store.
        status: What it holds, as `gracekit status` says it.
        now: Seconds since the epoch.
        comparison: Results of `gracekit compare`: their directory, or a file of printed JSON.
        earlier: The projection of the report that this one replaces, see `earlier_projection`.

    Raises:
        UsageError: There is no comparison at that place.
        StoreError: The store cannot be read at all.
    """
    compared = None if comparison is None else curves(comparison)
    kept = store.versions()
    newest = store.header(kept[-1]) if kept else None
    source = store.newest_scores()
    scored = None if source is None else _tried(lambda: store.header(source))
    cache = None if source is None else _tried(lambda: store.load_cache(source))
    with Questions(store) as questions:
        sections = _sections(questions, kept, newest, scored, cache, compared)
        drawn = _tried(lambda: map_of(questions, kept, cache, earlier))
    sections.insert(_place_of_map(sections), map_section(drawn, kept))
    root, data = str(store.paths.root), store.dataset().settings.name or ""
    followed = str(status.daemon.get("checkpoint_dir") or "")
    return Report(
        store=root,
        data=data,
        num_samples=store.dataset().num_samples,
        versions=tuple(kept),
        step=None if newest is None else newest.checkpoint.step,
        answer=answer(status, newest, _metered(store, kept), compared),
        status=tuple(without_folders(text, root, data, followed) for text in status.sentences()),
        sections=tuple(sections),
        map=drawn,
        created_at=datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        checkpoints=followed,
    )


def _sections(
    questions: Questions,
    kept: list[int],
    newest: Header | None,
    scored: Header | None,
    cache: StoreCache | None,
    compared: Curves | None,
) -> list[Section]:
    limit = None if scored is None or scored.cost is None else scored.cost.max_cost
    max_cost = limit if limit is not None and limit > 0 else None
    makers: Mapping[tuple[str, str], Callable[[], Section]] = {
        ("timeline", "From version to version"): lambda: timeline(questions, max_cost=max_cost),
        ("coreset", "What the newest coreset is"): lambda: _newest(questions, kept, newest),
        ("samples", "Samples over time"): lambda: over_time(questions, kept[-1] if kept else None),
        ("copies", "Samples that say the same"): lambda: copies(questions, scored, cache),
    }
    sections = [_made_or_why(key, title, make) for (key, title), make in makers.items()]
    if compared is not None:
        sections.append(compared.section)
    return sections


def _newest(questions: Questions, kept: list[int], newest: Header | None) -> Section:
    if newest is None:
        why = "There is no version yet, so there is no coreset. `gracekit watch` makes one."
        return _nothing("coreset", "What the newest coreset is", why)
    parent = newest.parent_version if newest.parent_version in kept else None
    is_aimed = newest.aim is not None or questions.store.places(newest.version) is not None
    return newest_coreset(questions, newest.version, parent, is_aimed=is_aimed)


def _made_or_why(key: str, title: str, make: Callable[[], Section]) -> Section:
    try:
        return make()
    except (QueryError, StoreError) as error:
        logger.warning("the part %r of the report is empty: %s", title, error)
        return _nothing(key, title, f"This part cannot be made: {error}")


def _nothing(key: str, title: str, why: str) -> Section:
    finding = Finding(title=title, good="There is nothing to judge here.", why_empty=why)
    return Section(key=key, title=title, about="", findings={"nothing": finding})


def _tried(make: Callable[[], _Made]) -> _Made | None:
    try:
        return make()
    except GracekitError as error:
        logger.warning("a part of the report is empty: %s", error)
        return None


def _metered(store: StoreReader, kept: list[int]) -> Header | None:
    """The newest kept version that tells what its coreset is worth."""
    for version in reversed(kept):
        header = _tried(lambda version=version: store.header(version))  # type: ignore[misc]
        if header is not None and header.meter is not None:
            return header
    return None


def _place_of_map(sections: list[Section]) -> int:
    """After the lists of samples, before a comparison."""
    keys = [section.key for section in sections]
    return keys.index("comparison") if "comparison" in keys else len(keys)


def earlier_projection(path: Path) -> Projection | None:
    """The projection of the report in a file; None where there is none that can be used."""
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8")
    except (OSError, ValueError):
        return None
    found = _LAYOUT.search(text) if MARK in text[:_HEAD] else None
    if found is None:
        return None
    try:
        return Projection.from_json(json.loads(found[1]))
    except (ValueError, RecursionError):
        return None


def is_report(path: Path) -> bool:
    """Whether a file is a report, which another one may replace; raises OSError."""
    with open_regular(path) as file:
        return MARK.encode() in file.read(_HEAD)
