"""Data in an object store: the same rows as from files, copied once, and again when it changed."""

from __future__ import annotations

import gzip
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from gracekit.errors import DataError, RemoteError
from gracekit.recipe import DataSection, Recipe
from gracekit.refresher.data import CurrentData
from gracekit.remote import RemoteFolder
from gracekit.samples import data_stamp, load_samples


def lines(count: int, word: str = "row") -> bytes:
    rows = ({"prompt": f"{word} {i}", "response": f"answer {i}"} for i in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(params=["file", "memory"])
def bucket(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RemoteFolder:
    """An empty one; copies of it lie under `tmp_path/cache`."""
    monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/bucket" if request.param == "file" else f"memory://{tmp_path.name}"
    return RemoteFolder.open(url, create=True)


def ids(place: str | list[str]) -> list[str]:
    raw = load_samples(DataSection(path=place if isinstance(place, str) else tuple(place)))
    return [str(each) for each in raw.sample_ids]


def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is downloaded from here on."""
    found: list[str] = []
    download = RemoteFolder.download

    def noted(self: RemoteFolder, one: object, final: Path, **more: object) -> None:
        found.append(final.name)
        download(self, one, final, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(RemoteFolder, "download", noted)
    return found


def test_an_object_has_the_rows_of_the_file(
    bucket: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(20))
    bucket.write("train.jsonl", lines(20))
    bucket.write("packed.jsonl.gz", gzip.compress(lines(20, "other")))
    names = copied(monkeypatch)
    assert ids(f"{bucket.url}/train.jsonl") == ids(str(tmp_path / "train.jsonl"))
    assert ids(f"{bucket.url}/train.jsonl") and names == ["train.jsonl"], "copied once"
    both = ids([f"{bucket.url}/train.jsonl", f"{bucket.url}/packed.jsonl.gz"])
    assert len(both) == 40 and names == ["train.jsonl", "packed.jsonl.gz"]


def test_a_folder_is_read_as_one_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / "cache"))
    bucket = RemoteFolder.open(f"file://{tmp_path}/bucket", create=True)
    bucket.write("data/train-00000.jsonl", lines(5, "one"))
    bucket.write("data/train-00001.jsonl", lines(5, "two"))
    bucket.write("data/test.jsonl", lines(3, "judge"))
    bucket.write("data/README", b"no data")
    place = f"{bucket.url}/data"
    assert ids(place) == ids(str(tmp_path / "bucket/data"))
    assert len(ids(place)) == 10
    assert len(load_samples(DataSection(path=place, split="test"))) == 3


def test_a_replaced_object_is_copied_again_and_old_copies_go(
    bucket: RemoteFolder, tmp_path: Path
) -> None:
    data = DataSection(path=f"{bucket.url}/train.jsonl")
    stamps = []
    for count in (10, 11, 12, 13):
        bucket.write("train.jsonl", lines(count))
        stamps.append(data_stamp(data))
        assert data_stamp(data) == stamps[-1]
        assert len(load_samples(data)) == count
    assert all(a != b for a, b in pairwise(stamps))
    assert len(list((tmp_path / "cache/data").glob("*/*"))) == 2


def test_data_that_cannot_be_reached_leaves_what_was_read(
    bucket: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write("train.jsonl", lines(10))
    data = CurrentData(DataSection(path=f"{bucket.url}/train.jsonl"), strict=False)
    first = data.samples
    bucket.write("train.jsonl", lines(12))

    def fail(self: RemoteFolder, *args: object, **more: object) -> None:
        raise RemoteError("no answer in time")

    for broken in ("look_up", "download"):
        with monkeypatch.context() as patch:
            patch.setattr(RemoteFolder, broken, fail)
            assert data.renew(lambda raw: None) is first
            assert data.problem is not None and "no answer in time" in data.problem
    assert len(data.renew(lambda raw: None)) == 12 and data.problem is None


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("absent.jsonl", "no object and no folder|no such directory"),
        ("part-*.jsonl", "patterns are for files"),
        ("part-?.jsonl", "data: the URL of a folder has no '.'"),
    ],
)
def test_what_cannot_be_read_says_so(bucket: RemoteFolder, place: str, reason: str) -> None:
    bucket.write("train.jsonl", lines(3))
    with pytest.raises(DataError, match=reason):
        load_samples(DataSection(path=f"{bucket.url}/{place}"))


def test_a_url_made_of_a_path_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "my bücket" / "train #1.jsonl"
    place.parent.mkdir()
    place.write_bytes(lines(20))
    assert ids(place.as_uri()) == ids(str(place))


def test_without_a_bucket_it_is_an_error_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        load_samples(DataSection(path=f"file://{tmp_path}/nowhere/train.jsonl"))


def test_a_recipe_of_another_folder_keeps_the_address(tmp_path: Path) -> None:
    (tmp_path / "gracekit.yaml").write_text(
        "data: {path: [s3://bucket/a.jsonl, b.jsonl]}\ntarget: {path: 's3://bucket/t.jsonl'}\n"
    )
    recipe = Recipe.load(tmp_path / "gracekit.yaml")
    assert recipe.data.places == ("s3://bucket/a.jsonl", os.fspath(tmp_path / "b.jsonl"))
    assert recipe.target is not None and recipe.target.places == ("s3://bucket/t.jsonl",)
