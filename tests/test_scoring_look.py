"""Features of rows without their scores: the same as `measure` gives, and nothing run in vain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from gracekit.errors import MeasureError, RecipeError
from gracekit.model_pass.batches import TokenBatch
from gracekit.model_pass.executors import LocalExecutor
from gracekit.model_pass.features import HiddenMean
from gracekit.model_pass.layers import decoder_body, linear_layers, output_head
from gracekit.model_pass.model_pass import ModelPass
from gracekit.model_pass.readout import FullReadout, choose_readout
from gracekit.progress import Progress
from gracekit.protocols import Executor
from gracekit.recipe import ScoringSection
from gracekit.scores.meaning import features_read
from gracekit.types import Measurement
from tests.test_scoring_executors import Tokens
from tests.test_scoring_pass import capped_llama, make_samples, tiny

LENGTHS = (17, 5, 13, 9, 9, 5, 3, 12, 7, 2, 6)
READ: list[dict[str, Any]] = [
    {"features": "hidden-mean", "hidden_block": 0},
    {"features": "hidden-mean", "hidden_block": -2},
    {"features": "hidden-mean"},
    {"features": "hidden-mean", "feature_width": 16, "hidden_block": 1},
    {"features": "embedding-mean"},
    {"features": "embedding-mean", "feature_width": 16},
    {"features": "gradient-sketch", "sketch_side": 4},
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_executor(model: Any, **settings: Any) -> LocalExecutor:
    scoring = ScoringSection(**{"shard_rows": 4, "batch_tokens": 64, **settings})
    return LocalExecutor(model, Tokens(make_samples(LENGTHS)), scoring)


def whole(parts: Iterator[Measurement]) -> Measurement:
    measurement = Measurement.concatenate(list(parts))
    return measurement.take(np.argsort(measurement.rows))


def as_lora(model: Any) -> Any:
    """With an adapter that does something."""
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(model, config)


def block_linears(model: Any) -> dict[str, torch.nn.Module]:
    """The linear layers of the decoder blocks, in the order in which they are run."""
    return {layer.name: layer.module for layer in linear_layers(model) if layer.block >= 0}


@contextmanager
def run_modules(model: Any) -> Iterator[list[str]]:
    """Names of the decoder blocks' linear layers and the head, as they are run."""
    run: list[str] = []
    hooks = [
        module.register_forward_hook(lambda _module, _args, _output, name=name: run.append(name))
        for name, module in {**block_linears(model), "head": output_head(model)}.items()
    ]
    try:
        yield run
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("llama", settings) for settings in READ),
        *(
            (name, settings)
            for name in ("gpt2", "mixtral", "mamba2", "lora")
            for settings in (READ[0], READ[2])
        ),
        ("lora", READ[-1]),
    ],
    ids=str,
)
def test_features_are_those_of_measure(name: str, settings: dict[str, Any]) -> None:
    model = as_lora(tiny("llama")) if name == "lora" else tiny(name)
    executor, rows = make_executor(model, **settings), np.array([10, 0, 3, 4, 5, 8, 9, 1, 7])
    measured, looked = whole(executor.measure(rows)), whole(executor.look(rows))
    assert isinstance(executor, Executor)
    assert looked.scores == {}
    assert looked.valid.all()
    np.testing.assert_array_equal(looked.rows, measured.rows)
    assert looked.features.dtype == measured.features.dtype
    np.testing.assert_allclose(looked.features, measured.features, rtol=2e-3, atol=1e-4)
    again = whole(executor.look(rows))
    np.testing.assert_array_equal(again.features, looked.features)


@pytest.mark.parametrize("settings", READ[:3], ids=str)
def test_features_are_the_same_bits_where_no_backward_pass_follows(
    settings: dict[str, Any],
) -> None:
    executor = make_executor(tiny("llama"), scores=("loss",), importance="loss", **settings)
    rows = np.arange(len(LENGTHS))
    measured, looked = whole(executor.measure(rows)), whole(executor.look(rows))
    np.testing.assert_array_equal(measured.features, looked.features)


@pytest.mark.parametrize(
    ("settings", "last_block", "reads"),
    [(READ[0], 0, "blocks"), (READ[1], 1, "blocks"), (READ[2], 2, "states")],
)
@pytest.mark.parametrize("name", ["llama", "capped"])
def test_nothing_runs_behind_what_the_features_need(
    name: str, settings: dict[str, Any], last_block: int, reads: str
) -> None:
    model = tiny("llama") if name == "llama" else capped_llama(30.0)
    scoring = ScoringSection(**settings)
    assert features_read(scoring) == reads
    batch = TokenBatch.pack(make_samples(), torch.device("cpu"))
    split = not isinstance(choose_readout(model, batch), FullReadout)
    assert split == (name == "llama")
    with ModelPass(model, [HiddenMean(scoring)]) as opened:
        (first,) = opened.run(batch)  # this one also checks the readout, with logits of few tokens
        with run_modules(model) as run:
            (again,) = opened.run(batch)
    assert torch.equal(first, again)
    assert not again.requires_grad
    expected = [n for n in block_linears(model) if int(n.split(".")[1]) <= last_block]
    assert run == expected


def test_input_embeddings_run_no_block() -> None:
    model, scoring = tiny("llama"), ScoringSection(features="embedding-mean")
    assert features_read(scoring) == "tokens"
    samples = make_samples(LENGTHS)
    executor = LocalExecutor(model, Tokens(samples), scoring)
    with run_modules(model) as run:
        looked = whole(executor.look(np.arange(len(samples))))
    assert run == []
    table = model.get_input_embeddings().weight.detach().numpy()
    inputs = [ids[: np.flatnonzero(mask)[-1]] for ids, mask in samples]  # up to the last target
    expected = np.stack([table[np.asarray(ids)].mean(axis=0) for ids in inputs])
    np.testing.assert_allclose(looked.features, expected, rtol=2e-3, atol=1e-4)


def test_rows_without_targets_and_ruined_rows_are_invalid() -> None:
    model, samples = tiny("llama"), make_samples(LENGTHS)
    samples[4][1][:] = False
    samples[7][0][1] = 0
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = float("nan")
    executor = LocalExecutor(
        model, Tokens(samples), ScoringSection(features="hidden-mean", hidden_block=0)
    )
    looked = whole(executor.look(np.arange(len(samples))))
    assert np.flatnonzero(~looked.valid).tolist() == [4, 7]
    assert np.isnan(looked.features[[4, 7]]).all()


def test_a_block_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match="the model has blocks 0 to 2"):
        list(
            make_executor(tiny("llama"), features="hidden-mean", hidden_block=3).look(np.arange(2))
        )


def test_a_ruined_model_is_refused() -> None:
    model = tiny("llama")
    with torch.no_grad():
        body: Any = decoder_body(model)
        body.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(MeasureError, match="training has diverged"):
        list(make_executor(model, features="hidden-mean", hidden_block=0).look(np.arange(4)))


def test_memory_that_runs_out_makes_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    executor, rows = (
        make_executor(model, features="hidden-mean", hidden_block=0),
        np.arange(len(LENGTHS)),
    )
    expected = whole(executor.look(rows))
    body: Any = decoder_body(model)
    block = body.layers[0]
    plain = block.forward

    def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if hidden.shape[0] > 2:
            raise MemoryError
        return plain(hidden, *args, **kwargs)

    monkeypatch.setattr(block, "forward", forward)
    found = whole(executor.look(rows))
    np.testing.assert_allclose(found.features, expected.features, rtol=2e-3, atol=1e-4)
    assert not block._forward_hooks


def test_a_stop_cuts_the_shard_and_progress_tells_all_rows() -> None:
    executor, rows = (
        make_executor(tiny("llama"), features="hidden-mean", hidden_block=0),
        np.arange(len(LENGTHS)),
    )

    class StopsAtOnce(Progress):
        num_rows = 0

        def advance(self, num_rows: int, num_tokens: int) -> None:
            self.num_rows += num_rows

        @property
        def is_stopping(self) -> bool:
            return self.num_rows > 0

    progress = StopsAtOnce()
    looked = whole(executor.look(rows, progress))
    assert 0 < len(looked.rows) == progress.num_rows < len(rows)
