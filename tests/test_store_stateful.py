"""A store's life, as hypothesis makes it up: every operation, killed or failing anywhere."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gracekit.errors import StoreDataMismatchError, StoreWriteError, VersionNotFoundError
from gracekit.refresher import RefreshResult, rollback
from gracekit.store import Store, verify
from gracekit.store.files.leases import Lease
from gracekit.store.files.pinned import pinned
from gracekit.store.pinning import pin, unpin
from gracekit.store.publish import publish
from gracekit.store.retention import collect
from gracekit.training import Coreset
from tests.faults import Killed, failing_at, killed_at
from tests.stores import changed_samples, make_draft, make_reselect, make_store

Fault = Callable[[], AbstractContextManager[object]]

moment = st.integers(1, 40)
faults = st.one_of(
    st.just(nullcontext),
    st.builds(lambda k, torn: lambda: killed_at(k, torn=torn), moment, st.booleans()),
    st.builds(
        lambda k, number: lambda: failing_at(k, number),
        moment,
        st.sampled_from([errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS]),
    ),
)
picks = st.integers(0, 99)


class StoreLife(RuleBasedStateMachine):
    """What the commit protocol promises, held against every sequence of operations.

    After a kill the store is first looked at as it was left, as a reader would, and cleaned up by
    whoever writes next, as all commands do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.root = make_store(Path(self.directory.name) / "store", n=6).paths.root
        self.is_left = False
        """Whether a process was killed since the last clean-up."""
        self.files: dict[int, dict[Path, bytes]] = {}
        """Of every version ever seen: the files that must not change while it is kept."""
        self.made: dict[str, int] = {}
        """refresh_id -> version of every refresh."""
        self.leases: list[tuple[Lease, int]] = []

    def open(self) -> Store:
        return Store.open(self.root)

    def attempt(self, work: Callable[[Store], Any], fault: Fault) -> Any:
        """Run an operation as a process of its own, which may die; None unless it ends well."""
        store = self.open()
        if self.is_left:
            store.recover()
            assert verify(store) == [], "an orphan survived the restart"
            self.is_left = False
        try:
            with fault():
                return work(store)
        except Killed:
            self.is_left = True
        except StoreWriteError:
            pass
        return None

    def pick(self, number: int) -> int:
        versions = self.open().versions()
        return versions[number % len(versions)]

    @initialize()
    def begin(self) -> None:
        for _ in range(3):
            self.refresh(nullcontext, keep=None, is_changed=False)

    @rule(fault=faults, keep=st.sampled_from([None, None, None, 2]), is_changed=st.booleans())
    def refresh(self, fault: Fault, keep: int | None, is_changed: bool) -> None:
        def work(store: Store) -> None:
            samples = changed_samples(store) if is_changed and store.latest() else None
            draft = make_draft(store, refresh_id, measure_id="shards", samples=samples)
            assert draft.measurement is not None
            store.shards("shards").save(draft.measurement.take(draft.measurement.rows < 4))
            store.commit(draft, keep=keep)

        refresh_id = f"refresh-{self.open().next_version()}"
        self.attempt(work, fault)
        made = self.open().find_refresh(refresh_id)
        if made is None:
            self.attempt(work, nullcontext)  # a rerun finishes it
            made = self.open().find_refresh(refresh_id)
        assert made == max(self.open().all_versions())
        self.made[refresh_id] = made

    @rule(fault=faults)
    def reselect(self, fault: Fault) -> None:
        refresh_id = f"select-{self.open().next_version()}"
        self.attempt(lambda store: store.commit(make_reselect(store, refresh_id)), fault)

    @rule(fault=faults, number=picks)
    def roll_back(self, fault: Fault, number: int) -> None:
        def work(store: Store) -> RefreshResult:
            return rollback(store.paths.root, version)

        version = self.pick(number)
        try:
            self.attempt(work, fault)
            made = self.attempt(work, nullcontext)
            again = self.attempt(work, nullcontext)
        except StoreDataMismatchError:  # none of its samples is in the data any more
            return
        store = self.open()
        assert (again.version, again.is_new) == (made.version, False)
        assert made.version == store.latest()
        assert made.header.scores_version == store.header(version).scores_version
        before, after = (set(store.coreset(v)["row"].to_pylist()) for v in (version, made.version))
        assert after == {row for row in before if store.samples().present[row]}

    @rule(fault=faults, keep=st.integers(1, 2), is_old_first=st.booleans())
    def gc(self, fault: Fault, keep: int, is_old_first: bool) -> None:
        def work(store: Store) -> None:
            with store.lock():
                collect(store, keep)

        if is_old_first:  # then the latest version is not what the next refresh builds on
            self.roll_back(nullcontext, 0)
        self.attempt(work, fault)

    @rule(fault=faults, number=picks, is_trainer=st.booleans())
    def hold(self, fault: Fault, number: int, is_trainer: bool) -> None:
        version = self.pick(number)
        if is_trainer:
            lease = Lease(self.root)
            lease.add(version)
            assert Coreset.load(self.root, version).version == version
            self.leases.append((lease, version))
        elif self.attempt(lambda store: pin(store, version, "a note"), fault) is not None:
            assert version in pinned(self.open().paths)

    @rule(fault=faults, number=picks, is_trainer=st.booleans())
    def let_go(self, fault: Fault, number: int, is_trainer: bool) -> None:
        if is_trainer and self.leases:
            self.leases.pop(0)[0].release()
        else:
            self.attempt(lambda store: unpin(store, self.pick(number)), fault)

    @rule(fault=faults, is_start=st.booleans())
    def restart_or_publish(self, fault: Fault, is_start: bool) -> None:
        if not is_start:
            self.attempt(lambda store: publish(store, has_new=True), fault)
            return
        self.attempt(Store.recover, fault)
        self.open().recover()
        assert verify(self.open()) == [] and self.open().recover() == []
        assert not list(self.root.rglob("*.partial-*"))
        self.is_left = False

    @invariant()
    def nothing_is_lost(self) -> None:
        store = self.open()
        paths, versions, removed = store.paths, store.versions(), store.removed()
        assert sorted([*versions, *removed]) == list(range(1, store.next_version()))
        for version in versions:
            if version not in self.files:
                named = (self.root / name for name in store.header(version).files)
                found = (paths.manifest(version), *named)
                self.files[version] = {path: path.read_bytes() for path in found}
        for version, files in self.files.items():
            for path, content in files.items():
                if version in versions or path == paths.measured(version):
                    assert path.read_bytes() == content, f"{path} changed"
            if version not in versions:
                with pytest.raises(VersionNotFoundError, match="removed by gc"):
                    store.coreset(version)
        held = {*pinned(paths), *(version for _, version in self.leases)}
        assert held <= set(versions), "a pinned or followed version is gone"
        assert {name: store.find_refresh(name) for name in self.made} == self.made
        if versions:
            assert Coreset.load(self.root).version == versions[-1]
            base = store.newest_scores()
            assert base is not None and len(store.scores(base)) == store.dataset(base).num_rows
            if not self.is_left:
                assert store.load_cache(base) is not None, "what the next refresh builds on"

    def teardown(self) -> None:
        store = self.open()
        store.recover()
        assert verify(store) == []
        for lease, _ in self.leases:
            lease.release()
        self.directory.cleanup()


TestStoreLife = StoreLife.TestCase
TestStoreLife.settings = settings(
    max_examples=10,
    stateful_step_count=14,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
