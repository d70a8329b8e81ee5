"""gc, pins and leases: what goes, what never does, and whoever comes between."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from gracekit import files
from gracekit.api.reading import diff, status, versions
from gracekit.errors import StoreError, StoreWriteError, VersionNotFoundError
from gracekit.refresher import rollback
from gracekit.refresher.loading import earlier_losses
from gracekit.store import Store, verify
from gracekit.store.files.leases import LIFE_S, Lease, followed
from gracekit.store.files.pinned import pinned
from gracekit.store.files.removals import write_removal
from gracekit.store.pinning import pin, unpin
from gracekit.store.retention import GcReport, collect, examine
from gracekit.store.sql.ask import run_sql
from gracekit.training import Coreset
from tests.faults import Killed, count_operations, failing_at, killed_at, on_operation
from tests.flips import flip_bit
from tests.stores import changed_samples, make_draft, make_reselect, make_store

NUM_VERSIONS = 6
"""Of the prepared store: refreshes, but for 5, which reselects from the scores of 4."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make_store(tmp_path_factory.mktemp("prepared") / "store", n=12)
    for version in range(1, NUM_VERSIONS + 1):
        make = make_reselect if version == 5 else make_draft
        store.commit(make(store, f"r{version}"))
    return store.paths.root


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Store:
    shutil.copytree(prepared, tmp_path / "store")
    return Store.open(tmp_path / "store")


def gc(store: Store, keep: int) -> GcReport:
    with store.lock():
        return collect(store, keep)


def write_lease(store: Store, **content: object) -> Path:
    lease = Lease(store.paths.root)
    lease.add(1)
    (file,) = store.paths.leases.iterdir()
    text = json.dumps({**json.loads(file.read_text()), **content})
    del lease  # which removes the file
    file.write_text(text)
    return file


def test_old_versions_go_and_what_was_measured_stays(store: Store) -> None:
    headers = {v: store.header(v) for v in store.versions()}
    measured = {v: store.measurement(v) for v in (1, 2, 3, 4, 6)}
    overlaps = run_sql(store.paths.root, "SELECT version, churn FROM versions ORDER BY 1")
    told = examine(store, 2)
    assert store.versions() == [1, 2, 3, 4, 5, 6], "a dry run removes nothing"
    report = gc(store, 2)
    assert report == told and report.removed == (1, 2, 3, 4) and report.freed_bytes > 0
    assert verify(store) == [] and store.recover() == []
    assert store.versions() == [5, 6] and store.next_version() == 7
    assert store.all_versions() == [1, 2, 3, 4, 5, 6] == sorted([*store.removed(), 5, 6])
    assert {v: store.header(v) for v in store.all_versions()} == headers
    assert all(store.measurement(v).equals(table) for v, table in measured.items())
    assert store.paths.measured(3).is_file() and not store.paths.scores(3).parent.exists()
    assert len(store.scores(5)) == 12, "5 needs the scores of 4"
    assert store.find_refresh("r2") == 2, "a removed refresh is not made again"

    assert run_sql(store.paths.root, "SELECT version, churn FROM versions ORDER BY 1") == overlaps
    for sql, expected in (
        ("SELECT version FROM versions WHERE removed_at IS NOT NULL ORDER BY 1", [1, 2, 3, 4]),
        ("SELECT DISTINCT version FROM coresets ORDER BY 1", [5, 6]),
        ("SELECT DISTINCT version FROM score_history ORDER BY 1", [4, 6]),
        ("SELECT DISTINCT version FROM measurements ORDER BY 1", [1, 2, 3, 4, 6]),
    ):
        assert [row for (row,) in run_sql(store.paths.root, sql)[1]] == expected, sql
    assert gc(store, 2) == GcReport(removed=(), freed_bytes=0, kept={5: None, 6: None})


@pytest.mark.parametrize("is_gone", [True, False])
def test_the_scores_that_a_refresh_looks_back_at_are_checked(store: Store, is_gone: bool) -> None:
    gc(store, 1)
    scores = store.paths.scores(4)
    assert scores.is_file() and 4 in store.removed() and verify(store) == []
    if is_gone:
        scores.unlink()
    else:
        flip_bit(scores, 4 * scores.stat().st_size)
    found = verify(store)
    assert {problem.path for problem in found} == {store.paths.relative(scores)}
    assert "the next refresh does not know how scores changed" in found[0].advice


def test_scores_that_look_back_still_see_all(store: Store) -> None:
    samples = store.samples()
    before = earlier_losses(store, samples, ["loss", "delta-loss", "delta-loss-first"])
    gc(store, 1)
    after = earlier_losses(
        Store.open(store.paths.root), samples, ["delta-loss", "delta-loss-first"]
    )
    assert len(before) == 2 and all(np.isfinite(losses).any() for losses in before.values())
    for name, losses in before.items():
        np.testing.assert_array_equal(after[name], losses)


def test_who_asks_for_a_removed_version_is_told(store: Store) -> None:
    gc(store, 1)
    for ask in (
        lambda: store.coreset(3),
        lambda: store.scores(3),
        lambda: diff(store.paths.root, 3, 6),
        lambda: Coreset.load(store.paths.root, 3),
        lambda: pin(store, 3),
    ):
        with pytest.raises(VersionNotFoundError, match=r"version 3 was removed by gc on 20"):
            ask()
    rows = {row["version"]: row for row in versions(store.paths.root).to_json()}
    assert rows[3]["state"].startswith("removed 20") and rows[6]["state"] is None
    found = status(store.paths.root).to_json()
    assert (found["num_versions"], found["num_removed_versions"]) == (1, 5)
    assert found["problems"] == []
    assert Coreset.load(store.paths.root).version == 6


def test_a_commit_keeps_so_many(store: Store) -> None:
    store.commit(make_draft(store, "r7"), keep=2)
    assert store.versions() == [6, 7] and list(store.removed()) == [1, 2, 3, 4, 5]
    assert verify(store) == []
    # 4 had the scores before those of 6: with 7 there, 6 has those before.
    assert [v for v in range(1, 8) if store.paths.scores(v).exists()] == [6, 7]


def test_sample_tables_stay_as_long_as_a_version_needs_them(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", n=12)
    for refresh_id, is_changed in (("a", False), ("b", True), ("c", True), ("d", False)):
        samples = changed_samples(store) if is_changed else None
        store.commit(make_draft(store, refresh_id, samples=samples))
    assert gc(store, 1).removed == (1, 2, 3)
    assert [path.name for path in store.paths.changed_samples.iterdir()] == ["v000003.parquet"]
    assert verify(store) == [] and len(store.samples()) == 18


def test_pinned_versions_stay(store: Store) -> None:
    with FileLock(store.paths.lock):  # as a daemon holds it
        pin(store, 2, "the paper's")
        pin(store, 3)
    assert gc(store, 1).kept == {2: "pinned: the paper's", 3: "pinned", 6: None}
    assert verify(store) == [] and store.versions() == [2, 3, 6]
    pin(store, 2, "the thesis'")
    assert pinned(store.paths)[2].note == "the thesis'"
    assert (unpin(store, 2), unpin(store, 2)) == (True, False)
    assert gc(store, 1).removed == (2,) and store.versions() == [3, 6]
    store.paths.pinned_marker(3).write_text("")
    assert gc(store, 1).removed == (), "a marker pins by being there"
    shutil.copy(store.paths.pinned_marker(3), store.paths.pinned_marker(1))
    assert [problem.path for problem in verify(store)] == ["pinned/v000001.json"]
    with pytest.raises(VersionNotFoundError, match="no version 9"):
        pin(store, 9)


def test_a_start_that_clears_up_amid_a_pin_is_of_no_matter(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[int] = []
    sync = files.sync_file

    def cleared(path: Path) -> None:
        sync(path)
        if len(times) < 2:
            times.append(files.remove_leftovers(store.paths.root))

    monkeypatch.setattr(files, "sync_file", cleared)
    pin(store, 2, "a note")
    assert times == [1, 1] and pinned(store.paths)[2].note == "a note"
    assert verify(store) == []


def test_followed_versions_stay_as_long_as_the_trainer(store: Store) -> None:
    lease = Lease(store.paths.root)
    lease.add(2)
    lease.add(3)
    assert gc(store, 1).removed == (1, 4, 5)
    lease.limit({0, 3})
    assert gc(store, 1).removed == (2,)
    lease.release()
    assert list(store.paths.leases.iterdir()) == []
    assert gc(store, 1).removed == (3,)


def test_leases_of_the_dead_and_the_distant(store: Store) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    now = time.time()
    for content, holds in (
        ({"pid": ended.pid}, False),
        ({"pid": ended.pid, "host": "elsewhere"}, True),
        ({"pid": os.getpid(), "host": "elsewhere", "unix_time": now - LIFE_S - 60}, False),
        ({"pid": ended.pid, "pid_namespace": "another container"}, True),
        ({"versions": "nonsense"}, False),
    ):
        file = write_lease(store, **content)
        assert (1 in followed(store.paths)) == holds, content
        gc(store, NUM_VERSIONS)
        assert file.exists() == holds, f"a stale lease is removed: {content}"
        file.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["leases", "leases/0123.json", "pinned"])
def test_gc_removes_nothing_where_it_cannot_tell_what_is_held(store: Store, name: str) -> None:
    """A link that leads to itself cannot be read, as what belongs to somebody else."""
    place, before = store.paths.root / name, store.versions()
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        shutil.rmtree(place)
    place.symlink_to(place)
    for dry_run in (True, False):
        with pytest.raises(StoreError, match=f"cannot read .*{name}: .* does not mean that it is"):
            store.gc(1, dry_run=dry_run)
        assert Store.open(store.paths.root).versions() == before
    if name != "pinned":
        told = status(store).to_json()
        assert told["latest_version"] == 6, "whoever only looks is not kept from it"
        assert any("gc and retention.keep remove nothing" in p for p in told["problems"])
    version = store.commit(make_draft(store, "another"), keep=1)
    assert Store.open(store.paths.root).versions() == [*before, version]
    place.unlink()
    assert gc(store, 1).removed


@pytest.mark.parametrize("name", ["leases", "leases/0123.json", "pinned"])
def test_a_killed_gc_stops_no_writer_where_it_cannot_tell_what_is_held(
    store: Store, name: str
) -> None:
    with store.lock():
        for version in (1, 2):
            write_removal(store.paths.removal(version), store.header(version))
    place = store.paths.root / name
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        shutil.rmtree(place)
    place.symlink_to(place)
    store = Store.open(store.paths.root)
    assert 1 not in store.versions()
    store.recover()
    assert store.versions()[:2] == [1, 2], "nothing of them was gone, so they are back"
    place.unlink()
    assert gc(store, 1).removed[:2] == (1, 2)


def test_a_lease_that_can_never_be_read_holds_for_a_day(store: Store) -> None:
    """As one of another host: whoever trains renews it every minute."""
    store.paths.leases.mkdir(exist_ok=True)
    place, then = store.paths.leases / "0123.json", time.time() - LIFE_S
    place.symlink_to(place)
    os.utime(place, (then + 600, then + 600), follow_symlinks=False)
    with pytest.raises(StoreError, match="cannot read"):
        store.gc(1)
    os.utime(place, (then, then), follow_symlinks=False)
    assert status(store).to_json()["problems"] == []
    assert store.gc(1).removed and not place.is_symlink()


def test_a_stale_lease_that_another_user_owns_does_not_stop_gc(store: Store) -> None:
    file = write_lease(store, host="elsewhere", unix_time=time.time() - LIFE_S - 60)

    def refuse(count: int, name: str, path: Path) -> None:
        if name == "remove" and path == file:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with on_operation(refuse):
        assert gc(store, 1).removed
    assert file.exists()


def test_a_lease_needs_no_store_and_no_permission(tmp_path: Path, store: Store) -> None:
    lease = Lease(tmp_path / "later")
    lease.add(1)
    assert not (tmp_path / "later").exists()
    lease = Lease(store.paths.root)
    with failing_at(1, errno.EROFS):
        lease.add(1)
    assert followed(store.paths) == {}
    lease.add(2)
    assert set(followed(store.paths)) == {1, 2}
    del lease
    assert followed(store.paths) == {}, "it ends with the sampler"


def prune(store: Store) -> object:
    return gc(store, 4)


def pins(store: Store) -> object:
    return pin(store, 2)


def trains(store: Store) -> object:
    lease = Lease(store.paths.root)
    lease.add(2)
    Coreset.load(store.paths.root, 2)
    return lease


def each_step(
    prepared: Path, root: Path, work: Callable[[Store], object]
) -> Iterator[tuple[int, str]]:
    """Number and name of every file operation of some work, with a new store at `root` for each."""
    shutil.copytree(prepared, root)
    steps = count_operations(lambda: work(Store.open(root)))
    shutil.rmtree(root)
    for k, name in enumerate(steps, start=1):
        shutil.copytree(prepared, root)
        yield k, name
        shutil.rmtree(root)


@pytest.mark.parametrize("come", [pins, trains])
def test_whoever_comes_in_the_middle_of_a_gc_is_seen_or_told(
    prepared: Path, tmp_path: Path, come: Callable[[Store], object]
) -> None:
    outcomes = []
    for k, _ in each_step(prepared, tmp_path / "store", prune):
        store, held = Store.open(tmp_path / "store"), []

        def react(count: int, name: str, path: Path, k: int = k) -> None:
            if count == k:
                with suppress(VersionNotFoundError):
                    held.append(come(Store.open(tmp_path / "store")))  # noqa: B023

        with on_operation(react):
            prune(store)
        assert not held or 2 in store.versions(), f"came at operation {k}"
        outcomes.append((bool(held), 2 in store.versions()))
        if outcomes[-1] not in outcomes[:-1]:
            store.recover()
            assert verify(store) == [], k
    assert {(True, True), (False, False)} <= set(outcomes)


def test_a_gc_in_the_middle_of_a_pin(prepared: Path, tmp_path: Path) -> None:
    outcomes = set()
    for k, _ in each_step(prepared, tmp_path / "store", pins):
        store = Store.open(tmp_path / "store")

        def react(count: int, name: str, path: Path, k: int = k) -> None:
            if count == k:
                prune(Store.open(tmp_path / "store"))

        is_pinned = True
        with on_operation(react):
            try:
                pins(store)
            except VersionNotFoundError:
                is_pinned = False
        assert is_pinned == (2 in store.versions()) == (2 in pinned(store.paths)), k
        outcomes.add(is_pinned)
        assert verify(store) == [], k
    assert outcomes == {True, False}


def test_a_killed_gc_is_finished(prepared: Path, tmp_path: Path) -> None:
    for k, name in each_step(prepared, tmp_path / "store", prune):
        store = Store.open(tmp_path / "store")
        with pytest.raises(Killed), killed_at(k, torn=name == "fill"):
            prune(store)
        reader = Store.open(store.paths.root)
        assert sorted([*reader.versions(), *reader.removed()]) == [1, 2, 3, 4, 5, 6], k
        assert all(len(reader.scores(version)) == 12 for version in reader.versions()), k
        assert len(Coreset.load(reader.paths.root)) == 4
        reader.recover()
        assert verify(reader) == [], k
        assert all(len(reader.measurement(v)) == 6 for v in (1, 2, 3, 4, 6)), k
        if k % 5 == 0:
            prune(reader)
            assert reader.versions() == [3, 4, 5, 6] and verify(reader) == [], k


def test_a_killed_gc_leaves_what_was_pinned_before_its_restart(
    prepared: Path, tmp_path: Path
) -> None:
    steps = [name for _, name in each_step(prepared, tmp_path / "store", prune)]
    shutil.copytree(prepared, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    with pytest.raises(Killed), killed_at(steps.index("remove") + 1):
        prune(store)
    assert list(store.removed()) == [1, 2]
    assert "manifests/v000001.parquet" in {problem.path for problem in verify(store)}
    store.paths.pinned.mkdir()
    store.paths.pinned_marker(2).write_text("{}")
    store.recover()
    assert store.versions() == [2, 3, 4, 5, 6] and verify(store) == []


def unpins(store: Store) -> object:
    return unpin(store, 6)


def goes_back(store: Store) -> object:
    return rollback(store.paths.root, 2)


def leave_unfinished(store: Store) -> None:
    """As a killed gc, a killed commit, and a hand that slipped leave it."""
    steps = count_operations(lambda: write_removal(store.paths.removal(2), store.header(2)))
    assert "replace" in steps
    (store.paths.root / "LATEST.partial-00").write_text("7")
    store.paths.scores(7).parent.mkdir()
    store.paths.sidecar(6).unlink()
    store.paths.latest.unlink()
    assert len(verify(store)) > 4


@pytest.mark.parametrize("work", [prune, pins, unpins, goes_back, Store.recover])
def test_a_failing_disk_is_clear_and_harmless(
    prepared: Path, tmp_path: Path, work: Callable[[Store], object]
) -> None:
    numbers = [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS]
    says = ["disk is full", "no permission", "check the disk", "read-only"]
    shutil.copytree(prepared, tmp_path / "begun")
    pin(Store.open(tmp_path / "begun"), 6)
    if work == Store.recover:
        leave_unfinished(Store.open(tmp_path / "begun"))
    is_told = []
    for k, _ in each_step(tmp_path / "begun", tmp_path / "store", work):
        store = Store.open(tmp_path / "store")
        with failing_at(k, numbers[k % 4]):
            told = ""
            try:
                work(store)
            except StoreWriteError as error:
                told = str(error)
            is_told.append(says[k % 4] in told)
        # After its commit point a rollback has happened, whatever fails.
        assert is_told[-1] or (work is goes_back and store.latest() == 7), k
        assert not is_told[-1] or store.latest() == 6, k
        assert len(store.scores(6)) == 12 and len(Coreset.load(store.paths.root)) == 4, k
        if k % 3 == 0:
            store.recover()
            assert verify(store) == [], k
            work(store)
            assert verify(store) == [], k
    assert any(is_told) and all(is_told) == (work is not goes_back)
