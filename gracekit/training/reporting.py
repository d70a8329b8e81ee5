"""What a version is, in numbers for a trainer's log and in one line for people."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gracekit.errors import GracekitError, StoreError
from gracekit.store import list_versions
from gracekit.training.coreset import Coreset
from gracekit.training.ranks import decide_on_rank_zero
from gracekit.training.sampler import CoresetSampler
from gracekit.version.log_numbers import PREFIX, log_numbers

logger = logging.getLogger("gracekit.training")
announcer = logging.getLogger("gracekit.training.epochs")
"""What each epoch trains on. A level of its own above INFO silences it."""


class Reporter:
    """Tells a trainer's log of each version that it begins to draw from.

    Args:
        store: directory of the store; only rank 0 reads it.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self._log: Callable[[dict[str, float]], None] | None = None
        self._told = -1
        self._has_spoken = False

    def log_to(self, log: Callable[[dict[str, float]], None]) -> None:
        """Log with this method of a trainer, and so with all that it reports to."""
        self._log = log

    def begin(self) -> None:
        """A training begins."""
        self._told, self._has_spoken = -1, False

    def tell(self, version: int, control: Any) -> None:
        """Log the numbers of a version, once; all ranks must call it at the same time.

        Args:
            version: that is drawn from now; 0 is the whole dataset.
            control: the trainer's; what it was going to do, it still does.
        """
        if version == self._told or self._log is None:
            return
        self._told = version
        numbers = decide_on_rank_zero(lambda: version_numbers(self.store, version))
        if numbers is None:
            return
        is_due = control.should_log
        self._log({PREFIX + name: value for name, value in numbers.items()})
        control.should_log = is_due

    def speak(self, first: str, later: str) -> None:
        """Say at the beginning of an epoch what it trains on; to be called on one rank.

        The line of the first epoch of a training is seen wherever logs go: where nobody asked for
        logs of this level it is written to stderr, unless `announcer` is silenced.

        Args:
            first: the line for the first epoch of a training.
            later: that for any other.
        """
        text = later if self._has_spoken else first
        is_logged = announcer.isEnabledFor(logging.INFO) and announcer.hasHandlers()
        is_silenced = announcer.level > logging.INFO
        if is_logged or is_silenced or self._has_spoken:
            announcer.info("%s", text)
        else:
            tqdm.write(f"gracekit: {text}", file=sys.stderr)
        self._has_spoken = True


def version_numbers(store: Path, version: int) -> dict[str, float] | None:
    """Name -> number of a version as `log_numbers` has them; None where it cannot be read."""
    if version == 0:
        return {"version": 0}
    try:
        coreset = Coreset.load(store, version)
    except GracekitError as error:
        logger.warning("what version %d is worth cannot be read: %s", version, error)
        return None
    found = log_numbers(coreset.view.content)
    return {**found, "version": version, "step": coreset.step, "rows": len(coreset)}


def in_words(sampler: CoresetSampler, *, reaches_loss: bool) -> str:
    """What the present epoch trains on, in one line."""
    draws = f"{sampler.num_samples:,} draws an epoch"
    if sampler.version == 0:
        why = (
            f"no coreset of {sampler.store} was taken (where one was refused, a warning above says "
            "why)"
            if _has_versions(sampler.store)
            else "there is no coreset yet"
        )
        return (
            f"epoch {sampler.epoch + 1} trains on all {sampler.num_rows:,} samples, since {why}; "
            f"{draws}"
        )
    loss = "their weights count in the loss" if reaches_loss else "rows count alike in the loss"
    how = "drawn anew from" if sampler.is_drawn_anew else "the coreset's"
    return (
        f"epoch {sampler.epoch + 1} trains on coreset version {sampler.version} "
        f"(step {sampler.step}): {how} {sampler.num_drawable:,} of {sampler.num_rows:,} rows, "
        f"{draws}; {loss}"
    )


def described(sampler: CoresetSampler) -> str:
    """What is drawn from now, in few words."""
    if sampler.version == 0:
        none = "no coreset was taken" if _has_versions(sampler.store) else "no coreset yet"
        return f"all samples ({none})"
    return f"coreset version {sampler.version} (step {sampler.step})"


def _has_versions(store: Path) -> bool:
    """Whether there is a version, of which then none is in use."""
    try:
        return bool(list_versions(store))
    except StoreError:
        return False
