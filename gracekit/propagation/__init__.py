"""What a refresh tells about the rows that it did not measure: scores and features carried over.

Changes are propagated, not values: a sample has a part of its own that no neighbour knows.
Every estimate is tried on held-out measured rows first and used only as far as it helps there, so
that a drift which cannot be predicted leaves the rows as they were.

Shapes: `n` rows of the store, `m` measured rows, `c` covariates, `d` features.
"""

from gracekit.propagation.features import CarriedFeatures, FeatureEstimate, estimate_features
from gracekit.propagation.scores import Propagated, propagate_scores

__all__ = [
    "CarriedFeatures",
    "FeatureEstimate",
    "Propagated",
    "estimate_features",
    "propagate_scores",
]
