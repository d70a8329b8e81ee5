"""Merging changed data into the samples of a store: every property of `merge`, at random."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gracekit.samples import Growth, merge
from gracekit.types import SampleTable
from tests.stores import strings

Data = dict[str, tuple[str, str]]
"""Sample id -> (content, group), in the data's order."""

IDS = [f"s{k}" for k in range(8)]
DATA = st.lists(st.sampled_from(IDS), unique=True, min_size=1).flatmap(
    lambda ids: st.fixed_dictionaries(
        {i: st.tuples(st.sampled_from("xyz"), st.sampled_from("abc")) for i in ids}
    )
)
"""Other texts, other groups, another order, gone, and back, all from a few ids."""


def table(data: Data) -> SampleTable:
    n, names = len(data), tuple(sorted({group for _, group in data.values()}))
    return SampleTable(
        sample_ids=strings(list(data)),
        groups=np.array([names.index(group) for _, group in data.values()], np.int32),
        group_names=names,
        num_prompt_tokens=np.ones(n, np.int32),
        num_response_tokens=np.array([ord(text) for text, _ in data.values()], np.int32),
        content_hashes=strings([text for text, _ in data.values()]),
        source_rows=2 * np.arange(n),
        previews=strings([f"{i} {text}" for i, (text, _) in data.items()]),
        num_source_rows=2 * n,
        fingerprint=str(list(data.items())),
    )


def grown(chain: list[Data]) -> list[Growth]:
    growths, known = [], table(chain[0])
    for version, data in enumerate(chain[1:], start=2):
        growths.append(merge(known, table(data), version=version))
        known = growths[-1].samples
    return growths


@given(st.lists(DATA, min_size=2, max_size=5))
def test_rows_are_kept_and_the_data_is_what_is_present(chain: list[Data]) -> None:
    known = table(chain[0])
    for data, growth in zip(chain[1:], grown(chain), strict=True):
        samples = growth.samples
        ids = samples.sample_ids.tolist()
        assert len(set(ids)) == len(ids), "an id has one row"
        assert ids[: len(known)] == known.sample_ids.tolist(), "a row keeps its id, always"
        assert {i for i, p in zip(ids, samples.present, strict=True) if p} == set(data)
        rows = np.flatnonzero(samples.present)
        places = growth.places[rows]
        assert [list(data)[place] for place in places] == [ids[row] for row in rows]
        np.testing.assert_array_equal(samples.source_rows[rows], 2 * places)
        assert (samples.source_rows[~samples.present] == -1).all()
        assert (growth.places[~samples.present] == -1).all()
        for row in rows:
            text, group = data[ids[row]]
            assert samples.content_hashes[row] == text and samples.previews[row].endswith(text)
            assert samples.group_names[samples.groups[row]] == group
            assert samples.num_response_tokens[row] == ord(text)
        assert sorted(samples.group_names) == list(samples.group_names)
        known = samples


@given(st.lists(DATA, min_size=2, max_size=5))
def test_what_changed_is_told_and_dated(chain: list[Data]) -> None:
    seen: dict[str, str] = {i: text for i, (text, _) in chain[0].items()}
    since = dict.fromkeys(seen, 1)
    for version, (before, data, growth) in enumerate(
        zip(chain, chain[1:], grown(chain), strict=False), start=2
    ):
        ids = growth.samples.sample_ids
        added = {i for i in data if i not in seen}
        changed = {i for i in data if i in seen and seen[i] != data[i][0]}
        returned = {i for i in data if i in seen and i not in before}
        removed = set(before) - set(data)
        for rows, expected in (
            (growth.added, added), (growth.removed, removed),
            (growth.changed, changed), (growth.returned, returned),
        ):  # fmt: skip
            assert set(ids[rows]) == expected
        assert set(ids[growth.forgotten]) == added | removed | changed | returned
        since |= dict.fromkeys(added | changed, version)
        assert dict(zip(ids, growth.samples.content_versions.tolist(), strict=True)) == since
        samples = growth.samples
        assert (samples.removed_versions[growth.removed] == version).all()
        assert (samples.added_versions[growth.added] == version).all()
        seen |= {i: text for i, (text, _) in data.items()}


@given(st.lists(DATA, min_size=2, max_size=4))
def test_merging_again_changes_nothing(chain: list[Data]) -> None:
    last = grown(chain)[-1].samples
    again = merge(last, table(chain[-1]), version=99)
    assert not again.is_change and not again.forgotten.any()
    assert_same(again.samples, last)


@given(st.lists(DATA, min_size=2, max_size=4), st.randoms())
def test_the_order_of_the_data_is_no_matter(chain: list[Data], random: Any) -> None:
    known = grown(chain)[-1].samples if len(chain) > 2 else table(chain[0])
    shuffled = list(chain[-1].items())
    random.shuffle(shuffled)
    one, other = (
        merge(known, dataclasses.replace(table(data), fingerprint="f"), version=9)
        for data in (chain[-1], dict(shuffled))
    )
    positions = dataclasses.replace(other.samples, source_rows=one.samples.source_rows)
    assert_same(one.samples, positions)


def test_positions_alone_are_a_change_too() -> None:
    data: Data = {"a": ("x", "g"), "b": ("y", "g")}
    known = table(data)
    moved = dataclasses.replace(table(data), source_rows=np.array([0, 3]))
    growth = merge(known, moved, version=2)
    assert growth.is_change and not growth.forgotten.any()
    np.testing.assert_array_equal(growth.samples.source_rows, [0, 3])


def assert_same(one: SampleTable, other: SampleTable) -> None:
    for column in dataclasses.fields(SampleTable):
        np.testing.assert_array_equal(getattr(one, column.name), getattr(other, column.name))
