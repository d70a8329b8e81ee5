"""Picking by a value of each row alone: the best, or random ones."""

from __future__ import annotations

import numpy as np
import xxhash

from gracekit.greedy import fit
from gracekit.protocols import SelectionTask
from gracekit.types import Bool, Float32, Float64, Rows


def ranked(values: Float32 | Float64, task: SelectionTask) -> Rows:
    """The candidates of largest value first; ties by id."""
    by_id = np.empty_like(task.order)
    by_id[task.order] = np.arange(len(by_id))
    rows = by_id[task.candidates[by_id]]
    ranking: Rows = rows[np.argsort(-values[rows], kind="stable")]
    return ranking


def first_rows(ranking: Rows, task: SelectionTask) -> Rows:
    """The first rows of a ranking that there are places for."""
    if task.quotas is None and task.costs is None:
        return ranking[: task.budget]
    return fit(
        ranking,
        budget=task.budget,
        groups=None if task.quotas is None else task.samples.groups,
        quotas=task.quotas,
        free=task.free,
        costs=task.costs,
    )


def best_rows(values: Float32 | Float64, task: SelectionTask) -> Rows:
    """[b] the candidates of largest value within budget and quotas, largest first; ties by id."""
    return first_rows(ranked(values, task), task)


def seed_of(*entropy: int) -> int:
    """One number of 64 bits made of several."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def random_values(task: SelectionTask, *entropy: int) -> Float64:
    """[n] uniform in [0, 1); of one id always the same number, whatever others there are."""
    seed = seed_of(*entropy)
    ids = task.samples.sample_ids
    hashes = (xxhash.xxh3_64_intdigest(i.encode("utf-8", "surrogatepass"), seed) for i in ids)
    return np.ldexp((np.fromiter(hashes, np.uint64, len(ids)) >> 11).astype(np.float64), -53)


def random_rows(task: SelectionTask, *entropy: int) -> Rows:
    """[b] candidates drawn uniformly within the quotas."""
    return best_rows(random_values(task, *entropy), task)


class Room:
    """What is left of budget and places while rows are picked one by one."""

    def __init__(self, task: SelectionTask) -> None:
        self.left = task.budget
        self._costs = task.costs
        self._groups = None if task.quotas is None else task.samples.groups
        self._places = np.zeros(1, np.int64) if task.quotas is None else task.quotas.copy()
        self._free = task.budget if task.quotas is None else task.free

    def admit(self, row: int) -> bool:
        """Take the places of a row; False where there are not enough, and then never will be."""
        cost = 1 if self._costs is None else int(self._costs[row])
        group = 0 if self._groups is None else int(self._groups[row])
        own = min(cost, int(self._places[group]))
        if cost > self.left or cost - own > self._free:
            return False
        self._places[group] -= own
        self._free -= cost - own
        self.left -= cost
        return True

    def may_fit(self, refused: int) -> Bool | bool:
        """[n] False for rows that cannot fit either: of the same group, and no cheaper."""
        if self._costs is not None:
            cheaper: Bool = self._costs < self._costs[refused]
            if self._groups is not None:
                cheaper = cheaper | (self._groups != self._groups[refused])
            return cheaper
        return True if self._groups is None else self._groups != self._groups[refused]
