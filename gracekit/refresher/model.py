"""The model of one checkpoint: its tokenizer, its identity, and the pass over samples.

Importing this module loads torch and transformers; of the refresher only a refresh from a
checkpoint and the estimate of its cost do.
"""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

from gracekit.checkpoints import describe_architecture, model_identity
from gracekit.checkpoints.model import devices_for, load_checked, load_tokenizer
from gracekit.model_pass.context import TargetSamples
from gracekit.model_pass.executors import LocalExecutor
from gracekit.model_pass.processes import ProcessExecutor
from gracekit.protocols import Executor
from gracekit.recipe import Recipe
from gracekit.samples import RawSamples, TokenTable, load_samples, tokenize
from gracekit.scores.meaning import needs
from gracekit.types import Json, PinnedCheckpoint


class CheckpointModel:
    """What a refresh needs of a pinned checkpoint, under the recipe's settings.

    Args:
        pinned: The checkpoint.
        recipe: How it is read, and what is measured.
        cache: Directory in which tokens are kept.
    """

    def __init__(self, pinned: PinnedCheckpoint, recipe: Recipe, cache: Path) -> None:
        self.pinned = pinned
        self._recipe = recipe
        self._cache = cache

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

    def tokens(self, samples: RawSamples) -> TokenTable:
        """Every sample of the data in the checkpoint's tokens."""
        return tokenize(samples, self.tokenizer, self._recipe.data, self._cache / "tokens")

    def target_samples(self) -> TargetSamples | None:
        """The target set in the checkpoint's tokens, if the recipe names one."""
        settings = self._recipe.target
        if settings is None:
            return None
        raw = load_samples(settings)
        tokens = tokenize(raw, self.tokenizer, settings, self._cache / "target-tokens")
        return TargetSamples(tokens=tokens, groups=raw.groups, group_names=raw.group_names)

    def executor(self, tokens: TokenTable, target: TargetSamples | None) -> Executor:
        """The pass over samples: in this process, or in one for each device.

        Raises as `checkpoints.model.load_checked` does.
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
        devices = devices_for(scoring.device, scoring.processes)
        if len(devices) > 1:
            return ProcessExecutor(load, devices, tokens, scoring, target=target)
        model, optimizer = load(devices[0])
        return LocalExecutor(model, tokens, scoring, target=target, optimizer=optimizer)
