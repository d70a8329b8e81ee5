"""Selection: which samples make the coreset, and how much each of them stands for.

`select` is the way in. Selectors are classes in `selectors.SELECTORS`.
"""

from gracekit.selection.repetition import repetition
from gracekit.selection.selecting import balanced_probabilities, select
from gracekit.selection.selectors import SELECTORS, selector_for

__all__ = ["SELECTORS", "balanced_probabilities", "repetition", "select", "selector_for"]
