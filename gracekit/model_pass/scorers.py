"""The scores that a recipe can name, and how they are built.

To add one, derive from `protocols.Scorer`, override what it reads, and put the class into
`SCORERS`. A recipe may also name a class of the user's own as `package.module:Class`; it is made
without arguments. This module loads without torch: scorers only use tensors that they are given.
"""

from __future__ import annotations

import importlib
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
from gracekit.protocols import Scorer

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
    "perplexity": Perplexity,
}


def scorer_class(name: str) -> type[Scorer]:
    """The class behind a name of `SCORERS` or a `package.module:Class`.

    Raises `RecipeError`, listing what exists, when there is none.
    """
    if name in SCORERS:
        return SCORERS[name]
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise RecipeError(
            f"there is no score {name!r}; there are {', '.join(sorted(SCORERS))}, "
            "or name a class of your own as package.module:Class"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, ValueError) as error:
        raise RecipeError(
            f"cannot import the scorer {name!r}: {error}; install {module_name!r} or put its "
            "folder on PYTHONPATH"
        ) from error
    except AttributeError:
        raise RecipeError(f"{module_name} has no {class_name!r}, which {name!r} asks for") from None
    missing = [m for m in _MEMBERS if not hasattr(found, m)]
    is_class = isinstance(found, type)
    if not is_class or missing:
        lacking = f"it lacks {', '.join(missing)}" if missing else "it is not a class"
        raise RecipeError(
            f"{name!r} is not a scorer: {lacking}; derive it from gracekit.protocols.Scorer "
            "and set shrinks_with_length"
        )
    scorer: type[Scorer] = found
    if scorer.scale not in ("log", "linear"):
        raise RecipeError(
            f"{name!r} is not a scorer: its scale is {scorer.scale!r}; set it to 'log' for a score "
            "that is always above 0, else to 'linear'"
        )
    return scorer


_MEMBERS = (
    *("shrinks_with_length", "scale"),
    *("bind", "wants", "wants_block", "start", "on_block", "on_targets"),
    *(
        "on_layer",
        "on_routed",
        "on_bias",
        "finish",
        "combine",
        "needs_target",
        "needs_optimizer",
        "alone",
        "against",
    ),
)


def build_scorers(names: Iterable[str]) -> dict[str, Scorer]:
    """One scorer for each name, in the order given; `RecipeError` for an unknown or double name."""
    scorers: dict[str, Scorer] = {}
    for name in names:
        if name in scorers:
            raise RecipeError(f"scoring.scores names {name!r} twice; leave one out")
        scorers[name] = scorer_class(name)()
    return scorers
