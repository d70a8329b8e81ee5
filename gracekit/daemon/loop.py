"""The loop: next complete checkpoint, refresh, publish; and what each kind of error does.

It runs over a generator of complete checkpoints, so that it has no clock of its own. One daemon
follows a store (its own lock); the writer's lock is taken for each refresh, so that `select` and
others work between two refreshes. The last version stays valid whatever happens:

- A checkpoint that vanished, does not fit, or that the model pass fails on (no memory, nothing
  finite) is reported and skipped. With `on_backlog: latest` an older one that is complete and not
  done is taken in its place.
- A selection that the data no longer allows (a quota), after one that it did, likewise.
- A store that cannot be written, or of which a version cannot be read (full or failing disk, lost
  mount or rights), is tried again with growing pauses, as long as it takes.
- Another writer is waited for.
- An error nobody foresaw is logged with its traceback and tried again; after `MOST_TRIES` the
  checkpoint is skipped. What is foreign (`gracekit.foreign`) has its own kind of error.
- What every checkpoint would meet (recipe, data, a damaged store) ends the daemon.

A stop takes effect after the batch in progress: what is measured is kept and the next start goes on
from it. Above 400 lines, so that what each kind of error does is seen together.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gracekit.checkpoints import RemoteRun, find_checkpoints, watch_checkpoints, why_none
from gracekit.daemon.heartbeat import Heartbeat, beating
from gracekit.daemon.notify import Notifier
from gracekit.daemon.release_memory import release_memory
from gracekit.errors import (
    CheckpointError,
    CheckpointIncompleteError,
    CheckpointVanishedError,
    ClusterError,
    GracekitError,
    MeasureError,
    RefreshStoppedError,
    RemoteError,
    SelectionError,
    StoreLockedError,
    StoreWriteError,
)
from gracekit.foreign import ENDS
from gracekit.progress import Progress
from gracekit.store import StorePaths, UnreadableError, lock_daemon
from gracekit.types import Checkpoint

if TYPE_CHECKING:
    from gracekit.daemon.metrics import Metrics
    from gracekit.refresher import Refresher, RefreshResult

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 300.0
MOST_TRIES = 3
"""Of a checkpoint on which an unforeseen error comes up."""
LOCK_LOOK_S = 1.0
"""Seconds between two tries to become the writer."""
LONGEST_SILENCE_S = 60.0
"""Seconds without a sign of life in a pause."""
OF_ONE_CHECKPOINT = (CheckpointError, MeasureError)
"""Errors that the next checkpoint may not have: this one is skipped."""
MAY_COME_BACK = (StoreWriteError, UnreadableError, ClusterError)
"""Errors of a disk, its mount or rights, or a cluster: the same checkpoint is tried again."""
PASSING = (CheckpointVanishedError, CheckpointIncompleteError)
"""Those of a trainer that goes on: nothing is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchReport:
    """What a daemon did until it ended."""

    num_published: int
    num_skipped: int
    was_stopped: bool


def watch(
    refresher: Refresher,
    checkpoint_dir: Path,
    *,
    stop: threading.Event,
    once: bool = False,
    max_checkpoints: int | None = None,
    on_version: Callable[[RefreshResult], None] = lambda result: None,
    metrics: Metrics | None = None,
    beside: AbstractContextManager[Any] | None = None,
    remote: RemoteRun | None = None,
) -> WatchReport:
    """Follow `checkpoint_dir` until `stop` is set, one refresh for each complete checkpoint.

    Args:
        refresher: Made from the recipe.
        checkpoint_dir: Where the trainer writes its checkpoints; may not exist yet.
        stop: Ends the loop after the batch in progress.
        once: Handle the newest complete checkpoint and return.
        max_checkpoints: Return after so many new versions.
        on_version: Called with each result.
        metrics: Counts what happens.
        beside: Entered once this daemon has the store to itself, and left at its end.
        remote: Brings a run from an object store into `checkpoint_dir`, before each look at it.

    Raises:
        StoreLockedError: Another daemon follows a run for this store.
        GracekitError: What every checkpoint would meet; with `once` also what this one met,
            or that there is no complete checkpoint, with the reason.
    """
    progress, notifier = Progress(stop), Notifier()
    path = StorePaths(refresher.root).heartbeat
    beat = (lambda content: None) if metrics is None else metrics.beat
    heartbeat = Heartbeat(path, checkpoint_dir, progress, notifier, beat)
    with (
        lock_daemon(refresher.root, checkpoint_dir),
        beating(heartbeat, notifier),
        beside or contextlib.nullcontext(),
    ):
        loop = _Loop(refresher, checkpoint_dir, stop, progress, heartbeat, metrics, remote)
        try:
            loop.clean_up()
            heartbeat.beat("waiting")
            refresher.publish(progress)  # what a start before this one could not
            notifier.ready()
            if not once:
                refresher.load_libraries()  # so that the first version comes sooner
            loop.run(once=once, max_checkpoints=max_checkpoints, on_version=on_version)
        except RefreshStoppedError as stopped:
            logger.info("%s", stopped)
        finally:
            notifier.stopping()
    return WatchReport(
        num_published=loop.num_published,
        num_skipped=loop.num_skipped,
        was_stopped=stop.is_set(),
    )


class _Loop:
    def __init__(
        self,
        refresher: Refresher,
        checkpoint_dir: Path,
        stop: threading.Event,
        progress: Progress,
        heartbeat: Heartbeat,
        metrics: Metrics | None,
        remote: RemoteRun | None,
    ) -> None:
        self._refresher = refresher
        self._checkpoint_dir = checkpoint_dir
        self._stop = stop
        self._progress = progress
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._remote = remote
        self._refused: set[Checkpoint] = set()
        self.num_published = self.num_skipped = 0

    def clean_up(self) -> None:
        """What a killed process left, once at the start."""
        with self._writing():
            pass

    def run(
        self,
        *,
        once: bool,
        max_checkpoints: int | None,
        on_version: Callable[[RefreshResult], None],
    ) -> None:
        for checkpoint in self._checkpoints(once):
            result = self._handle(checkpoint, once)
            release_memory()
            if result is not None:
                self._tell(result, on_version)
            if self._remote is not None:
                self._remote.handled(checkpoint.path)
            if max_checkpoints is not None and self.num_published >= max_checkpoints:
                return
            # Last: an object store that cannot be read holds up no version that was made.
            if not once and not self._bring():
                return

    def _tell(self, result: RefreshResult, on_version: Callable[[RefreshResult], None]) -> None:
        """Count a result, publish it, and give it to the caller."""
        if result.is_new:
            self.num_published += 1
            if self._metrics is not None:
                self._metrics.published(result.header)
        self._beat("waiting", version=result.version)
        self._refresher.publish(self._progress)
        on_version(result)

    def _checkpoints(self, once: bool) -> Iterator[Checkpoint]:
        """The newest complete checkpoint alone (`once`), or each as it appears."""
        settings = self._refresher.recipe.checkpoints
        if once:
            if self._remote is not None:
                self._remote.sync(self._require_going_on)
            found = find_checkpoints(self._checkpoint_dir, settings)
            if not found:
                raise CheckpointError(why_none(self._checkpoint_dir, settings))
            return iter(found[-1:])
        if not self._bring():
            return iter(())
        return watch_checkpoints(
            self._checkpoint_dir,
            settings,
            is_done=self._is_done,
            is_refused=self._refused.__contains__,
            stop=self._stop,
            wait=self._wait_for_next_look,
        )

    def _is_done(self, checkpoint: Checkpoint) -> bool:
        try:
            is_done = self._refresher.is_done(checkpoint)
        except UnreadableError:
            return False  # the refresh meets it too, and is tried again until it can be read
        if is_done and self._remote is not None:
            self._remote.handled(checkpoint.path)
        return is_done

    def _wait_for_next_look(self, seconds: float) -> bool:
        """Wait, and bring what a remote run has by then; whether to stop."""
        return self._pause(seconds) or not self._bring()

    def _bring(self) -> bool:
        """Bring a remote run to this disk, with growing pauses until it can be read; False: a stop.

        Until then nothing is looked at: a checkpoint could lack files that are to come.
        """
        num_tries = 0
        while self._remote is not None:
            try:
                self._remote.sync(self._require_going_on)
                if num_tries:
                    logger.info("%s can be read again", self._remote.url)
                    self._beat("waiting")
                break
            except RefreshStoppedError:
                return False
            except (RemoteError, StoreWriteError) as error:
                num_tries += 1
                self._count(error)
                pause_s = min(FIRST_PAUSE_S * 2 ** (num_tries - 1), LONGEST_PAUSE_S)
                logger.warning("%s; next try in %g s", error, pause_s)
                self._beat("failing", error=str(error), num_tries=num_tries)
                if self._pause(pause_s):
                    return False
        return True

    def _require_going_on(self) -> None:
        """A sign of life between two downloads; raises `RefreshStoppedError` at a stop."""
        self._progress.sign()
        if self._stop.is_set():
            raise RefreshStoppedError("stopped while a checkpoint was downloaded")

    def _handle(self, checkpoint: Checkpoint, once: bool) -> RefreshResult | None:
        """One refresh; None when the checkpoint was skipped."""
        try:
            return self._refresh_with_retries(checkpoint, once)
        except (*OF_ONE_CHECKPOINT, SelectionError) as error:
            self._count(error)
            # A selection that could be met before cannot for the data as it is now.
            is_recipe = isinstance(error, SelectionError) and not self.num_published
            if once or is_recipe:
                raise
            is_passing = isinstance(error, PASSING)
            logger.log(
                logging.INFO if is_passing else logging.WARNING,
                "skipping %s: %s", checkpoint.path.name, error, extra=_fields(checkpoint, error),
            )  # fmt: skip
            self._skip(checkpoint, "waiting" if is_passing else "failing", str(error))
        except (GracekitError, *ENDS):
            raise
        except BaseException as error:  # a daemon of weeks outlives a bug that one checkpoint met
            if once:
                raise
            logger.exception(
                "skipping %s after an unexpected error", checkpoint.path.name,
                extra=_fields(checkpoint, error),
            )  # fmt: skip
            self._skip(checkpoint, "failing", _in_words(error))
        return None

    def _refresh_with_retries(self, checkpoint: Checkpoint, once: bool) -> RefreshResult:
        """One refresh, tried again with growing pauses where that may help.

        Raises `RefreshStoppedError` when a stop was asked for.
        """
        num_tries = 0
        while True:
            try:
                with self._writing(checkpoint):
                    self._beat("refreshing", checkpoint)
                    return self._refresher.refresh(checkpoint, progress=self._progress)
            except GracekitError as error:
                if once or not isinstance(error, MAY_COME_BACK):
                    raise
                failure: BaseException = error
            except ENDS:
                raise
            except BaseException as error:
                if once or num_tries + 1 >= MOST_TRIES:
                    self._count(error)
                    raise
                failure = error
            num_tries += 1
            self._count(failure)
            self._wait_after(checkpoint, failure, num_tries)

    def _wait_after(self, checkpoint: Checkpoint, error: BaseException, num_tries: int) -> None:
        """A pause that doubles with each try; raises `RefreshStoppedError` at a stop."""
        pause_s = min(FIRST_PAUSE_S * 2 ** (num_tries - 1), LONGEST_PAUSE_S)
        message = str(error) if isinstance(error, GracekitError) else _in_words(error)
        logger.error(
            "refresh of %s failed, try %d; next in %g s: %s",
            checkpoint.path.name, num_tries, pause_s, message,
            exc_info=None if isinstance(error, GracekitError) else error,
            extra=_fields(checkpoint, error),
        )  # fmt: skip
        next_try = datetime.now(UTC) + timedelta(seconds=pause_s)
        self._beat(
            "failing",
            checkpoint,
            error=message,
            num_tries=num_tries,
            next_try_at=next_try.isoformat(timespec="seconds").replace("+00:00", "Z"),
        )
        if self._pause(pause_s):
            raise RefreshStoppedError("stopped in the pause before the next try")

    @contextlib.contextmanager
    def _writing(self, checkpoint: Checkpoint | None = None) -> Iterator[None]:
        """Be the store's writer, as soon as no other process is.

        Cleans up at the start (no checkpoint yet), and after a writer that was killed.
        """
        with ExitStack() as stack:
            said = ""
            while True:
                try:
                    is_first = checkpoint is None
                    stack.enter_context(self._refresher.locked(timeout_s=0, clean_up=is_first))
                    break
                except StoreLockedError as error:
                    if said != str(error):
                        said = str(error)
                        logger.info("waiting for the store: %s", said)
                    self._beat("blocked", checkpoint, error=said)
                    if self._pause(LOCK_LOOK_S):
                        raise RefreshStoppedError("stopped while another process wrote") from None
            yield

    def _skip(self, checkpoint: Checkpoint, state: str, message: str) -> None:
        self._refused.add(checkpoint)
        self.num_skipped += 1
        if self._metrics is not None:
            self._metrics.skipped()
        self._beat(state, checkpoint if state == "failing" else None, error=message)

    def _count(self, error: BaseException) -> None:
        if self._metrics is not None:
            self._metrics.failed(type(error).__name__)

    def _beat(self, state: str, checkpoint: Checkpoint | None = None, **facts: Any) -> None:
        self._progress.sign()
        self._heartbeat.beat(
            state,
            checkpoint=None if checkpoint is None else str(checkpoint.path),
            **facts,
            num_published=self.num_published,
            num_skipped=self.num_skipped,
        )

    def _pause(self, seconds: float) -> bool:
        """Wait, with signs of life; whether to stop."""
        while True:
            self._progress.sign()
            if self._stop.wait(min(seconds, LONGEST_SILENCE_S)):
                return True
            seconds -= LONGEST_SILENCE_S
            if seconds <= 0:
                return False


def _fields(checkpoint: Checkpoint, error: BaseException) -> dict[str, Any]:
    """What a JSON log tells besides the message."""
    name = type(error).__name__
    return {"checkpoint": str(checkpoint.path), "step": checkpoint.step, "error": name}


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
