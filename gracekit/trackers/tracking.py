"""`Tracking`: each new version is logged, by a thread for each tracker that nobody waits for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from gracekit.errors import GracekitError
from gracekit.foreign import reason_of
from gracekit.protocols import TrackedRun
from gracekit.recipe import Recipe
from gracekit.store import KnownFacts, StorePaths, StoreReader
from gracekit.trackers.logged import Logged
from gracekit.trackers.names import require_tracker
from gracekit.trackers.values import version_values
from gracekit.trackers.worker import TrackerError, TrackerProcess
from gracekit.version.log_numbers import PREFIX

logger = logging.getLogger(__name__)

CLOSE_S = 20.0
"""Seconds that the end of the daemon waits for all trackers that still log or close."""
SAID_S = 1.0
"""Seconds of such waiting without a word."""
LOOK_S = 30.0
"""Seconds between two looks whether a tracker's process has ended."""


class Tracking:
    """Logs the versions of a store with some trackers, from `__enter__` to `__exit__`.

    All versions that a tracker's run lacks are logged in their order: also those of `gracekit
    refresh` and `select`, and those that it missed while it failed.

    Raises `RecipeError` where there is no such tracker, or its library is not installed.
    """

    def __init__(self, recipe: Recipe, names: Sequence[str]) -> None:
        for name in names:
            require_tracker(name)
        self._loggers = [_Logger(name, recipe) for name in dict.fromkeys(names)]

    def __enter__(self) -> Self:
        for each in self._loggers:
            each.start()
        return self

    def tell(self) -> None:
        """There may be a new version. Returns at once."""
        for each in self._loggers:
            each.tell()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for each in self._loggers:
            each.end()
        deadline = time.monotonic() + CLOSE_S
        for each in self._loggers:
            each.join(deadline)


class _Logger:
    """One tracker, and the thread that feeds it."""

    def __init__(self, name: str, recipe: Recipe) -> None:
        self._name = name
        self._recipe = recipe
        self._paths = StorePaths(Path(recipe.store))
        self._folder = self._paths.trackers / name.replace(":", ".")
        self._facts: KnownFacts = {}
        self._logged: Logged | None = None
        self._unread: set[int] = set()
        """Versions that were said to be unreadable."""
        self._process: TrackerProcess | None = None
        self._may_start = True
        self._lock = threading.Lock()
        """Of the two above: a process is started by the thread, and ended by `join` as well."""
        self._has_warned = self._is_failing = False
        self._told, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)

    def start(self) -> None:
        self._told.set()
        self._thread.start()

    def tell(self) -> None:
        self._told.set()

    def end(self) -> None:
        self._ended.set()
        self._told.set()

    def join(self, deadline: float) -> None:
        """Wait until that time for the last versions to be logged; then end the tracker."""
        self._thread.join(min(SAID_S, max(deadline - time.monotonic(), 0)))
        if self._thread.is_alive():
            left = max(deadline - time.monotonic(), 0)
            logger.info("waiting for the tracker %s, %.0f s at most", self._name, left)
            self._thread.join(left)
        if not self._thread.is_alive():
            return
        with self._lock:
            self._may_start = False
            process = self._process
        self._has_warned = True  # said here, and better than by the thread
        if process is not None:
            process.end()
        logger.warning(
            "the tracker %s did not end within %g s and was ended; versions that it lacks are "
            "logged by the next `gracekit watch` with it",
            self._name, CLOSE_S,
        )  # fmt: skip

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_told = self._told.wait(LOOK_S)
            self._told.clear()
            is_last = self._ended.is_set()
            try:
                if is_told:
                    self._catch_up()
                elif self._process is not None:
                    self._process.check()
                if self._is_failing and is_told:
                    logger.info("the tracker %s works again", self._name)
                    self._is_failing = False
            except BaseException as error:  # a tracker is no reason to end anything
                self._fail(error)
        self._close()

    def _catch_up(self) -> None:
        """Begin or go on with the run, and log what it lacks."""
        if self._logged is None:
            self._logged = Logged.begin(self._folder)
        process = self._begun(self._logged.run)
        if not StoreReader.exists(self._paths.root):
            return  # the daemon waits for its first checkpoint
        store = StoreReader.open(self._paths.root, facts=self._facts)
        for version in store.all_versions():
            if version <= self._logged.version:
                continue
            try:
                values = version_values(store, version)
            except GracekitError as error:
                self._pass_over(version, error)
                continue
            process.log(values, int(values[f"{PREFIX}step"]))
            self._logged = self._logged.up_to(version)
            self._note(self._logged)

    def _begun(self, run_id: str) -> TrackerProcess:
        """The process with its tracker; raises `TrackerError` where none may be started now."""
        with self._lock:
            process = self._process
            if process is not None:
                return process
            if not self._may_start:
                raise TrackerError("the daemon has ended")
            process = self._process = TrackerProcess(self._tracked_run(run_id))
        process.open(self._name)
        return process

    def _note(self, logged: Logged) -> None:
        """Write down what the run has; without it only the next daemon logs it once more."""
        try:
            logged.save(self._folder)
        except OSError as error:
            logger.log(
                logging.INFO if self._has_warned else logging.WARNING,
                "what the tracker %s has cannot be noted in %s: %s; until it can, a daemon that "
                "starts anew logs versions twice",
                self._name, self._folder, reason_of(error),
            )  # fmt: skip
            self._has_warned = True

    def _pass_over(self, version: int, error: GracekitError) -> None:
        if version not in self._unread:
            self._unread.add(version)
            logger.warning(
                "version %d cannot be read and is not logged with %s: %s",
                version,
                self._name,
                error,
            )

    def _tracked_run(self, run_id: str) -> TrackedRun:
        settings = self._recipe.watch
        return TrackedRun(
            id=run_id,
            name=settings.run_name or self._paths.root.name,
            project=settings.project,
            folder=self._folder,
            config=self._recipe.model_dump(mode="json"),
        )

    def _fail(self, error: BaseException) -> None:
        """Say it once; the tracker is made anew at the next version."""
        text = str(error) if isinstance(error, GracekitError) else reason_of(error)
        logger.log(
            logging.INFO if self._has_warned else logging.WARNING,
            "the tracker %s failed: %s; versions are made as before, and those that it lacks are "
            "logged when it works again, which is tried at each version",
            self._name, text,
        )  # fmt: skip
        self._has_warned = self._is_failing = True
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()

    def _close(self) -> None:
        if self._process is None:
            return
        try:
            self._process.close(CLOSE_S)
        except BaseException as error:
            self._fail(error)
