"""The commit protocol: whatever dies or fails, and wherever, nothing is lost and nothing torn."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gracekit import files
from gracekit.errors import StoreWriteError
from gracekit.store import Store, VersionDraft, verify
from gracekit.types import Measurement
from tests.faults import Killed, count_operations, failing_at, killed_at
from tests.stores import changed_samples, make_draft, make_reselect, make_store

SHARDS = "0123456789abcdef"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with versions 1 and 2, and finished shards for the third."""
    store = make_store(tmp_path_factory.mktemp("prepared") / "store")
    for refresh_id in ("one", "two"):
        store.commit(make_draft(store, refresh_id))
    part = Measurement(
        rows=np.arange(3), scores={"loss": np.ones(3, np.float32)}, features=np.ones((3, 2), "f4")
    )
    store.shards(SHARDS).save(part)
    return store.paths.root


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Store:
    shutil.copytree(prepared, tmp_path / "store")
    return Store.open(tmp_path / "store")


def third(store: Store) -> VersionDraft:
    """A version with all that a version can have, changed data too."""
    return make_draft(store, "three", measure_id=SHARDS, samples=changed_samples(store))


def steps_of_a_commit(prepared: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(prepared, Path(directory) / "store")
        store = Store.open(Path(directory) / "store")
        return count_operations(lambda: store.commit(third(store)))


def every_step(prepared: Path) -> Iterator[tuple[int, bool, bool]]:
    """(k, torn, whether the commit point was passed before operation k)."""
    steps = steps_of_a_commit(prepared)
    assert steps.count("link") == 1, "there is exactly one commit point"
    for k, name in enumerate(steps, start=1):
        is_after = k > steps.index("link") + 1
        yield k, False, is_after
        if name == "fill":
            yield k, True, is_after


def snapshot(store: Store, version: int) -> list[bytes]:
    """The bytes of a version that must never change."""
    header = store.header(version)
    paths = [store.paths.manifest(version), *(store.paths.root / name for name in header.files)]
    return [path.read_bytes() for path in paths]


def test_a_kill_before_any_operation_loses_nothing(prepared: Path, tmp_path: Path) -> None:
    num_before = num_after = 0
    for k, torn, is_after in every_step(prepared):
        root = tmp_path / "store"
        shutil.copytree(prepared, root)
        store = Store.open(root)
        draft, kept = third(store), snapshot(store, 2)
        with pytest.raises(Killed), killed_at(k, torn=torn):
            store.commit(draft)
        where = f"killed before operation {k}{' (torn)' if torn else ''}"

        # A reader meanwhile, before anybody cleaned up.
        reader = Store.open(root)
        assert reader.versions() == ([1, 2, 3] if is_after else [1, 2]), where

        reader.recover()
        assert snapshot(reader, 2) == kept, where
        if k % 3 == 0 or torn:
            assert verify(reader) == [], where
        if is_after:
            assert reader.find_refresh("three") == 3, where
            assert reader.shards(SHARDS).load() == [], f"{where}: shards of a finished refresh"
            num_after += 1
        else:
            assert reader.find_refresh("three") is None, where
            assert len(reader.shards(SHARDS).load()) == 1, f"{where}: the shard is kept"
            if k % 8 == 0:  # the rerun is the same work wherever the kill was
                assert reader.commit(draft) == 3, where
                assert verify(reader) == [], where
            num_before += 1
        shutil.rmtree(root)
    assert num_before > 10 and num_after > 10


def test_a_failing_disk_anywhere_is_clear_and_harmless(prepared: Path, tmp_path: Path) -> None:
    numbers = [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS]
    says = ["disk is full", "no permission", "check the disk", "read-only"]
    for k, torn, is_after in every_step(prepared):
        if torn or (is_after and k % 2):
            continue
        root = tmp_path / "store"
        shutil.copytree(prepared, root)
        store = Store.open(root)
        draft, kept = third(store), snapshot(store, 2)
        where = f"failed at operation {k}"
        with failing_at(k, numbers[k % 4]):
            if is_after:
                assert store.commit(draft) == 3, f"{where}: the version exists"
            else:
                with pytest.raises(StoreWriteError, match=says[k % 4]):
                    store.commit(draft)
                assert store.versions() == [1, 2] and snapshot(store, 2) == kept, where
                if k % 8 == 0:
                    assert store.commit(draft) == 3, f"{where}: a later try succeeds as it is"
        assert not list(root.rglob("*.partial-*")) or is_after, f"{where}: left something"
        if k % 6 == 0:
            store.recover()
            assert verify(store) == [], where
        shutil.rmtree(root)


def test_what_was_not_published_is_published_by_the_next_version(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    steps = count_operations(lambda: store.commit(third(store)))
    draft = make_draft(store, "four")
    with failing_at(steps.index("link") + 4, errno.ENOSPC):
        assert store.commit(draft) == 4
    assert "version 4 is committed, but not all of it is published" in caplog.text
    assert store.commit(make_draft(store, "five")) == 5
    assert verify(store) == []


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.95])
def test_a_process_that_ends_at_once(prepared: Path, store: Store, share: float) -> None:
    steps = steps_of_a_commit(prepared)
    k = max(1, round(share * len(steps)))
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from gracekit.store import Store\n"
        "from tests.faults import on_operation\n"
        "from tests.test_store_commit import third\n"
        f"def die(count, name, path): count < {k} or os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "store = Store.open(Path(sys.argv[1]))\n"
        "with on_operation(die): store.commit(third(store))\n"
    )
    root = Path(__file__).parent.parent
    ended = subprocess.run([sys.executable, "-c", code, str(store.paths.root)], cwd=root)
    assert ended.returncode == -signal.SIGKILL
    store.recover()
    expected = [1, 2, 3] if k > steps.index("link") + 1 else [1, 2]
    assert store.versions() == expected
    assert verify(store) == []


def test_a_file_too_large_for_the_system(store: Store) -> None:
    """A real failing write, in the middle of the data."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from gracekit.errors import StoreWriteError\n"
        "from gracekit.store import Store\n"
        "from tests.stores import make_draft\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store = Store.open(Path(sys.argv[1])); draft = make_draft(store, 'three')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))\n"
        "try: store.commit(draft)\n"
        "except StoreWriteError as error: print(error)\n"
    )
    root = Path(__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, "-c", code, str(store.paths.root)],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "scores.parquet" in ended.stdout and "is larger than the system allows" in ended.stdout
    assert store.versions() == [1, 2]
    store.recover()
    assert verify(store) == []


def test_commit_without_hard_links(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, final: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, "no hard links here")

    monkeypatch.setattr(files, "link", no_links)
    assert store.commit(third(store)) == 3
    assert verify(store) == [] and store.recover() == []


def test_a_version_that_appears_meanwhile_is_not_replaced(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = files.link

    def be_late(source: Path, final: Path) -> None:
        shutil.copy(store.paths.manifest(2), final)
        link(source, final)

    monkeypatch.setattr(files, "link", be_late)
    with pytest.raises(StoreWriteError, match="without its lock"):
        store.commit(third(store))


def test_recover_says_what_it_did(store: Store) -> None:
    paths = store.paths
    for file in (paths.scores(3), paths.measured(3)):
        file.parent.mkdir()
        file.write_bytes(b"half")
    paths.changed_samples.mkdir()
    paths.samples_of(3).write_bytes(b"whole, but nobody's")
    (paths.root / "scores.duckdb.partial-00aa11bb").write_bytes(b"half")
    (paths.pins / "checkpoint-1").mkdir(parents=True)
    paths.latest.write_text("7")
    paths.sidecar(2).unlink()
    paths.sidecar(9).write_text("{}")
    paths.database.write_bytes(b"no database" * 1000)
    told = "\n".join(store.recover())
    for part in (
        "removed 1 unfinished file",
        "removed score_history/version=000003 of a version that was not committed",
        "removed measurements/version=000003 of a version that was not committed",
        "removed samples/v000003.parquet of a version that was not committed",
        "removed headers/v000009.json",
        "removed links to a checkpoint",
        "wrote headers/v000002.json",
        "published scores.duckdb",
        "wrote LATEST",
    ):
        assert part in told
    assert store.recover() == [] and verify(store) == []


def test_recover_keeps_the_shards_of_a_later_refresh_of_the_same_checkpoint(store: Store) -> None:
    draft = third(store)
    store.commit(draft)
    assert draft.measurement is not None
    store.shards(SHARDS).save(draft.measurement)
    assert store.recover() == [] and len(store.shards(SHARDS).load()) == 1


def test_shards_that_nobody_goes_on_with_are_removed(store: Store) -> None:
    """Of stopped or skipped refreshes, by the next refresh or the next start; not by a reselect."""
    draft = third(store)
    assert draft.measurement is not None
    store.shards("skipped").save(draft.measurement)
    store.commit(make_reselect(store, "r"))
    assert len(list(store.paths.shards.iterdir())) == 2
    assert store.recover() == []
    part = draft.measurement
    draft = make_draft(store, "four", measure_id="fedcba")
    steps = count_operations(lambda: store.commit(draft))
    assert list(store.paths.shards.iterdir()) == []
    store.shards("skipped").save(part)
    draft = make_draft(store, "five", measure_id="fedcba")
    with pytest.raises(Killed), killed_at(steps.index("link") + 3):
        store.commit(draft)
    assert "removed shards/skipped, which no refresh will continue" in store.recover()
    assert list(store.paths.shards.iterdir()) == [] and verify(store) == []


def test_a_commit_opens_no_older_manifest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from the headers; so publishing costs the same after many versions."""
    store.versions()
    read: list[Path] = []
    original = Path.open  # `Path.read_bytes` opens by it too

    def open_(path: Path, *args: Any, **kwargs: Any) -> Any:
        read.append(path)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_)
    store.commit(third(store))
    monkeypatch.undo()
    older = {path(v) for v in (1, 2) for path in (store.paths.manifest, store.paths.scores)}
    assert older & set(read) == {store.paths.manifest(2)}, "the parent, for the overlap"


def test_recover_may_be_killed_itself(store: Store) -> None:
    def spoil() -> None:
        files.make_directory(store.paths.scores(3).parent)
        store.paths.sidecar(1).unlink(missing_ok=True)
        store.paths.database.unlink(missing_ok=True)

    spoil()
    num_steps = len(count_operations(store.recover))
    for k in range(1, num_steps + 1, 2):
        spoil()
        with pytest.raises(Killed), killed_at(k):
            store.recover()
        assert store.versions() == [1, 2]
        store.recover()
        assert verify(store) == []


action = st.one_of(
    st.tuples(st.just("refresh"), st.integers(1, 60), st.booleans()),
    st.tuples(st.just("grow"), st.integers(1, 60), st.booleans()),
    st.tuples(st.just("fail"), st.integers(1, 60), st.booleans()),
    st.tuples(st.just("reselect"), st.integers(1, 30), st.booleans()),
    st.tuples(st.just("recover"), st.integers(1, 12), st.booleans()),
)


@given(actions=st.lists(action, min_size=2, max_size=6))
@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])
def test_any_history_of_kills_failures_and_restarts(
    actions: list[tuple[str, int, bool]],
) -> None:
    """Refresh, reselect and recover, each killed or failing anywhere; then checked at a restart."""
    with tempfile.TemporaryDirectory() as directory:
        store = make_store(Path(directory) / "store", n=6)
        known: dict[int, list[bytes]] = {}
        for i, (name, k, torn) in enumerate(actions):
            store = Store.open(store.paths.root)
            last = store.latest() or 0
            if name == "recover":
                fault, draft = killed_at(k, torn=torn), None
            elif name == "reselect" and last:
                fault, draft = killed_at(k, torn=torn), make_reselect(store, f"r{i}")
            elif name == "fail":
                fault, draft = failing_at(k, errno.ENOSPC), make_draft(store, f"r{i}")
            else:
                samples = changed_samples(store) if name == "grow" else None
                draft = make_draft(store, f"r{i}", samples=samples)
                fault = killed_at(k, torn=torn)
            try:
                with fault:
                    store.recover() if draft is None else store.commit(draft)
            except (Killed, StoreWriteError):
                pass
            store = Store.open(store.paths.root)
            store.recover()
            versions = store.versions()
            assert versions == list(range(1, len(versions) + 1)), "versions are contiguous"
            assert len(versions) in {last, last + 1}
            for version, content in known.items():
                assert snapshot(store, version) == content, "a version never changes"
            known = {version: snapshot(store, version) for version in versions}
            if draft is not None and len(versions) > last:
                assert store.find_refresh(draft.refresh_id) == versions[-1]
        assert verify(store) == []


def test_drafts_that_are_wrong_by_our_fault_do_not_become_versions(store: Store) -> None:
    draft = third(store)
    doubled = dataclasses.replace(draft.selection, rows=np.zeros(8, np.int64))
    with pytest.raises(AssertionError, match="selected twice"):
        store.commit(dataclasses.replace(draft, selection=doubled))
    with pytest.raises(AssertionError, match="only a reselect"):
        store.commit(dataclasses.replace(draft, scores=None))
    assert store.versions() == [1, 2]
