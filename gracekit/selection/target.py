"""Selection towards a target set: cover the target's samples instead of the data's own.

Maximises

    F(S) = λ · (Σ_{i∈S} importance_i) / I  +  (1 - λ) · (Σ_{t∈T} max_{j∈S} s_tj) / C

The second term is the query side of facility-location mutual information (Iyer et al. 2021,
"Submodular combinatorial information measures"; FLQMI there). With `scoring.importance: influence`
the first is its other side, how near each selected sample is to the target. I and C are as for
`coverage`, and so are the greedy and its guarantees.

s_tj is the cosine of centred features, none below 0; each target sample is covered only by the
`NEAREST` samples most similar to it. It takes t · n · d multiplications.
"""

from __future__ import annotations

import numpy as np

from gracekit.protocols import SelectionTask
from gracekit.selection.by_features import GRID, directions, round_to_grid, target_directions
from gracekit.selection.coverage import Cover, select_covering
from gracekit.types import Bool, Float32, Int64, Selection, SparseGraph

NEAREST = 200
"""Samples that may cover a target sample: more than one, for those that lists or quotas bar."""
BLOCK = 256
"""Target samples compared at a time."""


class TargetCoverage:
    """Importance plus coverage of the target set, weighed by `selection.importance_weight` (λ)."""

    def select(self, task: SelectionTask) -> Selection:
        """Best first; `details` hold what both terms reached of what they could have gained."""
        targets = target_directions(task)
        cover = target_cover(directions(task), targets, task.candidates, task.order)
        selection = select_covering(task, task.settings.importance_weight, cover)
        details = {
            ("target_" + key if key.startswith("coverage") else key): value
            for key, value in selection.details.items()
        }
        return Selection(
            rows=selection.rows,
            gains=selection.gains,
            weights=selection.weights,
            objective=selection.objective,
            details=details,
        )


def target_cover(unit: Float32, targets: Float32, candidates: Bool, order: Int64) -> Cover:
    """Edges between each target sample and the candidates most similar to it.

    Args:
        unit: [n, d] directions of the samples.
        targets: [t, d] directions of the target samples.
        candidates: [n] rows that may be picked.
        order: [n] distinct; of equally similar samples the smaller comes first.
    """
    from scipy import sparse

    rows = np.flatnonzero(candidates)
    rank = np.argsort(np.argsort(order[rows]))
    width = min(NEAREST, len(rows))
    n, num_nodes = len(unit), len(unit) + len(targets)
    parts = []
    for start in range(0, len(targets), BLOCK):
        similarity = round_to_grid(targets[start : start + BLOCK] @ unit[rows].T).clip(0, 1)
        key = rank - (similarity * GRID).astype(np.int64) * len(rows)
        best = np.argpartition(key, width - 1, axis=1)[:, :width]
        weight = np.take_along_axis(similarity, best, axis=1)
        of_target = np.broadcast_to(n + start + np.arange(len(best))[:, None], best.shape)
        parts.append((of_target[weight > 0], rows[best[weight > 0]], weight[weight > 0]))
    target, sample, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    half = sparse.csr_array((weights, (target, sample)), shape=(num_nodes, num_nodes))
    both = sparse.csr_array(half + half.T)
    both.sort_indices()
    graph = SparseGraph(
        indptr=both.indptr.astype(np.int64),
        indices=both.indices.astype(np.int32),
        weights=both.data.astype(np.float32),
    )
    return Cover(graph, np.concatenate([np.zeros(n), np.ones(len(targets))]))
