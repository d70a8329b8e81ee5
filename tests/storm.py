"""A store that is worked on by processes which are killed at random moments.

Every life is one operation in a process of its own, killed with SIGKILL somewhere; then the same
operation again, to its end. After each, the store must be whole, and hold all that it held.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter
from pathlib import Path

from gracekit.files import sha256
from gracekit.store import Store, verify
from gracekit.store.files.pinned import pinned
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


OPERATIONS = {
    "refresh": refresh_from,
    "select": select_anew,
    "gc": collect_garbage,
    "rollback": roll_back,
    "pin": pin_version,
}


def work(folder: Path, operation: str, argument: int) -> None:
    """What a child runs until it ends or is killed."""
    import torch

    torch.set_num_threads(1)
    OPERATIONS[operation](folder, argument)


class Storm:
    """A world in `folder`, and what it went through.

    Args:
        folder: For data, checkpoints and the store; empty.
        seed: Of operations and moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.num_killed = 0
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
        for operation in OPERATIONS:
            argument = self._argument(operation)
            started = time.monotonic()
            assert self.run(operation, argument) == 0
            self._duration_s[operation] = time.monotonic() - started

    def live(self) -> None:
        """One operation, killed once or more, then finished; raises where anything was lost."""
        operation = self._random.choices(list(OPERATIONS), [4] + [1] * (len(OPERATIONS) - 1))[0]
        argument = self._argument(operation)
        held = self.measurements() | self.pinned_coresets()
        num_killed = self.num_killed
        before = self.store.next_version()
        for _ in range(self._random.randint(1, 3)):
            by_shards = operation == "refresh" and self._random.random() < 0.4
            moment = self._random.uniform(0, 1.1 * self._duration_s[operation])
            kill_at = self._random.randrange(1, 30) if by_shards else moment
            if self.run(operation, argument, kill_at=kill_at) != 0:
                self.num_killed += 1
                self.killed_in[operation] += 1
                self.num_killed_with_shards += self.num_shards() > 0
            self.require_held(held)
            assert self.store.next_version() in (before, before + 1), "a version was invented"
        assert self.run(operation, argument) == 0, f"the restart of {operation} failed"
        self.num_lives += 1
        self.num_restarts += self.num_killed > num_killed
        self.require_held(held)
        self.require_whole()

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

    def run(self, operation: str, argument: int, *, kill_at: float | int | None = None) -> int:
        """One process; returns its exit code.

        Args:
            operation: Of `OPERATIONS`.
            argument: For it.
            kill_at: Kill it after so many seconds (float) or so many finished shards (int).
        """
        child = PROCESSES.Process(target=work, args=(self.folder, operation, argument))
        child.start()
        if isinstance(kill_at, int):
            while child.is_alive() and self.num_shards() < kill_at:
                time.sleep(0.001)
        else:
            child.join(kill_at)
        if kill_at is not None:
            child.kill()
            child.join()
        assert child.exitcode is not None
        return child.exitcode

    def num_shards(self) -> int:
        """Finished shards in the store."""
        return len(list((self.folder / "store" / "shards").glob("*/*.shard")))

    def _argument(self, operation: str) -> int:
        if operation == "refresh":
            self._step += 10
            write_checkpoint(self.folder / "run", self._step)
            return self._step
        if operation in ("rollback", "pin"):
            return self._random.choice(self.store.versions())
        return self._random.randint(*((2, 6) if operation == "gc" else (5, 60)))
