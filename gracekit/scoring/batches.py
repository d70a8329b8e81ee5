"""Batches of samples of like length under a budget of padded tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from gracekit.types import Bool, Int32, Int64, Rows

PADDING_SHARE = 0.05
"""Padding that a batch may hold once it is worth running."""
WORTH_RUNNING = 0.25
"""Share of the budget from which a batch is closed rather than padded further."""


class TokenSource(Protocol):
    """The tokenized samples, as far as the pass needs them; n samples."""

    @property
    def lengths(self) -> Int64:
        """Tokens of each sample, int64 [n]."""

    def take(self, rows: Rows) -> list[tuple[Int32, Bool]]:
        """(token ids, loss mask) of each row, both of its length."""


def longest_first(lengths: Int64) -> Int64:
    """Positions by falling length, ties in order: memory trouble shows at once, not at the end."""
    order: Int64 = np.argsort(-lengths, kind="stable")
    return order


def batch_stop(lengths: Int64, start: int, budget: int) -> int:
    """Where the batch that begins at `start` ends; `lengths` fall, at least 1 each.

    The batch stays within `budget` padded tokens, except that a sample longer than the budget is
    a batch of its own. Once it holds `WORTH_RUNNING` of the budget, it takes a further sample only
    if no more than `PADDING_SHARE` of it is padding.
    """
    longest = int(lengths[start])
    window = lengths[start : start + max(1, budget // longest)]
    padded = longest * np.arange(1, len(window) + 1)
    padding = padded - np.cumsum(window)
    fits = (padding <= PADDING_SHARE * padded) | (padded <= WORTH_RUNNING * budget)
    return start + (len(window) if fits.all() else int(np.argmin(fits)))


def without_prompt(sample: tuple[Int32, Bool]) -> tuple[Int32, Bool]:
    """The target tokens of a sample after its very first token, which begins any text."""
    ids, mask = sample
    targets = np.flatnonzero(mask[1:]) + 1
    kept = np.concatenate([[0], targets])
    return ids[kept], kept > 0


@dataclass(slots=True)
class TokenBatch:
    """Samples padded on the right to the longest; implements `protocols.Batch`."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    target_sample: torch.Tensor
    target_position: torch.Tensor
    target_ids: torch.Tensor
    num_targets: torch.Tensor

    @classmethod
    def pack(cls, samples: list[tuple[Int32, Bool]], device: torch.device) -> TokenBatch:
        """Pad (ids, loss mask) pairs; each sample needs a target.

        A target is a token whose mask is set and that has a token before it to predict it from.
        The filler is the sample's own last token, never a foreign one: a model that was ruined in
        one token's embedding then gives no finite values for the samples with that token alone.
        """
        lengths = np.array([len(ids) for ids, _ in samples])
        real = np.arange(lengths.max()) < lengths[:, None]
        tokens = np.repeat(np.array([[ids[-1]] for ids, _ in samples], np.int64), real.shape[1], 1)
        tokens[real] = np.concatenate([ids for ids, _ in samples])
        is_target = np.zeros_like(real)
        is_target[real] = np.concatenate([mask for _, mask in samples])
        is_target[:, 0] = False
        num_targets = is_target.sum(axis=1)
        assert num_targets.all(), "a sample without target tokens must not reach the pass"
        sample, position = is_target.nonzero()
        return cls(
            *(
                torch.from_numpy(array.astype(np.int64, copy=False)).to(device)
                for array in (
                    tokens,
                    real,
                    sample,
                    position - 1,
                    tokens[sample, position],
                    num_targets,
                )
            )
        )

    def zeros(self, *width: int) -> torch.Tensor:
        """Zeros, float32 [B, *width]."""
        size = (len(self.num_targets), *width)
        return torch.zeros(size, dtype=torch.float32, device=self.input_ids.device)
