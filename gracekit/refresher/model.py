"""The model of one checkpoint: its tokenizer, its identity, and the pass over samples.

Importing this module loads torch and transformers; of the refresher only a refresh from a
checkpoint and the estimate of its cost do.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from gracekit.checkpoints import describe_architecture, is_of_trl_sft, model_identity
from gracekit.checkpoints.convert import ensure_weights
from gracekit.checkpoints.devices import devices_for
from gracekit.checkpoints.model import load_checked, load_tokenizer
from gracekit.errors import DataError, RecipeError
from gracekit.model_pass.batches import TokenSource
from gracekit.model_pass.context import TargetSamples
from gracekit.model_pass.executor_names import open_executor
from gracekit.model_pass.executors import LocalExecutor
from gracekit.model_pass.pairs import PairExecutor, scoring_of_rejected
from gracekit.model_pass.pass_inputs import PassInputs
from gracekit.protocols import Executor
from gracekit.recipe import DataSection, Recipe, ScoringSection, TargetSection
from gracekit.refresher.sharing import share
from gracekit.samples import (
    RawSamples,
    TokenTable,
    can_be_trl,
    load_samples,
    tokenize,
    tokenize_pairs,
    tokens_key,
)
from gracekit.samples.near_copies import NearCopies
from gracekit.scores.meaning import needs
from gracekit.store import StorePaths
from gracekit.texts import Texts
from gracekit.types import Json, PinnedCheckpoint, Rows

logger = logging.getLogger(__name__)


class CheckpointModel:
    """What a refresh needs of a pinned checkpoint, under the recipe's settings.

    Args:
        pinned: The checkpoint.
        recipe: How it is read, and what is measured.
        cache: Directory in which tokens are kept.
        rendering: What the store was made with where the recipe's `data.rendering` is `auto`; None:
            there is no store yet.
    """

    def __init__(
        self, pinned: PinnedCheckpoint, recipe: Recipe, cache: Path, rendering: str | None = None
    ) -> None:
        self.pinned = pinned
        self._recipe = recipe
        self._cache = cache
        self._rendering = rendering

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, or that of `checkpoints.tokenizer`."""
        return load_tokenizer(self.pinned, self._recipe.checkpoints)

    @cached_property
    def architecture(self) -> Json:
        """Kind and sizes of the model: equal for all checkpoints of one run."""
        return describe_architecture(self.pinned.directory, self._recipe.checkpoints)

    @cached_property
    def identity(self) -> str:
        """What makes the model besides the checkpoint's own weights."""
        return model_identity(self.pinned.directory, self._recipe.checkpoints)

    def data(self, samples: RawSamples) -> DataSection:
        """The recipe's section, with what `rendering: auto` stands for."""
        data = self._recipe.data
        if data.rendering != "auto" or data.chat_template != "auto":
            return data
        if self._rendering is None:
            is_trl = is_of_trl_sft(self.pinned.checkpoint.path)
            is_trl = is_trl and can_be_trl(samples, self.tokenizer)
            self._rendering = "trl" if is_trl else "auto"
            if is_trl:
                logger.warning(
                    "the model card beside %s says that TRL's SFTTrainer trains, so tokens and "
                    "loss are taken to be its own (data.rendering: trl): loss on all tokens of "
                    "messages, and on the completion of a prompt. With assistant_only_loss set "
                    "data.loss_on to response; data.rendering chat or plain is without TRL",
                    self.pinned.checkpoint.path,
                )
        return data.model_copy(update={"rendering": self._rendering})

    def tokens(self, samples: RawSamples) -> TokenTable:
        """Every sample of the data in the checkpoint's tokens."""
        folders = self._cache / "tokens", self._cache / "rejected-tokens"
        return tokenize_pairs(samples, self.tokenizer, self.data(samples), *folders)

    def target_samples(
        self, samples: RawSamples, contents: tuple[str, ...] = ()
    ) -> TargetSamples | None:
        """The target set in the checkpoint's tokens, if the recipe names one.

        Args:
            samples: The data.
            contents: Those of the samples that a group of the data gave before; they stay.

        Raises `DataError` where it cannot be read, or the data has no group of that name.
        """
        settings, recipe = self._recipe.target, self._recipe
        if settings is None:
            return None
        if settings.group is not None:
            rows = rows_of_target(samples, settings.group, settings.group_count, contents)
            raw, tokens = samples, self.tokens(samples).arranged(rows)
        else:
            raw = load_samples(settings)
            rows = np.arange(len(raw))
            tokens = tokenize(raw, self.tokenizer, settings, self._cache / "target-tokens")
            _tell_left_out(settings, raw, int((tokens.num_targets == 0).sum()))
        found = TargetSamples(
            tokens=tokens,
            groups=raw.groups[rows],
            group_names=raw.group_names,
            contents=np.asarray(raw.content_hashes[rows]),
            is_followed=recipe.follows_target,
            keeps_sketches=recipe.keeps_sketches,
        )
        if not recipe.follows_target:
            return found
        # In no order of the file, so that the first ones stand for all; without empty ones, and
        # each content once: a copy in the half that judges would judge what it has chosen itself.
        usable = np.flatnonzero(tokens.num_targets > 0)
        _, first = np.unique(found.contents[usable].astype(str), return_index=True)
        if len(first) < len(usable):
            logger.warning(
                "%d of %d target samples are copies of others: each counts once",
                len(usable) - len(first), len(usable),
            )  # fmt: skip
        return found.take(usable[first])

    def target_rendering(self, samples: RawSamples) -> str:
        """Key of how the target's samples become tokens, whatever they are."""
        settings = self._recipe.target
        is_file = settings is not None and settings.group is None
        data = settings if is_file and settings is not None else self.data(samples)
        return str(tokens_key(self.tokenizer, data, ""))

    def near_copies(self, tokens: TokenTable) -> NearCopies:
        """What tells which of these samples say the same but for one passage."""
        decode = self.tokenizer.backend_tokenizer.decode_batch

        def texts_of(ids: list[int]) -> list[str]:
            texts: list[str] = decode([[token] for token in ids], skip_special_tokens=False)
            return texts

        return NearCopies(tokens, texts_of, self._recipe.data.max_length)

    def executor(self, tokens: TokenSource, target: TargetSamples | None) -> Executor:
        """The pass over samples, by the executor that the recipe names; of pairs both sides.

        Raises as `checkpoints.model.load_checked` does, and `RecipeError` for a name of none.
        """
        scoring = self._recipe.scoring
        load = partial(
            load_checked,
            pinned=self.pinned,
            settings=self._recipe.checkpoints,
            dtype=scoring.dtype,
            tokenizer=self.tokenizer,
            with_optimizer=bool(needs(scoring.scores, "optimizer")),
        )
        ensure_weights(self.pinned, self._recipe.checkpoints)  # once, not in each process
        inputs = PassInputs(
            load=load,
            devices=_devices(scoring),
            tokens=tokens,
            scoring=scoring,
            target=target,
        )
        own = open_executor(inputs)
        rejected_tokens = tokens.rejected if isinstance(tokens, TokenTable) else None
        if rejected_tokens is None:
            return own
        of_rejected = scoring_of_rejected(scoring)
        if isinstance(own, LocalExecutor):  # the model is in memory once
            return PairExecutor(own, own.beside(rejected_tokens, of_rejected))
        rejected = replace(inputs, tokens=rejected_tokens, scoring=of_rejected, target=None)
        return PairExecutor(own, open_executor(rejected))

    def share(
        self,
        own: Executor,
        tokens: TokenSource,
        target: TargetSamples | None,
        paths: StorePaths,
        measure_id: str,
    ) -> Executor:
        """`own` and the workers of other hosts together; raises `StoreWriteError`."""
        return share(
            own,
            paths=paths,
            measure_id=measure_id,
            pinned=self.pinned,
            identity=self.identity,
            recipe=self._recipe,
            tokens=tokens,
            target=target,
        )


def _devices(scoring: ScoringSection) -> tuple[str, ...]:
    """The devices of this host; as the recipe has it where others are to measure."""
    if scoring.executor in ("auto", "local", "processes"):
        return tuple(devices_for(scoring.device, scoring.processes))
    try:
        return tuple(devices_for(scoring.device, scoring.processes))
    except RecipeError:  # this host has none of that kind, or fewer
        return (scoring.device,)


MOST_OF_GROUP = 0.2
"""Share of a group that becomes the target set, at most."""


def _tell_left_out(settings: TargetSection, raw: RawSamples, num_empty: int) -> None:
    """A warning where rows of a target file are no target samples."""
    num_left_out = len(raw.skipped) + num_empty
    if not num_left_out:
        return
    first = "no token of theirs with loss is within target.max_length"
    if raw.skipped:
        first = f"the first is row {raw.skipped[0].source_row}: {raw.skipped[0].reason}"
    logger.warning(
        "%d of %d rows of the target %s cannot be used, and the target is the others: %s",
        num_left_out, len(raw) + len(raw.skipped), settings.name, first,
    )  # fmt: skip


def rows_of_target(
    samples: RawSamples, group: str, count: int, contents: tuple[str, ...] = ()
) -> Rows:
    """[t] rows of a group that become the target set: a spread of them, ascending.

    Those that were it before stay while they are in the data; of the others their ids decide.

    Raises `DataError` where there is no such group, or it is too small to give any.
    """
    known = samples.group_names
    if group not in known:
        shown = ", ".join(map(repr, known[:10]))
        raise DataError(
            f"target.group is {group!r}, and the data has no such group; it has {shown}"
            + (" and more" if len(known) > 10 else "")
            + ("" if len(known) > 1 else "; name their column in data.group_column")
        )
    rows = np.flatnonzero(samples.groups == known.index(group))
    most = min(count, int(MOST_OF_GROUP * len(rows)))
    if most < 1:
        raise DataError(
            f"target.group {group!r} has {len(rows)} samples, and the target set is made of at "
            f"most {MOST_OF_GROUP:.0%} of them; give a file with target samples (target.path)"
        )
    ids = samples.sample_ids[rows].tolist()
    hashes = [hashlib.sha256(str(i).encode(errors="replace")).digest() for i in ids]
    is_new = (Texts.of(contents).places_of(samples.content_hashes[rows]) < 0).tolist()
    chosen = sorted(range(len(rows)), key=lambda i: (is_new[i], hashes[i]))[:most]
    return np.sort(rows[chosen])
