"""Checkpoints that are named by a URL: where they are downloaded to."""

from __future__ import annotations

from pathlib import Path

from gracekit.api.stores import path
from gracekit.checkpoints import RemoteRun
from gracekit.recipe import CheckpointSection, Recipe
from gracekit.remote import address_of, cache_folder
from gracekit.scores.meaning import needs
from gracekit.store import StorePaths


def remote_run(
    place: object, recipe: Recipe | None, settings: CheckpointSection | None = None
) -> RemoteRun | None:
    """The run, or the checkpoint, of a URL; None for a path of this disk.

    Args:
        place: As the caller named it.
        recipe: Its store's cache holds what is downloaded; without a recipe the user's cache does.
        settings: How checkpoints are found; default: as the recipe says.
    """
    url = address_of(place)
    if url is None:
        return None
    cache, with_optimizer = cache_folder() / "checkpoints", False
    if recipe is not None:
        cache = StorePaths(Path(recipe.store)).cache / "checkpoints"
        with_optimizer = bool(needs(recipe.scoring.scores, "optimizer"))
        settings = settings or recipe.checkpoints
    return RemoteRun(url, cache, settings or CheckpointSection(), with_optimizer=with_optimizer)


def downloaded(
    place: object, recipe: Recipe | None, name: str, settings: CheckpointSection | None = None
) -> Path:
    """The path that an argument names; of a URL the folder into which it was downloaded now.

    Raises:
        RemoteError: The URL cannot be read.
        UsageError: It is neither a path nor a URL.
    """
    run = remote_run(place, recipe, settings)
    if run is None:
        return path(place, name)
    run.sync()
    return run.directory
