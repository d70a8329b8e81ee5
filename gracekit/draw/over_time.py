"""Draws that make up for the draws before: uses follow probabilities with an error below one.

Think of a number for each row, its start u, uniform in [0, 1), and use the row at the draws at
which u + (sum of its probabilities so far) passes a whole number. Each draw then has the row with
its probability, and after any number of draws the row was used as often as its probabilities add up
to, to less than one. A start is never drawn: what was used so far leaves an interval of starts that
fit, and the probability of the next draw, given what came before, is the share of that interval
with which the row passes (`conditional`).

These shares add up to the budget on average only. So that they do so exactly, the next draw counts
for a little more or less than one, the same for all rows of a part (`next_shares`): where too many
pass, only those that would have passed in the first nine tenths of the draw, say. Now and then a
row is therefore used that does not pass yet, or is not used that does: its interval stays, and what
it is owed brings it in, or keeps it out, at one of the next draws.

`kept_shares` is for draws that change as few rows as they can instead.
"""

from __future__ import annotations

import numpy as np

from gracekit.types import Bool, DrawState, Float64, Int32, Int64

_SAME = 1e-9
"""Sums of probabilities that differ by less are equal: less than a row in a million draws."""
_WHOLE = 1e-6
"""A total that differs from a whole number by less is that number, and the rest is rounding."""
_HALVINGS = 12
"""So often the interval that holds the length of a draw is halved; the rest is a straight line."""


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
    fits = low + _SAME < high
    return DrawState(
        uses=(state.uses + uses).astype(np.int32),
        owed=owed,
        start_low=np.where(fits, low, state.start_low),
        start_high=np.where(fits, high, state.start_high),
    )


def conditional(
    state: DrawState, probabilities: Float64, lengths: float | Float64 = 1.0
) -> Float64:
    """[n] probability of being in the next draw, given the draws before.

    Args:
        state: After them.
        probabilities: [n] in [0, 1], of the next draw whatever came before. Rows with 0 and 1 keep
            them.
        lengths: Scalar or [n], how much the draw counts: a row passes where it does so on adding
            this times its probability.
    """
    passes_from = np.maximum(state.start_low, 1 - state.owed - probabilities * lengths)
    share = (state.start_high - passes_from) / (state.start_high - state.start_low)
    return np.where(_is_open(probabilities), np.clip(share, 0, 1), probabilities)


def next_shares(
    state: DrawState,
    probabilities: Float64,
    parts: Int32,
    costs: Int64 | None = None,
) -> Float64:
    """`conditional`, with the totals that the probabilities have.

    The shares of a part add up to the total of its probabilities where that is a whole number (or
    in cost), else to between the whole numbers about it; those of all parts add up to the total of
    all probabilities.

    Args:
        state: After the draws before.
        probabilities: [n] in [0, 1]; rows with 0 and 1 keep them.
        parts: [n] zero or more.
        costs: [n] what counts in the totals, one or more; None: rows.

    Returns:
        [n] in [0, 1].
    """
    rows = np.flatnonzero(_is_open(probabilities))
    part, probability = parts[rows], probabilities[rows]
    cost = np.ones(len(rows)) if costs is None else costs[rows].astype(np.float64)
    of_rows = state.take(rows)
    all_in = _by_part(part, cost)
    totals = _by_part(part, probability * cost)
    if costs is None:
        totals = _whole_about(_by_part(part, conditional(of_rows, probability)), totals)
    # Of each part a length that is known to give too little or just enough, and one that gives
    # more, as numbers in [-1, 1]; at the ends nobody is in, and all are.
    low, high = np.full(len(totals), -1.0), np.ones(len(totals))
    sum_low, sum_high = np.zeros(len(totals)), all_in
    middle = np.zeros(len(totals))
    for _ in range(_HALVINGS):
        tried = conditional(of_rows, probability, _length(middle)[part])
        found = _by_part(part, tried * cost)
        is_short = found <= totals
        low, sum_low = np.where(is_short, middle, low), np.where(is_short, found, sum_low)
        high, sum_high = np.where(is_short, high, middle), np.where(is_short, sum_high, found)
        middle = (low + high) / 2
    least, most = (conditional(of_rows, probability, _length(end)[part]) for end in (low, high))
    lacking, between = totals - sum_low, sum_high - sum_low
    share = np.divide(lacking, between, out=np.zeros(len(totals)), where=between > 0)
    wanted = probabilities.copy()
    wanted[rows] = least + (most - least) * np.clip(share, 0, 1)[part]
    return wanted


def coordinated(before: Float64, was_drawn: Bool, now: Float64) -> Float64:
    """[n] probability of being in the next draw such that the fewest rows change.

    A row that was drawn stays with the probability min(1, now / before), and one that was not comes
    in with max(0, now - before) / (1 - before): each is in the next draw with `now` on average.

    Args:
        before: [n] inclusion probabilities of the draw before.
        was_drawn: [n] rows that were; of those that could not be, or had to be, it says nothing.
        now: [n] inclusion probabilities of the next draw. Rows with 0 and 1 keep them.
    """
    is_random = (before > 0) & (before < 1)
    stays = np.minimum(1, np.divide(now, before, out=now.copy(), where=is_random))
    comes = np.divide(now - before, 1 - before, out=now.copy(), where=is_random)
    wanted = np.where(was_drawn, stays, np.maximum(comes, 0))
    return np.where(_is_open(now), wanted, now)


def kept_shares(
    before: Float64,
    was_drawn: Bool,
    now: Float64,
    parts: Int32,
    costs: Int64 | None = None,
) -> Float64:
    """`coordinated`, with the totals that the probabilities have.

    The totals are as for `next_shares`; in cost, those of a part may lack less than its costliest
    row. Where nothing changed, the shares are those of the draw before, 0 and 1.

    Args:
        before: [n] as for `coordinated`.
        was_drawn: [n] as for `coordinated`.
        now: [n] as for `coordinated`.
        parts: [n] zero or more.
        costs: [n] what counts in the totals; None: rows.

    Returns:
        [n] in [0, 1].
    """
    return to_totals(coordinated(before, was_drawn, now), now, parts, costs)


def to_totals(
    shares: Float64,
    probabilities: Float64,
    parts: Int32,
    costs: Int64 | None = None,
) -> Float64:
    """Change shares by as little as gives the totals of `kept_shares`.

    Where shares have to fall, all of a part between 0 and 1 fall by the same factor, and where they
    have to rise, what each lacks to 1 does. Rows that are sure to be in or out stay so as long as
    the others can make up for the difference.
    """
    rows = np.flatnonzero(_is_open(probabilities))
    rows = rows[np.argsort(parts[rows], kind="stable")]
    cost = np.ones(len(rows)) if costs is None else costs[rows].astype(np.float64)
    starts = np.flatnonzero(np.diff(parts[rows], prepend=-1))
    if not len(rows):
        return shares.copy()
    part = np.cumsum(np.diff(parts[rows], prepend=parts[rows[0]]) != 0)
    found, totals = _by_part(part, shares[rows] * cost), _by_part(part, probabilities[rows] * cost)
    if costs is None:
        totals = _whole_about(found, totals)
    else:
        totals = np.clip(found, totals - np.maximum.reduceat(cost, starts), totals)
    wanted = shares.copy()
    ends = [*starts[1:].tolist(), len(rows)]
    for first, last, was, total in zip(
        starts.tolist(), ends, found.tolist(), totals.tolist(), strict=True
    ):
        if abs(was - total) > _SAME:
            index, of_cost = rows[first:last], cost[first:last]
            wanted[index] = _to_total(shares[index], probabilities[index], of_cost, total)
    return wanted


def _to_total(shares: Float64, probabilities: Float64, cost: Float64, total: float) -> Float64:
    """[m] of one part."""
    sure, is_open = shares >= 1, (shares > 0) & (shares < 1)
    of_sure, most = _sum(cost[sure]), _sum(cost[is_open])
    of_open = _sum(shares[is_open] * cost[is_open])
    left = total - of_sure
    wanted = shares.copy()
    if left < 0:  # even of the sure rows too many
        wanted[is_open] = 0
        wanted[sure] = total / of_sure
    elif of_open > left:
        wanted[is_open] *= left / of_open
    elif most > left:
        wanted[is_open] = 1 - (1 - shares[is_open]) * ((most - left) / (most - of_open))
    else:  # not enough rows that are in with some probability
        wanted[is_open] = 1
        left -= most
        rest = np.flatnonzero(shares <= 0)
        while len(rest) and left > _SAME:
            factor = left / _sum(probabilities[rest] * cost[rest])
            certain = probabilities[rest] * factor >= 1
            if not certain.any():
                wanted[rest] = probabilities[rest] * factor
                break
            wanted[rest[certain]] = 1
            left -= _sum(cost[rest[certain]])
            rest = rest[~certain]
    return np.clip(wanted, 0, 1)


def _by_part(parts: Int32 | Int64, values: Float64) -> Float64:
    """[p] sum over the rows of each part, one after another."""
    sums: Float64 = np.bincount(parts, values).astype(np.float64, copy=False)
    return sums


def _sum(values: Float64) -> float:
    """Added up one after another, so that it is the same on every machine."""
    return float(np.cumsum(values)[-1]) if len(values) else 0.0


def _is_open(probabilities: Float64) -> Bool:
    """[n] rows that may be in or out."""
    is_open: Bool = (probabilities > 0) & (probabilities < 1)
    return is_open


def _length(place: Float64) -> Float64:
    """How much a draw counts: 1 at 0, more above, less below; without end towards 1 and -1."""
    room = 1 - np.abs(place)
    with np.errstate(divide="ignore"):
        length: Float64 = 1 + np.divide(place, room)
    return length


def _whole_about(found: Float64, totals: Float64) -> Float64:
    """Totals of the parts that are as near to what was found as whole numbers of rows allow.

    Of a part whose total is whole it stays; of the others it lies between the whole numbers about
    it, and all of them are moved alike until they add up to what their totals do.

    Args:
        found: [p] what the shares of each part add up to.
        totals: [p] what its probabilities do.
    """
    nearest = np.rint(totals)
    is_whole = np.abs(totals - nearest) < _WHOLE
    if is_whole.all():
        return nearest
    low = np.where(is_whole, nearest, np.floor(totals))
    high = np.where(is_whole, nearest, np.ceil(totals))
    total, reach = _sum(totals), float(np.max(np.abs(found - totals), initial=0)) + 1
    start, end = -reach, reach
    for _ in range(60):  # halvings, as many as a float has bits
        middle = (start + end) / 2
        if _sum(np.clip(found + middle, low, high)) < total:
            start = middle
        else:
            end = middle
    wanted: Float64 = np.clip(found + end, low, high)
    return wanted
