"""The refresh: the only room where stages meet. If you read one file, read `flow`.

`flow` is a refresh from checkpoint to version; `state` what the last version knows and what a
refresh makes of it; `measuring` the model pass in rounds, resumable; `operations` what the command
line and `gracekit.refresh` call; `planning` what a refresh would do and cost.
"""

from gracekit.refresher.flow import Refresher, RefreshResult
from gracekit.refresher.operations import refresh, reselect, rollback
from gracekit.refresher.planning import CostEstimate, PlanPreview, estimate, preview

__all__ = [
    "CostEstimate",
    "PlanPreview",
    "RefreshResult",
    "Refresher",
    "estimate",
    "preview",
    "refresh",
    "reselect",
    "rollback",
]
