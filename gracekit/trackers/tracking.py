"""`Tracking`: each new version is logged, by a thread for each tracker that nobody waits for."""

from __future__ import annotations

import logging
import threading
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
from gracekit.trackers.worker import TrackerProcess
from gracekit.version.log_numbers import PREFIX

logger = logging.getLogger(__name__)

CLOSE_S = 20.0
"""Seconds that the end of the daemon waits for trackers that still log or close."""


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
        for each in self._loggers:
            each.join()


class _Logger:
    """One tracker, and the thread that feeds it."""

    def __init__(self, name: str, recipe: Recipe) -> None:
        self._name = name
        self._recipe = recipe
        self._paths = StorePaths(Path(recipe.store))
        self._folder = self._paths.trackers / name.replace(":", ".")
        self._facts: KnownFacts = {}
        self._process: TrackerProcess | None = None
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

    def join(self) -> None:
        """Wait for the last versions to be logged, up to `CLOSE_S`."""
        self._thread.join(CLOSE_S)
        process = self._process
        if self._thread.is_alive() and process is not None:
            self._has_warned = True  # said here, and better than by the thread
            process.kill()
            logger.warning(
                "the tracker %s did not end within %g s and was ended; versions that it lacks are "
                "logged by the next `gracekit watch` with it",
                self._name, CLOSE_S,
            )  # fmt: skip

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._told.wait()
            self._told.clear()
            is_last = self._ended.is_set()
            try:
                self._catch_up()
                if self._is_failing:
                    logger.info("the tracker %s works again", self._name)
                self._is_failing = False
            except BaseException as error:  # a tracker is no reason to end anything
                self._fail(error)
        self._close()

    def _catch_up(self) -> None:
        """Begin or go on with the run, and log what it lacks."""
        logged = Logged.begin(self._folder)
        if self._process is None:
            self._process = TrackerProcess(self._tracked_run(logged.run))
            self._process.open(self._name)
        if not StoreReader.exists(self._paths.root):
            return  # the daemon waits for its first checkpoint
        store = StoreReader.open(self._paths.root, facts=self._facts)
        for version in store.all_versions():
            if version > logged.version:
                values = version_values(store, version)
                self._process.log(values, int(values[f"{PREFIX}step"]))
                logged = logged.up_to(version)
                logged.save(self._folder)

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
        if self._process is not None:
            self._process.kill()
        self._process = None

    def _close(self) -> None:
        if self._process is None:
            return
        try:
            self._process.close(CLOSE_S)
        except BaseException as error:
            self._fail(error)
