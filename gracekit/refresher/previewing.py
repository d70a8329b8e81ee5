"""What a refresh would do, without doing it: the very first plan that it would begin with."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gracekit import files
from gracekit.checkpoints import TrainerPace, describe_checkpoint, layout_of, pin, read_pace
from gracekit.leftovers import scratch_folder
from gracekit.recipe import Recipe
from gracekit.refresher.allowance import Allowance, planned_steps
from gracekit.refresher.budget import FirstPlan, first_plan, of_first_version
from gracekit.refresher.clock import StageClock
from gracekit.refresher.first_look import rows_to_look_at
from gracekit.refresher.flow import Refresher
from gracekit.refresher.loading import last_coreset, load_last
from gracekit.refresher.run_cost import RunCost, run_cost
from gracekit.refresher.spent import allowance_at, with_target
from gracekit.refresher.ways import Way, ways
from gracekit.samples import TokenTable, sample_table
from gracekit.store import Store, StorePaths
from gracekit.tabular import ShortRepr
from gracekit.types import Checkpoint, Int64, Json, PinnedCheckpoint, Reason, RefreshPlan
from gracekit.version.json_text import plain_json
from gracekit.version.outcomes import Cost

if TYPE_CHECKING:
    from gracekit.model_pass.context import TargetSamples
    from gracekit.refresher.model import CheckpointModel


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlanPreview(ShortRepr):
    """What the next refresh of a checkpoint would do."""

    checkpoint: str
    step: int
    version: int
    num_samples: int
    num_rows: int
    """Rows measured in the first round."""
    max_rows: int
    """Rows measured at most, whatever the audit says."""
    num_tokens: int
    """Tokens of the first round's rows."""
    max_tokens: int
    """Tokens measured at most, whatever the audit says and which rows it asks for."""
    num_shards: int
    reasons: dict[str, int]
    """Why rows are measured -> how many."""
    weight_bytes: int
    num_looked: int
    """Rows of which only the features would be computed."""
    cost: Cost
    """The account after the first round."""
    run: RunCost
    """What the whole run is expected to cost."""
    ways: tuple[Way, ...]
    """What a first version could be made of, and what each would be worth; none for a later one."""

    def to_json(self) -> Json:
        """As a JSON object."""
        content: Json = plain_json(
            {**dataclasses.asdict(self), "cost": self.cost.model_dump(mode="json")}
        )
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, and what it is made for."""

    shown: PlanPreview
    plan: RefreshPlan
    lengths: Int64
    """[n] tokens of each row; 0 of a removed one."""
    places: Int64 | None
    """[n] position of each row in the data; None: in its order."""
    run_at: Callable[[float], RunCost]
    """What the run is expected to cost, where training a token is taken to need so many seconds."""


def preview(recipe: Recipe, checkpoint: Checkpoint, *, strict: bool = False) -> PlanPreview:
    """The plan of the next refresh, without loading the model.

    Writes nothing to the store but, where there is one, what the checkpoint is converted to, which
    the refresh then takes.
    """
    clock = StageClock()
    refresher = Refresher.from_recipe(recipe, strict=strict)
    with ExitStack() as stack:

        @functools.cache
        def model() -> CheckpointModel:
            return stack.enter_context(model_beside(refresher, checkpoint))[1]

        target = model().target_samples(refresher.samples) if recipe.target is not None else None
        return plan_next(
            refresher,
            checkpoint,
            lambda: model().tokens(refresher.samples),
            target=target,
            clock=clock,
        ).shown


def kept_conversions(refresher: Refresher) -> Path | None:
    """Where the store keeps converted checkpoints; None where it is not there or is read-only."""
    paths = StorePaths(refresher.root)
    is_there = Store.exists(refresher.root) and os.access(refresher.root, os.W_OK)
    return paths.cache / "converted" if is_there else None


@contextmanager
def model_beside(
    refresher: Refresher, checkpoint: Checkpoint
) -> Iterator[tuple[PinnedCheckpoint, CheckpointModel]]:
    """The pinned checkpoint and its model, in a folder of their own that is removed afterwards."""
    with (
        scratch_folder("model") as folder,
        pin(
            checkpoint,
            folder,
            refresher.recipe.checkpoints,
            conversions=kept_conversions(refresher),
        ) as pinned,
    ):
        yield pinned, open_beside(refresher, pinned, folder)


def open_beside(refresher: Refresher, pinned: PinnedCheckpoint, cache: Path) -> CheckpointModel:
    """The checkpoint's model with a cache of its own; tokens that the store has are read."""
    kept = StorePaths(refresher.root).cache / "tokens"
    beside = cache / "tokens"
    with files.clear_write_errors(beside):
        beside.mkdir()
        for file in kept.glob("tokens-*"):
            (beside / file.name).symlink_to(file)
    return refresher.open(pinned, cache)


def plan_next(
    refresher: Refresher,
    checkpoint: Checkpoint,
    tokens: Callable[[], TokenTable],
    *,
    target: TargetSamples | None,
    clock: StageClock,
) -> Planned:
    """Plan the next refresh; `tokens` is asked for those of the data only where needed.

    What `clock` has counted stands for what the refresh will have taken by then.
    """
    recipe = refresher.recipe
    layout = layout_of(checkpoint, recipe.checkpoints)
    weight_bytes = sum(f.stat().st_size for f in layout.weight_files(checkpoint.path))
    store = Store.open(recipe.store) if Store.exists(recipe.store) else None
    if store is None:
        made = tokens()
        samples, lengths = sample_table(refresher.samples, made), made.lengths
        last, places, version = None, None, 1
    else:
        growth = refresher.merge(store, refresher.samples)
        if len(growth.added) or len(growth.changed):
            made = tokens()
            growth = refresher.merge(store, refresher.samples, made)
            lengths = made.arranged(growth.places).lengths
        else:
            known = growth.samples
            num_tokens = known.num_prompt_tokens + known.num_response_tokens
            lengths = np.where(known.present, num_tokens, 0)
        samples, places, version = growth.samples, growth.places, store.next_version()
        last = load_last(store, recipe, growth)
    lengths = np.asarray(lengths, np.int64)
    architecture = describe_checkpoint(checkpoint, recipe.checkpoints)
    pace, elapsed_s = read_pace(checkpoint.path), clock.elapsed_s()
    trained_rows = None if store is None else last_coreset(store)

    def planned_at(step: int, seconds_a_token: float) -> tuple[Allowance, FirstPlan]:
        spending = allowance_at(
            store,
            recipe,
            architecture,
            pace,
            step=step,
            samples=samples,
            trained_rows=trained_rows,
            elapsed_s=elapsed_s,
            seconds_a_token=seconds_a_token,
        )
        spending, _ = with_target(spending, target, recipe)
        first = first_plan(last, recipe, samples=samples, step=step, allowance=spending)
        return spending, first

    def run_of(spending: Allowance, first: FirstPlan) -> RunCost:
        account = spending.after(first.plan.rows, rows_to_look_at(samples, first))
        return run_cost(recipe, first, account, spending, samples)

    spending, first = planned_at(checkpoint.step, math.nan)
    is_known = bool(spending.account.pace)

    def run_at(seconds_a_token: float) -> RunCost:
        """Before the first step, from the first checkpoint on, where that is known."""
        first_step = 0 if checkpoint.step or not is_known else _first_checkpoint(recipe, pace)
        if not first_step and (math.isnan(seconds_a_token) or not is_known):
            return run_of(spending, first)
        run = run_of(*planned_at(first_step or checkpoint.step, seconds_a_token))
        return dataclasses.replace(run, from_step=first_step or None)

    plan, account = first.plan, spending.after(first.plan.rows, rows_to_look_at(samples, first))
    counts = np.bincount(plan.reasons, minlength=len(Reason))
    shown = PlanPreview(
        checkpoint=str(checkpoint.path),
        step=checkpoint.step,
        version=version,
        num_samples=first.num_rows,
        num_rows=len(plan.rows),
        max_rows=first.most,
        num_tokens=int(lengths[plan.rows].sum()),
        max_tokens=first.most_tokens(lengths),
        num_shards=-(-len(plan.rows) // recipe.scoring.shard_rows),
        reasons={r.name.lower().replace("_", " "): int(counts[r]) for r in Reason if counts[r]},
        weight_bytes=weight_bytes,
        num_looked=account.num_looked,
        cost=account,
        run=run_at(math.nan),
        ways=() if last is not None else tuple(_ways(recipe, spending, first.num_rows)),
    )
    return Planned(shown=shown, plan=plan, lengths=lengths, places=places, run_at=run_at)


def _first_checkpoint(recipe: Recipe, pace: TrainerPace) -> int:
    """Step of a run's first checkpoint, which a shorter run has at its end; 0: not known."""
    every, steps = recipe.training.checkpoint_every or 0, planned_steps(recipe, pace)
    return every if steps is None else min(every, steps)


def _ways(recipe: Recipe, allowance: Allowance, n: int) -> list[Way]:
    """What a first version could be made of, where there is a budget to choose by."""
    if not allowance.has_budget:
        return []
    least, most = of_first_version(recipe.refresh, n)
    return ways(allowance, n=n, least=least, most=most)
