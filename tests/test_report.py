"""What `status`, `versions` and `diff` tell."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from gracekit.api.reading import diff, status, versions
from gracekit.errors import StoreNotFoundError, VersionNotFoundError
from gracekit.store import Store
from gracekit.types import Origin
from gracekit.version.outcomes import Audit
from gracekit.views.audit_words import audit_in_words
from tests.stores import GROUPS, N, make_draft, make_reselect, make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = make_store(tmp_path_factory.mktemp("report") / "store")
    made.commit(make_draft(made, "one"))
    made.commit(make_draft(made, "two"))
    made.commit(make_reselect(made, "three"))
    return made


def test_versions_table(store: Store) -> None:
    table = versions(store.paths.root).to_json()
    json.dumps(table, allow_nan=False)
    assert [row["version"] for row in table] == [1, 2, 3]
    first, second, third = table
    assert first["parent_version"] is None and first["churn_percent"] is None
    assert second["measured_percent"] == 50.0 and second["num_measured"] == N // 2
    assert (second["rank_correlation"], second["rank_correlation_stale"]) == (0.8, 0.6)
    assert (second["model_pass_s"], second["other_s"]) == (2.0, 0.5)
    overlap = store.header(2).stats.overlap_with_parent
    assert overlap is not None
    assert second["churn_percent"] == pytest.approx(100 * overlap.churn, abs=0.01)
    assert third["operation"] == "reselect" and third["measured_percent"] is None


def test_diff_counts_by_group_and_in_all(store: Store) -> None:
    found = diff(store.paths.root, 1, 2).to_json()
    json.dumps(found, allow_nan=False)
    before, after = (set(store.coreset(v)["row"].to_pylist()) for v in (1, 2))
    assert found["num_kept"] == len(before & after)
    assert found["num_added"] == len(after - before)
    assert found["num_removed"] == len(before - after)
    assert [g["group"] for g in found["groups"]] == list(GROUPS)
    for key, total in (("added", "num_added"), ("removed", "num_removed")):
        assert sum(g[key] for g in found["groups"]) == found[total]
    rows = store.coreset(1)["row"].to_numpy()
    mean = store.scores(1).importance[rows].mean()
    assert found["first"]["mean_importance"] == pytest.approx(mean)
    assert found["second"]["step"] == 200


def test_diff_movers_are_the_largest_changes(store: Store) -> None:
    change = store.scores(2).importance - store.scores(1).importance
    found = diff(store.paths.root, 1, 2, num_movers=5).to_json()["movers"]
    order = np.argsort(-np.abs(change))[:5]
    assert [m["sample_id"] for m in found] == [f"id-{row:03d}" for row in order]
    assert [m["change"] for m in found] == pytest.approx(change[order].tolist())


def test_diff_leaves_out_rows_without_scores(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store")
    made.commit(make_draft(made, "one"))
    draft = make_draft(made, "two")
    assert draft.scores is not None
    origin = draft.scores.origin.copy()
    origin[:20] = Origin.NEVER
    scores = dataclasses.replace(draft.scores, origin=origin)
    made.commit(dataclasses.replace(draft, scores=scores))
    assert {m["sample_id"] for m in diff(made.paths.root, 1, 2).to_json()["movers"]} <= {
        f"id-{row:03d}" for row in range(20, N)
    }


def test_diff_of_a_version_with_itself_and_of_none(store: Store) -> None:
    same = diff(store.paths.root, 2, 2).to_json()
    assert same["jaccard"] == 1.0 and same["movers"] == [] and same["num_added"] == 0
    with pytest.raises(VersionNotFoundError, match="no version 9"):
        diff(store.paths.root, 1, 9)


def test_status(store: Store) -> None:
    made = datetime.fromisoformat(store.header(3).created_at).timestamp()
    found = status(store.paths.root, now=made + 90).to_json()
    json.dumps(found, allow_nan=False)
    assert found["latest_version"] == 3 and found["operation"] == "reselect"
    assert found["age_s"] == pytest.approx(90, abs=0.1)
    assert found["scores"] == {"propagated": N // 2, "measured": N // 2}
    assert found["num_measured"] == N // 2
    assert found["audit"] == audit_in_words(store.header(2)), "a reselect has the scores of 2"
    assert "0.80 with the truth" in found["audit"]
    assert found["size_bytes"] > store.paths.database.stat().st_size
    assert found["problems"] == [] and found["daemon"] == {"state": "absent"}


def test_status_of_a_new_store_and_of_none(tmp_path: Path) -> None:
    found = status(make_store(tmp_path / "store").paths.root).to_json()
    assert found["latest_version"] is None and found["num_versions"] == 0
    with pytest.raises(StoreNotFoundError):
        status(tmp_path / "nowhere")


def test_status_tells_damage_unfinished_work_and_the_daemon(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store")
    for refresh_id in ("one", "two"):
        draft = make_draft(made, refresh_id)
        made.commit(draft)
    assert draft.measurement is not None
    made.shards("abc").save(draft.measurement)
    made.paths.scores(2).unlink()
    made.paths.database.unlink()
    beat = {"state": "failing", "pid": 7, "error": "disk full", "unix_time": 1000.0}
    made.paths.heartbeat.write_text(json.dumps(beat))
    found = status(made.paths.root, now=1030.0).to_json()
    assert "versions [2]" in found["problems"][0] and "scores.duckdb" in found["problems"][1]
    assert found["num_unfinished_shards"] == 1 and found["latest_version"] == 1
    assert found["daemon"] == {
        "state": "failing", "pid": 7, "error": "disk full", "seconds_since_beat": 30.0,
    }  # fmt: skip


def test_status_tells_a_dead_daemon_from_one_elsewhere(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = socket.gethostname()
    for state, pid, host, expected in (
        ("waiting", ended.pid, here, "dead"),
        ("waiting", os.getpid(), here, "waiting"),
        ("stopped", ended.pid, here, "stopped"),
        ("waiting", ended.pid, f"not-{here}", "waiting"),
        ("waiting", "7", here, "waiting"),
    ):
        beat = {"state": state, "pid": pid, "host": host, "unix_time": 1000.0}
        made.paths.heartbeat.write_text(json.dumps(beat))
        assert status(made.paths.root).to_json()["daemon"]["state"] == expected


def test_status_of_a_selection_from_a_damaged_version(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store")
    made.commit(make_draft(made, "one"))
    made.commit(make_reselect(made, "two"))
    made.paths.manifest(1).write_bytes(b"PAR1")
    found = status(made.paths.root).to_json()
    assert found["latest_version"] == 2 and "versions [1]" in found["problems"][0]


def test_audit_in_words(store: Store) -> None:
    header = store.header(2)
    assert "0.80 with the truth" in audit_in_words(header)
    assert "the target of 0.75 is met" in audit_in_words(header)
    assert header.audit is not None

    def words(audit: Audit | None, num_measured: int | None = N // 2) -> str:
        stats = header.stats.model_copy(update={"num_measured": num_measured})
        return audit_in_words(header.model_copy(update={"audit": audit, "stats": stats}))

    def changed(**values: float) -> Audit:
        assert header.audit is not None
        return header.audit.model_copy(update=values)

    assert "raise refresh.max_fraction" in words(changed(target=0.9))
    unchecked = words(changed(num_probe=0, rank_correlation=0.0))
    assert "nothing was checked" in unchecked and "0.00" not in unchecked
    assert "nothing comparable" in words(changed(rank_correlation=math.nan))
    assert "everything was measured" in words(None, num_measured=N)
    assert "too few" in words(None)
