"""Comparisons: the same model from the same start, trained on what several arms choose.

`compare` trains what is missing and says what came of it. `bed` has the rows and the steps, `arms`
the tables of what can be compared, `controls` the arms that are no selection of gracekit's;
`trainer` and `external` train, `runs` makes a result file of each run, `statistics` and
`comparison` put them together, `curves` and `page` draw them. Loads torch and transformers.
"""

from gracekit.comparing.comparing import compare
from gracekit.comparing.comparison import ArmOutcome, Comparison

__all__ = ["ArmOutcome", "Comparison", "compare"]
