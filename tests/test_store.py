"""The store's files: what goes in comes out, and what is damaged is said to be."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracekit.errors import (
    DataError,
    StoreError,
    StoreFormatError,
    StoreNotFoundError,
    VersionNotFoundError,
)
from gracekit.files import write_text_atomic
from gracekit.recipe import SelectionSection
from gracekit.recipe.score_columns import column_name
from gracekit.store import Store, verify
from gracekit.store.files.history import read_scores, write_scores
from gracekit.store.files.info import StoreInfo
from gracekit.store.files.manifests import SCHEMA
from gracekit.store.files.samples import read_samples, write_samples
from gracekit.store.files.shards import ShardFiles
from gracekit.store.sql.database import connect
from gracekit.types import Measurement, Origin
from gracekit.version import FORMAT_VERSION
from gracekit.version.header import Header, Timings
from gracekit.version.json_text import plain_json
from gracekit.version.outcomes import SelectionDetails
from tests.stores import (
    N,
    changed_samples,
    make_draft,
    make_reselect,
    make_samples,
    make_scores,
    make_store,
    origins_of,
    strings,
)


def equal(a: object, b: object) -> bool:
    """Whether two values of gracekit.types are the same, arrays included."""
    if dataclasses.is_dataclass(a):
        fields = [f.name for f in dataclasses.fields(a)]
        return type(a) is type(b) and all(equal(getattr(a, f), getattr(b, f)) for f in fields)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        same = np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        return a.dtype == b.dtype and same
    return a == b


# --- the store itself ---


def test_create_and_open(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "store"
    assert not Store.exists(root)
    with pytest.raises(StoreNotFoundError, match="no store at"):
        Store.open(root)
    made = make_store(root)
    assert Store.exists(root)
    opened = Store.open(root)
    assert opened.info == made.info
    assert opened.info.num_samples == N and opened.info.dataset.num_source_rows == 2 * N
    assert equal(opened.samples(), make_samples())
    assert opened.versions() == [] and opened.latest() is None and opened.next_version() == 1


def test_create_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    with pytest.raises(StoreError, match="already"):
        make_store(tmp_path / "store")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="not empty"):
        make_store(tmp_path)
    with pytest.raises(StoreError, match="is a file"):
        make_store(tmp_path / "thesis.tex")
    with pytest.raises(StoreError, match="DuckDB cannot open"):
        make_store(tmp_path / "what?")


def test_create_goes_on_after_a_killed_create(tmp_path: Path) -> None:
    root = tmp_path / "store"
    make_store(root)
    (root / "store.json").unlink()
    write_text_atomic(root / "heartbeat.json", "{}")
    (root / "samples.parquet.partial-12ab").write_text("half")
    assert make_store(root).info.num_samples == N


def test_store_json_of_a_newer_gracekit_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    content = json.loads(store.paths.info.read_text())
    content["format_version"] = FORMAT_VERSION + 1
    store.paths.info.write_text(json.dumps(content))
    with pytest.raises(StoreFormatError, match="update gracekit"):
        Store.open(store.paths.root)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 1}', '{"a": 1}'])
def test_damaged_store_json(tmp_path: Path, content: str) -> None:
    store = make_store(tmp_path / "store")
    store.paths.info.write_text(content)
    with pytest.raises(StoreFormatError, match="backup"):
        Store.open(store.paths.root)


def test_relative_store_survives_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = make_store(Path("store"))
    monkeypatch.chdir("/")
    assert store.commit(make_draft(store, "a")) == 1


# --- samples ---

hostile = st.text(alphabet=st.characters(), max_size=12)


@given(
    ids=st.lists(hostile, min_size=1, max_size=8, unique_by=lambda s: s.encode("utf-8", "replace")),
    names=st.lists(hostile, min_size=1, max_size=3, unique=True),
)
@settings(max_examples=40)
def test_samples_survive_with_any_text(ids: list[str], names: list[str]) -> None:
    n = len(ids)
    samples = dataclasses.replace(
        make_samples(n),
        sample_ids=strings(ids),
        group_names=tuple(names),
        groups=(np.arange(n) % len(names)).astype(np.int32),
        previews=strings(ids[::-1]),
    )
    with tempfile.TemporaryDirectory() as directory:
        write_samples(Path(directory) / "samples.parquet", samples)
        assert equal(read_samples(Path(directory) / "samples.parquet"), samples)


def test_lone_surrogates_become_visible(tmp_path: Path) -> None:
    ids = ["a\ud800b", "\udfff", "\U0001f600", "nul\0 and\nnewline"]
    samples = dataclasses.replace(make_samples(4), sample_ids=strings(ids), previews=strings(ids))
    write_samples(tmp_path / "s", samples)
    found = read_samples(tmp_path / "s").sample_ids.tolist()
    assert found == ["a\ufffdb", "\ufffd", "\U0001f600", "nul\0 and\nnewline"]


def test_ids_that_cleaning_makes_equal_are_refused(tmp_path: Path) -> None:
    samples = dataclasses.replace(make_samples(2), sample_ids=strings(["\ud800", "\ud801"]))
    with pytest.raises(DataError, match="UTF-8"):
        write_samples(tmp_path / "s", samples)


# --- history ---


@pytest.mark.parametrize("origin", list(Origin))
def test_scores_round_trip(tmp_path: Path, origin: Origin) -> None:
    scores = dataclasses.replace(make_scores(9, 3, seed=1), origin=np.full(9, origin, np.uint8))
    scores.scores["loss"][::2] = np.nan
    scores.scores["gradient-norm"][0] = np.inf
    if origin == Origin.REMOVED:
        scores.importance[:] = 0
    write_scores(tmp_path / "scores.parquet", scores)
    assert equal(read_scores(tmp_path / "scores.parquet"), scores)


def test_score_names_that_sql_or_the_store_already_uses() -> None:
    assert column_name("gradient-norm") == "gradient_norm"
    assert column_name("importance") == "score_importance"
    assert column_name("EL2N") == "el2n"


# --- versions ---


def test_commit_round_trip(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    draft = make_draft(store, "first")
    assert store.commit(draft) == 1
    header = Store.open(store.paths.root).header(1)
    assert (header.version, header.parent_version, header.operation) == (1, None, "init")
    assert header.refresh_id == "first" and header.scores_version == 1
    assert header.checkpoint.step == 100 and header.audit is None
    assert header.timings == Timings(model_pass_s=2.0, other_s=0.5, total_s=2.5)
    assert header.selection == SelectionDetails(num_candidates=N)
    assert header.settings.selection == SelectionSection()
    assert sum(header.stats.groups.values()) == header.stats.num_selected == N // 3
    assert header.stats.num_measured == N // 2
    assert origins_of(header)["measured"] == N // 2
    assert math.isclose(header.stats.weight_sum or 0, N // 3, rel_tol=1e-5)
    assert draft.scores is not None and equal(store.scores(1), draft.scores)


def test_coreset_is_sorted_by_row_and_keeps_the_order_of_picks(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    draft = make_draft(store, "a")
    store.commit(draft)
    coreset, selection = store.coreset(1), draft.selection
    assert coreset.schema.equals(SCHEMA)
    rows = coreset["row"].to_numpy()
    assert (np.diff(rows) > 0).all()
    by_rank = coreset.take(np.argsort(coreset["rank"].to_numpy()))
    np.testing.assert_array_equal(by_rank["row"], selection.rows)
    np.testing.assert_array_equal(by_rank["gain"], selection.gains)
    np.testing.assert_array_equal(by_rank["weight"], selection.weights)
    samples = store.samples()
    assert coreset["sample_id"].to_pylist() == samples.sample_ids[rows].tolist()
    assert coreset["source_row"].to_pylist() == samples.source_rows[rows].tolist()
    names = [samples.group_names[g] for g in samples.groups[rows]]
    assert coreset["group"].to_pylist() == names


def test_measurement_keeps_rows_reasons_and_scores(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    draft = make_draft(store, "a")
    store.commit(draft)
    table = store.measurement(1)
    assert draft.measurement is not None
    order = np.argsort(draft.measurement.rows)
    np.testing.assert_array_equal(table["row"], draft.measurement.rows[order])
    np.testing.assert_array_equal(table["loss"], draft.measurement.scores["loss"][order])
    reasons = dict(zip(table["row"].to_pylist(), table["reason"].to_pylist(), strict=True))
    probe = {row for row, reason in reasons.items() if reason == "probe"}
    assert draft.plan is not None and probe == set(draft.plan.probe_rows.tolist())
    assert set(table["step"].to_pylist()) == {100}


def test_measuring_less_than_the_plan_is_recorded(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    draft = make_draft(store, "a")
    assert draft.measurement is not None
    part = draft.measurement.take(np.arange(5))
    store.commit(dataclasses.replace(draft, measurement=part))
    assert store.measurement(1)["row"].to_pylist() == sorted(part.rows.tolist())


def test_second_version_is_compared_with_its_parent(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    store.commit(make_draft(store, "b"))
    overlap = store.header(2).stats.overlap_with_parent
    first, second = (set(store.coreset(v)["row"].to_pylist()) for v in (1, 2))
    assert overlap is not None
    assert overlap.jaccard == pytest.approx(len(first & second) / len(first | second))
    assert overlap.churn == pytest.approx(len(first - second) / len(first))
    audit = store.header(2).audit
    assert audit is not None and audit.rank_correlation == 0.8 and audit.target_met is True
    assert store.header(2).to_json()["audit"]["target_met"] is True


def test_reselect_follows_its_parents_scores(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    with pytest.raises(VersionNotFoundError, match="refresh it from a checkpoint"):
        store.commit(make_reselect(store, "r"))
    store.commit(make_draft(store, "a"))
    for expected in (2, 3):
        assert store.commit(make_reselect(store, f"r{expected}")) == expected
        header = store.header(expected)
        assert header.scores_version == 1 and header.parent_version == expected - 1
        assert equal(store.scores(expected), store.scores(1))
        assert store.load_cache(expected) is not None
        assert not store.paths.scores(expected).parent.exists()
        assert not store.paths.measured(expected).parent.exists()
    with pytest.raises(VersionNotFoundError, match="measured nothing"):
        store.measurement(2)


def test_find_refresh(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    store.commit(make_draft(store, "b"))
    assert store.find_refresh("a") == 1 and store.find_refresh("b") == 2
    assert store.find_refresh("c") is None


def test_an_open_store_sees_the_commits_of_another_when_it_is_renewed(tmp_path: Path) -> None:
    reader = make_store(tmp_path / "store")
    writer = Store.open(tmp_path / "store")
    for version in (1, 2):
        held = reader.snapshot
        writer.commit(make_draft(writer, str(version)))
        assert reader.snapshot is held and reader.latest() == held.latest != version
        assert reader.header(version).version == version, "asked for by number it is found"
        assert reader.renew().latest() == version == writer.latest()


def test_a_writer_sees_what_others_made_before_it_got_the_lock(tmp_path: Path) -> None:
    one = make_store(tmp_path / "store")
    other = Store.open(tmp_path / "store")
    assert one.versions() == other.versions() == []
    assert one.commit(make_draft(one, "a")) == 1
    with other.lock():
        assert other.versions() == [1]
        assert other.commit(make_draft(other, "b")) == 2
    assert other.versions() == [1, 2] and one.versions() == [1]
    assert one.commit(make_draft(other, "c")) == 3


def test_a_snapshot_never_changes(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    before = store.snapshot
    store.commit(make_draft(store, "b"))
    assert list(before.kept) == [1] and before.next_version == 2 and before.latest == 1
    assert store.snapshot == Store.open(tmp_path / "store").snapshot, "as if looked at anew"
    with pytest.raises(TypeError):
        before.kept[2] = before.kept[1]  # type: ignore[index]


def test_unknown_version(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    with pytest.raises(VersionNotFoundError, match="none yet"):
        store.header(1)
    store.commit(make_draft(store, "a"))
    with pytest.raises(VersionNotFoundError, match=r"no version 7: the store .* has version 1$"):
        store.coreset(7)


@pytest.mark.parametrize("damage", ["manifest", "history", "shorter"])
def test_a_damaged_version_does_not_verify_and_keeps_its_number(
    tmp_path: Path, damage: str
) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    store.commit(make_draft(store, "b"))
    if damage == "manifest":
        store.paths.manifest(2).write_bytes(b"PAR1 not")
        with pytest.raises(StoreFormatError, match="gracekit verify"):
            store.header(2)
    elif damage == "history":
        store.paths.scores(2).unlink()
    else:
        path = store.paths.scores(2)
        path.write_bytes(path.read_bytes()[:-1])
    assert store.renew().versions() == [1] and store.latest() == 1
    store.recover()
    assert store.paths.manifest(2).exists(), "damage is reported, not deleted"
    assert store.commit(make_draft(store, "c")) == 3
    assert store.versions() == [1, 3] and store.header(3).parent_version == 1


def test_manifest_of_a_newer_gracekit_is_refused_loudly(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    path = store.paths.manifest(1)
    header = store.header(1).to_json() | {"format_version": FORMAT_VERSION + 1, "news": 1}
    metadata = {b"gracekit": json.dumps(header).encode()}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    store.renew()
    for read in (store.versions, store.latest, lambda: store.header(1)):
        with pytest.raises(StoreFormatError, match="update gracekit"):
            read()


def test_manifest_rewritten_by_another_program(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    path = store.paths.manifest(1)
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(StoreFormatError, match="no gracekit header"):
        store.header(1)


def test_published_files(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    store.commit(make_draft(store, "b"))
    assert store.paths.latest.read_text() == "2\n"
    for version in (1, 2):
        sidecar = json.loads(store.paths.sidecar(version).read_text())
        assert Header.from_json(sidecar) == store.header(version)
        metadata = pq.read_schema(store.paths.manifest(version)).metadata
        assert json.loads(metadata[b"gracekit"]) == sidecar
    assert store.paths.database.is_file()
    assert store.recover() == []


def test_floats_are_compressed_by_byte(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    group = pq.ParquetFile(store.paths.scores(1)).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert "BYTE_STREAM_SPLIT" in columns["loss"].encodings
    assert {c.compression for c in columns.values()} == {"ZSTD"}


def test_header_is_strict_json() -> None:
    value = {"a": np.float32("nan"), 1: (np.int64(2), Path("x")), "s": "\ud800", "i": float("inf")}
    plain = plain_json(value)
    assert plain == {"a": None, "1": [2, "x"], "s": "\ufffd", "i": None}
    json.dumps(plain, allow_nan=False).encode()


def test_header_text_round_trip(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    header = store.header(1)
    again = Header.from_json(json.loads(header.to_text()) | {"added_later": 1})
    assert again == header
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", header.created_at)


# --- cache and shards ---


def test_cache_round_trip_and_damage(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    cache = store.load_cache(1)
    assert cache is not None
    np.testing.assert_array_equal(cache.features, np.full((N, 4), 1, np.float16))
    assert cache.features.dtype == np.float16 and cache.valid.all()
    assert (cache.index_directory / "lists.bin").read_bytes() == b"neighbours"
    for name in ("features.npy", "index/lists.bin", "checksums.json"):
        path = store.paths.cache_of(1) / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert store.load_cache(1) is None
        path.unlink()
        assert store.load_cache(1) is None
        path.write_bytes(whole)
        assert store.load_cache(1) is not None


def test_only_the_cache_of_the_latest_scores_is_kept(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    (store.paths.cache / "tokens").mkdir(parents=True)
    for i in range(4):
        store.commit(make_draft(store, str(i)))
    for i in range(2):  # selections from the scores of version 4
        store.commit(make_reselect(store, f"r{i}"))
    kept = sorted(p.name for p in store.paths.cache.iterdir())
    assert kept == ["tokens", "v000004"]
    assert store.load_cache(6) is not None and store.load_cache(1) is None


def test_a_damaged_newest_version_keeps_its_cache(tmp_path: Path) -> None:
    """Restored from a backup, it is the latest again."""
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    store.commit(make_draft(store, "b"))
    whole = store.paths.manifest(2).read_bytes()
    store.paths.manifest(2).write_bytes(b"PAR1")
    store.recover()
    store.paths.manifest(2).write_bytes(whole)
    assert store.renew().latest() == 2 and store.load_cache(2) is not None


def shard(rows: list[int]) -> Measurement:
    return Measurement(
        rows=np.array(rows, np.int64),
        scores={
            "gradient-norm": np.array(rows, np.float32),
            "loss": np.full(len(rows), np.nan, "f4"),
        },
        features=np.ones((len(rows), 3), np.float16),
    )


def test_shards_round_trip_and_pass_over_damage(tmp_path: Path) -> None:
    shards = make_store(tmp_path / "store").shards("0123abcd")
    assert shards.load() == []
    for rows in ([0, 1], [5, 4, 3], [9], []):
        shards.save(shard(rows))
    found = shards.load()
    assert [s.rows.tolist() for s in found] == [[0, 1], [5, 4, 3], [9], []]
    assert equal(found[1], shard([5, 4, 3]))
    second, third = (shards.directory / f"{i:06d}.shard" for i in (2, 3))
    content = bytearray(second.read_bytes())
    content[len(content) // 3] ^= 0xFF
    second.write_bytes(content)
    third.write_bytes(third.read_bytes()[:40])
    assert [s.rows.tolist() for s in shards.load()] == [[0, 1], []]
    shards.save(shard([7]))
    assert [s.rows.tolist() for s in shards.load()] == [[0, 1], [], [7]]
    shards.clear()
    shards.clear()
    assert shards.load() == []


def test_shards_are_numbered_without_listing_and_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = ShardFiles(tmp_path), ShardFiles(tmp_path)
    for row in (0, 1):
        one.save(shard([row]))
    for row in (2, 3, 4):
        other.save(shard([row]))
    one.save(shard([5]))  # a number that it has not seen is taken
    listed = []
    monkeypatch.setattr(ShardFiles, "_files", lambda self: listed.append(self))
    for row in (6, 7, 8):
        one.save(shard([row]))
    monkeypatch.undo()
    assert not listed, "a listing for every shard takes n² in all"
    assert [s.rows.tolist() for s in one.load()] == [[row] for row in range(9)]
    one.clear()
    one.save(shard([9]))
    assert [path.name for path in tmp_path.iterdir()] == ["000001.shard"]


@given(position=st.integers(min_value=0), flip=st.integers(1, 255))
@settings(max_examples=60)
def test_no_flipped_byte_of_a_shard_goes_unnoticed(position: int, flip: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        shards = ShardFiles(Path(directory))
        shards.save(shard([3, 1, 2]))
        path = shards.directory / "000001.shard"
        content = bytearray(path.read_bytes())
        content[position % len(content)] ^= flip
        path.write_bytes(content)
        assert shards.load() == []


def test_measure_id_is_a_plain_name(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        make_store(tmp_path / "store").shards("../elsewhere")


def test_every_version_has_the_samples_of_its_time(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    first = store.samples()
    store.commit(make_draft(store, "one"))
    grown = changed_samples(store)
    store.commit(make_draft(store, "two", samples=grown))
    store.commit(make_draft(store, "three"))
    store.commit(make_reselect(store, "four"))
    more = changed_samples(store)
    store.commit(make_draft(store, "five", samples=more))
    store = Store.open(store.paths.root)
    for version, expected in zip(range(1, 6), (first, grown, grown, grown, more), strict=True):
        assert equal(store.samples(version), expected)
        coreset, rows = store.coreset(version), store.coreset(version)["row"].to_numpy()
        assert coreset["source_row"].to_pylist() == expected.source_rows[rows].tolist()
        assert len(store.scores(version)) == len(expected)
        assert store.header(version).stats.num_samples == expected.present.sum()
    assert equal(store.samples(), more)
    changes = [
        [
            getattr(store.header(version).stats, f"num_{what}")
            for what in ("added", "removed", "changed")
        ]
        for version in range(1, 6)
    ]
    assert changes == [[N, 0, 0], [3, 2, 1], [0, 0, 0], [0, 0, 0], [3, 2, 1]]
    assert StoreInfo.load(store.paths.info).num_samples == N, "store.json never changes"
    assert sorted(path.name for path in store.paths.changed_samples.iterdir()) == [
        "v000002.parquet", "v000005.parquet",
    ]  # fmt: skip
    sources = [2 * N, 3 * (N + 1), 3 * (N + 2)]
    assert list(store.dataset().sources.values()) == sources
    others = strings([text + "0" for text in more.content_hashes])
    kept = dataclasses.replace(more, content_hashes=others, fingerprint="other")
    store.commit(make_draft(store, "six", samples=kept))
    assert list(store.dataset().sources.values()) == sources, "nobody moved"
    removed = store.scores(5).origin == Origin.REMOVED
    assert removed.sum() == 4
    table = pq.read_table(store.paths.scores(5))
    assert table["importance"].null_count == 4


def as_format_1(header: dict[str, Any]) -> dict[str, Any]:
    """A header as the first format had it: settings and results in one mapping, much not there."""
    settings, timings = header["settings"], dict(header["timings"])
    later = {"samples_file", "num_rows", "positions", "sources", "settings", "tokens_key"}
    stages = {f"{name}_s": seconds for name, seconds in timings.pop("stages").items()}
    return {
        **{
            key: header[key]
            for key in (
                *("version", "parent_version", "created_at", "gracekit_version", "operation"),
                *("refresh_id", "recipe_digest", "scores_version", "checkpoint", "files", "audit"),
            )
        },
        "format_version": 1,
        "dataset": {
            **header["dataset"]["settings"],
            **{key: v for key, v in header["dataset"].items() if key not in later},
        },
        "scoring": settings["scoring"] or {},
        "refresh": settings["refresh"] or {},
        "selection": {**settings["selection"], "details": header["selection"]},
        "stats": {
            key: v
            for key, v in header["stats"].items()
            if key not in {"num_added", "num_removed", "num_changed"}
        },
        "timings": timings | stages,
    }


def test_a_store_of_format_version_1_is_read_and_grows(tmp_path: Path) -> None:
    """One that was made before data could change: its files lack what says so."""
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "one"))
    table = pq.ParquetFile(store.paths.samples).read()
    old = table.drop_columns(["added_version", "removed_version", "content_version"])
    pq.write_table(old, store.paths.samples)
    path = store.paths.manifest(1)
    manifest = pq.ParquetFile(path).read()
    header = json.loads(manifest.schema.metadata[b"gracekit"])
    first = as_format_1(header)
    pq.write_table(manifest.replace_schema_metadata({"gracekit": json.dumps(first)}), path)
    info = json.loads(store.paths.info.read_text())
    info |= {"format_version": 1, "dataset": first["dataset"]}
    del info["checksum"], info["files"]  # both came with format 4
    store.paths.info.write_text(json.dumps(info))
    store.paths.database.unlink()  # it was of another schema
    store.paths.sidecar(1).unlink()  # it was elsewhere
    store = Store.open(store.paths.root)
    store.recover()
    assert equal(store.samples(), make_samples()) and verify(store) == []
    grown = changed_samples(store)
    store.commit(make_draft(store, "two", samples=grown))
    assert equal(store.samples(2), grown) and equal(store.samples(1), make_samples())
    assert verify(store) == []
    with connect(store.paths.root) as connection:
        found = connection.sql("SELECT version, num_added, num_removed FROM versions").fetchall()
    assert found == [(1, None, None), (2, 3, 2)]
