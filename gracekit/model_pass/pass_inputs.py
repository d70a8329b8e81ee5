"""What an executor is made from, and the work that it hands on: shards of rows and tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from gracekit.model_pass.batches import TokenSource, longest_first
from gracekit.model_pass.context import TargetSamples
from gracekit.protocols import OptimizerState
from gracekit.recipe import ScoringSection
from gracekit.types import Bool, Int32, Int64, Rows

Load = Callable[[str], tuple[torch.nn.Module, OptimizerState | None]]
"""Loads model and optimizer state onto a device; it can be sent to other processes."""

MAX_TRIES = 3
"""Workers that may die over one shard before the refresh gives up."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PassInputs:
    """All that an executor needs to measure the samples of one checkpoint.

    `load`, `scoring` and `target` can be pickled and sent to other processes; `tokens` is large
    and stays, so that what is sent are the tokens of a shard.
    """

    load: Load
    devices: tuple[str, ...]
    """Devices of this host that the recipe's `scoring.device` and `processes` stand for; for an
    executor other than `local` and `processes`, the recipe's `device` alone where this host has no
    such devices."""
    tokens: TokenSource
    """Of all n samples."""
    scoring: ScoringSection
    target: TargetSamples | None = None
    """The target set, if there is one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """Tokens of some rows: implements `TokenSource`, where a row is a place in the shard."""

    samples: list[tuple[Int32, Bool]]
    is_look: bool = False
    """Whether only features are wanted."""

    @property
    def lengths(self) -> Int64:
        """Tokens of each sample."""
        return np.array([len(ids) for ids, _ in self.samples], np.int64)

    def take(self, rows: Rows) -> list[tuple[Int32, Bool]]:
        """The samples at these places."""
        return [self.samples[row] for row in rows]


def cut_shards(rows: Rows, lengths: Int64, shard_rows: int) -> list[Rows]:
    """The rows of each shard: longest first, ties in order, all but the last of `shard_rows`.

    Every executor that cuts rows like this gives the same bytes as `LocalExecutor`, wherever its
    shards are measured, on the same kind of device with the same number of threads.

    Args:
        rows: [m] distinct rows.
        lengths: [m] their tokens.
        shard_rows: Rows a shard.
    """
    ordered = rows[longest_first(lengths)]
    return [ordered[start : start + shard_rows] for start in range(0, len(rows), shard_rows)]
