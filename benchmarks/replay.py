"""A run of `exact_run.py`, replayed: refreshes without a model, beside the truth."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gracekit.audit import rank_correlation
from gracekit.graph import effective_rank, unit_features
from gracekit.protocols import SelectionInputs
from gracekit.recipe import Recipe
from gracekit.refresher.last import LastRefresh
from gracekit.refresher.step import Refreshed, step
from gracekit.scores.length import ranks_within
from gracekit.scores.working_values import to_working
from gracekit.selection import select
from gracekit.texts import Texts
from gracekit.types import (
    Bool,
    Float32,
    Float64,
    KnnGraph,
    Measurement,
    Rows,
    SampleTable,
)

SCORES = ("gradient-norm", "loss")


@dataclass(frozen=True)
class Run:
    """What `exact_run.py` wrote."""

    steps: Any
    exact: dict[str, Any]
    """score -> [c, n] as measured"""
    working: dict[str, Any]
    """score -> [c, n] in the space of propagation"""
    features: Any
    """float16 [c, n, d]"""
    samples: SampleTable
    dense_steps: Any
    """[t] steps at which the first rows were measured, those between checkpoints included"""
    dense: Any
    """gradient norms of the first rows in the space of propagation [t, m]"""

    @classmethod
    def load(cls, path: Path, features: str) -> Run:
        """Read a file; `features` is `hidden`, `middle`, `sketch` or `both`."""
        with np.load(path) as file:
            data = {name: file[name] for name in file.files}
        n, groups = len(data["groups"]), data["groups"]
        names = Texts.of(f"{i:06d}" for i in range(n))
        samples = SampleTable(
            sample_ids=names,
            groups=groups.astype(np.int32),
            group_names=tuple(map(str, range(groups.max() + 1))),
            num_prompt_tokens=data["num_prompt_tokens"],
            num_response_tokens=data["num_targets"],
            content_hashes=names,
            source_rows=np.arange(n),
            previews=names,
            num_source_rows=n,
            fingerprint=f"{path.stem}-{features}",
        )
        working = [
            to_working({s: data[s][c] for s in SCORES}, samples.num_response_tokens)
            for c in range(len(data["steps"]))
        ]
        dense_steps = data.get("dense_steps", np.zeros(0, np.int64))
        first = data.get(f"dense_{SCORES[0]}", np.zeros((0, 0), np.float32))
        num_targets = samples.num_response_tokens[: first.shape[1]]
        dense = [to_working({SCORES[0]: each}, num_targets)[SCORES[0]] for each in first]
        return cls(
            dense_steps=dense_steps,
            dense=np.array(dense).reshape(first.shape),
            steps=data["steps"],
            exact={s: data[s] for s in SCORES},
            working={s: np.stack([each[s] for each in working]) for s in SCORES},
            features=joined(data) if features == "both" else data[features],
            samples=samples,
        )

    def part(self, num_samples: int, seed: int) -> Run:
        """Some of the samples, drawn at random; nothing of what was measured between."""
        rows = np.sort(np.random.default_rng(seed).permutation(len(self.samples))[:num_samples])
        one_a_row = {
            field.name: getattr(self.samples, field.name)[rows]
            for field in dataclasses.fields(self.samples)
            if isinstance(getattr(self.samples, field.name), np.ndarray)
        }
        samples = dataclasses.replace(
            self.samples, **one_a_row, fingerprint=f"{self.samples.fingerprint}-{len(rows)}-{seed}"
        )
        return dataclasses.replace(
            self,
            dense_steps=self.dense_steps[:0],
            dense=self.dense[:0],
            exact={name: score[:, rows] for name, score in self.exact.items()},
            working={name: score[:, rows] for name, score in self.working.items()},
            features=self.features[:, rows],
            samples=samples,
        )

    def measured(self, c: int, rows: Rows) -> Measurement:
        """The rows as the model pass gives them at checkpoint c."""
        scores = {name: score[c][rows] for name, score in self.exact.items()}
        return Measurement(rows=rows, scores=scores, features=self.features[c][rows])

    def importance(self, values: Float32 | Float64) -> Float32:
        """[n] rank of working values within groups, which the default recipe selects by."""
        ranks = ranks_within(np.asarray(values, np.float32), self.samples.groups)
        return ranks.astype(np.float32)


def joined(data: dict[str, Any]) -> Any:
    """Directions of both kinds of features side by side, float16 [c, n, d + k²].

    Those of the sketch are half as long: of half, as long and twice as long that did best on tiny.
    """
    everyone = np.ones(len(data["groups"]), bool)
    pairs = zip(data["hidden"], data["sketch"], strict=True)
    each = [
        np.hstack([unit_features(a, everyone), unit_features(b, everyone) / 2]) for a, b in pairs
    ]
    return np.stack(each).astype(np.float16)


@dataclass(frozen=True)
class Replay:
    """Measures rows as they were measured at checkpoint c."""

    run: Run
    c: int

    def __call__(self, rows: Rows) -> Measurement:
        """The rows in their order."""
        return self.run.measured(self.c, rows)

    def look(self, rows: Rows) -> NDArray[np.float16]:
        """The features alone."""
        return np.asarray(self.run.features[self.c][rows], np.float16)

    def finish(self) -> None:
        """There is no target set."""
        return


def refreshed(run: Run, recipe: Recipe, c: int, last: LastRefresh | None) -> Refreshed:
    """A refresh at checkpoint c; without a last one everything is measured."""
    return step(
        last,
        Replay(run, c),
        recipe,
        samples=run.samples,
        step=int(run.steps[c]),
        version=1 if last is None else last.version + 1,
    )


@dataclass(frozen=True, kw_only=True)
class Link:
    """One refresh of a chain, beside the truth."""

    step: int
    rank_correlation: dict[str, float]
    """score -> over all rows"""
    unmeasured: float
    """Of the importance score, over the rows that were not measured."""
    stale: float
    """The same with the scores as they were known before this refresh."""
    audit: float
    """What the audit said of it; NaN without one."""
    audit_all: float
    """What the audit said of all rows."""
    cosine: float
    edges: float
    recall: float
    """Of the graph, against exact neighbours by the features as they are known."""
    rank: float
    """Effective rank of the directions, relative to that of the true ones."""
    kept: float
    selected: Rows
    importance: Float32
    """[n] as it is known after this refresh."""
    cost: float
    seconds: float


def chain(run: Run, recipe: Recipe, start: int = 0) -> list[Link]:
    """Refresh at every checkpoint after `start`, which is measured whole."""
    last = refreshed(run, recipe, start, None).as_last(None)
    truths = Truths.of(run, recipe)
    links = []
    for c in range(start + 1, len(run.steps)):
        started = time.process_time()
        stale = run.importance(last.values[SCORES[0]])
        after = refreshed(run, recipe, c, last)
        last = after.as_last(last)
        seconds = time.process_time() - started
        unit = unit_features(after.features, after.valid)
        rest = np.setdiff1d(np.arange(len(run.samples)), after.plan.rows)
        truth = {name: run.importance(value[c]) for name, value in run.working.items()}
        found = {name: run.importance(value) for name, value in last.values.items()}
        links.append(
            Link(
                step=int(run.steps[c]),
                rank_correlation={n: rank_correlation(found[n], truth[n]) for n in SCORES},
                unmeasured=rank_correlation(found[SCORES[0]][rest], truth[SCORES[0]][rest]),
                stale=rank_correlation(stale[rest], truth[SCORES[0]][rest]),
                audit=after.audit.rank_correlation if after.audit else np.nan,
                audit_all=after.audit.rank_correlation_all if after.audit else np.nan,
                cosine=truths.cosine(c, np.asarray(after.features, np.float32)),
                edges=truths.shared_edges(c, after.index.graph),
                recall=recall_of(after),
                rank=effective_rank(unit) / truths.effective_rank(c),
                kept=truths.kept(c, after.selection.rows),
                selected=after.selection.rows,
                importance=found[SCORES[0]],
                cost=len(after.plan.rows) / len(run.samples),
                seconds=seconds,
            )
        )
    return links


def recall_of(after: Refreshed) -> float:
    """Share of the true neighbours that the lists hold, as the version says."""
    graph = after.outcome.graph
    return float("nan") if graph is None or graph.recall is None else graph.recall


def coreset(recipe: Recipe, after: Refreshed) -> Rows:
    """What another recipe selects from the same refresh."""
    inputs = SelectionInputs(scores=after.scores, samples=after.samples, graph=after.graph)
    return select(recipe.selection, inputs, seed=0, version=1).rows


class Truths:
    """What full measuring gives at each checkpoint; made once a run."""

    _made: dict[tuple[str, int, str], Truths] = {}  # noqa: RUF012

    def __init__(self, run: Run, recipe: Recipe) -> None:
        self._run, self._at = run, {}
        for c in range(len(run.steps)):
            full = refreshed(run, recipe, c, None)
            unit = unit_features(run.features[c], np.ones(len(run.samples), bool))
            importance = run.importance(run.working[SCORES[0]][c]).astype(np.float64)
            best = coreset(recipe, full)
            covering = recipe.selection.model_copy(update={"importance_weight": 0.0})
            only_cover = coreset(recipe.model_copy(update={"selection": covering}), full)
            draws = [
                np.random.default_rng(seed).choice(len(unit), len(best), replace=False)
                for seed in range(5)
            ]
            drawn = np.mean([terms(unit, importance, draw) for draw in draws], axis=0)
            most = np.sort(importance)[-len(best) :].sum(), dense_cover(unit, only_cover)
            gains = np.array(most) - drawn
            self._at[c] = unit, importance, drawn, gains, best, full.index.graph

    @classmethod
    def of(cls, run: Run, recipe: Recipe) -> Truths:
        """Those of a run, from memory if they are there."""
        key = (run.samples.fingerprint, run.features.shape[2], str(recipe.selection))
        if key not in cls._made:
            cls._made[key] = cls(run, recipe)
        return cls._made[key]

    def kept(self, c: int, rows: Rows) -> float:
        """Share of the objective that full measuring gains over a random draw."""
        return float(self.gains(c, rows).mean() / self.gains(c, self.best(c)).mean())

    def best(self, c: int) -> Rows:
        """The coreset that full measuring selects."""
        rows: Rows = self._at[c][4]
        return rows

    def gains(self, c: int, rows: Rows) -> Float64:
        """Importance and coverage: 0 of a random draw, 1 the most that one of them alone can be."""
        unit, importance, drawn, gains, _, _ = self._at[c]
        shares: Float64 = (terms(unit, importance, rows) - drawn) / gains
        return shares

    def shared_edges(self, c: int, graph: KnnGraph) -> float:
        """Share of the true graph's list entries that are in the lists."""
        truth = self._at[c][5].neighbors
        pairs = zip(truth, graph.neighbors, strict=True)
        return float(np.mean([np.isin(a, b).mean() for a, b in pairs]))

    def effective_rank(self, c: int) -> float:
        """Of the true directions."""
        return effective_rank(self._at[c][0])

    def cosine(self, c: int, features: Float32) -> float:
        """Mean over rows of the cosine with the true features, both centred by the true mean."""
        truth = self._run.features[c].astype(np.float32)
        centre = truth.mean(axis=0)
        a, b = features - centre, truth - centre
        size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float((np.einsum("ij,ij->i", a, b) / np.maximum(size, 1e-12)).mean())


def terms(unit: Float32, importance: Float64, rows: Rows) -> Float64:
    """Importance and dense coverage of a coreset."""
    return np.array([importance[rows].sum(), dense_cover(unit, rows)])


def dense_cover(unit: Float32, rows: Rows) -> float:
    """Sum over all rows of the largest cosine with a selected one, at least 0."""
    selected: Bool = np.zeros(len(unit), bool)
    selected[rows] = True
    total = 0.0
    for start in range(0, len(unit), 4096):
        block = slice(start, start + 4096)
        best = np.maximum((unit[block] @ unit[rows].T).max(axis=1), 0)
        total += float(np.where(selected[block], 1, best).sum())
    return total
