"""How far a refresh is, for whoever looks from another thread, and how it is asked to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from gracekit.errors import RefreshStoppedError
from gracekit.types import Json


class Progress:
    """Told by a refresh of each stage and batch; read by others at any moment.

    Args:
        stop: Ends the refresh after the batch in progress.
        clock: Seconds of a steady clock.
    """

    def __init__(
        self,
        stop: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stop = stop or threading.Event()
        self._clock = clock
        self._stage = ""
        self._began = self._last_sign = clock()
        self._planned = self._done = (0, 0)
        """Rows and tokens of the present round of the model pass."""

    def enter(self, stage: str) -> None:
        """A new stage begins; raises `RefreshStoppedError` when a stop was asked for."""
        if self._stop.is_set():
            raise RefreshStoppedError(
                f"stopped before the stage {stage!r}; what was measured is kept for the next "
                "start, and the last published version is unchanged"
            )
        self._stage = stage
        self.plan(0, 0)

    def plan(self, num_rows: int, num_tokens: int) -> None:
        """The present stage will work on so many rows and tokens."""
        self._began = self._clock()
        self._planned, self._done = (num_rows, num_tokens), (0, 0)
        self.sign()

    def advance(self, num_rows: int, num_tokens: int) -> None:
        """So many more rows and tokens are done."""
        rows, tokens = self._done
        self._done = rows + num_rows, tokens + num_tokens
        self.sign()

    def sign(self) -> None:
        """A sign of life where nothing else is to be told."""
        self._last_sign = self._clock()

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop.is_set()

    @property
    def silent_s(self) -> float:
        """Seconds since the last sign of life."""
        return self._clock() - self._last_sign

    def to_json(self) -> Json:
        """Stage; in the model pass also rows done and planned, and the seconds left of this round.

        The estimate goes by tokens, because the longest samples come first.
        """
        found: Json = {"stage": self._stage, "stage_s": round(self._clock() - self._began, 1)}
        (num_rows, num_tokens), (rows_done, tokens_done) = self._planned, self._done
        if num_rows:
            found |= {"num_done": rows_done, "num_planned": num_rows}
            if tokens_done:
                left = max(num_tokens - tokens_done, 0) / tokens_done
                found["seconds_left"] = round((self._clock() - self._began) * left, 1)
        return found
