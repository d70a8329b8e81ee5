"""Refreshes that several hosts share, whatever dies, fails, lies or is late: see `tests/hosts.py`.

The refresher and `gracekit work` are the real ones, but for the model: what a pass tells follows
from tokens, weights and code, so that whatever another model or other code measured is seen.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gracekit.checkpoints import check_checkpoint, model_identity, pin
from gracekit.checkpoints.weights import weights_digest
from gracekit.errors import CheckpointMismatchError, GracekitError, StoreError, StoreWriteError
from gracekit.files import sha256
from gracekit.model_pass.batches import TokenSource
from gracekit.model_pass.pass_inputs import cut_shards
from gracekit.progress import Progress
from gracekit.recipe import Recipe
from gracekit.refresher import joining, sharing
from gracekit.refresher.measured_rows import MeasuredRows
from gracekit.refresher.sharing import share
from gracekit.store import Offer, SharedWork, Store, StorePaths, verify
from gracekit.store.sql import database
from gracekit.training import Coreset
from gracekit.types import Measurement, Reason, RefreshPlan, Rows
from gracekit.version.program import program
from tests.hosts import KINDS, Host, Process, Room
from tests.stores import N, make_draft, make_store
from tests.test_scoring_more_scores import Tokens
from tests.test_scoring_pass import make_samples
from tests.tiny import tiny_recipe, write_checkpoint

SEED = 20261133
LIVES = int(os.environ.get("GRACEKIT_HOSTS", "60"))
"""Lives in `make torture`."""
LEASE_S = 60.0
OTHER_CODE, OTHER_MODEL = "other code", "other model"
TOKENS = Tokens(make_samples(tuple(6 + i % 7 for i in range(N)), seed=3))


class Pass:
    """Stands for the pass over a model; takes seconds of its host."""

    def __init__(self, made_by: str, tokens: TokenSource, room: Room | None) -> None:
        self._made_by, self._tokens, self._room = made_by, tokens, room

    def on(self, tokens: TokenSource) -> Pass:
        return Pass(self._made_by, tokens, self._room)

    def measure(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        for part in cut_shards(rows, self._tokens.lengths[rows], 3):
            if self._room is not None:
                self._room.sleep(self._room.rng.uniform(0.1, 0.5 * LEASE_S))
            values = self._values(part)
            scores = {"gradient-norm": values, "loss": values + 1}
            yield Measurement(rows=part, scores=scores, features=self._features(values))

    def look(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        for shard in self.measure(rows):
            yield dataclasses.replace(shard, scores={})

    def target(self) -> None:
        return None

    def optimizer(self) -> None:
        return None

    def close(self) -> None:
        pass

    def _values(self, rows: Rows) -> Any:
        texts = (ids.tobytes() + mask.tobytes() for ids, mask in self._tokens.take(rows))
        sums = [zlib.crc32(text + self._made_by.encode()) for text in texts]
        return np.array(sums, np.float32) / np.float32(2**32)

    @staticmethod
    def _features(values: Any) -> Any:
        return np.repeat(values[:, None], 4, axis=1).astype(np.float16)


@dataclasses.dataclass
class World:
    """Hosts around one store, and what they went through.

    Args:
        folder: With a store of one version and a checkpoint.
        rng: Of all that happens.
    """

    folder: Path
    rng: random.Random

    def __post_init__(self) -> None:
        self.room, self.met = Room(self.rng), Counter[str]()
        self.recipe = recipe_in(self.folder)
        self.paths = StorePaths(self.folder / "store")
        self.code = "ours"
        self.odd: dict[str, str] = {}
        """Name of a worker -> how it differs."""
        self.acknowledged: list[tuple[Path, Rows]] = []
        """What a worker was told is handed over, since the refresher began."""
        same_name = self.rng.random() < 0.3
        self.hosts = [
            Host(
                "node" if same_name else f"node-{k}",
                boot=f"boot-{k}",
                namespace=self.rng.choice(["pid:[1]", f"pid:[{k}]"]),
                rate=self.rng.choice([0.5, 1.0, 1.0, 2.0]),
                offset_s=self.rng.uniform(-1e6, 1e6),
            )
            for k in range(4)
        ]

    def live(self, num_refreshes: int) -> None:
        """Refreshes, each begun again until it is made, while workers come and go."""
        with self.room.entered(), self.measuring():
            self.room.start(Host("outside"), "supervisor", partial(self.supervise, num_refreshes))
            for k in range(self.rng.randint(1, 4)):
                self.start_worker(f"worker-{k}")
            if self.rng.random() < 0.4:
                self.room.start(Host("outside"), "reboot", self.reboot_one)
            self.room.run()
        self.met.update(self.room.met)
        for process in self.room.all:
            self.require_told(process)
        self.require_as_by_one(num_refreshes)

    def once(self, role: str, at: int, kind: str) -> tuple[Process | None, int]:
        """One refresh with two workers, where one process meets a fault at an operation.

        Returns that process, None where it did not come so far, and its number of operations.
        """
        of_role: list[Process] = []

        def start(name: str, host: Host, work: Any, *, is_it: bool) -> Process:
            process = self.room.start(host, name, work, at=at if is_it else 0, kind=kind)
            of_role.extend([process] * is_it)
            return process

        def supervise() -> None:
            for attempt in range(3):
                is_it = role == "refresher" and attempt == 0
                name, refresh = f"refresh 2, start {attempt}", partial(self.refresh, 2)
                process = start(name, self.hosts[0], refresh, is_it=is_it)
                self.room.wait(process)
                if process.result is not None:
                    return
                self.require_kept(2)
            raise AssertionError("a refresh was never made") from process.error

        with self.room.entered(), self.measuring():
            self.room.start(Host("outside"), "supervisor", supervise)
            for k in (1, 2):
                work = partial(joining.work, self.paths.root, once=True, max_idle_s=90)
                is_it = role == "worker" and k == 1
                start(f"worker-{k}", self.hosts[k], work, is_it=is_it)
            self.room.run()
        for process in self.room.all:
            self.require_told(process)
        self.require_as_by_one(1)
        (process,) = of_role
        return process if 0 < at <= process.num_operations else None, process.num_operations

    def start_worker(self, name: str) -> None:
        if self.rng.random() < 0.15:
            self.odd[name] = self.rng.choice([OTHER_CODE, OTHER_MODEL])

        def work() -> Any:
            self.room.sleep(self.rng.uniform(0, LEASE_S))
            return joining.work(self.paths.root, once=self.rng.random() < 0.5, max_idle_s=90)

        self.started(self.rng.choice(self.hosts), name, work, 60)

    def started(self, host: Host, name: str, work: Any, most: int) -> Process:
        """A process with a fault, more often than not."""
        at = self.rng.randint(1, most) if self.rng.random() < 0.7 else 0
        return self.room.start(host, name, work, at=at, kind=self.rng.choice(KINDS))

    def reboot_one(self) -> None:
        """All processes of a host die at once."""
        self.room.sleep(self.rng.uniform(0, 4 * LEASE_S))
        host = self.rng.choice(self.hosts)
        for process in self.room.all:
            if process.host is host and not process.is_over:
                self.room.kill(process)
                self.met["host restarted"] += 1
        host.boot += "-again"

    def supervise(self, num_refreshes: int) -> None:
        for number in range(2, 2 + num_refreshes):
            for attempt in range(20):
                self.acknowledged.clear()
                host, refresh = self.rng.choice(self.hosts), partial(self.refresh, number)
                name = f"refresh {number}, start {attempt}"
                if attempt < 4:
                    process = self.started(host, name, refresh, 110)
                else:
                    process = self.room.start(host, name, refresh)
                self.room.wait(process)
                if process.result is not None:
                    assert process.result == number
                    break
                self.require_kept(number)
                if self.rng.random() < 0.15:
                    self.install_anew(number)
                if self.rng.random() < 0.5:
                    self.start_worker(f"worker after {name}")
            else:
                raise AssertionError("a refresh was never made") from process.error

    def install_anew(self, number: int) -> None:
        """Other code of the refresher: workers of the former are still there."""
        self.code, self.met["installed anew"] = "newer", self.met["installed anew"] + 1
        Store.open(self.paths.root).shards(f"measure-{number}").clear()

    def refresh(self, number: int) -> int:
        """As `refresher.flow` does it, with the selection of the tests."""
        return make_version(self.folder, self.recipe, number, self.code, self.room)

    def require_kept(self, number: int) -> None:
        """What workers were told is handed over is there when the refresher has died or failed."""
        store, name = Store.open(self.paths.root), f"measure-{number}"
        if store.find_refresh(f"refresh-{number}") is not None:
            return  # it died after that
        own = [store.shards(name).load(), store.shards(name, looks=True).load()]
        rows_of = [{row for shard in found for row in shard.rows} for found in own]
        for path, rows in self.acknowledged:
            is_taken = any(set(rows) <= taken for taken in rows_of)
            assert path.exists() or is_taken, f"{path.name} was handed over, and lost"

    def require_as_by_one(self, num_refreshes: int) -> None:
        """The store is whole, and its versions have the bytes that one process makes."""
        store = Store.open(self.paths.root)
        store.recover()
        assert verify(store) == []
        assert store.versions() == [*range(1, 2 + num_refreshes)]
        assert not [*self.paths.shards.glob("*/*")] and not [*self.paths.pins.glob("*")]
        made = [bytes_of(store, version) for version in store.versions()[1:]]
        for bytes_made, *expected in zip(made, *EXPECTED.values(), strict=False):
            assert bytes_made in expected, "another measurement than by one process"
        if self.code == "ours":
            assert made == EXPECTED["ours"][: len(made)]
        assert Coreset.load(self.paths.root).version == store.latest()

    def require_told(self, process: Process) -> None:
        """Nothing ends with an error but what met a failing disk, or was to be refused."""
        error, odd = process.error, self.odd.get(process.name)
        if error is None:
            return
        is_refused = isinstance(error, (StoreError, CheckpointMismatchError))
        if (odd is not None or self.code != "ours") and is_refused:
            self.met[f"refused: {odd or 'code of before'}"] += 1
            return
        assert isinstance(error, GracekitError), f"{process.name}: {error!r}"
        if isinstance(error, StoreWriteError) and process.kind not in ("held up",):
            self.met["told a failing disk"] += 1
            return
        raise AssertionError(f"{process.name} ended by itself") from error

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Put `Pass` in the place of models, and note what is handed over."""
        save, digest = SharedWork.save, weights_digest

        def noted(work: SharedWork, offer: Offer, shard: int, result: Measurement) -> bool:
            is_done = save(work, offer, shard, result)
            if is_done:
                self.acknowledged.append((work._result_path(offer, shard), result.rows))
                self.met["shards by other hosts"] += 1
            return is_done

        def own_program() -> dict[str, str]:
            is_other = self.odd.get(self.room.process.name) == OTHER_CODE
            return {**program(), "source": OTHER_CODE if is_other else code_of(self.room.process)}

        codes: dict[Process, str] = {}

        def code_of(process: Process) -> str:
            return codes.setdefault(process, self.code)

        def has_other_model() -> bool:
            return self.odd.get(self.room.process.name) == OTHER_MODEL

        def executor(*arguments: Any, **settings: Any) -> Pass:
            odd = self.odd.get(self.room.process.name)
            return Pass(odd or code_of(self.room.process), arguments[1], self.room)

        with ExitStack() as held:
            patch = held.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(database, "publish", lambda store: None)  # the last start does it
            patch.setattr(SharedWork, "save", noted)
            patch.setattr(joining, "program", own_program)
            patch.setattr(sharing, "program", own_program)
            patch.setattr(joining, "load_tokenizer", lambda *arguments: None)
            patch.setattr(joining, "load_checked", lambda *arguments, **settings: (None, None))
            patch.setattr(joining, "LocalExecutor", executor)
            patch.setattr(
                joining, "weights_digest", lambda p: OTHER_MODEL if has_other_model() else digest(p)
            )
            yield


def recipe_in(folder: Path) -> Recipe:
    scoring = {"shard_rows": 3, "share": True, "lease_s": LEASE_S}
    return tiny_recipe(folder, scoring=scoring)


def make_version(
    folder: Path, recipe: Recipe, number: int, code: str, room: Room | None = None
) -> int:
    """Version `number` from what is measured in three rounds; shared where there is a room."""
    store = Store.open(folder / "store")
    checkpoint = check_checkpoint(folder / "run" / "checkpoint-10", recipe.checkpoints)
    measure_id, refresh_id = f"measure-{number}", f"refresh-{number}"
    with store.lock() as is_unfinished:
        store.tidy(always=is_unfinished)
        made = store.find_refresh(refresh_id)
        if made is not None:
            return made
        with ExitStack() as held:
            pinned = held.enter_context(pin(checkpoint, store.paths.pins, recipe.checkpoints))
            executor: Any = Pass(code, TOKENS, room)
            if room is not None:
                executor = share(
                    executor,
                    paths=store.paths,
                    measure_id=measure_id,
                    pinned=pinned,
                    identity=model_identity(pinned.directory, recipe.checkpoints),
                    recipe=recipe,
                    tokens=TOKENS,
                    target=None,
                )
            measure = held.enter_context(
                MeasuredRows(
                    executor,
                    store.shards(measure_id),
                    store.shards(measure_id, looks=True),
                    np.ones(N, bool),
                    when_finished=held.close,
                )
            )
            measure.look(np.arange(0, N, 4))
            rows = np.random.default_rng(number).permutation(N)[: 2 * N // 3]
            measure(rows[: N // 3])
            measured = measure(rows)
            measure.finish()
        draft = make_draft(store, refresh_id, measure_id=measure_id)
        assert draft.scores is not None
        for name, values in draft.scores.scores.items():
            values[rows] = measured.scores[name]
        draft = dataclasses.replace(
            draft,
            measurement=measured,
            plan=RefreshPlan(rows=rows, reasons=np.full(len(rows), Reason.PROBE, np.uint8)),
        )
        return store.commit(draft)


def bytes_of(store: Store, version: int) -> tuple[str, ...]:
    coreset = Coreset.load(store.paths.root, version)
    files = (store.paths.scores(version), store.paths.measured(version))
    return *map(sha256, files), coreset.rows.tobytes().hex(), coreset.weights.tobytes().hex()


EXPECTED: dict[str, list[tuple[str, ...]]] = {}
"""Code of the refresher -> what versions 2 and 3 are when one process makes them."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a version, and a checkpoint."""
    folder = tmp_path_factory.mktemp("prepared") / "world"
    store = make_store(folder / "store")
    store.commit(make_draft(store, "one"))
    write_checkpoint(folder / "run", 10)
    for code in ("ours", "newer"):
        twin = folder.with_name(code)
        shutil.copytree(folder, twin)
        for number in (2, 3):
            assert make_version(twin, recipe_in(twin), number, code) == number
        EXPECTED[code] = [bytes_of(Store.open(twin / "store"), v) for v in (2, 3)]
    assert EXPECTED["ours"] != EXPECTED["newer"]
    return folder


def shared_once(
    prepared: Path, folder: Path, role: str, at: int, kind: str
) -> tuple[Process | None, int]:
    """`World.once` in a copy of the prepared store, always with the same draws."""
    shutil.copytree(prepared, folder)
    found = World(folder, random.Random(SEED)).once(role, at, kind)
    shutil.rmtree(folder)
    return found


def live_through(prepared: Path, tmp_path: Path, num: int, seed: int) -> Counter[str]:
    """So many lives; what was met in them, by name."""
    met: Counter[str] = Counter()
    for k in range(num):
        folder = shutil.copytree(prepared, tmp_path / str(k))
        world = World(folder, random.Random(f"{seed} {k}"))
        try:
            world.live(1 + (k % 4 == 0))
        except BaseException as error:
            error.add_note(f"life {k} of seed {seed}, in {folder}")
            raise
        met.update(world.met)
        met["processes"] += len(world.room.all)
        shutil.rmtree(folder)
    return met


def test_hosts_that_die_and_fail_make_what_one_process_makes(
    prepared: Path, tmp_path: Path
) -> None:
    met = live_through(prepared, tmp_path, 12, SEED)
    assert met["shards by other hosts"] > 12


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_many_hosts_that_die_and_fail(prepared: Path, tmp_path: Path) -> None:
    met = live_through(prepared, tmp_path, LIVES, SEED + 1)
    where = ", ".join(f"{count:,} {name}" for name, count in sorted(met.items()))
    print(f"\nseed {SEED + 1}, {LIVES} shared refreshes by several hosts: {where}")
