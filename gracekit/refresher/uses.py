"""What the draws so far gave each row, as the next draw has to know it."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from gracekit.draw.over_time import settled
from gracekit.errors import StoreError
from gracekit.scores.rows import filled
from gracekit.store import StoreReader, newest_run, read_uses, require_uses_fit
from gracekit.types import Bool, Draw, DrawState, Rows, SampleTable

logger = logging.getLogger(__name__)


def state_now(
    store: StoreReader, samples: SampleTable, parent: Rows | None, step: int | None = None
) -> DrawState:
    """The state after everything that was drawn so far.

    It is what the trainer's run had logged at the step or last before it. Where no trainer logs
    what it trained on, each version's coreset counts as trained on once.

    Args:
        store: The store.
        samples: The sample table [n] as it is now. Of rows whose content is newer than the latest
            version nothing is known.
        parent: The coreset of the latest version; None when there is none.
        step: Training step of the checkpoint; None: as far as was logged.
    """
    n, version = len(samples), store.latest()
    logged = _logged_state(store, samples, step)
    if logged is not None:
        return logged
    if version is None or parent is None:
        return DrawState.none(n)
    drawn = store.drawn(version)
    if drawn is None:  # of an older release
        return DrawState.none(n)
    handed_out = np.zeros(len(drawn), np.int32)
    handed_out[parent] = 1
    due = handed_out.astype(np.float64) if drawn.draw is None else drawn.draw.probabilities
    return grown(settled(drawn.state, due, handed_out), samples.content_versions > version)


def _logged_state(store: StoreReader, samples: SampleTable, step: int | None) -> DrawState | None:
    """What the newest run had logged at a step, or last before it; None where nothing is of use."""
    dataset = store.dataset()
    known = {dataset.positions, *dataset.sources}
    for logged_step, path in reversed(newest_run(store.paths).items()):
        if step is not None and logged_step > step:
            continue
        try:
            logged = read_uses(path)
            require_uses_fit(path, logged.facts, len(logged), known=known, n=len(samples))
        except StoreError as error:
            logger.warning("a log of uses is passed over: %s", error)
            continue
        state = settled(logged.state, logged.epoch_due, logged.epoch_uses)
        is_new = samples.content_versions > logged.facts.newest_version
        source = {"run": logged.facts.run, "step": logged_step}
        return replace(grown(state, is_new), source=source)
    return None


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
