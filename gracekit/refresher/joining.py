"""`gracekit work`: measure shards of refreshes that run elsewhere and share their work.

    shards/<measure_id>-shared ─require_same→ model of the checkpoint ─claim, measure, save→ results

A worker reads neither the data nor the store's versions: the refresher offers the tokens. It takes
no lock, and writes claims and finished shards alone.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from gracekit.checkpoints.config import model_identity
from gracekit.checkpoints.layouts import layout_of
from gracekit.checkpoints.model import load_checked, load_tokenizer
from gracekit.checkpoints.weights import weights_digest
from gracekit.errors import (
    CheckpointError,
    CheckpointMismatchError,
    GracekitError,
    RecipeError,
    StoreError,
    StoreFormatError,
    StoreNotFoundError,
)
from gracekit.foreign import foreign
from gracekit.model_pass.context import TargetSamples
from gracekit.model_pass.executors import LocalExecutor
from gracekit.model_pass.pass_inputs import Shard
from gracekit.progress import Progress
from gracekit.recipe import CheckpointSection, Recipe, ScoringSection, measured_keys
from gracekit.refresher.flow import with_features_of_store
from gracekit.refresher.sharing import device_facts
from gracekit.scores.meaning import needs
from gracekit.store import DamagedTokensError, Offer, SharedWork, StorePaths, shared_work
from gracekit.types import Checkpoint, Json, Measurement, PinnedCheckpoint
from gracekit.version.program import differences, own_code, program

logger = logging.getLogger(__name__)

LOOK_S = 0.5
"""Seconds between two looks for work, while there is none."""


@dataclass(slots=True)
class WorkReport:
    """What a worker did."""

    num_refreshes: int = 0
    """Refreshes that it joined."""
    num_shards: int = 0
    """Shards that it handed over."""
    num_rows: int = 0
    """Rows of these."""


def work(
    root: Path,
    *,
    recipe: Recipe | None = None,
    device: str = "auto",
    once: bool = False,
    max_idle_s: float | None = None,
    stop: threading.Event | None = None,
) -> WorkReport:
    """Measure for the refreshes of a store that share their work, until a stop is asked for.

    Args:
        root: The store, as this host sees it.
        recipe: What the refresh is expected to measure; None: whatever it does.
        device: Where to measure; of the kind that the refresher measures on.
        once: Return when a refresh that it joined has ended.
        max_idle_s: Return after so many seconds without work.
        stop: Ends the call after the batch in progress.

    Raises:
        StoreNotFoundError: There is no directory `root`.
        StoreError: The refresh runs another version of the code, or on another kind of device.
        CheckpointError: The checkpoint cannot be read here, or is another one than the refresher's.
        RecipeError: The refresh goes by another recipe than `recipe`.
        MeasureError: The pass cannot go on here; others may take the shard.
    """
    if not root.is_dir():
        raise StoreNotFoundError(f"there is no store at {root}; name the refresher's, as seen here")
    paths, progress, report = StorePaths(root), Progress(stop), WorkReport()
    idle_since = time.monotonic()
    joined: _Joined | None = None
    logger.info("waiting for work in %s", paths.shards)
    try:
        while not progress.is_stopping:
            if joined is not None and not joined.is_on():
                joined.close()
                joined = None
                if once:
                    break
            if joined is None:
                joined = _join(paths, recipe, device)
                report.num_refreshes += joined is not None
            found = None if joined is None else joined.measure_one(progress)
            if found is not None:
                report.num_shards += 1
                report.num_rows += len(found.rows)
                idle_since = time.monotonic()
                continue
            if max_idle_s is not None and time.monotonic() - idle_since >= max_idle_s:
                break
            if not progress.is_stopping:
                time.sleep(LOOK_S)
    finally:
        if joined is not None:
            joined.close()
    return report


def require_same(task: Json, *, root: Path, recipe: Recipe | None, device: str) -> None:
    """Refuse to measure what would not have the same bytes.

    Raises:
        StoreError: Another version of the code, or another kind of device.
        RecipeError: Another recipe than the one given.
    """
    others = differences(task["program"], program())
    if others:
        raise StoreError(
            f"the refresh of {root} runs other code than this worker: {'; '.join(others)}. Its "
            "results would differ; install the same versions on both"
        )
    scoring = ScoringSection.model_validate(task["scoring"])
    others = differences(task["own_code"], own_code(scoring.scores))
    if others:
        raise StoreError(
            f"the refresh of {root} measures with other code of your own than this worker would: "
            f"{'; '.join(others)}. Its results would differ; put the same files on both hosts"
        )
    if recipe is not None:
        own = with_features_of_store(recipe)
        if own.digest("data", "target", "scoring") != task["recipe_digest"]:
            keys = [
                f"scoring.{key}"
                for key in measured_keys()
                if getattr(own.scoring, key) != getattr(scoring, key)
            ]
            raise RecipeError(
                f"the refresh of {root} goes by another recipe than the one given: "
                f"{', '.join(keys) or 'its sections data or target'} differ. Give the refresher's "
                "recipe, or none"
            )
    theirs, ours = task["device"], device_facts(scoring, device)
    if any(theirs[key] != ours[key] for key in ("type", "dtype")):
        raise StoreError(
            f"the refresh of {root} measures on {theirs['type']} in {theirs['dtype']}, and this "
            f"worker would on {ours['type']} in {ours['dtype']}: the results would differ. Choose "
            f"with --device, or set scoring.device to {ours['type']} for the refresh"
        )


class _Joined:
    """A refresh that this worker takes part in."""

    def __init__(self, shared: SharedWork, task: Json, executor: LocalExecutor) -> None:
        self._shared, self._task, self._executor = shared, task, executor
        self._offer: Offer | None = None

    def is_on(self) -> bool:
        """Whether the refresh still goes on, and is the same."""
        try:
            return bool(self._shared.task() == self._task)
        except StoreFormatError:
            return False

    def measure_one(self, progress: Progress) -> Measurement | None:
        """Measure and hand over one shard; None where there is none to measure."""
        if self._offer is None or not self._shared.is_offered(self._offer):
            self._offer = self._shared.newest_offer()
        offer = self._offer
        claim = None if offer is None else self._shared.claim(offer, set(range(len(offer))))
        if offer is None or claim is None:
            return None
        is_handed_over = False
        try:
            with claim.kept(self._shared.beat_s):
                try:
                    tokens = self._shared.tokens(offer, claim.shard)
                except DamagedTokensError as error:
                    logger.warning("%s: the refresher measures these rows itself", error)
                    return None
                except OSError:
                    return None  # the round is over
                executor = self._executor.on(Shard(tokens))
                measure = executor.look if offer.is_look else executor.measure
                rows = offer.rows[offer.place(claim.shard)]
                parts = list(measure(np.arange(len(rows)), progress))
                if sum(len(part.rows) for part in parts) < len(rows):
                    return None  # a stop was asked for
                whole = Measurement.concatenate(parts)
                # In the order of the offer, which is that of the shard: longest first.
                found = Measurement(
                    rows=rows[whole.rows],
                    scores=whole.scores,
                    features=whole.features,
                    sketches=whole.sketches,
                )
                is_handed_over = self._shared.save(offer, claim.shard, found)
        finally:
            if not is_handed_over and self._shared.is_offered(offer):
                claim.finish("released")
        if not is_handed_over:
            return None
        logger.info("measured %d rows of shard %d", len(found.rows), claim.shard + 1)
        return found

    def close(self) -> None:
        """Let go of the model."""
        self._executor.close()


def _join(paths: StorePaths, recipe: Recipe | None, device: str) -> _Joined | None:
    """The first refresh that shares its work; None where there is none."""
    for measure_id in shared_work(paths):
        shared = SharedWork(paths, measure_id, 1.0)
        try:
            task = shared.task()
        except StoreFormatError:
            if shared.is_there():
                raise
            continue
        with foreign(shared.directory, StoreFormatError):
            require_same(task, root=paths.root, recipe=recipe, device=device)
            shared.lease_s = float(task["lease_s"])
            try:
                executor = _executor(paths, shared, task, device)
            except (GracekitError, OSError):
                if shared.is_there():
                    raise
                continue  # it has ended meanwhile, and let go of its checkpoint
        model = task["model"]
        logger.info("joined the refresh from %s (step %d)", model["path"], model["step"])
        return _Joined(shared, task, executor)
    return None


def _executor(paths: StorePaths, shared: SharedWork, task: Json, device: str) -> LocalExecutor:
    """The pass over samples of the refresh, with its model loaded here."""
    scoring = ScoringSection.model_validate(task["scoring"])
    settings = CheckpointSection.model_validate(task["checkpoints"])
    pinned = _checkpoint(paths, task["model"], settings)
    update = {"num_threads": task["device"]["num_threads"], "executor": "local", "processes": None}
    scoring = scoring.model_copy(update=update)
    model, optimizer = load_checked(
        device,
        pinned=pinned,
        settings=settings,
        dtype=scoring.dtype,
        tokenizer=load_tokenizer(pinned, settings),
        with_optimizer=bool(needs(scoring.scores, "optimizer")),
    )
    target = _target(shared, task)
    return LocalExecutor(model, Shard([]), scoring, target=target, optimizer=optimizer)


def _checkpoint(paths: StorePaths, known: Json, settings: CheckpointSection) -> PinnedCheckpoint:
    """The refresher's checkpoint as this host sees it; raises `CheckpointError`."""
    checkpoint = Checkpoint(
        step=known["step"],
        path=Path(known["path"]),
        layout=known["layout"],
        completed_at=known["completed_at"],
    )
    below = known["below_store"]
    directory = Path(known["directory"]) if below is None else paths.root / below
    if not directory.is_dir():
        raise CheckpointError(
            f"the checkpoint of the refresh is not at {directory} on this host; mount it there, or "
            "put store and checkpoints on one file system, so that the store has links to them"
        )
    with foreign(directory, CheckpointError):
        digest = weights_digest(layout_of(checkpoint).weight_files(directory))
    identity = model_identity(directory, settings)
    if (digest, identity) != (known["digest"], known["identity"]):
        which = "weights" if digest != known["digest"] else "config or base model"
        raise CheckpointMismatchError(
            f"the model at {directory} is another one on this host than on the refresher's: its "
            f"{which} differ. Mount the same file system on both, or copy it again"
        )
    return PinnedCheckpoint(
        checkpoint=checkpoint, directory=directory, digest=digest, is_linked=below is not None
    )


def _target(shared: SharedWork, task: Json) -> TargetSamples | None:
    known = task["target"]
    if known is None:
        return None
    tokens = Shard(shared.target_tokens(np.array(known["lengths"], np.int64)))
    return TargetSamples(
        tokens=cast(Any, tokens),  # the model pass reads no more of them
        groups=np.array(known["groups"], np.int32),
        group_names=tuple(known["group_names"]),
        contents=np.zeros(len(known["groups"]), object),
        is_followed=bool(known["is_followed"]),
        keeps_sketches=bool(known["keeps_sketches"]),
    )
