"""The refresh: the only room where stages meet. If you read one file, read `step`.

`step` is a refresh as a function, without store and model. It measures in `rounds`: `budget` says
how much, `auditing` how well the rest is known. `flow` opens a checkpoint and a store, calls `step`
and commits. `selecting` makes versions from stored scores; `previewing` and `cost` say what a
refresh would do and cost, `outlook` what selection could bring; `reference` measures all samples
once with a model of the user's.

What is exported is loaded when it is first used: a selection needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gracekit.refresher.cost import CostEstimate, estimate
    from gracekit.refresher.flow import Refresher, refresh
    from gracekit.refresher.joining import WorkReport, work
    from gracekit.refresher.last import LastRefresh
    from gracekit.refresher.loading import selection_inputs
    from gracekit.refresher.outlook import Prospect, prospect
    from gracekit.refresher.previewing import PlanPreview, preview
    from gracekit.refresher.publishing import publish_again
    from gracekit.refresher.reference import ReferenceResult, measure_reference
    from gracekit.refresher.result import RefreshResult
    from gracekit.refresher.rounds import Measure
    from gracekit.refresher.selecting import reselect, reselect_in, rollback
    from gracekit.refresher.step import Refreshed

_HOMES = {
    "CostEstimate": "cost",
    "LastRefresh": "last",
    "Measure": "rounds",
    "PlanPreview": "previewing",
    "Prospect": "outlook",
    "ReferenceResult": "reference",
    "RefreshResult": "result",
    "Refreshed": "step",
    "Refresher": "flow",
    "WorkReport": "joining",
    "estimate": "cost",
    "measure_reference": "reference",
    "preview": "previewing",
    "publish_again": "publishing",
    "prospect": "outlook",
    "refresh": "flow",
    "reselect": "selecting",
    "reselect_in": "selecting",
    "rollback": "selecting",
    "selection_inputs": "loading",
    "work": "joining",
}

__all__ = [
    "CostEstimate",
    "LastRefresh",
    "Measure",
    "PlanPreview",
    "Prospect",
    "ReferenceResult",
    "RefreshResult",
    "Refreshed",
    "Refresher",
    "WorkReport",
    "estimate",
    "measure_reference",
    "preview",
    "prospect",
    "publish_again",
    "refresh",
    "reselect",
    "reselect_in",
    "rollback",
    "selection_inputs",
    "work",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
