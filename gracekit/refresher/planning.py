"""What a refresh would do, and what it would cost, before it is spent."""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gracekit.recipe import Recipe
from gracekit.refresher.flow import Refresher
from gracekit.refresher.measuring import budgets, is_full
from gracekit.refresher.state import load_known
from gracekit.types import Checkpoint, Int64, Json, PinnedCheckpoint, Reason, RefreshPlan, Rows

if TYPE_CHECKING:
    from gracekit.samples import TokenTable

_PROBE_TOKENS = 2048
"""Most tokens of a batch of the probe: a batch of the recipe's size may be what cannot fit."""
_PROBE_BATCHES = 3
"""Batches of random rows that the probe times, after one of the longest."""
_FEATURE_COPIES = 12
"""Peak memory outside of the model pass in float32 copies of the features, as
benchmarks/refresh_cost.py measures it at 1,000,000 rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPreview:
    """What the next refresh of a checkpoint would do."""

    checkpoint: str
    step: int
    version: int
    num_samples: int
    num_rows: int
    """Rows measured in the first round."""
    max_rows: int
    """Rows measured at most, while the audit misses its target."""
    num_tokens: int
    """Tokens of the first round's rows."""
    num_shards: int
    reasons: dict[str, int]
    """Why rows are measured -> how many."""
    weight_bytes: int

    def to_json(self) -> Json:
        """As a JSON object."""
        return dataclasses.asdict(self)


def preview(recipe: Recipe, checkpoint: Checkpoint, *, strict: bool = False) -> PlanPreview:
    """The plan of the next refresh, without loading the model; writes nothing to the store."""
    from gracekit.checkpoints import pin

    refresher = Refresher.from_recipe(recipe, strict=strict)
    with ExitStack() as stack:

        def tokenize() -> TokenTable:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            pinned = stack.enter_context(pin(checkpoint, cache))
            return _tokenize(refresher, pinned, cache)[1]

        return _planned(refresher, checkpoint, tokenize).shown


def _tokenize(
    refresher: Refresher, pinned: PinnedCheckpoint, cache: Path
) -> tuple[Any, TokenTable]:
    """The checkpoint's tokenizer and the data in its tokens; what the store has of them is read."""
    from gracekit.store import StorePaths

    kept = StorePaths(refresher.root).cache / "tokens"
    (cache / "tokens").mkdir()
    for file in kept.glob("tokens-*"):
        (cache / "tokens" / file.name).symlink_to(file)
    return refresher.tokenize(pinned, cache)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """A plan, and what it is made for."""

    shown: PlanPreview
    plan: RefreshPlan
    lengths: Int64
    """[n] tokens of each row; 0 of a removed one."""
    places: Int64 | None
    """[n] position of each row in the data; None: in its order."""


def _planned(
    refresher: Refresher, checkpoint: Checkpoint, tokenize: Callable[[], TokenTable]
) -> _Planned:
    """Plan the next refresh; `tokenize` is asked for the data's tokens only where needed."""
    from gracekit.checkpoints import LAYOUTS
    from gracekit.staleness import full_plan, plan_rows
    from gracekit.store import Store

    recipe = refresher.recipe
    layout = LAYOUTS[checkpoint.layout]()
    weight_bytes = sum(f.stat().st_size for f in layout.weight_files(checkpoint.path))
    store = Store.open(recipe.store) if Store.exists(recipe.store) else None
    if store is None:
        known, places, version, lengths = None, None, 1, tokenize().lengths
        present = np.ones(len(lengths), bool)
    else:
        growth = refresher.merge(store, refresher.samples)
        samples, places, version = growth.samples, growth.places, store.next_version()
        present = samples.present
        if len(growth.added) or len(growth.changed):
            tokens = tokenize()
            growth = refresher.merge(store, refresher.samples, tokens)
            lengths = tokens.arranged(places).lengths
        else:
            lengths = np.where(present, samples.num_prompt_tokens + samples.num_response_tokens, 0)
        known = load_known(store, recipe, growth)
    n = int(present.sum())
    num_never = 0 if known is None else known.num_never
    least, most, num_probe = budgets(recipe.refresh, n, num_never)
    if known is None or is_full(recipe.refresh, known):
        plan, most = full_plan(present), n
    else:
        plan = plan_rows(
            recipe.refresh,
            scores=known.scores,
            graph=known.graph,
            values=known.values[recipe.scoring.importance],
            step=checkpoint.step,
            measurable=known.samples.num_response_tokens > 0,
            budget=min(max(least, known.next_budget), most),
            num_probe=num_probe,
            seed=recipe.seed,
        )
    counts = np.bincount(plan.reasons, minlength=len(Reason))
    shown = PlanPreview(
        checkpoint=str(checkpoint.path),
        step=checkpoint.step,
        version=version,
        num_samples=n,
        num_rows=len(plan.rows),
        max_rows=most,
        num_tokens=int(lengths[plan.rows].sum()),
        num_shards=-(-len(plan.rows) // recipe.scoring.shard_rows),
        reasons={r.name.lower().replace("_", " "): int(counts[r]) for r in Reason if counts[r]},
        weight_bytes=weight_bytes,
    )
    return _Planned(shown=shown, plan=plan, lengths=np.asarray(lengths, np.int64), places=places)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """What the next refresh of a checkpoint would cost on this machine."""

    plan: PlanPreview
    device: str
    tokens_per_s: float
    """Of the model pass, from the probe."""
    seconds: float
    """Of the model pass for the first round."""
    max_seconds: float
    """Of the model pass while the audit misses its target, at most."""
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
                f"memory: {_gib(self.memory_bytes)} needed on {self.device}, "
                f"{_gib(self.memory_free_bytes)} free; lower scoring.batch_tokens, or use "
                "scoring.dtype: bfloat16 or a larger device"
            )
        if self.disk_bytes > self.disk_free_bytes:
            found.append(
                f"disk: {_gib(self.disk_bytes)} needed for the store, "
                f"{_gib(self.disk_free_bytes)} free; free some, or name a store elsewhere"
            )
        return found

    def to_json(self) -> Json:
        """As a JSON object."""
        return {**dataclasses.asdict(self), "fits": not self.obstacles, "obstacles": self.obstacles}


def estimate(recipe: Recipe, checkpoint: Checkpoint, *, strict: bool = False) -> CostEstimate:
    """Plan the next refresh, and time the model pass on a few of its samples.

    Loads the model, and measures a batch of the longest planned samples, which tells the memory,
    and a few of random ones, which tell the speed. Writes nothing to the store.

    Raises:
        MeasureError: Not even the longest sample alone can be measured.
    """
    from gracekit.checkpoints import pin

    probe_tokens = min(recipe.scoring.batch_tokens, _PROBE_TOKENS)
    probe = recipe.override({"scoring.batch_tokens": probe_tokens})
    refresher = Refresher.from_recipe(probe, strict=strict)
    with tempfile.TemporaryDirectory() as folder, pin(checkpoint, Path(folder)) as pinned:
        cache = Path(folder)
        tokenizer, tokens = _tokenize(refresher, pinned, cache)
        planned = _planned(refresher, checkpoint, lambda: tokens)
        plan, lengths = planned.shown, planned.lengths
        if planned.places is not None:
            tokens = tokens.arranged(planned.places)
        target = refresher.target_samples(tokenizer, cache)
        with _Memory() as memory:
            executor = refresher.executor(pinned, tokenizer, tokens, target)
            memory.model_is_loaded()
            longest, drawn = _probe_rows(planned.plan.rows, tokens, probe)
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
    num_tokens = plan.num_tokens
    at_most = num_tokens * plan.max_rows / max(plan.num_rows, 1)
    n = plan.num_samples
    root = next(p for p in (refresher.root, *refresher.root.absolute().parents) if p.exists())
    return CostEstimate(
        plan=plan,
        device=memory.device,
        tokens_per_s=speed,
        seconds=num_tokens / speed,
        max_seconds=at_most / speed,
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


class _Memory:
    """What model and batches take, of the GPU if the pass runs on one, else of the process."""

    device = "cpu"
    of_model = 0
    of_batches = 0
    """At most, beside the model."""

    def __enter__(self) -> Self:
        import torch

        self._on_gpu = torch.cuda.is_available()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.free = torch.cuda.mem_get_info()[0] if self._on_gpu else _free_memory()
        self._before = _resident(peak=False)
        return self

    def model_is_loaded(self) -> None:
        """From here on it is batches."""
        import torch

        self._on_gpu = self._on_gpu and torch.cuda.memory_allocated() > 0
        if self._on_gpu:
            self.device, self.of_model = torch.cuda.get_device_name(), torch.cuda.memory_allocated()
        else:
            self.of_model = max(_resident(peak=False) - self._before, 0)

    def __exit__(self, *error: object) -> None:
        import torch

        if self._on_gpu:
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = _resident(peak=True) - self._before
        self.of_batches = max(peak - self.of_model, 0)


def _resident(*, peak: bool) -> int:
    """Bytes of the process, now or at most since the last question about now.

    Where Linux's files are missing: at most since its start.
    """
    try:
        if not peak:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        name = "VmHWM" if peak else "VmRSS"
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if peak else 0


def _free_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _disk_bytes(
    recipe: Recipe, num_rows: int, num_measured: int, width: int, num_tokens: int
) -> int:
    """Files of one version: tokens, features, index, scores; and shards while measuring."""
    k, num_scores = recipe.graph.num_neighbors, len(recipe.scoring.scores)
    of_index = 8 * width + 8 * (k + 16) + 8 * recipe.graph.hnsw_m
    of_row = 2 * width + of_index + 4 * num_scores + 40
    return num_rows * of_row + num_measured * (2 * width + 4 * num_scores + 8) + 4 * num_tokens


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
