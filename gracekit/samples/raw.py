"""The samples as the user wrote them: checked, named, grouped and hashed, but not tokenised.

The rows stay in the memory-mapped `datasets.Dataset`; what is held per sample is its id, group,
hash and preview.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import xxhash

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.formats import Conversation, Format, MalformedRowError, choose_format
from gracekit.samples.sources import missing_column, open_dataset
from gracekit.types import Int32, Int64, Json, Strings

if TYPE_CHECKING:
    import datasets

BATCH_ROWS = 1000
PREVIEW, PREVIEW_PROMPT = 160, 100
"""Characters of a preview, and of the prompt in it."""
SHOWN = 5
"""Skipped rows that a message lists."""

UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)
"""Control characters, invisible ones, those that turn the direction of text, lone surrogates."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row of the user's dataset that cannot be used, and why."""

    source_row: int
    reason: str


class Records(Sequence[Conversation]):
    """The usable samples as conversations, read from the dataset when asked for."""

    def __init__(self, dataset: datasets.Dataset, layout: Format, source_rows: Int64) -> None:
        self._dataset = dataset
        self._layout = layout
        self._source_rows = source_rows

    def __len__(self) -> int:
        return len(self._source_rows)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self._layout.conversation(self._dataset[int(self._source_rows[index])])

    def take(self, positions: Sequence[int]) -> list[Conversation]:
        """Those at the given positions, in that order."""
        rows = _rows(self._dataset[self._source_rows[list(positions)].tolist()])
        return [self._layout.conversation(row) for row in rows]


@dataclass(frozen=True, kw_only=True)
class RawSamples:
    """The usable rows of a dataset, n of them; the position is the sample's `row`."""

    records: Records
    sample_ids: Strings
    """str [n], unique."""
    groups: Int32
    """[n] index into `group_names`."""
    group_names: tuple[str, ...]
    content_hashes: Strings
    """str [n], xxh3_128 of the conversation, free of the layout it came in."""
    source_rows: Int64
    """[n] position in the dataset."""
    previews: Strings
    """str [n], one line each."""
    fingerprint: str
    """xxh3_128 over ids, groups and content hashes in order."""
    num_source_rows: int
    format: str
    """Name of the layout."""
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sample_ids)


def load_samples(data: DataSection, *, strict: bool = False) -> RawSamples:
    """Read and check every row.

    Rows without the fields of the layout or with an empty response are skipped and listed; with
    `strict` they are a `DataError`, as is a dataset without one usable row, an id that is missing
    or not unique, and whatever cannot be read.
    """
    dataset = open_dataset(data)
    layout = choose_format(data, dataset.column_names)
    extra = [name for name in (data.id_column, data.group_column) if name]
    for name in extra:
        if name not in dataset.column_names:
            raise missing_column(data, name, dataset.column_names)
    columns = layout.columns(dataset.column_names)
    dataset = dataset.select_columns([*columns, *(n for n in extra if n not in columns)])

    source_rows: list[int] = []
    hashes: list[str] = []
    previews: list[str] = []
    ids: list[Any] = []
    groups: list[str] = []
    skipped: list[Skipped] = []
    for source_row, row in enumerate(_read(data, dataset, range(len(dataset)))):
        try:
            conversation = layout.conversation(row)
        except MalformedRowError as problem:
            skipped.append(Skipped(source_row, str(problem)))
            continue
        source_rows.append(source_row)
        hashes.append(xxhash.xxh3_128_hexdigest(conversation.canonical().encode()))
        previews.append(preview(conversation))
        ids.append(row[data.id_column] if data.id_column else None)
        groups.append(_group_name(row, data.group_column))

    if skipped and (strict or not source_rows):
        limit = None if strict else SHOWN
        raise _unusable(data, layout, skipped, len(source_rows), limit)
    sample_ids = _checked_ids(data, ids, source_rows) if data.id_column else _ids_of(hashes)
    group_names = tuple(sorted(set(groups)))
    number = {name: k for k, name in enumerate(group_names)}
    return RawSamples(
        records=Records(dataset, layout, np.array(source_rows, np.int64)),
        sample_ids=_strings(sample_ids),
        groups=np.array([number[name] for name in groups], np.int32),
        group_names=group_names,
        content_hashes=_strings(hashes),
        source_rows=np.array(source_rows, np.int64),
        previews=_strings(previews),
        fingerprint=_fingerprint(sample_ids, groups, hashes),
        num_source_rows=len(dataset),
        format=layout.name,
        skipped=skipped,
    )


def open_records(data: DataSection, source_rows: Int64) -> Iterator[Json]:
    """The user's rows at the given positions, all columns, in the given order, repeats included.

    Raises `DataError` when the dataset has fewer rows than that.
    """
    dataset = open_dataset(data)
    if len(source_rows) and int(np.max(source_rows)) >= len(dataset):
        raise DataError(
            f"{data.path} has {len(dataset)} rows, but row {int(np.max(source_rows))} is needed: "
            "the data has changed since that version was made. Take a newer one, or restore it"
        )
    yield from _read(data, dataset, source_rows.tolist())


def preview(conversation: Conversation) -> str:
    """`prompt → response` on one line, cut short, without characters that disturb a terminal."""
    prompt = _one_line(conversation.prompt, PREVIEW_PROMPT)
    if conversation.is_text:
        return _one_line(conversation.prompt, PREVIEW)
    return f"{prompt} → {_one_line(conversation.response, PREVIEW - len(prompt) - 3)}"


def _one_line(text: str, most: int) -> str:
    start = " ".join(text[: 4 * most].split())
    cut = start[:most] if len(start) <= most else start[: most - 1] + "…"
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", cut)


def _read(data: DataSection, dataset: datasets.Dataset, rows: Sequence[int]) -> Iterator[Json]:
    for start in range(0, len(rows), BATCH_ROWS):
        wanted = rows[start : start + BATCH_ROWS]
        try:
            batch = dataset[wanted]
        except UnicodeDecodeError as error:
            raise DataError(
                f"{data.path}: between rows {wanted[0]} and {wanted[-1]} there is text that is not "
                f"UTF-8 ({error.reason}). Save the file as UTF-8"
            ) from error
        yield from _rows(batch)


def _rows(batch: dict[str, list[Any]]) -> Iterator[Json]:
    names = list(batch)
    return (dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _group_name(row: Json, column: str | None) -> str:
    if column is None:
        return "all"
    value = row[column]
    return "(none)" if value is None else str(value)


def _ids_of(hashes: Iterable[str]) -> list[str]:
    """The hashes; those of equal content get `#1`, `#2` … from the second one on."""
    seen: Counter[str] = Counter()
    ids = []
    for digest in hashes:
        ids.append(f"{digest}#{seen[digest]}" if seen[digest] else digest)
        seen[digest] += 1
    return ids


def _checked_ids(data: DataSection, values: list[Any], source_rows: list[int]) -> list[str]:
    first: dict[str, int] = {}
    for source_row, value in zip(source_rows, values, strict=True):
        if value is None or value == "":
            raise DataError(
                f"{data.path}: row {source_row} has no id in column {data.id_column!r}; every "
                "sample needs one. Fill it in, or leave data.id_column out: the id is then a hash"
            )
        if str(value) in first:
            raise DataError(
                f"{data.path}: rows {first[str(value)]} and {source_row} have the same id "
                f"{str(value)!r} in column {data.id_column!r}; ids must be unique. Correct them, "
                "or leave data.id_column out: the id is then a hash of the content"
            )
        first[str(value)] = source_row
    return list(first)


def _fingerprint(ids: list[str], groups: list[str], hashes: list[str]) -> str:
    digest = xxhash.xxh3_128()
    for entry in zip(ids, groups, hashes, strict=True):
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()


def _strings(values: list[str]) -> Strings:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _unusable(
    data: DataSection, layout: Format, skipped: list[Skipped], num_usable: int, limit: int | None
) -> DataError:
    """The error that lists the first `limit` skipped rows, or all."""
    total = num_usable + len(skipped)
    rows = "\n".join(f"  row {s.source_row}: {s.reason}" for s in skipped[:limit])
    num_more = 0 if limit is None else max(len(skipped) - limit, 0)
    more = f"\n  and {num_more} more" if num_more else ""
    return DataError(
        f"{data.path}: {len(skipped)} of {total} rows cannot be used as {layout.name!r} "
        f"(rows count from 0):\n{rows}{more}\nCorrect the rows or set data.format"
    )
