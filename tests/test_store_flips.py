"""Every flipped bit that changes a value is found by `verify`, and none is a traceback."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gracekit.errors import StoreFormatError
from gracekit.store import (
    DamagedTokensError,
    Lease,
    LoggedUses,
    SharedWork,
    Store,
    UsesFacts,
    read_uses,
    verify,
    write_uses,
)
from gracekit.types import DrawState, TrainedLosses
from tests.flips import files_of, flip_bit, flip_many
from tests.stores import changed_samples, make_draft, make_reselect, make_store
from tests.test_scoring_more_scores import Tokens
from tests.test_scoring_pass import make_samples

SEED = 20260719
KINDS = {
    "LATEST", "cache", "draws", "headers", "leases", "manifests", "measurements", "pinned",
    "removed", "samples", "samples.parquet", "score_history", "scores.duckdb", "shards",
    "store.json", "uses",
}  # fmt: skip


def logged_uses(n: int) -> LoggedUses:
    state = DrawState(
        uses=np.arange(n, dtype=np.int32),
        owed=np.linspace(-1, 1, n),
        start_low=np.zeros(n),
        start_high=np.ones(n),
    )
    facts = UsesFacts(
        run="run-1", step=10, epoch=0, data="first", versions=(1,), newest_version=1,
        num_trained=5, draw={}, logged_at=1.0,
    )  # fmt: skip
    counts = np.zeros(n, np.int32)
    return LoggedUses(
        facts=facts,
        state=state,
        draw_uses=counts,
        epoch_uses=counts,
        epoch_due=np.ones(n),
        trained=TrainedLosses.none(n),
    )


def share(store: Store) -> SharedWork:
    """Offer two shards to other hosts, and a target set."""
    work, tokens = SharedWork(store.paths, "offered", 60.0), Tokens(make_samples((7, 6, 5)))
    shards = [np.array([0, 1]), np.array([2])]
    work.open({"session": "one"}, make_samples((6, 5)))
    work.offer(shards, [tokens.lengths[part] for part in shards], tokens.take, False)
    return work


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store that has every kind of file; all tests leave it as it is."""
    store = make_store(tmp_path_factory.mktemp("flips") / "store", n=12)
    draft = make_draft(store, "one")
    state = logged_uses(12).state
    store.commit(dataclasses.replace(draft, state=state))
    store.commit(make_draft(store, "two", samples=changed_samples(store)))
    store.commit(make_reselect(store, "three"))
    store.commit(make_draft(store, "four", samples=changed_samples(store)))
    store.pin(1, "a note")
    store.gc(2)
    write_uses(store.paths, logged_uses(12))
    assert draft.measurement is not None
    store.shards("measure").save(draft.measurement)
    share(store)
    lease = Lease(store.paths.root)
    lease.add(4)
    assert verify(store) == []
    yield store.paths.root
    lease.release()


def test_every_kind_of_file_is_there(root: Path) -> None:
    assert files_of(root).keys() == KINDS


def test_flipped_bits(root: Path) -> None:
    counts, missed = flip_many(root, 8 * len(KINDS), SEED)
    assert missed == []
    assert counts.keys() >= KINDS - {"scores.duckdb"}


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_ten_thousand_flipped_bits(root: Path) -> None:
    counts, missed = flip_many(root, 10_000, SEED)
    told = ", ".join(
        f"{count} of {10_000 // len(KINDS)} in {kind}" for kind, count in counts.items()
    )
    print(f"\nseed {SEED}: 10,000 flipped bits, found {told}; the rest changes no value")
    assert missed == []


def test_readers_check_what_they_read(root: Path) -> None:
    """By the reader of each file, wherever the bit is."""
    store = Store.open(root)
    paths = store.paths
    (uses,) = sorted(paths.uses.glob("*/*"))
    rng = np.random.default_rng(SEED)
    for path, read in (
        (paths.manifest(4), lambda: Store.open(root).coreset(4)),
        (paths.samples, lambda: Store.open(root).samples(1)),
        (paths.info, lambda: Store.open(root)),
        (paths.removal(2), lambda: Store.open(root).header(2)),
        (paths.scores(4), lambda: Store.open(root).scores(4)),
        (paths.draw(1), lambda: Store.open(root).drawn(1)),
        (uses, lambda: read_uses(uses)),
    ):
        for bit in rng.integers(0, 8 * path.stat().st_size, 40).tolist():
            before = flip_bit(path, bit)
            try:
                assert is_refused(read), f"bit {bit} of {path.name}"
            finally:
                path.write_bytes(before)


def test_a_worker_takes_no_changed_token(root: Path, tmp_path: Path) -> None:
    """What it measures of them would be believed: a result says only which rows it is of."""
    store = Store.open(shutil.copytree(root, tmp_path / "store"))
    work = share(store)
    offer = work.newest_offer()
    assert offer is not None

    def seen() -> list[Any]:
        found = work.newest_offer()
        assert found is not None
        every = [work.tokens(found, shard) for shard in range(len(found))]
        every.append(work.target_tokens(np.array([6, 5])))
        arrays = [array for tokens in every for pair in tokens for array in pair]
        return [*(array.tolist() for array in arrays), found.rows.tolist(), work.task()]

    before, rng = seen(), np.random.default_rng(SEED)
    for path in sorted(work.directory.iterdir()):
        for bit in rng.integers(0, 8 * path.stat().st_size, 40).tolist():
            content = flip_bit(path, bit)
            try:
                with suppress(StoreFormatError, DamagedTokensError):
                    assert seen() == before, f"bit {bit} of {path.name}"
                assert verify(store) != [], f"bit {bit} of {path.name}"
            finally:
                path.write_bytes(content)
    assert seen() == before and verify(store) == []


def is_refused(read: Callable[[], object]) -> bool:
    try:
        read()
    except StoreFormatError:
        return True
    return False


def test_other_programs_read_sealed_files(root: Path) -> None:
    import duckdb
    import pyarrow.dataset

    manifest = Store.open(root).paths.manifest(4)
    expected = Store.open(root).coreset(4).to_pylist()
    assert pyarrow.dataset.dataset(manifest).to_table().to_pylist() == expected
    with duckdb.connect() as connection:
        found = connection.execute(f"FROM '{manifest}'")
        assert found.fetchall() == [tuple(row.values()) for row in expected]
