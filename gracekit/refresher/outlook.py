"""What selection could bring on some data, told before training from one checkpoint.

One pass over a few rows drawn at random gives their gradient norms, and one over all or some the
features. From them come the best value that a draw by norms can have, how alike rows are, how much
of the pool is like the target, and from the recipe how often rows will be shown again; then words,
"not worth it" among them. Nothing is written to a store.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gracekit.aim import respond_alike
from gracekit.aim.course import steps_left
from gracekit.aim.places import COPY_SIMILARITY
from gracekit.draw.capped import capped_probabilities
from gracekit.graph import unit_features
from gracekit.protocols import Executor
from gracekit.recipe import Recipe
from gracekit.refresher.flow import Refresher
from gracekit.refresher.previewing import model_beside
from gracekit.scores.norms import part_norms
from gracekit.selection.pool import DEFAULT_FRACTION
from gracekit.tabular import ShortRepr
from gracekit.types import Bool, Checkpoint, Float32, Float64, Int64, Json, Rows
from gracekit.version.json_text import plain_json
from gracekit.version.outcomes import LEAST_GAIN

NUM_MEASURED = 300
"""Rows whose norms are measured."""
NUM_COMPARED = 2000
"""Rows whose features are compared with each other."""
MANY_ALIKE, OFTEN = 0.1, 4.0
"""Share of near-copies, and passes over the pool, from which a word is said of them."""
RARE = 0.3
"""Share of the pool that is like the target below which aiming at it can pay."""
_RESAMPLES = 400
_NORM = "gradient-norm"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Prospect(ShortRepr):
    """What was found, and what follows. Shares are between 0 and 1; NaN: not known."""

    num_samples: int
    num_measured: int
    num_compared: int
    best: float
    """How many random rows one drawn by perfect norms is worth, as an estimate of the gradient."""
    best_low: float
    best_high: float
    """Interval of 90 % by bootstrap over the measured rows."""
    norm_spread: float
    """Largest by smallest norm of a row's part, of the tenth and the ninetieth percentile."""
    exact_copies: float
    """Share of rows whose content another row before them has."""
    near_copies: float
    """Share of the compared rows that say what another compared row says, or respond as it does."""
    like_target: float
    """Share of the compared rows that are as near to a row of the target as half of its own rows
    are to each other; NaN without a target."""
    steps_of_target: float
    """Steps in which the rows that are like the target are used about four times each where it is
    followed; NaN where nothing is like it, or the pace is not known."""
    passes: float
    """Passes over the pool in all; NaN where the training's length is not known."""
    most_saved: float
    """Share of the steps that perfect norms could save where noise of the gradient limits them."""
    words: tuple[str, ...]
    """Sentences."""

    @property
    def is_worth_it(self) -> bool:
        """Whether anything promises more than it costs."""
        return not self.words[-1].startswith("Not worth it")

    def to_json(self) -> Json:
        """As a JSON object."""
        content: Json = plain_json(
            {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
             "is_worth_it": self.is_worth_it}
        )  # fmt: skip
        return content


def prospect(recipe: Recipe, checkpoint: Checkpoint, *, strict: bool = False) -> Prospect:
    """Measure a few rows with the model of a checkpoint, and say what selection could bring.

    Raises:
        MeasureError: Not even the longest sample alone can be measured.
    """
    scoring = {"scoring.scores": [_NORM], "scoring.importance": _NORM}
    changed = recipe.override({**scoring, "selection.selector": "balanced"})
    refresher = Refresher.from_recipe(changed, strict=strict)
    with model_beside(refresher, checkpoint) as (_, model):
        tokens = model.tokens(refresher.samples)
        target = model.target_samples(refresher.samples)
        usable = np.flatnonzero(tokens.num_targets > 0)
        order = np.random.default_rng(changed.seed).permutation(usable)
        measured, compared = order[:NUM_MEASURED], order[:NUM_COMPARED]
        executor = model.executor(tokens, None)
        rows, norms = _norms(executor, measured)
        rows_compared, features = _features(executor, compared)
        executor.close()
        by_tokens, groups = model.near_copies(tokens), refresher.samples.groups
        responses = respond_alike(
            by_tokens.responses(rows_compared),
            groups[rows_compared],
            tokens.num_targets[rows_compared],
            by_tokens.openings(rows_compared),
            np.arange(len(rows_compared)),
        )

        def are_near(pairs: Int64) -> Bool:
            rows = rows_compared[pairs]
            found: Bool = by_tokens.are_near(rows) & (groups[rows[0]] == groups[rows[1]])
            return found

        share_near = near_copies(features, are_near, responses)
        near_target: Float32 | None = None
        if target is not None:
            of_target = model.executor(target.tokens, None)
            _, near_target = _features(of_target, np.flatnonzero(target.tokens.num_targets > 0))
            of_target.close()
    parts = part_norms(norms, tokens.num_targets[rows].astype(np.int32), changed.scoring)
    parts = parts[np.isfinite(parts)]
    share = _share(recipe, len(usable), int(tokens.lengths[usable].sum()))
    hashes = refresher.samples.content_hashes
    return told(
        recipe,
        num_samples=len(usable),
        num_compared=len(compared),
        norms=parts,
        share=share,
        exact_copies=1 - len(set(hashes.tolist())) / max(len(hashes), 1),
        near_copies=share_near,
        like_target=math.nan if near_target is None else like_target(features, near_target),
    )


def told(
    recipe: Recipe,
    *,
    num_samples: int,
    num_compared: int,
    norms: Float64,
    share: float,
    exact_copies: float,
    near_copies: float,
    like_target: float,
) -> Prospect:
    """The numbers with what follows from them.

    Args:
        recipe: All settings.
        num_samples: Usable rows of the data.
        num_compared: Of these, compared by their features.
        norms: [m] norms of measured rows' parts in the trainer's average.
        share: Of the rows, that a draw has.
        exact_copies: See `Prospect`.
        near_copies: See `Prospect`.
        like_target: See `Prospect`.
    """
    best, low, high = best_value(norms, share, seed=recipe.seed)
    tenth, ninetieth = np.quantile(norms, [0.1, 0.9]) if len(norms) else (math.nan, math.nan)
    passes = _passes(recipe, num_samples)
    found = Prospect(
        num_samples=num_samples,
        num_measured=len(norms),
        num_compared=num_compared,
        best=best,
        best_low=low,
        best_high=high,
        norm_spread=float(ninetieth / tenth) if tenth > 0 else math.nan,
        exact_copies=exact_copies,
        near_copies=near_copies,
        like_target=like_target,
        steps_of_target=_steps_of_target(recipe, like_target * num_samples),
        passes=passes,
        most_saved=max(0.0, 1 - 1 / best) if best > 0 else 0.0,
        words=(),
    )
    return dataclasses.replace(found, words=tuple(_words(found, recipe)))


def best_value(norms: Float64, share: float, *, seed: int) -> tuple[float, float, float]:
    """V of a random draw by V of the best one, as far as caps at 1 allow, and its interval.

    Args:
        norms: [m] of rows drawn at random.
        share: Of all rows, that a draw has.
        seed: Of the bootstrap.
    """
    norms = norms[norms > 0]
    if len(norms) < 2:
        return math.nan, math.nan, math.nan

    def value(some: Float64) -> float:
        chances = capped_probabilities(some, np.ones(len(some)), share * len(some))
        return float((some**2).sum() / share / (some**2 / chances).sum())

    rng = np.random.default_rng(seed)
    found = [value(norms[rng.integers(0, len(norms), len(norms))]) for _ in range(_RESAMPLES)]
    low, high = np.quantile(found, [0.05, 0.95])
    return value(norms), float(low), float(high)


def near_copies(features: Float32, are_near: Callable[[Int64], Bool], responses: Int64) -> float:
    """Share of rows that are a near-copy of another row, or respond as it does.

    Args:
        features: [m, d]; only rows with a cosine of centred features of `COPY_SIMILARITY` or more
            are compared, and those that equal the mean, which have no direction.
        are_near: Which pairs [2, p] of the m rows are near-copies.
        responses: [m] the same number for rows that respond alike; -1: like no other.
    """
    unit = unit_features(features, np.ones(len(features), bool))
    if len(unit) < 2:
        return 0.0
    is_mean = ~unit.any(axis=1)
    may_be = np.triu((unit @ unit.T >= COPY_SIMILARITY) | np.outer(is_mean, is_mean), 1)
    pairs = np.stack(np.nonzero(may_be)).astype(np.int64)
    _, kind, sizes = np.unique(responses, return_inverse=True, return_counts=True)
    found = (responses >= 0) & (sizes[kind] > 1)
    found[pairs[:, are_near(pairs)]] = True
    return float(found.mean())


def like_target(features: Float32, target: Float32) -> float:
    """Share of rows that are as near to a target row as half of the target's rows to another one.

    Args:
        features: [m, d] of the pool.
        target: [t, d] of the target; with fewer than two rows nothing can be said (NaN).
    """
    if len(target) < 2:
        return math.nan
    both = np.concatenate([features, target])
    unit = unit_features(both, np.ones(len(both), bool))
    rows, own = unit[: len(features)], unit[len(features) :]
    among = own @ own.T
    np.fill_diagonal(among, -1.0)
    level = float(np.median(among.max(axis=1)))
    return float(((rows @ own.T).max(axis=1) >= level).mean())


def _norms(executor: Executor, rows: Rows) -> tuple[Rows, Float32]:
    parts = list(executor.measure(rows))
    found = [part.scores[_NORM] for part in parts]
    return np.concatenate([part.rows for part in parts]), np.concatenate(found)


def _features(executor: Executor, rows: Rows) -> tuple[Rows, Float32]:
    parts: list[Any] = list(executor.look(rows))
    features = np.concatenate([part.features for part in parts]).astype(np.float32)
    good = np.isfinite(features).all(axis=1)
    return np.concatenate([part.rows for part in parts])[good], features[good]


def _share(recipe: Recipe, num_samples: int, num_tokens: int) -> float:
    """Of the rows that a draw has; of a budget in tokens, about."""
    selection = recipe.selection
    if selection.tokens is not None:
        return min(1.0, selection.tokens / max(num_tokens, 1))
    if selection.count is not None:
        return min(1.0, selection.count / max(num_samples, 1))
    return selection.fraction or DEFAULT_FRACTION


def _passes(recipe: Recipe, num_samples: int) -> float:
    training = recipe.training
    if training.steps is None or training.samples_a_step is None:
        return math.nan
    return training.steps * training.samples_a_step / max(num_samples, 1)


def _steps_of_target(recipe: Recipe, num_alike: float) -> float:
    pace, share = recipe.training.samples_a_step, 1 - recipe.selection.aim_uniform
    return steps_left(num_alike, 0.0, share, pace) if num_alike > 0 else math.nan


def _how_long(found: Prospect, recipe: Recipe) -> str:
    if math.isnan(found.steps_of_target):
        return ""
    planned = recipe.training.steps
    told = (
        f" With about four uses of each they are good for about {found.steps_of_target:,.0f} steps"
    )
    if planned is None or planned <= found.steps_of_target:
        return f"{told}."
    return (
        f"{told}, and {planned:,} are planned: `training.stop: stop` ends the training where more "
        "of them teach little."
    )


def _words(found: Prospect, recipe: Recipe) -> list[str]:
    words, promises = [], 0
    limit = recipe.refresh.max_cost
    if math.isnan(found.best):
        words.append(
            "What drawing by norms could bring is not known: fewer than two of the measured rows "
            "have a norm that is finite and above 0."
        )
    elif found.best_low >= LEAST_GAIN:
        words.append(
            f"Drawing by norms can make 1,000 rows worth at most {1000 * found.best:,.0f} random "
            f"ones [{1000 * found.best_low:,.0f}, {1000 * found.best_high:,.0f}] as an estimate of "
            f"the gradient: at most {found.most_saved:.0%} of the steps, and only where the noise "
            "of the gradient limits the training."
        )
        promises += found.most_saved > (limit or 0.0)
    else:
        words.append(
            "Drawing by norms cannot pay on this data: even perfect norms make 1,000 rows worth "
            f"{1000 * found.best:,.0f} random ones."
        )
    copies = max(found.exact_copies, found.near_copies)
    if copies >= MANY_ALIKE:
        words.append(
            f"{copies:.0%} of the rows say what others say, word for word or but for one passage, "
            "or respond alike: `selection.duplicates: share`, the default, gives these one place."
        )
        promises += 1
    if found.passes >= OFTEN:
        words.append(
            f"Each row will be shown {found.passes:.1f} times: give every row its turn "
            "(`balanced`), and stop when the held-out loss turns up."
        )
    if not math.isnan(found.like_target):
        if 0 < found.like_target <= RARE:
            words.append(
                f"{found.like_target:.1%} of the rows are like the target: aiming at it can pay."
                + _how_long(found, recipe)
            )
            promises += 1
        elif found.like_target > RARE:
            words.append(
                f"{found.like_target:.0%} of the rows are like the target: random rows aim at it "
                "already."
            )
        else:
            words.append("No compared row is like the target: there is nothing to aim with.")
    elif recipe.target is not None:
        words.append(
            "Which rows are like the target cannot be told of one usable sample: name a few dozen."
        )
    words.append(
        "Whether it shows in the loss `gracekit compare` tells."
        if promises
        else "Not worth it: train on random rows, every row once before any twice."
    )
    return words
