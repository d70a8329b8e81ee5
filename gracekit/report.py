"""What `gracekit status`, `versions` and `diff` tell: read from the store, as plain values.

Shares in keys ending in `_percent` are 0 to 100; None stands where there is nothing to tell.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import numpy as np

from gracekit.errors import StoreError
from gracekit.files import num_bytes_below
from gracekit.store import Store, StorePaths
from gracekit.store.heartbeat import read_heartbeat
from gracekit.store.history import ORIGIN_NAMES
from gracekit.store.retention import held_versions
from gracekit.store.shards import SUFFIX
from gracekit.store.summary import DATA_COLUMNS, version_row
from gracekit.types import Bool, Json, ManifestHeader, SampleTable, ScoreTable

NUM_MOVERS = 10


def versions_table(root: Path | str) -> list[Json]:
    """One record per version, ascending, also of those that gc removed.

    Keys: those of `store.summary.version_row`, and measured_percent, churn_percent, state (why gc
    leaves it, or when it was removed; None: nothing of both), removed_at.
    """
    store = Store.open(root)
    removed, held = store.removed(), held_versions(store)
    state = {**held, **{v: f"removed {when[:10]}" for v, when in removed.items()}}
    rows = [version_row(store.header(version)) for version in store.all_versions()]
    return [
        {
            **row,
            "measured_percent": _percent(row["measured_fraction"]),
            "churn_percent": _percent(row["churn"]),
            "state": state.get(row["version"]),
            "removed_at": removed.get(row["version"]),
        }
        for row in rows
    ]


def diff(root: Path | str, first: int, second: int, *, num_movers: int = NUM_MOVERS) -> Json:
    """How two versions differ.

    Returns:
        first and second (version, step, coreset size, mean importance of the coreset then),
        num_kept, num_added, num_removed, jaccard, data (samples that joined the data, left it or
        stayed with other content: num_added, num_removed, num_changed), groups (a record per group:
        size in both, added, removed), and movers (the samples whose importance changed most, among
        all with scores of the same content in both).

    Raises:
        VersionNotFoundError: One of them does not exist, or gc removed it.
        StoreFormatError: One of them is damaged.
    """
    store = Store.open(root)
    headers = [store.header(version) for version in (first, second)]
    tables = [store.samples(version) for version in (first, second)]
    samples = max(tables, key=len)  # rows are never reused: it has all of both
    chosen = [_chosen(store, version, len(samples)) for version in (first, second)]
    scores = [store.scores(version) for version in (first, second)]
    before, after = chosen
    kept, added, removed = before & after, after & ~before, before & ~after
    num_union = int((before | after).sum())
    return {
        "first": _side(headers[0], before, scores[0]),
        "second": _side(headers[1], after, scores[1]),
        "num_kept": int(kept.sum()),
        "num_added": int(added.sum()),
        "num_removed": int(removed.sum()),
        "jaccard": int(kept.sum()) / num_union if num_union else 1.0,
        "data": _data_changes(*tables),
        "groups": [
            {
                "group": name,
                "first": int(before[rows].sum()),
                "second": int(after[rows].sum()),
                "added": int(added[rows].sum()),
                "removed": int(removed[rows].sum()),
            }
            for name, rows in _rows_of_groups(samples)
        ],
        "movers": _movers(tables, scores, chosen, num_movers),
    }


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
        "data": dataset.get("path"),
        "num_samples": dataset["num_samples"],
        "num_removed_samples": dataset["num_rows"] - dataset["num_samples"],
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
            "step": header.checkpoint.get("step"),
            "created_at": header.created_at,
            "age_s": round(max(now - made, 0.0), 1),
            "num_selected": header.stats.get("num_selected"),
            "num_measured": scored.stats.get("num_measured"),
            "data_changes": {
                name: header.stats[name] for name in DATA_COLUMNS if name in header.stats
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


def audit_in_words(header: ManifestHeader) -> str:
    """What the audit says about the rows that were not measured, for people.

    Args:
        header: Of the version that made the scores: a reselect has no audit of its own.
    """
    audit = header.audit
    if audit is None:
        measured, total = (header.stats.get(k) for k in ("num_measured", "num_samples"))
        if measured is not None and measured == total:
            return "not needed: everything was measured"
        return "none: too few rows were measured at random to check the others"
    if not audit.get("num_probe"):
        return (
            "nothing was checked: no sample was measured at random "
            "(see refresh.probe_fraction and refresh.min_probe)"
        )
    found, stale = audit.get("rank_correlation"), audit.get("rank_correlation_stale")
    if found is None:
        return "nothing comparable: the checked rows all score the same"
    text = (
        f"scores carried to unmeasured samples have rank correlation {found:.2f} with the truth, "
        f"checked on {audit['num_probe']:,} random samples"
    )
    if stale is not None:
        text += f" ({stale:.2f} had they been left as they were)"
    gate = header.refresh.get("propagation", {}).get("scores", {}).get("scores", {})
    if gate.get(header.scoring.get("importance"), {}).get("used") == "stale":
        text += "; nothing beat leaving them, so that is what was done"
    over_all = audit.get("rank_correlation_all")  # not in versions of gracekit before 0.2
    if over_all is not None:
        text += f"; {over_all:.2f} over all samples"
    target = audit["target"]
    return text + (
        f"; the target of {target:.2f} is met"
        if audit.get("target_met")
        else f"; below the target of {target:.2f}: raise refresh.max_fraction to measure more"
    )


def _origins(store: Store, header: ManifestHeader, scored: ManifestHeader) -> dict[str, int]:
    """Where the scores of a version came from; its data may be newer than the scores."""
    origins: dict[str, int] = scored.stats.get("origins") or {}
    if header.rollback_of is None:
        return origins
    try:
        found = store.scores(header.version).origin
    except StoreError:
        return origins
    counts = np.bincount(found, minlength=len(ORIGIN_NAMES))
    return dict(zip(ORIGIN_NAMES, counts.tolist(), strict=True))


def _scored(store: Store, header: ManifestHeader) -> ManifestHeader:
    """The header of the version whose scores this one uses; its own where that is damaged."""
    try:
        return store.header(header.scores_version)
    except StoreError:
        return header


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)


def _chosen(store: Store, version: int, num_rows: int) -> Bool:
    chosen = np.zeros(num_rows, bool)
    chosen[store.coreset(version)["row"].to_numpy()] = True
    return chosen


def _side(header: ManifestHeader, chosen: Bool, scores: ScoreTable) -> Json:
    return {
        "version": header.version,
        "step": header.checkpoint.get("step"),
        "num_selected": int(chosen.sum()),
        "mean_importance": float(scores.importance[np.flatnonzero(chosen)].mean())
        if chosen.any()
        else None,
    }


def _rows_of_groups(samples: SampleTable) -> list[tuple[str, Bool]]:
    return [(name, samples.groups == i) for i, name in enumerate(samples.group_names)]


def _data_changes(first: SampleTable, second: SampleTable) -> Json:
    n = min(len(first), len(second))
    was, now = first.present[:n], second.present[:n]
    differs = first.content_hashes[:n] != second.content_hashes[:n]
    return {
        "num_added": int((~was & now).sum() + second.present[n:].sum()),
        "num_removed": int((was & ~now).sum() + first.present[n:].sum()),
        "num_changed": int((was & now & differs).sum()),
    }


def _movers(
    tables: list[SampleTable], scores: list[ScoreTable], chosen: list[Bool], num_movers: int
) -> list[Json]:
    samples, (before, after) = tables[1], scores
    n = min(len(before), len(after))
    change = after.importance[:n] - before.importance[:n]
    is_same = tables[0].content_hashes[:n] == tables[1].content_hashes[:n]
    known = np.flatnonzero(before.usable[:n] & after.usable[:n] & is_same & (change != 0))
    order = known[np.lexsort((known, -np.abs(change[known])))][:num_movers]
    return [
        {
            "sample_id": str(samples.sample_ids[row]),
            "group": samples.group_names[samples.groups[row]],
            "importance_first": float(before.importance[row]),
            "importance_second": float(after.importance[row]),
            "change": float(change[row]),
            "in_first": bool(chosen[0][row]),
            "in_second": bool(chosen[1][row]),
            "preview": str(samples.previews[row]),
        }
        for row in order
    ]


def _problems(store: Store, versions: list[int]) -> list[str]:
    """What can be seen without reading everything; `verify` reads everything."""
    problems = []
    made = store.next_version() - 1
    lost = sorted(set(range(1, made + 1)) - {*versions, *store.removed()})
    if lost:
        problems.append(f"versions {lost} are damaged or missing: run `gracekit verify`")
    if versions and not store.paths.database.is_file():
        problems.append("scores.duckdb is missing: the next refresh publishes it")
    if versions and (problem := store.header(versions[-1]).refresh.get("data_problem")):
        problems.append(
            f"version {versions[-1]} was made with the data before it changed: {problem}"
        )
    try:
        store.samples()
    except StoreError as error:
        problems.append(str(error))
    return problems
