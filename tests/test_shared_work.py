"""Claims on the shards of a refresh: one holder each, taken over when the holder has ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gracekit.process import pid_namespace
from gracekit.store import Offer, SharedWork, StorePaths, shared_work
from gracekit.store.files.sealing import sealed_json
from gracekit.store.files.shards import clear_shards
from gracekit.store.files.shared_work import end_shared
from gracekit.types import Int64, Measurement
from tests.faults import on_operation
from tests.test_scoring_more_scores import Tokens
from tests.test_scoring_pass import make_samples

LENGTHS = (9, 9, 7, 5, 5, 3)
SHARDS = [np.array([0, 1]), np.array([2, 3]), np.array([4, 5])]


class Clock:
    """A steady clock of one host; it says what it is told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def shared(root: Path, clock: Clock | None = None) -> SharedWork:
    return SharedWork(StorePaths(root), "abc", 60.0, clock or Clock())


def offered(work: SharedWork, *, look: bool = False) -> Offer:
    tokens = Tokens(make_samples(LENGTHS))
    lengths: list[Int64] = [tokens.lengths[part] for part in SHARDS]
    return work.offer(SHARDS, lengths, tokens.take, look)


def measured(rows: Any) -> Measurement:
    values = np.asarray(rows, np.float32)
    return Measurement(
        rows=np.asarray(rows),
        scores={"loss": values},
        features=np.ones((len(values), 2), np.float16),
    )


def claim_path(work: SharedWork, shard: int, generation: int) -> Path:
    return work.directory / f"000001-{shard:06d}.{generation}.claim"


def of_another_host(path: Path, number: int) -> None:
    """The claim as its holder on another host writes it."""
    path.write_text(
        sealed_json(
            {"state": "held", "number": number, "token": "x", "host": "elsewhere", "pid": 1}
        )
    )


def test_a_shard_has_one_holder_and_tokens_come_as_they_went(tmp_path: Path) -> None:
    refresher, worker = shared(tmp_path), shared(tmp_path)
    refresher.open({"a": 1}, make_samples((8, 6)))
    offer = offered(refresher)
    assert shared_work(StorePaths(tmp_path)) == ["abc"]
    assert worker.task() == {"a": 1}
    for found, made in zip(
        worker.target_tokens(np.array([8, 6])), make_samples((8, 6)), strict=True
    ):
        assert all(map(np.array_equal, found, made))
    seen = worker.newest_offer()
    assert seen is not None and seen.number == offer.number and not seen.is_look
    assert np.array_equal(seen.rows, offer.rows) and np.array_equal(seen.ends, [2, 4, 6])
    samples = make_samples(LENGTHS)
    for shard, rows in enumerate(SHARDS):
        for (ids, mask), row in zip(worker.tokens(seen, shard), rows, strict=True):
            assert np.array_equal(ids, samples[row][0]) and np.array_equal(mask, samples[row][1])

    everything = {0, 1, 2}
    first, second = refresher.claim(offer, everything), worker.claim(seen, everything)
    third = refresher.claim(offer, everything)
    assert first and second and third
    assert [first.shard, second.shard, third.shard] == [0, 1, 2]
    assert worker.claim(seen, everything) is None
    second.finish("released")
    again = refresher.claim(offer, everything)
    assert again is not None and again.shard == 1


def test_a_claim_is_taken_over_by_the_observers_own_clock(tmp_path: Path) -> None:
    """Neither file times nor what the holder's clock says count."""
    clock = Clock()
    worker = shared(tmp_path, clock)
    worker.open({}, None)
    offer = offered(worker)
    path = claim_path(worker, 0, 0)
    for number in range(5):  # a holder that renews, however long it takes and whenever it says
        of_another_host(path, number)
        os.utime(path, (1e9 if number % 2 else 4e9,) * 2)
        assert worker.claim(offer, {0}) is None
        clock.now += 59.0
        assert worker.claim(offer, {0}) is None
        clock.now += 2.0
    of_another_host(path, 5)
    assert worker.claim(offer, {0}) is None
    clock.now += 59.9
    assert worker.claim(offer, {0}) is None
    late = shared(tmp_path, clock)
    assert late.claim(offer, {0}) is None  # it has looked once
    clock.now += 0.2
    taken = worker.claim(offer, {0})
    assert taken is not None and claim_path(worker, 0, 1).exists()
    assert late.claim(offer, {0}) is None


def test_a_claim_of_a_process_that_ended_here_is_free_at_once(tmp_path: Path) -> None:
    work = shared(tmp_path)
    work.open({}, None)
    offer = offered(work)
    code = (
        "import sys; from tests.test_shared_work import *\n"
        "work = shared(Path(sys.argv[1]))\n"
        "assert work.claim(work.newest_offer(), {0})\n"
    )
    for generation in range(3):
        root = str(Path(__file__).parent.parent)
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=generation < 3)
        assert claim_path(work, 0, generation).exists()
    assert work.claim(offer, {0}) is None  # three have ended over it: no worker tries again
    last = work.claim(offer, {0}, at_any_time=True)  # but the refresher does
    assert last is not None


def test_results_are_those_of_the_shard_or_none(tmp_path: Path) -> None:
    refresher, worker = shared(tmp_path), shared(tmp_path)
    refresher.open({}, None)
    offer = offered(refresher)
    assert worker.save(offer, 1, measured([2, 3])) and worker.save(offer, 0, measured([1, 2]))
    assert refresher.results(offer, {0, 1, 2}) == [0, 1]
    found = refresher.result(offer, 1)
    assert found is not None and found.scores["loss"].tolist() == [2, 3]
    assert refresher.result(offer, 0) is None  # of other rows
    assert refresher.results(offer, {0, 1, 2}) == [1]
    path = refresher.directory / "000001000001.shard"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert refresher.result(offer, 1) is None and not path.exists()
    assert refresher.claim(offer, {1}) is not None  # it is measured again

    refresher.withdraw(offer)
    assert not worker.save(offer, 2, measured([4, 5])) and worker.newest_offer() is None
    assert {each.name for each in refresher.directory.iterdir()} == {"task.json"}
    later = offered(refresher, look=True)
    assert later.number == 2 and worker.save(later, 2, measured([4, 5]))
    assert refresher.result(later, 2) is None  # scores where features were asked for


def test_what_was_measured_for_a_killed_refresher_is_not_lost(tmp_path: Path) -> None:
    killed, worker = shared(tmp_path), shared(tmp_path)
    killed.open({}, None)
    assert worker.save(offered(killed), 2, measured([4, 5]))
    refresher = shared(tmp_path)
    (left,) = refresher.open({"next": True}, None)
    assert left.rows.tolist() == [4, 5]
    assert worker.newest_offer() is None and worker.task() == {"next": True}
    refresher.close()
    assert not worker.is_there() and shared_work(StorePaths(tmp_path)) == []
    assert not worker.directory.exists()
    offer = Offer(1, np.arange(2), np.array([2]), np.array([3, 3]), False)
    claim = worker.claim(offer, {0})
    assert claim is None and not worker.directory.exists()  # nothing is made anew


@pytest.mark.parametrize("content", ["", "{}", "[]", json.dumps({"state": "held"})])
def test_a_claim_that_cannot_be_read_ends_as_all_do(tmp_path: Path, content: str) -> None:
    clock = Clock()
    work = shared(tmp_path, clock)
    work.open({}, None)
    offer = offered(work)
    claim_path(work, 0, 0).write_text(content)
    assert work.claim(offer, {0}) is None
    clock.now += 59.0
    assert work.claim(offer, {0}) is None
    clock.now += 1.0
    assert work.claim(offer, {0}) is not None


def test_work_of_a_refresher_that_was_killed_is_joined_by_nobody(tmp_path: Path) -> None:
    """Its checkpoint goes at the next start; another refresh may share its work by then."""
    paths = StorePaths(tmp_path)
    killed, worker = shared(tmp_path), shared(tmp_path)
    killed.open({"session": "1"}, None)
    offer = offered(killed)
    assert worker.task() == {"session": "1"} and shared_work(paths) == ["abc"]

    other = SharedWork(paths, "def", 60.0)
    other.open({"session": "2"}, None)
    assert shared_work(paths) == ["def"] and not worker.is_there()
    assert worker.save(offer, 2, measured([4, 5])), "what it was at is handed over"
    end_shared(paths)  # as the next start does
    assert shared_work(paths) == []
    (left,) = shared(tmp_path).open({"session": "3"}, None)
    assert left.rows.tolist() == [4, 5]
    assert shared_work(paths) == ["abc"]


def test_what_other_code_measured_is_not_taken(tmp_path: Path) -> None:
    """The refresher was killed, installed anew, and offers rounds of the same numbers."""
    killed, worker = shared(tmp_path), shared(tmp_path)
    killed.open({"session": "1", "program": {"torch": "1"}}, None)
    offer = offered(killed)
    assert worker.task()["session"] == "1"
    assert worker.save(offer, 1, measured([2, 3]))
    refresher = shared(tmp_path)
    assert refresher.open({"session": "2", "program": {"torch": "2"}}, None) == []
    again = offered(refresher)
    assert again.number == offer.number
    assert not worker.save(offer, 0, measured([0, 1])), "the worker still has the former code"
    assert refresher.results(again, {0, 1, 2}) == []


def test_what_a_worker_was_held_up_with_is_not_taken_by_other_code(tmp_path: Path) -> None:
    """It writes what it measured when the refresher has been installed anew and offers the same."""
    killed, worker, refresher = shared(tmp_path), shared(tmp_path), shared(tmp_path)
    killed.open({"session": "1", "program": {"torch": "1"}}, None)
    offer = offered(killed)
    assert worker.task()["session"] == "1"
    again: list[Offer] = []

    def react(count: int, name: str, path: Path) -> None:
        if count == 1:
            refresher.open({"session": "2", "program": {"torch": "2"}}, None)
            again.append(offered(refresher))

    with on_operation(react) as seen:
        assert worker.save(offer, 1, measured([2, 3]))
    assert seen[0] == "fill" and refresher.results(again[0], {1}) == [1]
    last = shared(tmp_path)
    assert last.open({"session": "3", "program": {"torch": "2"}}, None) == []
    assert worker.task()["session"] == "3"
    assert worker.save(offered(last), 1, measured([2, 3]))
    assert last.result(again[0], 1) is not None
    last.leave()
    assert not worker.is_there() and shared_work(StorePaths(tmp_path)) == []
    (left,) = shared(tmp_path).open({"session": "4", "program": {"torch": "2"}}, None)
    assert left.rows.tolist() == [2, 3]


def test_a_claim_of_a_host_with_the_same_name_counts_until_its_lease_ends(tmp_path: Path) -> None:
    """There no process of its number runs here; it does there."""
    clock = Clock()
    work = shared(tmp_path, clock)
    work.open({}, None)
    offer = offered(work)
    other_boot = "11111111-2222-3333-4444-555555555555"
    held = {
        "state": "held",
        "number": 0,
        "host": socket.gethostname(),
        "pid": 2**22 + 1,
        "pid_namespace": pid_namespace(),
        "birth": f"{other_boot} {pid_namespace()} 77",
    }
    claim_path(work, 0, 0).write_text(sealed_json(held))
    assert work.claim(offer, {0}) is None
    clock.now += 61.0
    assert work.claim(offer, {0}) is not None


def test_shards_are_forgotten_while_workers_write_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = shared(tmp_path)
    work.open({}, None)
    assert work.save(offered(work), 1, measured([2, 3]))
    whole = Path.glob

    def with_one_more(self: Path, pattern: str) -> Any:
        yield from whole(self, pattern)
        yield self / "000001000002.shard.partial-0123"  # renamed since it was listed

    monkeypatch.setattr(Path, "glob", with_one_more)
    paths = StorePaths(tmp_path)
    assert clear_shards(paths, before_ns=time.time_ns() + 10**12) == ["shards/abc-shared"]
    assert not [*paths.shards.iterdir()]
