"""Data that changed: merged into the samples that a store knows. Pure.

Identity is the sample id. A known id keeps its row; new ids get new rows at the end, in the order
of their ids, so that the order of the data is no matter; an id that is no longer in the data keeps
its row as removed, and one that comes back gets its row again. A row is never reused.

With ids that are hashes of the content, a sample whose text changes is another sample: one leaves
and one joins. With ids of the user's own it stays the same sample, with other content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gracekit.texts import Texts
from gracekit.types import Bool, Int32, Int64, Rows, SampleTable, Strings

_BLOCK = 65_536
"""Rows whose texts are compared at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """The samples of a store, with what changed since the version before."""

    samples: SampleTable
    """All rows, those known before first."""
    places: Int64
    """[n] position in the data; -1 for a removed sample."""
    added: Rows
    """Of ids never seen before."""
    removed: Rows
    """No longer in the data."""
    changed: Rows
    """With other content than before, among them some that came back."""
    returned: Rows
    """In the data again."""
    is_change: bool
    """Whether the table differs from the one before at all, be it in groups or positions."""

    @property
    def forgotten(self) -> Bool:
        """[n] rows of which earlier scores and features say nothing any more, or which are new."""
        forgotten = np.zeros(len(self.samples), bool)
        for rows in (self.added, self.removed, self.changed, self.returned):
            forgotten[rows] = True
        return forgotten

    @property
    def counts(self) -> dict[str, int]:
        """For the version's header."""
        return {
            "num_added": len(self.added),
            "num_removed": len(self.removed),
            "num_changed": len(self.changed),
            "num_returned": len(self.returned),
        }


def merge(
    known: SampleTable, data: SampleTable, *, version: int, other_tokens: bool = False
) -> Growth:
    """The known samples brought in line with the data.

    Args:
        known: The table of the version before.
        data: What the data holds now, in its own order.
        version: That will be published.
        other_tokens: All samples have other tokens than before, whatever their content.
    """
    num_known = len(known)
    is_as_before = known.sample_ids == data.sample_ids
    rows = np.arange(num_known) if is_as_before else known.sample_ids.places_of(data.sample_ids)
    new = np.flatnonzero(rows < 0)
    new = new[data.sample_ids[new].order()]
    n = num_known + len(new)
    rows[new] = np.arange(num_known, n)
    places = np.full(n, -1, np.int64)
    places[rows] = np.arange(len(rows))

    was_present = np.zeros(n, bool)
    was_present[:num_known] = known.present
    is_known = np.arange(n) < num_known
    is_present = places >= 0
    differs = np.zeros(n, bool)
    both = np.flatnonzero(is_known & is_present)
    for start in range(0, len(both), _BLOCK):
        some = both[start : start + _BLOCK]
        differs[some] = ~known.content_hashes[some].same(data.content_hashes[places[some]])
    differs[both] |= other_tokens

    def merged(name: str, new: int) -> np.ndarray:
        """A column: of the data where it has the sample, else as it was."""
        before, now = getattr(known, name), getattr(data, name)
        column = np.full(n, new, before.dtype)
        column[:num_known] = before
        column[rows] = now
        return column

    def counted(name: str) -> Int32:
        """Tokens, which the same content has as before; so those of the data may be unknown."""
        column = merged(name, 0)
        same = both[~differs[both]]
        column[same] = getattr(known, name)[same]
        return column

    def hashed(name: str) -> Int64:
        """As `counted`; what an earlier release did not know is known from now on."""
        column, before = merged(name, 0), getattr(known, name)
        same = both[~differs[both] & (before[both] != 0)]
        column[same] = before[same]
        return column

    source_rows = merged("source_rows", -1)
    source_rows[~is_present] = -1
    groups, group_names = _groups(known, data, rows, n)
    samples = SampleTable(
        sample_ids=_texts(known.sample_ids, data.sample_ids, places),
        groups=groups,
        group_names=group_names,
        num_prompt_tokens=counted("num_prompt_tokens"),
        num_response_tokens=counted("num_response_tokens"),
        content_hashes=_texts(known.content_hashes, data.content_hashes, places),
        source_rows=source_rows,
        previews=_texts(known.previews, data.previews, places),
        num_source_rows=data.num_source_rows,
        fingerprint=data.fingerprint,
        added_versions=_grown(known.added_versions, n, version),
        removed_versions=np.where(
            is_present, 0, np.where(was_present, version, _grown(known.removed_versions, n, 0))
        ),
        content_versions=np.where(differs, version, _grown(known.content_versions, n, version)),
        token_hashes=hashed("token_hashes"),
        loss_hashes=hashed("loss_hashes"),
    )
    return Growth(
        samples=samples,
        places=places,
        added=np.flatnonzero(~is_known),
        removed=np.flatnonzero(was_present & ~is_present),
        changed=np.flatnonzero(differs),
        returned=np.flatnonzero(is_known & ~was_present & is_present),
        is_change=not _is_same(known, samples),
    )


def same_where_known(
    known: Texts,
    known_tokens: Sequence[Int64 | Int32],
    contents: Texts,
    tokens: Sequence[Int64 | Int32],
) -> bool:
    """Whether contents that are known have tokens that they are known with.

    Args:
        known: [n] contents; one may be there several times, as it may be given in several ways.
        known_tokens: [2, n] what tells their tokens.
        contents: [m] other ones, known or not.
        tokens: [2, m] what tells theirs.
    """
    were, now = np.stack(known_tokens), np.stack(tokens)
    first = known.places_of(contents)
    others = np.flatnonzero(first >= 0)
    others = others[(were[:, first[others]] != now[:, others]).any(axis=0)]
    if not len(others):
        return True
    rows = np.flatnonzero(contents[others].places_of(known) >= 0)
    pairs = zip(known[rows], *were[:, rows].tolist(), strict=True)
    return set(zip(contents[others], *now[:, others].tolist(), strict=True)) <= set(pairs)


def _texts(known: Texts, data: Texts, places: Int64) -> Texts:
    """[n] that of the data where it has the sample, else as it was; `known` itself where no text is
    another one, so that they are in memory once.
    """
    parts, is_same = [], True
    for start in range(0, len(known), _BLOCK):
        part, at = known[start : start + _BLOCK], places[start : min(start + _BLOCK, len(known))]
        there = np.flatnonzero(at >= 0)
        now = data[at[there]]
        if now != part[there]:
            index = np.arange(len(part))
            index[there] = len(part) + np.arange(len(there))
            part, is_same = Texts.joined([part, now])[index], False
        parts.append(part)
    return Texts.joined([*([known] if is_same else parts), data[places[len(known) :]]])


def _groups(
    known: SampleTable, data: SampleTable, rows: Rows, n: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """[n] group of each row, and the names of those that occur."""
    names = sorted({*known.group_names, *data.group_names})
    number = {name: k for k, name in enumerate(names)}
    groups = np.zeros(n, np.int64)
    for table, where in ((known, np.arange(len(known))), (data, rows)):
        groups[where] = np.array([number[name] for name in table.group_names])[table.groups]
    used, compact = np.unique(groups, return_inverse=True)
    return compact.astype(np.int32), tuple(names[k] for k in used)


def _grown(values: Int64, n: int, new: int) -> Int64:
    return np.concatenate([values, np.full(n - len(values), new, np.int64)])


def _is_same(known: SampleTable, samples: SampleTable) -> bool:
    def labels(table: SampleTable) -> Strings:
        return np.array(table.group_names, object)[table.groups]

    return (
        len(known) == len(samples)
        and (known.num_source_rows, known.fingerprint)
        == (samples.num_source_rows, samples.fingerprint)
        and np.array_equal(known.removed_versions, samples.removed_versions)
        and np.array_equal(known.content_versions, samples.content_versions)
        and np.array_equal(known.source_rows, samples.source_rows)
        and np.array_equal(labels(known), labels(samples))
    )
