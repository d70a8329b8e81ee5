"""The scores that a recipe can name, and how they are built.

To add one, derive from `protocols.Scorer`, override what it reads, and put the class into
`SCORERS`. A recipe may also name a class of the user's own as `package.module:Class`; it is made
without arguments. This module loads without torch: scorers only use tensors that they are given.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gracekit.errors import MeasureError, RecipeError
from gracekit.protocols import Batch, Layer, Scorer, Targets
from gracekit.scoring.ghost import (
    gram,
    gram_is_cheaper,
    squares_from_grams,
    squares_from_product,
)

if TYPE_CHECKING:
    import torch


class Loss(Scorer):
    """Mean cross-entropy of the target tokens, in nats."""

    shrinks_with_length = False
    scale = "log"

    def start(self, batch: Batch) -> None:
        """Begin at zero."""
        self._sums = batch.zeros()

    def on_targets(self, batch: Batch, targets: Targets) -> None:
        """Add up the losses of each sample."""
        self._sums.index_add_(0, targets.sample, targets.token_loss)

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B], at least 0."""
        return self._sums / batch.num_targets


class GradientNorm(Scorer):
    """Norm of the gradient of the mean token loss over all linear layers of the decoder body.

    Weights and biases of these layers count; embeddings, the output head, norms and other
    parameters do not. A weight or bias that several layers share counts once, with its whole
    gradient.
    """

    shrinks_with_length = True
    scale = "log"

    def wants(self, layer: Layer) -> bool:
        """Every layer."""
        return True

    def start(self, batch: Batch) -> None:
        """Begin at zero."""
        self._squares = batch.zeros()
        self._num_layers = 0
        self._gram: tuple[torch.Tensor, torch.Tensor] | None = None

    def on_layer(
        self, batch: Batch, layer: Layer, inputs: torch.Tensor, gradients: torch.Tensor
    ) -> None:
        """Add the weight's squared norm, the cheaper way."""
        if gram_is_cheaper(inputs.shape[1], inputs.shape[2], gradients.shape[2]):
            self._squares += squares_from_grams(self._gram_of(inputs), gram(gradients))
        else:
            self._squares += squares_from_product(inputs, gradients)
        self._num_layers += 1

    def on_bias(self, batch: Batch, layer: Layer, gradient: torch.Tensor) -> None:
        """Add the bias' squared norm."""
        self._squares += gradient.square().sum(1)

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B], at least 0; rounding may leave the square of a tiny norm below it."""
        if not self._num_layers:
            raise MeasureError(
                "gradient-norm found no linear layer that a gradient reaches in this model "
                "(quantized layers are not read); use `scores: [loss]` and `importance: loss`"
            )
        self._gram = None
        return self._squares.clamp_min(0).sqrt()

    def _gram_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """Query, key and value (and gate and up) read one tensor: its Gram matrix is kept."""
        if self._gram is None or self._gram[0] is not inputs:
            self._gram = inputs, gram(inputs)
        return self._gram[1]


SCORERS: dict[str, type[Scorer]] = {"gradient-norm": GradientNorm, "loss": Loss}


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
    *("wants", "start", "on_targets", "on_layer", "on_bias", "finish"),
)


def build_scorers(names: Iterable[str]) -> dict[str, Scorer]:
    """One scorer for each name, in the order given; `RecipeError` for an unknown or double name."""
    scorers: dict[str, Scorer] = {}
    for name in names:
        if name in scorers:
            raise RecipeError(f"scoring.scores names {name!r} twice; leave one out")
        scorers[name] = scorer_class(name)()
    return scorers
