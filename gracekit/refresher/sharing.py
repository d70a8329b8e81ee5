"""A refresh that other hosts take part in: its shards are offered, claimed and collected.

The refresher claims shards as every worker does (see `store.files.shared_work`) and measures them
with the executor that the recipe names; what others finish is collected. Shards are cut as every
executor cuts them, so a version has the same bytes whoever measured it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import torch

from gracekit.checkpoints.devices import devices_for, resolve_device, resolve_dtype
from gracekit.errors import StoreWriteError
from gracekit.model_pass.batches import TokenSource
from gracekit.model_pass.context import TargetSamples
from gracekit.model_pass.pass_inputs import cut_shards
from gracekit.progress import Progress
from gracekit.protocols import Executor
from gracekit.recipe import Recipe, ScoringSection
from gracekit.store import Claim, Offer, SharedWork, StorePaths
from gracekit.types import Json, MeasuredTarget, Measurement, PinnedCheckpoint, Rows
from gracekit.version.program import own_code, program

logger = logging.getLogger(__name__)

LOOK_S = 0.2
"""Seconds between two looks for what others have finished."""


class SharingExecutor:
    """Implements `protocols.Executor` over one of this host and the workers on others.

    Args:
        own: Measures on this host.
        work: Where the work is shared; made anew here, and removed by `close`.
        tokens: Of all samples.
        scoring: Settings of the pass.
        task: What workers have to know (`describe`).
        target: The target set, if there is one.
    """

    def __init__(
        self,
        own: Executor,
        work: SharedWork,
        tokens: TokenSource,
        scoring: ScoringSection,
        task: Json,
        target: TargetSamples | None,
    ) -> None:
        self._own, self._work, self._tokens = own, work, tokens
        self._shard_rows = scoring.shard_rows
        self._num_workers = int(getattr(own, "num_workers", 1))
        of_target = None
        if target is not None:
            of_target = target.tokens.take(np.arange(len(target.groups)))
        self._left = work.open(task, of_target)
        """Shards that workers finished for a refresher that was killed."""
        self._is_open = False
        """Whether a round was begun that is not measured to its end."""
        self._num_by_others = 0

    def measure(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """As `protocols.Executor.measure`; raises `StoreWriteError` too."""
        return self._shards(rows, progress or Progress(), is_look=False)

    def look(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """As `measure`, of features alone."""
        return self._shards(rows, progress or Progress(), is_look=True)

    def target(self) -> MeasuredTarget | None:
        """What this host's executor says of it."""
        return self._own.target()

    def optimizer(self) -> Json | None:
        """What this host's executor found."""
        return self._own.optimizer()

    def close(self) -> None:
        """End the sharing, and let go of this host's executor.

        In the middle of a round, after an error or a stop, what workers have finished stays for the
        next start.
        """
        if self._num_by_others:
            logger.info("other hosts measured %d rows", self._num_by_others)
        try:
            if not self._is_open:
                self._work.close()
            else:
                with suppress(StoreWriteError):  # the next start does it; there is another error
                    self._work.leave()
        finally:
            self._own.close()

    def _shards(self, rows: Rows, progress: Progress, *, is_look: bool) -> Iterator[Measurement]:
        for shard in self._left:
            is_of_kind = is_look != bool(shard.scores)
            if is_of_kind and np.isin(shard.rows, rows).all():
                rows = rows[~np.isin(rows, shard.rows)]
                yield shard
        if not len(rows):
            return
        lengths = self._tokens.lengths
        shards = cut_shards(rows, lengths[rows], self._shard_rows)
        progress.plan(len(rows), int(lengths[rows].sum()))
        of_shards = [lengths[part] for part in shards]
        self._is_open = True
        offer = self._work.offer(shards, of_shards, self._tokens.take, is_look)
        is_whole = yield from self._measure_together(offer, progress)
        if is_whole:
            self._work.withdraw(offer)
            self._is_open = False

    def _measure_together(
        self, offer: Offer, progress: Progress
    ) -> Generator[Measurement, None, bool]:
        """Measure what nobody else does, and collect the rest, until all is there; whether it is,
        and there was no stop.
        """
        pending = set(range(len(offer)))
        waiting_since = time.monotonic()
        while pending:
            for shard in self._work.results(offer, pending):
                found = self._work.result(offer, shard)
                if found is not None:
                    pending.remove(shard)
                    self._num_by_others += len(found.rows)
                    progress.advance(len(found.rows), int(offer.lengths[offer.place(shard)].sum()))
                    waiting_since = time.monotonic()
                    yield found
            if progress.is_stopping or not pending:
                return not pending
            claims = self._claim(offer, pending)
            own = sorted(claim.shard for claim in claims)
            if not own and time.monotonic() - waiting_since >= self._work.lease_s:
                own = [min(pending)]  # whoever holds it is alive and does not get on
            if not own:
                progress.sign()
                time.sleep(LOOK_S)
                continue
            is_whole = yield from self._measure_own(offer, own, claims, progress)
            if not is_whole:
                return False
            for claim in claims:
                claim.finish("done")
            pending -= set(own)
            waiting_since = time.monotonic()
        return True

    def _measure_own(
        self, offer: Offer, own: list[int], claims: list[Claim], progress: Progress
    ) -> Generator[Measurement, None, bool]:
        """Measure some shards on this host; whether all of them, and not until a stop."""
        chosen = np.concatenate([offer.rows[offer.place(shard)] for shard in own])
        measure = self._own.look if offer.is_look else self._own.measure
        with ExitStack() as held:
            for claim in claims:
                held.enter_context(claim.kept(self._work.beat_s))
            yield from measure(chosen, _PartOf(progress))
        return not progress.is_stopping

    def _claim(self, offer: Offer, pending: set[int]) -> list[Claim]:
        """As many shards as this host measures at the same time, if there are so many."""
        claims: list[Claim] = []
        for _ in range(self._num_workers):
            rest = pending - {claim.shard for claim in claims}
            claim = self._work.claim(offer, rest, at_any_time=True)
            if claim is None:
                break
            claims.append(claim)
        return claims


class _PartOf(Progress):
    """Progress of some shards of a round: they are counted in the round's, which was planned."""

    def __init__(self, whole: Progress) -> None:
        super().__init__()
        self._whole = whole

    def plan(self, num_rows: int, num_tokens: int) -> None:
        self._whole.sign()

    def advance(self, num_rows: int, num_tokens: int) -> None:
        self._whole.advance(num_rows, num_tokens)

    def sign(self) -> None:
        whole: Progress | None = getattr(self, "_whole", None)
        if whole is not None:
            whole.sign()

    @property
    def is_stopping(self) -> bool:
        return self._whole.is_stopping


def share(
    own: Executor,
    *,
    paths: StorePaths,
    measure_id: str,
    pinned: PinnedCheckpoint,
    identity: str,
    recipe: Recipe,
    tokens: TokenSource,
    target: TargetSamples | None,
) -> SharingExecutor:
    """Offer to other hosts what an executor measures.

    Args:
        own: Measures on this host.
        paths: The store's paths.
        measure_id: Of the measurement.
        pinned: The checkpoint.
        identity: What makes the model besides its weights.
        recipe: Of the refresh.
        tokens: Of all samples.
        target: The target set, if there is one.

    Raises `StoreWriteError`.
    """
    work = SharedWork(paths, measure_id, recipe.scoring.lease_s)
    task = describe(paths, measure_id, pinned, identity, recipe, target)
    return SharingExecutor(own, work, tokens, recipe.scoring, task, target)


def describe(
    paths: StorePaths,
    measure_id: str,
    pinned: PinnedCheckpoint,
    identity: str,
    recipe: Recipe,
    target: TargetSamples | None,
) -> Json:
    """All that a worker needs besides the tokens, as plain values."""
    checkpoint, directory = pinned.checkpoint, pinned.directory.resolve()
    is_below = directory.is_relative_to(paths.root)
    of_target: dict[str, Any] | None = None
    if target is not None:
        of_target = {
            "lengths": target.tokens.lengths.tolist(),
            "groups": target.groups.tolist(),
            "group_names": list(target.group_names),
            "is_followed": target.is_followed,
            "keeps_sketches": target.keeps_sketches,
        }
    return {
        "session": secrets.token_hex(8),
        "measure_id": measure_id,
        "program": program(),
        "model": {
            # The store may be mounted elsewhere on another host.
            "below_store": paths.relative(directory) if is_below else None,
            "directory": str(directory),
            "path": str(checkpoint.path.resolve()),
            "step": checkpoint.step,
            "layout": checkpoint.layout,
            "completed_at": checkpoint.completed_at,
            "digest": pinned.digest,
            "identity": identity,
        },
        "recipe_digest": recipe.digest("data", "target", "scoring"),
        "scoring": recipe.scoring.model_dump(mode="json"),
        "checkpoints": recipe.checkpoints.model_dump(mode="json"),
        "own_code": own_code(recipe.scoring.scores),
        "device": device_facts(recipe.scoring),
        "target": of_target,
        "lease_s": recipe.scoring.lease_s,
    }


def device_facts(scoring: ScoringSection, device: str | None = None) -> Json:
    """What of a device decides about the last bits of a result.

    Args:
        scoring: Settings of the pass.
        device: The device; default: the recipe's.
    """
    found = resolve_device(scoring.device if device is None else device)
    num_processes = 1
    if device is None and scoring.executor in ("auto", "processes"):  # which share the threads
        num_processes = len(devices_for(scoring.device, scoring.processes))
    threads = (scoring.num_threads or torch.get_num_threads()) // num_processes
    return {
        "type": found.type,
        "dtype": str(resolve_dtype(scoring.dtype, found)).removeprefix("torch."),
        "num_threads": max(1, threads),
    }
