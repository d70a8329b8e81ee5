"""The default selector without one of its parts, to see what that part is worth."""

from __future__ import annotations

import dataclasses

import numpy as np

from gracekit.protocols import SelectionTask
from gracekit.selection.balanced import Balanced
from gracekit.types import DrawState, Selection, SparseGraph


class WithoutGraph:
    """`balanced` with no neighbours: the draw is spread over time alone."""

    def select(self, task: SelectionTask) -> Selection:
        """The draw."""
        n = len(task.order)
        nobody = SparseGraph(
            indptr=np.zeros(n + 1, np.int64),
            indices=np.zeros(0, np.int32),
            weights=np.zeros(0, np.float32),
        )
        return Balanced().select(dataclasses.replace(task, graph=nobody))


class WithoutTime:
    """`balanced` that forgets what was drawn before: the draw is spread over the graph alone."""

    def select(self, task: SelectionTask) -> Selection:
        """The draw."""
        forgetful = dataclasses.replace(
            task, state=DrawState.none(len(task.order)), parent_probabilities=None
        )
        return Balanced().select(forgetful)
