"""Batches: every sample once, within the budget, with little padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gracekit.model_pass.batches import (
    PADDING_SHARE,
    WORTH_RUNNING,
    TokenBatch,
    batch_stop,
    longest_first,
    num_positions,
)
from gracekit.recipe import DataSection, ScoringSection
from gracekit.samples import load_samples, tokenize
from gracekit.types import Bool, Int32, Int64
from tests.tiny import make_tokenizer

SHIPPED = Path(__file__).parent.parent / "data" / "train.jsonl"


def plan_batches(lengths: Int64, budget: int) -> list[slice]:
    """All batches over falling lengths, one after another."""
    batches = [slice(0, 0)]
    while batches[-1].stop < len(lengths):
        start = batches[-1].stop
        batches.append(slice(start, batch_stop(lengths, start, budget)))
    return batches[1:]


lengths_lists = st.lists(st.integers(1, 300), min_size=1, max_size=80)


@given(lengths_lists, st.integers(8, 600))
def test_every_sample_once_within_the_budget(lengths: list[int], budget: int) -> None:
    order = longest_first(np.array(lengths))
    falling = np.array(lengths)[order]
    covered: list[int] = []
    for batch in plan_batches(falling, budget):
        members = falling[batch]
        padded = int(members[0]) * len(members)
        assert padded <= budget or len(members) == 1
        padding = padded - int(members.sum())
        assert padding <= PADDING_SHARE * padded or padded <= WORTH_RUNNING * budget
        covered += range(batch.start, batch.stop)
    assert covered == list(range(len(lengths)))
    assert sorted(order.tolist()) == list(range(len(lengths)))


def realistic(kind: str) -> Int64:
    random = np.random.default_rng(3)
    lengths = {
        "chat": random.lognormal(5.3, 0.7, 2000),
        "short answers": random.lognormal(4.0, 0.4, 2000),
        "two sources": np.concatenate(
            [random.lognormal(3.5, 0.3, 1500), random.lognormal(6.5, 0.3, 500)]
        ),
        "few": random.lognormal(5.3, 0.7, 256),
    }[kind]
    clipped: Int64 = np.clip(lengths, 8, 1024).astype(np.int64)
    return clipped


@pytest.mark.parametrize("kind", ["chat", "short answers", "two sources", "few"])
def test_little_padding_and_few_batches_on_realistic_lengths(kind: str) -> None:
    lengths = realistic(kind)
    falling = lengths[longest_first(lengths)]
    batches = plan_batches(falling, 4096)
    padded = sum(int(falling[b.start]) * (b.stop - b.start) for b in batches)
    assert 1 - falling.sum() / padded <= 0.05
    assert len(batches) <= 2.5 * falling.sum() / 4096 + 2


def test_little_padding_on_the_shipped_data(tmp_path: Path) -> None:
    """Shard by shard, as the executor goes, with the defaults of a recipe."""
    data, scoring = DataSection(path=str(SHIPPED)), ScoringSection()
    tokens = tokenize(load_samples(data), make_tokenizer(), data, tmp_path)
    rows = np.flatnonzero(tokens.num_targets)
    rows = rows[longest_first(tokens.lengths[rows])]
    num_real = num_padded = 0
    for start in range(0, len(rows), scoring.shard_rows):
        samples = tokens.take(rows[start : start + scoring.shard_rows])
        lengths = np.sort([*map(num_positions, samples)])[::-1]
        batches = plan_batches(lengths, scoring.batch_tokens)
        num_real += int(lengths.sum())
        num_padded += sum(int(lengths[b.start]) * (b.stop - b.start) for b in batches)
    assert len(rows) > 3000
    assert 1 - num_real / num_padded <= 0.02


def test_equal_lengths_fill_the_budget() -> None:
    batches = plan_batches(np.full(10, 64), 256)
    assert [b.stop - b.start for b in batches] == [4, 4, 2]


@st.composite
def sample_lists(draw: st.DrawFn) -> list[tuple[Int32, Bool]]:
    samples = []
    for length in draw(st.lists(st.integers(2, 12), min_size=1, max_size=6)):
        mask = np.array(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
        mask[draw(st.integers(1, length - 1))] = True
        ids = np.array(draw(st.lists(st.integers(0, 50), min_size=length, max_size=length)))
        samples.append((ids.astype(np.int32), mask))
    return samples


@given(sample_lists())
def test_packed_batch_against_a_loop(samples: list[tuple[Int32, Bool]]) -> None:
    batch = TokenBatch.pack(samples, torch.device("cpu"))
    expected = []
    for i, (ids, mask) in enumerate(samples):
        length = max(t for t in range(len(ids)) if mask[t])
        assert batch.input_ids[i, :length].tolist() == ids[:length].tolist()
        assert set(batch.input_ids[i, length:].tolist()) <= {int(ids[length - 1])}
        assert batch.attention_mask[i].tolist() == [1] * length + [0] * (
            batch.input_ids.shape[1] - length
        )
        targets = [(i, t - 1, int(ids[t])) for t in range(1, len(ids)) if mask[t]]
        assert batch.num_targets[i] == len(targets)
        expected += targets
    found = zip(
        batch.target_sample.tolist(),
        batch.target_position.tolist(),
        batch.target_ids.tolist(),
        strict=True,
    )
    assert list(found) == expected
    assert batch.zeros(3).shape == (len(samples), 3)


@pytest.mark.gpu
def test_a_batch_is_the_same_on_a_gpu() -> None:
    samples = [(np.arange(5, dtype=np.int32), np.arange(5) > 2)] * 3
    here, there = (TokenBatch.pack(samples, torch.device(d)) for d in ("cpu", "cuda"))
    for name in TokenBatch.__slots__:
        torch.testing.assert_close(getattr(there, name).cpu(), getattr(here, name))
