"""The model pass in several processes, one for each device, each with its own copy of the model.

The parent cuts the rows into shards, longest first, and hands each process a shard as soon as it
is free, so that no device waits for another. It sends tokens, never the whole table, and gets back
what `LocalExecutor` measured. Results do not depend on the number of processes beyond rounding.

Processes are spawned: a script that measures must guard its start with `if __name__ == "__main__"`.
They ignore signals (the parent decides when to stop) and end with the parent, however that ends.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gracekit.errors import GracekitError, MeasureError
from gracekit.model_pass.batches import TokenSource, longest_first
from gracekit.model_pass.context import TargetSamples
from gracekit.model_pass.executors import LocalExecutor
from gracekit.progress import Progress
from gracekit.protocols import OptimizerState
from gracekit.recipe import ScoringSection
from gracekit.scores.meaning import needs
from gracekit.types import Bool, Int32, Int64, Json, MeasuredTarget, Measurement, Rows

logger = logging.getLogger(__name__)

Load = Callable[[str], tuple[torch.nn.Module, OptimizerState | None]]
"""Loads model and optimizer state onto a device; it is sent to the processes."""
TARGET, OPTIMIZER = "target", "optimizer"
"""Questions to a process."""
STOP = "stop"
"""Ends a shard after the batch in progress; needs no answer of its own."""
STOP_LOOK_S = 0.2
"""Seconds between two looks whether a stop was asked for."""
END_S = 5.0
"""Seconds that a process has to end by itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """Tokens of some rows: implements `TokenSource`, where a row is a place in the shard."""

    samples: list[tuple[Int32, Bool]]
    is_look: bool = False
    """Whether only features are wanted."""

    @property
    def lengths(self) -> Int64:
        """Tokens of each sample."""
        return np.array([len(ids) for ids, _ in self.samples], np.int64)

    def take(self, rows: Rows) -> list[tuple[Int32, Bool]]:
        """The samples at these places."""
        return [self.samples[row] for row in rows]


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

    def measure(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """As `LocalExecutor.measure`; shards come in the order in which they are finished.

        A stop reaches every process after the batch that it works on.

        Raises `MeasureError` too when a process ends by itself, as one does that the system kills
        for its memory.
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
        ordered = rows[longest_first(lengths)]
        waiting = [
            ordered[start : start + self._shard_rows]
            for start in range(0, len(ordered), self._shard_rows)
        ][::-1]
        busy: dict[Connection, Rows] = {}
        is_stopping = False
        with tqdm(total=int(lengths.sum()), unit="tok", unit_scale=True, disable=None) as bar:
            while waiting or busy:
                if progress.is_stopping and not is_stopping:
                    is_stopping, waiting = True, []
                    for connection in busy:
                        self._send(connection, STOP)
                    continue
                for connection in self._processes:
                    if waiting and connection not in busy:
                        busy[connection] = waiting.pop()
                        self._send(connection, Shard(self._tokens.take(busy[connection]), is_look))
                ready = set(wait([*busy], STOP_LOOK_S))
                for connection in [c for c in busy if c in ready]:
                    answer = self._receive(connection)
                    if isinstance(answer, tuple):
                        progress.advance(*answer)
                        bar.update(answer[1])
                        continue
                    of_shard = busy.pop(connection)
                    if answer is not None:
                        yield dataclasses.replace(answer, rows=of_shard[answer.rows])

    def target(self) -> MeasuredTarget | None:
        """What the first process measured of the target set; None without one."""
        found: MeasuredTarget | None = self._ask_any(TARGET) if self._has_target else None
        return found

    def optimizer(self) -> Json | None:
        """What the first process found; none is started to say that nothing was asked for."""
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
        self._processes = {}

    def _start_processes(self) -> None:
        if self._processes:
            return
        context = multiprocessing.get_context("spawn")
        for device in self._devices:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, device, *self._work), daemon=True
            )
            process.start()
            theirs.close()
            self._processes[ours] = process
        logger.info("measuring in %d processes: %s", len(self._devices), ", ".join(self._devices))

    def _ask_any(self, question: str) -> Any:
        self._start_processes()
        connection = next(iter(self._processes))
        self._send(connection, question)
        return self._receive(connection)

    def _send(self, connection: Connection, task: Shard | str) -> None:
        try:
            connection.send(task)
        except OSError:
            raise self._ended_by_itself(connection) from None

    def _receive(self, connection: Connection) -> Any:
        try:
            result = connection.recv()
        except (EOFError, OSError):
            raise self._ended_by_itself(connection) from None
        if isinstance(result, Exception):
            raise result
        return result

    def _ended_by_itself(self, connection: Connection) -> MeasureError:
        process = self._processes[connection]
        process.join(END_S)
        device = self._devices[list(self._processes).index(connection)]
        return MeasureError(
            f"the process measuring on {device} ended by itself (exit code {process.exitcode}; -9 "
            "is mostly the system, out of memory); lower scoring.processes or scoring.batch_tokens"
        )


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
        _answer(connection, _sendable(error))
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
            _answer(connection, _sendable(error))


def _answer(connection: Connection, result: object) -> None:
    try:
        connection.send(result)
    except OSError:  # the parent is gone, and with it the use of an answer
        return


def _sendable(error: Exception) -> Exception:
    """Our own errors as they are; others with their traceback as text."""
    if isinstance(error, GracekitError):
        return type(error)(str(error))
    return RuntimeError("".join(traceback.format_exception(error)))
