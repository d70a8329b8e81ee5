"""Compiled picking on a sparse graph, shared by plan and selection.

`lazy` is exact greedy for importance plus coverage; `messages` lowers the neighbours of every pick;
`ranked` walks down a ranking.
"""

from gracekit.greedy.lazy import GreedyResult, lazy_greedy
from gracekit.greedy.messages import pick_by_messages
from gracekit.greedy.ranked import apart, fit

__all__ = ["GreedyResult", "apart", "fit", "lazy_greedy", "pick_by_messages"]
