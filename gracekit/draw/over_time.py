"""Draws that make up for the draws before: uses follow probabilities with an error below one.

Think of a number for each row, its start u, uniform in [0, 1), and use the row at the draws at
which u + (sum of its probabilities so far) passes a whole number. Each draw then has the row with
its probability, and after any number of draws the row was used as often as its probabilities add up
to, to less than one. A start is never drawn: what was used so far leaves an interval of starts that
fit, and the probability of the next draw, given what came before, is the share of that interval
with which the row passes (`conditional`).

These shares add up to the budget on average only; `to_totals` makes up for the rest. So now and
then a row is used that does not pass, or is not used that does: its interval stays, and what it is
owed brings it in, or keeps it out, at one of the next draws.
"""

from __future__ import annotations

import numpy as np

from gracekit.types import DrawState, Float64, Int32, Int64

_SAME = 1e-9
"""Two sums of probabilities that differ by less are equal: less than a row in a million draws."""


def settled(state: DrawState, due: Float64, uses: Int32 | Int64) -> DrawState:
    """The state after further draws.

    Args:
        state: Before them.
        due: [n] sum of the rows' inclusion probabilities over these draws, zero or more.
        uses: [n] how often the rows were trained on.
    """
    owed = state.owed + due - uses
    # A row with the start u has 0 <= owed + u < 1 when it was used just when it passed.
    low, high = np.maximum(state.start_low, -owed), np.minimum(state.start_high, 1 - owed)
    fits = low < high
    return DrawState(
        uses=(state.uses + uses).astype(np.int32),
        owed=owed,
        start_low=np.where(fits, low, state.start_low),
        start_high=np.where(fits, high, state.start_high),
    )


def conditional(state: DrawState, probabilities: Float64) -> Float64:
    """[n] probability of being in the next draw, given the draws before.

    Args:
        state: After them.
        probabilities: [n] in [0, 1], of the next draw whatever came before. Rows with 0 and 1 keep
            them.
    """
    passes_from = np.maximum(state.start_low, 1 - state.owed - probabilities)
    share = (state.start_high - passes_from) / (state.start_high - state.start_low)
    is_open = (probabilities > 0) & (probabilities < 1)
    return np.where(is_open, np.clip(share, 0, 1), probabilities)


def coordinated(before: Float64, was_drawn: Float64, now: Float64) -> Float64:
    """[n] probability of being in the next draw such that the fewest rows change.

    A row that was drawn stays with the probability min(1, now / before), and one that was not comes
    in with max(0, now - before) / (1 - before): each is in the next draw with `now` on average.

    Args:
        before: [n] inclusion probabilities of the draw before.
        was_drawn: [n] 1 where the row was drawn, else 0.
        now: [n] inclusion probabilities of the next draw. Rows with 0 and 1 keep them.
    """
    stays = np.minimum(1, np.divide(now, before, out=np.ones_like(now), where=before > 0))
    comes = np.divide(now - before, 1 - before, out=np.zeros_like(now), where=before < 1)
    wanted = np.where(was_drawn > 0, stays, np.maximum(comes, 0))
    return np.where((now > 0) & (now < 1), wanted, now)


def to_totals(
    shares: Float64,
    probabilities: Float64,
    parts: Int32,
    costs: Int64 | None = None,
) -> Float64:
    """Make the shares of each part add up to what its probabilities do.

    Rows that are sure to be in or out stay so as long as the others can make up for the difference.
    Where shares have to fall, all of a part that are open fall by the same factor; where they have
    to rise, what each lacks to 1 does.

    Args:
        shares: [n] in [0, 1], from `conditional` or `coordinated`.
        probabilities: [n] in [0, 1]; rows with 0 and 1 keep them.
        parts: [n] zero or more.
        costs: [n] what counts in the totals; None: rows.

    Returns:
        [n] in [0, 1].
    """
    wanted = shares.copy()
    movable = np.flatnonzero((probabilities > 0) & (probabilities < 1))
    movable = movable[np.argsort(parts[movable], kind="stable")]
    bounds = np.flatnonzero(np.diff(parts[movable])) + 1
    for rows in np.split(movable, bounds):
        if len(rows):
            cost = np.ones(len(rows)) if costs is None else costs[rows].astype(np.float64)
            total = float(probabilities[rows] @ cost)
            wanted[rows] = _to_total(wanted[rows], probabilities[rows], cost, total)
    return wanted


def _to_total(shares: Float64, probabilities: Float64, cost: Float64, total: float) -> Float64:
    """[m] of one part."""
    sure, is_open = shares >= 1, (shares > 0) & (shares < 1)
    of_sure, of_open = float(cost[sure].sum()), float(shares[is_open] @ cost[is_open])
    left = total - of_sure
    wanted = shares.copy()
    if left < 0:  # even of the sure rows too many
        wanted[is_open] = 0
        wanted[sure] = total / of_sure
    elif of_open > left:
        wanted[is_open] *= left / of_open
    elif float(cost[is_open].sum()) >= left:
        lacking = float((1 - shares[is_open]) @ cost[is_open])
        room = float(cost[is_open].sum()) - left
        if lacking > _SAME:
            wanted[is_open] = 1 - (1 - shares[is_open]) * (room / lacking)
    else:  # not enough rows that are owed anything
        wanted[is_open] = 1
        left -= float(cost[is_open].sum())
        rest = np.flatnonzero(shares <= 0)
        while len(rest) and left > _SAME:
            factor = left / float(probabilities[rest] @ cost[rest])
            certain = rest[probabilities[rest] * factor >= 1]
            if not len(certain):
                wanted[rest] = probabilities[rest] * factor
                break
            wanted[certain] = 1
            left -= float(cost[certain].sum())
            rest = np.setdiff1d(rest, certain, assume_unique=True)
    return np.clip(wanted, 0, 1)
