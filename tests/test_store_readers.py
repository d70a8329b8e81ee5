"""Processes that read while versions are made: `benchmarks/readers.py` in small, without times."""

from __future__ import annotations

from pathlib import Path

from benchmarks.readers import run


def test_every_answer_is_that_of_one_version(tmp_path: Path) -> None:
    found = run(
        tmp_path / "store", num_rows=400, num_commits=8, num_readers=2, pause_s=0.0,
        with_alone=False,
    )  # fmt: skip
    for seen in (*found.readers, found.holder):
        assert seen.errors == [] and seen.torn == []
        assert seen.num_answers > 0
    assert all(9 in seen.versions for seen in found.readers)
    assert len(found.holder.versions) == 1, "an open connection goes on with what it opened"


def test_readers_go_on_while_old_versions_are_removed(tmp_path: Path) -> None:
    found = run(
        tmp_path / "store", num_rows=400, num_commits=12, num_readers=2, pause_s=0.0,
        with_alone=False, keep=1,
    )  # fmt: skip
    for seen in (*found.readers, found.holder):
        assert seen.errors == [] and seen.torn == []
        assert 13 in seen.versions
    assert len(list((tmp_path / "store" / "manifests").glob("*.parquet"))) <= 2
