"""`gracekit diff`: how two versions differ, as plain values."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gracekit.store import Store
from gracekit.types import Bool, Json, SampleTable, ScoreTable
from gracekit.version.header import Header

NUM_MOVERS = 10


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


def _chosen(store: Store, version: int, num_rows: int) -> Bool:
    chosen = np.zeros(num_rows, bool)
    chosen[store.coreset(version)["row"].to_numpy()] = True
    return chosen


def _side(header: Header, chosen: Bool, scores: ScoreTable) -> Json:
    return {
        "version": header.version,
        "step": header.checkpoint.step,
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
