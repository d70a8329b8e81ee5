"""What a trainer's own log and its terminal say of the coreset it trains on."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

from gracekit.store import Store
from gracekit.training import CoresetCallback
from gracekit.version.header import CheckpointInfo
from gracekit.version.outcomes import Cost
from tests.stores import N, make_draft, make_store
from tests.test_training_callback import CoresetTrainer, Publisher, train

NUM_ROWS = 2 * N


class Seen(TrainerCallback):  # type: ignore[misc]
    """Stands before the coreset's callback, as those of wandb, TensorBoard and trackio do."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, Any]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append((state.global_step, dict(logs)))

    @property
    def coreset(self) -> list[tuple[int, dict[str, Any]]]:
        return [
            (step, {name: value for name, value in logs.items() if name.startswith("coreset/")})
            for step, logs in self.logs
            if "coreset/version" in logs
        ]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store")


class Costly(Publisher):
    """Publishes versions that say what they cost."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        draft = make_draft(self.store, f"refresh-{self.store.next_version()}")
        cost = Cost(cost=50.0, cost_in_all=100.0, training_tokens=2000.0)
        info = CheckpointInfo(step=state.global_step)
        self.store.commit(dataclasses.replace(draft, checkpoint=info, cost=cost))


def test_the_trainers_log_has_version_value_churn_and_cost(store: Store, tmp_path: Path) -> None:
    seen = Seen()
    train(tmp_path / "run", seen, CoresetCallback(store.paths.root), Costly(store),
          kind=CoresetTrainer)  # fmt: skip
    (first, second, third) = seen.coreset
    assert first == (0, {"coreset/version": 0})
    assert (second[0], second[1]["coreset/version"], second[1]["coreset/step"]) == (12, 1, 12)
    assert second[1]["coreset/rows"] == N // 3
    overlap = store.header(2).stats.overlap_with_parent
    assert overlap is not None
    assert third == (24, {
        "coreset/version": 2, "coreset/step": 24, "coreset/rows": N // 3, "coreset/samples": N,
        "coreset/measured_share": 0.5, "coreset/value": 1.2, "coreset/value_kept": 0.5,
        "coreset/churn": overlap.churn, "coreset/cost_tokens": 100.0, "coreset/cost_share": 0.05,
    })  # fmt: skip


def test_the_callback_alone_logs_with_the_trainer_it_is_given(store: Store, tmp_path: Path) -> None:
    seen, callback = Seen(), CoresetCallback(store.paths.root)

    class Telling(Trainer):  # type: ignore[misc]
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            callback.log_to(self)

    train(tmp_path / "run", seen, callback, Publisher(store), kind=Telling)
    assert [logs["coreset/version"] for _, logs in seen.coreset] == [0, 1, 2]
    alone = Seen()
    train(tmp_path / "alone", alone, CoresetCallback(store.paths.root))
    assert alone.coreset == []


def test_a_version_within_an_epoch_leaves_the_trainers_own_log_as_it_is(
    store: Store, tmp_path: Path
) -> None:
    """At the step at which both are due."""
    settings: dict[str, Any] = {"num_train_epochs": 1, "logging_strategy": "steps",
                                "logging_steps": 5}  # fmt: skip
    stock = Seen()
    train(tmp_path / "stock", stock, kind=CoresetTrainer, **settings)
    seen, callback = Seen(), CoresetCallback(store.paths.root, follow="step", check_steps=1)
    train(tmp_path / "run", seen, callback, Publisher(store, steps=(4,)), kind=CoresetTrainer,
          **settings)  # fmt: skip
    assert [step for step, logs in seen.logs if "loss" in logs] == [5, 10]
    assert [step for step, logs in stock.logs if "loss" in logs] == [5, 10]
    assert [(step, logs["coreset/version"]) for step, logs in seen.coreset] == [(0, 0), (5, 1)]


def test_a_resumed_run_keeps_its_version_log(store: Store, tmp_path: Path) -> None:
    callback = CoresetCallback(store.paths.root)
    settings: dict[str, Any] = {"save_strategy": "epoch"}
    train(tmp_path / "run", callback, Publisher(store), kind=CoresetTrainer,
          **(settings | {"num_train_epochs": 2}))  # fmt: skip
    trainer, _ = train(tmp_path / "run", CoresetCallback(store.paths.root), kind=CoresetTrainer,
                       resume=True, **settings)  # fmt: skip
    versions = [e["coreset_version"] for e in trainer.state.log_history if "coreset_version" in e]
    assert versions == [0, 1, 2]


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
def test_the_first_epoch_says_what_it_trains_on(
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    level: int,
) -> None:
    store.commit(make_draft(store, "first"))
    with caplog.at_level(level, logger="gracekit.training"):
        train(tmp_path / "run", CoresetCallback(store.paths.root))
    text = (
        f"epoch 1 trains on coreset version 1 (step 100): the coreset's 8 of {NUM_ROWS} rows, "
        f"{NUM_ROWS} draws an epoch; rows count alike in the loss"
    )
    shown = [line for line in capsys.readouterr().err.splitlines() if "trains on" in line]
    logged = [r.message for r in caplog.records if "trains on" in r.message]
    assert shown == ([f"gracekit: {text}"] if level == logging.WARNING else [])
    assert logged[:1] == ([] if level == logging.WARNING else [text])


@pytest.mark.formats
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="not installed")
def test_tensorboard_shows_it(store: Store, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "run", CoresetCallback(store.paths.root), Costly(store), kind=CoresetTrainer,
          report_to="tensorboard")  # fmt: skip
    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events))
    found.Reload()
    for name, values in {"version": [0, 1, 2], "cost_share": [0.05, 0.05]}.items():
        shown = [point.value for point in found.Scalars(f"train/coreset/{name}")]
        assert shown == pytest.approx(values)


def test_what_an_epoch_trains_on_can_be_silenced(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.commit(make_draft(store, "first"))
    announcer = logging.getLogger("gracekit.training.epochs")
    announcer.setLevel(logging.WARNING)
    try:
        train(tmp_path / "run", CoresetCallback(store.paths.root))
    finally:
        announcer.setLevel(logging.NOTSET)
    assert "trains on" not in capsys.readouterr().err
