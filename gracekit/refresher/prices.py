"""What measuring costs, in training: counted from the sizes that a model's config tells.

The unit is the training of one token: its forward pass, its backward pass and the update of what
it moves. A matrix of w weights takes w multiplications a token in the forward pass (F), as many for
the gradient of its input (A), and as many for its own gradient (W). Training all of a model is
F + A + W; training an adapter F + A, for the adapter's own matrices are small. gracekit's pass is
F + A with logits at the target tokens only, or F where no score needs a gradient; a look at the
features is the part of F below the block whose output they are: nothing for input embeddings.

Attention's products, norms and the optimizer are left out, and so is what reading a layer's
gradients costs: docs/refresh.md says how near the count comes.
"""

from __future__ import annotations

from dataclasses import dataclass

from gracekit.foreign import finite_number
from gracekit.recipe import Recipe
from gracekit.recipe.score_columns import PAIR_MARGIN
from gracekit.scores.meaning import features_read, needs, score_meaning
from gracekit.types import Json

_UNKNOWN_HEAD = 0.2
"""Share of a model's products that its output head has, where the config does not tell sizes."""
READING = 0.1
"""What reading layers off costs beside F + A, as a share of it (docs/performance.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Of one token, in tokens of training."""

    measure: float
    """Of the recipe's scores and features."""
    look: float
    """Of the features alone."""

    loss: float = 0.0
    """Of the loss alone."""

    def of_target(self, num_tokens: int, recipe: Recipe) -> float:
        """What a target set of so many tokens costs at a refresh: its features, its loss where the
        selection follows it, and its sketches where they are compared with.
        """
        compares = bool(needs(recipe.scoring.scores, "target")) or recipe.keeps_sketches
        of_token = self.loss if recipe.follows_target else self.look
        return num_tokens * (self.measure if compares else of_token)


def prices(architecture: Json, recipe: Recipe, target_share: float) -> Prices:
    """What the recipe's measuring costs with a model.

    Args:
        architecture: Kind and sizes of the model (`checkpoints.describe_architecture`).
        recipe: Says what is measured.
        target_share: Share of the tokens that carry loss: only these get logits.
    """
    scoring = recipe.scoring
    body, head = _products(architecture)
    training = (2 if "adapter" in architecture else 3) * (body + head)
    forward = body + target_share * head
    is_sketched = scoring.features == "gradient-sketch" or recipe.keeps_sketches
    depth = 1.0 if is_sketched else 0.0
    depth = max([depth, *map(_depth_of_backward, scoring.scores)])
    measure = forward + depth * (forward + 2 * forward * READING)
    if "ifd" in scoring.scores:
        measure += forward * target_share  # of the response alone
    if PAIR_MARGIN in scoring.scores:
        measure += forward  # of the rejected side, taken to be as long
    read = features_read(scoring)
    look = {
        "tokens": 0.0,
        "blocks": body * _depth(architecture, scoring.hidden_block),
        "states": body,
        "all": measure,
    }[read]
    return Prices(measure=measure / training, look=look / training, loss=forward / training)


_OWN_DEPTH = {"gradient-norm-last": 0.2, "lm-head": 0.0}
"""Scores whose backward pass ends early, or that have none: share of the blocks."""


def _depth_of_backward(name: str) -> float:
    """Share of the blocks that the backward pass of a score goes through."""
    meaning = score_meaning(name)
    has_one = meaning.shrinks_with_length or meaning.needs_optimizer or meaning.needs_target
    return _OWN_DEPTH.get(name, 1.0 if has_one else 0.0)


def _depth(architecture: Json, block: int | None) -> float:
    """Share of the decoder blocks that a hidden state needs."""
    num_blocks = _size(architecture, "num_layers")
    if block is None or num_blocks is None:
        return 1.0
    needed = block + 1 if block >= 0 else num_blocks + block + 1
    return min(max(needed, 0), num_blocks) / num_blocks


def _products(architecture: Json) -> tuple[float, float]:
    """Weights of the decoder body and of the output head that one token is multiplied with.

    A block is taken to have four square matrices of attention and three between the width and the
    inner width. Experts are not told apart: the inner width is that of one.
    """
    width, inner = _size(architecture, "hidden_size"), _size(architecture, "intermediate_size")
    blocks, words = _size(architecture, "num_layers"), _size(architecture, "vocab_size")
    if width is None or blocks is None or words is None:
        return 1 - _UNKNOWN_HEAD, _UNKNOWN_HEAD
    of_block = 4 * width**2 + (8 * width**2 if inner is None else 3 * width * inner)
    return blocks * of_block, width * words


def _size(architecture: Json, name: str) -> float | None:
    value = finite_number(architecture.get(name))
    return value if value is not None and value > 0 else None
