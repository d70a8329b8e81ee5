"""People at work on one store, each in a process of their own: for `benchmarks/soak.py`.

Eight read: four load the newest coreset as trainers do, two ask in SQL, two look at the status and
the versions. Five others export, select, collect garbage, go back to old versions, and pin. Each
checks what it got against what the version says of itself. What is met is counted: what went well,
each `GracekitError` by its class and what it says, and everything else, which is a finding.
"""

from __future__ import annotations

import multiprocessing
import random
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gracekit
from gracekit.errors import GracekitError

QUESTION = """
WITH latest AS (FROM versions WHERE version = (SELECT latest_version FROM store))
SELECT (SELECT num_selected FROM latest),
       (SELECT count(*) FROM coresets WHERE version = (SELECT version FROM latest)),
       (SELECT num_samples FROM latest), (SELECT count(*) FROM scores),
       (SELECT count(*) FROM score_history
        WHERE version = (SELECT scores_version FROM latest))
"""
PAUSE_S = 0.05


def load(store: Path, rng: random.Random) -> None:
    """The newest coreset, as a trainer reads it."""
    found = gracekit.Coreset.load(store)
    stats = found.view.content["stats"]
    assert len(found.rows) == stats["num_selected"], "another number of rows than selected"


def ask(store: Path, rng: random.Random) -> None:
    """Counts over four tables, which must be those of one version."""
    (found,) = gracekit.sql(store, QUESTION).rows()
    selected, chosen, samples, scored, kept = found
    assert selected == chosen and samples == scored == kept, f"counts of several versions: {found}"


def look(store: Path, rng: random.Random) -> None:
    """`gracekit status` and `gracekit versions`."""
    told = gracekit.status(store).to_json()
    listed = [record.version for record in gracekit.versions(store)]
    assert listed and max(listed) >= told["latest_version"], "an older list than the status before"


def export(store: Path, rng: random.Random) -> None:
    """The newest coreset, over the export before."""
    form = rng.choice(["jsonl", "parquet", "indices-npy"])
    told = gracekit.export(store, store.parent / "exported", format=form, force=True)
    with_it = gracekit.Store.open(store).header(told.version)
    assert told.num_rows == with_it.stats.num_selected, "another number of rows than selected"


def select(store: Path, rng: random.Random) -> None:
    """Another share of the samples."""
    gracekit.select(store, set={"selection.fraction": round(rng.uniform(0.1, 0.6), 3)})


def collect(store: Path, rng: random.Random) -> None:
    """Only a few of the newest versions stay."""
    gracekit.gc(store, keep=rng.randint(2, 8))


def go_back(store: Path, rng: random.Random) -> None:
    """To one of the versions that there are."""
    gracekit.rollback(store, rng.choice([r.version for r in gracekit.versions(store)]))


def pin(store: Path, rng: random.Random) -> None:
    """A version, which must then be there until it is unpinned."""
    version = rng.choice([record.version for record in gracekit.versions(store)])
    gracekit.pin(store, version, note="people at work")
    try:
        for _ in range(3):
            try:
                gracekit.Coreset.load(store, version)
            except GracekitError as error:
                raise AssertionError(f"a pinned version is gone: {error}") from error
            time.sleep(PAUSE_S)
    finally:
        gracekit.unpin(store, version)


Task = Callable[[Path, random.Random], None]
ROLES: dict[str, tuple[Task, float]] = {
    **{f"trainer {k}": (load, 1.0) for k in range(1, 5)},
    **{f"SQL {k}": (ask, 1.0) for k in range(1, 3)},
    **{f"status {k}": (look, 1.0) for k in range(1, 3)},
    "export": (export, 2.0), "select": (select, 4.0), "gc": (collect, 6.0),
    "rollback": (go_back, 8.0), "pin": (pin, 3.0),
}  # fmt: skip
"""Who there is, what they do, and the seconds that they rest on average."""


class Crowd:
    """The processes, and what they met once they are done."""

    def __init__(self) -> None:
        self.processes: dict[str, tuple[BaseProcess, Connection]] = {}
        self.met: dict[str, Counter[str]] = {}

    @property
    def is_at_work(self) -> bool:
        """Whether anybody is still at work."""
        return any(process.is_alive() for process, _ in self.processes.values())

    def told(self) -> dict[str, Any]:
        """What each kind of people met."""
        found: dict[str, Counter[str]] = {}
        for role, met in self.met.items():
            found.setdefault(role.rpartition(" ")[0] or role, Counter()).update(met)
        return {f"people: {kind}": dict(met) for kind, met in found.items()}


@contextmanager
def at_work(folder: Path, seconds: float) -> Iterator[Crowd]:
    """Everybody works on the store in `folder` for so long; their reports are there at the end."""
    context = multiprocessing.get_context("forkserver")
    # Loaded once, and not by each of them: the script that was started, too.
    context.set_forkserver_preload(
        ["__main__", __name__, "gracekit.store.sql.database", "gracekit.refresher.selecting"]
    )
    crowd = Crowd()
    for role in ROLES:
        here, there = context.Pipe()
        process: BaseProcess = context.Process(
            target=_work, args=(folder / "store", role, seconds, there)
        )
        process.start()
        there.close()  # of one that dies there is an end then, and no wait without end
        crowd.processes[role] = process, here
    yield crowd
    for role, (process, pipe) in crowd.processes.items():
        crowd.met[role] = pipe.recv()
        process.join()


def _work(store: Path, role: str, seconds: float, pipe: Connection) -> None:
    task, rest_s = ROLES[role]
    rng, met = random.Random(role), Counter[str]()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            task(store, rng)
        except GracekitError as error:
            words = re.sub(r"\d+", "N", str(error).replace(str(store.parent), ""))
            met[f"{type(error).__name__}: {words[:90]}"] += 1
        except Exception as error:  # whatever it is, it should not have happened
            where = traceback.extract_tb(error.__traceback__)[-1]
            met[f"FINDING {error!r} at {Path(where.filename).name}:{where.lineno}"[:400]] += 1
        else:
            met["done"] += 1
        time.sleep(rng.uniform(0, 2 * rest_s))
    pipe.send(met)
