"""The model pass in the actors of a Ray cluster (`make test-ray`)."""

from __future__ import annotations

import importlib
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gracekit import refresh
from gracekit.errors import ClusterError, MeasureError, RecipeError
from gracekit.model_pass import ray_cluster
from gracekit.model_pass.executor_names import open_executor
from gracekit.model_pass.pass_inputs import PassInputs
from gracekit.model_pass.ray_cluster import room_for
from gracekit.model_pass.ray_executor import RayExecutor
from gracekit.progress import Progress
from gracekit.protocols import Executor
from gracekit.recipe import Recipe, ScoringSection
from gracekit.store import Store
from tests.test_scoring_executor_names import ROWS, inputs, load_and_die_once, measured
from tests.test_scoring_processes import load_and_die, load_and_fail, load_tiny, whole
from tests.tiny import tiny_recipe, write_checkpoint, write_data

ROOT = Path(__file__).parent.parent


def test_ray_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RecipeError, match=r"Ray cannot be imported.*install gracekit\[ray\]"):
        open_executor(inputs("ray"))


def test_actors_are_as_many_as_the_cluster_has_room_for() -> None:
    def room(resources: dict[str, float], threads: int = 1, **scoring: Any) -> tuple[str, int]:
        return room_for(ScoringSection(**scoring), threads, resources)

    assert room({"CPU": 8.0}) == ("cpu", 8)
    assert room({"CPU": 8.0}, 3) == ("cpu", 2)
    assert room({"CPU": 8.0, "GPU": 4.0}) == ("cuda", 4)
    assert room({"CPU": 8.0, "GPU": 4.0}, device="cpu", processes=5) == ("cpu", 5)
    with pytest.raises(MeasureError, match=r"no room for an actor on cuda .* 8 cores and 0 GPUs"):
        room({"CPU": 8.0}, device="cuda")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of two workers on this host; every test connects to it."""
    ray = pytest.importorskip("ray")
    paths = {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=paths)
    yield
    ray.shutdown()


def of_ray(load: Any = load_tiny, **scoring: Any) -> PassInputs:
    """Two actors with a thread each."""
    given = inputs("ray", load)
    update = {"processes": 2, "num_threads": 1, **scoring}
    changed = given.scoring.model_copy(update=update)
    return PassInputs(
        load=given.load,
        devices=given.devices,
        tokens=given.tokens,
        scoring=changed,
        target=given.target,
    )


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_actors_give_the_same_bytes_and_one_that_is_killed_takes_nothing_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = measured(open_executor(inputs("local")))
    marker, progress = tmp_path / "killed", Progress()
    executor = open_executor(of_ray(partial(load_and_die_once, marker=marker)))
    assert isinstance(executor, RayExecutor) and isinstance(executor, Executor)
    assert executor.num_workers == 2
    with caplog.at_level(logging.WARNING):
        assert measured(executor, progress) == expected
    assert marker.exists()
    assert "what it worked on is measured again" in caplog.text
    assert progress.to_json()["num_done"] == len(ROWS)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_looks_stops_and_errors_of_actors() -> None:
    local = open_executor(inputs("local"))
    with closing(local):
        looked = whole(local.look(ROWS))
        everything = whole(local.measure(ROWS))
    with closing(open_executor(of_ray())) as executor:
        found = whole(executor.look(ROWS))
        assert found.scores == {} and np.array_equal(found.features, looked.features)
        stop = threading.Event()
        shards = executor.measure(ROWS, Progress(stop))
        parts = [next(shards)]
        stop.set()
        parts += shards
        done = np.concatenate([part.rows for part in parts])
        rest = list(executor.measure(np.setdiff1d(ROWS, done))) if len(done) < len(ROWS) else []
    again = whole([*parts, *rest])
    assert again.rows.tolist() == everything.rows.tolist()
    for name, score in everything.scores.items():
        np.testing.assert_allclose(again.scores[name], score, rtol=1e-4)
    failing, dying = open_executor(of_ray(load_and_fail)), open_executor(of_ray(load_and_die))
    with closing(failing), pytest.raises(MeasureError, match="the model does not fit"):
        list(failing.measure(ROWS))
    over = r"a Ray actor ended .* as 3 did one after the other"
    with closing(dying), pytest.raises(MeasureError, match=over):
        list(dying.measure(ROWS))


def recipe_of(executor: str, folder: Path) -> Recipe:
    """A recipe over sixty samples, which are written where they are not there."""
    if not folder.exists():
        folder.mkdir()
        write_data(folder / "train.jsonl", num_samples=60)
    scoring = {"shard_rows": 8, "executor": executor, "num_threads": 1}
    return tiny_recipe(folder, scoring=scoring | ({"processes": 2} if executor == "ray" else {}))


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_refresh_on_ray_is_a_refresh_in_one_process(tmp_path: Path) -> None:
    stores = []
    for name in ("local", "ray"):
        recipe = recipe_of(name, tmp_path / name)
        refresh(recipe, write_checkpoint(tmp_path / name / "run", 100))
        stores.append(Store.open(recipe.store))
    one, two = (store.scores(1) for store in stores)
    for score, values in one.scores.items():
        assert values.tobytes() == two.scores[score].tobytes()
    assert stores[0].header(1).recipe_digest == stores[1].header(1).recipe_digest


@pytest.mark.ray
def test_a_cluster_that_cannot_be_reached_is_told_and_sigterm_stays(tmp_path: Path) -> None:
    """In a process of its own: Ray is connected once in a process."""
    code = (
        "import signal, torch\n"
        "from gracekit.errors import ClusterError\n"
        "from gracekit.model_pass.executor_names import open_executor\n"
        "from tests.test_scoring_executor_names import inputs\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "try:\n"
        "    open_executor(inputs('ray'))\n"
        "except ClusterError as error:\n"
        "    print(error)\n"
        "print(signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert "cannot connect to the Ray cluster at 127.0.0.1:1" in done.stdout, done.stderr[-2000:]
    assert done.stdout.endswith("True\n")


def lose_the_head(folder: str) -> None:
    """Refresh while the cluster's head and all actors are killed; then refresh again."""
    psutil = importlib.import_module("psutil")
    whole_pass = RayExecutor._shards

    def until_it_is_lost(self: RayExecutor, *args: Any, **options: Any) -> Iterator[Any]:
        shards = whole_pass(self, *args, **options)
        yield next(shards)
        for process in psutil.Process().children(recursive=True):
            if process.name() == "gcs_server" or "_Worker" in " ".join(process.cmdline()):
                process.kill()
        yield from shards

    RayExecutor._shards = until_it_is_lost  # type: ignore[method-assign]
    ray_cluster.KNOCK_AGAIN_S, ray_cluster.LONGEST_SILENCE_S = 0.2, 1.0
    recipe = recipe_of("ray", Path(folder))
    checkpoint = write_checkpoint(Path(folder) / "run", 100)
    try:
        refresh(recipe, checkpoint)
    except ClusterError as error:
        print(f"ClusterError: {error}")
    RayExecutor._shards = whole_pass  # type: ignore[method-assign]
    result = refresh(recipe, checkpoint)
    print(f"version {result.version}")


@pytest.mark.ray
def test_a_head_that_is_lost_ends_the_refresh_and_not_the_process(tmp_path: Path) -> None:
    """The next refresh takes what was measured, and another cluster for the rest."""
    pytest.importorskip("ray")
    recipes = [recipe_of(name, tmp_path / name) for name in ("local", "ray")]
    refresh(recipes[0], write_checkpoint(tmp_path / "local/run", 100))
    code = "import sys; from tests.test_scoring_ray import lose_the_head as f; f(sys.argv[1])"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ray")],
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(
        "the head of the Ray cluster .* is lost.*What is measured is kept", done.stdout
    )
    assert done.stdout.endswith("version 1\n")
    one, two = (Store.open(recipe.store).scores(1) for recipe in recipes)
    for score, values in one.scores.items():
        assert values.tobytes() == two.scores[score].tobytes()
