"""The scores that a recipe can name, and how they are built.

To add one, derive from `protocols.Scorer`, override what it reads, put the class into `SCORERS`,
and what its values mean into `scores.meaning.MEANINGS`. A recipe may also name a class of the
user's own as `package.module:Class`; it is made without arguments.
"""

from __future__ import annotations

from collections.abc import Iterable

from gracekit.errors import RecipeError
from gracekit.model_pass.adam import AdamNorm
from gracekit.model_pass.gradient_scores import (
    GradientNorm,
    GradientNormLast,
    LoraGradientNorm,
)
from gracekit.model_pass.head_score import HeadGradientNorm
from gracekit.model_pass.influence import Influence, InfluenceDot
from gracekit.model_pass.pairs import PairMargin
from gracekit.model_pass.sketch_norm import SketchNorm
from gracekit.model_pass.token_scores import (
    DeltaLoss,
    DeltaLossFirst,
    Entropy,
    ErrorNorm,
    InstructionDifficulty,
    Loss,
    Margin,
    Perplexity,
)
from gracekit.plugins import load_class
from gracekit.protocols import Scorer
from gracekit.scores.meaning import score_meaning

SCORERS: dict[str, type[Scorer]] = {
    "adam-norm": AdamNorm,
    "delta-loss": DeltaLoss,
    "delta-loss-first": DeltaLossFirst,
    "el2n": ErrorNorm,
    "entropy": Entropy,
    "gradient-norm": GradientNorm,
    "gradient-norm-last": GradientNormLast,
    "ifd": InstructionDifficulty,
    "influence": Influence,
    "influence-dot": InfluenceDot,
    "lm-head": HeadGradientNorm,
    "lora-gradient": LoraGradientNorm,
    "loss": Loss,
    "margin": Margin,
    "pair-margin": PairMargin,
    "perplexity": Perplexity,
    "sketch-norm": SketchNorm,
}


def scorer_class(name: str) -> type[Scorer]:
    """The class behind a name of `SCORERS` or a `package.module:Class`.

    Raises `RecipeError` when there is none, when it does not say what its values mean
    (`scores.meaning`), or when it lacks a method.
    """
    score_meaning(name)
    if name in SCORERS:
        return SCORERS[name]
    scorer: type[Scorer] = load_class(name, "the scorer")
    missing = [member for member in _MEMBERS if not hasattr(scorer, member)]
    if missing:
        raise RecipeError(
            f"{name!r} is not a scorer: it lacks {', '.join(missing)}; derive it from "
            "gracekit.protocols.Scorer"
        )
    return scorer


_MEMBERS = (
    *("bind", "reads", "wants", "wants_block", "start", "on_block", "on_states", "on_targets"),
    *("on_layer", "on_routed", "on_bias", "finish", "combine", "alone"),
)


def build_scorers(names: Iterable[str]) -> dict[str, Scorer]:
    """One scorer for each name, in the order given; `RecipeError` for an unknown or double name."""
    scorers: dict[str, Scorer] = {}
    for name in names:
        if name in scorers:
            raise RecipeError(f"scoring.scores names {name!r} twice; leave one out")
        scorers[name] = scorer_class(name)()
    return scorers
