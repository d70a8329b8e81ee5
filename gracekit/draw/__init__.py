"""Sampling with given inclusion probabilities, spread over a graph.

`probabilities` makes them of sizes, with exact totals; `pivotal` draws, by a local pivotal method.
"""

from gracekit.draw.pivotal import draw_spread
from gracekit.draw.probabilities import Inclusion, inclusion

__all__ = ["Inclusion", "draw_spread", "inclusion"]
