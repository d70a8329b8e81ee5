"""A store that is worked on by processes which are killed at random moments.

Every life is one operation in a process of its own, killed with SIGKILL somewhere; then the same
operation again, to its end. After each, the store must be whole, and hold all that it held; what it
published must be whole at its URL, and what it exported in its directory.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gracekit.errors import RemoteError, StoreNotFoundError, VersionNotFoundError
from gracekit.files import TEMPORARY_MARK, sha256
from gracekit.store import Store, verify
from gracekit.store.files.pinned import pinned
from tests.published import contents, expected, whole_versions
from tests.remote_faults import SLOW, cut_short, fails_after, fails_with, in_place_of, told_as_done
from tests.tiny import tiny_recipe, write_checkpoint, write_data

# Children are forked from a server that has imported everything, so that they start at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["gracekit.refresher.flow", "gracekit.refresher.model", "gracekit.refresher.selecting",
     "gracekit.checkpoints.model", "gracekit.model_pass.executors",
     "gracekit.selection", "gracekit.samples", "gracekit.propagation", "gracekit.graph",
     "gracekit.store.sql.database", "transformers.models.llama.modeling_llama", "tests.tiny"]
)  # fmt: skip


def refresh_from(folder: Path, step: int) -> None:
    """A refresh of `checkpoint-STEP`, in shards of two rows."""
    from gracekit.refresher import refresh

    refresh(tiny_recipe(folder, scoring={"shard_rows": 2}), folder / "run" / f"checkpoint-{step}")


def select_anew(folder: Path, percent: int) -> None:
    """Another share of the samples, from the stored scores."""
    from gracekit.refresher import reselect

    reselect(tiny_recipe(folder, selection={"fraction": percent / 100}))


def collect_garbage(folder: Path, keep: int) -> None:
    """Only so many of the newest versions stay."""
    from gracekit.store.retention import collect

    store = Store.open(folder / "store")
    with store.lock():
        store.recover()
        collect(store, keep)


def roll_back(folder: Path, version: int) -> None:
    """The coreset of an earlier version again."""
    from gracekit.refresher import rollback

    rollback(folder / "store", version)


def pin_version(folder: Path, version: int) -> None:
    """Keep a version whatever gc removes."""
    from gracekit.store.pinning import pin

    pin(Store.open(folder / "store"), version)


def refresh_shared(folder: Path, step: int) -> None:
    """A refresh in which workers take part; how many rows were theirs is noted beside the store."""
    from gracekit.refresher import refresh

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith("other hosts measured"):
                with (folder / "by-others").open("a") as file:
                    file.write(f"{record.args[0]}\n")  # type: ignore[index]

    logger = logging.getLogger("gracekit.refresher.sharing")
    logger.setLevel(logging.INFO)
    logger.addHandler(Note())
    scoring = {"shard_rows": 2, "share": True, "lease_s": 5}
    refresh(tiny_recipe(folder, scoring=scoring), folder / "run" / f"checkpoint-{step}")


def work_for_others(folder: Path, argument: int) -> None:
    """`gracekit work` until it is killed."""
    import gracekit

    gracekit.work(folder / "store")


def publish_to_bucket(folder: Path, seed: int) -> None:
    """Copy the versions to an object store, which fails and lies as the seed says (0: it does not).

    Each put may be told as failed before or after it was done, or as done when it was not; each
    answer may fail or be cut.
    """
    from gracekit.store.remote.publishing import publish_versions

    rng = random.Random(seed)
    puts = [fails_with(SLOW), fails_after(SLOW), told_as_done]
    others = [fails_with(SLOW), cut_short]

    def fault(name: str, call: Any) -> Any:
        return rng.choice(puts if name == "put_object" else others)(name, call)

    with in_place_of(lambda k, name: seed > 0 and rng.random() < 0.08, fault):
        publish_versions(Store.open(folder / "store"), url_in(folder))


def export_anew(folder: Path, number: int) -> None:
    """The newest coreset over the export before, in one of three formats."""
    import gracekit

    formats = ("jsonl", "parquet", "indices-npy")
    gracekit.export(folder / "store", folder / "out", format=formats[number % 3], force=True)


OPERATIONS = {
    "refresh": refresh_from,
    "select": select_anew,
    "gc": collect_garbage,
    "rollback": roll_back,
    "pin": pin_version,
    "publish": publish_to_bucket,
    "export": export_anew,
    "shared": refresh_shared,
    "work": work_for_others,
}
IN_THE_STORE = {"refresh": 4, "select": 1, "gc": 1, "rollback": 1, "pin": 1}
"""Operation -> how often it is taken."""
REFUSED = 3
"""Exit code of an operation that told, with a clear error, that it was not done."""


def url_in(folder: Path) -> str:
    """Where the store of a world is published."""
    return f"file://{folder}/bucket/run"


def work(folder: Path, operation: str, argument: int) -> None:
    """What a child runs until it ends or is killed."""
    import torch

    torch.set_num_threads(1)
    try:
        OPERATIONS[operation](folder, argument)
    except RemoteError:
        sys.exit(REFUSED)


def read_by_url(folder: Path, number: int, pipe: Connection) -> None:
    """A trainer on another host that loads the newest coreset again and again, until it is told to
    end; tells what it met, by name.
    """
    from gracekit.training import Coreset

    os.environ["GRACEKIT_CACHE"] = str(folder / f"cache-{number}")
    met: Counter[str] = Counter()
    last = 0

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            met[f"warning: {record.getMessage()}"] += 1

    logging.getLogger("gracekit").addHandler(Note(logging.WARNING))
    is_over = False
    while not is_over:
        is_over = pipe.poll(0.1)  # once more then, however late this process began
        try:
            coreset = Coreset.load(url_in(folder))
        except (RemoteError, StoreNotFoundError, VersionNotFoundError) as error:
            met["nothing there yet" if last == 0 else repr(error)] += 1
        except Exception as error:
            met[repr(error)] += 1
        else:
            num_selected = coreset.view.content["stats"]["num_selected"]
            is_whole = len(coreset.rows) == num_selected and coreset.version >= last
            met["whole" if is_whole else f"{coreset.version} after {last} is not whole"] += 1
            last = coreset.version
    pipe.send(met)


class Storm:
    """A world in `folder`, and what it went through.

    Args:
        folder: For data, checkpoints and the store; empty.
        seed: Of operations and moments.
        weights: Operations, and how often each is taken.
    """

    def __init__(self, folder: Path, seed: int, weights: dict[str, int] | None = None) -> None:
        self.folder = folder
        self.weights = IN_THE_STORE if weights is None else weights
        self.num_killed = 0
        self.num_refused = 0
        """Publishes that told a failure of the object store."""
        self.num_workers_killed = 0
        self.exported: Path | None = None
        """Where an export is, once one was told as done."""
        self.num_killed_with_shards = 0
        self.num_lives = 0
        self.num_restarts = 0
        """Operations that were killed, and then finished."""
        self.killed_in: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._step = 0
        self._duration_s: dict[str, float] = {}
        write_data(folder / "train.jsonl")

    @property
    def store(self) -> Store:
        """As it is now."""
        return Store.open(self.folder / "store")

    def begin(self) -> None:
        """A first version, and how long each operation takes when nobody kills it."""
        assert self.run("refresh", self._argument("refresh")) == 0
        for operation in self.weights:
            argument = self._argument(operation)
            started = time.monotonic()
            assert self.run(operation, argument) == 0
            self._duration_s[operation] = time.monotonic() - started

    def live(self) -> None:
        """One operation, killed once or more, then finished; raises where anything was lost."""
        operation = self._random.choices(list(self.weights), [*self.weights.values()])[0]
        argument = self._argument(operation)
        twin = self._copy() if operation == "shared" else None
        held = self.measurements() | self.pinned_coresets()
        num_killed = self.num_killed
        before = self.store.next_version()
        for _ in range(self._random.randint(1, 3)):
            by_shards = operation == "refresh" and self._random.random() < 0.4
            moment = self._random.uniform(0, 1.1 * self._duration_s[operation])
            kill_at = self._random.randrange(1, 30) if by_shards else moment
            faults = self._random.randrange(1, 10**6) if operation == "publish" else argument
            code = self.run(operation, faults, kill_at=kill_at)
            if code == REFUSED and operation == "publish":
                self.num_refused += 1
            elif code != 0:
                assert code == -signal.SIGKILL, f"{operation} failed by itself, with {code}"
                self.num_killed += 1
                self.killed_in[operation] += 1
                self.num_killed_with_shards += self.num_shards() > 0
            self.require_held(held)
            self.require_outside(operation, is_done=code == 0)
            assert self.store.next_version() in (before, before + 1), "a version was invented"
        assert self.run(operation, argument) == 0, f"the restart of {operation} failed"
        self.num_lives += 1
        self.num_restarts += self.num_killed > num_killed
        self.require_held(held)
        self.require_whole()
        self.require_outside(operation, is_done=True)
        if twin is not None:
            self._require_as_in(twin, argument)

    def measurements(self) -> dict[Path, str]:
        """Digest of every committed measurement."""
        store = self.store
        return {
            store.paths.root / name: entry.sha256
            for version in store.all_versions()
            for name, entry in store.header(version).files.items()
            if Path(name).name == "measured.parquet"
        }

    def pinned_coresets(self) -> dict[Path, str]:
        """Digest of the manifest of every pinned version."""
        paths = self.store.paths
        found = (paths.manifest(version) for version in pinned(paths))
        return {path: sha256(path) for path in found}

    def require_held(self, held: dict[Path, str]) -> None:
        """Raise unless all of `held` is there, to the bit, and the latest version is read."""
        for path, digest in held.items():
            assert sha256(path) == digest, f"{path.name} of a committed version was lost"
        store = self.store
        latest = store.latest()
        assert latest is not None
        assert store.coreset(latest).num_rows == store.header(latest).stats.num_selected

    def require_whole(self) -> None:
        """Raise unless the store verifies and nothing is left over."""
        store = self.store
        assert verify(store) == []
        assert not list(store.paths.shards.glob("*/*"))
        assert not list(store.paths.pins.glob("*"))

    def require_outside(self, operation: str, *, is_done: bool) -> None:
        """Raise where something is half at the URL or in the export, or what was told as done is
        not.
        """
        if operation == "publish" and (self.folder / "bucket").is_dir():
            whole_versions(url_in(self.folder), self.folder)
            if is_done:
                assert contents(url_in(self.folder)) == expected(self.store)
        if operation == "export":
            out, beside = self.folder / "out", list(self.folder.glob(f"*out{TEMPORARY_MARK}*"))
            if is_done:
                self.exported = out
                assert json.loads((out / "manifest.json").read_text())["version"] == (
                    self.store.latest()
                )
                assert not beside, "what a killed export left stays"
            if out.exists():
                assert _is_whole_export(out)
            elif self.exported is not None:
                assert any(map(_is_whole_export, beside)), "the export before was lost"

    def _copy(self) -> Path:
        """The world as it is now, in another folder."""
        twin = self.folder.with_name(f"{self.folder.name}-twin")
        shutil.rmtree(twin, ignore_errors=True)
        twin.mkdir()
        shutil.copytree(self.folder / "store", twin / "store")
        shutil.copy(self.folder / "train.jsonl", twin)
        (twin / "run").symlink_to(self.folder / "run")
        return twin

    def _require_as_in(self, twin: Path, step: int) -> None:
        """Raise unless a refresh by one process, in the copy, has the same bytes."""
        child = PROCESSES.Process(target=work, args=(twin, "refresh", step))
        child.start()
        child.join()
        other = Store.open(twin / "store")
        version = self.store.latest()
        assert child.exitcode == 0 and version is not None and version == other.latest()
        for path in (self.store.paths.scores(version), self.store.paths.measured(version)):
            name = self.store.paths.relative(path)
            assert sha256(path) == sha256(other.paths.root / name), f"{name} differs"

    def run(self, operation: str, argument: int, *, kill_at: float | int | None = None) -> int:
        """One process; returns its exit code.

        Args:
            operation: Of `OPERATIONS`.
            argument: For it.
            kill_at: Kill it after so many seconds (float) or so many finished shards (int).
        """
        child = PROCESSES.Process(target=work, args=(self.folder, operation, argument))
        child.start()
        if operation == "shared":
            self._among_workers(child, kill_at)
        elif isinstance(kill_at, int):
            while child.is_alive() and self.num_shards() < kill_at:
                time.sleep(0.001)
        else:
            child.join(kill_at)
        if kill_at is not None:
            child.kill()
            child.join()
        assert child.exitcode is not None
        return child.exitcode

    def _among_workers(self, child: BaseProcess, kill_at: float | None) -> None:
        """Wait for a refresh, or until it is to be killed, while workers come and are killed."""
        workers = [self._worker() for _ in range(2)]
        begun = time.monotonic()
        while child.is_alive() and (kill_at is None or time.monotonic() - begun < kill_at):
            child.join(self._random.uniform(0.2, 0.6) * self._duration_s.get("shared", 4))
            if child.is_alive():
                workers.append(self._worker())
                workers.pop(0).kill()
                self.num_workers_killed += 1
        for worker in workers:
            worker.kill()
            worker.join()

    def _worker(self) -> BaseProcess:
        worker = PROCESSES.Process(target=work, args=(self.folder, "work", 0))
        worker.start()
        return worker

    def num_shards(self) -> int:
        """Finished shards in the store."""
        return len(list((self.folder / "store" / "shards").glob("*/*.shard")))

    def _argument(self, operation: str) -> int:
        if operation in ("refresh", "shared"):
            self._step += 10
            write_checkpoint(self.folder / "run", self._step)
            return self._step
        if operation in ("rollback", "pin"):
            return self._random.choice(self.store.versions())
        if operation == "publish":
            return 0
        return self._random.randint(*((2, 6) if operation == "gc" else (5, 60)))


def _is_whole_export(directory: Path) -> bool:
    try:
        manifest = json.loads((directory / "manifest.json").read_text())["export"]
    except (FileNotFoundError, ValueError):  # killed while it was made
        return False
    names = [*manifest["written"]]
    if "coreset.jsonl" in names:
        num_rows = len((directory / "coreset.jsonl").read_text().splitlines())
        assert num_rows == manifest["num_rows"]
    return all((directory / name).is_file() for name in names)
