"""By what a sample is known: the hash of its content, its id, and the fingerprint of all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import xxhash

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.conversation import Conversation
from gracekit.samples.messages import MalformedRowError
from gracekit.texts import Texts


def content_hash(conversation: Conversation) -> str:
    """xxh3_128 of the conversation; `MalformedRowError` for one that is nested too deep."""
    try:
        return xxhash.xxh3_128_hexdigest(conversation.canonical().encode())
    except RecursionError:
        raise MalformedRowError("it is nested too deep") from None


def ids_of(hashes: Texts) -> Texts:
    """The hashes; those of equal content get `#1`, `#2` … from the second one on."""
    if hashes.num_distinct == len(hashes):
        return hashes
    seen = [0] * hashes.num_distinct
    ids = []
    for digest, code in zip(hashes, hashes.codes().tolist(), strict=True):
        ids.append(f"{digest}#{seen[code]}" if seen[code] else digest)
        seen[code] += 1
    return Texts.of(ids)


def checked_ids(data: DataSection, values: list[Any], source_rows: Sequence[int]) -> Texts:
    """The ids of a column as texts; `DataError` for one that is missing or there twice."""
    ids = Texts.of(str(value) for value in values)
    if ids.num_distinct == len(ids) and all(value is not None and value != "" for value in values):
        return ids
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
    raise AssertionError("one is missing or there twice")


def fingerprint_of(ids: Texts, groups: list[str], hashes: Texts) -> str:
    """xxh3_128 of all samples in their order: by it a store knows its data again."""
    digest = xxhash.xxh3_128()
    for entry in zip(ids, groups, hashes, strict=True):
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()
