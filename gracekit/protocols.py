"""What can be swapped: one protocol per seam.

Concrete classes are chosen in `Refresher.from_recipe`. A strategy is a class in a dict
(`SCORERS`, `SELECTORS`, `LAYOUTS`, `FORMATS`); a miss lists what exists. torch appears here as
types only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from gracekit.types import (
    Bool,
    Float32,
    Json,
    KnnGraph,
    Measurement,
    Rows,
    SampleTable,
    ScoreTable,
    Selection,
    SparseGraph,
)

if TYPE_CHECKING:
    import torch

    from gracekit.recipe import SelectionSection


@runtime_checkable
class CheckpointLayout(Protocol):
    """How one family of trainers lays out a checkpoint directory. No torch."""

    name: str

    def matches(self, directory: Path) -> bool:
        """Whether the directory looks like this layout, complete or not."""

    def step(self, directory: Path) -> int:
        """Training step; raises `CheckpointError` when it cannot be told."""

    def unready(self, directory: Path) -> str | None:
        """Why the checkpoint is not complete yet; None when it is."""

    def files(self, directory: Path) -> list[Path]:
        """The files that loading needs (weights, config, tokenizer): what is pinned."""

    def weight_files(self, directory: Path) -> list[Path]:
        """The files whose bytes are the checkpoint's identity."""


@runtime_checkable
class Executor(Protocol):
    """Runs the model pass over rows; serial here, several devices or hosts elsewhere."""

    def measure(self, rows: Rows) -> Iterator[Measurement]:
        """Measure the rows; yields finished shards, together exactly the rows, in any order."""


class Batch(Protocol):
    """One padded batch on its device, and what the pass has computed so far.

    B samples, T positions, D hidden width, V vocabulary, M target positions of the whole batch.
    """

    input_ids: torch.Tensor
    """int64 [B, T]"""
    attention_mask: torch.Tensor
    """int64 [B, T], 1 on real tokens (padding on the right)."""
    target_sample: torch.Tensor
    """int64 [M] the sample of a target position."""
    target_position: torch.Tensor
    """int64 [M] the position whose hidden state predicts the target."""
    target_ids: torch.Tensor
    """int64 [M] the token to predict."""
    num_targets: torch.Tensor
    """int64 [B]"""


@runtime_checkable
class Scorer(Protocol):
    """One score of every sample, read off the shared pass. See `scoring/scorers.py`."""

    name: str
    needs_backward: bool

    def attach(self, model: torch.nn.Module) -> None:
        """Choose modules and register hooks; called once before the first batch."""

    def start(self, batch: Batch) -> None:
        """Reset for a new batch, before the forward pass."""

    def on_targets(
        self,
        batch: Batch,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        token_loss: torch.Tensor,
    ) -> None:
        """Take hidden [M, D], logits [M, V] and token_loss [M] at target positions, detached."""

    def finish(self, batch: Batch) -> torch.Tensor:
        """Scores, float [B], after the backward pass where one was needed."""

    def detach(self) -> None:
        """Remove the hooks."""


@runtime_checkable
class NeighborIndex(Protocol):
    """Neighbour lists over unit features, kept up to date."""

    backend: str
    graph: KnnGraph

    def update(self, features: Float32, moved: Rows) -> None:
        """Take the new unit features [n, d] of the moved rows and repair their lists."""

    def save(self, directory: Path) -> list[Path]:
        """Write the index into an existing directory; returns the files written."""


@runtime_checkable
class Selector(Protocol):
    """Chooses the coreset."""

    name: str

    def select(
        self,
        *,
        scores: ScoreTable,
        samples: SampleTable,
        graph: SparseGraph,
        candidates: Bool,
        budget: int,
        settings: SelectionSection,
        seed: int,
    ) -> Selection:
        """Exactly `budget` of the candidate rows (fewer if there are fewer)."""


@runtime_checkable
class ExportFormat(Protocol):
    """Writes a coreset for a consumer."""

    name: str
    needs_data: bool
    """Whether the user's original rows are needed."""

    def write(self, content: ExportContent, out: Path) -> Json:
        """Write into the new directory `out`; returns what was written, for the user."""


class ExportContent(Protocol):
    """What an export format may use."""

    rows: Rows
    source_rows: Rows
    sample_ids: list[str]
    weights: Float32
    header: Json

    def records(self) -> Iterator[Json]:
        """The user's original rows of the coreset, in row order, with repeats applied."""


Progress = Callable[[str, int, int], None]
"""Called as (what, done, total) while something long runs."""
