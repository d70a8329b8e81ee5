"""`Drawn`: a position of the trainer's dataset that also knows its weight in the draw."""

from __future__ import annotations


class Drawn(int):
    """A position in the trainer's dataset, equal to the plain int, with the weight of this use.

    Samplers yield it, so that the weight reaches the process that loads the sample, in whatever
    order and on whatever rank: a data loader hands the object on as it is.
    """

    weight: float
    """How many samples this use stands for; the weights of a draw have the mean 1 on average."""

    version: int | None
    """Version that was drawn from, 0 for the whole dataset; None: the sampler's present one."""

    def __new__(cls, position: int, weight: float = 1.0, version: int | None = None) -> Drawn:
        """`position` counts from 0; `weight` is zero or more."""
        drawn = super().__new__(cls, position)
        drawn.weight = weight
        drawn.version = version
        return drawn

    def __getnewargs__(self) -> tuple[int, float, int | None]:  # type: ignore[override]
        return int(self), self.weight, self.version


NOT_IN_STORE = "(trainer row {}: not in the store)"
"""Stands for the sample id of a row that cannot be drawn."""


def unknown_ids(num_rows: int) -> list[str]:
    """Sample ids of rows of which it is not known which samples they are."""
    return [NOT_IN_STORE.format(row) for row in range(num_rows)]
