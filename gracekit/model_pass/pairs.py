"""Preference pairs in the model pass: the chosen side's scores, and the margin between the sides.

The margin is the loss of the rejected answer less the loss of the chosen one, each a mean over its
own tokens, under the model alone. It is what length-normalised preference losses compare (SimPO,
Meng et al. 2024, arXiv 2405.14734, without its factor and its target); DPO's sums over tokens, and
those of its reference model, are not measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from gracekit.model_pass.token_scores import MeanLoss
from gracekit.progress import Progress
from gracekit.protocols import Executor
from gracekit.recipe import ScoringSection
from gracekit.recipe.score_columns import PAIR_MARGIN
from gracekit.types import Json, MeasuredTarget, Measurement, Rows


class PairMargin(MeanLoss):
    """The loss of the rejected side less that of the chosen one; above 0 the model prefers the
    chosen. The pass over the chosen side gives its loss, and `PairExecutor` the margin.
    """


def scoring_of_rejected(scoring: ScoringSection) -> ScoringSection:
    """The settings of the pass over rejected sides: their loss alone, which needs no gradient."""
    of_loss = {
        "hidden_block": None,
        "scores": ("loss",),
        "importance": "loss",
        "features": "embedding-mean",
    }
    return scoring.model_copy(update=of_loss)


class PairExecutor:
    """Implements `protocols.Executor` over one for each side of the pairs.

    The rejected sides of all rows asked for go first: a pass that is stopped within them has
    nothing to keep.

    Args:
        chosen: Measures the recipe's scores, on the chosen sides.
        rejected: Measures `loss`, on the rejected sides.
    """

    def __init__(self, chosen: Executor, rejected: Executor) -> None:
        self._chosen, self._rejected = chosen, rejected

    def measure(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """As `LocalExecutor.measure`; a row without a token to learn on the rejected side has no
        margin, and so no valid measurement.
        """
        progress = progress or Progress()
        loss_of: dict[int, float] = {}
        for shard in self._rejected.measure(rows, progress):
            loss_of |= dict(zip(shard.rows.tolist(), shard.scores["loss"].tolist(), strict=True))
        if progress.is_stopping:
            return
        for shard in self._chosen.measure(rows, progress):
            rejected = np.array([loss_of[row] for row in shard.rows.tolist()], np.float32)
            scores = shard.scores | {PAIR_MARGIN: rejected - shard.scores[PAIR_MARGIN]}
            yield dataclasses.replace(shard, scores=scores)

    def look(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """The features of the chosen sides, which are those of the pairs."""
        yield from self._chosen.look(rows, progress)

    def target(self) -> MeasuredTarget | None:
        """What the pass over the chosen sides says of it."""
        return self._chosen.target()

    def optimizer(self) -> Json | None:
        """What the pass over the chosen sides found."""
        return self._chosen.optimizer()

    def close(self) -> None:
        """Let go of both."""
        self._chosen.close()
        self._rejected.close()
