"""What a refresh would cost on this machine, before it is spent."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from dataclasses import dataclass

import numpy as np

from gracekit.graph import bytes_of_row
from gracekit.recipe import Recipe
from gracekit.recipe.sections import SPLIT
from gracekit.refresher.clock import StageClock
from gracekit.refresher.flow import Refresher
from gracekit.refresher.memory_probe import MemoryProbe
from gracekit.refresher.previewing import PlanPreview, model_beside, plan_next
from gracekit.samples import TokenTable
from gracekit.tabular import ShortRepr
from gracekit.types import Checkpoint, Json, Rows
from gracekit.words import size

_PROBE_TOKENS = 2048
"""Most tokens of a batch of the probe: a batch of the recipe's size may be what cannot fit."""
_PROBE_BATCHES = 3
"""Batches of random rows that the probe times, after one of the longest."""
_FEATURE_COPIES = 3
"""Peak memory outside of the model pass, mapped files included, in float32 copies of the features,
as benchmarks/scale.py measures it at 1,000,000 rows."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CostEstimate(ShortRepr):
    """What the next refresh of a checkpoint would cost on this machine."""

    plan: PlanPreview
    device: str
    tokens_per_s: float
    """Speed of the model pass, as the probe measured it."""
    seconds: float
    """Time that the model pass of the first round takes."""
    max_seconds: float
    """Longest time that the model pass can take, whatever the audit says."""
    memory_bytes: int
    """Largest of the model pass (with the longest samples) and of the stages that follow it."""
    memory_free_bytes: int
    disk_bytes: int
    """Written at most, before older caches are removed."""
    disk_free_bytes: int

    @property
    def obstacles(self) -> list[str]:
        """Why it cannot fit; empty when it can."""
        found = []
        if self.memory_bytes > self.memory_free_bytes:
            found.append(
                f"memory: {size(self.memory_bytes)} needed on {self.device}, "
                f"{size(self.memory_free_bytes)} free; lower scoring.batch_tokens, or use "
                "scoring.dtype: bfloat16 or a larger device"
            )
        if self.disk_bytes > self.disk_free_bytes:
            found.append(
                f"disk: {size(self.disk_bytes)} needed for the store, "
                f"{size(self.disk_free_bytes)} free; free some, or name a store elsewhere"
            )
        return found

    def to_json(self) -> Json:
        """As a JSON object."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        own["plan"] = self.plan.to_json()
        return {**own, "fits": not self.obstacles, "obstacles": self.obstacles}


def estimate(recipe: Recipe, checkpoint: Checkpoint, *, strict: bool = False) -> CostEstimate:
    """Plan the next refresh, and time the model pass on a few of its samples.

    Loads the model, and measures a batch of the longest planned samples, which tells the memory,
    and a few of random ones, which tell the speed. Writes nothing to the store.

    Raises:
        MeasureError: Not even the longest sample alone can be measured.
    """
    probe_tokens = min(recipe.scoring.batch_tokens, _PROBE_TOKENS)
    probe = recipe.override({"scoring.batch_tokens": probe_tokens})
    clock = StageClock()
    refresher = Refresher.from_recipe(probe, strict=strict)
    with model_beside(refresher, checkpoint) as (_, model):
        tokens = model.tokens(refresher.samples)
        target = model.target_samples(refresher.samples)
        planned = plan_next(refresher, checkpoint, lambda: tokens, target=target, clock=clock)
        plan, lengths = planned.shown, planned.lengths
        if planned.places is not None:
            tokens = tokens.arranged(planned.places)
        with MemoryProbe(is_split=recipe.scoring.device == SPLIT) as memory:
            executor = model.executor(tokens, target)
            memory.model_is_loaded()
            # Where nothing is planned the speed is told all the same, by rows that might be.
            probed = planned.plan.rows if len(planned.plan.rows) else np.arange(len(lengths))
            longest, drawn = _probe_rows(probed, tokens, probe)
            width = next(executor.measure(longest)).features.shape[1]
            started = time.perf_counter()
            for _ in executor.measure(drawn):
                pass
            seconds = time.perf_counter() - started
            executor.close()
    # What a batch takes grows with its tokens.
    of_recipe = min(recipe.scoring.batch_tokens, int(lengths.sum()))
    of_probe = min(probe_tokens, int(tokens.lengths[longest].sum()))
    of_pass = memory.of_batches * of_recipe / max(of_probe, 1)
    memory_bytes = memory.of_model + math.ceil(of_pass)
    speed = int(tokens.lengths[drawn].sum()) / max(seconds, 1e-9)
    if not checkpoint.step and plan.cost.price > 0:  # nothing has told the training's seconds yet
        run = planned.run_at(1 / (speed * plan.cost.price))
        run = dataclasses.replace(run, selection_elsewhere=plan.run.selection)
        plan = dataclasses.replace(plan, run=run)
    n = plan.num_samples
    root = next(p for p in (refresher.root, *refresher.root.absolute().parents) if p.exists())
    return CostEstimate(
        plan=plan,
        device=memory.device,
        tokens_per_s=speed,
        seconds=plan.num_tokens / speed,
        max_seconds=plan.max_tokens / speed,
        memory_bytes=max(memory_bytes, _FEATURE_COPIES * 4 * n * width),
        memory_free_bytes=memory.free,
        disk_bytes=_disk_bytes(recipe, n, plan.max_rows, width, int(lengths.sum())),
        disk_free_bytes=shutil.disk_usage(root).free,
    )


def _probe_rows(rows: Rows, tokens: TokenTable, recipe: Recipe) -> tuple[Rows, Rows]:
    """A batch of the longest rows that carry loss, and random ones of some full batches."""
    usable = rows[tokens.num_targets[rows] > 0]
    longest = usable[np.argsort(-tokens.lengths[usable], kind="stable")]
    drawn = np.random.default_rng(recipe.seed).permutation(usable)
    budget = recipe.scoring.batch_tokens

    def first(ordered: Rows, num_tokens: int) -> Rows:
        return ordered[: int(np.searchsorted(np.cumsum(tokens.lengths[ordered]), num_tokens)) + 1]

    return first(longest, budget), first(drawn, _PROBE_BATCHES * budget)


def _disk_bytes(
    recipe: Recipe, num_rows: int, num_measured: int, width: int, num_tokens: int
) -> int:
    """Files of one version: tokens, features, index, scores; and shards while measuring."""
    num_scores = len(recipe.scoring.scores)
    of_row = 2 * width + bytes_of_row(num_rows, width, recipe.graph) + 4 * num_scores + 40
    return num_rows * of_row + num_measured * (2 * width + 4 * num_scores + 8) + 4 * num_tokens
