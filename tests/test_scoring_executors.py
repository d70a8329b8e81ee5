"""Measuring rows: shards, memory, values that are not finite, limits."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gracekit.errors import MeasureError
from gracekit.model_pass import token_budget as memory
from gracekit.model_pass.executors import ENOUGH_TO_JUDGE, LocalExecutor
from gracekit.model_pass.token_budget import TokenBudget, is_out_of_memory
from gracekit.progress import Progress
from gracekit.protocols import Executor
from gracekit.recipe import ScoringSection
from gracekit.types import Bool, Int32, Int64, Measurement, Rows

VOCABULARY = 89
RARE = 0
"""A token that only chosen samples hold; also what padding is usually made of."""


class Tokens:
    """Samples in memory."""

    def __init__(self, samples: list[tuple[Int32, Bool]]) -> None:
        self.samples = samples

    @property
    def lengths(self) -> Int64:
        return np.array([len(ids) for ids, _ in self.samples], np.int64)

    def take(self, rows: Rows) -> list[tuple[Int32, Bool]]:
        return [self.samples[row] for row in rows]


def make_tokens(n: int = 40, seed: int = 0) -> Tokens:
    random = np.random.default_rng(seed)
    samples = []
    for length in random.integers(4, 25, n):
        mask = np.arange(length) >= length // 2
        samples.append((random.integers(1, VOCABULARY, length).astype(np.int32), mask))
    return Tokens(samples)


def make_model() -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def section(**settings: Any) -> ScoringSection:
    return ScoringSection(**{"batch_tokens": 128, "shard_rows": 16, **settings})


def measure(
    model: Any, tokens: Tokens, rows: Rows | None = None, **settings: Any
) -> list[Measurement]:
    chosen = np.arange(len(tokens.samples)) if rows is None else rows
    return list(LocalExecutor(model, tokens, section(**settings)).measure(chosen))


def by_row(parts: list[Measurement]) -> Measurement:
    whole = Measurement.concatenate(parts)
    return whole.take(np.argsort(whole.rows))


def assert_same(a: Measurement, b: Measurement, relative: float) -> None:
    np.testing.assert_array_equal(a.rows, b.rows)
    for name, score in a.scores.items():
        np.testing.assert_allclose(score, b.scores[name], rtol=relative)
    np.testing.assert_allclose(a.features, b.features, rtol=relative, atol=2e-3 if relative else 0)


def test_shards_hold_exactly_the_rows_longest_first() -> None:
    tokens, rows = make_tokens(), np.array([7, 3, 30, 12, 39, 0, 5])
    executor = LocalExecutor(make_model(), tokens, section(shard_rows=3))
    assert isinstance(executor, Executor)
    parts = list(executor.measure(rows))
    assert [len(p.rows) for p in parts] == [3, 3, 1]
    measured = np.concatenate([p.rows for p in parts])
    assert sorted(measured.tolist()) == sorted(rows.tolist())
    assert (np.diff(tokens.lengths[measured]) <= 0).all()
    for part in parts:
        assert list(part.scores) == ["gradient-norm", "loss"]
        assert all(score.dtype == np.float32 for score in part.scores.values())
        assert part.features.shape == (len(part.rows), 16)
        assert part.features.dtype == np.float16
        assert part.valid.all()


def test_same_call_gives_the_same_bits_and_other_cuts_the_same_numbers() -> None:
    model, tokens = make_model(), make_tokens()
    first, again = by_row(measure(model, tokens)), by_row(measure(model, tokens))
    assert_same(first, again, 0)
    other = by_row(measure(model, tokens, shard_rows=5, batch_tokens=64))
    assert_same(first, other, 1e-4)
    resumed = by_row(
        measure(model, tokens, np.arange(11)) + measure(model, tokens, np.arange(11, 40))
    )
    assert_same(first, resumed, 1e-4)


def test_no_rows_no_shards() -> None:
    assert measure(make_model(), make_tokens(), np.empty(0, np.int64)) == []


def test_rows_without_targets_are_nan_and_never_run() -> None:
    model, tokens = make_model(), make_tokens(6)
    for row in (1, 4):
        tokens.samples[row][1][:] = False
    tokens.samples[4][1][0] = True  # nothing comes before it that could predict it
    found = by_row(measure(model, tokens))
    np.testing.assert_array_equal(found.valid, [True, False, True, True, False, True])
    model.forward = None
    alone = by_row(measure(model, tokens, np.array([1, 4])))
    assert alone.features.shape == (2, 16)
    assert np.isnan(alone.features).all()
    assert all(np.isnan(score).all() for score in alone.scores.values())


def test_one_ruined_embedding_ruins_only_the_rows_that_hold_it() -> None:
    model, tokens = make_model(), make_tokens()
    ruined = [0, 9, 10, 23]
    clean = by_row(measure(model, tokens))
    for row in ruined:
        tokens.samples[row][0][-2 if row % 2 else 1] = RARE
    tokens.samples[5][0][-1] = RARE  # predicted, and predicts nothing
    with torch.no_grad():
        model.get_input_embeddings().weight[RARE] = float("nan")
    for shard_rows in (16, 1):
        found = by_row(measure(model, tokens, shard_rows=shard_rows))
        assert np.flatnonzero(~found.valid).tolist() == ruined
        kept = found.valid & (found.rows != 5)
        assert_same(found.take(kept), clean.take(kept), 1e-4)


def test_ruined_weights_stop_the_run_at_the_first_shard() -> None:
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(MeasureError, match=r"layers\.1\.mlp\.up_proj.*earlier checkpoint"):
        measure(model, make_tokens(3))


def test_overflow_everywhere_stops_the_run_once_it_is_sure() -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(3e38)
    few = measure(model, make_tokens(ENOUGH_TO_JUDGE - 1))
    assert not by_row(few).valid.any()
    with pytest.raises(MeasureError, match="dtype: float32"):
        measure(model, make_tokens(ENOUGH_TO_JUDGE))


class SmallMemory:
    """Makes a real model fail above a number of padded tokens, and counts its batches."""

    def __init__(self, model: Any, most: int, error: BaseException) -> None:
        self.most, self.error, self.sizes = most, error, list[int]()
        model.model.layers[1].mlp.register_forward_pre_hook(self._check)

    def _check(self, _module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.sizes.append(args[0].shape[0] * args[0].shape[1])
        if self.sizes[-1] > self.most:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_batches_shrink_when_memory_runs_out(error: BaseException) -> None:
    tokens = make_tokens()
    expected = by_row(measure(make_model(), tokens))
    model = make_model()
    small = SmallMemory(model, 60, error)
    found = by_row(measure(model, tokens))
    assert_same(expected, found, 1e-4)
    assert 1 <= sum(size > 60 for size in small.sizes) <= 2


def test_larger_batches_are_tried_again_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "FIRST_PATIENCE", 2)
    model = make_model()
    small = SmallMemory(model, 60, MemoryError())
    measure(model, make_tokens(300))
    failures = [i for i, size in enumerate(small.sizes) if size > 60]
    assert len(failures) >= 3
    gaps = np.diff(failures)
    assert gaps[-1] > gaps[0]


def test_budget_halves_and_comes_back() -> None:
    budget = TokenBudget(1000)
    budget.failed(800)
    assert budget.tokens == 400
    for _ in range(10_000):
        budget.succeeded()
    assert budget.tokens == 1000


def test_single_sample_that_does_not_fit_is_an_error() -> None:
    model, tokens = make_model(), make_tokens()
    SmallMemory(model, 10, MemoryError())
    with pytest.raises(MeasureError, match=r"row \d+ alone \(24 tokens\).*data\.max_length"):
        measure(model, tokens)


def test_other_errors_pass_through_and_leave_the_model_clean() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    for error in (RuntimeError("shapes do not match"), KeyboardInterrupt()):
        model = make_model().train()
        SmallMemory(model, 0, error)
        with pytest.raises(type(error)):
            measure(model, make_tokens())
        assert all(p.requires_grad for p in model.parameters())
        assert model.training
        assert not model.model.embed_tokens._forward_hooks
        linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        assert not any(m._forward_hooks for m in linears)


def test_abandoned_run_leaves_the_model_clean() -> None:
    model = make_model()
    shards = LocalExecutor(model, make_tokens(), section()).measure(np.arange(40))
    next(iter(shards))
    assert any(m._forward_hooks for m in model.modules())
    shards.close()  # type: ignore[attr-defined]
    assert not any(m._forward_hooks for m in model.modules())


def test_unknown_token_ids_are_refused() -> None:
    tokens = make_tokens()
    tokens.samples[5][0][2] = VOCABULARY
    with pytest.raises(MeasureError, match=r"token id 89.*knows 0 to 88.*tokenizer"):
        measure(make_model(), tokens)


def test_samples_longer_than_learned_positions_are_refused() -> None:
    config = transformers.GPT2Config(
        n_embd=16,
        n_layer=1,
        n_head=2,
        vocab_size=VOCABULARY,
        n_positions=20,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(MeasureError, match=r"24 tokens.*at most 20.*max_length: 20"):
        measure(model, make_tokens())


def test_threads_of_the_recipe_hold_during_the_run_only() -> None:
    torch.set_num_threads(1)
    executor = LocalExecutor(make_model(), make_tokens(), section(num_threads=2))
    for _ in executor.measure(np.arange(20)):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


class StopAfter(Progress):
    """Asks for a stop once so many batches are done."""

    def __init__(self, num_batches: int) -> None:
        self._left, self._stopped = num_batches, threading.Event()
        super().__init__(self._stopped)

    def advance(self, num_rows: int, num_tokens: int) -> None:
        super().advance(num_rows, num_tokens)
        self._left -= 1
        if self._left <= 0:
            self._stopped.set()


def test_a_stop_ends_a_big_shard_after_the_batch() -> None:
    tokens, rows = make_tokens(), np.arange(40)
    settings = section(shard_rows=1000, batch_tokens=64)
    whole = Measurement.concatenate(
        list(LocalExecutor(make_model(), tokens, settings).measure(rows))
    )
    progress = StopAfter(3)
    (part,) = LocalExecutor(make_model(), tokens, settings).measure(rows, progress)
    told = progress.to_json()
    assert 0 < len(part.rows) == told["num_done"] < told["num_planned"] == len(rows)
    expected = whole.take(np.array([np.flatnonzero(whole.rows == row)[0] for row in part.rows]))
    for name, score in part.scores.items():
        np.testing.assert_array_equal(score, expected.scores[name])
    np.testing.assert_array_equal(part.features, expected.features)
    assert list(LocalExecutor(make_model(), tokens, settings).measure(rows, progress)) == []
