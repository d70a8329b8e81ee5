"""Losses of every sample under a reference model: one pass, once, into a file of their own."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gracekit.aim.losses import distrusted
from gracekit.errors import DataError, RefreshStoppedError
from gracekit.progress import Progress
from gracekit.protocols import Executor
from gracekit.recipe import Recipe
from gracekit.refresher.flow import Refresher
from gracekit.refresher.previewing import model_beside
from gracekit.samples import RawSamples, tokens_key
from gracekit.samples.other_prompts import WithOtherPrompts
from gracekit.samples.reference import ReferenceLosses
from gracekit.tabular import ShortRepr
from gracekit.texts import Texts
from gracekit.types import Checkpoint, Int32, Json, Rows
from gracekit.version.json_text import plain_json

logger = logging.getLogger(__name__)

PART = 256
"""Contents that are measured together."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ReferenceResult(ShortRepr):
    """What was measured with a reference model."""

    path: str
    """The file."""
    num_samples: int
    """Samples of the data that have target tokens."""
    num_measured: int
    """Contents measured by this call; those that the file had were not measured again."""
    num_known: int
    """Samples whose loss is known now."""
    num_without_prompt: int
    """Samples with a loss of which nothing says whether the response belongs to its prompt: they
    have none, or no sample of their group has another one to compare it with."""
    num_distrusted: int
    """Samples whose prompt tells too little of the response."""
    mean_loss: float
    """In nats a target token, over the samples; NaN: none is known."""

    def to_json(self) -> Json:
        """As a JSON object."""
        content: Json = plain_json(dataclasses.asdict(self))
        return content


def measure_reference(
    recipe: Recipe,
    checkpoint: Checkpoint,
    output: Path,
    *,
    strict: bool = False,
    progress: Progress | None = None,
) -> ReferenceResult:
    """Measure what the file does not have yet, and add it there, part by part.

    A call that is stopped leaves what was measured of both; one that is killed loses what is not
    written down, which is a tenth of all or a part. The next one goes on.

    Args:
        recipe: How the data is read and rendered.
        checkpoint: The reference model.
        output: The file.
        strict: Refuse data with rows that cannot be used.
        progress: Told of the pass; ends it after the batch in progress.

    Raises:
        DataError: The file is of another model or another rendering, or the data cannot be used.
        MeasureError: Not even the longest sample alone can be measured.
        RefreshStoppedError: A stop was asked for.
    """
    progress = progress or Progress()
    measured_with = recipe.override({
        "scoring.scores": ["loss"],
        "scoring.importance": "loss",
        "scoring.features": "embedding-mean",
        "scoring.hidden_block": None,
        "selection.selector": "random",
        "data.pair": "chosen",
        "target": None,
    })  # fmt: skip
    refresher = Refresher.from_recipe(measured_with, strict=strict)
    samples = refresher.samples
    with model_beside(refresher, checkpoint) as (pinned, model):
        tokens = model.tokens(samples)
        facts = {
            "model": f"{pinned.digest} {model.identity}",
            "rendering": tokens_key(model.tokenizer, model.data(samples), ""),
        }
        known = _begun(output, facts, checkpoint)
        usable = np.flatnonzero(tokens.num_targets > 0)
        hashes = samples.content_hashes
        _, first = np.unique(hashes[usable].codes(), return_index=True)
        asked = usable[np.sort(first)]
        both = WithOtherPrompts(tokens, samples.groups, samples.content_hashes)
        # Asked again is also what had no partner then, and what was not finite.
        losses, told = known.of(hashes[asked])
        missing = asked[~np.isfinite(losses) | (~np.isfinite(told) & (both.partners[asked] >= 0))]
        logger.info(
            "%d of %d contents to measure with %s", len(missing), len(asked), checkpoint.path
        )
        if len(missing):
            executor = model.executor(both, None)
            try:
                known = _measured(
                    executor, missing, known, samples, tokens.num_targets, output, progress
                )
            finally:
                executor.close()
    if not output.exists():
        known.write(output)
    loss, evidence = known.of(hashes[usable])
    there = np.isfinite(loss)
    return ReferenceResult(
        path=str(output),
        num_samples=len(usable),
        num_measured=len(missing),
        num_known=int(there.sum()),
        num_without_prompt=int((there & ~np.isfinite(evidence)).sum()),
        num_distrusted=int(distrusted(evidence).sum()),
        mean_loss=float(loss[there].mean(dtype=np.float64)) if there.any() else float("nan"),
    )


def _begun(output: Path, facts: Json, checkpoint: Checkpoint) -> ReferenceLosses:
    """What the file has; nothing where there is none. Raises where it cannot be gone on with."""
    if not output.exists():
        if not output.parent.is_dir():
            raise DataError(f"{output} cannot be written: {output.parent} is no directory")
        nothing = np.zeros(0, np.float32)
        texts = Texts.of([])
        return ReferenceLosses(
            content_hashes=texts,
            sample_ids=texts,
            loss=nothing,
            loss_other=nothing,
            loss_alone=nothing,
            num_targets=nothing.astype(np.int32),
            facts=facts,
        )
    found = ReferenceLosses.read(output)
    for name, what in (("model", "another model"), ("rendering", "another rendering of samples")):
        if found.facts.get(name) != facts[name]:
            raise DataError(
                f"{output} was measured with {what} than {checkpoint.path} and this recipe; give "
                "another file with -o, or remove it"
            )
    return found


def _measured(
    executor: Executor,
    rows: Rows,
    known: ReferenceLosses,
    samples: RawSamples,
    num_targets: Int32,
    output: Path,
    progress: Progress,
) -> ReferenceLosses:
    """With what the pass says of the rows, part by part; what is done is written down in between.

    Rows r + n and r + 2n of the executor's are row r after another prompt, and without one.
    """
    n, written = len(samples), 0
    for start in range(0, len(rows), PART):
        part = rows[start : start + PART]
        losses = np.full((3, n), np.nan, np.float32)
        is_done = np.zeros((3, n), np.bool_)
        for shard in executor.measure(np.concatenate([part, part + n, part + 2 * n]), progress):
            losses.reshape(-1)[shard.rows] = shard.scores["loss"]
            is_done.reshape(-1)[shard.rows] = True
        done = part[is_done[:, part].all(axis=0)]
        # Only now, so that a stop loses nothing of what is to be measured again.
        known = known.without(samples.content_hashes[done]).joined(
            ReferenceLosses(
                content_hashes=samples.content_hashes[done],
                sample_ids=samples.sample_ids[done],
                loss=losses[0, done],
                loss_other=losses[1, done],
                loss_alone=losses[2, done],
                num_targets=num_targets[done],
            )
        )
        written += len(done)
        is_last = start + PART >= len(rows) or progress.is_stopping
        if is_last or written >= len(known) / 10:  # the whole file is written each time
            known.write(output)
            written = 0
        if progress.is_stopping:
            raise RefreshStoppedError(
                f"stopped after {start + len(done):,} of {len(rows):,} contents; {output} has "
                "them, and the same call goes on from there"
            )
    return known
