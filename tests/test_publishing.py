"""Versions in an object store: whole or absent, whatever is killed, lost or done twice."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import gracekit
from gracekit.errors import (
    GracekitError,
    RemoteConflictError,
    RemoteDamagedError,
    RemoteDeniedError,
    RemoteError,
    StoreFormatError,
    StoreNotFoundError,
    UsageError,
    VersionNotFoundError,
)
from gracekit.refresher import rollback
from gracekit.refresher.publishing import publish_by_recipe
from gracekit.remote import RemoteFolder, operations
from gracekit.store import Store, local_store, read_published
from gracekit.store.files.formats import NewerFormatError, UnreadableError
from gracekit.store.files.manifest_reading import METADATA_KEY
from gracekit.store.files.parquet import damaged
from gracekit.store.files.sealing import sealed_parquet
from gracekit.store.remote.publishing import publish_versions
from gracekit.training import Coreset
from tests.faults import Killed
from tests.flips import flip_bit
from tests.published import at_call, contents, expected, make_history, whole_versions
from tests.remote_faults import (
    DENIED,
    SLOW,
    THROTTLED,
    Fault,
    cut_short,
    fails_after,
    fails_with,
    in_place_of,
    kill,
    kill_after,
    told_as_done,
)
from tests.stores import changed_samples, make_draft, make_store


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_history(tmp_path_factory.mktemp("prepared") / "store").paths.root


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Store:
    shutil.copytree(prepared, tmp_path / "store")
    return Store.open(tmp_path / "store")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def url_of(tmp_path: Path, name: str = "") -> str:
    return f"memory://{tmp_path.name}{name}"


def gc(store: Store, keep: int) -> None:
    store.renew().gc(keep)
    store.renew()


def is_call(k: int, count: int, name: str) -> bool:
    return count == k


def num_calls(work: Callable[[], object]) -> int:
    with in_place_of(lambda k, name: False, kill) as seen:
        work()
    return len(seen)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_what_is_published_is_the_store(kind: str, store: Store, tmp_path: Path) -> None:
    url = url_of(tmp_path) if kind == "memory" else f"file://{tmp_path}/bucket/run"
    report = publish_versions(store, url)
    assert (report.published, report.removed, report.latest) == ((1, 2, 3, 4), (), 4)
    assert contents(url) == expected(store)
    assert whole_versions(url, tmp_path) == [1, 2, 3, 4]
    assert report.num_bytes == sum(map(len, contents(url).values()))
    again = publish_versions(store.renew(), url)
    assert (again.published, again.num_objects) == ((), 0)
    store.commit(make_draft(store, "five"))
    assert publish_versions(store.renew(), url).published == (5,)
    assert contents(url) == expected(store)


def test_nothing_is_published_into_the_store_itself(store: Store, tmp_path: Path) -> None:
    root = store.paths.root
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to(root)
    for place in (root, root / "copy", tmp_path / "link" / "a copy", root / "x" / ".."):
        with pytest.raises(UsageError, match="it lies in the store"):
            gracekit.publish(store, f"file://{str(place).replace(' ', '%20')}")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_what_gc_removes_here_is_removed_there(store: Store, tmp_path: Path) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    store.pin(1)
    gc(store, 1)
    report = publish_versions(store, url)
    assert report.removed == tuple(store.removed()) != ()
    assert contents(url) == expected(store)
    assert whole_versions(url, tmp_path) == store.versions()
    assert 1 in store.versions(), "a pinned version stays"


def test_readers_find_a_version_while_all_that_were_there_are_removed(
    store: Store, tmp_path: Path
) -> None:
    url, seen = url_of(tmp_path), list[int]()
    publish_versions(store, url)
    store.commit(make_draft(store, "five"))
    gc(store, 1)
    assert store.versions() == [5]
    look = lambda: seen.append(max(whole_versions(url, tmp_path), default=0))  # noqa: E731
    publish_versions(store, url, between=look)
    assert seen == sorted(seen) and (seen[0], seen[-1]) == (4, 5)
    assert contents(url) == expected(store)


def test_versions_that_were_removed_before_leave_what_was_measured(
    store: Store, tmp_path: Path
) -> None:
    gc(store, 1)
    url = url_of(tmp_path)
    publish_versions(store, url)
    assert contents(url) == expected(store)


def test_a_rollback_is_published_with_the_scores_that_it_needs(
    store: Store, tmp_path: Path
) -> None:
    rollback(store.paths.root, 2)
    gc(store, 1)
    url = url_of(tmp_path)
    publish_versions(store, url)
    assert whole_versions(url, tmp_path)[-1] == 5
    assert contents(url) == expected(store)


@pytest.mark.parametrize("death", [kill, kill_after])
@pytest.mark.parametrize("part", ["first", "removal"])
def test_killed_at_every_call_the_next_publish_finishes(
    part: str, death: Fault, store: Store, tmp_path: Path
) -> None:
    def prepare(url: str) -> None:
        if part == "removal":
            folder = RemoteFolder.open(url)
            for name, content in before.items():
                folder.write(name, content)

    before: dict[str, bytes] = {}
    if part == "removal":
        publish_versions(store, url_of(tmp_path, "-before"))
        before = contents(url_of(tmp_path, "-before"))
        gc(store, 1)
    prepare(url_of(tmp_path, "-counted"))
    calls = num_calls(lambda: publish_versions(store.renew(), url_of(tmp_path, "-counted")))
    assert calls > 10
    for k in range(1, calls + 1):
        url = url_of(tmp_path, f"-{k}")
        prepare(url)
        meant = lambda count, name, k=k: count >= k  # noqa: E731
        with in_place_of(meant, death), pytest.raises(Killed):
            publish_versions(store.renew(), url)
        whole_versions(url, tmp_path)
        publish_versions(store.renew(), url)
        assert contents(url) == expected(store), f"killed at call {k}"


@pytest.mark.parametrize(
    "fault", [fails_with(SLOW), fails_with(THROTTLED), fails_with(DENIED), fails_after(SLOW)]
)
def test_a_call_that_fails_loses_nothing_and_reports_nothing_wrong(
    fault: Fault, store: Store, tmp_path: Path
) -> None:
    calls = num_calls(lambda: publish_versions(store, url_of(tmp_path, "-counted")))
    for k in range(1, calls + 1):
        url = url_of(tmp_path, f"-{k}")
        try:
            with in_place_of(partial(is_call, k), fault):
                report = publish_versions(store.renew(), url)
        except RemoteError:
            whole_versions(url, tmp_path)
            publish_versions(store.renew(), url)
        else:
            assert report.latest == 4
        assert contents(url) == expected(store), f"failed at call {k}"


def test_puts_that_are_told_and_not_done_are_found(store: Store, tmp_path: Path) -> None:
    """Otherwise a manifest may be put before what it names, and readers take that for whole."""
    calls = num_calls(lambda: publish_versions(store, url_of(tmp_path, "-counted")))
    for k in range(1, calls + 1):
        url = url_of(tmp_path, f"-{k}")
        meant = lambda count, name, k=k: count == k and name == "put_object"  # noqa: E731
        with in_place_of(meant, told_as_done) as seen:
            told = ""
            try:
                publish_versions(store.renew(), url)
            except RemoteError as error:
                told = str(error)
        is_lied_to = seen[k - 1] == "put_object" and bool(told or "LATEST" in contents(url))
        assert is_lied_to == ("as written, and it is not there" in told), f"call {k}"
        whole_versions(url, tmp_path)
        publish_versions(store.renew(), url)
        assert contents(url) == expected(store), f"not done at call {k}"


def test_a_damaged_manifest_is_told_by_its_name_there(store: Store, tmp_path: Path) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    content = bytearray(contents(url)["manifests/v000004.parquet"])
    content[-50] ^= 4
    RemoteFolder.open(url).write("manifests/v000004.parquet", bytes(content))
    with pytest.raises(RemoteDamagedError, match=r"manifests/v000004\.parquet at memory://\S+ is"):
        Coreset.load(url, 4)
    assert Coreset.load(url).version == 3
    RemoteFolder.open(url).remove("manifests/v000004.parquet")
    publish_versions(store.renew(), url)
    assert Coreset.load(url).version == 4


@pytest.mark.parametrize("kind", ["samples", "measurements", "score_history"])
def test_what_is_removed_there_by_hand_is_written_again(
    kind: str, store: Store, tmp_path: Path
) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    for name in [name for name in contents(url) if name.startswith(f"{kind}/")]:
        RemoteFolder.open(url).remove(name)
        report = publish_versions(store.renew(), url)
        assert (report.published, report.num_objects) == ((), 1)
        assert contents(url) == expected(store), name
    assert Coreset.load(url).version == 4


@pytest.mark.parametrize(
    "name",
    ["samples.parquet", "manifests/v000002.parquet", "score_history/version=000001/scores.parquet"],
)
def test_half_of_an_object_is_written_again(
    name: str, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    whole = contents(url)[name]
    RemoteFolder.open(url).write(name, whole[: len(whole) // 2])
    assert publish_versions(store.renew(), url).num_objects == 1
    assert contents(url) == expected(store)
    assert f"{name} at {url} has {len(whole) // 2:,} bytes" in caplog.text


def test_latest_does_not_go_back_where_two_publish_at_once(store: Store, tmp_path: Path) -> None:
    """One has looked before the other made its version."""
    shutil.copytree(store.paths.root, tmp_path / "later")
    later = Store.open(tmp_path / "later")
    later.commit(make_draft(later, "five"))
    calls = num_calls(lambda: publish_versions(store, url_of(tmp_path, "-counted")))
    for k in range(1, calls + 1):
        url = url_of(tmp_path, f"-{k}")
        between = at_call(k, partial(publish_versions, later, url))
        publish_versions(store, url, between=between)
        has_later = "manifests/v000005.parquet" in contents(url)
        assert contents(url)["LATEST"] == (b"5\n" if has_later else b"4\n"), f"call {k}"
        publish_versions(later, url)
        publish_versions(store, url)
        assert contents(url) == expected(later)


def test_a_file_that_is_damaged_in_both_places_is_told_and_newer_versions_are_published(
    store: Store, tmp_path: Path
) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    measured = store.paths.measured(2)
    RemoteFolder.open(url).remove(store.paths.relative(measured))
    flip_bit(measured, 400)
    store.commit(make_draft(store, "five"))
    with pytest.raises(StoreFormatError, match="is damaged, so what version 2 lacks at memory"):
        publish_versions(store.renew(), url)
    assert "manifests/v000005.parquet" in contents(url)


def with_header(content: bytes, header: bytes | None) -> bytes:
    """A manifest with another header, sealed as ours are."""
    table = pq.read_table(io.BytesIO(content))
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(header and {METADATA_KEY: header}), sink)
    return b"".join(bytes(part) for part in sealed_parquet(memoryview(sink.getvalue())))


@pytest.mark.parametrize(
    ("header", "error", "reason"),
    [
        (b'{"format_version": 99}', NewerFormatError, "has format version 99"),
        (None, RemoteDamagedError, "is damaged: it has no header of gracekit; remove it there"),
    ],
    ids=["newer", "none"],
)
def test_a_manifest_that_is_no_damaged_file_is_told_by_its_name_there(
    header: bytes | None, error: type[GracekitError], reason: str, store: Store, tmp_path: Path
) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    name = "manifests/v000004.parquet"
    RemoteFolder.open(url).write(name, with_header(contents(url)[name], header))
    with pytest.raises(error, match=f"^{name} at {url} {reason}") as told:
        Coreset.load(url, 4)
    assert str(tmp_path / "cache") not in str(told.value)


def test_a_disk_that_cannot_be_read_is_no_damaged_object(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)

    def check(path: Path) -> bool:
        raise damaged(path, OSError(errno.EMFILE, os.strerror(errno.EMFILE)))

    monkeypatch.setattr("gracekit.store.remote.mirror.is_sealed", check)
    with pytest.raises(UnreadableError, match="That does not mean that it is damaged: raise the"):
        Coreset.load(url, 4)


def test_two_publishers_at_once(store: Store, tmp_path: Path) -> None:
    calls = num_calls(lambda: publish_versions(store, url_of(tmp_path, "-counted")))
    for k in range(1, calls + 1):
        url = url_of(tmp_path, f"-{k}")
        other = Store.open(store.paths.root)
        between = at_call(k, partial(publish_versions, other, url))
        publish_versions(store.renew(), url, between=between)
        assert contents(url) == expected(store), f"the other came at call {k}"


def outcome_of(work: Callable[[], object]) -> str:
    """What its author is told; where to run again is told, it does."""
    try:
        work()
    except RemoteConflictError as error:
        return "refused" if "version 5 at" in str(error) else str(error)
    except RemoteError as error:  # what it put was removed before it could look
        is_told = "it is not there: somebody removes or replaces" in str(error)
        return outcome_of(work) if is_told else str(error)
    return "published"


def test_two_copies_that_went_on_by_themselves_never_mix(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.paths.root, tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")
    copy.commit(make_draft(copy, "five-of-the-copy"))
    store.commit(make_draft(store, "five"))
    calls = num_calls(lambda: publish_versions(store.renew(), url_of(tmp_path, "-counted")))
    outcomes = set()
    for k in range(1, calls + 1):
        url, second = url_of(tmp_path, f"-{k}"), list[str]()

        def other(url: str = url, second: list[str] = second) -> None:
            second.append(outcome_of(lambda: publish_versions(copy.renew(), url)))

        between = at_call(k, other)
        first = outcome_of(lambda: publish_versions(store.renew(), url, between=between))  # noqa: B023
        outcomes.add((first, *second))
        whole_versions(url, tmp_path)
        winner = store if first == "published" else copy
        assert contents(url) == expected(winner), f"the copy came at call {k}"
    expected_outcomes = {("refused", "published"), ("published", "refused"), ("published",)}
    assert outcomes <= expected_outcomes
    assert len(outcomes) >= 2


def make_copy_with_gc(store: Store, root: Path) -> Store:
    """A copy that made two versions of its own and removed all but the last."""
    shutil.copytree(store.paths.root, root)
    copy = Store.open(root)
    copy.commit(make_draft(copy, "five-of-the-copy"))
    copy.commit(make_draft(copy, "six-of-the-copy"))
    gc(copy, 1)
    assert 5 in copy.removed()
    return copy


def test_a_copy_that_removed_its_own_version_removes_nothing_there(
    store: Store, tmp_path: Path
) -> None:
    url, copy = url_of(tmp_path), make_copy_with_gc(store, tmp_path / "copy")
    store.commit(make_draft(store, "five"))
    publish_versions(store.renew(), url)
    before = contents(url)
    with pytest.raises(RemoteConflictError, match=r"version 5 at .* is another one"):
        publish_versions(copy, url)
    assert contents(url) == before
    publish_versions(copy, url_of(tmp_path, "-copy"))
    before = contents(url_of(tmp_path, "-copy"))
    with pytest.raises(RemoteConflictError, match=r"version 5 at .* is another one"):
        publish_versions(store.renew(), url_of(tmp_path, "-copy"))
    assert contents(url_of(tmp_path, "-copy")) == before


def test_a_copy_that_removed_versions_never_mixes_with_the_store(
    store: Store, tmp_path: Path
) -> None:
    copy = make_copy_with_gc(store, tmp_path / "copy")
    store.commit(make_draft(store, "five"))
    pairs = [(store, copy), (copy, store)]
    for n, (first, second) in enumerate(pairs):
        counted = url_of(tmp_path, f"-counted-{n}")
        calls = num_calls(partial(publish_versions, first.renew(), counted))
        for k in range(1, calls + 1):
            url, outcomes = url_of(tmp_path, f"-{n}-{k}"), list[str]()

            def other(url: str = url, outcomes: list[str] = outcomes, it: Store = second) -> None:
                outcomes.append(outcome_of(lambda: publish_versions(it.renew(), url)))

            between = at_call(k, other)
            publish = partial(publish_versions, first.renew(), url, between=between)
            outcomes.append(outcome_of(publish))
            assert "refused" in outcomes, f"the second came at call {k}"
            found = contents(url)
            copy_s = "removed/v000005.json" in found or "headers/v000006.json" in found
            assert not (copy_s and "headers/v000005.json" in found), (n, k)


def test_what_a_copy_removed_there_is_told_and_newer_versions_are_published(
    store: Store, tmp_path: Path
) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    shutil.copytree(store.paths.root, tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")
    gc(copy, 1)
    publish_versions(copy, url)
    store.commit(make_draft(store, "five"))
    with pytest.raises(RemoteConflictError, match=r"version \d was removed at .* and is kept in"):
        publish_versions(store.renew(), url)
    assert whole_versions(url, tmp_path)[-1] == Coreset.load(url).version == 5


def test_another_store_is_refused_with_the_reason(store: Store, tmp_path: Path) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    other = make_store(tmp_path / "other", n=30)
    other.commit(make_draft(other, "one"))
    before = contents(url)
    with pytest.raises(RemoteConflictError, match=r"has the versions of another store .made at "):
        publish_versions(other, url)
    assert contents(url) == before


def test_what_is_not_ours_at_the_url_is_refused(store: Store, tmp_path: Path) -> None:
    url = url_of(tmp_path)
    folder = RemoteFolder.open(url)
    folder.write("checkpoint-10/model.safetensors", b"a run's own")
    publish_versions(store, url)
    assert contents(url).pop("checkpoint-10/model.safetensors") == b"a run's own"
    folder.write("store.json", b"[]")
    with pytest.raises(RemoteConflictError, match=r"store\.json at .* is not what gracekit writes"):
        publish_versions(store.renew(), url)


def test_objects_of_others_are_never_written_over(store: Store, tmp_path: Path) -> None:
    """Where no store.json says that the folder is ours."""
    url = url_of(tmp_path)
    folder = RemoteFolder.open(url)
    folder.write("samples.parquet", b"somebody's own")
    with pytest.raises(RemoteConflictError, match=r"has an object samples\.parquet of others"):
        publish_versions(store, url)
    assert contents(url)["samples.parquet"] == b"somebody's own"

    other, there = make_store(tmp_path / "other", n=30), str(url_of(tmp_path)) + "-other"
    other.commit(make_draft(other, "one"))
    publish_versions(other, there)
    folder = RemoteFolder.open(there)
    folder.remove("store.json")
    folder.remove("LATEST")
    before = contents(there)
    with pytest.raises(RemoteConflictError):
        publish_versions(store.renew(), there)
    assert contents(there) == before


def test_a_damaged_file_is_not_published_and_versions_without_it_are(
    store: Store, tmp_path: Path
) -> None:
    path = store.paths.scores(2)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreFormatError, match=r"scores\.parquet is damaged, so version 2 is not"):
        publish_versions(store, url_of(tmp_path))
    assert whole_versions(url_of(tmp_path), tmp_path) == [1, 4], "3 needs the scores of 2"
    assert Coreset.load(url_of(tmp_path)).version == 4


# --- readers ---


def test_a_reader_sees_whole_versions_at_every_call(store: Store, tmp_path: Path) -> None:
    url, seen = url_of(tmp_path), set()

    def look() -> None:
        try:
            seen.add(Coreset.load(url).version)
        except (StoreNotFoundError, VersionNotFoundError):
            seen.add(0)

    publish_versions(store, url, between=look)
    gc(store, 1)
    publish_versions(store, url, between=look)
    assert seen == {0, 1, 2, 3, 4}


def test_a_coreset_from_a_url_is_that_of_the_store(store: Store, tmp_path: Path) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    for version in (1, 2, 3, 4, "latest"):
        there, here = Coreset.load(url, version), Coreset.load(store.paths.root, version)
        assert there.to_arrow() == here.to_arrow()
        assert there.metadata == here.metadata
        assert there.num_rows_of_others == here.num_rows_of_others
    assert Coreset.load(Path(url)).version == 4, "a Path made of a URL is one"
    with pytest.raises(VersionNotFoundError, match=f"no version 9: the store {url} has versions 1"):
        Coreset.load(url, 9)
    with pytest.raises(UsageError, match="whole number or 'latest'"):
        Coreset.load(url, "4")  # type: ignore[arg-type]


def test_each_version_is_downloaded_once(store: Store, tmp_path: Path) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    Coreset.load(url)
    with in_place_of(lambda k, name: False, kill) as seen:
        Coreset.load(url)
    assert seen == ["list_objects", "list_objects", "get_object"]


def test_another_store_at_the_same_url_is_read_in_place_of_the_old_one(
    store: Store, tmp_path: Path
) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    for version in (1, 4):
        Coreset.load(url, version)
    folder = RemoteFolder.open(url)
    for name in folder.list():
        folder.remove(name)
    with pytest.raises(StoreNotFoundError, match="no store is published at memory://"):
        Coreset.load(url)
    other = make_store(tmp_path / "other", n=30)
    other.commit(make_draft(other, "one"))
    publish_versions(other, url)
    for wanted in ("latest", 1):
        found = Coreset.load(url, wanted)
        assert found.to_arrow() == Coreset.load(other.paths.root, 1).to_arrow()
    here = local_store(url)
    assert [path.name for path in (here / "manifests").iterdir()] == ["v000001.parquet"]
    assert (here / "samples.parquet").read_bytes() == other.paths.samples.read_bytes()


def test_a_reader_killed_while_it_begins_anew_begins_anew_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(tmp_path)
    other = make_store(tmp_path / "other", n=30)
    other.commit(make_draft(other, "one"))
    publish_versions(store, url_of(tmp_path, "-old"))
    publish_versions(other, url)
    old = contents(url_of(tmp_path, "-old"))
    for k in range(1, 10):
        monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / f"cache-{k}"))
        root = local_store(url)
        for name, content in old.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        meant = lambda count, name, k=k: count >= k  # noqa: E731
        with in_place_of(meant, kill), contextlib.suppress(Killed):
            Coreset.load(url)
        assert Coreset.load(url).to_arrow() == Coreset.load(other.paths.root).to_arrow()


def test_a_version_that_is_no_longer_there_is_not_served(store: Store, tmp_path: Path) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    assert Coreset.load(url).version == 4
    RemoteFolder.open(url).remove("manifests/v000004.parquet")
    assert Coreset.load(url).version == 3
    with pytest.raises(VersionNotFoundError, match="no version 4"):
        Coreset.load(url, 4)


def test_a_wrong_checksum_of_the_newest_version_hides_no_other(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    store.commit(make_draft(store, "five", samples=changed_samples(store)))
    publish_versions(store.renew(), url)
    folder = RemoteFolder.open(url)
    name = store.header(5).dataset.samples_file
    content = bytearray(folder.read(name))
    content[50] ^= 1
    folder.write(name, bytes(content))
    assert Coreset.load(url, 1).version == 1
    assert Coreset.load(url).version == 4
    assert f"{name} at {url} is damaged" in caplog.text
    with pytest.raises(RemoteDamagedError, match="SHA-256"):
        Coreset.load(url, 5)


def test_a_removed_version_is_honoured_by_readers(store: Store, tmp_path: Path) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    assert Coreset.load(url, 2).version == 2
    gc(store, 1)
    publish_versions(store, url)
    with pytest.raises(VersionNotFoundError, match=f"version 2 was removed by gc on 20.*{url}"):
        Coreset.load(url, 2)
    assert Coreset.load(url).version == 4


@pytest.mark.parametrize("fault", [fails_with(SLOW), cut_short, kill, kill_after])
def test_a_reader_that_fails_at_any_call_has_no_half_version(
    fault: Fault, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / "counted"))
    calls = num_calls(lambda: Coreset.load(url))
    for k in range(1, calls + 1):
        monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / f"cache-{k}"))
        meant = lambda count, name, k=k: count >= k  # noqa: E731
        try:
            with in_place_of(meant, fault):
                Coreset.load(url)
        except (Killed, gracekit.GracekitError):
            pass
        assert Coreset.load(url).to_arrow() == Coreset.load(store.paths.root).to_arrow()
        assert not list((tmp_path / f"cache-{k}").rglob("manifests/*partial*"))


def test_a_damaged_newest_version_is_passed_over(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = url_of(tmp_path)
    publish_versions(store, url)
    folder = RemoteFolder.open(url)
    name = "manifests/v000004.parquet"
    content = bytearray(folder.read(name))
    content[50] ^= 1
    folder.write(name, bytes(content))
    assert Coreset.load(url).version == 3
    assert "version 3 is read in place of a newer one" in caplog.text
    with pytest.raises(RemoteDamagedError, match=rf"^{name} at {url} is damaged"):
        Coreset.load(url, 4)


# --- by the recipe ---


def test_a_failed_publish_is_warned_told_and_made_up_for(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, root = url_of(tmp_path), store.paths.root
    with in_place_of(lambda k, name: name == "put_object", fails_with(DENIED)):
        publish_by_recipe(root, url)
    assert f"not published to {url}" in caplog.text
    assert "access is denied" in caplog.text
    said = str(gracekit.status(root))
    assert f"{url} has no version; publishing failed at " in said
    assert "access is denied" in said
    publish_by_recipe(root, url)
    assert f"{url} has the versions up to 4, as of " in str(gracekit.status(root))
    assert gracekit.status(root).to_json()["published"]["error"] is None
    assert contents(url) == expected(store)
    assert Store.open(root).verify() == []


def test_a_file_that_cannot_be_read_fails_no_refresh(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, path = url_of(tmp_path), store.paths.samples
    path.unlink()
    path.mkdir()  # reading it is an error of the disk, whoever runs this
    publish_by_recipe(store.paths.root, url)
    assert f"not published to {url}" in caplog.text
    assert "publishing failed at " in str(gracekit.status(store.paths.root))


def test_rollbacks_and_gc_reach_the_url_that_a_recipe_named(store: Store, tmp_path: Path) -> None:
    url, root = url_of(tmp_path), store.paths.root
    publish_by_recipe(root, url)
    assert gracekit.rollback(root, 1).version == 5
    assert Coreset.load(url).metadata["rollback_of"] == 1
    gracekit.gc(root, keep=1)
    assert contents(url) == expected(store.renew())


def test_publish_by_hand(store: Store, tmp_path: Path) -> None:
    url, root = url_of(tmp_path), store.paths.root
    with pytest.raises(UsageError, match="was never published; name a URL"):
        gracekit.publish(root)
    with pytest.raises(UsageError, match="found 'elsewhere'"):
        gracekit.publish(root, "elsewhere")
    assert gracekit.publish(root, url).published == (1, 2, 3, 4)
    gracekit.rollback(root, 1)
    assert Coreset.load(url).version == 4, "by hand it is not followed"
    assert gracekit.publish(root).published == (5,)


def test_a_record_that_makes_no_sense_is_none(store: Store) -> None:
    for text in ("", "[]", json.dumps({"url": 3}), '{"url": "memory://x", "version": "x"}'):
        store.paths.published.write_text(text)
        assert read_published(store.paths) is None
        assert "published" in gracekit.status(store.paths.root).to_json()


def test_denied_says_what_to_do(store: Store, tmp_path: Path) -> None:
    with (
        in_place_of(lambda k, name: name == "list_objects", fails_with(DENIED)),
        pytest.raises(RemoteDeniedError, match="AWS_ACCESS_KEY_ID"),
    ):
        gracekit.publish(store.paths.root, url_of(tmp_path))
    assert operations.why_missing() is None
