"""What a coreset is worth: exact values, honest intervals, and what a refresh does with them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracekit.draw.capped import capped_probabilities
from gracekit.draw.mean_gradient import gradient_errors
from gracekit.draw.worth import Drawn, Worth, worth
from gracekit.recipe import Recipe
from gracekit.refresher.budget import next_round, next_start
from gracekit.refresher.step import Refreshed, step
from gracekit.types import Float64, Int32, Measurement, Rows
from gracekit.version.outcomes import Audit, Cost, Meter
from gracekit.views.meter_words import worth_in_words
from tests.stores import make_audit, make_header, make_samples
from tests.test_refresher_step import Drift, recipe_of

SEEDS = st.integers(0, 10_000)


def all_known(
    norms: Float64,
    probabilities: Float64,
    groups: Int32 | None = None,
    costs: Float64 | None = None,
) -> Drawn:
    n = len(norms)
    parts = np.zeros(n, np.int32) if groups is None else groups
    of_group = np.bincount(parts, probabilities) / np.maximum(np.bincount(parts), 1)
    return Drawn(
        probabilities=probabilities,
        targets=of_group[parts],
        costs=np.ones(n) if costs is None else costs,
        groups=parts,
        alpha=0.25,
        is_known=np.ones(n, bool),
        norms=norms,
        clues=np.zeros((n, 1)),
        told=np.zeros(0, np.int64),
        told_clues=np.zeros((0, 1)),
    )


def by_norms(norms: Float64, total: float, alpha: float = 0.25) -> Float64:
    """What `balanced` draws with, without groups."""
    sizes = alpha + (1 - alpha) * norms / norms.mean()
    return capped_probabilities(sizes, np.ones(len(norms)), total)


# --- all norms known ---


@given(seed=SEEDS, n=st.integers(2, 30), share=st.floats(0.05, 1), scale=st.floats(1e-6, 1e6))
def test_random_is_worth_one_the_best_is_best_and_scale_does_not_matter(
    seed: int, n: int, share: float, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    norms = rng.lognormal(size=n)
    total = share * n
    random = worth(all_known(norms, np.full(n, share)), seed=0)
    assert random.value.found == pytest.approx(1)
    best = capped_probabilities(norms, np.ones(n), total)
    assert best.sum() == pytest.approx(total) and best.max() <= 1
    found = worth(all_known(norms, best), seed=0)
    assert found.value.found == pytest.approx(found.best.found)
    own = by_norms(norms, total)
    one, two = (worth(all_known(factor * norms, own), seed=0) for factor in (1, scale))
    assert one.value.found == pytest.approx(two.value.found)
    assert one.best.found == pytest.approx(found.best.found)
    assert one.value.found <= one.best.found * (1 + 1e-9)
    assert (one.value.low, one.value.high) == (one.value.found, one.value.found), "all is known"
    if one.can_gain:
        assert one.kept.found == pytest.approx((one.value.found - 1) / (one.best.found - 1))


@given(seed=SEEDS, n=st.integers(3, 30), share=st.floats(0.1, 0.9))
def test_random_towards_a_target_has_no_probability_above_one(
    seed: int, n: int, share: float
) -> None:
    """A few rows have most of t: drawn in proportion to it, as far as that goes, is random."""
    rng = np.random.default_rng(seed)
    targets = rng.choice([0.1, 5.0], n)
    random = capped_probabilities(targets, np.ones(n), share * n)
    drawn = dataclasses.replace(all_known(rng.lognormal(size=n), random), targets=targets)
    assert worth(drawn, seed=0).value.found == pytest.approx(1)


@given(seed=SEEDS, costs=st.booleans(), num_groups=st.integers(1, 3))
def test_value_and_best_are_those_of_a_plain_twin(seed: int, costs: bool, num_groups: int) -> None:
    """In exact arithmetic, and with caps found by trying every set of certain rows."""
    rng = np.random.default_rng(seed)
    n = 4 * num_groups
    groups = np.repeat(np.arange(num_groups), 4).astype(np.int32)
    norms = rng.integers(0, 9, n) + (rng.random(n) < 0.1) * 50.0
    norms[0] = 3.0
    probabilities = rng.integers(1, 16, n) / 16
    price = rng.integers(1, 5, n) ** 2 if costs else np.ones(n, np.int64)
    found = worth(all_known(norms, probabilities, groups, price.astype(float)), seed=0)
    g, p = ([Fraction(float(x)) for x in values] for values in (norms, probabilities))
    c = [Fraction(int(x)) for x in price]
    roots = [Fraction(math.isqrt(int(x))) for x in price]
    random: Any = 0
    draw: Any = 0
    best: Any = 0
    for group in range(num_groups):
        some = [i for i in range(n) if groups[i] == group]
        t = sum(p[i] for i in some) / len(some)
        total = sum(p[i] * c[i] for i in some)
        alike = total / sum(t * c[i] for i in some)
        random += sum((t * g[i]) ** 2 / (t * alike) for i in some)
        draw += sum((t * g[i]) ** 2 / p[i] for i in some)
        each = []
        for r in range(len(some) + 1):
            for certain in itertools.combinations(some, r):
                rest = [i for i in some if i not in certain]
                left = total - sum(c[i] for i in certain)
                need = sum(t * g[i] * roots[i] for i in rest)
                if left < 0 or (left == 0 and need > 0):
                    continue
                scale = left / need if need else Fraction(0)
                if all(scale * t * g[i] <= roots[i] for i in rest):
                    of_rest = need**2 / left if need else Fraction(0)
                    each.append(sum((t * g[i]) ** 2 for i in certain) + of_rest)
        best += min(each)
    assert found.value.found == pytest.approx(float(random / draw))
    assert found.best.found == pytest.approx(float(random / best))


@pytest.mark.parametrize("norms", [np.zeros(40), np.full(40, 3.0)])
def test_norms_that_are_all_equal_have_nothing_to_gain(norms: Float64) -> None:
    found = worth(all_known(norms, np.full(40, 0.3)), seed=0)
    assert found.value.found == pytest.approx(1) and found.best.found == pytest.approx(1)
    assert not found.can_gain and math.isnan(found.kept.found)


# --- a tenth known ---


def partly_known(
    seed: int, n: int, p: int, noise: float, shift: float = 0.3
) -> tuple[Drawn, Worth, Worth]:
    """A world of lognormal norms in which p rows are measured; what its draw is truly worth, and
    one by exact norms.
    """
    rng = np.random.default_rng(seed)
    norms = np.exp(0.6 * rng.normal(size=n))
    by_others = norms * np.exp(noise * rng.normal(size=n) - 0.3)
    told = rng.choice(n, p, replace=False)
    expected = by_others.copy()
    expected[told] = norms[told]
    own = by_norms(expected, 0.3 * n)
    clues = np.stack([np.ones(n), np.log(by_others)], axis=1)
    rows = dataclasses.replace(
        all_known(norms, own),
        is_known=np.isin(np.arange(n), told),
        norms=np.where(np.isin(np.arange(n), told), norms, np.nan),
        clues=clues,
        told=told,
        told_clues=clues[told],
    )
    truth, exact = (worth(all_known(norms, p), seed=0) for p in (own, by_norms(norms, 0.3 * n)))
    return rows, truth, exact


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    inside, misses = np.zeros(3), []
    for seed in range(60):
        rows, truth, _ = partly_known(seed, n=1500, p=150, noise=0.4)
        found = worth(rows, seed=seed)
        pairs = zip(
            (found.value, found.best, found.kept), (truth.value, truth.best, truth.kept),
            strict=True,
        )  # fmt: skip
        inside += [each.low <= true.found <= each.high for each, true in pairs]
        misses.append(abs(found.value.found / truth.value.found - 1))
        assert found.value.found <= found.best.found * (1 + 1e-3)
    assert (inside / 60 >= 0.78).all(), inside / 60
    assert np.quantile(misses, 0.9) < 0.06


def test_norms_that_others_say_nothing_of_gain_nothing() -> None:
    rows, truth, _ = partly_known(1, n=2000, p=200, noise=3.0)
    found = worth(rows, seed=0)
    assert truth.value.found < 1, "a draw by noise is worse than a random one"
    assert found.value.found < 1.02 and found.kept.found < 0.1


def test_the_same_for_the_same_seed_and_many_rows_are_no_trouble() -> None:
    rows, truth, exact = partly_known(2, n=30_000, p=6_000, noise=0.4)
    one, two = worth(rows, seed=5), worth(rows, seed=5)
    assert one == two
    assert one.value.found == pytest.approx(truth.value.found, rel=0.02)
    assert one.best.found == pytest.approx(truth.best.found, rel=0.02)
    assert one.kept_if_measured == pytest.approx(exact.kept.found, abs=0.02)


# --- the mean gradient ---


def test_the_error_of_a_random_draw_is_that_over_all_draws() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(8, 3)).astype(np.float32) + 1
    factors, pool = rng.random(8) + 0.5, np.arange(8) != 5
    gradients = features[pool] * factors[pool, None]
    mean = gradients.mean(axis=0)
    draws = [np.array(d) for d in itertools.combinations(np.flatnonzero(pool), 3)]
    each = [gradient_errors(features, factors, pool, d, np.ones(3, np.float32)) for d in draws]
    assert np.sqrt(np.mean([one**2 for one, _ in each])) == pytest.approx(each[0][1], rel=1e-5)
    weights = np.array([1, 2, 0.5], np.float32)
    estimate = np.average(features[draws[0]] * factors[draws[0], None], axis=0, weights=weights)
    found, _ = gradient_errors(features, factors, pool, draws[0], weights)
    assert found == pytest.approx(np.linalg.norm(estimate - mean) / np.linalg.norm(mean), rel=1e-5)
    assert all(map(math.isnan, gradient_errors(0 * features, factors, pool, draws[0], weights)))


# --- refreshes ---


class Margins(Drift):
    """The same, with a score of any sign alone."""

    def __call__(self, rows: Rows) -> Measurement:
        found = super().__call__(rows)
        margins = np.log(found.scores["gradient-norm"])
        return Measurement(rows=rows, scores={"margin": margins}, features=found.features)


def two_steps(
    changes: dict[str, Any] | None = None,
    *,
    n: int = 300,
    noise: float = 0.1,
    kind: type[Drift] = Drift,
) -> list[Refreshed]:
    """A full refresh and a partial one."""
    samples, drift = make_samples(n), kind(n, 0, noise)
    least = {"refresh.min_fraction": 0.3, "refresh.max_fraction": 0.6}
    recipe: Recipe = recipe_of().override(
        {"selection.selector": "balanced", **least, **(changes or {})}
    )
    first = step(None, drift, recipe, samples=samples, step=10, version=1)
    drift.train()
    last = first.as_last(None)
    return [first, step(last, drift, recipe, samples=samples, step=20, version=2)]


def test_a_refresh_says_what_its_draw_is_worth() -> None:
    first, second = two_steps()
    full, part = first.meter, second.meter
    assert full.value_low == full.value == full.value_high and full.share_measured == 1
    assert 1 < full.value <= full.best and 0.75 < full.value_kept <= 1
    assert full.target_met is None, "nothing more could be measured"
    assert part.value_low < part.value < part.value_high and part.share_measured < 1
    assert part.target == 0.75 and part.target_met and second.outcome.rounds == 1
    # The truth: the norms of all rows, which the run knows.
    assert second.selection.draw is not None and second.audit is not None
    assert math.isnan(second.audit.target) and second.audit.target_met


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"selection.selector": "coverage"}, {"value": math.nan, "value_kept": math.nan}),
        ({"selection.weights": "uniform"}, {"value": 1.0, "value_kept": 0.0}),
        ({"selection.group_quota": "equal"}, {}),
        ({"selection.tokens": 900}, {}),
        ({"selection.always_in": ["id-003", "id-004"], "selection.drop_hardest": 0.1}, {}),
        ({"selection.fraction": 1.0}, {"value": 1.0, "best": 1.0, "can_gain": False}),
        ({"scoring.importance": "loss"}, {"target_met": None}),
    ],
)
def test_whatever_the_selection_is(changes: dict[str, Any], told: dict[str, Any]) -> None:
    for made in two_steps(changes):
        meter = made.meter
        assert meter.best >= 1 - 1e-9 and meter.can_gain is not None
        assert math.isnan(meter.value) or meter.value <= meter.best * 1.01
        for name, expected in told.items():
            found = getattr(meter, name)
            assert found == expected or found == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert made.meter.target_met is not False


def test_a_score_that_is_no_norm_has_no_value() -> None:
    changes = {"scoring.importance": "margin", "scoring.scores": ["margin"]}
    for made in two_steps(changes, kind=Margins):
        assert made.meter == Meter()


def test_a_probe_that_is_too_small_claims_nothing() -> None:
    small = {"refresh.plan": "oldest", "refresh.min_probe": 12}
    _, second = two_steps(small, n=120)
    assert math.isnan(second.meter.best) and second.meter.target_met is None
    assert 0 < second.meter.num_told_by < 30
    # Under `random` more rows tell it, so a refresh goes on until they do.
    changes = {"refresh.min_fraction": 0.1, "refresh.min_probe": 6}
    _, second = two_steps(changes, n=120)
    assert second.meter.num_told_by >= 30 and second.outcome.rounds > 1


def test_rounds_go_on_until_the_value_is_kept() -> None:
    easy = two_steps({"refresh.target_value": 0.0, "refresh.min_fraction": 0.2}, noise=0.8)[1]
    hard = two_steps({"refresh.target_value": 0.85, "refresh.min_fraction": 0.2}, noise=0.8)[1]
    assert easy.outcome.rounds == 1 and easy.meter.target_met
    assert hard.outcome.rounds > 1 and hard.outcome.num_measured > easy.outcome.num_measured
    assert hard.outcome.num_measured == 180 or hard.meter.target_met


def test_sketches_tell_the_error_of_the_mean_gradient() -> None:
    for loss in ("tokens", "samples"):
        made = two_steps({"scoring.features": "gradient-sketch", "scoring.loss": loss})[1]
        rows, weights = made.selection.rows, made.selection.weights
        lengths = made.samples.num_response_tokens if loss == "tokens" else np.ones(300)
        gradients = made.features.astype(np.float64) * lengths[:, None]
        pool = made.valid & made.scores.usable
        mean = gradients[pool].mean(axis=0)
        error = np.average(gradients[rows], axis=0, weights=weights) - mean
        expected = np.linalg.norm(error) / np.linalg.norm(mean)
        assert made.meter.gradient_error == pytest.approx(expected, rel=1e-4)
        assert made.meter.gradient_error_random > 0
    assert math.isnan(two_steps()[1].meter.gradient_error)


# --- what follows ---


def meter_with(**changes: Any) -> Meter:
    return Meter(
        value=1.2, best=1.4, value_kept=0.5, kept_if_measured=0.9, can_gain=True, target=0.75,
        target_met=False, num_told_by=100, share_measured=0.1,
    ).model_copy(update=changes)  # fmt: skip


@settings(max_examples=40)
@given(kept=st.floats(-1, 0.89), target=st.floats(0.01, 1), num_measured=st.integers(50, 900))
def test_what_is_missing_of_the_value_goes_with_what_is_not_measured(
    kept: float, target: float, num_measured: int
) -> None:
    audit: Audit = make_audit().model_copy(
        update={"num_measured": num_measured, "target": math.nan}
    )
    meter = meter_with(value_kept=kept, target=target)
    wanted = next_round(audit, 1000, meter)
    assert num_measured < wanted <= min(1000, 2 * num_measured)
    if target > 0.9:  # out of reach, as near as may be
        assert wanted == 2 * num_measured or wanted >= num_measured + 0.8 * (1000 - num_measured)
        return
    needed = 1000 - (0.9 - target) * (1000 - num_measured) / (0.9 - kept)
    if wanted not in (num_measured + 5, 2 * num_measured):
        assert 0.8 * (needed - num_measured) - 1e-6 <= wanted - num_measured
        assert wanted < needed + 1
    start = next_start(audit, num_measured, 1000, meter)
    least = 0.8 * max(needed, 0)  # which may be a whole number, but for rounding
    assert min(math.ceil(least - 1e-9), 500) <= start <= min(math.ceil(least + 1e-9), 500)


def test_where_nothing_can_be_gained_nothing_more_is_needed() -> None:
    audit = make_audit().model_copy(update={"num_measured": 100, "target": math.nan})
    assert next_start(audit, 100, 1000, meter_with(can_gain=False, value_kept=math.nan)) == 0
    assert next_start(audit, 100, 1000, meter_with(target=0.0)) == 0
    too_few = meter_with(can_gain=None, value_kept=math.nan, num_told_by=15)
    assert next_round(audit, 1000, too_few) == 180
    assert next_start(audit, 100, 1000, Meter()) == 0


def test_in_words() -> None:
    header = make_header(1)
    assert worth_in_words(header) == []

    def words(meter: Meter, **selection: Any) -> str:
        details = header.selection.model_validate(selection)
        changed = header.model_copy(update={"meter": meter, "selection": details})
        return "; ".join(worth_in_words(changed))

    full = meter_with(
        value=1.18, value_low=1.09, value_high=1.26, best=1.24, best_low=1.2, best_high=1.3,
        value_kept=0.75,
    )  # fmt: skip
    assert words(full) == (
        "1,000 of these are worth 1,180 random ones (1,090 to 1,260); perfect norms would make it "
        "1,240: 75% of the gain is kept"
    )
    unknown = full.model_copy(update={"value": math.nan, "value_kept": math.nan})
    assert words(unknown) == (
        "not known of this selector; perfect norms would make 1,000 samples worth 1,240 random "
        "ones (1,200 to 1,300)"
    )
    flat = full.model_copy(update={"can_gain": False, "best": 1.02})
    assert words(flat).endswith("selection by norm cannot pay on this data")
    wide = full.model_copy(update={"can_gain": False})
    assert words(wide).endswith("is not shown")
    assert "does not tell how large gradients are" in words(Meter())
    assert "7 samples" in words(Meter(share_measured=0.1, num_told_by=7))
    few = header.model_copy(update={"meter": Meter(share_measured=0.1, num_told_by=7)})
    for max_cost, is_named in ((math.nan, False), (0.1, True)):
        cost = Cost(cost=1.0, cost_in_all=1.0, max_cost=max_cost)
        (told,) = worth_in_words(few.model_copy(update={"cost": cost}))
        assert "raise refresh.min_fraction" in told and ("max_cost" in told) == is_named
    sketched = full.model_copy(update={"gradient_error": 0.2, "gradient_error_random": 0.3})
    assert "off by 20%, that of a random draw of as many by 30%" in words(sketched)
    repeated = words(full, num_distinct=900, num_distinct_random=700.4)
    assert "900 distinct samples" in repeated and "had 700" in repeated
