"""Why one sample is in a coreset or out of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.protocols import SelectionInputs
from gracekit.recipe import SelectionSection
from gracekit.selection.lists import listed
from gracekit.selection.pool import Pool, barred_rows, make_pool
from gracekit.types import Bool, Float32, Origin, Rows, ScoreTable, SparseGraph
from gracekit.version.outcomes import SelectionDetails


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A published coreset, and what it was selected from."""

    settings: SelectionSection
    details: SelectionDetails
    """What the version's header says about the selection."""
    rows: Rows
    """[b] in the order picked."""
    gains: Float32
    """[b]"""
    inputs: SelectionInputs
    """What was selected from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why, in one sentence, and the numbers behind it."""

    reason: str
    covered_by: int | None
    """The selected row it is most similar to in the graph; None where it has none."""
    similarity: float
    """To that row; 1 for a selected row, 0 where there is none."""
    num_covered: int
    """Represented rows that no other selected row is more similar to (itself included); 0 when it
    is not selected."""
    gain_if_added: float | None
    """What it would add to the objective now, for selectors with one; None when it is selected."""


def explain(row: int, chosen: Chosen) -> Explanation:
    """Say why a row is in or out, applying the recipe's lists, cuts and quotas once more."""
    pool = make_pool(chosen.settings, chosen.inputs)
    selected = np.zeros(len(pool.usable), bool)
    selected[chosen.rows] = True
    covered_by, similarity = _best_coverer(row, selected, chosen.inputs.graph)
    gain = None if selected[row] else _gain_if_added(row, selected, chosen, pool)
    return Explanation(
        reason=_why_out(row, chosen, pool, gain)
        if not selected[row]
        else _why_in(row, chosen, pool),
        covered_by=covered_by,
        similarity=similarity,
        num_covered=_num_covered(row, selected, chosen.inputs.graph, pool) if selected[row] else 0,
        gain_if_added=gain,
    )


def percentile(row: int, scores: ScoreTable) -> float | None:
    """Share of the scored samples with a smaller importance, in percent; None without a score."""
    if not scores.usable[row] or not np.isfinite(scores.importance[row]):
        return None
    known = scores.importance[scores.usable & np.isfinite(scores.importance)]
    return float(100 * np.mean(known < scores.importance[row]))


def _why_in(row: int, chosen: Chosen, pool: Pool) -> str:
    rank = int(np.flatnonzero(chosen.rows == row)[0])
    if row in pool.initial:
        whole = chosen.settings.keep_groups_below
        return "always in: listed" + (f", or of a group with fewer than {whole}" if whole else "")
    return f"picked as number {rank + 1} of {len(chosen.rows)}"


def _why_out(row: int, chosen: Chosen, pool: Pool, gain: float | None) -> str:
    settings, scores, samples = chosen.settings, chosen.inputs.scores, chosen.inputs.samples
    if not samples.present[row]:
        return f"it is no longer in the data, since version {samples.removed_versions[row]}"
    if samples.num_response_tokens[row] == 0:
        return "cannot be selected: it has no token to train on"
    if not pool.usable[row]:
        return f"cannot be selected: its score is {Origin(int(scores.origin[row])).name.lower()}"
    lists = listed(settings, scores=scores, samples=samples, store=chosen.inputs.store)
    if lists.never[row]:
        return "never in: listed"
    if barred_rows(chosen.inputs)[row]:
        return "never in: it has the content of a target sample (target.overlap, target.group)"
    if pool.used_up[row]:
        state = chosen.inputs.state
        uses = settings.max_uses if state is None else int(state.uses[row])
        return f"used {uses} times before, and selection.max_uses allows {settings.max_uses}"
    if not pool.represented[row]:
        return f"among the hardest {settings.drop_hardest:.0%}, which are left out (drop_hardest)"
    if not pool.candidates[row]:
        return f"a near-duplicate: more similar than {settings.max_similarity} to one that stays"
    quotas = pool.places.quotas
    group = int(samples.groups[row])
    if quotas is not None and pool.places.free == 0:
        others = f"; its group's quota of {quotas[group]} is full"
    else:
        others = ""
    if gain is not None and len(chosen.gains):
        picked = chosen.gains[len(pool.initial) :]
        least = float(picked.min()) if len(picked) else 0.0
        return f"it would add {gain:.3g}, the last one picked added {least:.3g}{others}"
    if settings.selector == "balanced":
        return f"not drawn: balanced draws by chance, and another version may draw it{others}"
    return f"selector {settings.selector} preferred others{others}"


def _edges_of(row: int, graph: SparseGraph) -> slice:
    return slice(int(graph.indptr[row]), int(graph.indptr[row + 1]))


def _best_coverer(row: int, selected: Bool, graph: SparseGraph) -> tuple[int | None, float]:
    if selected[row]:
        return row, 1.0
    edges = _edges_of(row, graph)
    weights = np.where(selected[graph.indices[edges]], graph.weights[edges], 0)
    if not len(weights) or weights.max() == 0:
        return None, 0.0
    best = int(np.argmax(weights))
    return int(graph.indices[edges][best]), float(weights[best])


def _num_covered(row: int, selected: Bool, graph: SparseGraph, pool: Pool) -> int:
    edges = _edges_of(row, graph)
    neighbors = zip(graph.indices[edges].tolist(), graph.weights[edges].tolist(), strict=True)
    covered = [
        i
        for i, weight in neighbors
        if pool.represented[i]
        and not selected[i]
        and _best_coverer(i, selected, graph)[1] <= weight
    ]
    return 1 + len(covered)


def _gain_if_added(row: int, selected: Bool, chosen: Chosen, pool: Pool) -> float | None:
    """Increase of F by the row, given all that is selected."""
    details, graph = chosen.details, chosen.inputs.graph
    if details.coverage_unit is None or not pool.represented[row]:
        return None
    edges = _edges_of(row, graph)
    rows = [row, *graph.indices[edges].tolist()]
    weights = [1.0, *graph.weights[edges].tolist()]
    raised = sum(
        max(0.0, weight - _best_coverer(i, selected, graph)[1])
        for i, weight in zip(rows, weights, strict=True)
        if pool.represented[i]
    )
    gain = (details.importance_unit or 0.0) * float(chosen.inputs.scores.importance[row])
    if chosen.inputs.parent is not None and row in chosen.inputs.parent:
        gain += details.kept_unit or 0.0
    return float(gain + details.coverage_unit * raised)
