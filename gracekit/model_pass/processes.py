"""The model pass in several processes, one for each device, each with its own copy of the model.

The parent cuts the rows into shards, longest first, and hands each process a shard as soon as it
is free, so that no device waits for another. It sends tokens, never the whole table, and gets back
what `LocalExecutor` measured. Results do not depend on the number of processes; on that of the
threads that each has they do, in the last bits.

A process that dies is replaced, and its shard measured again: nothing of what is finished is lost.
Over the same shard `MAX_TRIES` of them may die.

Processes are spawned: a script that measures must guard its start with `if __name__ == "__main__"`.
They ignore signals (the parent decides when to stop) and end with the parent, however that ends.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import signal
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gracekit.errors import GracekitError, MeasureError
from gracekit.model_pass.batches import TokenSource
from gracekit.model_pass.context import TargetSamples
from gracekit.model_pass.executors import LocalExecutor
from gracekit.model_pass.pass_inputs import MAX_TRIES, Load, PassInputs, Shard, cut_shards
from gracekit.progress import Progress
from gracekit.recipe import ScoringSection
from gracekit.scores.meaning import needs
from gracekit.types import Json, MeasuredTarget, Measurement, Rows

logger = logging.getLogger(__name__)

TARGET, OPTIMIZER = "target", "optimizer"
"""Questions to a process."""
STOP = "stop"
"""Ends a shard after the batch in progress; needs no answer of its own."""
STOP_LOOK_S = 0.2
"""Seconds between two looks whether a stop was asked for."""
END_S = 5.0
"""Seconds that a process has to end by itself."""


class _ProcessEndedError(Exception):
    """A process ended by itself."""


@dataclasses.dataclass(slots=True)
class _Job:
    """A shard to measure, and what became of it so far."""

    rows: Rows
    num_deaths: int = 0
    """Processes that have died over it."""
    done: tuple[int, int] = (0, 0)
    """Rows and tokens that the process which works on it has reported."""


class ProcessExecutor:
    """Implements `protocols.Executor` over `LocalExecutor`s in other processes.

    Args:
        load: Loads the model onto a device.
        devices: Of each process; the same may come twice.
        tokens: Of all samples.
        scoring: Settings of the pass; CPU processes share `num_threads`.
        target: The target set, if there is one.
    """

    def __init__(
        self,
        load: Load,
        devices: list[str],
        tokens: TokenSource,
        scoring: ScoringSection,
        *,
        target: TargetSamples | None = None,
    ) -> None:
        self._tokens, self._devices = tokens, devices
        threads = scoring.num_threads or torch.get_num_threads()
        scoring = scoring.model_copy(update={"num_threads": max(1, threads // len(devices))})
        self._shard_rows = scoring.shard_rows
        self._has_target = target is not None
        self._with_optimizer = bool(needs(scoring.scores, "optimizer"))
        self._work = (load, scoring, target)
        self._processes: dict[Connection, Any] = {}
        self._places: dict[Connection, int] = {}
        """Which of the devices a process has, by its place."""
        self.num_workers = len(devices)
        """Shards that are measured at the same time."""

    @classmethod
    def open(cls, inputs: PassInputs) -> ProcessExecutor:
        """A process for each device; they are started when the first rows are to be measured."""
        return cls(
            inputs.load,
            list(inputs.devices),
            inputs.tokens,
            inputs.scoring,
            target=inputs.target,
        )

    def measure(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """As `LocalExecutor.measure`; shards come in the order in which they are finished.

        A stop reaches every process after the batch that it works on.

        Raises `MeasureError` too when `MAX_TRIES` processes have ended by themselves over the same
        shard, as those do that the system kills for their memory.
        """
        return self._shards(rows, progress, is_look=False)

    def look(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """As `LocalExecutor.look`; all else as in `measure`."""
        return self._shards(rows, progress, is_look=True)

    def _shards(
        self, rows: Rows, progress: Progress | None, *, is_look: bool
    ) -> Iterator[Measurement]:
        if not len(rows):
            return
        progress = progress or Progress()
        self._start_processes()
        lengths = self._tokens.lengths[rows]
        progress.plan(len(rows), int(lengths.sum()))
        waiting = [_Job(part) for part in cut_shards(rows, lengths, self._shard_rows)][::-1]
        busy: dict[Connection, _Job] = {}
        is_stopping = False
        with tqdm(total=int(lengths.sum()), unit="tok", unit_scale=True, disable=None) as bar:
            while waiting or busy:
                ended: set[Connection] = set()
                if progress.is_stopping and not is_stopping:
                    is_stopping, waiting = True, []
                    ended |= {c for c in busy if not self._send(c, STOP)}
                for connection in self._processes:
                    if waiting and connection not in busy:
                        job = busy[connection] = waiting.pop()
                        shard = Shard(self._tokens.take(job.rows), is_look)
                        if not self._send(connection, shard):
                            ended.add(connection)
                ready = set(wait([*busy], 0 if ended else STOP_LOOK_S)) - ended
                for connection in [c for c in busy if c in ready]:
                    job = busy[connection]
                    try:
                        answer = self._receive(connection)
                    except _ProcessEndedError:
                        ended.add(connection)
                        continue
                    if isinstance(answer, tuple):
                        job.done = job.done[0] + answer[0], job.done[1] + answer[1]
                        progress.advance(*answer)
                        bar.update(answer[1])
                        continue
                    del busy[connection]
                    if answer is not None:
                        yield dataclasses.replace(answer, rows=job.rows[answer.rows])
                for connection in ended:
                    job = busy.pop(connection)
                    self._bury(connection, job, is_last=is_stopping)
                    progress.advance(-job.done[0], -job.done[1])
                    bar.update(-job.done[1])
                    if not is_stopping:
                        waiting.append(_Job(job.rows, job.num_deaths))
                        self._start_processes()

    def target(self) -> MeasuredTarget | None:
        """What one of the processes measured of the target set; None without one."""
        found: MeasuredTarget | None = self._ask_any(TARGET) if self._has_target else None
        return found

    def optimizer(self) -> Json | None:
        """What one of the processes found; none is started to say that nothing was asked for."""
        found: Json | None = self._ask_any(OPTIMIZER) if self._with_optimizer else None
        return found

    def close(self) -> None:
        """End the processes, whatever they do."""
        for connection, process in self._processes.items():
            connection.close()  # who waits for work ends
            process.join(0 if process.exitcode is not None else END_S)
            if process.exitcode is None:
                process.kill()
                process.join()
        self._processes, self._places = {}, {}

    def _start_processes(self) -> None:
        """Start those that are not there yet, or no more."""
        missing = sorted(set(range(len(self._devices))) - set(self._places.values()))
        context = multiprocessing.get_context("spawn")
        for place in missing:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, self._devices[place], *self._work), daemon=True
            )
            process.start()
            theirs.close()
            self._processes[ours], self._places[ours] = process, place
        if missing:
            named = ", ".join(self._devices[place] for place in missing)
            logger.info("measuring in %d processes: started %s", len(self._devices), named)

    def _ask_any(self, question: str) -> Any:
        job = _Job(np.zeros(0, np.int64))
        while True:
            self._start_processes()
            connection = next(iter(self._processes))
            try:
                if self._send(connection, question):
                    return self._receive(connection)
            except _ProcessEndedError:
                pass
            self._bury(connection, job)

    def _send(self, connection: Connection, task: Shard | str) -> bool:
        """Whether the process is there to take it."""
        try:
            connection.send(task)
        except OSError:
            return False
        return True

    def _receive(self, connection: Connection) -> Any:
        try:
            result = connection.recv()
        except (EOFError, OSError):
            raise _ProcessEndedError from None
        if isinstance(result, Exception):
            raise result
        return result

    def _bury(self, connection: Connection, job: _Job, *, is_last: bool = False) -> None:
        """Let go of a process that has ended by itself, and note that it has over this job.

        Raises what it said at its end, as one that cannot load the model does, and `MeasureError`
        where too many have ended over the job, unless nothing is to be measured after this.
        """
        process, device = self._processes.pop(connection), self._devices[self._places[connection]]
        del self._places[connection]
        last = _last_word(connection)
        connection.close()
        if last is not None:
            process.join(END_S)
            raise last
        process.join(END_S)
        job.num_deaths += 1
        what = f"the process measuring on {device} ended by itself (exit code {process.exitcode}"
        if job.num_deaths < MAX_TRIES or is_last:
            logger.warning(
                "%s); what it worked on is measured again: %d rows, try %d of %d",
                *(what, len(job.rows), job.num_deaths + 1, MAX_TRIES),
            )
            return
        over = f"the same {len(job.rows)} rows" if len(job.rows) else "the target set"
        raise MeasureError(
            f"{what}; -9 is mostly the system, out of memory), as {MAX_TRIES} processes did one "
            f"after the other over {over}; lower scoring.processes or scoring.batch_tokens"
        )


def _last_word(connection: Connection) -> Exception | None:
    """The error that a process sent before it ended, while a shard was being sent to it."""
    try:
        while connection.poll():
            answer = connection.recv()
            if isinstance(answer, Exception):
                return answer
    except (EOFError, OSError):
        pass
    return None


class _Report(Progress):
    """Sends what is done to the parent; anything that it says meanwhile, or its end, is a stop."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def advance(self, num_rows: int, num_tokens: int) -> None:
        _answer(self._connection, (num_rows, num_tokens))

    @property
    def is_stopping(self) -> bool:
        return self._connection.poll()


def _serve(
    connection: Connection,
    device: str,
    load: Load,
    scoring: ScoringSection,
    target: TargetSamples | None,
) -> None:
    """One process: load the model once, then measure what comes until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        model, optimizer = load(device)
    except Exception as error:
        _answer(connection, sendable(error))
        return
    first = LocalExecutor(
        model, Shard([]), scoring, target=target, optimizer=optimizer, show_progress=False
    )
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if task == STOP:  # it came after the last batch
                continue
            if task == TARGET:
                _answer(connection, first.target())
            elif task == OPTIMIZER:
                _answer(connection, first.optimizer())
            else:
                rows, report = np.arange(len(task.samples)), _Report(connection)
                executor = first.on(task)
                shards = list((executor.look if task.is_look else executor.measure)(rows, report))
                _answer(connection, Measurement.concatenate(shards) if shards else None)
        except Exception as error:
            _answer(connection, sendable(error))


def _answer(connection: Connection, result: object) -> None:
    try:
        connection.send(result)
    except OSError:  # the parent is gone, and with it the use of an answer
        return


def sendable(error: Exception) -> Exception:
    """Our own errors as they are; others with their traceback as text."""
    if isinstance(error, GracekitError):
        return type(error)(str(error))
    return RuntimeError("".join(traceback.format_exception(error)))
