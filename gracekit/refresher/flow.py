"""One refresh, start to finish: a checkpoint in, a new version out.

    Checkpoint ─plan→ RefreshPlan ─measure→ Measurement ─propagate→ ScoreTable + features
                                                                     │ update
              Manifest ←commit── Selection ←─select── KnnGraph ←─────┘

`Refresher.refresh` is this picture. Heavy libraries are imported inside functions, so that the
command line starts without them. Above 400 lines, as it is the one place where stages meet.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gracekit.errors import CheckpointMismatchError, RecipeError, StoreDataMismatchError
from gracekit.progress import Progress
from gracekit.recipe import Recipe
from gracekit.refresher.changes import earlier_losses
from gracekit.refresher.growing import CurrentData, require_kin
from gracekit.refresher.measuring import MeasuredRows, measure
from gracekit.refresher.state import (
    StageClock,
    last_coreset,
    load_known,
    propagate,
    update_graph,
)
from gracekit.types import Checkpoint, PinnedCheckpoint
from gracekit.version.header import CheckpointInfo, DataDescription, Header, Settings
from gracekit.version.outcomes import GraphOutcome, PropagationOutcome, RefreshOutcome

if TYPE_CHECKING:
    from gracekit.model_pass.context import TargetSamples
    from gracekit.protocols import Executor
    from gracekit.samples import Growth, RawSamples, TokenTable
    from gracekit.store import KnownFacts, Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshResult:
    """What a refresh or a selection published."""

    version: int
    is_new: bool
    """False when the very same had been published before: nothing was added."""
    header: Header


class Refresher:
    """Refreshes of one store by one recipe; make it with `from_recipe`. It holds no model."""

    def __init__(self, recipe: Recipe, data: CurrentData) -> None:
        self.recipe = recipe
        self.root = Path(recipe.store)
        self._data = data
        self._facts: KnownFacts = {}

    @classmethod
    def from_recipe(cls, recipe: Recipe, *, strict: bool = False) -> Refresher:
        """Check the names in the recipe and read its data.

        Raises:
            RecipeError: A name (score, selector) does not exist.
            DataError: The data cannot be read or used; with `strict` also for skipped rows.
            StoreDataMismatchError: The store was made from other data.
        """
        from gracekit.model_pass.scorers import build_scorers
        from gracekit.selection import selector_for
        from gracekit.store import Store

        scorers = build_scorers(recipe.scoring.scores)
        needy = [name for name, scorer in scorers.items() if scorer.needs_target]
        if needy and recipe.target is None:
            raise RecipeError(
                f"the score {needy[0]!r} compares with a target set; name one in the recipe: "
                "`target: {path: target.jsonl}`"
            )
        selector_for(recipe.selection.selector)
        refresher = cls(recipe, CurrentData(recipe.data, strict=strict))
        if Store.exists(recipe.store):
            refresher.check_data(refresher.samples)
        else:
            Store.check_place(recipe.store)
        return refresher

    @property
    def samples(self) -> RawSamples:
        """The data as it was last read."""
        return self._data.samples

    def check_data(self, raw: RawSamples) -> None:
        """Raise `StoreDataMismatchError` where the data is other data than the store's."""
        from gracekit.store import Store

        if Store.exists(self.root):
            store = Store.open(self.root, facts=self._facts)
            if raw.fingerprint != store.dataset().fingerprint:
                self.merge(store, raw)

    def merge(self, store: Store, raw: RawSamples, tokens: TokenTable | None = None) -> Growth:
        """The store's samples brought in line with the data.

        Without `tokens` (of the data) those of new and changed samples count 0.
        """
        from gracekit.samples import merge, sample_table

        growth = merge(store.samples(), sample_table(raw, tokens), version=store.next_version())
        require_kin(
            growth,
            max_lost=self.recipe.refresh.max_lost,
            source=self.recipe.data.path,
            store=self.root,
        )
        return growth

    @contextmanager
    def locked(self, *, timeout_s: float | None = None, clean_up: bool = False) -> Iterator[Path]:
        """Hold the writer's lock, and clean up after a killed process; yields the store's path.

        Args:
            timeout_s: Seconds to wait for another writer; default: as `lock_store`.
            clean_up: Look through the whole store for what a killed process left; False: only when
                the last writer did not finish (see `Store.tidy`).
        """
        from gracekit.store import Store, lock_store

        with lock_store(self.root, timeout_s=timeout_s) as is_unfinished:
            if Store.exists(self.root):
                store = Store.open(self.root, facts=self._facts)
                for action in store.tidy(always=clean_up or is_unfinished):
                    logger.info("clean-up: %s", action)
            yield self.root

    def is_done(self, checkpoint: Checkpoint) -> bool:
        """Whether this recipe already made a version from exactly these files."""
        from gracekit.store import Store

        if not Store.exists(self.root):
            return False
        files, recipe = (str(checkpoint.path.resolve()), checkpoint.completed_at), self.recipe
        digest = recipe.digest()
        found = Store.open(self.root, facts=self._facts).find(
            lambda version: (
                version.checkpoint == files
                and version.recipe_digest == digest
                and version.operation in ("init", "refresh")
            )
        )
        return found is not None

    def refresh(self, checkpoint: Checkpoint, *, progress: Progress | None = None) -> RefreshResult:
        """Refresh the store from one complete checkpoint and publish the new version.

        The caller holds the lock (`locked`). A `GracekitError` names what failed; the last version
        stays valid whatever happens. `progress` is told of every stage and batch; a stop that it
        asks for raises `RefreshStoppedError` after the batch in progress, with all that is measured
        kept, or before the next stage. A commit that has begun is finished.
        """
        from gracekit.checkpoints import OPTIMIZER_FILES, model_identity, pin
        from gracekit.model_pass.features import to_float16
        from gracekit.selection import select
        from gracekit.store import CachePayload, StorePaths, VersionDraft

        progress = progress or Progress()
        clock = StageClock()
        recipe = self.recipe
        also = OPTIMIZER_FILES if self._needs_optimizer else ()
        progress.enter("pin")
        with pin(checkpoint, StorePaths(self.root).pins, also=also) as pinned:
            clock.lap("pin")
            progress.enter("load")
            self._take_up_data(pinned, StorePaths(self.root).cache)
            tokenizer, tokens = self.tokenize(pinned, StorePaths(self.root).cache)
            target = self.target_samples(tokenizer, StorePaths(self.root).cache)
            model = model_identity(pinned.directory, recipe.checkpoints)
            keys = (model, tokens.key, target.tokens.key if target else "")
            refresh_id = _identity(pinned, *keys, recipe.digest())
            measure_id = _identity(pinned, *keys, recipe.digest("data", "target", "scoring"))
            done = self._find(refresh_id)
            if done is not None:
                return done
            store = self._open_store(pinned, tokenizer, tokens)
            growth = self.merge(store, self.samples, tokens)
            samples, tokens = growth.samples, tokens.arranged(growth.places)
            with closing(self.executor(pinned, tokenizer, tokens, target)) as executor:
                known = load_known(store, recipe, growth)
                earlier = earlier_losses(store, samples, recipe.scoring.scores)
                clock.lap("load")
                progress.enter("measure")
                shards = store.shards(measure_id)
                run = MeasuredRows(executor, shards, samples.present, progress, earlier)
                evidence = measure(recipe, known, run, step=pinned.step)
                target_features, facts = executor.target_features(), executor.facts()
            clock.lap("measure", model_pass_s=run.model_pass_s)
        progress.enter("propagate")
        del executor, run  # the model's memory is free for the stages that follow
        update = propagate(
            recipe,
            samples,
            known,
            evidence.measurement,
            evidence.prediction,
            step=pinned.step,
            version=store.next_version(),
        )
        clock.lap("propagate")
        progress.enter("graph")
        index, graph, graph_facts = update_graph(recipe, known, update)
        clock.lap("graph")
        progress.enter("select")
        selection = select(
            recipe.selection,
            scores=update.scores,
            samples=samples,
            graph=graph,
            seed=recipe.seed,
            version=store.next_version(),
            features=update.features,
            target_features=target_features,
            parent=last_coreset(store),
            store=store.paths.root,
        )
        clock.lap("select")
        progress.enter("commit")
        version = store.commit(
            VersionDraft(
                operation="init" if store.latest() is None else "refresh",
                refresh_id=refresh_id,
                recipe_digest=recipe.digest(),
                measure_id=measure_id,
                plan=evidence.plan,
                measurement=evidence.measurement,
                audit=evidence.audit,
                scores=update.scores,
                selection=selection,
                samples=samples if growth.is_change else None,
                dataset=self._describe_data(store.dataset()),
                cache=CachePayload(
                    features=to_float16(update.features),
                    valid=update.valid,
                    target_features=target_features,
                    save_index=index.save,
                ),
                checkpoint=_describe(pinned),
                settings=Settings(
                    scoring=recipe.scoring,
                    refresh=recipe.refresh,
                    propagation=recipe.propagation,
                    graph=recipe.graph,
                    selection=recipe.selection,
                ),
                outcome=RefreshOutcome(
                    **evidence.facts,
                    **facts,
                    data_problem=self._data.problem,
                    propagation=PropagationOutcome.model_validate(update.facts),
                    graph=GraphOutcome.model_validate(graph_facts),
                ),
                timings=clock.timings(),
            ),
            keep=recipe.retention.keep,
        )  # fmt: skip
        return RefreshResult(version=version, is_new=True, header=store.header(version))

    def _find(self, refresh_id: str) -> RefreshResult | None:
        """The version of a refresh that was finished before."""
        from gracekit.store import Store

        is_there = Store.exists(self.root)
        store = Store.open(self.root, facts=self._facts) if is_there else None
        version = store.find_refresh(refresh_id) if store else None
        if store is None or version is None:
            return None
        return RefreshResult(version=version, is_new=False, header=store.header(version))

    def tokenize(self, pinned: PinnedCheckpoint, cache: Path) -> tuple[Any, TokenTable]:
        """The checkpoint's tokenizer, and every sample in its tokens, cached under `cache`."""
        from gracekit.checkpoints.model import load_tokenizer

        tokenizer = load_tokenizer(pinned, self.recipe.checkpoints)
        return tokenizer, self._tokens_of(self.samples, tokenizer, cache)

    def _tokens_of(self, raw: RawSamples, tokenizer: Any, cache: Path) -> TokenTable:
        from gracekit.samples import tokenize

        return tokenize(raw, tokenizer, self.recipe.data, cache / "tokens")

    def _take_up_data(self, pinned: PinnedCheckpoint, cache: Path) -> None:
        """Go on with the data as it is now, if it has changed and can be used."""
        from gracekit.checkpoints.model import load_tokenizer

        def check(raw: RawSamples) -> None:
            self.check_data(raw)
            self._tokens_of(raw, load_tokenizer(pinned, self.recipe.checkpoints), cache)

        self._data.renew(check)

    def _open_store(self, pinned: PinnedCheckpoint, tokenizer: Any, tokens: TokenTable) -> Store:
        """The store, made at the first checkpoint; later ones must fit what it was made with.

        Raises:
            StoreDataMismatchError: The samples have other tokens now.
            CheckpointMismatchError: The checkpoint is of another architecture.
        """
        from gracekit.checkpoints import describe_architecture
        from gracekit.samples import sample_table
        from gracekit.store import Store

        architecture = describe_architecture(pinned.directory, self.recipe.checkpoints)
        if Store.exists(self.root):
            store = Store.open(self.root, facts=self._facts)
            made_with = store.info.dataset
            if not self._has_these_tokens(store, tokenizer, tokens):
                raise StoreDataMismatchError(
                    f"the samples have other tokens than when the store {self.root} was made: the "
                    "tokenizer, its chat template, data.max_length, data.loss_on or "
                    "data.chat_template changed. Undo that, or name a new store"
                )
            expected = made_with.architecture  # None: of the first release
            if expected not in (None, architecture):
                raise CheckpointMismatchError(
                    f"{pinned.checkpoint.path} is of another architecture than the checkpoints "
                    f"that the store {self.root} follows: expected {expected}, found "
                    f"{architecture}. Name a new store for this run"
                )
            return store
        num_cut = int((tokens.num_targets == 0).sum())
        if num_cut:
            logger.warning(
                "%d of %d samples have no token to train on within data.max_length (%d): they are "
                "never selected", num_cut, len(tokens.num_targets), self.recipe.data.max_length,
            )  # fmt: skip
        return Store.create(
            self.root,
            samples=sample_table(self.samples, tokens),
            dataset=self._describe_data().model_copy(
                update={"tokens_key": tokens.key, "architecture": architecture}
            ),
        )

    def _has_these_tokens(self, store: Store, tokenizer: Any, tokens: TokenTable) -> bool:
        """Whether its first data would have the tokens that it was made with.

        By their key; where the store, of the first release, does not hold it, by the numbers of
        tokens of the samples that it knows.
        """
        from gracekit.samples import tokens_key

        key = store.info.dataset.tokens_key
        if key is not None:
            return bool(key == tokens_key(tokenizer, self.recipe.data, store.info.fingerprint))
        known = store.samples()
        counts = zip(known.num_prompt_tokens, known.num_response_tokens, strict=True)
        expected = dict(zip(known.content_hashes, counts, strict=True))
        found = zip(tokens.num_prompt_tokens, tokens.num_targets, strict=True)
        pairs = zip(self.samples.content_hashes, found, strict=True)
        return all(expected.get(digest, count) == count for digest, count in pairs)

    def _describe_data(self, known: DataDescription | None = None) -> DataDescription:
        """What to remember of the data besides its samples; the rest as it is `known`."""
        settings, raw = self.recipe.data, self.samples
        if Path(settings.path).exists():
            path = str(Path(settings.path).resolve())
            settings = settings.model_copy(update={"path": path})
        return DataDescription(
            settings=settings,
            detected_format=raw.format,
            num_skipped=len(raw.skipped),
            tokens_key=None if known is None else known.tokens_key,
            architecture=None if known is None else known.architecture,
        )

    @property
    def _needs_optimizer(self) -> bool:
        from gracekit.model_pass.scorers import scorer_class

        return any(scorer_class(name).needs_optimizer for name in self.recipe.scoring.scores)

    def target_samples(self, tokenizer: Any, cache: Path) -> TargetSamples | None:
        """The target set in the checkpoint's tokens, if the recipe names one."""
        from gracekit.model_pass.context import TargetSamples
        from gracekit.samples import load_samples, tokenize

        settings = self.recipe.target
        if settings is None:
            return None
        raw = load_samples(settings)
        tokens = tokenize(raw, tokenizer, settings, cache / "target-tokens")
        return TargetSamples(tokens=tokens, groups=raw.groups, group_names=raw.group_names)

    def executor(
        self,
        pinned: PinnedCheckpoint,
        tokenizer: Any,
        tokens: TokenTable,
        target: TargetSamples | None,
    ) -> Executor:
        """The model pass of this checkpoint."""
        from gracekit.checkpoints.model import devices_for, load_checked
        from gracekit.model_pass.executors import LocalExecutor
        from gracekit.model_pass.processes import ProcessExecutor

        scoring = self.recipe.scoring
        load = partial(
            load_checked,
            pinned=pinned,
            settings=self.recipe.checkpoints,
            dtype=scoring.dtype,
            tokenizer=tokenizer,
            with_optimizer=self._needs_optimizer,
        )
        devices = devices_for(scoring.device, scoring.processes)
        if len(devices) > 1:
            return ProcessExecutor(load, devices, tokens, scoring, target=target)
        model, optimizer = load(devices[0])
        return LocalExecutor(model, tokens, scoring, target=target, optimizer=optimizer)


def _identity(pinned: PinnedCheckpoint, *keys: str) -> str:
    """Short hash of checkpoint, `keys` of model, tokens and recipe: all that makes a result."""
    parts = (pinned.digest, str(pinned.step), *keys)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _describe(pinned: PinnedCheckpoint) -> CheckpointInfo:
    checkpoint = pinned.checkpoint
    return CheckpointInfo(
        step=checkpoint.step,
        path=str(checkpoint.path.resolve()),
        layout=checkpoint.layout,
        completed_at=checkpoint.completed_at,
        digest=pinned.digest,
    )
