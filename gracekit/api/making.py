"""The verbs that measure: `watch`, `refresh`, `plan`, `reference`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, overload

from gracekit import daemon, refresher
from gracekit.api.remote_runs import downloaded, remote_run
from gracekit.api.stores import Changes, RecipeLike, StoreLike, load_recipe, path
from gracekit.checkpoints import check_checkpoint, find_checkpoints, why_none
from gracekit.daemon import WatchReport
from gracekit.errors import CheckpointError
from gracekit.progress import Progress
from gracekit.refresher import (
    CostEstimate,
    PlanPreview,
    Prospect,
    ReferenceResult,
    Refresher,
    RefreshResult,
)
from gracekit.trackers.tracking import Tracking

__all__ = ["Prospect", "ReferenceResult", "plan", "reference", "refresh", "watch"]

logger = logging.getLogger(__name__)


@overload
def watch(
    recipe: RecipeLike,
    checkpoint_dir: str | Path,
    *,
    dry_run: Literal[True],
    store: StoreLike | None = None,
    set: Changes | None = None,
    strict: bool = False,
) -> PlanPreview: ...
@overload
def watch(
    recipe: RecipeLike,
    checkpoint_dir: str | Path,
    *,
    store: StoreLike | None = None,
    set: Changes | None = None,
    once: bool = False,
    on_backlog: Literal["latest", "all"] | None = None,
    max_checkpoints: int | None = None,
    dry_run: Literal[False] = False,
    metrics_port: int | None = None,
    metrics_address: str = "127.0.0.1",
    trackers: Sequence[str] | None = None,
    strict: bool = False,
    stop: threading.Event | None = None,
    on_version: Callable[[RefreshResult], None] = lambda result: None,
) -> WatchReport: ...
def watch(
    recipe: RecipeLike,
    checkpoint_dir: str | Path,
    *,
    store: StoreLike | None = None,
    set: Changes | None = None,
    once: bool = False,
    on_backlog: Literal["latest", "all"] | None = None,
    max_checkpoints: int | None = None,
    dry_run: bool = False,
    metrics_port: int | None = None,
    metrics_address: str = "127.0.0.1",
    trackers: Sequence[str] | None = None,
    strict: bool = False,
    stop: threading.Event | None = None,
    on_version: Callable[[RefreshResult], None] = lambda result: None,
) -> WatchReport | PlanPreview:
    """Follow a directory of checkpoints: a new version for each complete one.

    They are looked for in the directory itself and below it, down to `checkpoints.depth` folders;
    of several runs one is followed (docs/checkpoints.md). Training is never paused. The call
    returns when `stop` is set, or as `once` and `max_checkpoints` say.

    Args:
        recipe: A `Recipe`, or the path of one.
        checkpoint_dir: Where the trainer writes its checkpoints, or a folder above; it may not
            exist yet. Or the URL of such a folder in an object store: the newest checkpoints are
            downloaded beside the store.
        store: A store to use instead of the recipe's.
        set: Changes to the recipe, such as `{"selection.fraction": 0.2}`.
        once: Handle the newest complete checkpoint and return.
        on_backlog: Which to take when several checkpoints wait; default: as the recipe says.
        max_checkpoints: Return after so many new versions.
        dry_run: Only return the plan for the newest checkpoint.
        metrics_port: Serve metrics for Prometheus there; needs `gracekit[metrics]`.
        metrics_address: The address to serve them at.
        trackers: Where each version is logged: `tensorboard`, `wandb`, `trackio`, or the
            `package.module:Class` of a `gracekit.protocols.Tracker`; default: as the recipe says.
        strict: Refuse data with rows that cannot be used.
        stop: Ends the call after the batch in progress; `gracekit.stop_on_signals` gives one that
            Ctrl-C and SIGTERM set.
        on_version: Called with each result.

    Raises:
        StoreLockedError: Another daemon follows a run for this store.
        CheckpointError: With `once` or `dry_run`: there is no complete checkpoint; it says what
            there is.
        GracekitError: Recipe, data or store cannot be used.

    Example:
        >>> with gracekit.stop_on_signals() as stop:
        ...     gracekit.watch("gracekit.yaml", "runs/sft", stop=stop).num_published
        7
    """
    loaded = load_recipe(recipe, set, store)
    if on_backlog is not None:
        loaded = loaded.override({"checkpoints.on_backlog": on_backlog})
    remote = remote_run(checkpoint_dir, loaded, waits=not dry_run)
    checkpoint_dir = path(checkpoint_dir, "checkpoint_dir") if remote is None else remote.directory
    with ExitStack() as stack:
        if remote is not None:
            stack.enter_context(remote)
        if dry_run:
            if remote is not None:
                remote.sync()
                checkpoint_dir = remote.directory
            found = find_checkpoints(checkpoint_dir, loaded.checkpoints)
            if not found:
                raise CheckpointError(why_none(checkpoint_dir, loaded.checkpoints))
            return refresher.preview(loaded, found[-1], strict=strict)
        metrics = None
        if metrics_port is not None:
            metrics = daemon.Metrics(Path(loaded.store))
            port = stack.enter_context(metrics.serve(metrics_address, metrics_port))
            logger.info("metrics at http://%s:%d/metrics", metrics_address, port)
        tracking = Tracking(loaded, loaded.watch.trackers if trackers is None else trackers)

        def tell(result: RefreshResult) -> None:
            tracking.tell()
            on_version(result)

        return daemon.watch(
            Refresher.from_recipe(loaded, strict=strict),
            checkpoint_dir,
            stop=stop or threading.Event(),
            once=once,
            max_checkpoints=max_checkpoints,
            on_version=tell,
            metrics=metrics,
            beside=tracking,
            remote=remote,
        )


@overload
def refresh(
    recipe: RecipeLike,
    checkpoint: str | Path,
    *,
    dry_run: Literal[True],
    store: StoreLike | None = None,
    set: Changes | None = None,
    strict: bool = False,
) -> PlanPreview: ...
@overload
def refresh(
    recipe: RecipeLike,
    checkpoint: str | Path,
    *,
    store: StoreLike | None = None,
    set: Changes | None = None,
    dry_run: Literal[False] = False,
    strict: bool = False,
    stop: threading.Event | None = None,
) -> RefreshResult: ...
def refresh(
    recipe: RecipeLike,
    checkpoint: str | Path,
    *,
    store: StoreLike | None = None,
    set: Changes | None = None,
    dry_run: bool = False,
    strict: bool = False,
    stop: threading.Event | None = None,
) -> RefreshResult | PlanPreview:
    """Make one version from one checkpoint.

    Args:
        recipe: A `Recipe`, or the path of one.
        checkpoint: A complete checkpoint, a directory or (Lightning) a file; its layout is
            recognised. Or its URL in an object store: it is downloaded beside the store.
        store: A store to use instead of the recipe's.
        set: Changes to the recipe, such as `{"selection.fraction": 0.2}`.
        dry_run: Only return the plan; writes nothing.
        strict: Refuse data with rows that cannot be used.
        stop: Ends the refresh after the batch in progress with `RefreshStoppedError`.

    Raises:
        GracekitError: Says what is wrong and what to do; the last version stays valid.

    Example:
        >>> result = gracekit.refresh("gracekit.yaml", "runs/sft/checkpoint-300")
        >>> result.version, result.is_new
        (4, True)
    """
    loaded = load_recipe(recipe, set, store)
    with downloaded(checkpoint, loaded, "checkpoint") as place:
        if dry_run:
            found = check_checkpoint(place, loaded.checkpoints)
            return refresher.preview(loaded, found, strict=strict)
        return refresher.refresh(loaded, place, strict=strict, stop=stop)


@overload
def plan(
    recipe: RecipeLike,
    checkpoint: str | Path,
    *,
    worth: Literal[True],
    store: StoreLike | None = None,
    set: Changes | None = None,
    strict: bool = False,
) -> Prospect: ...
@overload
def plan(
    recipe: RecipeLike,
    checkpoint: str | Path,
    *,
    store: StoreLike | None = None,
    set: Changes | None = None,
    strict: bool = False,
    worth: Literal[False] = False,
) -> CostEstimate: ...
def plan(
    recipe: RecipeLike,
    checkpoint: str | Path,
    *,
    store: StoreLike | None = None,
    set: Changes | None = None,
    strict: bool = False,
    worth: bool = False,
) -> CostEstimate | Prospect:
    """What a refresh of a checkpoint would cost here: samples, tokens, seconds, memory, disk.

    Loads the model and times it on a few samples; writes nothing. `refresh(…, dry_run=True)` gives
    the plan alone, without the model.

    Args:
        recipe: A `Recipe`, or the path of one.
        checkpoint: A complete checkpoint.
        store: A store to use instead of the recipe's.
        set: Changes to the recipe, such as `{"refresh.max_fraction": 1.0}`.
        strict: Refuse data with rows that cannot be used.
        worth: Say what selection could bring on this data instead, from a few measured rows.

    Returns:
        The estimate; its `obstacles` say why the refresh cannot fit, and are empty when it can.

    Raises:
        MeasureError: Not even the longest sample alone can be measured.
        GracekitError: Recipe, data, checkpoint or store cannot be used.

    Example:
        >>> gracekit.plan("gracekit.yaml", "runs/sft/checkpoint-300").obstacles
        []
    """
    loaded = load_recipe(recipe, set, store)
    with downloaded(checkpoint, loaded, "checkpoint") as folder:
        found = check_checkpoint(folder, loaded.checkpoints)
        if worth:
            return refresher.prospect(loaded, found, strict=strict)
        return refresher.estimate(loaded, found, strict=strict)


def reference(
    recipe: RecipeLike,
    checkpoint: str | Path,
    *,
    output: str | Path | None = None,
    store: StoreLike | None = None,
    set: Changes | None = None,
    strict: bool = False,
    stop: threading.Event | None = None,
) -> ReferenceResult:
    """Measure every sample once with a reference model: its loss after its prompt and without.

    Three forward passes (after the prompt, after another of its group, and alone) over contents
    that the file does not have yet; a call that was stopped goes
    on. `selection.trust` and `selection.excess` read the file, in any store of the same data.

    Args:
        recipe: A `Recipe`, or the path of one.
        checkpoint: The reference model: the base model, an early checkpoint, or any other.
        output: The file; default: `selection.reference` of the recipe, else `reference.parquet`
            beside the store.
        store: Instead of the recipe's, for the default of `output`; no store is written to.
        set: Changes to the recipe, such as `{"scoring.batch_tokens": 8192}`.
        strict: Refuse data with rows that cannot be used.
        stop: Ends the pass after the batch in progress with `RefreshStoppedError`.

    Raises:
        DataError: The file is of another model, or the data cannot be used.
        GracekitError: Recipe or checkpoint cannot be used.

    Example:
        >>> gracekit.reference("gracekit.yaml", "models/base").num_distrusted
        12
    """
    loaded = load_recipe(recipe, set, store)
    place = loaded.selection.reference if output is None else path(output, "output")
    place = place or Path(loaded.store).parent / "reference.parquet"
    with downloaded(checkpoint, loaded, "checkpoint") as folder:
        found = check_checkpoint(folder, loaded.checkpoints)
        return refresher.measure_reference(
            loaded, found, Path(place), strict=strict, progress=Progress(stop)
        )
