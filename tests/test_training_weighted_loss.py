"""Weights in the loss: the expected gradient over all draws is the pool's, in a real Trainer."""

from __future__ import annotations

import functools
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    DataCollatorWithFlattening,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
)

from gracekit.errors import RecipeError
from gracekit.store import StorePaths, newest_run, read_uses
from gracekit.training import (
    Coreset,
    CoresetCallback,
    CoresetTrainerMixin,
    Drawn,
    WeighedDataset,
    WeighingCollator,
)
from gracekit.training.loss import weighted_loss
from gracekit.training.weighted_data import BATCH_KEY
from tests.patience import LAST_RESORT_S
from tests.weighted_training import (
    DRAWS,
    NUM_TARGETS,
    TOKENS_PER_ROW,
    WEIGHTS,
    Gradients,
    WeighedTrainer,
    all_draws,
    arguments,
    expected,
    gradient_of,
    make_model,
    pad,
    part_of,
    pool,
    pool_gradient,
    publish,
    steps,
)

FLATTEN = DataCollatorWithFlattening()
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
"""For what is computed in float64."""
AVERAGES = ("tokens", "samples")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("weighted")
    return {
        average: publish(root / average / "store", loss=average, tokens_per_row=TOKENS_PER_ROW)
        for average in AVERAGES
    }


@pytest.fixture(scope="module")
def truth() -> dict[str, torch.Tensor]:
    return {average: pool_gradient(make_model(), average) for average in AVERAGES}


# --- the loss ---


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(2, 6), min_size=1, max_size=4),
    st.sampled_from(AVERAGES),
    st.booleans(),
    st.sampled_from([0.0, 0.1]),
    st.integers(0, 99),
)
def test_the_loss_is_what_torch_makes_of_each_row(
    lengths: list[int], average: Any, joined: bool, smoothing: float, seed: int
) -> None:
    torch.manual_seed(seed)
    vocabulary, width = 7, max(lengths)
    logits = torch.randn(len(lengths), width, vocabulary, dtype=torch.float64)
    labels = torch.randint(0, vocabulary, (len(lengths), width))
    weights = torch.rand(len(lengths), dtype=torch.float64) + 0.1
    for row, length in enumerate(lengths):
        labels[row, length:] = -100
    labels[torch.rand(labels.shape) < 0.2] = -100
    labels[:, 0] = -100
    plain = logits.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(lengths):
        kept = labels[row, 1:length] != -100
        part = torch.nn.functional.cross_entropy(
            plain[row, : length - 1],
            labels[row, 1:length],
            reduction="sum",
            label_smoothing=smoothing,
        )
        total = total + weights[row] * (
            part / kept.sum().clamp(min=1) if average == "samples" else part
        )
    (total / 5).backward()  # type: ignore[no-untyped-call]

    given_logits = logits.clone().requires_grad_()
    inputs: list[Any] = [given_logits, labels]
    if joined:
        flat = [(given_logits[i, :n], labels[i, :n]) for i, n in enumerate(lengths)]
        inputs = [torch.cat(parts)[None] for parts in zip(*flat, strict=True)]
    loss = weighted_loss(
        inputs[0],
        inputs[1],
        weights,
        average=average,
        denominator=5.0,
        label_smoothing=smoothing,
        lengths=lengths if joined else None,
    )
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss.detach(), total.detach() / 5, **EXACT)
    torch.testing.assert_close(given_logits.grad, plain.grad, **EXACT)


def test_in_chunks_and_in_half_precision_the_loss_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 8, 16).bfloat16().requires_grad_()
    labels = torch.randint(0, 16, (3, 8))
    weights = [0.5, 1.0, 2.0]
    whole = weighted_loss(logits, labels, weights)
    (gradient,) = torch.autograd.grad(whole, logits)
    monkeypatch.setattr("gracekit.training.loss._CHUNK", 50)
    again = weighted_loss(logits, labels, weights)
    (gradient_again,) = torch.autograd.grad(again, logits)
    assert whole.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    assert whole == again and torch.equal(gradient, gradient_again)
    exact = weighted_loss(logits.double(), labels, weights)
    assert float(whole.detach()) == pytest.approx(float(exact.detach()), rel=1e-6)


def test_without_a_denominator_the_batch_is_the_step() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    labels = torch.randint(0, 7, (2, 5))
    own = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    for average in AVERAGES:  # rows of the same length: the two averages are the same
        torch.testing.assert_close(weighted_loss(logits, labels, [1, 1], average=average), own)  # type: ignore[arg-type]
    nothing = weighted_loss(logits, torch.full_like(labels, -100), [1.0, 2.0])
    assert float(nothing) == 0


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("collate", [pad, FLATTEN], ids=["padded", "joined"])
def test_the_expected_gradient_of_a_plain_loop_is_the_pools(
    average: Any, collate: Any, truth: dict[str, torch.Tensor]
) -> None:
    model, dataset = make_model(), WeighedDataset(pool())
    gradients = []
    for draw in DRAWS:
        batch = WeighingCollator(collate)(
            dataset.__getitems__([Drawn(i, WEIGHTS[i]) for i in draw])
        )
        rows, labels = batch.pop(BATCH_KEY), batch.pop("labels")
        loss = weighted_loss(
            model(**batch, use_cache=False).logits,
            labels,
            rows.weights,
            average=average,
            lengths=rows.lengths,
            denominator=len(rows) * (TOKENS_PER_ROW if average == "tokens" else 1),
        )
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.append(gradient_of(model))
        model.zero_grad()
    torch.testing.assert_close(expected(gradients), truth[average], **EXACT)
    torch.testing.assert_close(
        gradients[1],
        sum(
            WEIGHTS[i]
            * part_of(model, pool()[i])
            / (4 * (TOKENS_PER_ROW if average == "tokens" else NUM_TARGETS[i]))
            for i in DRAWS[1]
        ),
        **EXACT,
    )


# --- the data ---


def test_weights_go_through_datasets_workers_and_pickles() -> None:
    drawn = pickle.loads(pickle.dumps(Drawn(3, 0.5, 7)))
    assert (drawn, drawn.weight, drawn.version) == (3, 0.5, 7)
    for dataset in (WeighedDataset(pool()), WeighedDataset(datasets.Dataset.from_list(pool()))):
        assert len(dataset) == 5 and dataset[2] == pool()[2]
        assert dataset[drawn].item == pool()[3] and dataset[drawn].drawn is drawn
        loader: Any = torch.utils.data.DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=2,
            sampler=[Drawn(4, 0.25, 1), Drawn(1, 4.0, 1)],
            collate_fn=WeighingCollator(pad),
            num_workers=1,
            multiprocessing_context="fork",
        )
        (batch,) = loader
        assert (batch[BATCH_KEY].weights, batch[BATCH_KEY].versions) == ((0.25, 4.0), (1, 1))
        assert batch["input_ids"][0, :7].tolist() == pool()[4]["input_ids"]


def test_the_collator_says_what_it_cannot_weigh() -> None:
    fetched = WeighedDataset(pool()).__getitems__([Drawn(0), Drawn(1)])
    assert WeighingCollator(FLATTEN)(fetched)[BATCH_KEY].lengths == (3, 9)
    assert BATCH_KEY not in WeighingCollator(pad)(pool())
    assert WeighingCollator(len)(fetched) == 2
    for collator, message in (
        (lambda items: {"x": 1}, "no labels"),
        (lambda items: {"labels": torch.zeros(1, 5)}, "which are whose cannot be told"),
    ):
        assert message in WeighingCollator(collator)(fetched)[BATCH_KEY].problem
    packed = WeighedDataset([{**row, "seq_lengths": [1, 2]} for row in pool()])
    assert "packing" in WeighingCollator(pad)(packed.__getitems__([Drawn(0)]))[BATCH_KEY].problem


# --- in a Trainer ---


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("collator", [pad, FLATTEN], ids=["padded", "joined"])
def test_the_expected_gradient_of_a_trainer_is_the_pools(
    stores: dict[str, Path], truth: dict[str, torch.Tensor], average: str, collator: Any
) -> None:
    gradients = steps(stores[average], collator=collator)
    torch.testing.assert_close(expected(gradients), truth[average], **EXACT)
    assert not torch.allclose(gradients[0], gradients[1], rtol=0.01)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 4},
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1},
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1, "accepts": False},
        {"dataloader_num_workers": 2},
        {"dataset": datasets.Dataset.from_list([{**row, "extra": "x"} for row in pool()])},
    ],
    ids=["one batch", "four micro-batches", "no loss kwargs", "workers", "datasets"],
)
def test_however_the_step_is_cut_its_gradient_is_the_same(
    stores: dict[str, Path], truth: dict[str, torch.Tensor], options: dict[str, Any]
) -> None:
    model = make_model()
    if not options.pop("accepts", True):
        model.accepts_loss_kwargs = False
    gradients = steps(stores["samples"], model=model, loss="tokens", **options)
    torch.testing.assert_close(expected(gradients), truth["tokens"], **EXACT)


@pytest.mark.parametrize("accepts", [True, False], ids=["loss kwargs", "no loss kwargs"])
def test_a_last_step_with_fewer_micro_batches(stores: dict[str, Path], accepts: bool) -> None:
    model = make_model()
    model.accepts_loss_kwargs = accepts
    parts = torch.stack([part_of(model, row) for row in pool()])
    gradients = steps(stores["tokens"], model=model, gradient_accumulation_steps=3)
    drawn = all_draws()
    assert len(gradients) == 4  # of 6, 6, 6 and 2 rows
    for index, found in enumerate(gradients):
        rows = drawn[6 * index : 6 * index + 6]
        wanted = sum(row.weight * parts[row] for row in rows) / (len(rows) * TOKENS_PER_ROW)
        torch.testing.assert_close(found, wanted, **EXACT)


def of_the_coreset(root: Path) -> torch.Tensor:
    """The gradient of a step that has each row of the version once."""
    model, coreset = make_model(), Coreset.load(root)
    rows = [pool()[row] for row in coreset.rows]
    parts = torch.stack([part_of(model, row) for row in rows])
    weights = torch.tensor(coreset.weights.astype(float))
    return weights @ parts / (len(rows) * TOKENS_PER_ROW)


def test_what_the_sampler_draws_reaches_the_loss(stores: dict[str, Path], tmp_path: Path) -> None:
    recorded = Gradients()
    ids = [f"id-{row:03d}" for row in range(5)]
    modes: tuple[Any, ...] = ("cycle", "weighted")
    for mode in modes:
        callback = CoresetCallback(stores["tokens"], sample_ids=ids, num_samples=4, mode=mode)
        WeighedTrainer(
            model=make_model(),
            args=arguments(tmp_path / mode, num_train_epochs=2),
            data_collator=pad,
            train_dataset=pool(),
            callbacks=[callback, recorded],
        ).train()
    (first, second, copies, _), truth = recorded.of_steps, of_the_coreset(stores["tokens"])
    torch.testing.assert_close(first, truth, **EXACT)
    torch.testing.assert_close(second, truth, **EXACT)
    assert not torch.allclose(copies, truth, rtol=1e-3)  # whole copies, which weigh 1 each


def test_the_loop_of_the_docs(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the sampler's own draws, and with all draws in turn."""
    text = (Path(__file__).parent.parent / "docs/training.md").read_text(encoding="utf-8")
    setup, loop = (part.split("```")[0] for part in text.split("```python\n")[-2:])
    (tmp_path / "gracekit-store").symlink_to(stores["tokens"])
    monkeypatch.chdir(tmp_path)
    model = make_model()
    recorded: list[torch.Tensor] = []

    class Optimizer:
        def step(self) -> None:
            recorded.append(gradient_of(model))

        def zero_grad(self) -> None:
            model.zero_grad()

    loader: Any = torch.utils.data.DataLoader(
        WeighedDataset(pool()),  # type: ignore[arg-type]
        batch_size=4,
        sampler=all_draws(),
        collate_fn=WeighingCollator(pad),
    )
    dataset = [{"input_ids": [1, 1], "labels": [1, 1]} for _ in range(10)]
    for index, row in enumerate(pool()):
        dataset[2 * index] = row  # where the store's samples are in the data
    names: dict[str, Any] = {
        "dataset": dataset,
        "collate": pad,
        "model": model,
        "optimizer": Optimizer(),
    }
    exec(setup, names)
    exec(loop, names)
    assert len(recorded) == 2  # of two passes over the coreset, and of two rows
    torch.testing.assert_close(recorded[0], of_the_coreset(stores["tokens"]), **EXACT)
    recorded.clear()
    exec(loop, names | {"loader": loader})
    torch.testing.assert_close(expected(recorded), pool_gradient(model, "tokens"), **EXACT)


def test_label_smoothing_is_weighed(stores: dict[str, Path]) -> None:
    gradients = steps(stores["tokens"], label_smoothing_factor=0.2)
    truth = pool_gradient(make_model(), "tokens", smoothing=0.2)
    torch.testing.assert_close(expected(gradients), truth, **EXACT)


@pytest.mark.parametrize("average", AVERAGES)
def test_two_ranks(
    stores: dict[str, Path], truth: dict[str, torch.Tensor], tmp_path: Path, average: str
) -> None:
    found = two_ranks(stores["tokens"], tmp_path)
    for across in (True, False):
        for rank in found:
            gradients = [torch.tensor(g, dtype=torch.float64) for g in rank[f"{average}, {across}"]]
            torch.testing.assert_close(expected(gradients), truth[average], **EXACT)
    # What rank 0 logged has the losses that either of them saw, last at the last draw of a row.
    found_losses = read_uses(newest_run(StorePaths(stores["tokens"]))[len(DRAWS)]).trained
    last = [max(step for step, rows in enumerate(DRAWS) if row in rows) for row in range(5)]
    assert found_losses.step.tolist() == last
    model = make_model()
    for row, loss in zip(pool(), found_losses.loss, strict=True):
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        own = torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"][1:]))
        assert float(loss) == pytest.approx(float(own.detach()), rel=1e-5)


_RANKS: list[Any] = []


def two_ranks(root: Path, out: Path) -> list[Any]:
    """The gradients that both ranks had, from one job for both averages."""
    if not _RANKS:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node=2",
                "-m",
                "tests.weighted_training",
                str(root),
                str(out),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            timeout=LAST_RESORT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        _RANKS.extend(json.loads((out / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    return _RANKS


def test_lora(stores: dict[str, Path]) -> None:
    def adapted() -> Any:
        torch.manual_seed(1)
        config = LoraConfig(
            r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False
        )
        return get_peft_model(make_model(), config).double()

    gradients = steps(stores["tokens"], model=adapted())
    torch.testing.assert_close(expected(gradients), pool_gradient(adapted(), "tokens"), **EXACT)


def test_the_load_balancing_loss_of_experts_is_added_as_the_model_does(
    stores: dict[str, Path],
) -> None:
    def experts() -> Any:
        torch.manual_seed(0)
        config = MixtralConfig(
            vocab_size=32,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=2,
            pad_token_id=0,
            output_router_logits=True,
            router_aux_loss_coef=0.5,
        )
        return MixtralForCausalLM(config)

    # Weights of one and a denominator that is the tokens of the step: the trainer's own loss
    script = [Drawn(i, 1.0, 1) for i in DRAWS[0]]
    num_tokens = float(NUM_TARGETS[DRAWS[0]].sum())
    root = stores["tokens"].parent.parent / "experts" / "store"
    publish(root, tokens_per_row=num_tokens / 4)
    weighed = steps(root, model=experts(), script=script)
    own = steps(root, model=experts(), script=script, kind=LogsOnly)
    torch.testing.assert_close(weighed[0], own[0], rtol=1e-5, atol=1e-8)


class LogsOnly(WeighedTrainer):
    """Draws by the callback, with the loss of the trainer itself."""

    def _weighing_callback(self) -> None:
        return None


def test_weights_of_one_give_the_trainers_gradient_up_to_the_denominator(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    alike = all_draws([1.0] * 5)
    own = steps(stores["tokens"], script=alike, kind=LogsOnly)
    weighed = steps(stores["tokens"], script=alike)
    for draw, one, other in zip(DRAWS, own, weighed, strict=True):
        ratio = NUM_TARGETS[draw].sum() / (4 * TOKENS_PER_ROW)
        # The model's own loss is computed in float32.
        torch.testing.assert_close(other, one * ratio, rtol=1e-4, atol=1e-6)
    # Without a known denominator it is that of the step: here the trainer's own, to the bit.
    unknown = publish(tmp_path / "unknown" / "store")
    assert all(map(torch.equal, own, steps(unknown, script=alike)))
    # And with weights Σ weight · tokens, so that the scale of the weights does not matter.
    doubled = steps(unknown, script=all_draws(2 * WEIGHTS))
    for draw, found in zip(DRAWS, doubled, strict=True):
        model = make_model()
        parts = sum(WEIGHTS[i] * part_of(model, pool()[i]) for i in draw)
        torch.testing.assert_close(found, parts / (WEIGHTS * NUM_TARGETS)[draw].sum(), **EXACT)


def test_evaluation_is_not_weighed(stores: dict[str, Path], tmp_path: Path) -> None:
    losses = []
    for kind in (Trainer, WeighedTrainer):
        trainer = kind(
            model=make_model(),
            args=arguments(tmp_path, eval_strategy="epoch"),
            eval_dataset=pool(),
            data_collator=pad,
            train_dataset=pool(),
            callbacks=[CoresetCallback(stores["tokens"])],
        )
        trainer.train()
        losses += [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
        losses.append(trainer.evaluate()["eval_loss"])
    assert len(losses) == 4 and len(set(losses)) == 1


# --- what cannot be weighed ---


def own_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    logits = outputs["logits"][:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())


class OwnTrainer(Trainer):  # type: ignore[misc]
    """A user's trainer."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return own_loss(model(**inputs), inputs["labels"])


class OwnLossTrainer(WeighedTrainer):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, compute_loss_func=own_loss)


class OwnComputeLossTrainer(CoresetTrainerMixin, OwnTrainer):
    """Whose loss is made of the logits, whatever loss the model gives."""


def hiding(model: Any) -> Any:
    forward = model.forward

    @functools.wraps(forward)
    def without_logits(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        outputs["logits"] = None
        return outputs

    model.forward = without_logits
    return model


def of_its_own(model: Any) -> Any:
    model.loss_function = lambda logits, labels, **kwargs: logits.float().pow(2).mean()
    return model


def packs(examples: list[Any]) -> Any:
    """Joins examples so that nobody can tell whose the tokens are."""
    batch = FLATTEN(examples)
    return {name: batch[name][:, :4] for name in ("input_ids", "labels")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": OwnLossTrainer}, "the loss is the trainer's `compute_loss_func`"),
        ({"kind": OwnComputeLossTrainer}, "`compute_loss` makes a loss of its own"),
        ({"model": hiding(make_model())}, "the model's output has no logits"),
        ({"model": of_its_own(make_model())}, "the model's loss is its own"),
        ({"collator": packs}, "which are whose cannot be told"),
    ],
    ids=["own loss", "own compute_loss", "no logits", "own model loss", "cut"],
)
def test_what_cannot_be_weighed_goes_on_and_says_so_once(
    stores: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    message: str,
) -> None:
    with caplog.at_level(logging.WARNING, logger="gracekit.training"):
        gradients = steps(stores["tokens"], **options)
    assert len(gradients) == len(DRAWS) and all(bool(g.any()) for g in gradients)
    (warning,) = [r.message for r in caplog.records if "do not reach the loss" in r.message]
    assert message in warning and "weights: none" in warning
    own = steps(stores["tokens"], **options, script=all_draws([1.0] * 5))
    assert all(map(torch.equal, gradients, own))


@pytest.mark.parametrize("weigh", [True, False])
def test_without_the_mixin_one_line_says_what_is_lost(
    stores: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, weigh: bool
) -> None:
    callback = CoresetCallback(stores["tokens"], weigh_loss=weigh)
    trainer = Trainer(
        model=make_model(),
        args=arguments(tmp_path, num_train_epochs=2),
        data_collator=pad,
        train_dataset=pool() * 2,
        callbacks=[callback],
    )
    trainer.train()
    said = [r.message for r in caplog.records if "CoresetTrainerMixin" in r.message]
    assert len(said) == (1 if weigh else 0)


def test_a_wrong_average_is_an_error() -> None:
    with pytest.raises(RecipeError, match="loss should be one of tokens, samples; found 'rows'"):
        CoresetCallback("store", loss="rows")  # type: ignore[arg-type]
