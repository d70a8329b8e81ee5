"""What the draws so far gave each row, as the next draw has to know it."""

from __future__ import annotations

import numpy as np

from gracekit.draw.over_time import settled
from gracekit.scores.rows import filled
from gracekit.store import StoreReader
from gracekit.types import Bool, Draw, DrawState, Rows, SampleTable


def state_now(store: StoreReader, samples: SampleTable, parent: Rows | None) -> DrawState:
    """The state after everything that was drawn so far.

    Where no trainer logs what it trained on, each version's coreset counts as trained on once.

    Args:
        store: The store.
        samples: The sample table [n] as it is now. Of rows whose content is newer than the latest
            version nothing is known.
        parent: The coreset of the latest version; None when there is none.
    """
    n, version = len(samples), store.latest()
    if version is None or parent is None:
        return DrawState.none(n)
    drawn = store.drawn(version)
    if drawn is None:  # of an older release
        return DrawState.none(n)
    handed_out = np.zeros(len(drawn), np.int32)
    handed_out[parent] = 1
    due = handed_out.astype(np.float64) if drawn.draw is None else drawn.draw.probabilities
    return grown(settled(drawn.state, due, handed_out), samples.content_versions > version)


def last_draw(store: StoreReader, samples: SampleTable) -> Draw | None:
    """How likely the rows [n] of the latest version were; None where that is not known.

    None, too, where samples have joined the data or changed since.
    """
    version = store.latest()
    drawn = None if version is None else store.drawn(version)
    if drawn is None or version is None or (samples.content_versions > version).any():
        return None
    return drawn.draw if len(drawn) == len(samples) else None


def grown(state: DrawState, is_new: Bool) -> DrawState:
    """The state as it stands for n rows, of which some are new.

    Args:
        state: Of the first rows.
        is_new: [n] rows of which it says nothing.
    """
    forgotten = is_new.copy()
    forgotten[len(state) :] = True
    return DrawState(
        uses=filled(state.uses, 0, forgotten),
        owed=filled(state.owed, 0, forgotten),
        start_low=filled(state.start_low, 0, forgotten),
        start_high=filled(state.start_high, 1, forgotten),
    )
