"""Real SIGKILLs at random moments of whole operations, each followed by a clean restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from gracekit.store import Store
from tests.storm import Storm
from tests.tiny import write_checkpoint

SEED = 20260411


def test_killed_at_random_moments_every_restart_verifies(tmp_path: Path) -> None:
    storm = Storm(tmp_path, SEED)
    storm.begin()
    while storm.num_killed < 10 or not storm.num_killed_with_shards:
        storm.live()
        assert storm.num_lives < 30, "too few children were killed while they worked"


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_two_hundred_restarts(tmp_path: Path) -> None:
    storm = Storm(tmp_path, SEED)
    storm.begin()
    while storm.num_restarts < 200:
        storm.live()
    where = ", ".join(f"{count} in {name}" for name, count in sorted(storm.killed_in.items()))
    print(
        f"\nseed {SEED}: {storm.num_killed} SIGKILLs ({where}; {storm.num_killed_with_shards} with "
        f"finished shards) in {storm.num_restarts} operations, {storm.num_restarts} clean "
        f"restarts, {storm.store.next_version() - 1} versions made, 0 invalid, 0 lost measurements"
    )


def test_killed_in_the_first_version_the_next_start_makes_it(tmp_path: Path) -> None:
    storm = Storm(tmp_path, SEED)
    write_checkpoint(tmp_path / "run", 10)
    for kill_at in (0.3, 0.8, 5):
        storm.run("refresh", 10, kill_at=kill_at)
        assert not Store.exists(tmp_path / "store") or storm.store.versions() in ([], [1])
    assert storm.run("refresh", 10) == 0
    assert storm.store.versions() == [1]
    storm.require_whole()
