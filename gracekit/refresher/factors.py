"""Factors of the target t for which no target set is measured: uses, copies, trust, loss."""

from __future__ import annotations

import logging

import numpy as np

from gracekit.aim import copies, dose
from gracekit.aim.losses import distrusted, excess, group_shares, learned, trust
from gracekit.recipe import Recipe, SelectionSection
from gracekit.samples.reference import ReferenceLosses
from gracekit.types import (
    Bool,
    DrawState,
    Float32,
    Origin,
    Places,
    SampleTable,
    ScoreTable,
    SparseGraph,
)

logger = logging.getLogger(__name__)


def read_reference(recipe: Recipe) -> ReferenceLosses | None:
    """What a reference model says, where the selection goes by it.

    Raises `DataError` where its file is not there, or is no such file.
    """
    selection = recipe.selection
    asks = selection.trust != "off" or selection.excess or selection.group_quota == "learned"
    if selection.reference is None or not asks:
        return None
    return ReferenceLosses.read(selection.reference)


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
) -> Places | None:
    """The places with the factors that no target's samples are measured for, as they are now.

    Returns None where there are no factors at all.
    """
    factors = {name: f for name, f in places.factors.items() if name not in _WITHOUT_TARGET}
    signals = {name: s for name, s in places.signals.items() if name != "evidence"}
    settings = recipe.selection
    if "aim" in factors:
        factors["dose"] = dose(state, settings.dose, len(samples))
    counted = samples.present & (samples.num_response_tokens > 0)
    counted &= scores.origin != Origin.INVALID
    if settings.duplicates == "share":
        factors["copies"] = copies(graph, samples, counted)
    loss = scores.scores.get("loss")
    if reference is not None:
        of_reference, evidence = reference.of(samples.content_hashes)
        if settings.trust != "off":
            is_cut = settings.trust == "cut"
            factors["trust"] = (
                (~distrusted(evidence)).astype(np.float32) if is_cut else trust(evidence)
            )
            signals["evidence"] = evidence
            _warn_of_unknown(counted, evidence, settings)
        if settings.excess and loss is not None:
            factors["excess"] = excess(loss, of_reference, samples.groups, settings.excess)
        if settings.group_quota == "learned" and loss is not None:
            factors["group"] = group_shares(loss, of_reference, counted, samples.groups)
    if settings.learned < 1 and loss is not None:
        factors["learned"] = learned(loss, counted, settings.learned, share_of_run)
    return Places(factors=factors, signals=signals) if factors else None


def _warn_of_unknown(counted: Bool, evidence: Float32, settings: SelectionSection) -> None:
    """Say so where trust has little to go by, or distrusts most."""
    known = counted & np.isfinite(evidence)
    num_known, num_counted = int(known.sum()), int(counted.sum())
    if num_known < 0.9 * num_counted:
        logger.warning(
            "what the prompts tell of the responses is known of %d of %d samples (others have no "
            "prompt, or are not in %s yet; `gracekit reference` adds them): the others are trusted",
            num_known,
            num_counted,
            settings.reference,
        )
    num_distrusted = int(distrusted(evidence[known]).sum())
    if num_known and num_distrusted > num_known / 2:
        logger.warning(
            "%d of %d samples are distrusted: their prompts tell the reference model nothing. It "
            "may be unfit for this data; see docs/selection.md, or set selection.trust: off",
            num_distrusted,
            num_known,
        )
