"""How the loss of each version's rows is averaged, which rank 0 reads for all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, NamedTuple

from gracekit.errors import GracekitError
from gracekit.training.coreset import Coreset
from gracekit.training.ranks import decide_on_rank_zero

logger = logging.getLogger("gracekit.training")

Average = Literal["tokens", "samples"]
"""What a trainer's loss is an average over: the target tokens of a batch, or its rows."""

WAY_OUT = (
    "The rows count alike; with `selection: {weights: none}` in the recipe they are also chosen so "
    "(docs/training.md)"
)


class LossUnit(NamedTuple):
    """How the loss of a version's rows is averaged."""

    average: Average
    tokens_per_row: float | None
    """Target tokens of a row of the pool on average; None where that is not known."""
    has_weights: bool
    """Whether the rows' weights are not all alike."""

    @classmethod
    def of_version(cls, coreset: Coreset) -> LossUnit:
        """From its header, of any format."""
        weights = coreset.weights
        return cls(
            average="samples" if coreset.view.loss == "samples" else "tokens",
            tokens_per_row=coreset.tokens_per_row,
            has_weights=bool((weights != weights[:1]).any()),
        )


class LossUnits:
    """Of the versions in use.

    Args:
        store: directory of the store; only rank 0 reads it.
        average: what the loss is an average over, whatever the versions say; None: what they say.
    """

    def __init__(self, store: Path, average: Average | None) -> None:
        self.store = store
        self.average = average
        self._known: dict[int, LossUnit] = {}
        self._said = False

    def __getitem__(self, version: int) -> LossUnit | None:
        """None for a version that was not learned."""
        return self._known.get(version)

    def learn(self, versions: set[int], *, reach_loss: bool, speaks: bool) -> None:
        """Read what is not known yet; all ranks must call it at the same time.

        Args:
            versions: that are trained on; 0 is the whole dataset.
            reach_loss: whether weights get into the loss; where they do not, the first version that
                has some is a warning.
            speaks: whether it is this rank that warns.
        """
        new = versions - self._known.keys()
        if not new:
            return
        self._known |= decide_on_rank_zero(lambda: {v: self._read(v) for v in sorted(new)})
        if reach_loss or self._said or not any(self._known[v].has_weights for v in new):
            return
        self._said = True
        if speaks:
            logger.warning(
                "the coreset's weights do not reach the loss: it takes `class MyTrainer("
                "CoresetTrainerMixin, Trainer)`. %s",
                WAY_OUT,
            )

    def _read(self, version: int) -> LossUnit:
        unit = LossUnit("tokens", None, False)
        if version > 0:
            try:
                coreset = Coreset.load(self.store, version)
            except GracekitError as error:
                logger.warning("how to weigh version %d cannot be read: %s", version, error)
            else:
                unit = LossUnit.of_version(coreset)
        return unit if self.average is None else unit._replace(average=self.average)
