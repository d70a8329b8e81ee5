"""What a store holds: the facts behind `gracekit status`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from gracekit.errors import StoreError
from gracekit.files import num_bytes_below
from gracekit.store import Published, StoreReader, newest_run, read_published
from gracekit.types import Json
from gracekit.version.columns import DATA_COLUMNS, ORIGIN_NAMES
from gracekit.version.header import Header
from gracekit.views.aim_words import aim_in_words, places_behind, trust_in_words
from gracekit.views.audit_words import audit_in_words, misses_target
from gracekit.views.cost_words import cost_in_words
from gracekit.views.meter_words import worth_in_words


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestVersion:
    """The newest version, and the scores that it was selected from."""

    version: int
    operation: str
    """init, refresh, reselect or rollback."""
    step: int | None
    """Training step of its checkpoint."""
    created_at: str
    """UTC, RFC 3339."""
    age_s: float
    num_selected: int | None
    num_measured: int | None
    """Samples measured for its scores."""
    data_changes: dict[str, int]
    """num_added, num_removed, num_changed: samples since the version before, where known."""
    origins: dict[str, int]
    """Where the scores come from -> samples."""
    audit: str
    """How far the scores of samples that were not measured can be trusted."""
    worth: tuple[str, ...]
    """What its coreset is worth, a sentence an entry; empty where nothing is known."""
    aim: tuple[str, ...]
    """What it follows towards the target, a sentence an entry; empty without one."""
    trust: tuple[str, ...]
    """Which responses it distrusts, an entry each for the worst; empty where it trusts all."""
    cost: tuple[str, ...]
    """What its scores cost, a sentence an entry; empty where nothing is known."""
    max_cost: float | None
    """`refresh.max_cost` as it was for its scores; None: there was no limit, or none is known."""
    misses_target: bool
    """Whether less was found than the recipe's target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreContents:
    """What a store holds."""

    data: str | None
    """The path or name of the training data."""
    num_samples: int
    num_removed_samples: int
    """Samples that have left the data."""
    num_skipped_rows: int
    """Rows of the data that cannot be used."""
    num_unrendered: int
    """Samples without tokens, because the chat template refuses them."""
    num_versions: int
    num_removed_versions: int
    held_versions: dict[int, str]
    """Versions that gc leaves -> why."""
    latest: LatestVersion | None
    """None: there is no version yet."""
    num_unfinished_shards: int
    """Files of measurements that a stopped refresh left; the next one goes on from them."""
    size_bytes: int
    uses: Json | None
    """The run, and its training step, that a trainer logged uses at last; None: none ever did."""
    published: Published | None
    """Where the versions are published, and how the last try went; None: nowhere."""
    problems: tuple[str, ...]


def contents_of(store: StoreReader, now: float) -> StoreContents:
    """Look at a store.

    Args:
        store: The store.
        now: Seconds since the epoch.

    Raises:
        StoreError: It is damaged.
    """
    versions, dataset = store.versions(), store.dataset()
    return StoreContents(
        data=dataset.settings.name or None,
        num_samples=dataset.num_samples,
        num_removed_samples=dataset.num_rows - dataset.num_samples,
        num_skipped_rows=dataset.num_skipped,
        num_unrendered=dataset.num_unrendered,
        num_versions=len(versions),
        num_removed_versions=len(store.removed()),
        held_versions=dict(sorted(store.held_versions().items())),
        latest=_latest(store, store.header(versions[-1]), now) if versions else None,
        num_unfinished_shards=store.num_unfinished_shards(),
        size_bytes=num_bytes_below(store.paths.root),
        uses=_uses(store),
        published=read_published(store.paths),
        problems=tuple(_problems(store, versions)),
    )


def _uses(store: StoreReader) -> Json | None:
    logged = newest_run(store.paths)
    if not logged:
        return None
    step, path = list(logged.items())[-1]
    return {"run": path.parent.name, "step": step}


def _latest(store: StoreReader, header: Header, now: float) -> LatestVersion:
    scored = _scored(store, header)
    origins = _origins(store, header, scored)
    made = datetime.fromisoformat(header.created_at).timestamp()
    return LatestVersion(
        version=header.version,
        operation=header.operation,
        step=header.checkpoint.step,
        created_at=header.created_at,
        age_s=round(max(now - made, 0.0), 1),
        num_selected=header.stats.num_selected,
        num_measured=scored.stats.num_measured,
        data_changes={
            name: value
            for name in DATA_COLUMNS
            if (value := getattr(header.stats, name)) is not None
        },
        origins={name: count for name, count in origins.items() if count},
        audit=audit_in_words(scored),
        worth=tuple(worth_in_words(header)),
        aim=tuple(aim_in_words(scored.aim)),
        trust=tuple(_trust(store, header)),
        cost=tuple(cost_in_words(scored.cost)),
        max_cost=_max_cost(scored),
        misses_target=misses_target(scored),
    )


def _max_cost(scored: Header) -> float | None:
    if scored.cost is None or math.isnan(scored.cost.max_cost):
        return None
    return scored.cost.max_cost


def _origins(store: StoreReader, header: Header, scored: Header) -> dict[str, int]:
    """Where the scores of a version came from; its data may be newer than the scores."""
    origins: dict[str, int] = scored.stats.origins or {}
    is_same_data = header.dataset.samples_file == scored.dataset.samples_file
    if header.rollback_of is None or (origins and is_same_data):
        return origins  # what reads the scores loads pandas
    try:
        found = store.scores(header.version).origin
    except StoreError:
        return origins
    counts = np.bincount(found, minlength=len(ORIGIN_NAMES))
    return dict(zip(ORIGIN_NAMES, counts.tolist(), strict=True))


def _trust(store: StoreReader, header: Header) -> list[str]:
    """Which samples a version distrusts, where its selection goes by that."""
    settings = header.settings.selection
    if settings is None or settings.trust == "off":
        return []
    try:
        places, samples = places_behind(store, header), store.samples(header.version)
    except StoreError:
        return []
    return [] if places is None else trust_in_words(places, samples)


def _scored(store: StoreReader, header: Header) -> Header:
    """The header of the version whose scores this one uses; its own where that is damaged."""
    try:
        return store.header(header.scores_version)
    except StoreError:
        return header


def _problems(store: StoreReader, versions: list[int]) -> list[str]:
    """What can be seen without reading everything; `verify` reads everything."""
    problems = []
    made = store.next_version() - 1
    without_access = store.unreadable()
    if without_access:
        first = next(iter(without_access.values()))
        problems.append(f"versions {list(without_access)} cannot be read: {first}")
    lost = sorted(set(range(1, made + 1)) - {*versions, *store.removed(), *without_access})
    if lost:
        problems.append(f"versions {lost} are damaged or missing: run `gracekit verify`")
    if versions and not store.paths.database.is_file():
        problems.append("scores.duckdb is missing: the next refresh publishes it")
    if (obstacle := store.gc_obstacle()) is not None:
        problems.append(f"gc and retention.keep remove nothing: {obstacle}")
    outcome = store.header(versions[-1]).refresh if versions else None
    if outcome is not None and outcome.data_problem is not None:
        problems.append(
            f"version {versions[-1]} was made with the data before it changed: "
            f"{outcome.data_problem}"
        )
    try:
        store.require_samples()
    except StoreError as error:
        problems.append(str(error))
    return problems
