"""`gracekit verify URL`: what is wrong with a published copy is found, told, and mended as told."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import gracekit
from gracekit.cli import main
from gracekit.errors import ExportError, GracekitError, RemoteError, StoreNotFoundError, UsageError
from gracekit.remote import RemoteFolder
from gracekit.store import Store
from gracekit.training import Coreset
from tests.flips import files_of, flip_bit, flip_many
from tests.published import contents, expected, make_history
from tests.remote_faults import SLOW, fails_with, in_place_of
from tests.stores import make_draft, make_reselect
from tests.test_store_flips import logged_uses

SEED = 20261130
KINDS = {
    "LATEST", "draws", "headers", "manifests", "measurements", "removed", "samples",
    "samples.parquet", "score_history", "store.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of six versions, two of them removed, and its copy beside it."""
    folder = tmp_path_factory.mktemp("published")
    store = make_history(folder / "store")
    state = logged_uses(len(store.samples())).state
    store.commit(dataclasses.replace(make_draft(store, "five"), state=state))
    store.commit(make_reselect(store, "six"))
    store.pin(1)
    store.gc(3)
    gracekit.publish(store, f"file://{folder}/copy")
    assert files_of(folder / "copy").keys() == KINDS
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "world")
    return tmp_path / "world"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / "cache"))


def url_of(folder: Path) -> str:
    return f"file://{folder}/copy"


def is_found(copy: Path) -> bool:
    return not gracekit.verify(f"file://{copy}").ok


def told(folder: Path) -> dict[str, str]:
    """Object -> what to do about it."""
    return {found.path: found.advice for found in gracekit.verify(url_of(folder)).problems}


def test_no_room_for_temporary_files_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = folder / "gone"  # as when TMPDIR is removed while we run
    monkeypatch.setattr(tempfile, "tempdir", str(gone))
    result = CliRunner().invoke(main, ["verify", url_of(folder)])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert f"cannot make a folder for temporary files in {gone}" in result.output
    assert "set TMPDIR" in result.output
    with pytest.raises(ExportError, match=r"cannot write the export .* set TMPDIR"):
        gracekit.export(folder / "store", f"file://{folder}/ids", format="ids")


# --- flipped bits ---


def test_a_whole_copy_verifies(folder: Path) -> None:
    before = contents(url_of(folder))
    found = gracekit.verify(url_of(folder))
    assert (found.ok, found.versions) == (True, (1, 4, 5, 6))
    assert contents(url_of(folder)) == before
    assert gracekit.verify(Path(url_of(folder))).ok  # as the command line has it


def test_flipped_bits(folder: Path) -> None:
    counts, missed = flip_many(folder / "copy", 6 * len(KINDS), SEED, is_found)
    assert missed == []
    assert counts == dict.fromkeys(KINDS, 6)


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_four_thousand_flipped_bits(folder: Path) -> None:
    seed = SEED + 1
    counts, missed = flip_many(folder / "copy", 4000, seed, is_found)
    kinds = ", ".join(f"{count} in {kind}" for kind, count in counts.items())
    print(f"\nseed {seed}: 4,000 flipped bits over a published copy, found {kinds}")
    assert missed == [] and counts.total() == 4000


def values(coreset: Coreset) -> dict[str, Any]:
    return {
        "rows": coreset.rows.tolist(),
        "weights": coreset.weights.tolist(),
        "ids": list(coreset.sample_ids),
    }


def test_readers_never_take_a_changed_value(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They refuse, or read an older version and say so."""
    whole = {}
    for version in (1, 4, 5, 6):
        whole[version] = values(Coreset.load(url_of(folder), version=version))
    rng, kinds = np.random.default_rng(SEED), files_of(folder / "copy")
    met = set[int | str]()
    for k, kind in enumerate(sorted(KINDS) * 6):
        monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / f"cache-{k}"))
        path = kinds[kind][int(rng.integers(len(kinds[kind])))]
        before = flip_bit(path, int(rng.integers(8 * path.stat().st_size)))
        try:
            coreset = Coreset.load(url_of(folder))
        except GracekitError:
            met.add("refused")
        else:
            assert values(coreset) == whole[coreset.version], path
            met.add(coreset.version)
        finally:
            path.write_bytes(before)
    assert met >= {1, 5, 6}


# --- what to do about it ---


@pytest.mark.parametrize("is_removed", [False, True], ids=["damaged", "missing"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_told_mends_it(folder: Path, kind: str, is_removed: bool) -> None:
    store, url = Store.open(folder / "store"), url_of(folder)
    path = files_of(folder / "copy")[kind][-1]
    name = path.relative_to(folder / "copy").as_posix()
    if is_removed and name == "store.json":
        return  # then there is no store
    if is_removed:
        path.unlink()
    else:
        flip_bit(path, 8 * (path.stat().st_size // 2))
    advice = told(folder)
    assert name in advice or (is_removed and kind in ("manifests", "removed")), advice
    if not is_removed and "remove it" in advice[name]:
        RemoteFolder.open(url).remove(name)
        if "LATEST" in advice[name]:
            RemoteFolder.open(url).remove("LATEST")
    gracekit.publish(store, url)
    assert told(folder) == {}
    assert contents(url) == expected(store)


def test_a_version_that_is_missing_is_told(folder: Path) -> None:
    (folder / "copy/removed/v000002.json").unlink()
    (folder / "copy/manifests/v000005.parquet").unlink()
    problems = {found.path: found for found in gracekit.verify(url_of(folder)).problems}
    assert problems["manifests"].what == "versions [2, 5] are missing"
    assert "`gracekit publish` writes them" in problems["manifests"].advice


def test_a_name_of_any_number(folder: Path) -> None:
    """It takes no memory by what it says."""
    shutil.copy(
        folder / "copy/manifests/v000006.parquet", folder / f"copy/manifests/v{10**15}.parquet"
    )
    for place in (url_of(folder), str(folder / "copy")):
        problems = {found.path: found.what for found in gracekit.verify(place).problems}
        assert problems["manifests"].startswith("versions [7, 8, ")
        assert problems["manifests"].endswith(", 26] and 999,999,999,999,973 more are missing")
        assert f"manifests/v{10**15}.parquet" in problems


def test_a_publish_at_work_is_no_problem(folder: Path) -> None:
    """Its claim and files come before the manifest."""
    store = Store.open(folder / "store")
    store.commit(make_draft(store, "seven"))
    gracekit.publish(store, url_of(folder))
    (folder / "copy/manifests/v000007.parquet").unlink()
    (folder / "copy/LATEST").write_text("6\n")
    assert told(folder) == {}


def test_what_is_removed_meanwhile_is_looked_at_again(folder: Path) -> None:
    store = Store.open(folder / "store")
    is_first = True

    def react(k: int, name: str) -> bool:
        nonlocal is_first
        if is_first and name == "get_part" and k > 2:  # nothing of version 4 was read
            is_first = False
            store.gc(1)
            gracekit.publish(store, url_of(folder))
        return False

    with in_place_of(react, fails_with(SLOW)):
        found = gracekit.verify(url_of(folder))
    assert not is_first
    assert (found.versions, found.problems) == ((1, 5, 6), ())


def test_an_object_store_that_fails_is_no_damage(folder: Path) -> None:
    with in_place_of(lambda k, name: k == 8, fails_with(SLOW)), pytest.raises(RemoteError):
        gracekit.verify(url_of(folder))


def test_no_store_there(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with pytest.raises(StoreNotFoundError, match="no store is published at"):
        gracekit.verify(url_of(tmp_path))
    with pytest.raises(RemoteError, match="no such directory"):
        gracekit.verify(f"file://{tmp_path}/none")


# --- the command ---


@pytest.fixture
def quiet() -> Iterator[None]:
    yield
    logging.getLogger("gracekit").handlers.clear()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["verify", *arguments], catch_exceptions=False)


def test_the_command(folder: Path, quiet: None) -> None:
    url = url_of(folder)
    assert run(url).output == run("--store", url).output == "4 versions verify\n"
    assert run(str(folder / "store")).stdout == "4 versions verify\n"
    flip_bit(folder / "copy/manifests/v000004.parquet", 4001)
    result = run(url, "--json")
    assert result.exit_code == 1
    (problem, *_) = json.loads(result.stdout)["problems"]
    assert problem["path"] == "manifests/v000004.parquet"
    assert str(folder.parent) not in problem["what"].replace(url, "")
    result = run(url)
    assert result.exit_code == 1
    told = " ".join(result.stdout.split())  # lines end where the terminal does
    assert "remove it there, and `gracekit publish` writes it again" in told
    assert run(url, "--deep").exit_code == 2
    assert run(url, "--store", str(folder / "store")).exit_code == 2
    with pytest.raises(UsageError, match="deep is for a store on this machine"):
        gracekit.verify(url, deep=True)
