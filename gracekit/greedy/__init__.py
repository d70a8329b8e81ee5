"""Compiled picking on a sparse graph, shared by plan and selection.

`lazy` is exact greedy for importance plus coverage; `ranked` walks down a ranking.
"""

from gracekit.greedy.lazy import GreedyResult, lazy_greedy
from gracekit.greedy.ranked import apart, fit

__all__ = ["GreedyResult", "apart", "fit", "lazy_greedy"]
