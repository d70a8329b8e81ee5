"""Factors of the target t for which no target set is measured: uses, copies, trust, loss."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np

from gracekit.aim import alike, copies, dose, one_place
from gracekit.aim.losses import CUT_TRUST, distrusted, excess, group_shares, learned, trust
from gracekit.recipe import Recipe, SelectionSection
from gracekit.samples.near_copies import NearCopies
from gracekit.samples.reference import ReferenceLosses
from gracekit.selection.lists import listed
from gracekit.store import StoreReader
from gracekit.types import (
    Bool,
    DrawState,
    Float32,
    Int64,
    Origin,
    Places,
    SampleTable,
    ScoreTable,
    SparseGraph,
)

logger = logging.getLogger(__name__)


def read_reference(recipe: Recipe, rendering: str | None = None) -> ReferenceLosses | None:
    """What a reference model says, where the selection goes by it.

    Args:
        recipe: Names the file.
        rendering: Of the samples in the run, as the file keeps its own; None: not known.

    Raises `DataError` where its file is not there, or is no such file.
    """
    settings = recipe.selection
    if settings.reference is None or not settings.reads_reference:
        return None
    if settings.selector != "balanced":
        logger.warning(
            "selection.trust, excess and group_quota: learned are followed by the selector "
            "balanced alone; %s goes by none of them",
            settings.selector,
        )
        return None
    found = ReferenceLosses.read(settings.reference)
    compares = settings.excess > 0 or settings.group_quota == "learned"
    if compares and rendering is not None and found.facts.get("rendering") != rendering:
        logger.warning(
            "%s was measured with other tokens than this run has (another tokenizer, chat template "
            "or data section), so its losses and those of now are not of the same tokens: measure "
            "it with a model that has the run's tokenizer",
            settings.reference,
        )
    return found


MANY_COPIES = 0.1
"""Share of the rows that say what an earlier one says, from which a word is said of them."""
MOST_OF_ONE, MANY_OF_ONE = 0.02, 20
"""Share of the rows, and how many at least, that say one thing, from which a word is said of it."""
MOST_ROWS_TOLD = 2_000_000
"""Rows above which copies are not counted unasked: it would take some 50 bytes a row."""
_WITHOUT_TARGET = ("dose", "copies", "trust", "excess", "group", "learned")


def with_factors(
    recipe: Recipe,
    places: Places,
    *,
    samples: SampleTable,
    scores: ScoreTable,
    graph: SparseGraph,
    state: DrawState | None,
    reference: ReferenceLosses | None,
    share_of_run: float,
    near_copies: NearCopies | None = None,
    store: StoreReader | Path | None = None,
) -> Places | None:
    """The places with the factors that no target's samples are measured for, as they are now.

    `near_copies` tells which rows say the same, by their tokens. Without it those that share a
    place in `places` still do, and only they; where none do, those of the same content. `store` is
    what `never_in_where` may ask: a row that is never in leaves its part of a place to the others.

    Returns None where there are no factors at all.
    """
    factors = {name: f for name, f in places.factors.items() if name not in _WITHOUT_TARGET}
    signals = {name: s for name, s in places.signals.items() if name != "evidence"}
    settings = recipe.selection
    if "aim" in factors:
        factors["dose"] = dose(state, settings.dose, len(samples))
    counted = samples.present & (samples.num_response_tokens > 0)
    counted &= scores.origin != Origin.INVALID
    copy_of = None
    if settings.duplicates == "share" and settings.selector == "balanced":
        copy_of, of_earlier = places.copy_of, places.factors.get("copies")
        if near_copies is not None or (copy_of is None and of_earlier is None):
            copy_of = _copies(graph, samples, counted, near_copies)
        if copy_of is None and of_earlier is not None:  # an earlier release knew no more
            factors["copies"] = of_earlier
        elif copy_of is not None and (copy_of >= 0).any():
            may_be_drawn = counted & (places.factors.get("allowed", np.ones(len(samples))) > 0)
            if settings.never_in or settings.never_in_where is not None:
                lists = settings.model_copy(update={"always_in": (), "always_in_where": None})
                found = listed(lists, scores=scores, samples=samples, store=store)
                may_be_drawn &= ~found.never
            factors["copies"] = one_place(copy_of, may_be_drawn)
        else:
            copy_of = None
    loss = scores.scores.get("loss")
    if reference is not None:
        of_reference, evidence = reference.of(samples.content_hashes)
        _warn_of_unknown(counted, of_reference, evidence, settings)
        if settings.trust != "off":
            cut = np.where(distrusted(evidence), CUT_TRUST, 1).astype(np.float32)
            factors["trust"] = cut if settings.trust == "cut" else trust(evidence)
            signals["evidence"] = evidence
        if settings.excess and loss is not None:
            factors["excess"] = excess(loss, of_reference, samples.groups, settings.excess)
        if settings.group_quota == "learned" and loss is not None:
            factors["group"] = group_shares(loss, of_reference, counted, samples.groups)
    goes_by_loss = settings.learned < 1 or settings.excess or settings.group_quota == "learned"
    if loss is None and goes_by_loss:
        logger.warning(
            "scoring.scores has no loss, so selection.excess, learned and group_quota: learned "
            "have nothing to go by; add loss"
        )
    if settings.learned < 1 and loss is not None and settings.selector == "balanced":
        if math.isnan(share_of_run):
            logger.warning(
                "how long the training is going to be is not known, so selection.learned changes "
                "nothing; set training.steps"
            )
        factors["learned"] = learned(loss, counted, settings.learned, share_of_run)
    return Places(factors=factors, signals=signals, copy_of=copy_of) if factors else None


def _copies(
    graph: SparseGraph, samples: SampleTable, counted: Bool, near_copies: NearCopies | None
) -> Int64:
    near = np.zeros((2, 0), np.int64)
    responses, openings = np.full((2, len(samples)), -1, np.int64)
    if near_copies is not None:
        near = alike(graph, samples, counted)
        near = near[:, near_copies.are_near(near)]
        rows = np.flatnonzero(counted)
        responses[rows], openings[rows] = near_copies.responses(rows), near_copies.openings(rows)
    return copies(samples, counted, near, responses, openings)


def tell_of_copies(
    recipe: Recipe,
    samples: SampleTable,
    places: Places | None,
    *,
    before: Places | None = None,
    is_first: bool = True,
) -> None:
    """Say that many samples say the same, or one thing is said by many, and what becomes of them.

    Where each counts by itself, those of the same content are told alone, of the first version.

    Args:
        recipe: Says what becomes of them.
        samples: The sample table [n].
        places: Of the samples.
        before: Those of the version before: what was told of it is not told again.
        is_first: Whether this is a first version.
    """
    settings = recipe.selection
    if settings.selector != "balanced":
        return
    if settings.duplicates == "share":
        if places is not None and _are_many(places) and not _are_many(before):
            _tell_of_shared(samples, places.factors["copies"])
        return
    if not is_first:
        return
    if len(samples) > MOST_ROWS_TOLD:
        return
    num_copies = len(samples) - samples.content_hashes.num_distinct
    if num_copies >= max(1, MANY_COPIES * len(samples)):
        logger.warning(
            "of %d samples %d say word for word what another one says, and each counts by itself, "
            "as selection.duplicates: keep has it. Where they are not meant to count more, `share` "
            "gives all that say the same one place",
            len(samples),
            num_copies,
        )


def _are_many(places: Places | None) -> bool:
    """Whether so many rows share a place with others, or one place, that it is told."""
    if places is None or "copies" not in places.factors or not len(places):
        return False
    shared = places.factors["copies"]
    most = max(MANY_OF_ONE, MOST_OF_ONE * len(shared))
    return bool((shared < 1).mean() >= MANY_COPIES or 1 / shared.min() >= most)


def _tell_of_shared(samples: SampleTable, shared: Float32) -> None:
    row = int(shared.argmin())
    logger.warning(
        "of %d samples %d say what another one says, word for word or but for one passage, "
        "or respond as it does. Those share one place (selection.duplicates: share), so "
        "that they count as %.0f. Most of all, %.0f, share that of %s: %s. `gracekit sql copies` "
        "lists them. If they are repeated on purpose, set selection.duplicates: keep",
        len(samples),
        (shared < 1).sum(),
        shared[shared < 1].sum(dtype=np.float64),
        1 / shared[row],
        samples.sample_ids[row],
        samples.previews[row],
    )


def _warn_of_unknown(
    counted: Bool, of_reference: Float32, evidence: Float32, settings: SelectionSection
) -> None:
    """Say so where there is little to go by, or most responses are distrusted."""
    num_counted = int(counted.sum())
    num_known = int((counted & np.isfinite(of_reference)).sum())
    if num_known < 0.9 * num_counted:
        logger.warning(
            "%s knows %d of %d samples: the others are wanted as if nothing were known of them; "
            "`gracekit reference` adds them",
            settings.reference,
            num_known,
            num_counted,
        )
    known = counted & np.isfinite(evidence)
    if settings.trust != "off" and num_known and not known.any():
        logger.warning(
            "selection.trust changes nothing: no sample has a prompt that can be compared with "
            "another one of its group"
        )
    num_distrusted = int(distrusted(evidence[known]).sum())
    if settings.trust != "off" and num_distrusted > known.sum() / 2:
        logger.warning(
            "%d of %d samples are distrusted: their prompts tell the reference model little. It "
            "may be unfit for this data; see docs/selection.md, or set selection.trust: off",
            num_distrusted,
            int(known.sum()),
        )
