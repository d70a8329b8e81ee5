"""The refresh: the only room where stages meet. If you read one file, read `flow`.

`flow` is a refresh from checkpoint to version; `state` what the last version knows and what a
refresh makes of it; `measuring` the model pass in rounds, resumable; `operations` what the command
line and `gracekit.refresh` call; `comparing` and `explaining` look without changing anything.
"""

from gracekit.refresher.comparing import compare
from gracekit.refresher.explaining import explain, similar
from gracekit.refresher.flow import Refresher, RefreshResult
from gracekit.refresher.operations import PlanPreview, preview, refresh, reselect

__all__ = [
    "PlanPreview",
    "RefreshResult",
    "Refresher",
    "compare",
    "explain",
    "preview",
    "refresh",
    "reselect",
    "similar",
]
