"""Projections of wide features to fewer numbers: the same on every machine, for ever."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from gracekit.model_pass.sketch import random_signs
from gracekit.types import Float32


@lru_cache(maxsize=4)
def projection(way: str, width: int, narrow: int, seed: int, key: str) -> Float32:
    """[width, narrow], which keeps inner products in the mean; read-only.

    Args:
        way: `orthogonal`, orthonormal directions drawn at random, or `signs`, random signs, which
            are nearly orthogonal where `narrow` is a small part of `width`, and lose more of what
            there is where it is a large one.
        width: of the features.
        narrow: at most `width`, unless by signs.
        seed: of the recipe.
        key: of what is projected.
    """
    signs = random_signs((width, narrow), seed, key)
    if way == "signs":
        matrix = signs / np.float32(math.sqrt(narrow))
    else:
        directions, triangle = np.linalg.qr(signs.astype(np.float64))
        directions[:, np.diag(triangle) < 0] *= -1  # those that Gram and Schmidt find
        matrix = (directions * math.sqrt(width / narrow)).astype(np.float32)
    matrix.flags.writeable = False
    return matrix
