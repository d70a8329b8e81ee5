"""The verb for other hosts: `work`."""

from __future__ import annotations

import threading

from gracekit import refresher
from gracekit.api.stores import Changes, RecipeLike, StoreLike, load_recipe, root_of
from gracekit.errors import UsageError
from gracekit.refresher import WorkReport


def work(
    store: StoreLike,
    *,
    recipe: RecipeLike | None = None,
    set: Changes | None = None,
    device: str = "auto",
    once: bool = False,
    max_idle_s: float | None = None,
    stop: threading.Event | None = None,
) -> WorkReport:
    """Measure shards of the refreshes of a store that share their work (`scoring.share`).

    To be called on any host that sees the store's directory and the checkpoint; it may start before
    the refresh, and end at any time. The refresh has the same bytes with and without it.

    Args:
        store: Path of the store as this host sees it, or an open `Store`.
        recipe: What the refresh is expected to measure; another one is refused. None: whatever it
            measures.
        set: Changes to that recipe.
        device: Where to measure: `auto`, `cpu`, `cuda`, `cuda:1`, `mps` or `split`; of the kind
            that the refresh has.
        once: Return when a refresh that it joined has ended.
        max_idle_s: Return after so many seconds without work; None: wait for the next refresh.
        stop: Ends the call after the batch in progress.

    Returns:
        How many refreshes were joined, and shards and rows handed over.

    Raises:
        StoreNotFoundError: There is no such directory.
        StoreError: The refresh runs other code, or measures on another kind of device.
        RecipeError: The refresh goes by another recipe.
        CheckpointError: The checkpoint cannot be read here, or is another one.
        MeasureError: The pass cannot go on here.
        UsageError: An argument is not what it should be.

    Example:
        >>> gracekit.work("/shared/gracekit-store", once=True).num_shards
        14
    """
    if set and recipe is None:
        raise UsageError("set changes a recipe, and none is given; give recipe too")
    if max_idle_s is not None and not max_idle_s >= 0:
        raise UsageError(f"max_idle_s is a number of seconds, 0 or more, found {max_idle_s!r}")
    root = root_of(store)
    return refresher.work(
        root,
        recipe=None if recipe is None else load_recipe(recipe, set, root),
        device=device,
        once=once,
        max_idle_s=max_idle_s,
        stop=stop,
    )
