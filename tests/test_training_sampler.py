"""The sampler: constant length, whole epochs from one version, and replays of the version log."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gracekit.errors import RecipeError
from gracekit.refresher import rollback
from gracekit.store import Store
from gracekit.store.files.leases import followed
from gracekit.training import Coreset, CoresetIterableDataset, CoresetSampler
from gracekit.version.header import CheckpointInfo
from tests.patience import LAST_RESORT_S
from tests.stores import N, make_draft, make_store

NUM_ROWS = 2 * N


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store")


def publish(store: Store, step: int | None = None) -> set[int]:
    """Commit the next version; returns its positions in the trainer's dataset."""
    draft = make_draft(store, f"refresh-{store.next_version()}")
    if step is not None:
        draft = dataclasses.replace(draft, checkpoint=CheckpointInfo(step=step))
    return set(Coreset.load(store.paths.root, store.commit(draft)).source_rows.tolist())


def epoch(sampler: CoresetSampler, number: int) -> list[int]:
    sampler.set_epoch(number)
    return list(sampler)


def turns(sampler: CoresetSampler) -> list[tuple[int, ...]]:
    return [tuple(turn) for turn in sampler.version_log]


def test_without_a_version_epochs_go_over_the_whole_dataset(store: Store) -> None:
    sampler = CoresetSampler(store.paths.root, NUM_ROWS)
    first, second = epoch(sampler, 0), epoch(sampler, 1)
    assert sorted(first) == sorted(second) == list(range(NUM_ROWS))
    assert first != second
    assert turns(sampler) == [(0, 0, 0), (1, 0, 0)]


def test_a_missing_store_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sampler = CoresetSampler(tmp_path / "nowhere", 10, num_samples=4)
    drawn = epoch(sampler, 0) + epoch(sampler, 1)
    assert len(set(drawn)) == 8  # short epochs go on where the last one stopped
    assert [record.message for record in caplog.records] == [
        f"there is no coreset in {tmp_path / 'nowhere'} yet: drawing from the whole dataset"
    ]


def test_each_epoch_draws_from_the_newest_version_only(store: Store) -> None:
    sampler = CoresetSampler(store.paths.root, NUM_ROWS)
    assert len(set(epoch(sampler, 0))) == NUM_ROWS
    for number in (1, 2, 3):
        rows = publish(store)
        drawn = epoch(sampler, number)
        assert set(drawn) == rows
        assert len(drawn) == len(sampler) == NUM_ROWS
        assert set(Counter(drawn).values()) == {NUM_ROWS // len(rows)}
        assert (sampler.version, sampler.step) == (number, 100 * number)
    assert turns(sampler) == [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3)]


def test_a_version_that_comes_within_an_epoch_waits_for_the_next(store: Store) -> None:
    rows = publish(store)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS)
    drawn = []
    for index, position in enumerate(sampler):
        if index == 10:
            publish(store)
            sampler.set_epoch(0)  # as trainers do, more than once
            assert not sampler.swap()
        drawn.append(position)
    assert set(drawn) == rows
    epoch(sampler, 1)
    assert sampler.version == 2


def test_within_an_epoch_swap_takes_the_new_version_from_the_next_draw(store: Store) -> None:
    publish(store)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, follow="step")
    drawn, second = [], set()
    for index, position in enumerate(sampler):
        drawn.append(position)
        if index == 9:
            assert not sampler.swap()
            second = publish(store)
            assert sampler.swap()
            assert not sampler.swap()
    assert set(drawn[10:]) == second
    assert turns(sampler) == [(0, 0, 1), (0, 10, 2)]
    assert sampler.order().tolist() == drawn
    assert len(drawn) == NUM_ROWS
    third = publish(store)
    assert not sampler.swap()  # the epoch is over
    assert set(epoch(sampler, 1)) == third


def test_never_keeps_the_first_version_found(store: Store) -> None:
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, follow="never", wait_s=LAST_RESORT_S)
    epoch(sampler, 0)
    rows = publish(store)
    assert set(epoch(sampler, 1)) == rows
    publish(store)
    sampler.expected_step = 1000  # nothing to wait for
    assert set(epoch(sampler, 2)) == rows


@pytest.mark.parametrize("mode", ["cycle", "weighted"])
def test_a_resumed_sampler_replays_the_log(store: Store, mode: Any) -> None:
    def make() -> CoresetSampler:
        return CoresetSampler(
            store.paths.root, NUM_ROWS, num_samples=13, seed=7, mode=mode, follow="step"
        )

    first = make()
    drawn = {0: epoch(first, 0)}
    publish(store)
    drawn[1] = epoch(first, 1)
    first.set_epoch(2)
    iterator = iter(first)
    drawn[2] = [next(iterator) for _ in range(5)]
    publish(store)
    first.swap()
    saved = json.loads(json.dumps(first.state_dict()))
    drawn[2] += iterator
    publish(store)  # newer than anything in the log

    resumed = make()
    resumed.load_state_dict(saved)
    assert resumed.epoch == 2
    assert list(resumed) == drawn[2]
    for number in (1, 0, 2):
        assert epoch(resumed, number) == drawn[number]
    assert resumed.version_log == first.version_log
    assert epoch(resumed, 3) == epoch(first, 3)
    assert resumed.version == 3


def test_a_state_of_other_settings_is_refused(store: Store) -> None:
    saved = CoresetSampler(store.paths.root, NUM_ROWS).state_dict()
    with pytest.raises(RecipeError, match="seed 0 and this sampler 1"):
        CoresetSampler(store.paths.root, NUM_ROWS, seed=1).load_state_dict(saved)


def test_a_replay_without_its_manifest_warns_and_goes_on(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS)
    epoch(sampler, 0)
    store.paths.manifest(1).unlink()
    resumed = CoresetSampler(store.paths.root, NUM_ROWS)
    resumed.load_state_dict(sampler.state_dict())
    assert sorted(resumed) == list(range(NUM_ROWS))
    assert "cannot be read any more" in caplog.text
    assert turns(resumed) == [(0, 0, 0)]


def test_a_damaged_manifest_leaves_the_present_version_in_use(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    rows = publish(store)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS)
    epoch(sampler, 0)
    store.paths.manifest(2).write_bytes(b"cut off")
    assert set(epoch(sampler, 1)) == rows
    assert set(epoch(sampler, 2)) == rows
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "coreset version 2 is not used" in caplog.text


def test_a_damaged_newest_manifest_is_passed_over(store: Store) -> None:
    publish(store)
    rows = publish(store)
    store.paths.manifest(3).write_bytes(b"cut off")
    assert set(CoresetSampler(store.paths.root, NUM_ROWS)) == rows


def test_a_store_that_cannot_be_listed_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "manifests").symlink_to("manifests")  # a loop: any look fails
    assert sorted(CoresetSampler(tmp_path, 5)) == list(range(5))
    assert caplog.records and all(r.levelname == "WARNING" for r in caplog.records)


def test_a_dataset_that_does_not_fit_is_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS - 1)
    assert sorted(sampler) == list(range(NUM_ROWS - 1))
    assert "rows cannot be matched by position" in caplog.text


def test_ids_find_the_samples_and_lost_ones_are_left_out(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store)
    coreset = Coreset.load(store.paths.root)
    lost = coreset.sample_ids[0]
    ids = [f"id-{i:03d}" for i in reversed(range(N)) if f"id-{i:03d}" != lost]
    drawn = list(CoresetSampler(store.paths.root, ids))
    assert {ids[i] for i in drawn} == set(coreset.sample_ids.tolist()) - {lost}
    assert "1 of its 8 samples are not in the trainer's dataset" in caplog.text


def test_weights_are_met_by_repetition(store: Store) -> None:
    publish(store)
    coreset = Coreset.load(store.paths.root)
    num_samples = 200 * len(coreset)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, num_samples=num_samples, mode="weighted")
    counts = np.bincount(list(sampler), minlength=NUM_ROWS)[coreset.source_rows]
    np.testing.assert_allclose(counts / 200, coreset.weights, atol=0.12)


def test_waiting_ends_with_the_coreset_of_the_last_checkpoint(store: Store) -> None:
    publish(store, step=10)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, wait_s=LAST_RESORT_S)
    sampler.expected_step = 20
    done = threading.Event()

    def publish_later() -> None:
        time.sleep(0.3)
        publish(store, step=15)
        publish(store, step=20)
        done.set()

    thread = threading.Thread(target=publish_later)
    thread.start()
    sampler.set_epoch(0)
    thread.join()
    assert done.is_set()
    assert (sampler.version, sampler.step) == (3, 20)


def test_after_a_rollback_nothing_is_waited_for(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        publish(store, step=step)
    rollback(store.paths.root, 1)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, wait_s=LAST_RESORT_S)
    sampler.expected_step = 20
    for number in range(2):
        sampler.set_epoch(number)
    assert (sampler.version, sampler.step) == (3, 10)
    assert "waited" not in caplog.text


def test_waiting_gives_up(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    rows = publish(store, step=10)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, wait_s=0.01)
    sampler.expected_step = 20
    assert set(sampler) == rows
    assert "waited 0 s for a coreset of the checkpoint at step 20" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_in_a_plain_data_loader(store: Store, num_workers: int) -> None:
    rows = publish(store)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, num_samples=20)
    loader: DataLoader[torch.Tensor] = DataLoader(
        torch.arange(NUM_ROWS),  # type: ignore[arg-type]
        batch_size=3,
        sampler=sampler,
        num_workers=num_workers,
    )
    assert len(loader) == 7
    drawn = torch.cat(list(loader)).tolist()
    assert drawn == sampler.order().tolist()
    assert set(drawn) == rows
    expected = publish(store)
    sampler.set_epoch(1)
    assert set(torch.cat(list(loader)).tolist()) <= expected


def test_an_epoch_that_is_gone_over_again_is_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop without `set_epoch` has the same draws for ever, and never a new version."""
    publish(store)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, num_samples=20)
    loader: DataLoader[torch.Tensor] = DataLoader(
        torch.arange(NUM_ROWS),  # type: ignore[arg-type]
        batch_size=4,
        sampler=sampler,
    )
    for number in range(2):
        sampler.set_epoch(number)
        next(iter(loader))  # a look at the first is none
        list(loader)
    assert not caplog.records
    for _ in range(2):
        list(loader)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "epoch 1 was gone over and is iterated over again" in caplog.text


def test_prepared_by_accelerate(store: Store) -> None:
    publish(store)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, num_samples=20)
    loader: DataLoader[torch.Tensor] = DataLoader(
        torch.arange(NUM_ROWS),  # type: ignore[arg-type]
        batch_size=4,
        sampler=sampler,
    )
    prepared = accelerate.Accelerator(cpu=True).prepare_data_loader(loader)
    assert torch.cat(list(prepared)).tolist() == sampler.order().tolist()
    expected = publish(store)
    prepared.set_epoch(1)
    assert set(torch.cat(list(prepared)).tolist()) <= expected
    assert sampler.version == 2


def test_reading_logs_nothing_when_all_is_well(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store)
    with caplog.at_level(logging.DEBUG, logger="gracekit.training"):
        list(CoresetSampler(store.paths.root, NUM_ROWS))
    assert not caplog.records


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": 0}, "dataset is empty"),
        ({"num_samples": 0}, "num_samples should be >= 1, found 0"),
        ({"num_samples": 10 * 0.3}, "num_samples should be a whole number, found 3.0"),
        ({"seed": -1}, "seed should be >= 0, found -1"),
        ({"mode": "cylce"}, "mode should be one of cycle, weighted; found 'cylce'"),
        ({"follow": "batch"}, "follow should be one of epoch, step, never; found 'batch'"),
    ],
)
def test_wrong_arguments_are_clear(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CoresetSampler("store", **{"dataset": 10, **arguments})


def test_the_versions_in_use_are_leased(store: Store) -> None:
    publish(store)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS)
    assert followed(store.paths) == {}
    first = epoch(sampler, 0)
    store.commit(make_draft(store, "b"))
    store.commit(make_draft(store, "c"), keep=1)
    assert store.versions() == [1, 3], "1 is trained on"
    resumed = CoresetSampler(store.paths.root, NUM_ROWS)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == first
    sampler.set_epoch(1)
    assert set(followed(store.paths)) == {1, 3}, "each sampler has a lease of its own"
    sampler.release()
    assert set(followed(store.paths)) == {1}
    del resumed
    assert followed(store.paths) == {}


def test_the_next_epoch_may_begin_with_the_last_batch(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, num_samples=8)
    stream = CoresetIterableDataset(store.paths.root, list(range(NUM_ROWS)), num_samples=8)
    for number in range(3):
        for drawn in (sampler, stream):
            for k, _ in enumerate(drawn):
                if k == 7:
                    drawn.set_epoch(number + 1)
    assert not caplog.records


def test_numbers_of_numpy_are_numbers(store: Store) -> None:
    publish(store)
    sampler = CoresetSampler(store.paths.root, np.int64(NUM_ROWS), num_samples=np.int32(8))  # type: ignore[arg-type]
    sampler.set_epoch(np.int64(1))  # type: ignore[arg-type]
    state = json.loads(json.dumps(sampler.state_dict()))
    again = CoresetSampler(store.paths.root, NUM_ROWS, num_samples=8)
    again.load_state_dict(state)
    assert list(again) == list(sampler)


@pytest.mark.parametrize("state", [{}, {"epoch": 0, "version_log": [[0, 0]]}, {"version_log": 3}])
def test_what_is_no_state_is_refused(store: Store, state: Any) -> None:
    sampler = CoresetSampler(store.paths.root, NUM_ROWS)
    with pytest.raises(RecipeError, match="is no state of a CoresetSampler"):
        sampler.load_state_dict(state)
