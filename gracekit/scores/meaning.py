"""What each score means for those who work with its values, apart from how it is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gracekit.errors import RecipeError
from gracekit.plugins import load_class

if TYPE_CHECKING:
    from gracekit.protocols import Reads
    from gracekit.recipe import ScoringSection

Scale = Literal["log", "linear"]
Against = Literal["previous", "first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreMeaning:
    """What has to be known of a score to correct, carry over, compare and rank its values."""

    shrinks_with_length: bool = False
    """Whether it is the norm of a mean over tokens, which falls with their number: such scores are
    corrected for length before they become importance."""
    scale: Scale = "linear"
    """How its values change from checkpoint to checkpoint: `log` by factors, for scores above 0;
    `linear` by differences, for scores of any sign."""
    needs_target: bool = False
    """Whether it compares with the target set."""
    needs_optimizer: bool = False
    """Whether it reads the trainer's optimizer."""
    against: Against | None = None
    """It is the change of the loss against the row's measurement before, or its first one."""


_NORM = ScoreMeaning(shrinks_with_length=True, scale="log")
_POSITIVE = ScoreMeaning(scale="log")

MEANINGS: dict[str, ScoreMeaning] = {
    "adam-norm": ScoreMeaning(scale="log", needs_optimizer=True),
    "delta-loss": ScoreMeaning(against="previous"),
    "delta-loss-first": ScoreMeaning(against="first"),
    "el2n": _POSITIVE,
    "entropy": _POSITIVE,
    "gradient-norm": _NORM,
    "gradient-norm-last": _NORM,
    "ifd": _POSITIVE,
    "influence": ScoreMeaning(needs_target=True),
    "influence-dot": ScoreMeaning(shrinks_with_length=True, needs_target=True),
    "lm-head": _NORM,
    "lora-gradient": _NORM,
    "loss": _POSITIVE,
    "margin": ScoreMeaning(),
    "pair-margin": ScoreMeaning(),
    "perplexity": _POSITIVE,
    "sketch-norm": _NORM,
}
"""The built-in scores. Their classes have the same attributes, as a class of the user's own needs
them; a test compares the two."""

_OF_A_CLASS = ("shrinks_with_length", "scale", "needs_target", "needs_optimizer", "against")


def score_meaning(name: str) -> ScoreMeaning:
    """The meaning of a score: one of `MEANINGS`, or what a class of the user's own says.

    Raises:
        RecipeError: There is no such score, or the class does not say what it means.
    """
    if name in MEANINGS:
        return MEANINGS[name]
    if ":" not in name:
        raise RecipeError(
            f"there is no score {name!r}; there are {', '.join(sorted(MEANINGS))}, "
            "or name a class of your own as package.module:Class"
        )
    return _meaning_of(name, load_class(name, "the scorer"))


def needs(names: Iterable[str], what: Literal["target", "optimizer"]) -> list[str]:
    """Those of the scores that need the target set, or the trainer's optimizer."""
    return [name for name in names if getattr(score_meaning(name), f"needs_{what}")]


def features_read(settings: ScoringSection) -> Reads:
    """How far a pass for features alone has to go, and so what `Executor.look` costs.

    `tokens`: no pass at all, the input embeddings alone; `blocks`: the decoder blocks up to
    `hidden_block`, forward only; `states`: the whole body, forward only, without logits; `all`:
    a whole pass without the scores, as the sketch of the gradient needs it.
    """
    if settings.features == "gradient-sketch":
        return "all"
    if settings.features == "embedding-mean":
        return "tokens"
    return "states" if settings.hidden_block is None else "blocks"


def _meaning_of(name: str, scorer: type[Any]) -> ScoreMeaning:
    missing = [member for member in _OF_A_CLASS if not hasattr(scorer, member)]
    if missing:
        raise RecipeError(
            f"{name!r} is not a scorer: it lacks {', '.join(missing)}; derive it from "
            "gracekit.protocols.Scorer and set shrinks_with_length"
        )
    meaning = ScoreMeaning(**{member: getattr(scorer, member) for member in _OF_A_CLASS})
    if meaning.scale not in ("log", "linear"):
        raise RecipeError(
            f"{name!r} is not a scorer: its scale is {meaning.scale!r}; set it to 'log' for a "
            "score that is always above 0, else to 'linear'"
        )
    return meaning
