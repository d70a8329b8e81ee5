"""What was drawn before: uses in stores that grow, go back, are damaged or of an older release."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gracekit.errors import SelectionError
from gracekit.recipe import SelectionSection
from gracekit.refresher.loading import last_coreset
from gracekit.refresher.selecting import rollback
from gracekit.refresher.uses import last_probabilities, num_distinct_random, state_now
from gracekit.selection import select
from gracekit.selection.explain import Chosen, explain
from gracekit.store import Store, verify
from gracekit.store.retention import collect
from gracekit.types import Draw, DrawState, SampleTable, Selection
from gracekit.version.outcomes import SelectionDetails
from tests.stores import N, changed_samples, make_draft, make_store
from tests.test_selection_balanced import SCORING, with_norms
from tests.worlds import World


def commit(store: Store, samples: SampleTable | None = None, *, is_drawn: bool = True) -> DrawState:
    """A version with a state, and a draw in which each sample was as likely; the state before."""
    draft = make_draft(store, f"r{store.next_version()}", samples=samples)
    table = samples or store.samples()
    state = state_now(store, table, last_coreset(store))
    if is_drawn:
        n, b = len(table), len(draft.selection.rows)
        draw = Draw(
            probabilities=np.where(table.present, b / table.present.sum(), 0.0),
            weights=np.ones(n, np.float32),
            places=np.arange(n, dtype=np.int32),
            parts=np.zeros(n, np.int32),
        )
        draft = dataclasses.replace(
            draft, selection=dataclasses.replace(draft.selection, draw=draw), state=state
        )
    store.commit(draft)
    return state


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store")


def now(store: Store) -> DrawState:
    return state_now(store, store.samples(), last_coreset(store))


def uses_of(store: Store) -> Any:
    """Counted from all coresets."""
    uses = np.zeros(len(store.samples()), int)
    for version in store.versions():
        uses[store.coreset(version)["row"].to_numpy()] += 1
    return uses


def test_uses_and_what_is_owed_add_up_over_versions(store: Store) -> None:
    assert now(store).uses.tolist() == [0] * N
    for _ in range(4):
        commit(store)
    state = now(store)
    assert state.uses.tolist() == uses_of(store).tolist()
    assert state.owed == pytest.approx(4 / 3 - state.uses)
    assert last_probabilities(store, store.samples()) == pytest.approx(1 / 3)
    assert verify(store) == []


def test_new_and_changed_samples_start_anew_and_the_others_go_on(store: Store) -> None:
    commit(store)
    samples = changed_samples(store)
    version = store.next_version()
    state = state_now(store, samples, last_coreset(store))
    is_new = samples.content_versions == version
    assert is_new.sum() == 4
    assert state.uses[is_new].tolist() == [0] * 4 and state.owed[is_new].tolist() == [0] * 4
    assert state.uses[~is_new].tolist() == uses_of(store)[~is_new[:N]].tolist()
    known = last_probabilities(store, samples)
    assert known is not None
    assert known[is_new].tolist() == [0] * 4 and known[~is_new] == pytest.approx(1 / 3)
    commit(store, samples)
    after = now(store)
    rows = store.coreset(2)["row"].to_numpy()
    assert (after.uses - state.uses)[rows].tolist() == [1] * len(rows)
    assert verify(store) == []


def test_stores_of_older_releases_count_the_coresets_that_are_kept(store: Store) -> None:
    commit(store, is_drawn=False)
    commit(store, is_drawn=False)
    assert last_probabilities(store, store.samples()) is None
    state = now(store)
    assert state.uses.tolist() == uses_of(store).tolist()
    assert state.owed.tolist() == [0] * N
    assert num_distinct_random(store, store.samples()) == N // 3
    commit(store)
    assert now(store).uses.tolist() == uses_of(store).tolist()


def test_after_a_rollback_and_with_a_selector_without_probabilities(store: Store) -> None:
    commit(store)
    commit(store)
    rollback(store.paths.root, 1)
    store.renew()
    state = now(store)
    assert state.uses.tolist() == uses_of(store).tolist()
    assert state.owed == pytest.approx(1 - state.uses)
    header = store.header(3)
    assert header.selection.num_distinct == int((state.uses > 0).sum())
    assert header.selection.num_distinct_random == pytest.approx(8 + 8 * (1 - 8 / N), abs=9)
    draft = dataclasses.replace(make_draft(store, "covers"), state=state)
    store.commit(draft)
    after = now(store)
    assert after.uses.tolist() == uses_of(store).tolist()
    assert after.owed == pytest.approx(state.owed)


@pytest.mark.parametrize("damage", ["lost", "flipped"])
def test_a_damaged_draw_file_is_found_and_stops_nothing(
    store: Store, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    commit(store)
    commit(store)
    path = store.paths.draw(2)
    path.unlink() if damage == "lost" else path.write_bytes(b"x" * path.stat().st_size)
    problems = verify(store)
    assert any(p.path == "draws/version=000002/draw.parquet" and p.advice for p in problems)
    with caplog.at_level(logging.WARNING):
        assert now(store).uses.tolist() == uses_of(store).tolist()
    # A version that lacks a file is none: the one before goes on. One that cannot be read is told.
    assert store.latest() == (1 if damage == "lost" else 2)
    assert ("counted anew from the coresets" in caplog.text) == (damage == "flipped")


def test_the_draw_files_of_removed_versions_go_and_the_latest_stays(store: Store) -> None:
    for _ in range(3):
        commit(store)
    uses = now(store).uses.tolist()
    with store.lock():
        collect(store, 1)
    assert [store.paths.draw(v).parent.exists() for v in (1, 2, 3)] == [False, False, True]
    assert now(store).uses.tolist() == uses
    assert verify(store) == []


# --- selections that look at uses ---


def drawn(world: World, state: DrawState | None, version: int = 1, **asked: Any) -> Selection:
    inputs = dataclasses.replace(world.inputs(), scoring=SCORING, state=state)
    asked = {"selector": "balanced"} | asked
    return select(SelectionSection(**asked), inputs, seed=0, version=version)


def used(world: World, uses: Any) -> DrawState:
    return dataclasses.replace(DrawState.none(len(world.samples)), uses=np.asarray(uses, np.int32))


@pytest.mark.parametrize("selector", ["balanced", "coverage", "random", "top"])
def test_rows_used_too_often_are_no_candidates(selector: str) -> None:
    world = with_norms(n=60)
    state = used(world, np.arange(60) % 3)
    found = drawn(world, state, selector=selector, max_uses=2, count=20)
    assert (state.uses[found.rows] < 2).all() and len(found.rows) == 20
    assert found.details["num_at_max_uses"] == 20
    assert found.details["num_distinct"] == len(
        set(found.rows.tolist()) | set(np.flatnonzero(state.uses).tolist())
    )
    if selector == "balanced":
        assert found.draw is not None
        assert (found.draw.probabilities[state.uses >= 2] == 0).all()


def test_how_often_a_row_was_used_is_explained_and_what_is_allowed() -> None:
    """`max_uses` may have been higher before."""
    world = with_norms(n=60)
    state = used(world, np.where(np.arange(60) < 20, 3, 0))
    asked = SelectionSection(selector="balanced", max_uses=2, count=20)
    inputs = dataclasses.replace(world.inputs(), scoring=SCORING, state=state)
    found = select(asked, inputs, seed=0, version=1)
    chosen = Chosen(
        settings=asked, details=SelectionDetails.model_validate(found.details), rows=found.rows,
        gains=found.gains, inputs=inputs,
    )  # fmt: skip
    reason = explain(3, chosen).reason
    assert reason.endswith("used 3 times before, and selection.max_uses allows 2"), reason


def test_what_is_always_in_is_used_however_often(caplog: pytest.LogCaptureFixture) -> None:
    world = with_norms(n=60)
    state = used(world, np.where(np.arange(60) < 50, 4, 1))
    name = world.samples.sample_ids[3]
    with caplog.at_level(logging.WARNING):
        found = drawn(world, state, max_uses=4, count=30, always_in=(name,))
    assert set(found.rows.tolist()) == {3, *range(50, 60)}
    assert "30 samples are to be selected, but only 11 can be, for 49 were used 4 times" in (
        caplog.text
    )
    with caplog.at_level(logging.WARNING):
        tokens = drawn(world, state, max_uses=4, tokens=5000)
    assert set(tokens.rows.tolist()) == set(range(50, 60))
    assert "5000 tokens are to be selected, but the samples that can be have" in caplog.text


def test_where_no_row_is_left_the_message_says_what_to_do() -> None:
    world = with_norms(n=60)
    with pytest.raises(SelectionError, match=r"60 of 60 usable ones were used 3 times.*Raise max"):
        drawn(world, used(world, np.full(60, 3)), max_uses=3)
    few = used(world, np.where(world.samples.groups == 0, 3, 0))
    with pytest.raises(SelectionError, match=r"group_minimum is 5.*or raise selection\.max_uses"):
        drawn(world, few, max_uses=3, group_minimum=5, count=20)
    others = drawn(world, few, max_uses=3, group_quota="equal", count=20)
    assert np.bincount(world.samples.groups[others.rows], minlength=3)[0] == 0
    assert len(others.rows) == 20


def test_keep_changes_nothing_until_probabilities_do_and_then_little() -> None:
    world = with_norms(n=120)
    first = drawn(world, None, count=30, redraw="keep")
    assert first.draw is not None

    def again(version: int, **asked: Any) -> Selection:
        inputs = dataclasses.replace(
            world.inputs(first.rows), scoring=SCORING, state=DrawState.none(120),
            parent_probabilities=first.draw.probabilities if first.draw else None,
        )  # fmt: skip
        asked = {"count": 30} | asked
        section = SelectionSection(selector="balanced", redraw="keep", **asked)
        return select(section, inputs, seed=0, version=version)

    assert set(again(2).rows.tolist()) == set(first.rows.tolist())
    fixed = tuple(world.samples.sample_ids[:4])
    assert set(range(4)) <= set(again(2, always_in=fixed).rows.tolist())
    for version in range(2, 6):
        other = again(version, alpha=0.4)
        assert other.draw is not None
        moved = np.abs(other.draw.probabilities - first.draw.probabilities).sum() / 2
        assert len(other.rows) == 30
        assert len(np.setdiff1d(first.rows, other.rows)) <= 3 * moved + 3
    world.samples.removed_versions[first.rows[:5]] = 2
    world.scores.origin[first.rows[:5]] = 5
    left = again(2)
    assert not set(first.rows[:5].tolist()) & set(left.rows.tolist()) and len(left.rows) == 30
