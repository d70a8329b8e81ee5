"""By what a sample is known: the hash of its content, its id, and the fingerprint of all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import xxhash

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.conversation import Conversation
from gracekit.samples.messages import MalformedRowError


def content_hash(conversation: Conversation) -> str:
    """xxh3_128 of the conversation; `MalformedRowError` for one that is nested too deep."""
    try:
        return xxhash.xxh3_128_hexdigest(conversation.canonical().encode())
    except RecursionError:
        raise MalformedRowError("it is nested too deep") from None


def ids_of(hashes: Iterable[str]) -> list[str]:
    """The hashes; those of equal content get `#1`, `#2` … from the second one on."""
    seen: Counter[str] = Counter()
    ids = []
    for digest in hashes:
        ids.append(f"{digest}#{seen[digest]}" if seen[digest] else digest)
        seen[digest] += 1
    return ids


def checked_ids(data: DataSection, values: list[Any], source_rows: list[int]) -> list[str]:
    """The ids of a column as texts; `DataError` for one that is missing or there twice."""
    first: dict[str, int] = {}
    for source_row, value in zip(source_rows, values, strict=True):
        if value is None or value == "":
            raise DataError(
                f"{data.name}: row {source_row} has no id in column {data.id_column!r}; every "
                "sample needs one. Fill it in, or leave data.id_column out: the id is then a hash"
            )
        if str(value) in first:
            raise DataError(
                f"{data.name}: rows {first[str(value)]} and {source_row} have the same id "
                f"{str(value)!r} in column {data.id_column!r}; ids must be unique. Correct them, "
                "or leave data.id_column out: the id is then a hash of the content"
            )
        first[str(value)] = source_row
    return list(first)


def fingerprint_of(ids: list[str], groups: list[str], hashes: list[str]) -> str:
    """xxh3_128 of all samples in their order: by it a store knows its data again."""
    digest = xxhash.xxh3_128()
    for entry in zip(ids, groups, hashes, strict=True):
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()
