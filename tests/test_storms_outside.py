"""SIGKILLs and lying object stores over what leaves a store: copies, exports, shared work.

The operations and what must hold are in `tests/storm.py`; here is how often, and beside which
readers. A few lives are in the suite, many in `make torture`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.storm import PROCESSES, Storm, read_by_url

SEED = 20261129
PUBLISHING = {"publish": 6, "refresh": 1, "select": 1, "gc": 1, "rollback": 1}
EXPORTING = {"export": 4, "select": 1}
SHARING = {"shared": 1}
TIMES = int(os.environ.get("GRACEKIT_TIMES", "4"))
LIVES = {"publish": 15 * TIMES, "export": 12 * TIMES, "shared": 3 * TIMES}
"""Operations in `make torture`; GRACEKIT_TIMES=1 takes a quarter of them."""


@contextmanager
def readers(folder: Path, num: int, met: Counter[str]) -> Iterator[None]:
    """Processes that load the newest coreset by its URL; `met` gets what they met."""
    pipes, processes = [], []
    for number in range(num):
        here, there = PROCESSES.Pipe()
        process = PROCESSES.Process(target=read_by_url, args=(folder, number, there))
        process.start()
        there.close()  # of one that dies there is an end then, and no wait without end
        pipes.append(here)
        processes.append(process)
    try:
        yield
    finally:
        for pipe in pipes:
            pipe.send("end")
        for pipe, process in zip(pipes, processes, strict=True):
            met.update(pipe.recv())
            process.join()


def told(storm: Storm) -> str:
    where = ", ".join(f"{count} in {name}" for name, count in sorted(storm.killed_in.items()))
    return f"seed {SEED}: {storm.num_killed} SIGKILLs ({where}) in {storm.num_lives} operations"


def live_through(storm: Storm, lives: int) -> None:
    storm.begin()
    while storm.num_lives < lives:
        storm.live()


def publish_among_readers(folder: Path, lives: int) -> tuple[Storm, Counter[str]]:
    storm, met = Storm(folder, SEED, PUBLISHING), Counter[str]()
    with readers(folder, 2, met):
        live_through(storm, lives)
    assert met["whole"] > 0
    assert met.keys() <= {"whole", "nothing there yet"}, met
    return storm, met


def test_a_publish_that_is_killed_or_lied_to_is_never_half_there(tmp_path: Path) -> None:
    publish_among_readers(tmp_path, 2)


def test_a_killed_export_leaves_a_whole_one(tmp_path: Path) -> None:
    live_through(Storm(tmp_path, SEED, EXPORTING), 2)


def test_a_refresh_whose_workers_are_killed_has_the_bytes_of_one_process(tmp_path: Path) -> None:
    live_through(Storm(tmp_path, SEED, SHARING), 1)


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_publishes_killed_and_lied_to(tmp_path: Path) -> None:
    storm, met = publish_among_readers(tmp_path, LIVES["publish"])
    print(
        f"\n{told(storm)}; {storm.num_refused} publishes told a failure of the object store, all "
        f"others were there to the byte; two readers by URL loaded {met['whole']:,} whole "
        "versions, none half, none lost"
    )


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_exports_killed(tmp_path: Path) -> None:
    storm = Storm(tmp_path, SEED, EXPORTING)
    live_through(storm, LIVES["export"])
    print(f"\n{told(storm)}; an export was whole after each")


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_shared_refreshes_whose_workers_are_killed(tmp_path: Path) -> None:
    storm = Storm(tmp_path, SEED, SHARING)
    live_through(storm, LIVES["shared"])
    rows = sum(map(int, (tmp_path / "by-others").read_text().split()))
    print(
        f"\n{told(storm)}, and {storm.num_workers_killed} workers killed; these measured "
        f"{rows:,} rows; all versions had the bytes of a refresh by one process"
    )
