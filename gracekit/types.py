"""The values that flow through a refresh: frozen, keyword-only; numbers are NumPy's, and texts of
which there is one a row `Texts`.

Axes: `n` samples of the store, `m` rows of one measurement or plan, `b` selected rows,
`d` feature width, `k` neighbours, `e` edges, `g` groups. `row` is always the int64 position in the
sample store. Above 400 lines, so that all that flows is seen together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gracekit.scratch import room
from gracekit.tabular import ShortRepr, Tabular

if TYPE_CHECKING:
    from gracekit.texts import Texts

Rows = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]
Strings = NDArray[np.object_]
"""Of `str`; for few texts, or few different ones."""
Json = dict[str, Any]
Directions = Float32 | Int16
"""[n, d] of length 1, or 0 where a row has none: float32, or as `rounding.rounded` makes them."""

_BLOCK = 16_384


class Origin(IntEnum):
    """Where a row's present scores came from."""

    NEVER = 0
    """Never measured yet."""
    PROPAGATED = 1
    """Estimated from measured rows; `measured_step` is that of its last measurement."""
    MEASURED = 2
    """Measured at the version's own checkpoint."""
    INVALID = 3
    """Its last measurement was not finite, or it has no target token: never selected."""
    STALE = 4
    """Kept from an earlier version as it was, because propagation would not have helped."""
    REMOVED = 5
    """The sample is no longer in the data: it has no scores and is never measured or selected."""


class Reason(IntEnum):
    """Why a plan measures a row."""

    FIRST = 0
    """First version or forced full refresh: every row is measured."""
    NEVER_MEASURED = 1
    PRIORITY = 2
    """Chosen by the plan's rule (cover, grace, oldest, random)."""
    PROBE = 3
    """Drawn uniformly at random to measure the propagation error."""
    INVALID = 4
    """Its last measurement was not finite: tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One checkpoint of a trainer, found but not yet read."""

    step: int
    path: Path
    """Its directory; the file of a layout that is one file."""
    layout: str
    completed_at: float
    """Newest modification time of its files, seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedCheckpoint:
    """A checkpoint made safe to read: hard links under the store, or the original in place."""

    checkpoint: Checkpoint
    directory: Path
    """Where to read: the pin, or the original when hard links are impossible."""
    digest: str
    """xxh3_128 of the weight files' bytes: the identity of the checkpoint."""
    is_linked: bool
    trainer_files: Path | None = None
    """What the trainer wrote, as it was pinned, where `directory` is put together from it and the
    base model; None where both are the same."""
    conversion: Path | None = None
    """Where converted weights are kept from one reading to the next."""

    @property
    def step(self) -> int:
        """Training step."""
        return self.checkpoint.step

    @property
    def original(self) -> Path:
        """The trainer's own files, pinned or in place: what its layout can be asked about."""
        return self.trainer_files or self.directory


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SampleTable(ShortRepr, Tabular):
    """What the store knows of each usable sample; the position is the `row`.

    Samples that left the data keep their row, so that it is never reused.
    """

    sample_ids: Texts
    """[n], unique."""
    groups: Int32
    """[n] index into `group_names`."""
    group_names: tuple[str, ...]
    num_prompt_tokens: Int32
    num_response_tokens: Int32
    """[n] tokens that carry loss under the first checkpoint's tokenizer; 0: nothing to train on."""
    content_hashes: Texts
    """[n]"""
    source_rows: Int64
    """[n] position in the user's dataset as read (rows that were skipped leave gaps); -1 for a
    sample that is no longer in it."""
    previews: Texts
    """[n] the first characters of the sample, for people who read the tables."""
    num_source_rows: int
    """Rows of the user's dataset, skipped ones included."""
    fingerprint: str
    """xxh3_128 over ids, groups and content hashes in the data's order: identity of the data."""
    added_versions: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """[n] version that the sample came with; by default all came with the first."""
    removed_versions: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """[n] version since which the sample is no longer in the data; 0 (the default): it is."""
    content_versions: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """[n] version since which the content is what it is now; by default the first."""
    token_hashes: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """[n] hash of the token ids; 0 (the default): unknown, as in stores of earlier releases."""
    loss_hashes: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """[n] hash of which tokens carry loss; 0: unknown."""

    def __post_init__(self) -> None:
        for name, value in (
            ("added_versions", 1),
            ("removed_versions", 0),
            ("content_versions", 1),
            ("token_hashes", 0),
            ("loss_hashes", 0),
        ):
            if not len(getattr(self, name)):
                everywhere = np.full(len(self.sample_ids), value, np.int64)
                object.__setattr__(self, name, everywhere)

    def __len__(self) -> int:
        return len(self.sample_ids)

    def _columns(self) -> dict[str, NDArray[Any] | Texts]:
        names = np.array([*self.group_names], object)
        return {
            "row": np.arange(len(self)),
            "sample_id": self.sample_ids,
            "group_name": names[self.groups] if len(names) else np.full(len(self), None),
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_response_tokens": self.num_response_tokens,
            "content_hash": self.content_hashes,
            "source_row": self.source_rows,
            "preview": self.previews,
            "added_version": self.added_versions,
            "removed_version": self.removed_versions,
            "content_version": self.content_versions,
        }

    @property
    def present(self) -> Bool:
        """[n] samples that are in the data."""
        present: Bool = self.removed_versions == 0
        return present


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RefreshPlan(ShortRepr):
    """Which rows a refresh measures, and why."""

    rows: Rows
    """[m] distinct."""
    reasons: UInt8
    """[m] of `Reason`."""

    @property
    def probe_rows(self) -> Rows:
        """Rows drawn uniformly, on which the propagation error is measured."""
        probe: Rows = self.rows[self.reasons == Reason.PROBE]
        return probe


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Measurement(ShortRepr):
    """Exact results of the model pass for some rows."""

    rows: Rows
    """[m] distinct."""
    scores: dict[str, Float32]
    """score name -> [m]; NaN where the pass gave nothing finite or no token carries loss."""
    features: NDArray[np.float16] | Float32
    """[m, d]; rows of NaN where invalid."""
    sketches: NDArray[np.float16] | None = None
    """[m, k²] directions of the gradients' sketches, of length 1; rows of NaN where invalid, and 0
    where a gradient is 0. None where they were not asked for."""

    def __post_init__(self) -> None:
        m = len(self.rows)
        assert all(len(s) == m for s in self.scores.values()) and len(self.features) == m
        assert self.sketches is None or len(self.sketches) == m

    def take(self, index: Int64 | Bool | slice) -> Measurement:
        """The given positions (not rows) of this measurement."""
        return Measurement(
            rows=self.rows[index],
            scores={name: s[index] for name, s in self.scores.items()},
            features=self.features[index],
            sketches=None if self.sketches is None else self.sketches[index],
        )

    def first(self, count: int) -> Measurement:
        """The first rows; their numbers are shared, not copied."""
        return self if count == len(self.rows) else self.take(slice(count))

    @property
    def valid(self) -> Bool:
        """[m] True where every score and feature is finite."""
        parts = range(0, len(self.rows), _BLOCK)
        finite = [np.isfinite(self.features[at : at + _BLOCK]).all(axis=1) for at in parts]
        ok: Bool = np.concatenate([np.zeros(0, bool), *finite])
        for score in self.scores.values():
            ok = ok & np.isfinite(score)
        return ok

    @staticmethod
    def concatenate(parts: list[Measurement]) -> Measurement:
        """All parts one after another; at least one part."""
        sketches = [p.sketches for p in parts if p.sketches is not None]
        return Measurement(
            rows=np.concatenate([p.rows for p in parts]),
            scores={
                name: np.concatenate([p.scores[name] for p in parts]) for name in parts[0].scores
            },
            features=np.concatenate([p.features for p in parts]),
            sketches=np.concatenate(sketches) if len(sketches) == len(parts) else None,
        )

    @staticmethod
    def arranged(parts: Iterable[Measurement], rows: Rows) -> Measurement | None:
        """What the parts measured of these rows [m], in their order; None where there is no part.

        Each of the rows is in a part, in the last one where several have it, and no other row is. A
        part is put in its place before the next one is asked for, so that there is one copy of all
        and not two.
        """
        place = np.full(int(rows.max(initial=-1)) + 1, -1, np.int64)
        place[rows] = np.arange(len(rows))
        whole: Measurement | None = None
        for part in parts:
            if whole is None:
                whole = part._empty(len(rows))
            if part.sketches is None and whole.sketches is not None:
                whole = replace(whole, sketches=None)
            to = place[part.rows]
            whole.rows[to], whole.features[to] = part.rows, part.features
            for name, score in whole.scores.items():
                score[to] = part.scores[name]
            if whole.sketches is not None:
                whole.sketches[to] = part.sketches
        return whole

    def _empty(self, num_rows: int) -> Measurement:
        """Room for so many rows like these."""

        def like(array: NDArray[Any]) -> NDArray[Any]:
            return room((num_rows, *array.shape[1:]), array.dtype)

        sketches = None if self.sketches is None else like(self.sketches)
        return Measurement(
            rows=like(self.rows),
            scores={name: like(score) for name, score in self.scores.items()},
            features=like(self.features),
            sketches=sketches,
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MeasuredTarget(ShortRepr):
    """What a checkpoint says of a target set of t samples."""

    features: NDArray[np.float16]
    """[t, d]; rows of NaN where they are not finite, or no token carries loss."""
    losses: Float32 | None = None
    """[t] mean loss over the target tokens, NaN as above; None where it was not asked for."""
    sketches: NDArray[np.float16] | None = None
    """[t, k²] as those of a measurement; None where they were not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ScoreTable(ShortRepr, Tabular):
    """The present scores of every row."""

    scores: dict[str, Float32]
    """score name -> [n], as the pass gives them (no length correction); NaN where unknown."""
    importance: Float32
    """[n] in [0, 1]: the score that selection uses, corrected for length and normalised;
    0 where unknown."""
    origin: UInt8
    """[n] of `Origin`."""
    measured_step: Int64
    """[n] training step of the last measurement; -1 where never."""
    measured_version: Int64
    """[n] version of the last measurement; 0 where never."""
    confidence: Float32
    """[n] in [0, 1]: 1 measured now, 0 nothing is known."""

    def __len__(self) -> int:
        return len(self.origin)

    def _columns(self) -> dict[str, NDArray[Any]]:
        origins = np.array([origin.name.lower() for origin in Origin], object)
        return {
            "row": np.arange(len(self)),
            **self.scores,
            "importance": self.importance,
            "origin": origins[self.origin],
            "measured_step": self.measured_step,
            "measured_version": self.measured_version,
            "confidence": self.confidence,
        }

    @property
    def usable(self) -> Bool:
        """[n] rows that have scores and may be selected."""
        unusable = (Origin.NEVER, Origin.INVALID, Origin.REMOVED)
        usable: Bool = ~np.isin(self.origin, unusable)
        return usable


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class KnnGraph(ShortRepr):
    """Directed k nearest neighbours by cosine of the centred features."""

    neighbors: Int32
    """[n, k] nearest first; -1 fills up."""
    similarities: Float32
    """[n, k] cosine in [-1, 1]; 0 where the neighbour is -1."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SampleMap(ShortRepr):
    """All n rows of a version, with their places on a plane."""

    samples: SampleTable
    scores: ScoreTable
    probabilities: Float64 | None
    """[n] inclusion probability; None where the selector does not draw with known ones."""
    coordinates: Float32
    """[n, 2]; NaN for a row without features."""
    graph: KnnGraph


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SparseGraph(ShortRepr):
    """Symmetric weighted graph in CSR form, no self loops; the rows of an edge list are sorted."""

    indptr: Int64
    """[n + 1]"""
    indices: Int32
    """[e]"""
    weights: Float32
    """[e] in [0, 1]"""

    @property
    def num_nodes(self) -> int:
        """Number of samples, n."""
        return len(self.indptr) - 1


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DrawState(ShortRepr, Tabular):
    """What the draws so far gave each of n rows, and what they owe it (`gracekit.draw.over_time`).

    A row's start is uniform in [0, 1) and never drawn: of it is known only what the uses so far
    leave open, start_low <= start < start_high.
    """

    uses: Int32
    """[n] times that the row was trained on, or was handed out where no trainer logs its uses."""
    owed: Float64
    """[n] sum of the row's inclusion probabilities over the draws so far, less its uses."""
    start_low: Float64
    """[n] in [0, 1)"""
    start_high: Float64
    """[n] in (0, 1]"""
    source: Json | None = None
    """Where the uses come from: the run and step of a trainer's log of uses; None: coresets that
    were handed out count as trained on once."""

    @classmethod
    def none(cls, n: int) -> DrawState:
        """Before the first draw."""
        return cls(
            uses=np.zeros(n, np.int32),
            owed=np.zeros(n),
            start_low=np.zeros(n),
            start_high=np.ones(n),
        )

    def __len__(self) -> int:
        return len(self.uses)

    def take(self, rows: Rows) -> DrawState:
        """That of the given rows."""
        return DrawState(
            uses=self.uses[rows],
            owed=self.owed[rows],
            start_low=self.start_low[rows],
            start_high=self.start_high[rows],
        )

    def _columns(self) -> dict[str, NDArray[Any]]:
        return {
            "row": np.arange(len(self)),
            "uses": self.uses,
            "owed": self.owed,
            "start_low": self.start_low,
            "start_high": self.start_high,
        }


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TrainedLosses(ShortRepr):
    """The loss that a trainer saw of each of n rows when it last trained on it."""

    loss: Float32
    """[n] mean over the row's own target tokens, not weighted; NaN where none was seen."""
    step: Int64
    """[n] training steps that were done then: it is a loss under the weights of the checkpoint of
    that step; -1 where none was seen."""

    @classmethod
    def none(cls, n: int) -> TrainedLosses:
        """None was seen."""
        return cls(loss=np.full(n, np.nan, np.float32), step=np.full(n, -1, np.int64))

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def known(self) -> Bool:
        """[n] rows whose loss was seen."""
        return self.step >= 0

    def noted(self, rows: Rows, losses: Float32, steps: Int64) -> TrainedLosses:
        """These with what was seen of some rows: the newest counts.

        Args:
            rows: [m] may repeat.
            losses: [m] those that are not finite are passed over.
            steps: [m] 0 or more.
        """
        counts = np.isfinite(losses) & (steps >= self.step[rows])
        order = np.flatnonzero(counts)[np.argsort(steps[counts], kind="stable")]
        loss, step = self.loss.copy(), self.step.copy()
        loss[rows[order]] = losses[order]  # of one row, the last assignment stands
        step[rows[order]] = steps[order]
        return TrainedLosses(loss=loss, step=step)

    def without(self, forgotten: Bool) -> TrainedLosses:
        """These for [n] rows, of which some are forgotten, and those beyond the known have none."""
        loss = np.full(len(forgotten), np.nan, np.float32)
        step = np.full(len(forgotten), -1, np.int64)
        m = min(len(self), len(forgotten))
        kept = ~forgotten[:m]
        loss[:m][kept], step[:m][kept] = self.loss[:m][kept], self.step[:m][kept]
        return TrainedLosses(loss=loss, step=step)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Draw(ShortRepr):
    """How likely each of n rows was to be selected, so that a trainer can draw anew."""

    probabilities: Float64
    """[n] inclusion probability, whatever was drawn before: 0 never, 1 always."""
    weights: Float32
    """[n] weight of the row where it is drawn, in units in which the weights of a draw have the
    mean 1 on average; 0 where it never is."""
    places: Int32
    """[n] distinct: an order of the rows in which neighbours of the graph are near each other, and
    those of one part together."""
    parts: Int32
    """[n] rows of a part are as many in every draw as their probabilities add up to."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Places(ShortRepr):
    """What to train on: the place of each of n rows in the target t, factor by factor."""

    factors: dict[str, Float32] = field(default_factory=dict)
    """Name -> [n] how often a row is wanted beside a plain one, which has 1; 0: never."""
    signals: dict[str, Float32] = field(default_factory=dict)
    """Name -> [n] what the factor `aim` was made from; NaN where nothing is known."""
    copy_of: Int64 | None = None
    """[n] the first row that says the same; -1: no other one does. None: not known."""

    def __len__(self) -> int:
        return len(next(iter(self.factors.values()))) if self.factors else 0

    def total(self, n: int) -> Float64:
        """[n] the product of all factors."""
        place = np.ones(n)
        for factor in self.factors.values():
            place *= factor
        return place


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Selection(ShortRepr):
    """The coreset."""

    rows: Rows
    """[b] in the order they were picked, best first."""
    gains: Float32
    """[b] increase of the objective when picked."""
    weights: Float32
    """[b] how many samples each stands for, divided by the mean: mean 1."""
    objective: float
    """Value of the selector's objective; 0 where it has none."""
    details: Json = field(default_factory=dict)
    """What else the selector reports, for the manifest header."""
    draw: Draw | None = None
    """How likely each row was; None where the selector does not draw with known probabilities."""
