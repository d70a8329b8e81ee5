"""A trainer draws anew by itself: its uses follow the probabilities, and a resumed run draws on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracekit.draw.along import draw_along
from gracekit.draw.over_time import conditional, settled, to_totals
from gracekit.errors import RecipeError
from gracekit.store import Store
from gracekit.training import Coreset, CoresetSampler
from gracekit.training.chances import Chances
from gracekit.training.course import Course
from gracekit.training.drawn import Drawn
from gracekit.training.stream import Stream
from gracekit.types import Draw, DrawState, Float64
from tests.drawable import drawable_store, make_draw, publish_draw
from tests.stores import make_store

N = 24
B = 10
NUM_ROWS = 2 * N


def stream_of(draw: Draw, *, max_uses: int | None = None, **fields: Any) -> Stream:
    n = len(draw.probabilities)
    return Stream(
        version=1,
        step=1,
        positions=np.arange(n),
        weights=np.ones(n, np.float32),
        chances=Chances.of(draw, np.arange(n), max_uses),
        **{"seed": 0, **fields},
    )


def counts(drawn: list[Any], n: int = NUM_ROWS) -> np.ndarray:
    return np.bincount(np.array(drawn, np.int64), minlength=n)


def by_position(values: Float64) -> Float64:
    """Of the rows of the store, which has every other row of the data."""
    found = np.zeros(2 * len(values))
    found[::2] = values
    return found


def test_fifty_draws_give_every_row_its_turns(tmp_path: Path) -> None:
    n = 120
    store = make_store(tmp_path / "store", n)
    draw = publish_draw(store, draw=make_draw(n, seed=3, sizes=(14, 22)))
    sampler = CoresetSampler(store.paths.root, 2 * n, num_samples=36)
    uses = np.zeros(2 * n)
    for epoch in range(50):
        sampler.set_epoch(epoch)
        drawn = counts(list(sampler), 2 * n)
        assert drawn.max() == 1 and drawn.sum() == 36
        assert drawn[::2][draw.parts == 0].sum() == 14, "as many of each part as it was promised"
        uses += drawn
    errors = np.abs(uses - 50 * by_position(draw.probabilities))
    assert np.mean(errors <= 1) >= 0.99
    assert errors.max() <= 2


def test_draws_have_each_row_with_its_probability() -> None:
    draw, num_runs = make_draw(40, seed=1, sizes=(7, 9)), 100
    first, uses = np.zeros(40), np.zeros(40)
    for seed in range(num_runs):
        _, taken = Course.none(40).taken(stream_of(draw, seed=seed), 50 * 16, 50 * 16)
        first += counts(taken.positions[:16].tolist(), 40)
        uses += counts(taken.positions.tolist(), 40)
    spread = np.sqrt(draw.probabilities * (1 - draw.probabilities) / num_runs)
    z = (first / num_runs - draw.probabilities) / spread
    assert np.sqrt(np.mean(z**2)) < 1.4, "the first draw"
    np.testing.assert_allclose(uses / num_runs / 50, draw.probabilities, rtol=0.02)


@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(1, 23), min_size=1, max_size=12),
    once_an_epoch=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_course_is_the_same_however_it_is_cut(
    seed: int, cuts: list[int], once_an_epoch: bool
) -> None:
    draw = make_draw(30, seed=seed)
    stream = stream_of(draw, seed=seed, once_an_epoch=once_an_epoch)
    whole, taken = Course.none(30).taken(stream, sum(cuts), sum(cuts))
    course, parts = Course.none(30), []
    for cut in cuts:
        course, part = course.taken(stream, cut, cut)
        parts += part.positions.tolist()
    assert parts == taken.positions.tolist()
    for name in ("uses", "owed", "start_low", "start_high"):
        np.testing.assert_array_equal(
            getattr(course.now(), name), getattr(whole.now(), name), strict=True
        )
    state = course.now()
    np.testing.assert_array_equal(state.uses, counts(parts, 30))
    assert abs(state.owed.sum()) < 1e-6, "what is due adds up to the uses"


def test_a_plain_twin_draws_the_same() -> None:
    """Without courses: state by state, as the formulas have it."""
    draw, stream = make_draw(30, seed=5), stream_of(make_draw(30, seed=5), seed=9)
    state, expected = DrawState.none(30), []
    for number in range(6):
        shares = to_totals(conditional(state, draw.probabilities), draw.probabilities, draw.parts)
        rows = draw_along(
            shares, draw.places, draw.parts, np.random.default_rng([9, stream.version, number])
        )
        expected.append(rows.tolist())
        used = np.zeros(30, np.int32)
        used[rows] = 1
        state = settled(state, draw.probabilities, used)
    _, taken = Course.none(30).taken(stream, 60, 60)
    assert [sorted(part.tolist()) for part in np.split(taken.positions, 6)] == expected


def test_what_is_not_trained_on_is_not_counted() -> None:
    draw = make_draw(30, seed=2)
    course, taken = Course.none(30).taken(stream_of(draw), 25, 13)
    np.testing.assert_array_equal(course.now().uses, counts(taken.positions[:13].tolist(), 30))
    again = course.used_again(taken.positions[:2])
    assert (again.now().uses - course.now().uses).sum() == 2
    assert abs(again.now().owed.sum()) < 1e-6


def test_passes_are_new_draws_and_go_on_over_epochs(tmp_path: Path) -> None:
    store = drawable_store(tmp_path / "store")
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, num_samples=25)
    drawn: list[int] = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        drawn += list(sampler)
    passes = [drawn[i : i + B] for i in range(0, 100, B)]
    assert all(len(set(part)) == B for part in passes)
    assert len({tuple(sorted(part)) for part in passes}) > 5
    assert {position % 2 for position in drawn} == {0}, "rows that the store knows"
    coreset = set(Coreset.load(store.paths.root).source_rows.tolist())
    assert not set(drawn) <= coreset


def test_one_draw_an_epoch_is_gone_over_again(tmp_path: Path) -> None:
    store = drawable_store(tmp_path / "store")
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, num_samples=25, redraw="epoch")
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        passes = [drawn[i : i + B] for i in (0, B)]
        assert set(passes[0]) == set(passes[1]) and passes[0] != passes[1]
        assert set(drawn[2 * B :]) <= set(passes[0])
        epochs.append(frozenset(drawn))
    assert len(set(epochs)) == 4


def test_never_is_the_coreset_itself(tmp_path: Path) -> None:
    store = drawable_store(tmp_path / "store")
    coreset = Coreset.load(store.paths.root)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, redraw="never")
    assert set(sampler) == set(coreset.source_rows.tolist())
    weights = sampler.weights()
    np.testing.assert_array_equal(weights[coreset.source_rows], coreset.weights)
    assert (weights[1::2] == 1).all()


def test_drawn_positions_carry_their_weights(tmp_path: Path) -> None:
    store = drawable_store(tmp_path / "store")
    (draw,) = [make_draw(N, seed=1)]
    sampler = CoresetSampler(store.paths.root, NUM_ROWS)
    assert (sampler.weights() == 1).all() and sampler.weights().dtype == np.float32
    for position in sampler:
        assert type(position) is Drawn
        expected = draw.weights[position // 2]
        assert position.weight == expected == sampler.weight_of(position)
    repeated = CoresetSampler(store.paths.root, NUM_ROWS, mode="weighted")
    assert {position.weight for position in repeated} == {1.0}
    assert (repeated.weights() == 1).all()


def test_without_a_version_weights_are_one(tmp_path: Path) -> None:
    sampler = CoresetSampler(tmp_path / "nowhere", 7)
    assert {position.weight for position in sampler} == {1.0}
    assert sampler.weights().tolist() == [1.0] * 7


def test_repetition_by_weight_uses_all_rows_alike(tmp_path: Path) -> None:
    store = drawable_store(tmp_path / "store")
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, num_samples=200 * B, mode="weighted")
    uses = counts(list(sampler))[::2]
    draw = make_draw(N, seed=1)
    expected = 200 * draw.probabilities * draw.weights
    np.testing.assert_allclose(uses, expected, atol=12)


def test_rows_that_the_trainer_lacks_are_made_up_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = drawable_store(tmp_path / "store")
    ids = [f"id-{i:03d}" for i in reversed(range(N)) if i % 6]
    sampler = CoresetSampler(store.paths.root, ids, num_samples=B)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        drawn = [ids[position] for position in sampler]
        assert len(set(drawn)) == B
        assert sum(int(name[3:]) < N / 2 for name in drawn) == 4, "of the first part"
    texts = [record.message for record in caplog.records if "drawn from" in record.message]
    assert len(texts) == 1 and "4 more that it could have drawn are not in" in texts[0]


@given(st.integers(0, 1000), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_probabilities_among_fewer_rows_keep_totals_and_bounds(seed: int, num_out: int) -> None:
    draw = make_draw(30, seed=seed)
    chances = Chances.of(draw, np.arange(30), None)
    allowed = np.ones(30, bool)
    allowed[np.random.default_rng(seed).permutation(30)[:num_out]] = False
    now, weights = chances.among(allowed)
    assert not now[~allowed].any() and now.max() <= 1
    for part, total in enumerate((4, 6)):
        rows = allowed & (draw.parts == part)
        assert now[rows].sum() == pytest.approx(min(total, rows.sum()))
        is_open = rows & (now < 1)
        ratios = now[is_open] / draw.probabilities[is_open]
        assert len(ratios) == 0 or np.ptp(ratios) < 1e-9
        if rows.any():
            mean = np.average(weights[rows], weights=now[rows])
            assert mean == pytest.approx(np.average(
                draw.weights[draw.parts == part], weights=draw.probabilities[draw.parts == part]
            ), rel=1e-5)  # fmt: skip
            products = (weights * now)[rows] / (draw.weights * draw.probabilities)[rows]
            assert np.ptp(products) < 1e-5, "weights stay inverse to the probabilities"


def test_most_uses_hold_within_a_trainer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store(tmp_path / "store", N)
    publish_draw(store, max_uses=3)
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, num_samples=B)
    uses = np.zeros(NUM_ROWS)
    for epoch in range(9):
        sampler.set_epoch(epoch)
        uses += counts(list(sampler))
        if "fewer than 3 times" in caplog.text:
            break
    assert uses.max() <= 3 + (epoch == 8)
    for number in range(epoch + 1, 14):
        sampler.set_epoch(number)
        uses += counts(list(sampler))
    assert uses[::2].min() >= 3, "all rows have had their turns"
    texts = [record.message for record in caplog.records]
    assert sum("fewer than 3 times" in text for text in texts) == 1
    assert sum("was used 3 times" in text for text in texts) == 1


def test_a_swap_breaks_a_draw_off(tmp_path: Path) -> None:
    store = drawable_store(tmp_path / "store")
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, follow="step")
    drawn = []
    for index, position in enumerate(sampler):
        drawn.append(position)
        if index == 13:
            publish_draw(store)
            assert sampler.swap()
            assert sampler.version == 2
    assert sampler.order().tolist() == drawn
    assert len(set(drawn[14:24])) == B
    assert [p.weight for p in drawn] == [
        pytest.approx(make_draw(N, seed=1 + (i >= 14)).weights[p // 2]) for i, p in enumerate(drawn)
    ]


@pytest.mark.parametrize("redraw", ["pass", "epoch"])
@pytest.mark.parametrize("has_log", [True, False])
def test_a_resumed_sampler_draws_the_same(tmp_path: Path, redraw: Any, has_log: bool) -> None:
    store = drawable_store(tmp_path / "store", versions=1)

    def make() -> CoresetSampler:
        return CoresetSampler(
            store.paths.root, NUM_ROWS, num_samples=27, seed=7, redraw=redraw, follow="step"
        )

    first = make()
    for epoch in range(2):
        first.set_epoch(epoch)
        list(first)
    publish_draw(store)
    first.set_epoch(2)
    iterator = iter(first)
    drawn = [next(iterator) for _ in range(16)]
    publish_draw(store)
    first.swap()
    if has_log:
        first.log_uses(40, num_trained=12)
    saved = json.loads(json.dumps(first.state_dict()))
    drawn += iterator
    resumed = make()
    resumed.load_state_dict(saved)
    assert list(resumed) == drawn
    assert [p.weight for p in resumed] == [p.weight for p in drawn]
    for epoch in (3, 4):
        first.set_epoch(epoch)
        resumed.set_epoch(epoch)
        assert list(resumed) == list(first)
    assert resumed.run == first.run
    resumed.set_epoch(0)
    assert len(set(list(resumed)[:B])) == B, "epochs before the log are drawn again from nothing"


def test_a_store_whose_draw_is_damaged_gives_its_coreset(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = drawable_store(tmp_path / "store")
    store.paths.draw(1).write_bytes(b"cut off")
    sampler = CoresetSampler(store.paths.root, NUM_ROWS)
    assert set(sampler) == set(Coreset.load(store.paths.root).source_rows.tolist())
    texts = [record.message for record in caplog.records]
    assert len(texts) == 1 and texts[0].startswith("coreset version 1 is not drawn anew: cannot")


def test_a_copy_of_the_manifests_gives_coresets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = drawable_store(tmp_path / "store")
    copy = tmp_path / "copy" / "manifests"
    copy.mkdir(parents=True)
    source = store.paths.manifest(1)
    (copy / source.name).write_bytes(source.read_bytes())
    sampler = CoresetSampler(copy.parent, NUM_ROWS)
    assert set(sampler) == set(Coreset.load(store.paths.root).source_rows.tolist())
    sampler.log_uses(1)
    assert not caplog.records and not (copy.parent / "uses").exists()


def test_drawing_and_logging_load_nothing_heavy(tmp_path: Path) -> None:
    store = drawable_store(tmp_path / "store")
    code = (
        "import sys; from gracekit.training import CoresetSampler\n"
        f"s = CoresetSampler({str(store.paths.root)!r}, {NUM_ROWS})\n"
        "list(s); s.log_uses(3); t = CoresetSampler(s.store, s._num_rows)\n"
        "t.load_state_dict(s.state_dict()); list(t); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heavy = {"torch", "transformers", "scipy", "datasets", "duckdb", "pydantic", "numba"}
    assert heavy & set(done.stdout.split()) == set()
    assert (store.paths.uses).is_dir()


def test_another_way_to_redraw_is_another_state(tmp_path: Path) -> None:
    saved = CoresetSampler(tmp_path, 5).state_dict()
    with pytest.raises(RecipeError, match="redraw 'pass' and this sampler 'never'"):
        CoresetSampler(tmp_path, 5, redraw="never").load_state_dict(saved)
    with pytest.raises(RecipeError, match="redraw should be one of pass, epoch, never"):
        CoresetSampler(tmp_path, 5, redraw="always")  # type: ignore[arg-type]


def test_reading_draws_logs_nothing_when_all_is_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = drawable_store(tmp_path / "store")
    with caplog.at_level(logging.DEBUG, logger="gracekit.training"):
        sampler = CoresetSampler(store.paths.root, NUM_ROWS)
        assert Counter(sampler)
        sampler.log_uses(2)
    assert not caplog.records


def test_a_leased_versions_draw_stays(tmp_path: Path) -> None:
    store = drawable_store(tmp_path / "store")
    sampler = CoresetSampler(store.paths.root, NUM_ROWS)
    first = list(sampler)
    for _ in range(3):
        publish_draw(store)
    assert Store.open(store.paths.root).gc(keep=1).removed == (2, 3)
    assert store.paths.draw(1).is_file() and not store.paths.draw(2).exists()
    resumed = CoresetSampler(store.paths.root, NUM_ROWS)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == first
