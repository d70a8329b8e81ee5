"""How a version is named: a whole number or `"latest"`; errors say which versions there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gracekit.errors import UsageError, VersionNotFoundError
from gracekit.store import Store
from gracekit.store.retention import collect
from gracekit.store.version_argument import versions_in_words
from tests.stores import make_draft, make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Versions 3 and 4; 1 and 2 were removed."""
    made = make_store(tmp_path_factory.mktemp("world") / "store")
    for name in "abcd":
        made.commit(make_draft(made, name))
    with made.lock():
        collect(made, 2)
    return made


@pytest.mark.parametrize("version", [4, np.int32(4), np.uint64(4), "latest", None])
def test_numbers_and_latest(store: Store, version: Any) -> None:
    found = store.resolve(version)
    assert found == 4 and type(found) is int


@pytest.mark.parametrize("version", ["4", " 4", "newest", True, 4.0, np.float64(4), [4], b"latest"])
def test_anything_else_is_refused(store: Store, version: Any) -> None:
    with pytest.raises(UsageError, match="a whole number or 'latest', found"):
        store.resolve(version)


def test_digits_in_quotes_are_answered_with_a_hint(store: Store) -> None:
    with pytest.raises(UsageError, match="write 12 without quotes"):
        store.resolve("12")  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [0, -1, 5, 10**9])
def test_an_unknown_number_is_told_what_exists(store: Store, version: int) -> None:
    with pytest.raises(VersionNotFoundError) as raised:
        store.resolve(version)
    text = str(raised.value)
    assert text.startswith(f"there is no version {version}: the store {store.paths.root} has ")
    assert text.endswith("has versions 3, 4; 1 and 2 were removed by gc")


def test_a_removed_version_says_so(store: Store) -> None:
    with pytest.raises(VersionNotFoundError, match=r"version 2 was removed by gc on \d{4}-.* 3, 4"):
        store.resolve(2)


def test_a_store_without_versions_says_how_to_make_one(tmp_path: Path) -> None:
    empty = make_store(tmp_path / "store")
    with pytest.raises(VersionNotFoundError, match="no version yet; make one with"):
        empty.resolve()
    with pytest.raises(VersionNotFoundError, match=r"there is no version 1.* has none yet"):
        empty.resolve(1)


@pytest.mark.parametrize(
    ("kept", "removed", "words"),
    [
        ([2, 4, 5, 6], [1, 3], "versions 2, 4 to 6; 1 and 3 were removed by gc"),
        ([7], [], "version 7"),
        ([1, 2, 3], [], "versions 1 to 3"),
        ([5], [1, 2, 4], "version 5; 1, 2 and 4 were removed by gc"),
        ([2], [1], "version 2; 1 was removed by gc"),
        ([], [], "none yet"),
    ],
)
def test_versions_in_words(kept: list[int], removed: list[int], words: str) -> None:
    assert versions_in_words(kept, removed) == words
