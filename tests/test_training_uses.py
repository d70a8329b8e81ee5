"""The log of uses: what a trainer writes of what it trained on, and who takes it up."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from gracekit.api.reading import status
from gracekit.draw.over_time import settled
from gracekit.errors import RecipeError, StoreFormatError
from gracekit.refresher import rollback
from gracekit.refresher.uses import state_now
from gracekit.store import (
    KEPT_USES,
    LoggedUses,
    Store,
    logged_steps,
    newest_run,
    read_uses,
    read_uses_facts,
    uses_path,
    verify,
    write_uses,
)
from gracekit.training import CoresetSampler
from gracekit.types import DrawState
from tests.drawable import drawable_store, make_draw, publish_draw
from tests.faults import failing_at
from tests.stores import changed_samples, make_draft, make_store

N = 24
NUM_ROWS = 2 * N
PER_EPOCH = 25


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawable_store(tmp_path_factory.mktemp("prepared") / "store").paths.root


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Store:
    shutil.copytree(prepared, tmp_path / "store")
    return Store.open(tmp_path / "store")


def make_sampler(store: Store) -> CoresetSampler:
    return CoresetSampler(store.paths.root, NUM_ROWS, num_samples=PER_EPOCH)


def trained(store: Store, epochs: int = 2) -> tuple[CoresetSampler, np.ndarray]:
    """A sampler after whole epochs, logged at step 10 an epoch, and the uses of every row."""
    sampler, uses = make_sampler(store), np.zeros(NUM_ROWS, int)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        np.add.at(uses, np.array(list(sampler)), 1)
        sampler.log_uses(10 * (epoch + 1))
    return sampler, uses[::2]


def log_of(store: Store, sampler: CoresetSampler, step: int) -> LoggedUses:
    assert sampler.run is not None
    return read_uses(uses_path(store.paths, sampler.run, step))


def state_of(logged: LoggedUses) -> DrawState:
    return settled(logged.state, logged.epoch_due, logged.epoch_uses)


def test_a_log_says_what_was_trained_on(store: Store) -> None:
    sampler, uses = trained(store)
    logged = log_of(store, sampler, 20)
    np.testing.assert_array_equal(logged.state.uses + logged.epoch_uses, uses)
    assert logged.epoch_due.sum() == pytest.approx(logged.epoch_uses.sum())
    state = state_of(logged)
    expected = 5 * make_draw(N, seed=1).probabilities - uses
    np.testing.assert_allclose(state.owed, expected, atol=1e-9)
    facts = logged.facts
    assert (facts.run, facts.step, facts.epoch, facts.versions) == (sampler.run, 20, 1, (1,))
    assert (facts.num_trained, facts.newest_version) == (PER_EPOCH, 1)
    path = uses_path(store.paths, facts.run, 20)
    assert path.name == "s000020.parquet"
    assert json.loads(pq.read_schema(path).metadata[b"gracekit"])["step"] == 20


def test_what_a_loader_drew_ahead_is_not_logged(store: Store) -> None:
    sampler = make_sampler(store)
    drawn = [position for position, _ in zip(sampler, range(17), strict=False)]
    sampler.log_uses(3, num_trained=12)
    expected = np.bincount(np.array(drawn[:12]), minlength=NUM_ROWS)[::2]
    np.testing.assert_array_equal(log_of(store, sampler, 3).epoch_uses, expected)


@pytest.mark.parametrize("drop_last", [True, False])
def test_the_last_batch_of_an_epoch_counts_as_the_ranks_get_it(
    store: Store, drop_last: bool
) -> None:
    """25 samples in batches of 4 over 2 ranks: 24, or 32 filled up from the epoch's start."""
    sampler = make_sampler(store)
    sampler.trained_per_epoch = 24 if drop_last else 32
    uses = np.zeros(NUM_ROWS, int)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = BatchSampler(sampler, 4, drop_last)
        for rank in range(2):
            for batch in BatchSamplerShard(batches, 2, rank):
                np.add.at(uses, np.array(batch), 1)
    sampler.log_uses(6, num_trained=sampler.trained_per_epoch)
    logged = log_of(store, sampler, 6)
    np.testing.assert_array_equal(logged.state.uses + logged.epoch_uses, uses[::2])
    assert abs(state_of(logged).owed.sum()) < 1e-9


def test_the_newest_files_are_kept(store: Store) -> None:
    sampler = make_sampler(store)
    sampler.set_epoch(0)
    for step in range(KEPT_USES + 3):
        sampler.log_uses(step, num_trained=step)
    assert sampler.run is not None
    assert list(logged_steps(store.paths, sampler.run)) == list(range(3, KEPT_USES + 3))
    with pytest.raises(RecipeError, match="step should be >= 0"):
        sampler.log_uses(-1)


def test_nothing_is_logged_before_a_version_is_known(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", N)
    sampler = make_sampler(store)
    list(sampler)
    sampler.log_uses(1)
    assert not store.paths.uses.exists()
    publish_draw(store)
    sampler.set_epoch(1)
    list(sampler)
    sampler.log_uses(2)
    logged = log_of(store, sampler, 2)
    assert logged.state.uses.sum() + logged.epoch_uses.sum() <= 2 * PER_EPOCH
    assert logged.state.uses.any(), "the epoch without a version counts, of rows of the store"
    assert not logged.state.owed.any()


def test_a_store_without_draws_logs_uses_that_are_due(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", N)
    store.commit(make_draft(store, "a"))
    sampler, uses = trained(store)
    logged = log_of(store, sampler, 20)
    np.testing.assert_array_equal(logged.state.uses + logged.epoch_uses, uses)
    np.testing.assert_array_equal(logged.epoch_due, logged.epoch_uses)
    resumed = make_sampler(store)
    resumed.load_state_dict(sampler.state_dict())
    resumed.set_epoch(2)
    sampler.set_epoch(2)
    assert list(resumed) == list(sampler)


def test_a_store_that_cannot_be_written_is_one_warning(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.paths.uses.write_text("in the way")
    sampler, _ = trained(store)
    assert [r.message.partition(" (")[0] for r in caplog.records] == [
        "what is trained on is not logged"
    ]
    assert "handed out" in caplog.records[0].message
    resumed = make_sampler(store)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == sampler.order().tolist()
    sampler.set_epoch(2)
    resumed.set_epoch(2)
    assert list(resumed) == list(sampler)


def test_a_full_disk_leaves_the_log_before(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    sampler, _ = trained(store, epochs=1)
    with failing_at(1, errno.ENOSPC):
        sampler.log_uses(11)
    assert "the disk is full" in caplog.text
    assert sampler.run is not None
    assert list(logged_steps(store.paths, sampler.run)) == [10]


# --- a run that is resumed ---


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def of_another_run(path: Path) -> None:
    logged = read_uses(path)
    path.write_bytes(_rewritten(path, dataclasses.replace(logged.facts, run="another")))


def of_other_data(path: Path) -> None:
    logged = read_uses(path)
    path.write_bytes(_rewritten(path, dataclasses.replace(logged.facts, data="other")))


def of_a_later_epoch(path: Path) -> None:
    logged = read_uses(path)
    path.write_bytes(_rewritten(path, dataclasses.replace(logged.facts, epoch=7)))


def of_nonsense(path: Path) -> None:
    logged = read_uses(path)
    owed = np.full(len(logged), np.nan)
    logged = dataclasses.replace(logged, state=dataclasses.replace(logged.state, owed=owed))
    path.write_bytes(_rewritten(path, logged.facts, logged))


def _rewritten(path: Path, facts: object, logged: LoggedUses | None = None) -> bytes:
    table = pq.read_table(path) if logged is None else None
    if table is None:
        assert logged is not None
        table = pq.read_table(path)
        index = table.column_names.index("owed")
        table = table.set_column(index, "owed", [logged.state.owed])
    metadata = {b"gracekit": json.dumps(dataclasses.asdict(facts)).encode()}  # type: ignore[call-overload]
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage, "cannot read"),
        (Path.unlink, "cannot read"),
        (of_another_run, "is a log of run 'another' at step 20"),
        (of_other_data, "is a log of other data"),
        (of_a_later_epoch, "is of epoch 8"),
        (of_nonsense, "not those that a trainer writes"),
    ],
)
def test_a_log_that_cannot_be_taken_up_is_made_anew(
    store: Store, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], message: str
) -> None:
    sampler, _ = trained(store)
    saved = sampler.state_dict()
    assert sampler.run is not None
    spoil(uses_path(store.paths, sampler.run, 20))
    resumed = make_sampler(store)
    resumed.load_state_dict(saved)
    assert len(caplog.records) == 1
    assert "is made anew from the version log" in caplog.text and message in caplog.text
    for epoch in (1, 2, 3):
        sampler.set_epoch(epoch)
        resumed.set_epoch(epoch)
        assert list(resumed) == list(sampler)
    assert len(caplog.records) == 1


def test_where_old_versions_are_gone_too_it_begins_from_nothing(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    sampler, _ = trained(store)
    publish_draw(store)
    sampler.set_epoch(2)
    saved = sampler.state_dict()
    sampler.release()
    assert sampler.run is not None
    shutil.rmtree(store.paths.uses)
    assert store.gc(keep=1).removed == (1,)
    resumed = make_sampler(store)
    resumed.load_state_dict(saved)
    assert len(set(list(resumed)[:10])) == 10
    texts = [record.message for record in caplog.records]
    assert sum("is made anew from the version log" in text for text in texts) == 1
    assert sum("is not known any more" in text for text in texts) == 1


def test_logs_ahead_of_the_checkpoint_are_removed(store: Store) -> None:
    sampler = make_sampler(store)
    sampler.set_epoch(0)
    list(sampler)
    sampler.log_uses(10)
    saved = sampler.state_dict()
    sampler.set_epoch(1)
    expected = list(sampler)
    sampler.log_uses(20)
    sampler.log_uses(30)
    other = make_sampler(store)
    other.set_epoch(0)
    other.log_uses(40)
    resumed = make_sampler(store)
    resumed.load_state_dict(saved)
    assert sampler.run is not None and other.run is not None
    assert list(logged_steps(store.paths, sampler.run)) == [10]
    assert list(logged_steps(store.paths, other.run)) == [40], "another run's are left alone"
    resumed.set_epoch(1)
    assert list(resumed) == expected


# --- the daemon's side ---


def test_the_daemon_takes_what_was_logged_up_to_the_checkpoint(store: Store) -> None:
    sampler, uses = trained(store, epochs=3)
    for step, expected in ((30, 30), (29, 20), (20, 20), (None, 30), (1000, 30)):
        state = state_now(store, store.samples(), np.arange(3), step)
        assert state.source == {"run": sampler.run, "step": expected}
        logged = state_of(log_of(store, sampler, expected))
        for name in ("uses", "owed", "start_low", "start_high"):
            np.testing.assert_array_equal(getattr(state, name), getattr(logged, name))
    np.testing.assert_array_equal(state.uses, uses)
    before = state_now(store, store.samples(), np.arange(3), 5)
    assert before.source is None, "never ahead of the checkpoint"
    assert before.uses.tolist() == [1, 1, 1] + [0] * (N - 3)


def test_the_run_that_logged_last_counts(store: Store) -> None:
    first, _ = trained(store, epochs=1)
    second, _ = trained(store, epochs=1)
    assert state_now(store, store.samples(), None, 10).source == {"run": second.run, "step": 10}
    first.log_uses(10)
    assert state_now(store, store.samples(), None, 10).source == {"run": first.run, "step": 10}


@pytest.mark.parametrize("spoil", [damage, of_other_data, of_nonsense])
def test_a_log_that_is_of_no_use_is_passed_over(
    store: Store, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    sampler, _ = trained(store)
    assert sampler.run is not None
    spoil(uses_path(store.paths, sampler.run, 20))
    state = state_now(store, store.samples(), None, 25)
    assert state.source == {"run": sampler.run, "step": 10}
    assert "a log of uses is passed over" in caplog.text and "s000020.parquet" in caplog.text


def test_a_version_says_where_its_uses_come_from(store: Store) -> None:
    assert store.header(1).selection.uses_from is None
    sampler, uses = trained(store)
    made = rollback(store.paths.root, 1).version
    publish_draw(store)
    version = rollback(store.paths.root, 1).version
    assert made == 1 and version == 3
    store.renew()
    source = store.header(version).selection.uses_from
    assert source is not None and source.model_dump() == {"run": sampler.run, "step": 20}
    drawn = store.drawn(version)
    assert drawn is not None
    np.testing.assert_array_equal(drawn.state.uses, uses)


def test_rows_that_join_or_change_later_are_forgotten(store: Store) -> None:
    _, uses = trained(store)
    samples = changed_samples(store)
    state = state_now(store, samples, None, 20)
    assert len(state) == N + 3
    is_new = samples.content_versions > 1
    assert is_new.sum() == 4
    assert not state.uses[is_new].any() and not state.owed[is_new].any()
    np.testing.assert_array_equal(state.uses[:N][~is_new[:N]], uses[~is_new[:N]])


def test_verify_gc_recover_and_status_meet_a_log(store: Store) -> None:
    assert status(store.paths.root).to_json()["uses"] is None
    sampler, _ = trained(store)
    assert verify(store) == []
    publish_draw(store)
    store.gc(keep=1)
    with store.lock():
        assert not store.tidy(always=True)
    assert sampler.run is not None
    assert list(logged_steps(store.paths, sampler.run)) == [10, 20]
    found = status(store.paths.root)
    assert found.to_json()["uses"] == {"run": sampler.run, "step": 20}
    assert f"last at step 20 (run {sampler.run})" in str(found)
    damage(uses_path(store.paths, sampler.run, 20))
    (store.paths.uses / "no run").mkdir()
    assert status(store.paths.root).to_json()["uses"] == {"run": sampler.run, "step": 20}
    (damaged,) = verify(store)
    assert str(damaged.path) == f"uses/{sampler.run}/s000020.parquet"


def test_a_file_comes_back_as_it_was_written(store: Store) -> None:
    sampler, _ = trained(store, epochs=1)
    logged = log_of(store, sampler, 10)
    moved = dataclasses.replace(logged, facts=dataclasses.replace(logged.facts, step=1234567))
    path = write_uses(store.paths, moved)
    assert path.name == "s1234567.parquet"
    again = read_uses(path)
    assert again.facts == moved.facts == read_uses_facts(path)
    assert list(newest_run(store.paths)) == [10, 1234567]
    with pytest.raises(StoreFormatError, match="cannot read"):
        read_uses_facts(store.paths.manifest(1))
