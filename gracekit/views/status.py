"""`gracekit status`: what the store holds, how fresh and how good it is, and what the daemon does.

Plain values, read from the store. None stands where there is nothing to tell.
"""

from __future__ import annotations

import math
import time
from datetime import datetime
from pathlib import Path

import numpy as np

from gracekit.errors import StoreError
from gracekit.files import num_bytes_below
from gracekit.store import Store, StorePaths
from gracekit.store.files.heartbeat import read_heartbeat
from gracekit.store.files.shards import SUFFIX
from gracekit.store.retention import held_versions
from gracekit.types import Json
from gracekit.version.columns import DATA_COLUMNS, ORIGIN_NAMES
from gracekit.version.header import Header


def status(root: Path | str, *, now: float | None = None) -> Json:
    """What the store holds, how fresh it is, how far to trust it, and what the daemon does.

    Args:
        root: The store.
        now: Seconds since the epoch; default: the clock.

    Raises:
        StoreError: There is neither a store nor a daemon that will make one, or it is damaged.
    """
    now = time.time() if now is None else now
    heartbeat = read_heartbeat(root, now=now)
    if not Store.exists(root) and heartbeat["state"] != "absent":
        # A daemon that waits for the first checkpoint makes no store before it.
        return {"store": str(StorePaths(Path(root)).root), "num_versions": 0, "daemon": heartbeat}
    store = Store.open(root)
    versions, dataset = store.versions(), store.dataset()
    found: Json = {
        "store": str(store.paths.root),
        "data": dataset.settings.path or None,
        "num_samples": dataset.num_samples,
        "num_removed_samples": dataset.num_rows - dataset.num_samples,
        "num_versions": len(versions),
        "num_removed_versions": len(store.removed()),
        "held_versions": {str(v): why for v, why in sorted(held_versions(store).items())},
        "latest_version": versions[-1] if versions else None,
    }
    if versions:
        header = store.header(versions[-1])
        scored = _scored(store, header)
        origins = _origins(store, header, scored)
        made = datetime.fromisoformat(header.created_at).timestamp()
        found |= {
            "operation": header.operation,
            "step": header.checkpoint.step,
            "created_at": header.created_at,
            "age_s": round(max(now - made, 0.0), 1),
            "num_selected": header.stats.num_selected,
            "num_measured": scored.stats.num_measured,
            "data_changes": {
                name: value
                for name in DATA_COLUMNS
                if (value := getattr(header.stats, name)) is not None
            },
            "scores": {name: count for name, count in origins.items() if count},
            "audit": audit_in_words(scored),
        }
    return found | {
        "daemon": heartbeat,
        "num_unfinished_shards": sum(1 for _ in store.paths.shards.glob(f"*/*{SUFFIX}")),
        "size_bytes": num_bytes_below(store.paths.root),
        "problems": _problems(store, versions),
    }


def audit_in_words(header: Header) -> str:
    """What the audit says about the rows that were not measured, for people.

    Args:
        header: Of the version that made the scores: a reselect has no audit of its own.
    """
    audit = header.audit
    if audit is None:
        if header.stats.num_measured == header.stats.num_samples:
            return "not needed: everything was measured"
        return "none: too few rows were measured at random to check the others"
    if not audit.num_probe:
        return (
            "nothing was checked: no sample was measured at random "
            "(see refresh.probe_fraction and refresh.min_probe)"
        )
    found, stale = audit.rank_correlation, audit.rank_correlation_stale
    if math.isnan(found):
        return "nothing comparable: the checked rows all score the same"
    text = (
        f"scores carried to unmeasured samples have rank correlation {found:.2f} with the truth, "
        f"checked on {audit.num_probe:,} random samples"
    )
    if not math.isnan(stale):
        text += f" ({stale:.2f} had they been left as they were)"
    if _was_left_stale(header):
        text += "; nothing beat leaving them, so that is what was done"
    over_all = audit.rank_correlation_all
    if not math.isnan(over_all):  # headers of the first release do not have it
        text += f"; {over_all:.2f} over all samples"
    target = audit.target
    return text + (
        f"; the target of {target:.2f} is met"
        if audit.target_met
        else f"; below the target of {target:.2f}: raise refresh.max_fraction to measure more"
    )


def _was_left_stale(header: Header) -> bool:
    """Whether the importance of the rows that were not measured was kept as it was."""
    scoring, refresh = header.settings.scoring, header.refresh
    gates = refresh.propagation.scores if refresh is not None else None
    if gates is None or scoring is None or scoring.importance not in gates.scores:
        return False
    return gates.scores[scoring.importance].used == "stale"


def _origins(store: Store, header: Header, scored: Header) -> dict[str, int]:
    """Where the scores of a version came from; its data may be newer than the scores."""
    origins: dict[str, int] = scored.stats.origins or {}
    if header.rollback_of is None:
        return origins
    try:
        found = store.scores(header.version).origin
    except StoreError:
        return origins
    counts = np.bincount(found, minlength=len(ORIGIN_NAMES))
    return dict(zip(ORIGIN_NAMES, counts.tolist(), strict=True))


def _scored(store: Store, header: Header) -> Header:
    """The header of the version whose scores this one uses; its own where that is damaged."""
    try:
        return store.header(header.scores_version)
    except StoreError:
        return header


def _problems(store: Store, versions: list[int]) -> list[str]:
    """What can be seen without reading everything; `verify` reads everything."""
    problems = []
    made = store.next_version() - 1
    lost = sorted(set(range(1, made + 1)) - {*versions, *store.removed()})
    if lost:
        problems.append(f"versions {lost} are damaged or missing: run `gracekit verify`")
    if versions and not store.paths.database.is_file():
        problems.append("scores.duckdb is missing: the next refresh publishes it")
    outcome = store.header(versions[-1]).refresh if versions else None
    if outcome is not None and outcome.data_problem is not None:
        problems.append(
            f"version {versions[-1]} was made with the data before it changed: "
            f"{outcome.data_problem}"
        )
    try:
        store.samples()
    except StoreError as error:
        problems.append(str(error))
    return problems
