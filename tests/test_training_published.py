"""Trainers that read a published store by its URL: the same batches as beside the store."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from gracekit.remote import RemoteFolder
from gracekit.store import Store, local_store
from gracekit.store.remote.publishing import publish_versions
from gracekit.training import CoresetCallback, CoresetSampler, sampler
from tests.remote_faults import SLOW, fails_with, in_place_of
from tests.stores import N, make_draft, make_store
from tests.test_training_callback import logged, train

NUM_ROWS = 2 * N


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sampler, "REMOTE_INTERVAL_S", 0.0)
    monkeypatch.setattr(sampler, "REMOTE_PAUSE_S", 0.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}"


def version(store: Store, url: str) -> int:
    made = store.commit(make_draft(store, f"refresh-{store.next_version()}"))
    publish_versions(store.renew(), url)
    return made


def epoch(drawing: CoresetSampler, number: int) -> list[int]:
    drawing.set_epoch(number)
    return list(drawing)


def test_a_sampler_draws_the_same_as_beside_the_store(store: Store, url: str) -> None:
    here, there = CoresetSampler(store.paths.root, NUM_ROWS), CoresetSampler(url, NUM_ROWS)
    assert epoch(here, 0) == epoch(there, 0), "nothing is published yet: the whole dataset"
    for number in (1, 2, 3):
        assert version(store, url) == number
        assert epoch(here, number) == epoch(there, number)
        assert there.version == number
    assert here.version_log == there.version_log


def test_a_resumed_run_on_another_host_reads_the_versions_of_its_log(
    store: Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version(store, url)
    before = CoresetSampler(url, NUM_ROWS)
    drawn = epoch(before, 0)
    state = before.state_dict()
    version(store, url)
    monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / "another-host"))
    again = CoresetSampler(url, NUM_ROWS)
    again.load_state_dict(state)
    assert epoch(again, 0) == drawn
    epoch(again, 1)
    assert again.version == 2


def test_within_an_epoch_a_new_version_is_taken(store: Store, url: str) -> None:
    version(store, url)
    drawing = CoresetSampler(url, NUM_ROWS, follow="step")
    draws = iter(drawing)
    for _ in range(5):
        next(draws)
    version(store, url)
    drawing.swap()
    assert drawing.version == 2


@pytest.mark.parametrize("has_store", [False, True])
def test_the_first_version_is_looked_for_as_often_as_later_ones(
    has_store: bool,
    store: Store,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if has_store:
        publish_versions(store, url)
    now = [1000.0]
    monkeypatch.setattr(sampler, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(sampler, "REMOTE_INTERVAL_S", 5.0)
    monkeypatch.setattr(sampler, "REMOTE_PAUSE_S", 300.0)
    drawing = CoresetSampler(url, NUM_ROWS, follow="step")
    draws = iter(drawing)
    next(draws)
    assert "published at memory://" in caplog.text
    version(store, url)
    now[0] += 4
    drawing.swap()
    assert drawing.version == 0
    now[0] += 2
    drawing.swap()
    assert drawing.version == 1
    with in_place_of(lambda k, name: True, fails_with(SLOW)) as calls:
        for after, looks in ((6, 1), (290, 1), (307, 2)):
            now[0] = 1006.0 + after
            drawing.swap()
            assert len(calls) == looks, "a look that failed is made again after 300 s"


def test_training_goes_on_while_the_url_cannot_be_read(
    store: Store, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    version(store, url)
    drawing = CoresetSampler(url, NUM_ROWS)
    epoch(drawing, 0)
    version(store, url)
    with (
        caplog.at_level(logging.WARNING, "gracekit.training"),
        in_place_of(lambda k, name: True, fails_with(SLOW)),
    ):
        assert len(epoch(drawing, 1)) == NUM_ROWS
    assert drawing.version == 1
    assert "no new coreset is looked for: cannot list manifests at memory://" in caplog.text
    epoch(drawing, 2)
    assert drawing.version == 2


def test_a_callback_trains_by_a_url_as_by_the_directory(
    store: Store, url: str, tmp_path: Path
) -> None:
    version(store, url)
    places = {"here": CoresetCallback(store.paths.root), "there": CoresetCallback(url)}
    runs = {name: train(tmp_path / name, callback) for name, callback in places.items()}
    assert runs["here"][1] == runs["there"][1]
    assert logged(runs["here"][0]) == logged(runs["there"][0])
    sampler_there = places["there"].sampler
    assert sampler_there is not None
    assert sampler_there.version == 1
    assert (local_store(url) / "manifests" / "v000001.parquet").is_file()


def test_a_damaged_version_at_the_url_is_one_warning(
    store: Store, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    version(store, url)
    folder = RemoteFolder.open(url)
    name = "samples.parquet"
    content = bytearray(folder.read(name))
    content[30] ^= 1
    folder.write(name, bytes(content))
    drawing = CoresetSampler(url, NUM_ROWS)
    assert sorted(epoch(drawing, 0)) == list(range(NUM_ROWS))
    assert drawing.version == 0
    assert "coreset" in caplog.text
    assert not (local_store(url) / "manifests" / "v000001.parquet").is_file()
