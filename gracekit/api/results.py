"""The types of what the verbs return, for annotations."""

from gracekit.api.asking import AnswerBatches, SqlAnswer
from gracekit.daemon import WatchReport
from gracekit.exports import Exported
from gracekit.first_recipe import FirstRecipe
from gracekit.refresher import CostEstimate, PlanPreview, RefreshResult, WorkReport
from gracekit.reporting import Finding, Report, Section
from gracekit.store import GcReport, NamedQuery, Pinned, Problem, Published, PublishReport
from gracekit.training.parity_report import TokenCheck, TokenDifference
from gracekit.views.compare import Comparison, SelectorOutcome
from gracekit.views.diff import Diff, DiffSide, GroupChanges, Mover, Movers
from gracekit.views.explain import SampleExplanation, SelectedNeighbors, SimilarSamples
from gracekit.views.status import Health, Status
from gracekit.views.store_contents import LatestVersion, StoreContents
from gracekit.views.verify import Verification
from gracekit.views.versions import VersionRecord, Versions

__all__ = [
    "AnswerBatches",
    "Comparison",
    "CostEstimate",
    "Diff",
    "DiffSide",
    "Exported",
    "Finding",
    "FirstRecipe",
    "GcReport",
    "GroupChanges",
    "Health",
    "LatestVersion",
    "Mover",
    "Movers",
    "NamedQuery",
    "Pinned",
    "PlanPreview",
    "Problem",
    "PublishReport",
    "Published",
    "RefreshResult",
    "Report",
    "SampleExplanation",
    "Section",
    "SelectedNeighbors",
    "SelectorOutcome",
    "SimilarSamples",
    "SqlAnswer",
    "Status",
    "StoreContents",
    "TokenCheck",
    "TokenDifference",
    "Verification",
    "VersionRecord",
    "Versions",
    "WatchReport",
    "WorkReport",
]
