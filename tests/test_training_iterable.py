"""A coreset as a stream: in a data loader, over workers and ranks, in trainers, resumed."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from gracekit.errors import RecipeError
from gracekit.store import Store
from gracekit.training import Coreset, CoresetCallback, CoresetIterableDataset, CoresetSampler
from tests.drawable import publish_draw
from tests.stores import N, make_draft, make_store
from tests.test_training_callback import ROWS, StopAt, logged, train

torch.set_num_threads(1)
NUM_ROWS = 2 * N
ROW_NUMBERS = list(range(NUM_ROWS))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = make_store(tmp_path / "store")
    found.commit(make_draft(found, "first"))
    return found


def positions(loader: Any) -> list[int]:
    return [int(p) for batch in loader for p in batch]


def stream(store: Store, **options: Any) -> CoresetIterableDataset:
    return CoresetIterableDataset(store.paths.root, ROW_NUMBERS, **options)


def test_it_yields_what_the_sampler_draws(store: Store) -> None:
    dataset, sampler = stream(store), CoresetSampler(store.paths.root, NUM_ROWS, weighs=False)
    for epoch in range(3):
        if epoch == 1:
            publish_draw(store)
        dataset.set_epoch(epoch)
        sampler.set_epoch(epoch)
        assert positions(DataLoader(dataset, batch_size=5)) == list(sampler)
    assert dataset.sampler.version_log == sampler.version_log
    assert dataset.sampler.num_drawn == len(dataset) == NUM_ROWS


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_share_the_samples(store: Store, num_workers: int) -> None:
    publish_draw(store)
    dataset = stream(store, num_samples=17)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        loader = DataLoader(dataset, batch_size=2, num_workers=num_workers)
        assert sorted(positions(loader)) == sorted(dataset.sampler.order().tolist())


def test_ranks_share_the_samples(store: Store) -> None:
    publish_draw(store)
    ranks = [stream(store, num_samples=17, rank=rank, num_ranks=2) for rank in (0, 1)]
    for epoch in range(2):
        for rank in ranks:
            rank.set_epoch(epoch)
        found = [list(rank) for rank in ranks]
        assert [len(samples) for samples in found] == [len(rank) for rank in ranks] == [8, 8]
        in_turn = [p for pair in zip(*found, strict=True) for p in pair]
        assert in_turn == ranks[0].sampler.order()[:16].tolist()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_with_workers_have_as_many_samples(
    store: Store, num_workers: int, num_ranks: int
) -> None:
    publish_draw(store)
    found: list[int] = []
    for rank in range(num_ranks):
        dataset = stream(store, num_samples=13, rank=rank, num_ranks=num_ranks)
        dataset.set_epoch(0)
        drawn = positions(DataLoader(dataset, batch_size=2, num_workers=num_workers))
        assert len(drawn) == len(dataset) == 13 // num_ranks
        order = dataset.sampler.order().tolist()
        assert sorted(drawn) == sorted(order[rank : len(dataset) * num_ranks : num_ranks])
        found += drawn
    assert len(found) == 13 // num_ranks * num_ranks


def test_an_epoch_that_is_gone_over_again_is_a_warning(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = stream(store)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        next(iter(dataset))  # a look at the first is none
        list(dataset)
    assert not caplog.records
    for _ in range(2):
        list(dataset)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "epoch 1 was gone over and is iterated over again" in caplog.text


def test_rows_get_their_weights(store: Store) -> None:
    publish_draw(store)
    rows = [{"position": i} for i in range(NUM_ROWS)]
    dataset = CoresetIterableDataset(store.paths.root, rows, weight_key="weight")
    dataset.set_epoch(0)
    for row in dataset:
        assert row["weight"] == dataset.sampler.weight_of(row["position"])
    assert len({row["weight"] for row in dataset}) > 3


def test_it_goes_on_in_the_middle_of_an_epoch(store: Store) -> None:
    publish_draw(store)
    whole, cut = stream(store), stream(store)
    for dataset in (whole, cut):
        dataset.set_epoch(0)
    expected, first = list(whole), []
    for sample in cut:
        first.append(sample)
        if len(first) == 7:
            break
    state = cut.state_dict()
    publish_draw(store)  # the epoch that was begun keeps its version
    resumed = stream(store)
    resumed.load_state_dict(state)
    resumed.set_epoch(0)
    assert first + list(resumed) == expected
    for dataset in (whole, resumed):
        dataset.set_epoch(1)
    assert list(resumed) == list(whole) and resumed.sampler.version == 3


def test_a_trainer_trains_on_the_coreset(store: Store, tmp_path: Path) -> None:
    dataset = CoresetIterableDataset(store.paths.root, ROWS, num_samples=16)
    trainer, fed = train(tmp_path / "run", kind=Trainer, dataset=dataset, num_train_epochs=2)
    assert trainer.state.max_steps == 8
    coreset = Coreset.load(store.paths.root)
    drawn = [p for batch in fed for p in batch]
    assert sorted(drawn) == sorted(coreset.source_rows.tolist() * 4)


@pytest.mark.parametrize("is_removed", [True, False])
def test_weights_that_a_trainer_removes_are_not_said_to_count(
    store: Store, tmp_path: Path, is_removed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its columns that the model does not name never get to a loss."""
    publish_draw(store)
    dataset = CoresetIterableDataset(store.paths.root, ROWS, num_samples=8, weight_key="by")
    with caplog.at_level(logging.INFO, logger="gracekit.training"):
        train(
            tmp_path / "run", CoresetCallback(store.paths.root), kind=Trainer, dataset=dataset,
            num_train_epochs=1, remove_unused_columns=is_removed,
        )  # fmt: skip
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert ["the stream's weights do not reach the loss" in text for text in warnings] == (
        [True] if is_removed else []
    )
    assert ("their weights count in the loss" in caplog.text) != is_removed
    assert "drawn whatever their norms" not in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_trainer_that_is_resumed_goes_on_with_the_same_batches(
    store: Store, tmp_path: Path, num_workers: int
) -> None:
    """A version that came out after the epoch was begun is not taken up in the middle of it."""
    publish_draw(store)

    def go_on(name: str, *callbacks: Any, resume: bool = False) -> tuple[Any, list[list[int]]]:
        dataset = CoresetIterableDataset(store.paths.root, ROWS, num_samples=16)
        return train(
            tmp_path / name, CoresetCallback(store.paths.root), *callbacks, resume=resume,
            dataset=dataset, num_train_epochs=2, save_strategy="steps", save_steps=2,
            dataloader_num_workers=num_workers,
        )  # fmt: skip

    _, whole = go_on("whole")
    trainer, first = go_on("cut", StopAt(2))
    assert logged(trainer) == [(0, 0, 2)]
    publish_draw(store)
    trainer, rest = go_on("cut", resume=True)
    assert logged(trainer) == [(0, 0, 2), (1, 0, 3)]
    epoch = [p for batch in first[:2] + rest[:2] for p in batch]
    assert epoch == [p for batch in whole[:4] for p in batch]
    run = next(
        entry["coreset_run"] for entry in trainer.state.log_history if "coreset_run" in entry
    )
    assert sorted(path.stem for path in (store.paths.root / "uses" / run).iterdir()) == [
        f"s{step:06d}" for step in (2, 4, 6, 8)
    ]


@pytest.mark.formats
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(importlib.util.find_spec("torchdata") is None, reason="not installed")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stateful_data_loader_goes_on(store: Store, num_workers: int) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    publish_draw(store)

    def loader() -> Any:
        dataset = stream(store)
        dataset.set_epoch(0)
        return StatefulDataLoader(dataset, batch_size=3, num_workers=num_workers)

    whole = [batch.tolist() for batch in loader()]
    cut, first = loader(), []
    for batch in cut:
        first.append(batch.tolist())
        if len(first) == 5:
            break
    state = cut.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert first + [batch.tolist() for batch in resumed] == whole


def test_what_would_go_wrong_is_refused(store: Store) -> None:
    with pytest.raises(RecipeError, match="found rank 2 of 2"):
        stream(store, rank=2, num_ranks=2)
    with pytest.raises(RecipeError, match="1 sample_ids for 48 rows"):
        stream(store, sample_ids=["a"])
    dataset = stream(store)
    with pytest.raises(RecipeError, match=r"epoch 0 has not begun. With workers, call set_epoch"):
        list(DataLoader(dataset, num_workers=1))
    dataset.set_epoch(0)
    loader = DataLoader(dataset, num_workers=1, persistent_workers=True)
    assert len(list(loader)) == NUM_ROWS
    with pytest.raises(RecipeError, match="without persistent_workers"):
        list(loader)
