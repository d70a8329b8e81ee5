"""The fault table of what leaves a store: every request and file operation with every fault.

As `test_disk_faults` for refreshes: publishing, reading by address, and work that hosts share.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gracekit.errors import GracekitError, RemoteError, StoreWriteError
from gracekit.remote import RemoteFolder
from gracekit.store import Store, publish_and_record
from gracekit.training import Coreset
from tests.fault_tables import FaultTable
from tests.faults import DISK, Fault, Killed, disk_fails, disk_fails_after, faulted
from tests.hosts import KINDS
from tests.published import contents, expected, make_history, whole_versions
from tests.remote_faults import (
    BUCKET,
    CUT,
    DENIED,
    SLOW,
    THROTTLED,
    cut_short,
    fails_after,
    fails_with,
    kill,
    kill_after,
    told_as_done,
)
from tests.test_hosts import SEED, prepared, shared_once

__all__ = ["prepared"]  # the fixture: a store of one version and a checkpoint
REQUESTS: dict[str, Fault] = {
    "request denied": fails_with(DENIED),
    "throttled": fails_with(THROTTLED),
    "no answer in time": fails_with(SLOW),
    "answer cut off": fails_with(CUT),
    "done, answer lost": fails_after(SLOW),
    "half an answer": cut_short,
    "put told as done": told_as_done,
}
ENDS: dict[str, Fault] = {"killed before": kill, "killed after": kill_after}
DISKS: dict[str, Fault] = {
    "disk full": disk_fails(errno.ENOSPC),
    "disk told as failed": disk_fails_after(errno.EIO),
}
WAYS_OUT = ("run again", "access is denied; check", "the disk is full: free", "check the disk")
OUTCOMES = ("as if nothing was", "told, and whole", "killed, and whole")


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four versions, of which a part was published before gc removed others."""
    return make_history(tmp_path_factory.mktemp("history") / "store").paths.root


def seen_in(work: Callable[[], object]) -> list[str]:
    with faulted([BUCKET, DISK], lambda count, name: False, kill) as seen:
        work()
    return seen


def is_for(fault: str, operation: str) -> bool:
    """Whether a fault is one of such an operation."""
    if fault in ENDS:
        return True
    if fault == "put told as done":
        return operation == "put_object"
    if fault == "half an answer":
        return operation in ("get_object", "get_part")
    return (operation in BUCKET[1]) == (fault in REQUESTS)


def publish_with_each(
    history: Path, tmp_path: Path, part: str, every: int, kind: str = "memory"
) -> FaultTable:
    """A publish for each (operation, fault), then one with nothing amiss.

    Args:
        history: A store.
        tmp_path: For copies of it.
        part: `first`: of all versions; `removal`: after gc, over what was published before.
        every: Take one of so many.
        kind: Of object store: `memory`, or `file` for a directory.
    """
    table, before = FaultTable(OUTCOMES), dict[str, bytes]()
    root = shutil.copytree(history, tmp_path / "store")
    if part == "removal":
        publish_and_record(Store.open(root), f"memory://{tmp_path.name}", is_automatic=False)
        before = contents(f"memory://{tmp_path.name}")
        Store.open(root).gc(1)
    ours = expected(Store.open(root))

    def publish(url: str) -> None:
        publish_and_record(Store.open(root), url, is_automatic=False)

    def prepare(url: str) -> str:
        folder = RemoteFolder.open(url, create=True)
        for name, content in before.items():
            folder.write(name, content)
        return url

    base = f"memory://{tmp_path.name}-{part}" if kind == "memory" else f"file://{tmp_path}/{part}"
    counted = prepare(f"{base}-counted")
    operations = seen_in(lambda: publish(counted))
    newest = max(whole_versions(counted, tmp_path))
    ways = [
        (k, operation, name, fault)
        for name, fault in {**ENDS, **REQUESTS, **DISKS}.items()
        for k, operation in enumerate(operations, 1)
        if is_for(name, operation)
    ]
    for k, operation, name, fault in ways[::every]:
        url = prepare(f"{base}-{name.replace(' ', '-')}-{k}")
        where = f"{name} at {operation}, operation {k} of {len(operations)}"

        def is_meant(count: int, called: str, k: int = k, is_end: bool = name in ENDS) -> bool:
            return count >= k if is_end else count == k

        said = ""
        try:
            with faulted([BUCKET, DISK], is_meant, fault):
                publish(url)
        except Killed:
            outcome = "killed, and whole"
        except (RemoteError, StoreWriteError) as error:
            outcome = "told, and whole"
            said = str(error)
        else:
            outcome = "as if nothing was"
            there = contents(url)
            assert {**there, "LATEST": b""} == {**ours, "LATEST": b""}, where  # a hint
        assert outcome != "told, and whole" or any(way in said for way in WAYS_OUT), (where, said)
        seen = whole_versions(url, tmp_path)
        assert not before or max(seen) == newest, where
        publish(url)
        assert contents(url) == ours, where
        table.note(name, outcome)
    return table


def read_with_each(
    history: Path, tmp_path: Path, patch: pytest.MonkeyPatch, every: int
) -> FaultTable:
    """A trainer by address for each (operation, fault) of its first load."""
    table, url = FaultTable(OUTCOMES), f"memory://{tmp_path.name}-read"
    root = shutil.copytree(history, tmp_path / "store-read")
    publish_and_record(Store.open(root), url, is_automatic=False)
    whole = Coreset.load(root).to_arrow()
    patch.setenv("GRACEKIT_CACHE", str(tmp_path / "counted"))
    operations = seen_in(lambda: Coreset.load(url))
    ways = [
        (k, name, fault)
        for name, fault in {**ENDS, **REQUESTS, **DISKS}.items()
        for k, operation in enumerate(operations, 1)
        if is_for(name, operation)
    ]
    for k, name, fault in ways[::every]:
        patch.setenv("GRACEKIT_CACHE", str(tmp_path / f"cache-{name}-{k}"))

        def is_meant(count: int, called: str, k: int = k, is_end: bool = name in ENDS) -> bool:
            return count >= k if is_end else count == k

        try:
            with faulted([BUCKET, DISK], is_meant, fault):
                assert Coreset.load(url).to_arrow() == whole
            outcome = "as if nothing was"
        except Killed:
            outcome = "killed, and whole"
        except GracekitError:
            outcome = "told, and whole"
        assert Coreset.load(url).to_arrow() == whole, f"{name} at operation {k}"
        table.note(name, outcome)
    return table


def share_with_each(prepared: Path, tmp_path: Path, role: str, every: int) -> FaultTable:
    """A shared refresh for each (operation, fault) of the refresher or of one of two workers."""
    table = FaultTable(OUTCOMES)
    num_operations = shared_once(prepared, tmp_path / "counted", role, 0, "killed")[1]
    assert num_operations > 10
    ways = [(k, kind) for kind in KINDS for k in range(1, num_operations + 1)]
    for number, (k, kind) in enumerate(ways):
        if number % every:
            continue
        process, _ = shared_once(prepared, tmp_path / f"{k}-{kind}", role, k, kind)
        if process is None:  # it came to its end before that: others were faster
            continue
        outcome = "killed, and whole" if process.is_dead else "as if nothing was"
        table.note(kind, "told, and whole" if process.error is not None else outcome)
    return table


def test_publishing_with_some_faults(history: Path, tmp_path: Path) -> None:
    """A sample; `make torture` takes every operation with every fault."""
    assert publish_with_each(history, tmp_path, "removal", 13).num_states > 10


def test_shared_work_with_some_faults(prepared: Path, tmp_path: Path) -> None:
    assert share_with_each(prepared, tmp_path, "worker", 29).num_states > 2


def shown(table: FaultTable, title: str) -> None:
    print(f"\n{title}: {table.num_states} states\n\n{table}")


@pytest.mark.torture
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("part", ["first", "removal"])
def test_publishing_with_every_fault(history: Path, tmp_path: Path, part: str, kind: str) -> None:
    table = publish_with_each(history, tmp_path, part, 1, kind)
    shown(table, f"a publish ({part}, {kind}), each request and file operation with each fault")


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_reading_with_every_fault(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_with_each(history, tmp_path, monkeypatch, 1)
    shown(table, "a trainer by address, each request and file operation with each fault")


@pytest.mark.torture
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("role", "every"), [("worker", 2), ("refresher", 10)])
def test_shared_work_with_every_fault(
    prepared: Path, tmp_path: Path, role: str, every: int
) -> None:
    table = share_with_each(prepared, tmp_path, role, every)
    which = f"one of {every} pairs of file operation and fault"
    shown(table, f"a {role} of shared work, {which}, seed {SEED}")
