"""A store's life with its copy in an object store, as hypothesis makes it up.

All that a store goes through (`test_store_stateful`), and besides: publishes that die, fail, are
lied to, throttled, denied or answered late at any request or file operation; objects that are half
there; a second publisher, a commit or a reader that comes in at any request; and copies of the
store, taken while it is written, that publish to the same address.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from gracekit.errors import (
    GracekitError,
    RemoteConflictError,
    RemoteError,
    StoreFormatError,
    StoreNotFoundError,
    StoreWriteError,
    VersionNotFoundError,
)
from gracekit.remote import RemoteFolder
from gracekit.store import Store, publish_and_record, verify
from gracekit.training import Coreset
from tests.faults import DISK, Fault, Killed, Work, answered, disk_fails, faulted
from tests.published import at_call, contents, whole_versions
from tests.remote_faults import (
    BUCKET,
    DENIED,
    SLOW,
    THROTTLED,
    cut_short,
    fails_after,
    fails_with,
    generic_error,
    kill,
    kill_after,
    told_as_done,
)
from tests.stores import make_reselect
from tests.test_store_stateful import StoreLife, faults, picks

SEED = 20261132
LIVES = int(os.environ.get("GRACEKIT_LIVES", "15"))
"""In `make torture`."""
MET: Counter[str] = Counter()
"""What was really met, by name."""
ENDS: dict[str, Fault] = {"killed": kill, "killed after": kill_after}
FAILURES: dict[str, Fault] = {
    "no answer": fails_with(SLOW),
    "throttled": fails_with(THROTTLED),
    "denied": fails_with(DENIED),
    "answer lost": fails_after(SLOW),
    "told as done": told_as_done,
    "cut": cut_short,
}
outside_faults = st.tuples(
    st.sampled_from(["none", *ENDS, *FAILURES, "late", "disk"]), st.integers(1, 20)
)
Outside = tuple[str, int]


class PublishedLife(StoreLife):
    """What is promised of a published copy: nothing that was told as there is lost, versions are
    whole as they were made, and neither readers nor `LATEST` go back.
    """

    hold = let_go = restart_or_publish = None  # type: ignore[assignment]
    """Left to `StoreLife`, so that more of each life is spent on publishing."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(self.directory.name)
        self.url = f"file://{self.folder}/bucket/run"
        self.roots = [self.root]
        """The store and its copies."""
        self.told: set[int] = set()
        """Versions that a publish of the store told as there."""
        self.there: dict[int, dict[str, bytes]] = {}
        """Version -> its objects, as they were when it was first seen."""
        self.newest = self.latest = self.read = 0
        """Highest version seen, last LATEST, last version read."""
        self.late: list[Work] = []
        """Requests that were given up and are still on their way."""

    @contextmanager
    def at(self, fault: Outside) -> Iterator[None]:
        """One fault of the object store, or of the disk, in the block."""
        name, k = fault
        MET["publishes and reads"] += 1
        if name == "none":
            yield
            return

        def late(called: str, call: Work) -> Any:
            if called == "put_object":
                self.late.append(call)
            raise generic_error(SLOW)

        found = ENDS.get(name) or FAILURES.get(name) or (late if name == "late" else None)
        layers, is_end = [BUCKET] if name in FAILURES else [BUCKET, DISK], name in ENDS
        if found is None:
            found, layers = disk_fails(errno.ENOSPC), [DISK]
            k = 1 + k % 6
        elif name == "late":
            layers = [BUCKET]
        lied = name == "told as done"

        def is_meant(count: int, called: str) -> bool:
            is_it = count >= k if is_end else count == k
            return is_it and (not lied or called == "put_object")

        with faulted(layers, is_meant, found) as seen:
            try:
                yield
            finally:
                if len(seen) >= k and is_meant(k, seen[k - 1]):
                    MET[name] += 1

    def publish(self, root: Path, fault: Outside, between: Callable[[], None]) -> None:
        """By whoever has the store, or a copy, at `root`."""
        is_own = root == self.root
        store = Store.open(root)
        try:
            with self.at(fault):
                publish_and_record(store, self.url, is_automatic=False, between=between)
        except Killed:
            self.is_left |= is_own
        except RemoteConflictError:
            assert len(self.roots) > 1, "refused, and there is no copy"
        except StoreFormatError:
            assert not is_own, "a file is missing"
        except (RemoteError, StoreWriteError):
            assert fault[0] != "none" or len(self.roots) > 1, "failed with nothing amiss"
        else:
            if is_own:
                self.told |= {*store.versions()}

    @rule(fault=outside_faults, number=picks, k=st.integers(0, 40), other=picks)
    def publish_outside(self, fault: Outside, number: int, k: int, other: int) -> None:
        """Maybe with another process at the k-th request: a publisher, a commit, gc or a reader."""

        def come_in() -> None:
            MET["others came in"] += 1
            if other % 4 == 1 and not self.is_left:
                self.reselect(nullcontext)
            elif other % 4 == 2 and not self.is_left:
                self.gc(nullcontext, keep=1, is_old_first=False)
            elif other % 4 == 3:
                self.read_outside(("none", 0))
            else:
                self.publish(self.roots[other % len(self.roots)], ("none", 0), lambda: None)

        between = at_call(k, come_in) if fault[0] == "none" else lambda: None
        self.publish(self.roots[number % len(self.roots)], fault, between)

    @rule(fault=outside_faults)
    def publish_a_new_version(self, fault: Outside) -> None:
        self.reselect(nullcontext)
        self.publish(self.root, fault, lambda: None)

    @rule(fault=outside_faults)
    def publish_what_gc_removed(self, fault: Outside) -> None:
        self.gc(nullcontext, keep=1, is_old_first=False)
        self.publish(self.root, fault, lambda: None)

    @rule()
    def what_is_late_arrives(self) -> None:
        while self.late:
            with suppress(Exception):  # such as that an object of this name is there by now
                self.late.pop(0)()
            MET["arrived late"] += 1
            self.latest = 0  # a hint: a put that was given up may come after a newer one

    @rule(fault=outside_faults)
    def read_outside(self, fault: Outside) -> None:
        """A trainer on another host, whose cache stays."""

        def load() -> Coreset:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("GRACEKIT_CACHE", str(self.folder / "cache"))
                return Coreset.load(self.url)

        with suppress(Killed, GracekitError), self.at(fault):
            load()
        try:
            coreset = load()
        except (StoreNotFoundError, VersionNotFoundError):
            assert not self.told
            return
        except RemoteError:  # the folder is not there yet
            assert not self.there
            return
        assert coreset.version >= self.read, "a reader went back"
        assert len(coreset.rows) == coreset.view.content["stats"]["num_selected"]
        self.read = coreset.version

    @rule(number=picks)
    def half_of_an_object_is_there(self, number: int) -> None:
        """As a copy by other tools leaves it; the next publish of the store writes it again."""
        if not self.there or len(self.roots) > 1:
            return
        version = [*self.there][number % len(self.there)]
        names = sorted(self.there[version])
        name, folder = names[number % len(names)], RemoteFolder.open(self.url)
        whole = folder.read(name)
        folder.write(name, whole[: len(whole) // 2])
        MET["half an object"] += 1
        with pytest.MonkeyPatch.context() as patch, suppress(GracekitError):
            patch.setenv("GRACEKIT_CACHE", str(self.folder / "another-cache"))
            found = Coreset.load(self.url)
            assert len(found.rows) == found.view.content["stats"]["num_selected"]
            assert found.version != version or name not in self.needed_by_readers(version)
        shutil.rmtree(self.folder / "another-cache", ignore_errors=True)
        self.publish(self.root, ("none", 0), lambda: None)
        is_gone = name not in contents(self.url)  # removed by gc since
        assert is_gone or folder.read(name) == whole, f"{name} is still half"

    def needed_by_readers(self, version: int) -> list[str]:
        return [f"manifests/v{version:06d}.parquet", f"draws/version={version:06d}/draw.parquet"]

    @rule(seed=st.integers(0, 10**6))
    def the_store_is_copied_while_it_is_written(self, seed: int) -> None:
        """File by file, in any order, while a version is made and an old one removed."""
        if len(self.roots) > 1 or self.is_left:
            return
        rng, target = random.Random(seed), self.folder / f"copy-{len(self.roots)}"
        entries = sorted(self.root.iterdir())
        rng.shuffle(entries)

        def copying() -> Iterator[None]:
            for entry in entries:
                found = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
                for path in found:
                    if path.is_file() and path.name not in (".lock", "published.json"):
                        place = target / path.relative_to(self.root)
                        place.parent.mkdir(parents=True, exist_ok=True)
                        with suppress(FileNotFoundError):
                            shutil.copy2(path, place)
                    yield

        steps = copying()

        def answer(count: int, name: str, call: Work, arguments: tuple[Any, ...]) -> Any:
            for _ in range(rng.choice((0, 1, 1, 4))):
                next(steps, None)
            return call()

        with answered([DISK], answer):
            self.reselect(nullcontext)
            self.gc(nullcontext, keep=2, is_old_first=False)
        for _ in steps:
            pass
        MET["copied while written"] += 1
        problems = verify(Store.open(target))
        with suppress(GracekitError):  # a version of which half was copied cannot be mended
            Store.open(target).recover()
        assert problems or verify(Store.open(target)) == []
        self.roots.append(target)

    @rule(keep=st.integers(1, 2), is_gc=st.booleans(), fault=faults)
    def the_copy_goes_on(
        self, keep: int, is_gc: bool, fault: Callable[[], AbstractContextManager[object]]
    ) -> None:
        if len(self.roots) == 1:
            return
        store = Store.open(self.roots[-1])
        with suppress(Killed, GracekitError, FileNotFoundError), fault():
            store.gc(keep) if is_gc else store.commit(make_reselect(store, "of-the-copy"))

    @invariant()
    def nothing_told_is_lost(self) -> None:
        if not (self.folder / "bucket").is_dir():
            return
        found = contents(self.url)
        visible = whole_versions(self.url, self.folder)
        for version in visible:
            prefix = f"manifests/v{version:06d}.parquet"
            own = {name: found[name] for name in (prefix, *self.needed(version, found))}
            known = self.there.setdefault(version, own)
            assert own == known, f"version {version} changed at the URL"
        for version in [*self.there]:
            if version not in visible:
                assert f"removed/v{version:06d}.json" in found, f"version {version} was lost"
                del self.there[version]
        for version in self.told:
            assert version in visible or f"removed/v{version:06d}.json" in found
        newest = max(visible, default=0)
        assert newest >= self.newest, "the newest version went back"
        latest = int(found.get("LATEST", b"0"))
        assert latest >= self.latest, "LATEST went back"
        assert latest == 0 or f"manifests/v{latest:06d}.parquet" in found or latest < newest
        self.newest, self.latest = newest, latest

    def needed(self, version: int, found: dict[str, bytes]) -> list[str]:
        part = f"version={version:06d}/"
        return [name for name in found if part in name and not name.startswith("manifests/")]

    def teardown(self) -> None:
        with suppress(GracekitError):
            self.publish(self.root, ("none", 0), lambda: None)
        self.nothing_told_is_lost()
        if len(self.roots) == 1 and not self.late:
            assert self.newest == (Store.open(self.root).latest() or 0)
        super().teardown()


def live(num: int, steps: int) -> None:
    """So many lives, all of them by the seed."""
    MET.clear()
    run_state_machine_as_test(
        hypothesis.seed(SEED)(PublishedLife),
        settings=settings(
            max_examples=num,
            stateful_step_count=steps,
            suppress_health_check=[*HealthCheck],
            database=None,
            derandomize=False,
            phases=(Phase.generate,),  # shrinking what is found would take hours
        ),
    )


def test_nothing_that_was_published_is_lost() -> None:
    live(4, 10)


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_nothing_that_was_published_is_lost_in_many_lives() -> None:
    live(LIVES, 16)
    met = ", ".join(f"{count} {name}" for name, count in sorted(MET.items()))
    print(f"\nseed {SEED}, {LIVES} lives of a published store, 16 operations each: {met}")
