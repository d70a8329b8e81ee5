"""The model pass on a Ray cluster: an actor for each GPU, or for some cores, on any of its hosts.

The refresher connects to the cluster that `RAY_ADDRESS` names, or starts one on this host for as
long as the refresh measures. It sends the tokens of a shard to an actor as soon as that is free,
and gets back what `LocalExecutor` measured there, so the results have the same bytes. An actor that
dies, alone or with its host, is replaced, and its shard measured again.

Hosts need the same gracekit, and see the store and the checkpoint under the same path. Where the
cluster's head is lost the pass ends with a `ClusterError` before Ray would end the whole process.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gracekit.errors import MeasureError, StoreError
from gracekit.model_pass.context import TargetSamples
from gracekit.model_pass.executors import LocalExecutor
from gracekit.model_pass.pass_inputs import MAX_TRIES, Load, PassInputs, Shard, cut_shards
from gracekit.model_pass.processes import sendable
from gracekit.model_pass.ray_cluster import Head, connect, import_ray, resources_of, room_for
from gracekit.progress import Progress
from gracekit.recipe import ScoringSection
from gracekit.scores.meaning import needs
from gracekit.types import Json, MeasuredTarget, Measurement, Rows
from gracekit.version.program import differences, program

logger = logging.getLogger(__name__)

LOOK_S = 0.5
"""Seconds between two looks at how far the actors are, and whether a stop was asked for."""
MEMORY = {"MALLOC_ARENA_MAX": "1"}
"""An actor with `max_concurrency` measures in a thread. From an arena of its own glibc gives memory
back after every batch, and gets it page by page for the next: a third more time on a CPU."""


@dataclasses.dataclass(slots=True)
class _Job:
    """A shard to measure, and what became of it so far."""

    rows: Rows
    num_tokens: int
    num_deaths: int = 0
    """Actors that have died over it."""
    number: int = 0
    """Of what was sent to actors; by it a stop is for this shard and no other."""
    done: tuple[int, int] = (0, 0)
    """Rows and tokens that were counted as done."""


class RayExecutor:
    """Implements `protocols.Executor` over `LocalExecutor`s in the actors of a Ray cluster.

    Args:
        inputs: What to measure. `scoring.processes` is the most actors; default: as many as the
            cluster has GPUs, or room for `num_threads` cores each. `scoring.device` `auto` is a GPU
            where the cluster has any.
    """

    def __init__(self, inputs: PassInputs) -> None:
        self._tokens, self._target = inputs.tokens, inputs.target
        self._shard_rows = inputs.scoring.shard_rows
        self._with_optimizer = bool(needs(inputs.scoring.scores, "optimizer"))
        threads = inputs.scoring.num_threads or torch.get_num_threads()
        self._ray = import_ray()
        self._has_started_ray = connect(self._ray)
        self._actors: dict[int, Any] = {}
        """Place -> actor."""
        self._head = Head(self._ray)
        try:
            device, num = room_for(inputs.scoring, threads, resources_of(self._ray))
        except BaseException:
            self.close()
            raise
        self._device, self._threads, self.num_workers = device, threads, num
        scoring = inputs.scoring.model_copy(
            update={"num_threads": threads, "executor": "local", "processes": None}
        )
        self._work = inputs.load, device, scoring, inputs.target
        self._num_sent = 0

    @classmethod
    def open(cls, inputs: PassInputs) -> RayExecutor:
        """Connect to the cluster, or start one; models are loaded with the first shards.

        Raises `RecipeError` where Ray is not installed, `ClusterError` where the cluster cannot be
        reached or has no room for an actor.
        """
        return cls(inputs)

    def measure(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """As `LocalExecutor.measure`; shards come in the order in which they are finished.

        A stop reaches every actor after the batch that it works on. Raises `MeasureError` too when
        `MAX_TRIES` actors have died over the same shard, `ClusterError` where the cluster's head
        is lost, and `StoreError` where a host of the cluster has other code.
        """
        return self._shards(rows, progress or Progress(), is_look=False)

    def look(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """As `LocalExecutor.look`; all else as in `measure`."""
        return self._shards(rows, progress or Progress(), is_look=True)

    def target(self) -> MeasuredTarget | None:
        """What one of the actors measured of the target set; None without one."""
        found: MeasuredTarget | None = self._ask("target") if self._target is not None else None
        return found

    def optimizer(self) -> Json | None:
        """What one of the actors found; none is asked where no score reads it."""
        found: Json | None = self._ask("optimizer") if self._with_optimizer else None
        return found

    def close(self) -> None:
        """End the actors, and the cluster if it was started here; leave one that is lost."""
        for actor in () if self._head.is_lost else self._actors.values():
            self._ray.kill(actor)
        self._actors = {}
        if self._has_started_ray or self._head.is_lost:
            self._ray.shutdown()
            self._has_started_ray = False

    def _shards(self, rows: Rows, progress: Progress, *, is_look: bool) -> Iterator[Measurement]:
        if not len(rows):
            return
        lengths = self._tokens.lengths
        progress.plan(len(rows), int(lengths[rows].sum()))
        shards = cut_shards(rows, lengths[rows], self._shard_rows)
        waiting = [_Job(part, int(lengths[part].sum())) for part in shards][::-1]
        busy: dict[Any, tuple[int, _Job]] = {}
        is_stopping = False
        total = int(lengths[rows].sum())
        with tqdm(total=total, unit="tok", unit_scale=True, disable=None) as bar:
            while waiting or busy:
                if progress.is_stopping and not is_stopping:
                    is_stopping, waiting = True, []
                    for place, job in busy.values():
                        self._actors[place].stop.remote(job.number)
                idle = set(range(self.num_workers)) - {place for place, _ in busy.values()}
                for place in sorted(idle)[: len(waiting)]:
                    job = waiting.pop()
                    shard = Shard(self._tokens.take(job.rows), is_look)
                    self._num_sent += 1
                    job.number = self._num_sent
                    busy[self._actor(place).measure.remote(shard, job.number)] = place, job
                if not busy:
                    return
                ready, _ = self._ray.wait([*busy], num_returns=1, timeout=LOOK_S)
                self._head.require()
                if not ready:
                    self._look_at(busy, progress, bar)
                for reference in ready:
                    place, job = busy.pop(reference)
                    try:
                        answer = self._get(reference)
                    except self._ray.exceptions.RayError as error:
                        self._bury(place, job, error, is_last=is_stopping)
                        _count(job, (0, 0), progress, bar)
                        if not is_stopping:
                            waiting.append(job)
                        continue
                    if answer is None:
                        continue
                    found = dataclasses.replace(answer, rows=job.rows[answer.rows])
                    num_tokens = int(lengths[found.rows].sum())
                    _count(job, (len(found.rows), num_tokens), progress, bar)
                    yield found

    def _look_at(self, busy: dict[Any, tuple[int, _Job]], progress: Progress, bar: Any) -> None:
        """Count what busy actors have done so far, as far as they answer."""
        asked = {self._actors[place].done.remote(): job for place, job in busy.values()}
        ready, _ = self._ray.wait([*asked], num_returns=len(asked), timeout=LOOK_S)
        for reference in ready:
            try:
                _count(asked[reference], self._ray.get(reference), progress, bar)
            except self._ray.exceptions.RayError:
                continue  # its shard will tell

    def _actor(self, place: int) -> Any:
        """The actor at a place, started where there is none."""
        if place not in self._actors:
            is_gpu = self._device != "cpu"
            options = {
                "num_cpus": 0 if is_gpu else self._threads,
                "num_gpus": int(is_gpu),
                "max_concurrency": 4,  # to be looked at, and stopped, while it measures
                "max_restarts": 0,
                "runtime_env": {"env_vars": MEMORY},
            }
            actor = self._ray.remote(_Worker).options(**options)
            self._actors[place] = actor.remote(*self._work, program())
        return self._actors[place]

    def _ask(self, question: str) -> Any:
        job = _Job(np.zeros(0, np.int64), 0)
        while True:
            try:
                reference = getattr(self._actor(0), question).remote()
                while not self._ray.wait([reference], timeout=LOOK_S)[0]:
                    self._head.require()
                return self._get(reference)
            except self._ray.exceptions.RayError as error:
                self._bury(0, job, error)

    def _get(self, reference: Any) -> Any:
        answer = self._ray.get(reference)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _bury(self, place: int, job: _Job, error: Exception, *, is_last: bool = False) -> None:
        """Let go of an actor that has died, and note that it has over this job.

        Raises `MeasureError` where too many have, unless nothing is to be measured after this.
        """
        actor = self._actors.pop(place, None)
        if actor is not None:
            self._ray.kill(actor)
        job.num_deaths += 1
        why = str(error).partition("\n")[0] or type(error).__name__
        if job.num_deaths < MAX_TRIES or is_last:
            logger.warning(
                "a Ray actor ended (%s); what it worked on is measured again: %d rows, try %d of "
                "%d",
                *(why, len(job.rows), job.num_deaths + 1, MAX_TRIES),
            )
            return
        over = f"the same {len(job.rows)} rows" if len(job.rows) else "the target set"
        raise MeasureError(
            f"a Ray actor ended ({why}), as {MAX_TRIES} did one after the other over {over}; look "
            "at the logs of its host, lower scoring.batch_tokens, or choose hosts with more memory"
        )


class _Worker:
    """The actor: one model on one device."""

    def __init__(
        self,
        load: Load,
        device: str,
        scoring: ScoringSection,
        target: TargetSamples | None,
        of_refresher: dict[str, str],
    ) -> None:
        self._parts = load, device, scoring, target
        self._differences = differences(of_refresher, program())
        self._lock = threading.Lock()
        self._executor: LocalExecutor | None = None
        self._report = _Report()

    def measure(self, shard: Shard, number: int) -> Measurement | Exception | None:
        """What of a shard was measured before a stop; errors are given, not raised."""
        try:
            with self._lock:
                report = self._report
                report.counted, report.number = (0, 0), number
                executor = self._opened().on(shard)
                run = executor.look if shard.is_look else executor.measure
                parts = list(run(np.arange(len(shard.samples)), report))
                return Measurement.concatenate(parts) if parts else None
        except Exception as error:
            return sendable(error)

    def done(self) -> tuple[int, int]:
        """Rows and tokens of the shard in progress that are measured."""
        return self._report.counted

    def stop(self, number: int) -> None:
        """End the shard of this number after the batch in progress."""
        self._report.stopped = number

    def target(self) -> MeasuredTarget | Exception | None:
        """What the model says of the target set."""
        found: MeasuredTarget | Exception | None = self._answer("target")
        return found

    def optimizer(self) -> Json | Exception | None:
        """What was found of the trainer's optimizer."""
        found: Json | Exception | None = self._answer("optimizer")
        return found

    def _answer(self, question: str) -> Any:
        try:
            with self._lock:
                return getattr(self._opened(), question)()
        except Exception as error:
            return sendable(error)

    def _opened(self) -> LocalExecutor:
        if self._executor is None:
            if self._differences:
                raise StoreError(
                    f"a host of the Ray cluster ({os.uname().nodename}) has other code than the "
                    f"refresh: {'; '.join(self._differences)}. Install the same versions on all"
                )
            load, device, scoring, target = self._parts
            model, optimizer = load(device)
            self._executor = LocalExecutor(
                model, Shard([]), scoring, target=target, optimizer=optimizer, show_progress=False
            )
        return self._executor


class _Report(Progress):
    """Counts what is done of a shard, for whoever looks from another thread."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = 0, 0
        self.number = self.stopped = 0
        """Of the shard in progress, and of the last that was to be stopped."""

    def advance(self, num_rows: int, num_tokens: int) -> None:
        self.counted = self.counted[0] + num_rows, self.counted[1] + num_tokens

    @property
    def is_stopping(self) -> bool:
        return self.stopped >= self.number


def _count(job: _Job, done: tuple[int, int], progress: Progress, bar: Any) -> None:
    """Bring what is counted of a job to what is done of it."""
    num_rows, num_tokens = done[0] - job.done[0], done[1] - job.done[1]
    job.done = done
    progress.advance(num_rows, num_tokens)
    bar.update(num_tokens)
