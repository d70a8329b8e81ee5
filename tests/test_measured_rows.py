"""What was measured comes in the order asked for, whatever shards executors give."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit.errors import MeasureError, RefreshStoppedError
from gracekit.progress import Progress
from gracekit.protocols import Executor
from gracekit.refresher.measured_rows import MeasuredRows
from gracekit.store import ShardFiles
from gracekit.types import Json, MeasuredTarget, Measurement, Rows

N = 40
Cut = Callable[[Rows], list[Rows]]


def result(rows: Rows, *, sketches: bool = False, look: bool = False) -> Measurement:
    """Numbers that tell their row, none of which are 0."""
    features = np.stack([rows + 1, -rows - 1], axis=1).astype(np.float16)
    return Measurement(
        rows=rows,
        scores={} if look else {"loss": (rows + 0.5).astype(np.float32)},
        features=features,
        sketches=features[:, :1] if sketches and not look else None,
    )


class Given:
    """Implements `Executor`: the shards that a function cuts."""

    def __init__(self, cut: Cut, *, sketches: bool = False, stop_after: int = 10**6) -> None:
        self.cut, self.sketches, self.stop_after = cut, sketches, stop_after
        self.stop = threading.Event()
        self.progress = Progress(stop=self.stop)
        self.asked: list[Rows] = []

    def measure(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        yield from self._shards(rows, look=False)

    def look(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        yield from self._shards(rows, look=True)

    def _shards(self, rows: Rows, *, look: bool) -> Iterator[Measurement]:
        self.asked.append(rows)
        for number, part in enumerate(self.cut(rows), 1):
            yield result(part, sketches=self.sketches, look=look)
            if number == self.stop_after:
                self.stop.set()
                return

    def target(self) -> MeasuredTarget | None:
        return None

    def optimizer(self) -> Json | None:
        return None

    def close(self) -> None:
        pass


def measured_rows(executor: Given, folder: Path) -> MeasuredRows:
    assert isinstance(executor, Executor)
    files = ShardFiles(folder / "shards"), ShardFiles(folder / "looks")
    return MeasuredRows(executor, *files, np.ones(N, bool), executor.progress)


def check(found: Measurement, rows: Rows) -> None:
    expected = result(rows)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.scores["loss"], expected.scores["loss"])


def cut_at_random(rng: np.random.Generator, *, twice: bool = False) -> Cut:
    def cut(rows: Rows) -> list[Rows]:
        rows = rng.permutation(rows)
        parts = np.array_split(rows, rng.integers(1, 5))
        return [*parts, rows[:2]] if twice else parts

    return cut


@given(seed=st.integers(0, 10**6), twice=st.booleans())
def test_rounds_looks_and_stops(
    tmp_path_factory: pytest.TempPathFactory, seed: int, twice: bool
) -> None:
    """Rounds of a run that was stopped and goes on, with other rows than before."""
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("rows")
    known: set[int] = set()
    for _ in range(3):  # runs
        stop_after = int(rng.integers(1, 6))
        executor = Given(
            cut_at_random(rng, twice=twice), sketches=bool(rng.integers(2)), stop_after=stop_after
        )
        with measured_rows(executor, folder) as measure:
            seen = []
            try:
                for size in np.sort(rng.integers(1, N + 1, 3)):
                    if rng.integers(2):
                        looked = rng.permutation(N)[: rng.integers(1, N)]
                        found = measure.look(looked)
                        np.testing.assert_array_equal(found, result(looked).features)
                    rows = rng.permutation(N)[:size]
                    seen.append((measure(rows), rows))
            except RefreshStoppedError:
                pass
        for measurement, rows in seen:  # later rounds leave the earlier ones as they were
            check(measurement, rows)
        on_disk = {row for part in ShardFiles(folder / "shards").load() for row in part.rows}
        assert known <= on_disk
        known = on_disk


def test_no_row_is_measured_twice(tmp_path: Path) -> None:
    executor = Given(lambda rows: np.array_split(rows, 2))
    with measured_rows(executor, tmp_path) as measure:
        measure(np.arange(10))
        measure(np.arange(5, 20)[::-1])
    with measured_rows(executor, tmp_path) as measure:
        assert measure.num_resumed == 20
        check(measure(np.arange(15, 30)), np.arange(15, 30))
    assert sorted(np.concatenate(executor.asked).tolist()) == list(range(30))


@pytest.mark.parametrize("later", [True, False])
def test_sketches_count_where_all_have_them(tmp_path: Path, later: bool) -> None:
    executor = Given(lambda rows: [rows], sketches=not later)
    with measured_rows(executor, tmp_path) as measure:
        assert (measure(np.arange(9)).sketches is None) == later
        executor.sketches = later
        assert measure(np.arange(12)).sketches is None


WRONG = {
    "too few": (lambda rows: [rows[:-1]], "left out 1 of the rows"),
    "none": (lambda rows: [], "left out 6 of the rows"),
    "others": (lambda rows: [rows, np.array([30])], "1 rows that it was not asked for, such as"),
    "beyond": (lambda rows: [np.array([N])], f"such as row {N}"),
    "below": (lambda rows: [np.array([-1])], "such as row -1"),
}


@pytest.mark.parametrize("is_look", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_an_executor_that_gives_other_rows_is_named(
    tmp_path: Path, name: str, is_look: bool
) -> None:
    cut, message = WRONG[name]
    with (
        measured_rows(Given(cut), tmp_path) as measure,
        pytest.raises(MeasureError, match=message) as raised,
    ):
        (measure.look if is_look else measure)(np.arange(6))
    assert str(raised.value).startswith("Given ")


class Held(Given):
    """An executor that holds something while its shards are asked for, as a claim on one."""

    is_held = False

    def _shards(self, rows: Rows, *, look: bool) -> Iterator[Measurement]:
        self.is_held = True
        try:
            yield from super()._shards(rows, look=look)
        finally:
            self.is_held = False


@pytest.mark.parametrize("look", [False, True])
def test_what_an_executor_holds_ends_with_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: bool
) -> None:
    """Also while somebody still has the error, with all that it refers to."""

    def fails(self: ShardFiles, shard: Measurement) -> None:
        raise OSError("Input/output error")

    executor = Held(lambda rows: [rows[:10], rows[10:]])
    measure = measured_rows(executor, tmp_path)
    monkeypatch.setattr(ShardFiles, "save", fails)
    with pytest.raises(OSError, match="Input/output") as error:
        (measure.look if look else measure)(np.arange(N))
    assert error.value is not None and not executor.is_held
