"""Signals towards a target, what each gains, the places they make, and the target's course."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from gracekit.aim import (
    Course,
    Evidence,
    Gain,
    TargetLosses,
    alike,
    copies,
    dose,
    follow,
    one_place,
    respond_alike,
)  # fmt: skip
from gracekit.aim.course import mean_uses, steps_left
from gracekit.aim.gains import best_width, choice_gain, gain_of, lasting_share, pooled
from gracekit.aim.groups import group_means_across
from gracekit.aim.judging import judge
from gracekit.aim.likeness import likeness
from gracekit.aim.places import chosen, in_turn
from gracekit.aim.smoothing import cosines_without_self, reach, smoothed_cosines, walk_matrix
from gracekit.recipe import SelectionSection
from gracekit.texts import Texts
from gracekit.types import DrawState, Float32, MeasuredTarget, Places, SparseGraph
from tests.stores import make_samples
from tests.worlds import World

WIDTH = 16


def random_graph(n: int, seed: int) -> SparseGraph:
    random = np.random.default_rng(seed)
    dense = random.random((n, n)) * (random.random((n, n)) < 4 / n)
    dense = np.triu(dense, 1)
    edges = sparse.csr_array(dense + dense.T)
    return SparseGraph(
        indptr=edges.indptr.astype(np.int64),
        indices=edges.indices.astype(np.int32),
        weights=edges.data.astype(np.float32),
    )


def unit(vectors: Any) -> Float32:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, np.float32)


def dense_walk(graph: SparseGraph) -> Any:
    n = len(graph.indptr) - 1
    edges = sparse.csr_array((graph.weights, graph.indices, graph.indptr), shape=(n, n)).toarray()
    with_own = edges.astype(np.float64) + np.eye(n)
    return with_own / with_own.sum(axis=1, keepdims=True)


@given(seed=st.integers(0, 2**32 - 1), rounds=st.integers(1, 4))
@settings(max_examples=25)
def test_smoothing_is_powers_of_the_dense_walk(seed: int, rounds: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(5, 30))
    graph = random_graph(n, seed)
    rows = np.sort(random.choice(n, int(random.integers(1, n)), replace=False))
    sketches = unit(random.normal(size=(len(rows), WIDTH)))
    goals = unit(random.normal(size=(2, WIDTH)))
    walk = dense_walk(graph)
    power = np.linalg.matrix_power(walk, rounds)
    means = power[:, rows] @ sketches.astype(np.float64)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    expected = np.where(lengths > 1e-12, means / np.maximum(lengths, 1e-12), 0) @ goals.T
    found = smoothed_cosines(walk_matrix(graph), rows, sketches, goals, rounds=rounds)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    # And as the others say it: its own weight is taken out.
    asked = np.arange(0, len(rows), 2)
    among = power[np.ix_(rows[asked], rows)]
    among[np.arange(len(asked)), asked] = 0
    means = among @ sketches.astype(np.float64)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    expected = np.where(lengths > 1e-9, means / np.maximum(lengths, 1e-9), 0) @ goals.T
    found = cosines_without_self(
        walk_matrix(graph), rows, sketches, goals, rounds=rounds, asked=asked
    )
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_more_rounds_where_few_rows_are_measured() -> None:
    n = 60
    line = SparseGraph(
        indptr=np.concatenate([[0, 1], 1 + 2 * np.arange(1, n - 1), [2 * n - 2]]),
        indices=np.array(
            [j for i in range(n) for j in (i - 1, i + 1) if 0 <= j < n], np.int32
        ),
        weights=np.ones(2 * n - 2, np.float32),
    )  # fmt: skip
    walk = walk_matrix(line)
    rounds, mass = reach(walk, np.arange(0, n, 5), np.ones(n, np.bool_))
    assert rounds == 2 and (mass > 0).sum() == n - 2
    rounds, mass = reach(walk, np.array([0]), np.ones(n, np.bool_))
    assert rounds == 4 and (mass > 0).sum() == 5


def test_likeness_is_the_mean_cosine_of_centred_features() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(9, 5)).astype(np.float32) + 3
    valid = np.arange(9) != 4
    targets = random.normal(size=(3, 5)).astype(np.float32) + 3
    found = likeness(features, valid, targets)
    centre = features[valid].mean(axis=0)
    for row in np.flatnonzero(valid):
        cosines = [
            (features[row] - centre) @ (t - centre)
            / np.linalg.norm(features[row] - centre) / np.linalg.norm(t - centre)
            for t in targets
        ]  # fmt: skip
        assert found[row] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert found[4] == 0


# --- gains ---


def test_the_gain_of_a_choice_is_its_mean_less_that_of_all() -> None:
    signal = np.array([3, 1, 2, 0], np.float32)
    worth = np.array([0.5, 0.1, 0.3, -0.1], np.float32)
    found, error = choice_gain(signal, worth, 0.5)
    assert found == pytest.approx(0.4 - 0.2)
    assert error == pytest.approx(0.1 * math.sqrt(1 / 2 - 1 / 4))
    assert choice_gain(signal, worth, 1.0)[0] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_the_width_is_the_share_of_rows_that_are_of_use(share: float) -> None:
    random = np.random.default_rng(1)
    m = 2000
    is_useful = np.arange(m) < share * m
    worth = (0.3 * is_useful + 0.05 * random.normal(size=m)).astype(np.float32)
    signal = (is_useful + 0.05 * random.random(m)).astype(np.float32)
    assert gain_of((signal, signal), (worth, worth), None).width == share


def test_a_noisy_curve_gets_the_plain_width() -> None:
    curve = dict.fromkeys((0.1, 0.15, 0.2, 0.3, 0.4, 0.5), (0.02, 0.05))
    curve[0.4] = (0.03, 0.05)
    assert best_width(curve) == 0.3


def test_gains_of_two_refreshes_count_by_their_errors() -> None:
    now = Gain(gain=0.2, error=0.1, width=0.2)
    before = Gain(gain=0.4, error=0.1, width=0.4, lasts=0.5)
    both = pooled(now, before, 0.5)
    assert both.gain == pytest.approx((0.2 + 0.5 * 0.4) / 1.5)
    assert both.error == pytest.approx(0.1 / math.sqrt(1.5))
    assert both.width == 0.2
    assert Gain(gain=0.1, error=0.2, width=0.3).counts == 0
    assert Gain(gain=0.3, error=0.1, width=0.3, lasts=0.5).counts == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("before", "again", "error", "left"),
    [(0.2, 0.2, 0.0, 1.0), (0.2, 0.05, 0.05, 0.5), (0.2, -0.3, 0.1, 0.0), (-0.1, 0.0, 0.0, 1.0)],
)
def test_what_lasts_of_a_gain(before: float, again: float, error: float, left: float) -> None:
    assert lasting_share(before, again, error) == pytest.approx(left)


# --- a world in which a cluster of rows serves the target ---


def evidence_of(
    n: int = 400,
    *,
    seed: int = 0,
    measured: float = 0.5,
    own: float = 3.0,
    tells_by_features: bool = True,
    tells_by_gradients: bool = True,
    num_target: int = 20,
    **more: Any,
) -> tuple[Evidence, Any]:
    """Four clusters of rows; those of the first have gradients (and features) like the target's.

    A row's gradient is its cluster's direction and `own` times as much of its own, so that one row
    tells little and the cluster's mean tells all.
    """
    random = np.random.default_rng(seed)
    cluster = np.arange(n) % 4
    centres = random.normal(size=(4, 8))
    features = (centres[cluster] + 0.2 * random.normal(size=(n, 8))).astype(np.float32)
    directions = np.linalg.qr(random.normal(size=(64, 5)))[0].T
    of_row = cluster if tells_by_gradients else np.full(n, 3)
    gradients = directions[of_row] + own * random.normal(size=(n, 64)) / 8
    of_target = directions[0] + own * random.normal(size=(num_target, 64)) / 8
    target_centre = centres[0] if tells_by_features else centres[2]
    target_features = target_centre + 0.2 * random.normal(size=(num_target, 8))
    same = (cluster[:, None] == cluster) & (random.random((n, n)) < 24 / n)
    upper = np.triu(np.where(same, 0.5 + 0.5 * random.random((n, n)), 0), 1)
    edges = sparse.csr_array(upper + upper.T)
    rows = np.sort(random.choice(n, round(measured * n), replace=False))
    return (
        Evidence(
            graph=SparseGraph(
                indptr=edges.indptr.astype(np.int64),
                indices=edges.indices.astype(np.int32),
                weights=edges.data.astype(np.float32),
            ),
            features=features,
            valid=np.ones(n, np.bool_),
            rows=rows,
            sketches=unit(gradients[rows]),
            target=MeasuredTarget(
                features=target_features.astype(np.float16),
                losses=np.ones(num_target, np.float32),
                sketches=unit(of_target).astype(np.float16),
            ),
            groups=np.zeros(n, np.int32),
            **{
                "before": None,
                "is_new": np.ones(len(rows), np.bool_),
                "gains_before": {},
                "barred": np.zeros(n, np.bool_),
                "used": np.zeros(n, np.int64),
                **more,
            },
        ),
        cluster == 0,
    )


def test_smoothed_influence_finds_what_single_rows_do_not_tell() -> None:
    evidence, is_useful = evidence_of(measured=0.3, own=5.0)
    judged = judge(SelectionSection(aim="influence"), evidence)
    assert evidence.sketches is not None and evidence.target.sketches is not None
    goal = evidence.target.sketches.astype(np.float32).mean(axis=0)
    own = evidence.sketches @ goal
    of_rows = is_useful[evidence.rows]
    per_row = np.mean(own[of_rows][:, None] > own[~of_rows])
    signal = judged.signals["influence"]
    smoothed = np.mean(signal[is_useful][:, None] > signal[~is_useful])
    assert smoothed > 0.9 > per_row + 0.1
    assert judged.gains["influence"].counts > 0


def test_auto_follows_the_signal_that_gains() -> None:
    evidence, is_useful = evidence_of(tells_by_features=False)
    places, aim = follow(SelectionSection(), evidence)
    assert aim.share_influence > 0.8 > 0.1 > aim.share_likeness > 0
    assert "influence gains most" in aim.why
    place = places.factors["aim"]
    assert place.mean() == pytest.approx(1, abs=0.05)
    assert place[is_useful].mean() > 5 * place[~is_useful].mean()
    assert place.min() == pytest.approx(0.1)
    assert aim.num_alike == pytest.approx(is_useful.sum(), rel=0.35)


def test_auto_shares_between_signals_that_gain_alike() -> None:
    _, aim = follow(SelectionSection(), evidence_of()[0])
    assert aim.share_influence > 0.25 and aim.share_likeness > 0.25
    assert aim.share_influence + aim.share_likeness + aim.share_uniform == pytest.approx(1)


def test_groups_that_gain_are_followed_where_nothing_else_tells() -> None:
    """Two neighbours in the graph have nothing in common, but the group has."""
    evidence, is_useful = evidence_of(own=3.0, tells_by_features=False)
    random = np.random.default_rng(3)
    mixed = random.permutation(400)
    graph = evidence.graph
    moved = sparse.csr_array((graph.weights, graph.indices, graph.indptr), shape=(400, 400))
    moved = sparse.csr_array(moved[mixed][:, mixed])
    evidence = dataclasses.replace(
        evidence,
        groups=np.where(is_useful, 2, np.arange(400) % 2).astype(np.int32),
        graph=SparseGraph(
            indptr=moved.indptr.astype(np.int64),
            indices=moved.indices.astype(np.int32),
            weights=moved.data,
        ),
    )
    places, aim = follow(SelectionSection(), evidence)
    assert aim.share_group > 0.6, aim.why
    place = places.factors["aim"]
    assert place[is_useful].min() > 2 * place[~is_useful].max()
    signal = places.signals["group"]
    assert len(np.unique(signal)) == 3
    # By hand: what the measured rows of a group say, drawn to 0 as by ten more.
    assert evidence.sketches is not None and evidence.target.sketches is not None
    common = evidence.sketches.mean(axis=0)
    goal = unit((evidence.target.sketches.astype(np.float32).mean(axis=0) - common)[None])[0]
    cosines = unit(evidence.sketches - common) @ goal
    of_group = evidence.groups[evidence.rows] == 2
    expected = (cosines[of_group] - cosines.mean()).sum() / (of_group.sum() + 10)
    assert signal[is_useful] == pytest.approx(np.full(is_useful.sum(), expected), abs=1e-4)


def test_where_nothing_resembles_the_target_all_rows_are_alike() -> None:
    evidence, _ = evidence_of(tells_by_gradients=False)
    places, aim = follow(SelectionSection(), evidence)
    assert "nothing in the data is shown to resemble the target" in aim.why
    assert (places.factors["aim"] == 1).all() and aim.share_uniform == 1


def test_without_measured_rows_the_gains_of_before_hold() -> None:
    evidence, is_useful = evidence_of(tells_by_features=False)
    places, aim = follow(SelectionSection(), evidence)
    gains = {
        name: Gain(
            gain=getattr(aim, f"gain_{name}"),
            error=getattr(aim, f"error_{name}"),
            width=getattr(aim, f"width_{name}"),
        )
        for name in ("influence", "likeness")
    }
    later = dataclasses.replace(
        evidence,
        rows=evidence.rows[:0],
        sketches=None,
        is_new=evidence.is_new[:0],
        before=places,
        gains_before=gains,
    )
    again, found = follow(SelectionSection(), later)
    assert found.share_influence == pytest.approx(aim.share_influence)
    np.testing.assert_allclose(again.factors["aim"], places.factors["aim"], atol=1e-5)
    assert again.factors["aim"][is_useful].mean() > 2
    untold = dataclasses.replace(later, before=None, gains_before={})
    _, half = follow(SelectionSection(), untold)
    assert (half.share_likeness, half.share_uniform) == (0.5, 0.5)
    assert "fewer than 30 rows" in half.why
    nothing, none_known = follow(SelectionSection(aim="influence"), untold)
    assert (nothing.factors["aim"] == 1).all() and "nothing is known yet" in none_known.why


def test_gains_that_tell_little_are_said_to() -> None:
    """One target sample judges what it has chosen, and a gain of chance is called that."""
    evidence, _ = evidence_of()
    assert "whole target" not in follow(SelectionSection(), evidence)[1].why
    target, first = evidence.target, slice(0, 1)
    assert target.sketches is not None and target.losses is not None
    one = dataclasses.replace(
        target, features=target.features[first], sketches=target.sketches[first],
        losses=target.losses[first],
    )  # fmt: skip
    why = follow(SelectionSection(), dataclasses.replace(evidence, target=one))[1].why
    assert why.endswith("one sample is the whole target, so it judges what it has chosen itself")
    random = np.random.default_rng(1)
    found = []
    for seed in range(12):
        noise = random.normal(size=target.sketches.shape).astype(target.sketches.dtype)
        sketches = unit(noise.astype(np.float32)).astype(np.float16)
        of_noise = dataclasses.replace(target, sketches=sketches)
        given = dataclasses.replace(evidence, target=of_noise, seed=seed)
        aim = follow(SelectionSection(), given)[1]
        unsure = all(
            getattr(aim, f"gain_{name}") < 2 * getattr(aim, f"error_{name}")
            for name in ("influence", "likeness")
        )
        if aim.share_uniform < 1:
            assert ("may be chance" in aim.why) == unsure
            found.append(unsure)
    assert any(found), "noise was followed and told as what it may be"


def test_without_any_features_all_rows_are_alike() -> None:
    evidence, _ = evidence_of()
    nothing = dataclasses.replace(
        evidence,
        features=np.zeros((400, 1), np.float32),
        valid=np.zeros(400, np.bool_),
        rows=evidence.rows[:0],
        sketches=None,
        is_new=evidence.is_new[:0],
    )
    for aim in ("auto", "likeness", "influence", "group", "round-robin"):
        places, found = follow(SelectionSection(aim=aim), nothing)
        assert (places.factors["aim"] == 1).all() and found.share_uniform == 1


def test_a_gain_that_did_not_last_loses_its_share() -> None:
    """Influence chose the wrong rows before: by the gradients of now they gain nothing."""
    evidence, is_useful = evidence_of()
    wrong = np.where(is_useful, -1, 1).astype(np.float32)
    before = Places(
        factors={"aim": np.ones(len(wrong), np.float32)},
        signals={"influence": wrong, "influence_mass": np.zeros(len(wrong), np.float32)},
    )
    spent = {"influence": Gain(gain=0.4, error=0.01, width=0.3)}
    later = dataclasses.replace(evidence, before=before, gains_before=spent)
    _, aim = follow(SelectionSection(), later)
    assert aim.lasts_influence == 0
    assert aim.share_influence == pytest.approx(0.9 * 0.05)


def test_what_was_known_of_influence_counts_by_what_is_in_reach() -> None:
    evidence, is_useful = evidence_of(measured=0.1, own=4.0)
    places, _ = follow(SelectionSection(aim="influence"), evidence)
    later, _ = evidence_of(measured=0.1, own=4.0, before=places, seed=0)
    signals = follow(SelectionSection(aim="influence"), later)[0].signals
    signal, mass = signals["influence"], signals["influence_mass"]
    assert np.isfinite(signal).mean() >= np.isfinite(places.signals["influence"]).mean()
    assert np.nanmean(signal[is_useful]) > np.nanmean(signal[~is_useful])
    assert (mass >= places.signals["influence_mass"] * 0.5 - 1e-6).all()


@pytest.mark.parametrize("num_target", [1, 2, 3])
def test_a_tiny_target_set_works(num_target: int) -> None:
    evidence, is_useful = evidence_of(num_target=num_target, own=1.0)
    places, aim = follow(SelectionSection(), evidence)
    place = places.factors["aim"]
    assert place[is_useful].mean() > 2 * place[~is_useful].mean(), aim.why


def test_barred_rows_are_not_chosen() -> None:
    barred = np.arange(400) < 8
    places, _ = follow(SelectionSection(), evidence_of(barred=barred)[0])
    assert places.factors["aim"][barred] == pytest.approx(np.full(8, 0.1))
    assert places.factors["aim"].max() > 1


@pytest.mark.parametrize("num_groups", [2, 4])
def test_the_gain_of_groups_is_told_as_fresh_rows_show_it(num_groups: int) -> None:
    """A row's own part in its group's mean must not decide which of the group's rows judge it."""
    random = np.random.default_rng(0)
    told, fresh = [], []
    for _ in range(40):
        groups = random.integers(0, num_groups, 300).astype(np.int32)
        worths = [
            (0.1 * (groups == 0) + 0.2 * random.normal(size=300)).astype(np.float32)
            for _ in range(2)
        ]
        signal = group_means_across(groups, worths[0], seed=0)
        told.append(choice_gain(signal, worths[0], 0.3)[0])
        fresh.append(choice_gain(signal, worths[1], 0.3)[0])
    assert np.mean(told) == pytest.approx(np.mean(fresh), abs=0.012)
    assert np.mean(told) > 0.02


def test_the_choice_of_rows_does_not_depend_on_their_order() -> None:
    signal = np.array([1, 2, 2, 2, 0], np.float32)
    known = np.ones(5, np.bool_)
    place = chosen(signal, known, 0.4)
    np.testing.assert_allclose(place, [0, 5 / 3, 5 / 3, 5 / 3, 0], rtol=1e-6)
    moved = np.array([3, 0, 4, 2, 1])
    np.testing.assert_array_equal(chosen(signal[moved], known, 0.4), place[moved])
    np.testing.assert_allclose(chosen(signal, known, 0.8), [1.25, 1.25, 1.25, 1.25, 0])
    np.testing.assert_allclose(chosen(signal, known & (signal != 1), 0.75)[1:], [4 / 3] * 3 + [0])
    assert not chosen(signal, ~known, 0.4).any()


def test_each_target_sample_takes_its_nearest_unused_row_in_turn() -> None:
    features = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [-1, -1]], np.float32)
    targets = np.array([[1, 0.0], [0, 1.0]], np.float32)
    allowed = np.array([True, True, True, True, True])
    unused = np.zeros(5, np.int64)
    found = in_turn(features, allowed, targets, unused)
    assert set(np.argsort(-found, kind="stable")[:2]) == {0, 2}
    used = np.array([1, 0, 1, 0, 0])
    found = in_turn(features, allowed, targets, used)
    assert set(np.argsort(-found, kind="stable")[:2]) == {1, 3}
    assert np.isnan(in_turn(features, allowed & (np.arange(5) > 0), targets, unused)[0])


# --- dose and copies ---


def test_the_dose_falls_with_each_use() -> None:
    state = dataclasses.replace(DrawState.none(3), uses=np.array([0, 1, 3], np.int32))
    np.testing.assert_allclose(dose(state, 0.6, 3), [1, 0.6, 0.216], rtol=1e-6)
    assert (dose(state, 1.0, 3) == 1).all() and (dose(None, 0.6, 3) == 1).all()


def copied_world() -> tuple[World, SparseGraph]:
    """Twelve rows: three of one content, and two chains of edges above and below the bound."""
    world = World.make(n=12)
    samples = dataclasses.replace(
        world.samples,
        groups=np.zeros(12, np.int32),
        content_hashes=Texts.of(["a", "a", "a", *"bcdefghij"]),
    )
    edges = {(0, 1): 0.99, (3, 4): 0.97, (4, 5): 0.96, (6, 7): 0.85, (2, 8): 0.98}
    both = edges | {(b, a): w for (a, b), w in edges.items()}
    heads, tails = np.array(list(both)).T
    dense = sparse.csr_array((np.array(list(both.values())), (heads, tails)), shape=(12, 12))
    graph = SparseGraph(
        indptr=dense.indptr.astype(np.int64),
        indices=dense.indices.astype(np.int32),
        weights=dense.data.astype(np.float32),
    )
    return dataclasses.replace(world, samples=samples), graph


def test_pairs_that_may_be_copies_are_of_one_group_and_other_content() -> None:
    world, graph = copied_world()
    counted = np.arange(12) != 2
    assert alike(graph, world.samples, counted).T.tolist() == [[3, 4], [4, 5]]
    apart = dataclasses.replace(world.samples, groups=np.array([0] * 4 + [1] * 8, np.int32))
    assert alike(graph, apart, np.ones(12, np.bool_)).T.tolist() == [[4, 5]]
    assert alike(random_graph(5, 0), make_samples(5), np.zeros(5, np.bool_)).shape == (2, 0)


def test_copies_share_one_place() -> None:
    world, graph = copied_world()
    counted, other = np.arange(12) != 2, np.full(12, -1)
    found = copies(world.samples, counted, alike(graph, world.samples, counted), other, other)
    # the third copy is not trained on; three are joined by way of the middle one
    assert found.tolist() == [0, 0, -1, 3, 3, 3, *[-1] * 6]
    places = one_place(found, counted)
    np.testing.assert_allclose(places[:6], [0.5, 0.5, 1, 1 / 3, 1 / 3, 1 / 3])
    assert (places[6:] == 1).all()
    # what one of them leaves is the others'
    np.testing.assert_allclose(one_place(found, counted & (np.arange(12) != 3))[3:6], [1, 0.5, 0.5])
    none = np.zeros((2, 0), np.int64)
    assert (copies(world.samples, counted, none, other, other)[3:] == -1).all()
    same = dataclasses.replace(world.samples, content_hashes=Texts.of(["x"] * 12))
    assert (copies(same, np.ones(12, np.bool_), none, other, other) == 0).all()
    assert one_place(np.zeros(0, np.int64), np.zeros(0, np.bool_)).shape == (0,)


def test_who_responds_alike_at_some_length_shares_a_place() -> None:
    world, _ = copied_world()
    counted, none = np.arange(12) != 2, np.zeros((2, 0), np.int64)
    responses = np.array([90, 5, 7, 5, 91, 5, 7, 7, 92, 93, 94, 95])
    lengths = np.full(12, 10, np.int32)
    samples = dataclasses.replace(world.samples, num_response_tokens=lengths)
    found = copies(samples, counted, none, responses, np.arange(12))
    # rows 0 and 1 are of the same content
    assert found.tolist() == [0, 0, -1, 0, -1, 0, 6, 6, -1, -1, -1, -1]
    apart = dataclasses.replace(samples, groups=np.arange(12, dtype=np.int32))
    assert (copies(apart, counted, none, responses, np.arange(12))[3:] == -1).all()
    short = dataclasses.replace(samples, num_response_tokens=lengths - 1)
    assert (copies(short, counted, none, responses, np.arange(12))[3:] == -1).all()


def test_answers_that_most_rows_of_a_group_have_are_labels() -> None:
    """However long they are, and also where only some are long; near-copies count once."""
    groups, of_row = np.repeat(np.arange(2, dtype=np.int32), 10), np.arange(20)
    labels, refusals = [1, 2, 1, 2, 1, 2, 3, 4, 5, 6], [1, 1, 1, *range(10, 17)]
    responses = np.array([*labels, *refusals])
    long = np.full(20, 12, np.int32)
    found = respond_alike(responses, groups, long, of_row, of_row)
    assert (found[:10] == -1).all()
    assert found[10] == found[11] == found[12] >= 0 and len(set(found[12:].tolist())) == 8
    some = np.where(np.arange(20) % 2, 3, long).astype(np.int32)
    assert (respond_alike(responses, groups, some, of_row, of_row)[:10] == -1).all()
    # six rows of one response are three that say otherwise the same
    twice = np.array([0, 0, 1, 1, 2, 2, *range(3, 17)])
    responses = np.array([1, 1, 1, 1, 1, 1, *range(20, 24), *refusals])
    found = respond_alike(responses, groups, long, of_row, twice)
    assert len(set(found[:6].tolist())) == 1 and found[0] >= 0
    assert (respond_alike(responses, groups, long, of_row, of_row)[:10] == -1).all()
    # twelve of one template in one group with as many others, and one refusal among each
    groups, of_row = np.zeros(28, np.int32), np.arange(28)
    responses = np.array([*[1, 2] * 5, 1, 9, 9, *range(30, 45)])
    openings = np.array([*[7] * 12, *range(40, 56)])
    long = np.full(28, 12, np.int32)
    found = respond_alike(responses, groups, long, openings, of_row)
    assert (found[:12] == -1).all() and len(set(found[12:].tolist())) == 16
    assert len(set(respond_alike(responses, groups, long, of_row, of_row)[:11].tolist())) == 2
    # the last one says what the first one says, and is the only one that begins so
    both = np.append(of_row[:-1], 0)
    of_both = np.append(responses[:-1], 1)
    assert len(respond_alike(of_both, groups, long, openings, both)) == 28
    groups, of_row, long = groups[:20], of_row[:20], long[:20]
    unknown = respond_alike(np.full(20, -1), groups, long, of_row, of_row)
    assert (unknown == -1).all() and len(
        respond_alike(unknown[:0], groups[:0], long[:0], *[unknown[:0]] * 2)
    ) == 0


# --- the target's course ---


def losses_at(step: int, *losses: float) -> TargetLosses:
    return TargetLosses(step=step, losses=np.array(losses))


def test_a_loss_that_rises_for_sure_is_told() -> None:
    course = Course(earlier=[losses_at(10, 3, 2, 4, 3), losses_at(20, 2.5, 1.5, 3.5, 2.5)])
    up = losses_at(30, 2.7, 1.72, 3.69, 2.71)
    assert course.best_step(up) == 20
    told = course.has_turned(up)
    assert told is not None and "lowest at step 20" in told and "0.205" in told
    noise = losses_at(30, 3.5, 0.6, 4.4, 1.7)
    assert course.has_turned(noise) is None
    down = losses_at(30, 2.4, 1.4, 3.4, 2.4)
    assert course.best_step(down) == 30 and course.has_turned(down) is None


def test_what_all_checkpoints_measured_is_compared() -> None:
    """A budget may pay for fewer target samples at one checkpoint than at another."""
    course = Course(earlier=[losses_at(10, 1, 1.1, 9), losses_at(20, 1.5, 1.6)])
    assert course.has_turned(losses_at(30, 2, 2.2, 0, 0)) is None, "two of four are too few"
    many = [Course(earlier=[losses_at(10, *np.linspace(1, 2, 12)), losses_at(20, *[1.95] * 9)])]
    now = losses_at(30, *np.linspace(2, 3, 12) + 0.1 * np.arange(12) % 0.3)
    told = many[0].has_turned(now)
    assert told is not None and "step 10" in told
    assert many[0].best_step(now) == 10
    nan = losses_at(20, *np.full(12, np.nan))
    assert Course(earlier=[losses_at(10, *np.linspace(1, 2, 12))]).best_step(nan) == 20
    lone = Course(earlier=[losses_at(10, 1.0)])
    assert lone.has_turned(losses_at(20, 2.0)) is None  # one sample tells no error


def test_uses_and_steps_left() -> None:
    place = np.array([0.1, 0.1, 3.1, 3.1], np.float32)
    state = dataclasses.replace(DrawState.none(4), uses=np.array([9, 9, 2, 1], np.int32))
    assert mean_uses(place, 0.1, state) == pytest.approx(1.5)
    assert mean_uses(place, 0.1, None) == 0
    assert steps_left(100, 1.5, 0.9, 8) == pytest.approx(2.5 * 100 / (0.9 * 8))
    assert steps_left(100, 5.0, 0.9, 8) == 0
    assert math.isnan(steps_left(100, 1.0, 0.9, None))
