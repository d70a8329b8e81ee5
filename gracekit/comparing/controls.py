"""Arms that are no selection of gracekit's: what it has to beat, and what it cannot.

Each is a class whose `draw(epoch)` gives the rows of an epoch. What it may know of the model in
training it asks of `Looks`, which counts what that costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gracekit.aim.directions import directions
from gracekit.comparing.bed import Bed
from gracekit.errors import RecipeError
from gracekit.types import Bool, Float32, Float64, Rows

KEPT_BY_CHANCE = 0.5
"""InfoBatch: share of the rows below the mean loss that a pass keeps (r is one minus that)."""
WITHOUT_PRUNING = 0.125
"""InfoBatch: share of the run, its end, in which nothing is left out."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What an epoch trains on, in this order."""

    rows: Rows
    """[m] of the data, repeats included."""
    weights: Float64 | None = None
    """[m] factors of the rows' losses; None: all alike."""


class Looks(Protocol):
    """What an arm may ask of the model as it is now. All but `seen` costs compute."""

    def seen(self) -> Float64:
        """[n] the loss that each row had when it was last trained on; NaN for the others."""

    def losses(self, rows: Rows) -> Float64:
        """[m] mean losses of rows."""

    def states(self, rows: Rows) -> Float32:
        """[m, d] last hidden states of rows, mean weighted by position."""

    def target_states(self) -> Float32:
        """[t, d] the same of the target's rows."""


class Draws(Protocol):
    """A control."""

    def draw(self, epoch: int, looks: Looks) -> Turn:
        """The rows of an epoch, counted from 0."""


class RandomFixed:
    """The same random rows in every epoch."""

    def __init__(self, bed: Bed, seed: int) -> None:
        rng = np.random.default_rng([1, seed])
        self._rows = rng.permutation(bed.pool)[: bed.num_drawn]
        self._seed = seed

    def draw(self, epoch: int, looks: Looks) -> Turn:
        """They, in another order."""
        return Turn(np.random.default_rng([1, self._seed, epoch]).permutation(self._rows))


class Random:
    """Other random rows in every epoch, of all or of some."""

    def __init__(self, bed: Bed, seed: int, rows: Rows | None = None) -> None:
        self._pool = bed.pool if rows is None else rows
        self._num_drawn, self._seed = bed.num_drawn, seed

    def draw(self, epoch: int, looks: Looks) -> Turn:
        """A draw; where there are fewer rows than a draw has, as many whole passes as needed."""
        rng = np.random.default_rng([2, self._seed, epoch])
        passes = -(-self._num_drawn // len(self._pool))
        order = np.concatenate([rng.permutation(self._pool) for _ in range(passes)])
        return Turn(order[: self._num_drawn])


class Once:
    """Every row once before any comes twice."""

    def __init__(self, bed: Bed, seed: int) -> None:
        passes = -(-bed.recipe.compare.epochs * bed.num_drawn // len(bed.pool))
        rng = np.random.default_rng([3, seed])
        self._order = np.concatenate([rng.permutation(bed.pool) for _ in range(passes)])
        self._num_drawn = bed.num_drawn

    def draw(self, epoch: int, looks: Looks) -> Turn:
        """The next rows."""
        start = epoch * self._num_drawn
        return Turn(self._order[start : start + self._num_drawn])


class Full:
    """All rows in every epoch: another number of steps than all other arms."""

    def __init__(self, bed: Bed, seed: int) -> None:
        self._pool, self._seed = bed.pool, seed

    def draw(self, epoch: int, looks: Looks) -> Turn:
        """All of them."""
        return Turn(np.random.default_rng([4, self._seed, epoch]).permutation(self._pool))


class Stratified:
    """As many random rows of every group; each group's rows once before any comes twice."""

    def __init__(self, bed: Bed, seed: int) -> None:
        self._seed, self._num_drawn = seed, bed.num_drawn
        groups = bed.groups[bed.pool]
        self._members = [bed.pool[groups == group] for group in np.unique(groups)]
        self._used = [0] * len(self._members)

    def draw(self, epoch: int, looks: Looks) -> Turn:
        """An equal share of each group; the rest by turns."""
        number = len(self._members)
        share, rest = divmod(self._num_drawn, number)
        parts = []
        for place, members in enumerate(self._members):
            count = share + ((place - epoch) % number < rest)
            start, self._used[place] = self._used[place], self._used[place] + count
            turns = range(start // len(members), -(-(start + count) // len(members)))
            order = [
                np.random.default_rng([5, self._seed, place, turn]).permutation(members)
                for turn in turns
            ]
            skip = start % len(members)
            parts.append(np.concatenate([*order, members[:0]])[skip : skip + count])
        rng = np.random.default_rng([5, self._seed, epoch])
        return Turn(rng.permutation(np.concatenate(parts)))


class Longest(Random):
    """Random rows of those with the longest answers, anew in every epoch."""

    def __init__(self, bed: Bed, seed: int) -> None:
        lengths = bed.tokens.num_targets[bed.pool]
        order = np.argsort(-lengths.astype(np.int64), kind="stable")
        super().__init__(bed, seed, bed.pool[order[: num_kept(bed)]])


class LossTop:
    """Random rows of those with the highest loss, which is measured anew before every epoch."""

    def __init__(self, bed: Bed, seed: int) -> None:
        self._bed, self._seed = bed, seed

    def draw(self, epoch: int, looks: Looks) -> Turn:
        """A draw from the top."""
        order = np.argsort(-looks.losses(self._bed.pool), kind="stable")
        best = self._bed.pool[order[: num_kept(self._bed)]]
        return Random(self._bed, self._seed, best).draw(epoch, looks)


class InfoBatch:
    """Passes that leave out half of the rows below the mean loss, and double the other half.

    Qin et al. 2024 ("InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning"). Its
    losses are those of the training itself and cost nothing. A pass takes as long as it takes: an
    epoch here is the next rows of it.
    """

    def __init__(self, bed: Bed, seed: int) -> None:
        self._pool, self._num_drawn = bed.pool, bed.num_drawn
        self._until = (1 - WITHOUT_PRUNING) * bed.recipe.compare.epochs
        self._rng = np.random.default_rng([6, seed])
        self._rows, self._weights = bed.pool[:0], np.zeros(0)

    def draw(self, epoch: int, looks: Looks) -> Turn:
        """The next rows of the pass, and of the passes after it."""
        if epoch >= self._until:
            self._rows, self._weights = self._pool[:0], np.zeros(0)
        while len(self._rows) < self._num_drawn:
            rows, weights = self._pass(looks.seen()[self._pool], prunes=epoch < self._until)
            self._rows = np.concatenate([self._rows, rows])
            self._weights = np.concatenate([self._weights, weights])
        turn = Turn(self._rows[: self._num_drawn], self._weights[: self._num_drawn])
        self._rows, self._weights = (
            self._rows[self._num_drawn :],
            self._weights[self._num_drawn :],
        )
        return turn

    def _pass(self, losses: Float64, *, prunes: bool) -> tuple[Rows, Float64]:
        order, weights = self._rng.permutation(len(self._pool)), np.ones(len(self._pool))
        known = np.isfinite(losses)
        if prunes and known.any():
            is_low = known & (np.where(known, losses, np.inf) < losses[known].mean())
            is_out = is_low & (self._rng.random(len(losses)) >= KEPT_BY_CHANCE)
            weights[is_low] = 1 / KEPT_BY_CHANCE
            order = order[~is_out[order]]
        return self._pool[order], weights[order]


class NearTarget:
    """Random rows of those whose hidden states are nearest to the target's, as RDS+ chooses them.

    Ivison et al. 2025 ("Large-Scale Data Selection for Instruction Tuning"): last hidden states of
    the start, mean weighted by position; every target row takes its nearest row in turn.
    """

    def __init__(self, bed: Bed, seed: int) -> None:
        require_target(bed, "rds")
        self._bed, self._seed = bed, seed
        self._rows: Rows | None = None

    def draw(self, epoch: int, looks: Looks) -> Turn:
        """A draw from them; they are found once, before the first step."""
        if self._rows is None:
            near = nearest_in_turn(
                directions(looks.states(self._bed.pool)),
                directions(looks.target_states()),
                num_kept(self._bed),
            )
            self._rows = self._bed.pool[near]
        return Random(self._bed, self._seed, self._rows).draw(epoch, looks)


def nearest_in_turn(rows: Float32, targets: Float32, count: int) -> Rows:
    """Round robin: each target in turn takes its most similar row that nobody has taken.

    Args:
        rows: [p, d] directions.
        targets: [t, d] directions.
        count: Rows to take.
    """
    order = np.argsort(-(targets @ rows.T), axis=1, kind="stable")
    taken = np.zeros(len(rows), bool)
    found: list[int] = []
    place = np.zeros(len(targets), np.int64)
    while len(found) < min(count, len(rows)):
        for target in range(len(targets)):
            while place[target] < len(rows) and taken[order[target, place[target]]]:
                place[target] += 1
            if place[target] == len(rows) or len(found) == count:
                break
            row = int(order[target, place[target]])
            taken[row] = True
            found.append(row)
    return np.array(found, np.int64)


def num_kept(bed: Bed) -> int:
    """Rows of a fixed ranking that are drawn from."""
    return max(1, round(bed.recipe.compare.keep_share * len(bed.pool)))


def require_target(bed: Bed, arm: str) -> None:
    """`RecipeError` where the recipe has no target, or one without rows of its own."""
    if bed.recipe.target is not None and bed.recipe.target.group is not None:
        raise RecipeError(
            f"the arm {arm!r} needs target samples in a file, and target.group names a group of "
            "the data: give their file as target.path, or leave the arm out"
        )
    if bed.recipe.target is None:
        raise RecipeError(
            f"the arm {arm!r} needs a target set; name one in the recipe: "
            "`target: {path: target.jsonl}`"
        )


def of_values(bed: Bed, column: str, wanted: str) -> Rows:
    """Rows of the pool with one of some values (`a|b`) in a column, and no mark.

    Raises:
        RecipeError: No row has one, or all have.
    """
    values, names = bed.column(column)
    chosen = [names.index(name) for name in wanted.split("|") if name in names]
    rows = bed.pool[np.isin(values[bed.pool], chosen)]
    rows = rows[~marked(bed, None)[rows]]
    if not len(rows):
        shown = ", ".join(names[:8])
        raise RecipeError(
            f"the arm 'oracle:{column}={wanted}': no row of the data has that in the column "
            f"{column!r}, which has {shown}; name one of them"
        )
    if len(rows) == len(bed.pool):
        raise RecipeError(
            f"the arm 'oracle:{column}={wanted}': every row that may be trained on has that, so "
            "it would be the arm 'random'; name fewer values, or leave it out"
        )
    return rows


def clean_rows(bed: Bed, column: str | None) -> Rows:
    """Rows of the pool without a mark.

    Raises:
        RecipeError: There are no marks of that name, or all rows have one, or none has.
    """
    rows: Rows = bed.pool[~marked(bed, column)[bed.pool]]
    if not bed.marks or not len(rows):
        raise RecipeError(
            "the arm 'clean' leaves out marked rows; name the columns that mark them in "
            "compare.marks" + (", which leave no row" if bed.marks else "")
        )
    if len(rows) == len(bed.pool):
        raise RecipeError(
            "the arm 'clean' leaves out marked rows, and none is marked of those that may be "
            "trained on: it would be the arm 'random'; leave it out, or name other columns in "
            "compare.marks"
        )
    return rows


def marked(bed: Bed, column: str | None) -> Bool:
    """[n] whether a row is marked in a column of `compare.marks`; None: in any of them."""
    if column is not None and column not in bed.marks:
        raise RecipeError(
            f"the arm 'clean:{column}': compare.marks has no column {column!r}; it has "
            f"{', '.join(bed.marks) or 'none'}"
        )
    found = np.zeros(len(bed.raw), bool)
    for name, is_marked in bed.marks.items():
        if column in (None, name):
            found |= is_marked
    return found
