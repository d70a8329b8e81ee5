"""How many different samples a run has used, beside what random re-drawing would have reached.

Of n usable samples, of which a random draw takes B, a sample that was not used yet stays so with
the probability 1 - B/n. So the mean number D of different samples grows by

    D' = D + B · (1 - D / n)

with each version, which is D = n · (1 - Π (1 - B_e / n)) over versions e while n stays the same.
Where samples leave the data, D falls in proportion (`refresher.uses`).
"""

from __future__ import annotations

import numpy as np

from gracekit.types import DrawState, Json, Rows, SampleTable


def repetition(
    rows: Rows,
    *,
    samples: SampleTable,
    state: DrawState,
    num_distinct_random: float,
    num_usable: int,
) -> Json:
    """`num_distinct` and `num_distinct_random` after a version with these rows.

    Args:
        rows: [b] The coreset.
        samples: [n]; those that left the data do not count.
        state: Before this version.
        num_distinct_random: Before this version.
        num_usable: Samples that a random draw could take, at least b.
    """
    is_used = state.uses > 0
    is_used[rows] = True
    before = min(num_distinct_random, num_usable)
    return {
        "num_distinct": int(np.count_nonzero(is_used & samples.present)),
        "num_distinct_random": before + len(rows) * (1 - before / num_usable),
    }
