"""What readers share besides the batches: the gradient sketch, and the target set seen by it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gracekit.protocols import OptimizerState, Sketch
from gracekit.types import Float32, Int32, Rows, Strings

if TYPE_CHECKING:
    import torch

    from gracekit.samples import TokenTable


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSamples:
    """The tokenized target set of t samples; its groups are the subtasks."""

    tokens: TokenTable
    groups: Int32
    """[t] index into `group_names`."""
    group_names: tuple[str, ...]
    contents: Strings
    """Hashes of the contents [t]."""
    is_followed: bool = False
    """Whether its loss is measured, as where selection aims at it."""
    keeps_sketches: bool = False
    """Whether the sketches of its gradients are kept, and those of all measured rows."""

    def take(self, rows: Rows) -> TargetSamples:
        """Some of the samples, in the given order."""
        return replace(
            self,
            tokens=self.tokens.arranged(rows),
            groups=self.groups[rows],
            contents=self.contents[rows],
        )


@dataclass(slots=True, kw_only=True)
class LocalContext:
    """Implements `protocols.PassContext` for a pass in this process."""

    sketch: Sketch
    embedding: torch.nn.Module | None = None
    optimizer: OptimizerState | None = None
    target_sketches: dict[str, Float32] = field(default_factory=dict)
