"""Propagation against minimisers and slow twins, on drifts of known kind, and on nothing at all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from gracekit.audit import rank_correlation
from gracekit.graph import build_index, effective_rank, symmetric, unit_features
from gracekit.propagation import Propagated, estimate_features, propagate_scores
from gracekit.propagation.diffusion import Paths, spread, transition
from gracekit.propagation.feature_maps import row_cosines
from gracekit.propagation.feature_spread import restore_spread
from gracekit.propagation.gates import folds, share_that_helps, simplest_good
from gracekit.propagation.kernel import PENALTIES, Kernel
from gracekit.propagation.levels import fit_level
from gracekit.recipe import GraphSection, PropagationSection
from gracekit.types import Bool, Float32, Float64, Int32, Rows, SparseGraph

SETTINGS = PropagationSection()
N = 2000


def dense_weights(graph: SparseGraph) -> Float64:
    dense = np.zeros((graph.num_nodes, graph.num_nodes))
    for row in range(graph.num_nodes):
        edges = slice(graph.indptr[row], graph.indptr[row + 1])
        dense[row, graph.indices[edges]] = graph.weights[edges]
    return dense


def random_graph(n: int, rng: np.random.Generator) -> SparseGraph:
    weights = np.triu(np.where(rng.random((n, n)) < 3 / n, rng.uniform(0.1, 1, (n, n)), 0), 1)
    weights = weights + weights.T
    rows, columns = np.nonzero(weights)
    return SparseGraph(
        indptr=np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]),
        indices=columns.astype(np.int32),
        weights=weights[rows, columns].astype(np.float32),
    )


@dataclass(frozen=True)
class World:
    """Clustered features, their graph, and scores of cluster + own part."""

    features: Float32
    cluster: NDArray[np.int64]
    graph: SparseGraph
    old: Float32
    directions: Float32


@cache
def world(n: int = N) -> World:
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, n // 40, n)
    centres = rng.normal(size=(n // 40, 24))
    features = (centres[cluster] + 0.4 * rng.normal(size=(n, 24)) + 5).astype(np.float32)
    everyone = np.ones(n, bool)
    unit = unit_features(features, everyone)
    index = build_index(unit, GraphSection(backend="exact"), valid=everyone, seed=0)
    old = rng.normal(size=n // 40)[cluster] + 0.7 * rng.normal(size=n)
    return World(features, cluster, symmetric(index.graph), old.astype(np.float32), unit)


def propagate(
    rule: str,
    new: Float32,
    rows: Rows,
    *,
    old: Float32 | None = None,
    covariates: Float32 | None = None,
    usable: Bool | None = None,
    groups: Int32 | None = None,
    seed: int = 0,
) -> Propagated:
    """One score named `s` over the world's graph; `new` [n] holds the truth."""
    n = len(new)
    return propagate_scores(
        rule,
        old={"s": world(n).old if old is None else old},
        measured_rows=rows,
        new={"s": new[rows]},
        covariates=np.zeros((n, 0), np.float32) if covariates is None else covariates,
        directions=world(n).directions,
        graph=world(n).graph,
        usable=np.ones(n, bool) if usable is None else usable,
        settings=SETTINGS,
        seed=seed,
        groups=groups,
    )


def error(values: Float32, truth: Float32, rows: Rows) -> float:
    """Mean squared error on the rows that were not measured."""
    rest = np.setdiff1d(np.arange(len(truth)), rows)
    return float(((values[rest] - truth[rest]) ** 2).mean())


def sample(rng: np.random.Generator, m: int, n: int = N) -> Rows:
    return rng.choice(n, m, replace=False)


# Parts


def test_spread_against_dense_powers() -> None:
    rng = np.random.default_rng(0)
    n, rows = 30, np.array([2, 5, 7, 20])
    graph = random_graph(n, rng)
    usable = rng.random(n) < 0.9
    values = rng.normal(size=(4, 3)).astype(np.float32)
    dense = dense_weights(graph) * usable[None, :]
    total = dense.sum(axis=1, keepdims=True)
    dense = np.divide(dense, total, out=np.zeros_like(dense), where=total > 0)
    walk = transition(graph, usable)
    np.testing.assert_allclose(walk.toarray(), dense, atol=1e-6)

    arrived = spread(walk, rows, values, damping=0.7, hops=(1, 4))
    for hops in (1, 4):
        powers = [0.7**t * np.linalg.matrix_power(dense, t) for t in range(1, hops + 1)]
        operator = np.sum(powers, axis=0)
        mass = operator[:, rows].sum(axis=1)
        expected = (operator[:, rows] @ values) / (mass + 0.05)[:, None]
        np.testing.assert_allclose(arrived[hops].mass, mass, atol=1e-5)
        np.testing.assert_allclose(arrived[hops].values, expected, atol=1e-4)


@given(n=st.integers(1, 60), num_asked=st.integers(0, 60), seed=st.integers(0, 99))
def test_paths_to_some_rows_have_the_bytes_of_a_walk_over_all(
    n: int, num_asked: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    walk = transition(random_graph(n, rng), rng.random(n) < 0.8)
    rows = rng.permutation(n)[: rng.integers(1, n + 1)]
    values = rng.standard_normal((len(rows), 3), np.float32)
    asked = rng.permutation(n)[:num_asked]
    for hops in ((1,), (1, 3), (2, 5)):
        everywhere = spread(walk, rows, values, damping=0.7, hops=hops)
        of_all = Paths(walk, rows, None, hops=hops).spread(values, damping=0.7)
        of_some = Paths(walk, rows, asked, hops=hops).spread(values, damping=0.7)
        for hop, slow in everywhere.items():
            np.testing.assert_array_equal(of_all[hop].values, slow.values)
            np.testing.assert_array_equal(of_some[hop].values, slow.values[asked])
            np.testing.assert_array_equal(of_some[hop].mass, slow.mass[asked])


def kernel_world() -> tuple[Kernel, Float64, Rows, Float64, NDArray[np.int64]]:
    """A kernel of 40 random rows, its matrix [n, n] by the formula, inputs as it sees them."""
    n, m, rng = 90, 40, np.random.default_rng(0)
    inputs = (rng.normal(size=(n, 4)) * [1, 5, 0.1, 0] + [0, 3, 0, 7]).astype(np.float32)
    directions = rng.normal(size=(n, 6))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions[3] = 0
    rows, fold = rng.permutation(n)[:m], np.arange(m) % 4
    kernel = Kernel(inputs, directions.astype(np.float32), rows, fold, rng)
    seen = inputs[rows][:, :3].astype(np.float64)
    x = np.clip(inputs[:, :3], seen.min(axis=0), seen.max(axis=0))
    x = (x - seen.mean(axis=0)) / seen.std(axis=0)
    among = x / np.sqrt(3)
    dense = np.exp(-0.5 * cdist(among, among)) + 0.3 * among @ among.T
    return kernel, dense + np.exp(-cdist(directions, directions)), rows, x, fold


def line(x: Float64, change: Float64) -> Ridge:
    """One row more says that there is no slope: a penalty of 1 on it."""
    return Ridge(alpha=1.0).fit(x[:, None], change)


def test_kernel_against_kernel_ridge() -> None:
    kernel, dense, rows, x, fold = kernel_world()
    change, own = np.random.default_rng(1).normal(size=40) + x[rows, 1], 1
    for without in (None, 1):
        kept = fold != without
        of_line = line(x[rows[kept], own], change[kept])
        left = change[kept] - of_line.predict(x[rows[kept], own][:, None])
        of_rest = KernelRidge(alpha=0.3, kernel="precomputed")
        of_rest.fit(dense[np.ix_(rows[kept], rows[kept])], left)
        expected = of_line.predict(x[:, own][:, None]) + of_rest.predict(dense[:, rows[kept]])
        fit = kernel.fit(change, own, 0.3, without=without)
        np.testing.assert_allclose(kernel.at_measured(fit), expected[rows], atol=2e-3)
        if without is None:
            (predicted,), near = kernel.everywhere([fit])
            np.testing.assert_allclose(predicted, expected, atol=2e-3)
            np.testing.assert_allclose(near[rows], 1, atol=2e-3)


def test_penalty_has_the_least_leave_one_out_error() -> None:
    kernel, dense, rows, x, _ = kernel_world()
    among, smooth = dense[np.ix_(rows, rows)], np.linalg.cholesky(dense + 1e-9 * np.eye(90))
    chosen = []
    for noise in (0.01, 1.0, 5.0):
        rng = np.random.default_rng(1)
        change = (smooth @ rng.normal(size=90))[rows] + noise * rng.normal(size=40)
        left = change - line(x[rows, 0], change).predict(x[rows, 0][:, None])
        errors = {}
        for penalty in PENALTIES:
            misses = []
            for i in range(40):
                kept = np.arange(40) != i
                system = among[np.ix_(kept, kept)] + penalty * np.eye(39)
                misses.append(left[i] - among[i, kept] @ np.linalg.solve(system, left[kept]))
            errors[penalty] = float(np.mean(np.square(misses)))
        chosen.append(kernel.penalty_for(change, 0))
        assert errors[chosen[-1]] < 1.001 * min(errors.values())
    assert chosen == sorted(chosen) and chosen[0] < chosen[-1]


def test_landmarks_come_near_to_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows far from each other, whose own part no landmark spans, must not be overfitted."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(N, 64)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rows, fold = sample(rng, 800), np.zeros(800, np.int64)
    change = directions[rows, 0] * 4 + rng.normal(size=800)
    predicted = {}
    for most in (800, 700, 400):
        monkeypatch.setattr("gracekit.propagation.kernel._MOST_LANDMARKS", most)
        monkeypatch.setattr("gracekit.propagation.kernel._LEAST_LANDMARKS", most)
        kernel = Kernel(world().old[:, None], directions, rows, fold, rng)
        (predicted[most],), _ = kernel.everywhere([kernel.fit(change, 0, 0.03)])
    rest = np.setdiff1d(np.arange(N), rows)
    miss = {k: np.square(each - 4 * directions[:, 0])[rest].mean() for k, each in predicted.items()}
    assert miss[700] < 1.1 * miss[800] and miss[400] < 1.4 * miss[800], miss


def test_gate_leaves_the_simple_only_for_the_clearly_better() -> None:
    rng = np.random.default_rng(0)
    loss = rng.random(200)
    assert simplest_good({"simple": loss, "fancy": loss}) == "simple"
    assert simplest_good({"simple": loss, "fancy": loss + rng.normal(size=200) * 0.1}) == "simple"
    assert simplest_good({"simple": loss, "fancy": loss - 0.1}) == "fancy"
    assert simplest_good({"simple": loss + 0.2, "fancy": loss, "fancier": loss}) == "fancy"
    assert share_that_helps(np.ones(3), np.full(3, 0.4)) == pytest.approx(0.4)
    assert share_that_helps(np.ones(3), -np.ones(3)) == 0
    assert share_that_helps(np.zeros(3), np.ones(3)) == 0
    assert sorted(np.bincount(folds(13, 5, rng))) == [2, 2, 3, 3, 3]


# Scores, rule by rule


@given(seed=st.integers(0, 999), mu=st.floats(0, 4))
def test_grace_minimises_its_objective(seed: int, mu: float) -> None:
    n, rng = 24, np.random.default_rng(seed)
    graph = random_graph(n, rng)
    old = rng.normal(size=n).astype(np.float32)
    rows = rng.permutation(n)[:12]
    new = rng.normal(size=12).astype(np.float32)
    result = propagate_scores(
        "grace",
        old={"s": old},
        measured_rows=rows,
        new={"s": new},
        covariates=np.zeros((n, 0), np.float32),
        directions=np.zeros((n, 1), np.float32),
        graph=graph,
        usable=np.ones(n, bool),
        settings=PropagationSection(mu=mu, min_measured=10),
        seed=0,
    )
    alpha = dense_weights(graph)
    measured = np.zeros(n, bool)
    measured[rows] = True
    alpha[:, ~measured] = 0
    total = alpha.sum(axis=1, keepdims=True)
    alpha = np.divide(alpha, total, out=alpha, where=total > 0)
    z_new = old.astype(np.float64)
    z_new[rows] = new

    def objective(free: Float64) -> float:
        z = z_new.copy()
        z[~measured] = free
        stay = (z - old) ** 2
        pull = (alpha * (z[:, None] - z_new[None, :]) ** 2).sum(axis=1)
        return float((0.5 * stay + 0.5 * mu * pull)[~measured].sum())

    best = minimize(objective, old[~measured].astype(np.float64), options={"gtol": 1e-7}).x
    np.testing.assert_allclose(result.values["s"][~measured], best, atol=1e-4)
    np.testing.assert_array_equal(result.values["s"][rows], new)


def test_none_leaves_rows_as_they_are() -> None:
    rng = np.random.default_rng(0)
    old, new = world().old, world().old + rng.normal(size=N).astype(np.float32)
    rows = sample(rng, 300)
    result = propagate("none", new, rows)
    rest = np.setdiff1d(np.arange(N), rows)
    np.testing.assert_array_equal(result.values["s"][rest], old[rest])
    np.testing.assert_array_equal(result.values["s"][rows], new[rows])
    assert (result.confidence["s"][rows] == 1).all() and (result.confidence["s"][rest] < 1).all()


def test_below_min_measured_only_a_common_shift_is_fitted() -> None:
    rng = np.random.default_rng(0)
    new = world().old + 3
    for m, rule in ((SETTINGS.min_measured - 1, "shift"), (SETTINGS.min_measured, "gated")):
        result = propagate("gated", new, sample(rng, m))
        assert result.outcome.rule == rule and result.outcome.scores["s"].used[:5] == "shift"
        assert result.outcome.scores["s"].shift == pytest.approx(3, abs=1e-6)
        assert error(result.values["s"], new, sample(rng, 0)) < 1e-6
    by_itself = world().old + rng.normal(size=N).astype(np.float32)
    gates = []
    for m in (5, 8, 50):
        rows = sample(rng, m)
        for truth in (new, by_itself):
            result = propagate("gated", truth, rows)
            gates.append(result.outcome.scores["s"].used.partition("+")[0])
            if gates[-1] == "stale":
                rest = np.setdiff1d(np.arange(N), rows)
                np.testing.assert_array_equal(result.values["s"][rest], world().old[rest])
    assert gates[0::2] == ["stale", "shift", "shift"] and gates[1] == "stale"
    assert set(gates[3::2]) <= {"stale", "shift"}


@pytest.mark.parametrize("m", [60, 200])
def test_groups_move_by_shifts_of_their_own(m: int) -> None:
    """The error that is left is that of each row's own noise, and of the means of few rows."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 4, N).astype(np.int32)
    noise = 0.3 * rng.normal(size=N)
    new = (world().old + np.array([1, -1, 0.4, 0])[groups] + noise).astype(np.float32)
    result = propagate("gated", new, sample(rng, 400), groups=groups)
    assert result.outcome.scores["s"].num_group_shifts == 4
    rest = np.abs(result.values["s"] - new) > 0
    assert ((result.values["s"] - new)[rest] ** 2).mean() < 1.1 * 0.3**2
    same = fit_level(noise[:m], world().old[:m].astype(np.float64), groups[:m], 4)
    assert np.abs(same(world().old.astype(np.float64), groups)).max() < 0.1


@given(st.integers(0, 9999), st.sampled_from([(40, 3), (200, 8), (6, 2), (12, 12)]))
def test_levels_against_a_plain_twin(seed: int, size: tuple[int, int]) -> None:
    m, num_groups = size
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, num_groups, m).astype(np.int32)
    change = rng.normal(size=num_groups)[groups] * rng.choice([0, 1]) + rng.normal(size=m)
    old = rng.normal(size=m) * rng.choice([0, 1, 3])
    change -= 0.5 * old * rng.choice([0, 1])
    found = fit_level(change, old, groups, num_groups)
    alone = fit_level(change, old, groups, num_groups, by_group=False)
    assert alone.common == found.common and not alone.of_group.any()
    if m < 8:
        assert found.is_zero
        return
    square_t = change.mean() ** 2 / (change.var(ddof=1) / m)
    assert found.common == pytest.approx(change.mean() * max(0, 1 - 1 / square_t))
    members = {g: change[groups == g] for g in range(num_groups) if (groups == g).sum() >= 5}
    expected = dict.fromkeys(range(num_groups), 0.0)
    if len(members) >= 2:
        every = np.concatenate(list(members.values()))
        n, k = len(every), len(members)
        within = sum(((x - x.mean()) ** 2).sum() for x in members.values()) / (n - k)
        around = sum(len(x) * (x.mean() - every.mean()) ** 2 for x in members.values())
        between = around - (k - 1) * within
        between /= n - sum(len(x) ** 2 for x in members.values()) / n
        for g, x in members.items():
            share = between / (between + within / len(x)) if between > 0 else 0
            expected[g] = share * (x.mean() - every.mean())
    assert found.of_group == pytest.approx([expected[g] for g in range(num_groups)])
    left = change - found.common - found.of_group[groups]
    if m < 30 or old.std() == 0:
        assert found.slope == 0
        return
    z = (old - old.mean()) / old.std()
    slope = (z * left).sum() / ((z**2).sum() + 1)
    variance = ((left - left.mean() - slope * z) ** 2).sum() / (m - 2) / (z**2).sum()
    assert found.slope == pytest.approx(slope * max(0, 1 - variance / slope**2))
    by_hand = found.common + found.of_group[groups] + found.slope * z
    assert found(old, groups) == pytest.approx(by_hand)


@pytest.mark.parametrize("m", [100, 400])
def test_gated_is_harmless_when_drift_is_noise(m: int) -> None:
    worst, total, num_changed = 0.0, 0.0, 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        heavy = rng.standard_t(3, N) if seed % 2 else rng.normal(size=N)
        new = (world().old + 0.5 * heavy).astype(np.float32)
        rows = sample(rng, m)
        covariates = rng.normal(size=(N, 8)).astype(np.float32)
        result = propagate("gated", new, rows, covariates=covariates, seed=seed)
        ratio = error(result.values["s"], new, rows) / error(world().old, new, rows)
        worst, total = max(worst, ratio), total + ratio
        gate = result.outcome.scores["s"]
        num_changed += gate.used not in ("stale", "shift", "shift+scale")
        assert abs(gate.shift) < 3 * (new - world().old).std() / np.sqrt(m)
        if gate.used == "stale":
            np.testing.assert_array_equal(
                np.delete(result.values["s"], rows), np.delete(world().old, rows)
            )
    assert total / 25 < 1.007 and worst < 1.08 and num_changed <= 3


@pytest.mark.parametrize(
    "drift, most",
    [("global", 0.06), ("shrink", 0.12), ("cluster", 0.35), ("mixed", 0.35), ("covariate", 0.2)],
)
def test_gated_recovers_drift(drift: str, most: float) -> None:
    """Share of the stale squared error that is left, 10 % measured; own noise is in it."""
    rng = np.random.default_rng(1)
    old, cluster = world().old, world().cluster
    covariates = np.column_stack([rng.normal(size=N), rng.integers(0, 2, N)]).astype(np.float32)
    by_cluster = 0.5 * rng.normal(size=cluster.max() + 1)[cluster]
    change = {
        "global": -0.5 + 0 * old,
        "shrink": -0.5 * old,
        "cluster": by_cluster,
        "mixed": -0.5 + by_cluster - 0.2 * old,
        "covariate": 0.5 * covariates[:, 0] - 0.5 * covariates[:, 1],
    }[drift]
    new = (old + change + 0.1 * rng.normal(size=N)).astype(np.float32)
    rows = sample(rng, N // 10)
    result = propagate("gated", new, rows, covariates=covariates)
    assert error(result.values["s"], new, rows) < most * error(old, new, rows)
    rest = np.setdiff1d(np.arange(N), rows)
    improved = rank_correlation(result.values["s"][rest], new[rest])
    assert improved > rank_correlation(old[rest], new[rest]) - 0.002
    assert "+diffusion" in result.outcome.scores["s"].used or "cluster" not in drift


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("rule", ["gated", "grace", "none"])
def test_confidence_is_the_error_to_expect(rule: str, noise: float) -> None:
    rng = np.random.default_rng(2)
    by_cluster = 0.6 * rng.normal(size=world().cluster.max() + 1)[world().cluster]
    new = (world().old + by_cluster + noise * rng.normal(size=N)).astype(np.float32)
    rows = sample(rng, 300)
    result = propagate(rule, new, rows)
    rest = np.setdiff1d(np.arange(N), rows)
    true = 1 - np.sqrt(error(result.values["s"], new, rows)) / new.std()
    confidence = result.confidence["s"]
    assert confidence.min() >= 0 and (confidence[rows] == 1).all()
    assert confidence[rest].mean() == pytest.approx(max(true, 0), abs=0.08)


def test_confidence_grows_with_what_the_diffusion_brings() -> None:
    rng = np.random.default_rng(3)
    by_cluster = rng.normal(size=world().cluster.max() + 1)[world().cluster]
    new = (world().old + by_cluster).astype(np.float32)
    rows = sample(rng, 120)
    result = propagate("gated", new, rows)
    rest = np.setdiff1d(np.arange(N), rows)
    miss = np.abs(result.values["s"] - new)[rest]
    assert rank_correlation(result.confidence["s"][rest], -miss) > 0.1


def test_scores_help_each_other() -> None:
    """The kernel sees all old scores: one of them foretells the change of the other."""
    rng = np.random.default_rng(0)
    old = {"a": world().old, "b": rng.normal(size=N).astype(np.float32)}
    truth = {"a": (old["a"] + old["b"]).astype(np.float32), "b": old["b"] + np.float32(1)}
    rows = sample(rng, 200)
    result = propagate_scores(
        "gated",
        old=old,
        measured_rows=rows,
        new={name: score[rows] for name, score in truth.items()},
        covariates=np.zeros((N, 0), np.float32),
        directions=world().directions,
        graph=world().graph,
        usable=np.ones(N, bool),
        settings=SETTINGS,
        seed=0,
    )
    assert result.outcome.scores["a"].used.startswith("kernel")
    assert error(result.values["a"], truth["a"], rows) < 0.05
    assert error(result.values["b"], truth["b"], rows) < 1e-6


def test_a_chain_of_refreshes_and_its_audits() -> None:
    """Far better than stale after ten refreshes, and the probe tells the truth about the rest."""
    rng = np.random.default_rng(0)
    cluster = world().cluster
    truth = world().old.astype(np.float64)
    held = world().old
    for step in range(10):
        change = 0.3 * rng.normal(size=cluster.max() + 1)[cluster] + 0.15 * rng.normal(size=N)
        truth = 0.95 * truth - 0.1 + change
        new = truth.astype(np.float32)
        rows = sample(rng, 300)
        probe, others = rows[:100], rows[100:]
        predicted = propagate("gated", new, others, old=held, seed=step).values["s"]
        honest = rank_correlation(predicted[probe], new[probe])
        rest = np.setdiff1d(np.arange(N), rows)
        assert honest == pytest.approx(rank_correlation(predicted[rest], new[rest]), abs=0.12)
        held = propagate("gated", new, rows, old=held, seed=step).values["s"]
    rest = np.setdiff1d(np.arange(N), rows)
    assert rank_correlation(held[rest], new[rest]) > 0.85
    assert rank_correlation(world().old[rest], new[rest]) < 0.75


# Degenerate input


@pytest.mark.parametrize("rule", ["gated", "grace", "none"])
@given(
    n=st.integers(1, 60),
    share=st.floats(0, 1),
    kind=st.sampled_from(["random", "constant", "huge"]),
    edges=st.booleans(),
    seed=st.integers(0, 999),
)
def test_any_input_gives_sane_output(
    rule: str, n: int, share: float, kind: str, edges: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scale = {"random": 1.0, "constant": 0.0, "huge": 1e6}[kind]
    graph = random_graph(n, rng)
    if not edges:
        graph = SparseGraph(
            indptr=np.zeros(n + 1, np.int64),
            indices=np.zeros(0, np.int32),
            weights=np.zeros(0, np.float32),
        )
    usable = rng.random(n) < 0.8
    old = (scale * rng.normal(size=n)).astype(np.float32)
    old[~usable] = np.nan
    rows = np.flatnonzero(rng.random(n) < share)
    new = (scale * rng.normal(size=len(rows))).astype(np.float32)
    new[rng.random(len(rows)) < 0.1] = np.nan
    covariates = np.ones((n, 2), np.float32)
    covariates[rng.random((n, 2)) < 0.1] = np.nan
    result = propagate_scores(
        rule,
        old={"s": old},
        measured_rows=rows,
        new={"s": new},
        covariates=covariates,
        directions=rng.choice([0, 1], (n, 1)).astype(np.float32),
        graph=graph,
        usable=usable,
        settings=PropagationSection(min_measured=10),
        seed=seed,
    )
    values, confidence = result.values["s"], result.confidence["s"]
    assert values.dtype == confidence.dtype == np.float32 and len(values) == len(confidence) == n
    np.testing.assert_array_equal(values[rows], new)
    measured = np.zeros(n, bool)
    measured[rows] = True
    assert np.isfinite(values[usable & ~measured]).all()
    assert np.isnan(values[~usable & ~measured]).all()
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert (confidence[np.isnan(values)] == 0).all()
    assert (confidence[measured & np.isfinite(values)] == 1).all()


# Features


def carry(new: Float32, rows: Rows, **changes: object) -> tuple[Float32, str]:
    arguments = {
        "old": world().features,
        "measured_rows": rows,
        "new": new[rows],
        "graph": world().graph,
        "usable": np.ones(N, bool),
        "settings": SETTINGS,
        "seed": 0,
    } | changes
    carried = estimate_features(**arguments).carried()  # type: ignore[arg-type]
    return np.asarray(carried.features, np.float32), carried.outcome.used


def likeness(features: Float32, new: Float32, rows: Rows) -> float:
    rest = np.setdiff1d(np.arange(N), rows)
    centre = new[rows].mean(axis=0)
    return float(row_cosines(features[rest] - centre, new[rest] - centre).mean())


@pytest.mark.parametrize(
    "drift, m, used, least",
    [
        ("linear", 200, "ridge", 0.99),
        ("linear", 100, "ridge", 0.95),
        ("shift", 200, "shift", 0.99),
        ("cluster", 200, "+diffusion", 0.95),
    ],
)
def test_features_follow_drift(drift: str, m: int, used: str, least: float) -> None:
    rng = np.random.default_rng(0)
    old, d = world().features, world().features.shape[1]
    new = {
        "linear": old @ (np.eye(d) + 0.5 * rng.normal(size=(d, d)) / np.sqrt(d)) + 1,
        "shift": old + 2 * rng.normal(size=d),
        "cluster": old + 0.8 * rng.normal(size=(world().cluster.max() + 1, d))[world().cluster],
    }[drift].astype(np.float32)
    rows = sample(rng, m)
    features, way = carry(new, rows)
    assert used in way
    assert likeness(features, new, rows) > max(least, likeness(old, new, rows))
    np.testing.assert_array_equal(features[rows], new[rows])


def test_few_rows_for_many_features() -> None:
    """Fewer measured rows than features: the dual form, here against the primal one."""
    rng = np.random.default_rng(0)
    wide = np.hstack([world().features, 0.01 * rng.normal(size=(N, 200))]).astype(np.float32)
    matrix = np.eye(224) + 0.3 * rng.normal(size=(224, 224)) / np.sqrt(24)
    new = (wide @ matrix).astype(np.float32)
    few, many = sample(rng, 120), sample(rng, 600)
    features, way = carry(new, few, old=wide)
    assert way.startswith("ridge") and likeness(features, new, few) > likeness(wide, new, few)
    assert likeness(carry(new, many, old=wide)[0], new, many) > likeness(features, new, few)


def test_noise_leaves_features_alone() -> None:
    rng = np.random.default_rng(0)
    new = world().features + 0.3 * rng.normal(size=world().features.shape).astype(np.float32)
    rows = sample(rng, 200)
    features, way = carry(new, rows)
    assert way == "stale"
    rest = np.setdiff1d(np.arange(N), rows)
    np.testing.assert_array_equal(features[rest], world().features[rest])


def test_features_stay_when_told() -> None:
    new = world().features + np.float32(3)
    rows = np.arange(300)
    features, way = carry(new, rows, settings=PropagationSection(features="none"))
    assert way == "stale"
    np.testing.assert_array_equal(features[400:], world().features[400:])
    np.testing.assert_array_equal(features[rows], new[rows])


def test_few_rows_give_features_the_common_shift_where_it_is_more_than_noise() -> None:
    rng = np.random.default_rng(0)
    moved = world().features + np.float32(3)
    noise = rng.normal(size=moved.shape).astype(np.float32)
    for m, new, is_moved in ((50, moved, True), (7, moved, False), (50, moved + noise, True)):
        rows = np.arange(m)
        features, way = carry(new, rows)
        assert way == ("shift" if is_moved else "stale")
        np.testing.assert_array_equal(features[rows], new[rows])
        if is_moved:
            rest = slice(50, None)
            moved_by = features[rest].mean(axis=0) - world().features[rest].mean(axis=0)
            np.testing.assert_allclose(moved_by, 3, atol=0.6)
            assert likeness(features, new, rows) > likeness(world().features, new, rows)
        else:
            np.testing.assert_array_equal(features[400:], world().features[400:])
    by_chance = [carry(world().features + noise, sample(rng, 50))[0] for _ in range(10)]
    shifts = [np.linalg.norm(np.median(each - world().features, axis=0)) for each in by_chance]
    assert np.mean(shifts) < 0.4 * np.sqrt(24 / 50)  # a mean of noise is of this length


@given(
    share=st.floats(0, 1),
    d=st.integers(1, 30),
    constant=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_features_give_sane_output(
    share: float, d: int, constant: bool, half: bool, seed: int
) -> None:
    n, rng = 50, np.random.default_rng(seed)
    dtype = np.dtype(np.float16 if half else np.float32)
    usable = rng.random(n) < 0.8
    old = np.asarray((0 if constant else 1) * rng.normal(size=(n, d)) + 1, dtype)
    old[~usable] = np.nan
    rows = np.flatnonzero(rng.random(n) < share)
    new = np.asarray(rng.normal(size=(len(rows), d)), dtype)
    new[rng.random(len(rows)) < 0.1] = np.nan
    features = (
        estimate_features(
            old=old,
            measured_rows=rows,
            new=new,
            graph=random_graph(n, rng),
            usable=usable,
            settings=PropagationSection(min_measured=10),
            seed=seed,
        )
        .carried()
        .features
    )
    assert features.dtype == dtype and features.shape == (n, d)
    np.testing.assert_array_equal(features[rows], new)
    rest = np.setdiff1d(np.arange(n), rows)
    np.testing.assert_array_equal(np.isfinite(features[rest]).all(axis=1), usable[rest])


def test_spread_is_restored_along_each_axis() -> None:
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    own = rng.normal(size=(9000, 5))
    target = ((own * [5, 3, 1.5, 0.7, 0.4]) @ rotation + 7).astype(np.float32)
    predicted = ((own * [5, 2.5, 1.2, 0.1, 0.6]) @ rotation + 7).astype(np.float32)
    features, rows, held = predicted.copy(), np.arange(4000, 9000), np.arange(0, 4000, 4)
    share = restore_spread(
        features, rows, target[:4000], held, predicted[held], predicted, np.arange(4000)
    )
    assert share == 1
    np.testing.assert_array_equal(features[:4000], predicted[:4000])
    np.testing.assert_allclose(features[rows].mean(0), predicted[rows].mean(0), atol=1e-3)
    spread = (features[rows] @ rotation.T).std(axis=0)
    # As wide as measured; at most half as wide again.
    np.testing.assert_allclose(spread, [5, 3, 1.5, 0.15, 0.4], rtol=0.06)


def test_fewer_measured_rows_than_features_tell_the_spread() -> None:
    rng = np.random.default_rng(0)
    n, m, d, everyone = 3000, 60, 100, np.ones(3000, bool)
    size = np.linspace(3, 0.3, d)
    predicted = (rng.normal(size=(n, d)) * size).astype(np.float32)
    truth = predicted + (0.6 * rng.normal(size=(n, d)) * size).astype(np.float32)
    features, rows, held = predicted.copy(), np.arange(m, n), np.arange(0, m, 4)
    features[:m] = truth[:m]
    measured = np.arange(m)
    share = restore_spread(features, rows, truth[:m], held, predicted[held], predicted, measured)
    assert share == 1
    true_rank = effective_rank(unit_features(truth, everyone))
    assert abs(effective_rank(unit_features(features, everyone)) / true_rank - 1) < 0.02
    np.testing.assert_allclose(
        np.linalg.norm(features[rows]), np.linalg.norm(truth[rows]), rtol=0.05
    )


def test_few_rows_that_spread_more_than_all_tell_no_wider_spread() -> None:
    """The measured rows happen to lie farther out, and did so before."""
    rng = np.random.default_rng(0)
    old = rng.normal(size=(2000, 4)).astype(np.float32)
    old[:100] *= 1.08
    truth = (old @ np.diag([1, 1.1, 0.9, 1.2])).astype(np.float32)
    predicted = truth * np.float32(0.8)
    features, rows, held = predicted.copy(), np.arange(100, 2000), np.arange(0, 100, 4)
    share = restore_spread(features, rows, truth[:100], held, predicted[held], old, np.arange(100))
    assert share == 1
    spread, true_spread = features[rows].std(axis=0), truth[rows].std(axis=0)
    np.testing.assert_allclose(spread, true_spread, rtol=0.03)


def test_rows_that_were_not_drawn_at_random_do_not_widen_the_others() -> None:
    """The oldest rows were predicted for longest and lie closer together, for no chance's sake."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(3000, 4)).astype(np.float32)
    old = truth.copy()
    old[:300] *= 0.5
    features, rows, held = truth.copy(), np.arange(300, 3000), np.arange(0, 300, 4)
    restore_spread(features, rows, truth[:300], held, truth[held], old, np.arange(300))
    assert (features[rows].std(axis=0) / truth[rows].std(axis=0)).max() < 1.2


def test_spread_is_left_where_stretching_only_adds_noise() -> None:
    rng = np.random.default_rng(0)
    size = np.array([3, 3, 3, 0.6, 0.6, 0.6])
    target = (rng.normal(size=(2000, 6)) * size).astype(np.float32)
    noise = (0.4 * rng.normal(size=(2000, 6))).astype(np.float32)
    predicted = np.where(size > 1, target, noise)
    held = np.arange(1000)
    rows, everyone = np.arange(1000, 2000), np.arange(2000)
    share = restore_spread(
        predicted.copy(), rows, target, held, predicted[held], predicted, everyone
    )
    assert share < 1


def test_features_do_not_collapse_in_fifty_refreshes() -> None:
    """Rows move on their own as well as together; effective rank stays near that of the truth."""
    rng = np.random.default_rng(0)
    n, d, everyone = 600, 12, np.ones(600, bool)
    truth = (rng.normal(size=(n, d)) * np.linspace(3, 0.5, d)).astype(np.float32)
    known, ratios = truth.copy(), []
    for step in range(50):
        turn = 0.05 * rng.normal(size=(d, d))
        truth = truth @ (np.eye(d) + turn - turn.T).astype(np.float32)
        truth += (0.1 * rng.normal(size=(n, d)) * np.linspace(3, 0.5, d)).astype(np.float32)
        unit = unit_features(known, everyone)
        index = build_index(unit, GraphSection(backend="exact"), valid=everyone, seed=0)
        rows = sample(rng, 120, n)
        estimate = estimate_features(
            old=known, measured_rows=rows, new=truth[rows], graph=symmetric(index.graph),
            usable=everyone, settings=SETTINGS, seed=step,
        )  # fmt: skip
        known = np.asarray(estimate.carried().features, np.float32)
        true_rank = effective_rank(unit_features(truth, everyone))
        ratios.append(effective_rank(unit_features(known, everyone)) / true_rank)
    assert min(ratios) > 0.9 and max(ratios) < 1.1
