"""What the compiled loops share: compiling itself, the heap, and the places of the groups.

numba's cache on disk looks at a loop's own file only: touch the callers after a change here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from numba import njit, types

from gracekit.types import Int32, Int64

P = ParamSpec("P")
R = TypeVar("R")


def compiled(signature: object) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile when this module is imported, from the cache on disk where there is one.

    The cache lies beside this file, else in the user's cache directory (`NUMBA_CACHE_DIR` names
    another). Where it cannot be written or is damaged numba raises; compiling without it takes
    a few seconds and always works.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        try:
            compiled: Callable[P, R] = njit(signature, cache=True)(function)
        except Exception:
            compiled = njit(signature)(function)
        return compiled

    return decorate


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """A helper that is compiled into its callers."""
    inlined: Callable[P, R] = njit(function)
    return inlined


def summing(function: Callable[P, R]) -> Callable[P, R]:
    """A helper whose sums may be added up in any order, which is several times as fast."""
    summing: Callable[P, R] = njit(fastmath={"reassoc", "contract", "nsz"})(function)
    return summing


def read_only(dtype: types.Type) -> types.Array:
    """A contiguous vector that is only read, so that memory-mapped input is fine."""
    return types.Array(dtype, 1, "C", readonly=True)


@inlined
def sift_down(keys: Int64, rows: Int32, order: Int64, size: int, at: int) -> None:
    """Restore the heap (largest key on top, of equal keys the smaller order) below `at`."""
    key, row = keys[at], rows[at]
    while 2 * at + 1 < size:
        child, right = 2 * at + 1, 2 * at + 2
        if right < size and (
            keys[right] > keys[child]
            or (keys[right] == keys[child] and order[rows[right]] < order[rows[child]])
        ):
            child = right
        if keys[child] < key or (keys[child] == key and order[row] < order[rows[child]]):
            break
        keys[at], rows[at] = keys[child], rows[child]
        at = child
    keys[at], rows[at] = key, row


@inlined
def admit(row: int, groups: Int32, costs: Int64, places: Int64, budget: int) -> int:
    """Take what a row costs from its group's places, then from the free ones (the last entry).

    Returns the cost; 0 where there is not enough, and then there never will be.
    """
    cost = costs[row] if len(costs) else 1
    group, free = groups[row], len(places) - 1
    if cost > budget or cost > places[group] + places[free]:
        return 0
    own = min(cost, places[group])
    places[group] -= own
    places[free] -= cost - own
    return int(cost)
