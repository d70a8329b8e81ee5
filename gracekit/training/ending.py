"""When to end a training that follows a target: what the versions advise."""

from __future__ import annotations

import logging
from pathlib import Path

from gracekit.errors import GracekitError
from gracekit.training.coreset import Coreset
from gracekit.training.ranks import decide_on_rank_zero

logger = logging.getLogger("gracekit.training")


class Ending:
    """Looks once at each version, and says what it advises.

    Args:
        store: directory of the store; only rank 0 reads it.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self._looked_at = 0

    def look(self, version: int, *, speaks: bool) -> bool:
        """Whether the training is to end now; all ranks must call it at the same time.

        Args:
            version: that is in use; 0 is the whole dataset.
            speaks: whether it is this rank that says so in the log.
        """
        if version <= self._looked_at:
            return False
        found = decide_on_rank_zero(lambda: self._read(version))
        if found is None:
            return False
        self._looked_at = version
        advice, stop = found
        if advice is None or stop == "never":
            return False
        if speaks:
            logger.warning(
                "version %d %s: %s%s",
                version,
                "ends the training" if stop == "stop" else "advises to end the training",
                advice,
                "" if stop == "stop" else " (training.stop: stop in the recipe ends it there)",
            )
        return stop == "stop"

    def _read(self, version: int) -> tuple[str | None, str] | None:
        try:
            view = Coreset.load(self.store, version).view
        except GracekitError as error:
            logger.warning("what version %d advises cannot be read: %s", version, error)
            return None
        return view.advice, view.stop
