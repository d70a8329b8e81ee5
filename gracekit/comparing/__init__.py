"""Comparisons: the same model from the same start, trained on what several arms choose.

`compare` trains what is missing and says what came of it. `bed` has the rows and the steps, `arms`
the tables of what can be compared, `controls` the arms that are no selection of gracekit's;
`trainer` and `external` train, `runs` makes a result file of each run, `statistics` and
`comparison` make an `outcome` of each arm, `verdict` says it in words, `curves` and `page` draw it.
What is named here loads torch and transformers when it is first used; `run_result` and
`statistics`, which reports read, do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gracekit.comparing.comparing import compare
    from gracekit.comparing.comparison import Comparison
    from gracekit.comparing.outcome import ArmOutcome

__all__ = ["ArmOutcome", "Comparison", "compare"]

_HOMES = {
    "ArmOutcome": "gracekit.comparing.outcome",
    "Comparison": "gracekit.comparing.comparison",
    "compare": "gracekit.comparing.comparing",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)
