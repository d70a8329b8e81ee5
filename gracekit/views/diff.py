"""`gracekit diff`: how two versions differ, as plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from gracekit.store import StoreReader
from gracekit.tabular import Records, ShortRepr, html_table
from gracekit.types import Bool, Json, SampleTable, ScoreTable
from gracekit.version.header import Header

NUM_MOVERS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffSide:
    """One of the two versions."""

    version: int
    step: int | None
    num_selected: int
    mean_importance: float | None
    """Mean importance of its coreset at that version, 0 to 1; None for an empty coreset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataChanges:
    """Samples that joined the data, left it, or stayed with other content."""

    num_added: int
    num_removed: int
    num_changed: int

    def __bool__(self) -> bool:
        return bool(self.num_added or self.num_removed or self.num_changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChange:
    """Selected samples of a group in both versions, and those that came and went."""

    group: str
    first: int
    second: int
    added: int
    removed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mover:
    """A sample whose importance changed."""

    sample_id: str
    group: str
    importance_first: float
    importance_second: float
    change: float
    in_first: bool
    """Whether the first version's coreset has it."""
    in_second: bool
    preview: str


class GroupChanges(Records[GroupChange]):
    """A row per group."""

    __slots__ = ()
    row_type = GroupChange


class Movers(Records[Mover]):
    """The samples whose importance changed most, the largest change first."""

    __slots__ = ()
    row_type = Mover


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Diff(ShortRepr):
    """How two versions differ."""

    first: DiffSide
    second: DiffSide
    num_kept: int
    """Samples in both coresets."""
    num_added: int
    num_removed: int
    jaccard: float
    """Intersection of the coresets by their union, 0 to 1."""
    data: DataChanges
    groups: GroupChanges
    movers: Movers
    """Among all samples with scores of the same content in both versions."""

    def to_json(self) -> Json:
        """As a JSON object."""
        return {
            "first": dataclasses.asdict(self.first),
            "second": dataclasses.asdict(self.second),
            "num_kept": self.num_kept,
            "num_added": self.num_added,
            "num_removed": self.num_removed,
            "jaccard": self.jaccard,
            "data": dataclasses.asdict(self.data),
            "groups": self.groups.to_json(),
            "movers": self.movers.to_json(),
        }

    def _repr_html_(self) -> str:
        facts = {
            "version": (self.first.version, self.second.version),
            "step": (self.first.step, self.second.step),
            "coreset": (self.first.num_selected, self.second.num_selected),
            "mean importance": (self.first.mean_importance, self.second.mean_importance),
            "only here": (self.num_removed, self.num_added),
        }
        sides = html_table(["", "first", "second"], [[name, *two] for name, two in facts.items()])
        return sides + self.movers._repr_html_()


def diff(store: StoreReader, first: int, second: int, *, num_movers: int = NUM_MOVERS) -> Diff:
    """How two versions differ.

    Raises:
        VersionNotFoundError: One of them does not exist, or gc removed it.
        StoreFormatError: One of them is damaged.
    """
    headers = [store.header(version) for version in (first, second)]
    tables = [store.samples(version) for version in (first, second)]
    samples = max(tables, key=len)  # rows are never reused: it has all of both
    chosen = [_chosen(store, version, len(samples)) for version in (first, second)]
    scores = [store.scores(version) for version in (first, second)]
    before, after = chosen
    kept, added, removed = before & after, after & ~before, before & ~after
    num_union = int((before | after).sum())
    return Diff(
        first=_side(headers[0], before, scores[0]),
        second=_side(headers[1], after, scores[1]),
        num_kept=int(kept.sum()),
        num_added=int(added.sum()),
        num_removed=int(removed.sum()),
        jaccard=int(kept.sum()) / num_union if num_union else 1.0,
        data=_data_changes(*tables),
        groups=GroupChanges(
            GroupChange(
                group=name,
                first=int(before[rows].sum()),
                second=int(after[rows].sum()),
                added=int(added[rows].sum()),
                removed=int(removed[rows].sum()),
            )
            for name, rows in _rows_of_groups(samples)
        ),
        movers=_movers(tables, scores, chosen, num_movers),
    )


def _chosen(store: StoreReader, version: int, num_rows: int) -> Bool:
    chosen = np.zeros(num_rows, bool)
    chosen[store.coreset(version)["row"].to_numpy()] = True
    return chosen


def _side(header: Header, chosen: Bool, scores: ScoreTable) -> DiffSide:
    rows = np.flatnonzero(chosen)
    return DiffSide(
        version=header.version,
        step=header.checkpoint.step,
        num_selected=len(rows),
        mean_importance=float(scores.importance[rows].mean()) if len(rows) else None,
    )


def _rows_of_groups(samples: SampleTable) -> list[tuple[str, Bool]]:
    return [(name, samples.groups == i) for i, name in enumerate(samples.group_names)]


def _data_changes(first: SampleTable, second: SampleTable) -> DataChanges:
    n = min(len(first), len(second))
    was, now = first.present[:n], second.present[:n]
    differs = ~first.content_hashes[:n].same(second.content_hashes[:n])
    return DataChanges(
        num_added=int((~was & now).sum() + second.present[n:].sum()),
        num_removed=int((was & ~now).sum() + first.present[n:].sum()),
        num_changed=int((was & now & differs).sum()),
    )


def _movers(
    tables: list[SampleTable], scores: list[ScoreTable], chosen: list[Bool], num_movers: int
) -> Movers:
    samples, (before, after) = tables[1], scores
    n = min(len(before), len(after))
    change = after.importance[:n] - before.importance[:n]
    is_same = tables[0].content_hashes[:n].same(tables[1].content_hashes[:n])
    known = np.flatnonzero(before.usable[:n] & after.usable[:n] & is_same & (change != 0))
    order = known[np.lexsort((known, -np.abs(change[known])))][:num_movers]
    return Movers(
        Mover(
            sample_id=samples.sample_ids[row],
            group=samples.group_names[samples.groups[row]],
            importance_first=float(before.importance[row]),
            importance_second=float(after.importance[row]),
            change=float(change[row]),
            in_first=bool(chosen[0][row]),
            in_second=bool(chosen[1][row]),
            preview=samples.previews[row],
        )
        for row in order
    )
