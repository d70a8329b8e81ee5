"""Checkpoints that are named by a URL: where they are downloaded to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gracekit.api.stores import path
from gracekit.checkpoints import RemoteRun
from gracekit.recipe import CheckpointSection, Recipe
from gracekit.remote import address_of, cache_folder
from gracekit.scores.meaning import needs
from gracekit.store import StorePaths


def remote_run(
    place: object,
    recipe: Recipe | None,
    settings: CheckpointSection | None = None,
    *,
    waits: bool = False,
) -> RemoteRun | None:
    """The run, or the checkpoint, of a URL; None for a path of this disk.

    Args:
        place: As the caller named it.
        recipe: Its store's cache holds what is downloaded; without a recipe the user's cache does.
        settings: How checkpoints are found; default: as the recipe says.
        waits: Whether to wait for another process that uses what was downloaded of the URL.
    """
    url = address_of(place)
    if url is None:
        return None
    cache, with_optimizer = cache_folder() / "checkpoints", False
    if recipe is not None:
        cache = StorePaths(Path(recipe.store)).cache / "checkpoints"
        with_optimizer = bool(needs(recipe.scoring.scores, "optimizer"))
        settings = settings or recipe.checkpoints
    settings = settings or CheckpointSection()
    return RemoteRun(url, cache, settings, with_optimizer=with_optimizer, waits=waits)


@contextmanager
def downloaded(
    place: object, recipe: Recipe | None, name: str, settings: CheckpointSection | None = None
) -> Iterator[Path]:
    """The path that an argument names; of a URL the folder into which it was downloaded now, which
    no other process changes in the block.

    Raises:
        RemoteError: The URL cannot be read.
        UsageError: It is neither a path nor a URL.
    """
    run = remote_run(place, recipe, settings)
    if run is None:
        yield path(place, name)
        return
    with run:
        run.sync()
        yield run.directory
