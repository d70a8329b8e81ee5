"""A small world to select from: samples in clusters and groups, with scores and a graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gracekit.protocols import SelectionInputs
from gracekit.recipe import SelectionSection
from gracekit.selection import select
from gracekit.texts import Texts
from gracekit.types import (
    Bool,
    Float32,
    Origin,
    Rows,
    SampleTable,
    ScoreTable,
    Selection,
    SparseGraph,
)

NUM_ROWS = 60


@dataclasses.dataclass
class World:
    """Samples in clusters, with importance that differs between groups."""

    samples: SampleTable
    scores: ScoreTable
    similarities: Float32
    """[n, n] symmetric, 0 where there is no edge."""
    features: Float32 | None
    """[n, 6] in the same clusters."""
    targets: Float32 | None
    """[t, 6] of a target set."""

    @classmethod
    def make(cls, seed: int = 0, n: int = NUM_ROWS, num_groups: int = 3) -> World:
        rng = np.random.default_rng(seed)
        texts = Texts.of(f"text {i}" for i in range(n))
        samples = SampleTable(
            sample_ids=Texts.of(f"s{i:04}" for i in rng.permutation(n)),
            groups=rng.integers(0, rng.integers(1, num_groups + 1, n)).astype(np.int32),
            group_names=tuple(f"group {g}" for g in range(num_groups)),
            num_prompt_tokens=np.full(n, 5, np.int32),
            num_response_tokens=rng.integers(1, 60, n).astype(np.int32),
            content_hashes=texts,
            source_rows=np.arange(n),
            previews=texts,
            num_source_rows=n,
            fingerprint="f",
        )
        scores = ScoreTable(
            scores={
                "loss": rng.random(n).astype(np.float32),
                "el2n": rng.random(n).astype(np.float32),
            },
            importance=(rng.integers(0, 20, n) / 20).astype(np.float32),
            origin=np.full(n, Origin.MEASURED, np.uint8),
            measured_step=np.zeros(n, np.int64),
            measured_version=np.ones(n, np.int64),
            confidence=np.ones(n, np.float32),
        )
        cluster = rng.integers(0, max(1, n // 8), n)
        centres = rng.normal(size=(cluster.max() + 1, 6))
        features = (centres[cluster] + 0.3 * rng.normal(size=(n, 6))).astype(np.float32)
        near = (cluster[:, None] == cluster) & (rng.random((n, n)) < 0.7)
        upper = np.triu(np.where(near, rng.random((n, n)) * 0.3 + 0.7, 0), 1)
        targets = rng.normal(size=(9, 6)).astype(np.float32)
        return cls(samples, scores, (upper + upper.T).astype(np.float32), features, targets)

    @property
    def graph(self) -> SparseGraph:
        edges = self.similarities > 0
        return SparseGraph(
            indptr=np.concatenate([[0], np.cumsum(edges.sum(axis=1))]).astype(np.int64),
            indices=np.nonzero(edges)[1].astype(np.int32),
            weights=self.similarities[edges],
        )

    def spoil(self, rng: np.random.Generator) -> Bool:
        """Make some rows unusable, each in one of the ways; returns which are left."""
        way = rng.choice(4, len(self.scores), p=[0.7, 0.1, 0.1, 0.1])
        way[rng.integers(len(way))] = 0
        self.scores.origin[way == 1] = rng.choice([Origin.NEVER, Origin.INVALID])
        self.scores.importance[way == 2] = np.nan
        self.samples.num_response_tokens[way == 3] = 0
        left: Bool = way == 0
        return left

    def select(
        self, seed: int = 0, version: int = 1, parent: Rows | None = None, **settings: Any
    ) -> Selection:
        inputs = self.inputs(parent)
        settings = {"selector": "coverage", **settings}
        return select(SelectionSection(**settings), inputs, seed=seed, version=version)

    def inputs(self, parent: Rows | None = None) -> SelectionInputs:
        return SelectionInputs(
            scores=self.scores,
            samples=self.samples,
            graph=self.graph,
            features=self.features,
            target_features=self.targets,
            parent=parent,
        )

    def with_removed(self, count: int) -> World:
        """The same with some samples more that are no longer in the data."""
        samples, scores = self.samples, self.scores

        def more(column: Any, fill: Any) -> Any:
            return np.concatenate([column, np.full((count, *column.shape[1:]), fill, column.dtype)])

        ids = [f"s{7 * k:04}, gone" for k in range(count)]
        nothing = Texts.of([""] * count)
        return World(
            dataclasses.replace(
                samples,
                sample_ids=Texts.joined([samples.sample_ids, Texts.of(ids)]),
                groups=more(samples.groups, 0),
                num_prompt_tokens=more(samples.num_prompt_tokens, 5),
                num_response_tokens=more(samples.num_response_tokens, 9),
                content_hashes=Texts.joined([samples.content_hashes, nothing]),
                source_rows=more(samples.source_rows, -1),
                previews=Texts.joined([samples.previews, nothing]),
                added_versions=more(samples.added_versions, 1),
                removed_versions=more(samples.removed_versions, 2),
                content_versions=more(samples.content_versions, 1),
            ),
            dataclasses.replace(
                scores,
                scores={name: more(score, np.nan) for name, score in scores.scores.items()},
                importance=more(scores.importance, 0),
                origin=more(scores.origin, Origin.REMOVED),
                measured_step=more(scores.measured_step, 0),
                measured_version=more(scores.measured_version, 1),
                confidence=more(scores.confidence, 0),
            ),
            np.pad(self.similarities, (0, count)),
            None if self.features is None else more(self.features, 0),
            self.targets,
        )

    def renumbered(self, old: Rows) -> World:
        """The same samples in another order: the new row r is the old row `old[r]`."""

        def moved(table: Any) -> dict[str, Any]:
            columns = {f.name: getattr(table, f.name) for f in dataclasses.fields(table)}
            return {
                name: column[old]
                for name, column in columns.items()
                if isinstance(column, (np.ndarray, Texts)) and name != "source_rows"
            }

        scores = moved(self.scores)
        scores["scores"] = {name: score[old] for name, score in self.scores.scores.items()}
        return World(
            dataclasses.replace(self.samples, **moved(self.samples)),
            dataclasses.replace(self.scores, **scores),
            self.similarities[np.ix_(old, old)],
            None if self.features is None else self.features[old],
            self.targets,
        )
