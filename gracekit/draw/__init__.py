"""Sampling with given inclusion probabilities, spread over a graph and over time.

- `probabilities`: of sizes, with exact totals.
- `capped`: the same in floats, for a trainer and the meter.
- `over_time`: given what was drawn before, so that uses follow the probabilities.
- `pivotal`: a draw that spreads over the graph (compiled).
- `walk`: an order of the rows in which neighbours in the graph are near each other (compiled).
- `along`: a draw that spreads over an order of the rows, for a trainer (NumPy only).
- `worth`, `mean_gradient`: what a draw is worth, and how far its mean gradient is off.
"""
