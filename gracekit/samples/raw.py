"""The samples as the user wrote them: checked, named, grouped and hashed, but not tokenised.

The rows stay in their files; what is held per sample is its id, group, hash and preview, and where
its row lies. (Longer than other modules: what is checked of a row, and what is kept of it, are one
pass over the data.)
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import xxhash

from gracekit.errors import DataError
from gracekit.foreign import foreign
from gracekit.recipe import DataSection
from gracekit.samples.conversation import Conversation
from gracekit.samples.formats import choose_format, named_format
from gracekit.samples.layouts import Format
from gracekit.samples.messages import MalformedRowError
from gracekit.samples.pair_rows import rejected_side
from gracekit.samples.refusals import LABEL, Labels, missing_column
from gracekit.samples.row_source import BATCH_ROWS, Source
from gracekit.samples.sample_ids import checked_ids, content_hash, fingerprint_of, ids_of
from gracekit.samples.sources import open_source
from gracekit.texts import Texts
from gracekit.types import Int32, Int64, Json

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
    """The usable samples as conversations, read from the files when asked for.

    `DataError` where a row is no longer what it was when the samples were read.
    """

    def __init__(
        self,
        source: Source,
        layout: Format,
        source_rows: Int64,
        content_hashes: Texts,
        *,
        of_rejected: bool = False,
    ) -> None:
        self._source = source
        self._of_rejected = of_rejected
        self._layout = layout
        self._source_rows = source_rows
        self._content_hashes = content_hashes

    def __len__(self) -> int:
        return len(self._source_rows)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        chosen = range(len(self))[index]
        return self.take(chosen) if isinstance(chosen, range) else self.take([chosen])[0]

    def take(self, positions: Sequence[int]) -> list[Conversation]:
        """Those at the given positions, in that order."""
        source_rows = self._source_rows[list(positions)].tolist()
        found = []
        hashes = self._content_hashes[list(positions)].tolist()
        with foreign("the data", DataError):
            rows = self._source.take(source_rows)
        for row, source_row, expected in zip(rows, source_rows, hashes, strict=True):
            try:
                conversation = self._layout.conversation(row)
                is_same = content_hash(conversation) == expected
            except MalformedRowError:
                is_same = False
            if not is_same:
                raise DataError(
                    f"row {source_row} of the data is not what it was a moment ago: the file was "
                    "written to. Replacing it by a rename avoids this; start again"
                )
            found.append(rejected_side(conversation) if self._of_rejected else conversation)
        return found

    def rejected(self) -> Records:
        """The same pairs with the rejected side in place of the chosen one."""
        source, layout = self._source, self._layout
        return Records(source, layout, self._source_rows, self._content_hashes, of_rejected=True)


@dataclass(frozen=True, kw_only=True)
class RawSamples:
    """The usable rows of a dataset, n of them; the position is the sample's `row`."""

    records: Records
    sample_ids: Texts
    """[n], unique."""
    groups: Int32
    """[n] index into `group_names`."""
    group_names: tuple[str, ...]
    content_hashes: Texts
    """[n] xxh3_128 of the conversation, free of the layout it came in."""
    source_rows: Int64
    """[n] position in the dataset."""
    given: Int64
    """[n] hash of how the row gives its content (`Conversation.given`)."""
    previews: Texts
    """[n] one line each."""
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
    with foreign(data.name, DataError):
        return _load(data, strict)


def _load(data: DataSection, strict: bool) -> RawSamples:
    source = open_source(data)
    extra = [name for name in (data.id_column, data.group_column) if name]
    layout = _layout(data, source, source.columns, extra)
    while True:
        read = _Reading(data, layout)
        also = [*extra, LABEL] if LABEL in source.columns else extra
        selected = source.select(list(dict.fromkeys([*layout.columns(source.columns), *also])))
        for block in selected.blocks():
            read.add(block)
        # Later rows of a JSON file may have columns that the first ones lack.
        best = _layout(data, source, [*dict.fromkeys([*source.columns, *read.columns])], extra)
        if best == layout:
            break
        layout = best
    read.labels.require_none(data, layout)
    if data.format == "auto" and not data.columns.named:
        _require_one_layout(data, layout, source)
    skipped, hashes = read.skipped, Texts.joined(read.hashes)
    if skipped and (strict or not len(hashes)):
        limit = None if strict else SHOWN
        raise _unusable(data, layout, skipped, len(hashes), limit)
    sample_ids = checked_ids(data, read.ids, read.source_rows) if data.id_column else ids_of(hashes)
    group_names = tuple(sorted(set(read.groups)))
    number = {name: k for k, name in enumerate(group_names)}
    source_rows = np.array(read.source_rows, np.int64)
    return RawSamples(
        records=Records(selected, layout, source_rows, hashes),
        sample_ids=sample_ids,
        groups=np.array([number[name] for name in read.groups], np.int32),
        group_names=group_names,
        content_hashes=hashes,
        given=np.array(read.given, np.uint64).view(np.int64),
        source_rows=source_rows,
        previews=Texts.joined(read.previews),
        fingerprint=fingerprint_of(sample_ids, read.groups, hashes),
        num_source_rows=len(source),
        format=layout.name,
        skipped=skipped,
    )


class _Reading:
    """What is kept of the rows while they are read."""

    def __init__(self, data: DataSection, layout: Format) -> None:
        self._data = data
        self._layout = layout
        self._num_read = 0
        self.columns: dict[str, None] = {}
        self.source_rows = array("q")
        self.hashes: list[Texts] = []
        self.given = array("Q")
        self.previews: list[Texts] = []
        self.ids: list[Any] = []
        self.groups: list[str] = []
        self._names: dict[str, str] = {}
        """Of the groups, each once: equal texts of many rows are one."""
        self.skipped: list[Skipped] = []
        self.labels = Labels()

    def add(self, rows: list[Json]) -> None:
        """The next rows."""
        data = self._data
        hashes: list[str] = []
        previews: list[str] = []
        for source_row, row in enumerate(rows, start=self._num_read):
            if not row.keys() <= self.columns.keys():
                self.columns |= dict.fromkeys(row)
            self.labels.add(row.get(LABEL))
            try:
                conversation = self._layout.conversation(row)
                digest = content_hash(conversation)
            except MalformedRowError as problem:
                self.skipped.append(Skipped(source_row, str(problem)))
                continue
            self.source_rows.append(source_row)
            hashes.append(digest)
            self.given.append(xxhash.xxh3_64_intdigest(conversation.given().encode()))
            previews.append(preview(conversation))
            self.ids.append(row.get(data.id_column) if data.id_column else None)
            name = _group_name(row, data.group_column)
            self.groups.append(self._names.setdefault(name, name))
        self.hashes.append(Texts.of(hashes))
        self.previews.append(Texts.of(previews))
        self._num_read += len(rows)


def _layout(
    data: DataSection, source: Source, columns: Sequence[str], extra: Sequence[str]
) -> Format:
    """The layout of rows with these columns; of all columns where these do not do.

    Raises `DataError` where there is none, and for a column that is missing.
    """
    wanted = {*extra, *data.columns.named.values()}
    try:
        if wanted <= {*columns}:
            return choose_format(data, columns)
    except DataError:
        if {*source.all_columns} <= {*columns}:
            raise
    for name in extra:
        if name not in source.all_columns:
            raise missing_column(data, name, source.all_columns)
    return choose_format(data, source.all_columns)


def _require_one_layout(data: DataSection, layout: Format, source: Source) -> None:
    """`DataError` where one of several files has another layout: its rows would all be skipped."""
    files = source.files()
    for name, start, stop in files if len(files) > 1 else ():
        rows = source.take(range(start, min(stop, start + BATCH_ROWS)))
        alone = data.model_copy(update={"path": name})
        found = choose_format(alone, [*dict.fromkeys(key for row in rows for key in row)])
        if found.name != layout.name:
            raise DataError(
                f"{data.name}: {name} is laid out as {found.name!r}, other files as "
                f"{layout.name!r}. Set data.format to the one to be read (rows of the other are "
                "then skipped), or bring all files into one layout"
            )


def open_records(data: DataSection, source_rows: Int64) -> Iterator[Json]:
    """The user's rows at the given positions, all columns, in the given order, repeats included.

    Raises `DataError` when the dataset has fewer rows than that.
    """
    yield from _rows_at(data, open_source(data), source_rows)


def open_hashed_records(
    data: DataSection, source_rows: Int64, *, format_name: str | None = None
) -> Iterator[tuple[Json, str | None]]:
    """As `open_records`, each row with the hash of its content; None for one that has none.

    Args:
        data: Where the rows are.
        source_rows: [m] positions.
        format_name: The layout that the samples were read in; None: as the columns say.
    """
    source = open_source(data)
    layout = named_format(data, format_name) if format_name else None
    for row in _rows_at(data, source, source_rows):
        try:
            layout = layout or choose_format(data, source.all_columns)
            yield row, content_hash(layout.conversation(row))
        except (MalformedRowError, DataError):
            yield row, None


def open_conversations(
    data: DataSection, source_rows: Int64, *, format_name: str | None = None
) -> Iterator[Conversation | None]:
    """As `open_records`, each row as it is read; None for one that cannot be."""
    source = open_source(data)
    layout = named_format(data, format_name) if format_name else None
    for row in _rows_at(data, source, source_rows):
        try:
            layout = layout or choose_format(data, source.all_columns)
            yield layout.conversation(row)
        except (MalformedRowError, DataError):
            yield None


def _rows_at(data: DataSection, source: Source, source_rows: Int64) -> Iterator[Json]:
    if len(source_rows) and int(np.max(source_rows)) >= len(source):
        raise DataError(
            f"{data.name} has {len(source)} rows, but row {int(np.max(source_rows))} is needed: "
            "the data has changed since that version was made. Take a newer one, or restore it"
        )
    for start in range(0, len(source_rows), BATCH_ROWS):
        with foreign(data.name, DataError):
            rows = source.take(source_rows[start : start + BATCH_ROWS].tolist())
        yield from rows


def preview(conversation: Conversation) -> str:
    """`prompt → response` on one line, cut short, without characters that disturb a terminal."""
    if conversation.tokens is not None:
        return _one_line(str(conversation.tokens), PREVIEW)
    prompt = _one_line(conversation.prompt, PREVIEW_PROMPT)
    if conversation.is_text:
        return _one_line(conversation.prompt, PREVIEW)
    return f"{prompt} → {_one_line(conversation.response, PREVIEW - len(prompt) - 3)}"


def _one_line(text: str, most: int) -> str:
    start = " ".join(text[: 4 * most].split())
    cut = start[:most] if len(start) <= most else start[: most - 1] + "…"
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", cut)


def _group_name(row: Json, column: str | None) -> str:
    if column is None:
        return "all"
    value = row.get(column)
    return "(none)" if value is None else str(value)


def _unusable(
    data: DataSection, layout: Format, skipped: list[Skipped], num_usable: int, limit: int | None
) -> DataError:
    """The error that lists the first `limit` skipped rows, or all."""
    total = num_usable + len(skipped)
    rows = "\n".join(f"  row {s.source_row}: {s.reason}" for s in skipped[:limit])
    num_more = 0 if limit is None else max(len(skipped) - limit, 0)
    more = f"\n  and {num_more} more" if num_more else ""
    return DataError(
        f"{data.name}: {len(skipped)} of {total} rows cannot be used as {layout.name!r} "
        f"(rows count from 0):\n{rows}{more}\nCorrect the rows or set data.format"
    )
