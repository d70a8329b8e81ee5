"""Power cuts between any two file operations: what was reported is there, and the rest goes on."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from gracekit.exports import export
from gracekit.refresher import rollback
from gracekit.store import Store, verify
from gracekit.store.files.pinned import pinned
from tests.exported import content_of
from tests.power import Disk, Moment, after_a_power_cut
from tests.stores import make_draft, make_reselect, make_store
from tests.test_exports import alpaca

SEED = 20260718
Promises = dict[str, dict[str, bytes]]
"""What was reported -> files that must be there since then, with their content."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with a store of three versions, of which one is pinned, and an export."""
    disk = tmp_path_factory.mktemp("prepared") / "disk"
    store = make_store(disk / "store", n=6)
    for name in ("one", "two", "three"):
        store.commit(make_draft(store, name))
    store.pin(1, "a note")
    export(content_of(alpaca(1)), "ids", disk / "out")
    return disk


def open_store(disk: Path) -> Store:
    return Store.open(disk / "store")


def refresh(disk: Path) -> str:
    store = open_store(disk)
    draft = make_draft(store, "four", measure_id="shards")
    assert draft.measurement is not None
    store.shards("shards").save(draft.measurement.take(draft.measurement.rows < 4))
    return f"version {store.commit(draft)}"


def select(disk: Path) -> str:
    store = open_store(disk)
    return f"version {store.commit(make_reselect(store, 'four'))}"


def refresh_and_collect(disk: Path) -> str:
    store = open_store(disk)
    return f"version {store.commit(make_draft(store, 'four'), keep=2)}"


def roll_back(disk: Path) -> str:
    return f"version {rollback(disk / 'store', 2).version}"


def collect(disk: Path) -> str:
    assert open_store(disk).gc(1).removed == (2,)
    return "removed 2"


def pin(disk: Path) -> str:
    open_store(disk).pin(2, "another note")
    return "pinned 2"


def pin_again(disk: Path) -> str:
    open_store(disk).pin(1, "a new note")
    return "pinned 1"


def unpin(disk: Path) -> str:
    open_store(disk).unpin(1)
    return "unpinned 1"


def export_anew(disk: Path) -> str:
    export(content_of(alpaca(3)), "jsonl", disk / "new")
    return "exported new"


def export_over(disk: Path) -> str:
    export(content_of(alpaca(3)), "jsonl", disk / "out", overwrite=True)
    return "exported out"


WORK: dict[str, Callable[[Path], str]] = {
    work.__name__: work
    for work in (
        refresh, select, refresh_and_collect, roll_back, collect, pin, pin_again, unpin,
        export_anew, export_over,
    )
}  # fmt: skip


def recorded(prepared: Path, target: Path, work: Callable[[Path], str]) -> list[Moment]:
    """Every moment of a piece of work, and one after it was reported."""
    disk = Disk(shutil.copytree(prepared, target))
    with disk.recording():
        disk.promise(work(target))
    return disk.moments


def bytes_of_versions(root: Path) -> dict[int, dict[str, bytes]]:
    """What must never change of a version: its manifest and what its header names."""
    store = Store.open(root)
    return {
        version: {
            name: (root / name).read_bytes()
            for name in (
                store.paths.relative(store.paths.manifest(version)),
                *store.header(version).files,
            )
        }
        for version in store.versions()
    }


def require_whole(
    disk: Path, moment: Moment, before: dict[int, dict[str, bytes]], *, may_remove: set[int]
) -> None:
    """Raise unless all that was there or reported is there, and a start makes the rest right."""
    root = disk / "store"
    left = Store.open(root)
    versions, gone = left.versions(), set(left.removed())
    for version, content in before.items():
        if version in gone:
            assert version in may_remove, f"version {version} went"
            content = {k: v for k, v in content.items() if k.startswith("measurements/")}
        else:
            assert version in versions, f"version {version} was lost"
        for name, expected in content.items():
            assert (root / name).read_bytes() == expected, name
    for promise in moment.promised:
        what, _, rest = promise.partition(" ")
        if what == "version":
            assert int(rest) in versions
        if what == "removed":
            assert int(rest) in gone
        if what in ("pinned", "unpinned"):
            assert (int(rest) in pinned(left.paths)) == (what == "pinned")
    latest = left.latest()
    assert latest is not None
    made = bytes_of_versions(root)
    left.recover()
    after = Store.open(root)
    assert after.latest() == latest and verify(after) == []
    assert {v: made[v] for v in after.versions()} == bytes_of_versions(root)
    assert after.commit(make_draft(after, "next")) == latest + 1 and verify(after) == []


def require_export(disk: Path, moment: Moment) -> None:
    """Raise unless an export is there whole, old or new, or beside its name; or never was."""
    old, new = {"ids.txt"}, {"coreset.jsonl", "README.md"}
    found = []
    for manifest in disk.glob("*/manifest.json"):
        try:
            listed = json.loads(manifest.read_text())["export"]["written"]
        except (ValueError, KeyError):
            assert ".partial-" in manifest.parent.name, "an unfinished export has its name"
            continue
        names = {path.name for path in manifest.parent.iterdir()}
        if ".partial-" in manifest.parent.name and names != set(listed):
            continue
        assert names == set(listed), manifest.parent.name
        found.append((manifest.parent.name, names))
    assert any(old <= names or new <= names for name, names in found if name != "new"), found
    for promise in moment.promised:
        if promise.startswith("exported "):
            assert any(name == promise.partition(" ")[2] and new <= names for name, names in found)


def cut(
    prepared: Path, tmp_path: Path, names: list[str], *, each: Callable[[int], int]
) -> Counter[str]:
    """Crash states of every piece of work; returns how many of each were looked at.

    Args:
        prepared: The disk to begin with.
        tmp_path: For copies of it.
        names: Of `WORK`.
        each: Number of moments -> number of crash states.
    """
    counts: Counter[str] = Counter()
    before = bytes_of_versions(prepared / "store")
    for name in names:
        moments = recorded(prepared, tmp_path / name, WORK[name])
        rng = random.Random(f"{SEED} {name}")
        num = each(len(moments))
        for k in range(num):
            moment = moments[-1] if k == 0 else moments[(k * len(moments)) // num]
            seed = rng.getrandbits(32)
            disk = tmp_path / "after"
            after_a_power_cut(moment, disk, random.Random(seed))
            try:
                if name.startswith("export"):
                    require_export(disk, moment)
                else:
                    removed = {1, 2} if "collect" in name else set()
                    require_whole(disk, moment, before, may_remove=removed)
            except BaseException as error:
                error.add_note(f"{name}, before {moment.operation}, seed {seed}, state {k}")
                raise
            shutil.rmtree(disk)
            counts[name] += 1
    return counts


def test_power_cuts(prepared: Path, tmp_path: Path) -> None:
    """A few of each; `make torture` takes a thousand."""
    counts = cut(prepared, tmp_path, list(WORK), each=lambda n: 3)
    assert counts.keys() == WORK.keys()


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_a_thousand_power_cuts(prepared: Path, tmp_path: Path) -> None:
    counts = cut(prepared, tmp_path, list(WORK), each=lambda n: 110)
    assert counts.total() >= 1000
    told = ", ".join(f"{count} in {name}" for name, count in counts.items())
    print(f"\nseed {SEED}: {counts.total()} power cuts ({told}): nothing reported was lost")
