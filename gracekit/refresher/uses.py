"""What the draws so far gave each row, as the next draw has to know it."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from gracekit.draw.over_time import settled
from gracekit.errors import StoreError, StoreFormatError
from gracekit.scores.rows import filled
from gracekit.store import (
    KEPT_USES,
    LoggedUses,
    StoreReader,
    newest_run,
    read_uses,
    require_uses_fit,
)
from gracekit.types import Bool, DrawState, Float64, Rows, SampleTable, TrainedLosses
from gracekit.version.sources import DrawnRows

logger = logging.getLogger(__name__)


def state_now(
    store: StoreReader, samples: SampleTable, parent: Rows | None, step: int | None = None
) -> DrawState:
    """The state after everything that was drawn so far; see `state_and_losses`."""
    return state_and_losses(store, samples, parent, step)[0]


def state_and_losses(
    store: StoreReader, samples: SampleTable, parent: Rows | None, step: int | None = None
) -> tuple[DrawState, TrainedLosses | None]:
    """The state after everything that was drawn so far, and the losses that the trainer saw.

    Both are what the trainer's run had logged at the step or last before it. Where no trainer logs
    what it trained on, each version's coreset counts as trained on once, and no loss is known.
    Where the latest version does not say how it was drawn (a store of an older release, or a
    damaged file), the coresets of the versions that are kept are counted, and nothing is owed.

    Args:
        store: The store.
        samples: The sample table [n] as it is now. Of rows whose content is newer than the latest
            version nothing is known.
        parent: The coreset of the latest version; None when there is none.
        step: Training step of the checkpoint; None: as far as was logged.

    Returns:
        The state, and the losses; None where the log has none.
    """
    logged = _log_at(store, samples, step)
    if logged is None:
        return _state_without_log(store, samples, parent), None
    is_new = samples.content_versions > logged.facts.newest_version
    state = settled(logged.state, logged.epoch_due, logged.epoch_uses)
    source = {"run": logged.facts.run, "step": logged.facts.step}
    losses = None
    if logged.trained.known.any():
        losses = logged.trained.without(_forgotten(len(logged), is_new))
    return dataclasses.replace(grown(state, is_new), source=source), losses


def _state_without_log(store: StoreReader, samples: SampleTable, parent: Rows | None) -> DrawState:
    version = store.latest()
    if version is None or parent is None:
        return DrawState.none(len(samples))
    drawn = _drawn(store, version)
    if drawn is None:
        return _counted(store, samples)
    handed_out = np.zeros(len(drawn), np.int32)
    handed_out[parent] = 1
    due = handed_out.astype(np.float64) if drawn.draw is None else drawn.draw.probabilities
    return grown(settled(drawn.state, due, handed_out), samples.content_versions > version)


def _log_at(store: StoreReader, samples: SampleTable, step: int | None) -> LoggedUses | None:
    """What the newest run had logged at a step, or last before it; None where nothing is of use."""
    dataset = store.dataset()
    known = {dataset.positions, *dataset.sources}
    files = newest_run(store.paths)
    oldest = min(files, default=0)
    if step is not None and step < oldest and len(files) >= KEPT_USES:
        logger.warning(
            "what was trained on up to step %d is no longer logged: the oldest log that is kept, "
            "of step %d, is taken",
            step,
            oldest,
        )
        step = oldest
    for logged_step, path in reversed(files.items()):
        if step is not None and logged_step > step:
            continue
        try:
            logged = read_uses(path)
            require_uses_fit(path, logged.facts, len(logged), known=known, n=len(samples))
        except StoreError as error:
            logger.warning("a log of uses is passed over: %s", error)
            continue
        return logged
    return None


def last_probabilities(store: StoreReader, samples: SampleTable) -> Float64 | None:
    """[n] how likely the rows of the latest version were; None where that is not known.

    0 for samples that have joined the data or changed since.
    """
    version = store.latest()
    drawn = None if version is None else _drawn(store, version)
    if version is None or drawn is None or drawn.draw is None:
        return None
    forgotten = _forgotten(len(drawn), samples.content_versions > version)
    return filled(drawn.draw.probabilities, 0, forgotten)


def num_distinct_random(store: StoreReader, samples: SampleTable) -> float:
    """How many of the samples random draws of the same sizes would have used by now, on average.

    Each version says it of itself (`gracekit.selection.repetition`); of what it says the share of
    its samples counts that are in the data still. Where the latest version does not say it, its
    coreset counts.
    """
    version = store.latest()
    if version is None:
        return 0.0
    header = store.header(version)
    found = header.selection.num_distinct_random
    stays = int((samples.present & (samples.content_versions <= version)).sum())
    share = min(1.0, stays / max(1, header.stats.num_samples))
    return share * (header.stats.num_selected if found is None else found)


def grown(state: DrawState, is_new: Bool) -> DrawState:
    """The state as it stands for n rows, of which some are new.

    Args:
        state: Of the first rows.
        is_new: [n] rows of which it says nothing.
    """
    forgotten = _forgotten(len(state), is_new)
    return DrawState(
        uses=filled(state.uses, 0, forgotten),
        owed=filled(state.owed, 0, forgotten),
        start_low=filled(state.start_low, 0, forgotten),
        start_high=filled(state.start_high, 1, forgotten),
    )


def _forgotten(num_known: int, is_new: Bool) -> Bool:
    """[n] rows of which nothing is known: new ones, and those beyond the known."""
    forgotten = is_new.copy()
    forgotten[num_known:] = True
    return forgotten


def _drawn(store: StoreReader, version: int) -> DrawnRows | None:
    """How a version was drawn; None where it does not say so, or not any more."""
    try:
        return store.drawn(version)
    except StoreFormatError as error:
        logger.warning(
            "how often each sample was used is lost, and is counted anew from the coresets of the "
            "versions that are kept: %s",
            error,
        )
        return None


def _counted(store: StoreReader, samples: SampleTable) -> DrawState:
    """The state as the coresets tell it that are kept."""
    uses = np.zeros(len(samples), np.int32)
    for version in store.versions():
        try:
            rows = store.coreset(version)["row"].to_numpy()
        except StoreFormatError:  # damaged, as `gracekit verify` says
            continue
        uses[rows[samples.content_versions[rows] <= version]] += 1
    return dataclasses.replace(DrawState.none(len(samples)), uses=uses)
