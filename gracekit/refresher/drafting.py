"""From what a step made to the draft of the version that a store commits."""

from __future__ import annotations

from gracekit.recipe import Recipe
from gracekit.refresher.step import Refreshed
from gracekit.store import CachePayload, VersionDraft
from gracekit.types import DrawState, SampleTable
from gracekit.version.header import CheckpointInfo, DataDescription, Settings, Timings
from gracekit.version.outcomes import Cost, RefreshOutcome


def draft_version(
    refreshed: Refreshed,
    recipe: Recipe,
    *,
    refresh_id: str,
    measure_id: str,
    checkpoint: CheckpointInfo,
    is_first: bool,
    state: DrawState | None = None,
    outcome: RefreshOutcome | None = None,
    samples: SampleTable | None = None,
    dataset: DataDescription | None = None,
    timings: Timings | None = None,
    cost: Cost | None = None,
) -> VersionDraft:
    """The version that a refresh becomes.

    Args:
        refreshed: What the step made.
        recipe: All settings, which the version keeps.
        refresh_id: Names checkpoint, recipe and samples: by it a rerun is recognised.
        measure_id: Names what was measured: by it the shards are found.
        checkpoint: What was measured.
        is_first: Whether the store has no version yet.
        state: What the draws before this one gave each row.
        outcome: What the refresh found out; default: as the step says.
        samples: The sample table where the data changed; None: as in the version before.
        dataset: Where the data comes from; None: as in the version before.
        timings: How long it took.
        cost: What it cost; default: as the step says.
    """
    return VersionDraft(
        operation="init" if is_first else "refresh",
        refresh_id=refresh_id,
        recipe_digest=recipe.digest(),
        measure_id=measure_id,
        plan=refreshed.plan,
        measurement=refreshed.measurement,
        audit=refreshed.audit,
        meter=refreshed.meter,
        cost=cost or refreshed.cost,
        scores=refreshed.scores,
        selection=refreshed.selection,
        places=refreshed.places,
        aim=refreshed.aim,
        state=state,
        samples=samples,
        dataset=dataset,
        cache=CachePayload(
            features=refreshed.features,
            valid=refreshed.valid,
            target_features=refreshed.target_features,
            save_index=refreshed.index.save,
        ),
        checkpoint=checkpoint,
        settings=Settings(
            scoring=recipe.scoring,
            refresh=recipe.refresh,
            propagation=recipe.propagation,
            graph=recipe.graph,
            selection=recipe.selection,
        ),
        outcome=outcome or refreshed.outcome,
        timings=timings or Timings(),
    )
