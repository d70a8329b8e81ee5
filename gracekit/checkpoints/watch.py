"""Wait for checkpoints: a generator whose caller owns the loop."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gracekit.checkpoints.base_layout import quiet_s
from gracekit.checkpoints.discover import (
    Layouts,
    Obstacle,
    among_others,
    candidates_below,
    look,
    name_below,
    obstacle_of,
    unfinished,
    without_copies,
)
from gracekit.checkpoints.layouts import LAYOUTS, QUIET_S
from gracekit.checkpoints.other_layouts import TRACKERS
from gracekit.checkpoints.places import (
    History,
    Sight,
    by_run,
    followed_run,
    nothing_there,
    real_path,
    run_of,
    words_of_runs,
)
from gracekit.errors import CheckpointError, CheckpointIncompleteError, CheckpointVanishedError
from gracekit.foreign import foreign
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint

logger = logging.getLogger(__name__)

_MOST_NESTED = 2
"""Folders in a checkpoint that are looked into for changes: `actor/huggingface`."""

_MOST_SEEN = 50
"""Checkpoints of a run whose files are remembered: more than a trainer saves in `settle_s`."""

Entry = tuple[str, int, int, int]
Signature = tuple[str | None, tuple[Entry, ...]]
"""The marker that says it is being written, and name, size, time and mode of what it contains:
changes when anything changes that tells whether the checkpoint is complete."""


def watch_checkpoints(
    root: Path,
    settings: CheckpointSection,
    *,
    is_done: Callable[[Checkpoint], bool],
    is_refused: Callable[[Checkpoint], bool] = lambda checkpoint: False,
    stop: threading.Event,
    layouts: Layouts = LAYOUTS,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], bool] | None = None,
) -> Iterator[Checkpoint]:
    """Yield complete checkpoints of `root` and below it as they appear, until `stop` is set.

    Of several runs one is followed, as `places.followed_run` says: the one in the folder itself,
    else the one that began last, and where that is silent one that goes on.

    Polls, because notifications of a file system do not reach other hosts. Each checkpoint is
    yielded once, and again only when its files change; so one that the caller could not use is
    not tried in vain. With `on_backlog: latest` older ones that wait are passed over, unless the
    caller refuses the latest: then the next older one comes. With `all` each is yielded in turn.
    `root` need not exist yet.

    The first checkpoint of a run, and one that lacks a file that the one before it had, are used
    when nothing has changed for `settle_s`, whatever marker they have: a copy may bring the marker
    first. Where the trainer deletes each before that, the first that comes `settle_s` later is
    used.

    Logs, each message once: INFO "waiting for checkpoint-20: trainer_state.json is not there yet",
    "waiting for runs/sft: there is no such directory yet", what is there where nothing looks like a
    checkpoint, and which of several runs is followed; WARNING "cannot use checkpoint-20: ...".

    Args:
        root: The trainer's output directory, one above it, or a checkpoint.
        settings: Polling, quiet period, ready marker and backlog policy of the recipe.
        is_done: Whether a checkpoint needs no refresh; asked before it is yielded.
        is_refused: Whether a checkpoint that was yielded could not be used.
        stop: Ends the iteration, at once also while waiting.
        layouts: The layouts to recognise, by name.
        clock: Seconds of a steady clock.
        wait: Called with the seconds until the next look, returns whether to stop; `stop.wait` by
            default. A daemon may do its housekeeping here.
    """
    watcher = _Watcher(real_path(root), settings, is_done, is_refused, layouts, clock)
    while not stop.is_set():
        checkpoint = watcher.next_checkpoint()
        if checkpoint is not None:
            yield checkpoint
        elif (wait or stop.wait)(settings.poll_interval_s):
            return


@dataclass(slots=True)
class _Sighting:
    """The last look at one directory."""

    signature: Signature
    trackers: tuple[Entry, ...]
    """Files beside it that its layout reads. They change at each save of the run, and so say
    nothing of how long this checkpoint has been as it is."""
    since: float
    """When this signature was first seen."""
    outcome: Checkpoint | Obstacle | None


class _Watcher:
    def __init__(
        self,
        root: Path,
        settings: CheckpointSection,
        is_done: Callable[[Checkpoint], bool],
        is_refused: Callable[[Checkpoint], bool],
        layouts: Layouts,
        clock: Callable[[], float],
    ) -> None:
        self._root = root
        self._settings = settings
        self._is_done = is_done
        self._is_refused = is_refused
        self._layouts = layouts
        self._clock = clock
        self._sightings: dict[Path, _Sighting] = {}
        self._said: dict[Path, str] = {}
        self._history: History = {}
        """When the checkpoints of each run were written, as far as they were seen."""
        self._seen: dict[Path, dict[Path, tuple[float, frozenset[str]]]] = {}
        """Of each run the last checkpoints with a marker: since when, and names of their files."""
        self._handled: dict[Path, Checkpoint] = {}
        """Yielded, done or passed over, in the state in which that happened."""
        self._yielded: Checkpoint | None = None
        self._behind: list[Checkpoint] = []
        """Passed over for the one that was yielded last; they come back if it is refused."""

    def next_checkpoint(self) -> Checkpoint | None:
        """Look at the directory once; the checkpoint to refresh now, if there is one."""
        if self._yielded is not None and self._is_refused(self._yielded):
            for older in self._behind:
                if self._handled.get(older.path) == older:
                    del self._handled[older.path]
        self._yielded, self._behind = None, []
        complete = self._complete()
        waiting = [c for c in complete if self._handled.get(c.path) != c]
        # What was handled when this look began: the yardstick of "newer" below.
        handled = [
            c for c in complete if self._handled.get(c.path) == c and not self._is_refused(c)
        ]
        for checkpoint in waiting.copy():
            if self._is_done(checkpoint):
                waiting.remove(checkpoint)
                handled.append(checkpoint)
                self._handled[checkpoint.path] = checkpoint
        if self._settings.on_backlog == "latest":
            newest = [c for c in waiting if _is_newer(c, handled)][-1:]
            self._behind = [c for c in waiting if c not in newest]
            for passed_over in self._behind:
                self._handled[passed_over.path] = passed_over
            waiting = newest
        if not waiting:
            return None
        self._handled[waiting[0].path] = waiting[0]
        self._yielded = waiting[0]
        return waiting[0]

    def _complete(self) -> list[Checkpoint]:
        """Every checkpoint of the run that is complete and settled, ascending by step."""
        sight = Sight()
        try:
            directories = candidates_below(self._root, self._settings, self._layouts, sight)
        except CheckpointError as error:
            self._say_unlisted(error)
            return []
        complete, num_seen = [], 0
        for directory in directories:
            try:
                with foreign(directory, CheckpointError):
                    outcome = self._look(directory)
            except CheckpointError as error:
                outcome = obstacle_of(error)
            num_seen += outcome is not None
            if isinstance(outcome, Checkpoint):
                if directory == self._root:
                    outcome = among_others(outcome, self._settings, self._layouts)
                complete.append(outcome)
                self._said.pop(directory, None)
            elif outcome is not None:
                self._say(directory, outcome)
        for gone in self._sightings.keys() - set(directories):
            del self._sightings[gone]
            self._said.pop(gone, None)
        if not num_seen:
            nothing = nothing_there(self._root, sight, self._settings.depth)
            self._say_once(
                self._root,
                f"waiting: {nothing}; docs/checkpoints.md lists what is read",
                about="nothing is there",
            )
        return self._of_run(without_copies(complete))

    def _of_run(self, complete: list[Checkpoint]) -> list[Checkpoint]:
        """Those of the run that is followed, without those that the caller refused."""
        refused = [c for c in complete if self._was_refused(c)]
        runs = by_run([c for c in complete if c not in refused], self._root)
        if not runs:
            return []
        chosen, why = followed_run(runs, self._history, self._root)
        if len(runs) == 1:
            self._said.pop(self._root, None)
        else:
            self._say_once(self._root, words_of_runs(runs, chosen, why, self._root))
        return runs[chosen]

    def _was_refused(self, checkpoint: Checkpoint) -> bool:
        """Whether it was yielded as it is and could not be used, whatever step it had."""
        handled = self._handled.get(checkpoint.path)
        is_same = handled is not None and handled.completed_at == checkpoint.completed_at
        return handled is not None and is_same and self._is_refused(handled)

    def _look(self, directory: Path) -> Checkpoint | Obstacle | None:
        """`discover.look` at directories that have changed, plus the quiet period."""
        try:
            signature = unfinished(directory, self._settings), _listing(directory)
            trackers = tuple(self._trackers(directory))
        except FileNotFoundError:
            return None
        now = self._clock()
        sighting = self._sightings.get(directory)
        if sighting is None or sighting.signature != signature:
            outcome = look(directory, self._settings, self._layouts)
            sighting = _Sighting(signature, trackers, since=now, outcome=outcome)
            self._sightings[directory] = sighting
        elif sighting.trackers != trackers:
            sighting.trackers = trackers
            sighting.outcome = look(directory, self._settings, self._layouts)
        elif isinstance(sighting.outcome, Obstacle) and now - sighting.since >= QUIET_S:
            # What is written under an old marker counts as complete when it has been quiet.
            sighting.since, sighting.outcome = now, look(directory, self._settings, self._layouts)
        outcome = sighting.outcome
        if not isinstance(outcome, Checkpoint):
            return outcome
        reason = self._unsettled(outcome, now - sighting.since)
        if reason is None:
            return outcome
        return Obstacle(error=CheckpointIncompleteError, reason=reason)

    def _trackers(self, directory: Path) -> Iterator[Entry]:
        """Files beside a checkpoint that name the last complete one, where its layout reads them.

        Others have files and links of that name too: `latest` is often the newest checkpoint.
        """
        for layout, name in TRACKERS.items():
            kind = self._layouts.get(layout)
            if kind is None or not kind(self._settings).matches(directory):
                continue
            with suppress(OSError):
                status = directory.with_name(name).stat()
                if stat.S_ISREG(status.st_mode):
                    yield name, status.st_size, status.st_mtime_ns, status.st_mode

    def _unsettled(self, checkpoint: Checkpoint, unchanged_s: float) -> str | None:
        """Why it has to be quiet for longer; None when it is to be used."""
        settle_s, path = self._settings.settle_s, checkpoint.path
        layout = self._layouts[checkpoint.layout](self._settings)
        is_marked = layout.is_marked(path)
        if not is_marked:
            settle_s = layout.settle_s(path)
        if self._settings.ready_marker or (not is_marked and unchanged_s >= settle_s):
            return None
        if not is_marked:
            return f"nothing says that it is complete, so {settle_s:g} s without a change must pass"
        files = layout.files(path)
        names = frozenset(str(f.relative_to(path)) for f in files if f != path)
        others = self._others(checkpoint, names, settle_s)
        missing = sorted(others[-1] - names) if others else []
        if (others and not missing) or max(unchanged_s, quiet_s(files)) >= settle_s:
            return None
        why = f"it has no {missing[0]}, as those before it" if missing else "it is the run's first"
        return f"{why}, and may be a copy under way, so {settle_s:g} s without a change must pass"

    def _others(
        self, checkpoint: Checkpoint, names: frozenset[str], settle_s: float
    ) -> list[frozenset[str]]:
        """What other checkpoints of the run hold, of those seen for so long, deleted ones too."""
        seen, now = self._seen.setdefault(run_of(checkpoint, self._root), {}), self._clock()
        since, _ = seen.get(checkpoint.path, (now, names))
        seen[checkpoint.path] = since, names
        for old in sorted(seen, key=lambda path: seen[path][0])[:-_MOST_SEEN]:
            del seen[old]
        return [
            found
            for path, (since, found) in seen.items()
            if path != checkpoint.path and now - since >= settle_s
        ]

    def _say_once(self, place: Path, message: str, about: str | None = None) -> None:
        """Say it where the last thing said of the place was another, or about something else."""
        if self._said.get(place) != (about or message):
            self._said[place] = about or message
            logger.info("%s", message)

    def _say(self, directory: Path, obstacle: Obstacle) -> None:
        if (
            obstacle.error is CheckpointVanishedError
            or self._said.get(directory) == obstacle.reason
        ):
            return
        self._said[directory] = obstacle.reason
        if obstacle.error is CheckpointIncompleteError:
            logger.info("waiting for %s: %s", name_below(directory, self._root), obstacle.reason)
        else:
            name = name_below(directory, self._root)
            logger.warning("cannot use %s: %s", name, obstacle.reason)

    def _say_unlisted(self, error: CheckpointError) -> None:
        """The root is not there yet, or a network mount fails for a while; else it is an error."""
        if isinstance(error.__cause__, FileNotFoundError):
            message = f"waiting for {self._root}: there is no such directory yet"
        elif isinstance(error.__cause__, OSError) and not isinstance(
            error.__cause__, NotADirectoryError
        ):
            message = f"{error}; trying again"
        else:
            raise error
        self._say_once(self._root, message)


def _is_newer(checkpoint: Checkpoint, handled: list[Checkpoint]) -> bool:
    """Later than all that is handled, by step or (a run that began anew) by time."""
    return all(
        checkpoint.step > other.step or checkpoint.completed_at > other.completed_at
        for other in handled
    )


def _listing(path: Path) -> tuple[Entry, ...]:
    """Of a directory and those in it down to where trainers nest a model's files, or of a file."""
    if not path.is_dir():
        status = path.stat()
        return ((path.name, status.st_size, status.st_mtime_ns, status.st_mode),)
    return tuple(sorted(_entries(path, _MOST_NESTED)))


def _entries(directory: Path, depth: int) -> Iterator[Entry]:
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            except OSError:  # a link that leads nowhere; what needs it says so
                status = entry.stat(follow_symlinks=False)
            yield entry.name, status.st_size, status.st_mtime_ns, status.st_mode
            if depth and stat.S_ISDIR(status.st_mode) and not entry.is_symlink():
                with suppress(OSError):
                    inner = list(_entries(Path(entry.path), depth - 1))
                    yield from (
                        (f"{entry.name}/{n}", size, at, mode) for n, size, at, mode in inner
                    )
