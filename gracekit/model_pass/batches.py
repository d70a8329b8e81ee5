"""Batches of samples of like length under a budget of padded tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

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


def num_positions(sample: tuple[Int32, Bool]) -> int:
    """Positions that the pass has to run: those before the last target token."""
    return int(np.flatnonzero(sample[1])[-1])


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
        The last one and whatever follows it are no input: no target is predicted from them. The
        filler is the sample's own last input, never a foreign one: a model that was ruined in one
        token's embedding then gives no finite values for the samples with that token alone.
        """
        lengths = np.array([*map(num_positions, samples)])
        assert lengths.all(), "a sample without target tokens must not reach the pass"
        cut = [
            (ids[: n + 1], mask[1 : n + 1]) for n, (ids, mask) in zip(lengths, samples, strict=True)
        ]
        real = np.arange(lengths.max()) < lengths[:, None]
        tokens = np.repeat(np.array([[ids[-2]] for ids, _ in cut], np.int64), real.shape[1], 1)
        tokens[real] = np.concatenate([ids[:-1] for ids, _ in cut])
        following = np.zeros_like(tokens)
        following[real] = np.concatenate([ids[1:] for ids, _ in cut])
        is_predicted = np.zeros_like(real)
        is_predicted[real] = np.concatenate([mask for _, mask in cut])
        sample, position = is_predicted.nonzero()
        return cls(
            *(
                _to_device(array, device)
                for array in (
                    tokens,
                    real,
                    sample,
                    position,
                    following[sample, position],
                    is_predicted.sum(axis=1),
                )
            )
        )

    def zeros(self, *width: int) -> torch.Tensor:
        """Zeros, float32 [B, *width]."""
        size = (len(self.num_targets), *width)
        return torch.zeros(size, dtype=torch.float32, device=self.input_ids.device)


def _to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """int64; to a GPU from pinned memory, so that the copy runs beside other work."""
    tensor = torch.from_numpy(array.astype(np.int64, copy=False))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
