"""Sampling with given inclusion probabilities, spread over a graph and over time.

- `probabilities`: of sizes, with exact totals.
- `over_time`: given what was drawn before, so that uses follow the probabilities.
- `pivotal`: a draw that spreads over the graph (compiled).
- `walk`: an order of the rows in which neighbours of the graph come soon after each other.
- `along`: a draw that spreads over an order of the rows, for a trainer (NumPy only).
"""
