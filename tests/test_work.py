"""`gracekit work`: other processes measure for a refresh, and it has the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gracekit
from gracekit import Recipe, refresh
from gracekit.checkpoints import check_checkpoint, model_identity, pin
from gracekit.errors import (
    CheckpointError,
    CheckpointMismatchError,
    RecipeError,
    StoreError,
    StoreNotFoundError,
    UsageError,
)
from gracekit.model_pass.executors import LocalExecutor
from gracekit.progress import Progress
from gracekit.recipe import ScoringSection
from gracekit.refresher.sharing import SharingExecutor, describe, device_facts
from gracekit.store import SharedWork, Store, StorePaths
from gracekit.store.files.sealing import sealed_json
from gracekit.types import Measurement, Rows
from tests.patience import until
from tests.test_scoring_more_scores import Tokens
from tests.test_scoring_pass import tiny
from tests.test_scoring_processes import SCORING, samples, target, whole
from tests.tiny import tiny_recipe, write_checkpoint, write_data

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
SHARDS = {"shard_rows": 8, "batch_tokens": 64}


class Patient(LocalExecutor):
    """The refresher's own executor, which waits with its first shard until others have done theirs:
    one was killed within a shard, and another one has measured that shard.
    """

    folder: Path
    helper: subprocess.Popen[str]
    host: str | None
    has_waited = False
    num_by_others = 0

    def measure(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        if not Patient.has_waited:
            Patient.has_waited = True
            until(lambda: (Patient.folder / "killed").exists(), "the first worker to be killed")
            worker = ("gracekit", "work", str(Patient.folder / "store"), "--once", "--json")
            Patient.helper = start(*worker, host=Patient.host and f"{Patient.host}-2")
            until(self.is_taken_over, "another worker to measure what it left")
        yield from super().measure(rows, progress)

    def is_taken_over(self) -> bool:
        assert Patient.helper.poll() is None, Patient.helper.communicate()
        names = {path.name for path in Patient.folder.glob("store/shards/*-shared/*")}
        Patient.num_by_others = sum(name.endswith(".shard") for name in names)
        again = [name.partition(".")[0].split("-") for name in names if ".1.claim" in name]
        return any(f"{offer}{shard}.shard" in names for offer, shard in again)


APART = [
    "unshare",
    "--user",
    "--map-root-user",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--net",
    "--uts",
]
"""Runs a command as on another host: processes, network and host name of its own, the files of
this one."""


def start(*module_and_arguments: str, host: str | None = None) -> subprocess.Popen[str]:
    """A process of this host, or of one of that name."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # The shell stays, since nothing in the namespace can kill its first process.
    there = [] if host is None else [*APART, "sh", "-c", f'hostname {host}; "$@"; exit $?', "sh"]
    return subprocess.Popen(
        [*there, sys.executable, "-m", *module_and_arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def make_world(folder: Path, **scoring: Any) -> Recipe:
    folder.mkdir()
    write_data(folder / "train.jsonl")
    write_data(folder / "target.jsonl", num_samples=12, seed=5)
    return tiny_recipe(
        folder,
        scoring={**SHARDS, **scoring},
        target={"path": "target.jsonl", "group_column": "source", "max_length": 64},
    )


def bytes_of(store: Path) -> dict[str, bytes]:
    """What a version is, but for its header, which holds seconds and paths."""
    opened = Store.open(store)
    scores, manifest = opened.scores(1), gracekit.Coreset.load(store, 1)
    found = {name: values.tobytes() for name, values in scores.scores.items()}
    found["rows"], found["weights"] = manifest.rows.tobytes(), manifest.weights.tobytes()
    features = next((store / "cache").glob("v000001/features.npy"), None)
    assert features is not None
    found["features"] = features.read_bytes()
    return found


def can_be_apart() -> bool:
    """Whether this system lets a process have namespaces of its own."""
    try:
        return (
            subprocess.run([*APART, "hostname", "elsewhere"], capture_output=True).returncode == 0
        )
    except OSError:
        return False


@pytest.mark.parametrize("host", [None, "elsewhere"], ids=["one host", "three hosts"])
def test_a_refresh_with_workers_has_the_bytes_of_one_without(
    host: str | None, tmp_path: Path
) -> None:
    """Of two workers one is killed half-way. On hosts of their own they cannot see each other's
    processes: a claim is taken over once its lease has ended."""
    if host is not None and not can_be_apart():
        pytest.skip("this system has no namespaces for unprivileged users")
    Patient.host, Patient.has_waited, Patient.num_by_others = host, False, 0
    alone = make_world(tmp_path / "alone")
    refresh(alone, write_checkpoint(tmp_path / "alone" / "run", 100))

    folder = Patient.folder = tmp_path / "shared"
    lease = {} if host is None else {"lease_s": 3.0}
    recipe = make_world(folder, share=True, executor=f"{__name__}:Patient", **lease)
    checkpoint = write_checkpoint(folder / "run", 100)
    (folder / "store").mkdir()
    command = ("tests.dying_worker", recipe.store, str(folder / "killed"))
    dying = start(*command, host=host and f"{host}-1")
    try:
        refresh(recipe, checkpoint)
        assert dying.wait() == (-9 if host is None else 128 + 9), dying.communicate()
        answer, said = Patient.helper.communicate(timeout=600)
    finally:
        for process in (dying, getattr(Patient, "helper", dying)):
            process.kill()
            process.communicate()
    assert Patient.helper.returncode == 0, said
    report = json.loads(answer)
    assert report["num_shards"] >= 1 and report["num_refreshes"] == 1
    assert Patient.num_by_others >= 2  # one of the killed worker, one of the other
    assert bytes_of(folder / "store") == bytes_of(tmp_path / "alone" / "store")
    assert not [*(folder / "store" / "shards").glob("*")]
    digests = [Store.open(path).header(1).recipe_digest for path in (recipe.store, alone.store)]
    assert digests[0] == digests[1]


def sharing(root: Path, lease_s: float = 60.0) -> SharingExecutor:
    tokens = Tokens(samples())
    own = LocalExecutor(tiny("llama"), tokens, SCORING, target=target())
    work = SharedWork(StorePaths(root), "abc", lease_s)
    return SharingExecutor(own, work, tokens, SCORING, {}, target())


def test_a_refresh_that_is_shared_with_nobody_is_as_any(tmp_path: Path) -> None:
    tokens, rows = Tokens(samples()), np.arange(11)
    own = LocalExecutor(tiny("llama"), tokens, SCORING, target=target())
    parts, looked = list(own.measure(rows)), whole(own.look(rows))
    expected, progress = whole(parts), Progress()
    with closing(sharing(tmp_path)) as executor:
        found = whole(executor.measure(rows, progress))
        assert progress.to_json()["num_done"] == len(rows)
        assert np.array_equal(whole(executor.look(rows)).features, looked.features)
        assert executor.target() is not None and executor.optimizer() is None
    for name, score in expected.scores.items():
        assert np.array_equal(found.scores[name], score)
    assert np.array_equal(found.features, expected.features)

    # A refresher that was killed leaves what workers have handed over; it is not measured again.
    killed = sharing(tmp_path)
    tokens_of = [tokens.lengths[part.rows] for part in parts]
    offer = killed._work.offer([part.rows for part in parts], tokens_of, tokens.take, False)
    assert killed._work.save(offer, 0, parts[0])
    progress = Progress()
    with closing(sharing(tmp_path)) as executor:
        again = whole(executor.measure(rows, progress))
    assert progress.to_json()["num_planned"] == len(rows) - len(parts[0].rows)
    assert again.rows.tolist() == rows.tolist()
    assert not [*tmp_path.glob("shards/*")]


def test_a_worker_that_renews_its_claim_and_never_ends_ends_no_refresh(tmp_path: Path) -> None:
    """It has the first shard of every round, from another host, and hands nothing over."""
    over, rows = threading.Event(), np.arange(11)

    def hang() -> None:
        work, number = SharedWork(StorePaths(tmp_path), "abc", 0.2), 0
        while not over.wait(0.01):
            path = work.directory / "000001-000000.0.claim"
            held = {"state": "held", "number": number, "host": "elsewhere", "pid": 1}
            number += 1
            if work.directory.exists():
                path.with_suffix(".new").write_text(sealed_json(held))
                path.with_suffix(".new").replace(path)

    with closing(sharing(tmp_path, lease_s=0.2)) as executor:
        hanging = threading.Thread(target=hang)
        hanging.start()
        try:
            until(lambda: [*tmp_path.glob("shards/*/*.claim")], "the claim of the other one")
            found = whole(executor.measure(rows))
        finally:
            over.set()
            hanging.join()
    assert found.rows.tolist() == rows.tolist()


def test_a_stop_keeps_what_is_measured(tmp_path: Path) -> None:
    stop, rows = threading.Event(), np.arange(11)
    with closing(sharing(tmp_path)) as executor:
        shards = executor.measure(rows, Progress(stop))
        first = next(shards)
        stop.set()
        assert [*shards] == [] and len(first.rows) == 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, SharedWork]:
    """A store with a refresh that is shared, and no refresher."""
    folder = tmp_path_factory.mktemp("world") / "world"
    recipe = make_world(folder, share=True)
    paths = StorePaths(Path(recipe.store))
    checkpoint = check_checkpoint(write_checkpoint(folder / "run", 100), recipe.checkpoints)
    with pin(checkpoint, paths.pins) as pinned:
        identity = model_identity(pinned.directory, recipe.checkpoints)
        shutil.copytree(pinned.directory, folder / "kept")
    shutil.copytree(folder / "kept", pinned.directory)
    work = SharedWork(paths, "abc", 60.0)
    work.open(describe(paths, "abc", pinned, identity, recipe, None), None)
    return recipe, work


def other(work: SharedWork, part: str, **values: Any) -> None:
    """Share it anew, with other values in one part of the task."""
    task = work.task()
    task[part] = {**task[part], **values} if values else "0"
    work.open(task, None)


def test_a_worker_that_would_measure_something_else_is_refused(
    world: tuple[Recipe, SharedWork],
) -> None:
    recipe, work = world
    store, task = recipe.store, work.task()
    assert gracekit.work(store, recipe=recipe, max_idle_s=0).num_refreshes == 1
    assert gracekit.work(store, max_idle_s=0).num_refreshes == 1

    other(work, "program", source="0123", torch="2.0.0")
    with pytest.raises(StoreError, match=r"other code.*source is 0123 there.*torch is 2\.0\.0"):
        gracekit.work(store, max_idle_s=0)
    work.open(task, None)
    with pytest.raises(RecipeError, match=r"another recipe.*scoring\.scores.*differ"):
        gracekit.work(store, recipe=recipe, set={"scoring.scores": ["gradient-norm"]})
    changes = {"data.max_length": 32, "scoring.share": False, "scoring.lease_s": 5}
    with pytest.raises(RecipeError, match=r"given: its sections data or target differ"):
        gracekit.work(store, recipe=recipe, set=changes)
    named = f"{__name__}:Patient"  # any class of a file
    other(work, "scoring", scores=[*recipe.scoring.scores, named])
    other(work, "own_code", **{named: "0123"})
    with pytest.raises(StoreError, match=r"code of your own .*Patient is 0123 there"):
        gracekit.work(store, max_idle_s=0)
    work.open(task, None)
    other(work, "device", type="cuda", dtype="bfloat16")
    with pytest.raises(StoreError, match="on cuda in bfloat16, and this worker would on cpu in"):
        gracekit.work(store, device="cpu")
    work.open(task, None)
    other(work, "model", digest="0")
    with pytest.raises(CheckpointMismatchError, match=r"another one on this host.*its weights"):
        gracekit.work(store)
    work.open(task, None)
    other(work, "model", below_store=None, directory="/no/such/place")
    with pytest.raises(CheckpointError, match="is not at /no/such/place on this host"):
        gracekit.work(store)
    work.open(task, None)


def test_workers_have_the_threads_of_the_executor_that_is_named() -> None:
    """Processes share them; a process that measures alone, and actors of Ray, have all."""
    for executor, processes, expected in (("processes", 2, 2), ("ray", 2, 4), ("local", None, 4)):
        scoring = ScoringSection(
            device="cpu", executor=executor, processes=processes, num_threads=4
        )
        assert device_facts(scoring)["num_threads"] == expected


def test_arguments_of_a_worker_are_checked(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="there is no store at"):
        gracekit.work(tmp_path / "none")
    with pytest.raises(UsageError, match="none is given"):
        gracekit.work(tmp_path, set={"seed": 1})
    with pytest.raises(UsageError, match="0 or more, found -1"):
        gracekit.work(tmp_path, max_idle_s=-1)
    stop = threading.Event()
    stop.set()
    assert gracekit.work(tmp_path, stop=stop).num_shards == 0
    for scoring in ({"share": True}, {"executor": "ray"}):
        with pytest.raises(RecipeError, match="the two sides of pairs are measured on one host"):
            tiny_recipe(tmp_path, scoring=scoring, data={"pair": "margin"})
