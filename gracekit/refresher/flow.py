"""One refresh, start to finish: a checkpoint in, a new version out.

    Checkpoint ─pin, load→ CheckpointModel, samples, LastRefresh ─step→ Refreshed ─commit→ version

`Refresher.refresh` is this picture: it opens, calls `step`, and commits. The model is loaded by
`model`, which `load_libraries` imports: who only checks recipe and data needs no torch.
Above 400 lines, with the refusals of data and stores that do not fit, which need what it holds.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gracekit.checkpoints import OPTIMIZER_FILES, check_checkpoint, pin, read_pace
from gracekit.errors import (
    CheckpointIncompleteError,
    CheckpointMismatchError,
    RecipeError,
    StoreDataMismatchError,
    StoreWriteError,
)
from gracekit.progress import Progress
from gracekit.recipe import Recipe
from gracekit.refresher.aiming import Aiming
from gracekit.refresher.clock import StageClock
from gracekit.refresher.data import CurrentData, require_same_data
from gracekit.refresher.drafting import draft_version
from gracekit.refresher.loading import earlier_losses, last_coreset, load_last
from gracekit.refresher.measured_rows import MeasuredRows
from gracekit.refresher.publishing import publish_by_recipe
from gracekit.refresher.result import RefreshResult
from gracekit.refresher.spent import allowance_at, with_seconds, with_target
from gracekit.refresher.step import step
from gracekit.refresher.uses import (
    last_probabilities,
    num_distinct_random,
    state_and_losses,
)
from gracekit.samples import (
    Growth,
    RawSamples,
    TokenTable,
    earlier_tokens_key,
    merge,
    same_where_known,
    sample_table,
    tokens_key,
)
from gracekit.scores.meaning import needs
from gracekit.scratch import scratch_in
from gracekit.selection import selector_for
from gracekit.store import (
    KnownFacts,
    Store,
    StorePaths,
    lock_store,
)
from gracekit.types import Checkpoint, Json, PinnedCheckpoint
from gracekit.version.header import CheckpointInfo, DataDescription

if TYPE_CHECKING:
    from gracekit.refresher.model import CheckpointModel

logger = logging.getLogger(__name__)


class Refresher:
    """Refreshes of one store by one recipe; make it with `from_recipe`. It holds no model."""

    def __init__(self, recipe: Recipe, data: CurrentData) -> None:
        self.recipe = recipe
        self.root = Path(recipe.store)
        self._data = data
        self._facts: KnownFacts = {}
        self._held: Store | None = None
        """The store, on one snapshot, for as long as this has the lock."""
        self._was_there = False
        """Whether there was a store at any time."""
        self._uncounted: dict[str, float] = {}
        """Seconds that no version's account holds yet: of reading the data before the first
        refresh, and of the last commit, which comes after its own account. The next refresh counts
        them."""

    @classmethod
    def from_recipe(cls, recipe: Recipe, *, strict: bool = False) -> Refresher:
        """Check the names in the recipe and read its data.

        Raises:
            RecipeError: A name (score, selector) does not exist.
            DataError: The data cannot be read or used; with `strict` also for skipped rows.
            StoreDataMismatchError: The store was made from other data.
        """
        compared = needs(recipe.scoring.scores, "target")
        if compared and recipe.target is None:
            raise RecipeError(
                f"the score {compared[0]!r} compares with a target set; name one in the recipe: "
                "`target: {path: target.jsonl}`"
            )
        selector_for(recipe.selection.selector)
        recipe = with_features_of_store(recipe)
        started = time.perf_counter()
        refresher = cls(recipe, CurrentData(recipe.data, strict=strict))
        refresher._uncounted["read"] = time.perf_counter() - started
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
        store = self._store()
        if store is not None and raw.fingerprint != store.dataset().fingerprint:
            self.merge(store, raw)

    def _store(self) -> Store | None:
        """The store; None where there is none yet."""
        if self._held is not None:
            return self._held
        if not Store.exists(self.root):
            return None
        self._was_there = True
        return Store.open(self.root, facts=self._facts)

    def _require_not_gone(self) -> None:
        """A store that was there and is not is no reason to begin another one in its place."""
        if self._was_there and not Store.exists(self.root):
            raise StoreWriteError(
                f"the store {self.root} is gone, though it was there before: it was moved or "
                "removed, or its disk is not mounted. Put it back; for a new store in its place, "
                "start again"
            )

    def merge(self, store: Store, raw: RawSamples, tokens: TokenTable | None = None) -> Growth:
        """The store's samples brought in line with the data.

        Without `tokens` (of the data) those of new and changed samples count 0.
        """
        growth = merge(store.samples(), sample_table(raw, tokens), version=store.next_version())
        require_same_data(
            growth,
            max_lost=self.recipe.refresh.max_lost,
            source=self.recipe.data.name,
            store=self.root,
        )
        return growth

    @contextmanager
    def locked(self, *, timeout_s: float | None = None, clean_up: bool = False) -> Iterator[Path]:
        """Hold the writer's lock, and clean up after a killed process; yields the store's path.

        Args:
            timeout_s: Seconds to wait for another writer; default: that of `lock_store`.
            clean_up: Look through the whole store for what a killed process left; False: only when
                the last writer did not finish (see `Store.tidy`).

        Raises `StoreWriteError` where the store was there before and is not, and `UnreadableError`
        where a version cannot be read (see `Store.lock`, which is nested here and does not look).
        """
        self._require_not_gone()
        with lock_store(self.root, timeout_s=timeout_s) as is_unfinished:
            self._held = self._store()
            try:
                if self._held is not None:
                    self._held.require_readable()
                    for action in self._held.tidy(always=clean_up or is_unfinished):
                        logger.info("clean-up: %s", action)
                yield self.root
            finally:
                self._held = None
                self._was_there = self._was_there or Store.exists(self.root)

    def is_done(self, checkpoint: Checkpoint) -> bool:
        """Whether this recipe already made a version from exactly these files."""
        store = self._store()
        if store is None:
            return False
        files = str(checkpoint.path.resolve()), checkpoint.completed_at
        digest = self.recipe.digest()
        found = store.find(
            lambda version: (
                version.checkpoint == files
                and version.recipe_digest == digest
                and version.operation in ("init", "refresh")
            )
        )
        return found is not None

    @staticmethod
    def load_libraries() -> type[CheckpointModel]:
        """Import what a refresh needs of torch and transformers, which takes seconds.

        A daemon does so while it waits for a checkpoint, and every refresh before its clock
        starts: it is part of what a process takes to start, which no account holds.
        """
        from gracekit.refresher.model import CheckpointModel

        return CheckpointModel

    def open(self, pinned: PinnedCheckpoint, cache: Path) -> CheckpointModel:
        """The checkpoint's model under this recipe, not loaded yet; tokens are kept in `cache`."""
        store = self._store()
        rendering = None
        if store is not None:
            made_with = store.dataset()
            # Without a chat template it could not be told; it may be there now.
            is_open = made_with.has_chat_template is False
            is_open &= made_with.settings.rendering == "auto"
            rendering = None if is_open else made_with.settings.rendering
        return self.load_libraries()(pinned, self.recipe, cache, rendering)

    def refresh(self, checkpoint: Checkpoint, *, progress: Progress | None = None) -> RefreshResult:
        """Refresh the store from one complete checkpoint and publish the new version.

        The caller holds the lock (`locked`). A `GracekitError` names what failed; the last version
        stays valid whatever happens. `progress` is told of every stage and batch; a stop that it
        asks for raises `RefreshStoppedError` after the batch in progress, with all that is measured
        kept, or before the next stage. A commit that has begun is finished.
        """
        self.load_libraries()
        progress, clock = progress or Progress(), StageClock(self._uncounted)

        def enter(stage: str) -> None:
            clock.enter(stage)
            progress.enter(stage)

        recipe, paths = self.recipe, StorePaths(self.root)
        also = OPTIMIZER_FILES if needs(recipe.scoring.scores, "optimizer") else ()
        enter("pin")
        # What is held is let go of once all is measured, or when something fails.
        with scratch_in(paths.root), ExitStack() as held:
            pinned = held.enter_context(
                pin(
                    checkpoint, paths.pins, recipe.checkpoints,
                    also=also, conversions=paths.cache / "converted",
                )
            )  # fmt: skip
            enter("load")
            model = self.open(pinned, paths.cache)
            self._take_up_data(model)
            tokens = model.tokens(self.samples)
            target = model.target_samples(self.samples, self._target_contents())
            keys = (model.identity, tokens.key, target.tokens.key if target else "")
            refresh_id = _identity(pinned, *keys, recipe.digest())
            measured = recipe.digest("data", "target", "scoring")
            if recipe.keeps_sketches:
                measured += " sketches"
            measure_id = _identity(pinned, *keys, measured)
            done = self._made_before(refresh_id)
            if done is not None:
                return done
            store, other_tokens = self._open_store(model, tokens)
            growth = self.merge(store, self.samples, tokens)
            if other_tokens:
                data = sample_table(self.samples, tokens)
                growth = merge(
                    store.samples(), data, version=store.next_version(), other_tokens=True
                )
            parent = last_coreset(store)
            pace = read_pace(pinned.directory)
            allowance = allowance_at(
                store,
                recipe,
                model.architecture,
                pace,
                step=pinned.step,
                samples=growth.samples,
                trained_rows=parent,
                elapsed_s=clock.elapsed_s(),
                left_over=store.left_over(measure_id),
            )
            allowance, measured_target = with_target(allowance, target, recipe)
            arranged = tokens.arranged(growth.places)
            executor = model.executor(arranged, measured_target)
            if recipe.scoring.share:
                executor = model.share(executor, arranged, measured_target, paths, measure_id)
            measure = held.enter_context(
                MeasuredRows(
                    executor,
                    store.shards(measure_id),
                    store.shards(measure_id, looks=True),
                    growth.samples.present,
                    progress,
                    earlier_losses(store, growth.samples, recipe.scoring.scores),
                    when_finished=held.close,
                )
            )
            state, trained = state_and_losses(store, growth.samples, parent, pinned.step)
            refreshed = step(
                load_last(store, recipe, growth),
                measure,
                recipe,
                samples=growth.samples,
                step=pinned.step,
                version=store.next_version(),
                parent=parent,
                parent_probabilities=last_probabilities(store, growth.samples),
                state=state,
                num_distinct_random=num_distinct_random(store, growth.samples),
                trained=trained,
                allowance=allowance,
                aiming=Aiming.of(
                    store,
                    contents=None if target is None else target.contents,
                    recipe=recipe,
                    pace=pace,
                    rendering=tokens_key(model.tokenizer, model.data(self.samples), ""),
                    target_rendering=model.target_rendering(self.samples),
                    near_copies=model.near_copies(arranged),
                    step=pinned.step,
                ),
                store=store,
                enter=enter,
            )
        timings = clock.timings(model_pass_s=measure.model_pass_s)
        progress.enter("commit")
        draft = draft_version(
            refreshed,
            recipe,
            refresh_id=refresh_id,
            measure_id=measure_id,
            state=state,
            checkpoint=_describe_checkpoint(pinned),
            is_first=store.latest() is None,
            outcome=refreshed.outcome.model_copy(
                update={
                    "num_resumed": measure.num_resumed,
                    "optimizer": measure.optimizer,
                    "data_problem": self._data.problem,
                }
            ),
            samples=growth.samples if growth.is_change else None,
            dataset=self._describe_data(model, tokens, store, is_new=other_tokens),
            timings=timings,
            cost=with_seconds(refreshed.cost, timings),
        )
        started = time.perf_counter()
        version = store.commit(draft, keep=recipe.retention.keep)
        self._uncounted = {"last_commit": time.perf_counter() - started}
        return RefreshResult(version=version, is_new=True, header=store.header(version))

    def publish(self, progress: Progress | None = None) -> None:
        """Copy new versions to `publish.url`, where the recipe has one; see `publish_by_recipe`."""
        publish_by_recipe(self.root, self.recipe.publish.url, progress)

    def _target_contents(self) -> tuple[str, ...]:
        """The contents of the target samples so far, where a group of the data is the target."""
        store = self._store()
        newest = None if store is None else store.newest_scores()
        aim = None if store is None or newest is None else store.header(newest).aim
        return () if aim is None else tuple(aim.contents)

    def _made_before(self, refresh_id: str) -> RefreshResult | None:
        """The version of a refresh that was finished before."""
        store = self._store()
        version = None if store is None else store.find_refresh(refresh_id)
        if store is None or version is None:
            return None
        return RefreshResult(version=version, is_new=False, header=store.header(version))

    def _take_up_data(self, model: CheckpointModel) -> None:
        """Go on with the data as it is now, if it has changed and can be used."""

        def check(raw: RawSamples) -> None:
            self.check_data(raw)
            model.tokens(raw)

        self._data.renew(check)

    def _open_store(self, model: CheckpointModel, tokens: TokenTable) -> tuple[Store, bool]:
        """The store, made at the first checkpoint; later ones must fit what it was made with.

        And whether the samples have other tokens than before because the tokenizer has got its
        chat template since.

        Raises:
            StoreDataMismatchError: The samples have other tokens for another reason.
            CheckpointIncompleteError: The tokenizer has lost its chat template.
            CheckpointMismatchError: The checkpoint is of another architecture.
        """
        store = self._store()
        if store is not None:
            other_tokens = not self._has_these_tokens(store, model, tokens)
            had, has = store.dataset().has_chat_template, bool(model.tokenizer.chat_template)
            if other_tokens and had and not has:
                raise CheckpointIncompleteError(
                    f"the tokenizer of {model.pinned.checkpoint.path} has no chat template, and "
                    "those of earlier checkpoints had one: it may not be copied yet. Copy "
                    "chat_template.jinja, or name the tokenizer in checkpoints.tokenizer"
                )
            if other_tokens and had is False and has:
                logger.warning(
                    "the tokenizer has a chat template now, which it had not when the store %s was "
                    "made: all samples are rendered with it and measured anew",
                    self.root,
                )
            elif other_tokens:
                raise StoreDataMismatchError(
                    f"the samples have other tokens than when the store {self.root} was made: the "
                    "tokenizer, its chat template, the layout of rows, data.max_length, "
                    "data.loss_on or data.chat_template changed, TRL's training template "
                    "(rendering trl, loss_on response) is found only now or no more, or an earlier "
                    "release put loss elsewhere with this chat template. Undo that, or name a new "
                    "store"
                )
            expected = store.info.dataset.architecture  # None: of the first release
            # The embeddings grow with tokens that are added. What the samples' are was told above.
            known, found = (_without_vocabulary(a) for a in (expected or {}, model.architecture))
            if expected is not None and known != found:
                raise CheckpointMismatchError(
                    f"{model.pinned.checkpoint.path} is of another architecture than the "
                    f"checkpoints that the store {self.root} follows: expected {expected}, found "
                    f"{model.architecture}. Name a new store for this run"
                )
            return store, other_tokens
        num_cut = int((tokens.num_targets == 0).sum()) - len(tokens.unrendered)
        if num_cut:
            logger.warning(
                "%d of %d samples have no token to train on within data.max_length (%d): they are "
                "never selected",
                num_cut,
                len(tokens.num_targets),
                self.recipe.data.max_length,
            )
        created = Store.create(
            self.root,
            samples=sample_table(self.samples, tokens),
            dataset=self._describe_data(model, tokens),
        )
        return created, False

    def _has_these_tokens(self, store: Store, model: CheckpointModel, tokens: TokenTable) -> bool:
        """Whether the samples that it knows have the tokens that it was made with.

        By the hashes of their tokens; so a tokenizer with more tokens than before, which no sample
        holds, is the same. Where an earlier release made the store, by the key of all that tokens
        depend on; where it does not hold that either, or one of before turns were marked, by the
        numbers of tokens, with and without loss.
        """
        known, key = store.samples(), store.dataset().tokens_key
        known_tokens: tuple[Any, ...] = known.token_hashes, known.loss_hashes
        now: tuple[Any, ...] = tokens.token_hashes, tokens.loss_hashes
        if not known.token_hashes.all():
            made_of = model.tokenizer, model.data(self.samples), store.info.fingerprint
            if key is not None and key != earlier_tokens_key(*made_of):
                return bool(key == tokens_key(*made_of))
            known_tokens = known.num_prompt_tokens, known.num_response_tokens
            now = tokens.num_prompt_tokens, tokens.num_targets
        return same_where_known(
            known.content_hashes, known_tokens, self.samples.content_hashes, now
        )

    def _describe_data(
        self,
        model: CheckpointModel,
        tokens: TokenTable,
        store: Store | None = None,
        *,
        is_new: bool = False,
    ) -> DataDescription:
        """What to remember of the data besides its samples.

        With `is_new` the tokens are others than those that the `store` was made with.
        """
        settings, raw = model.data(self.samples), self.samples
        known = None if store is None else store.dataset()
        first = raw.fingerprint if store is None else store.info.fingerprint
        if settings.is_there:
            settings = settings.moved(lambda place: str(Path(place).resolve()))
        return DataDescription(
            settings=settings,
            detected_format=raw.format,
            num_skipped=len(raw.skipped),
            num_unrendered=len(tokens.unrendered),
            tokens_key=(
                known.tokens_key
                if known is not None and not is_new
                else tokens_key(model.tokenizer, settings, first)
            ),
            has_chat_template=(
                known.has_chat_template
                if known is not None and not is_new
                else bool(model.tokenizer.chat_template)
            ),
            architecture=model.architecture if known is None else known.architecture,
        )


def refresh(
    recipe: Recipe | str | Path,
    checkpoint: str | Path,
    *,
    strict: bool = False,
    stop: threading.Event | None = None,
) -> RefreshResult:
    """Make one version from one checkpoint directory.

    Args:
        recipe: A `Recipe`, or the path of one.
        checkpoint: A complete checkpoint; its layout is recognised.
        strict: Refuse data with rows that cannot be used.
        stop: Ends the refresh after the batch in progress with `RefreshStoppedError`.

    Raises:
        GracekitError: Says what is wrong and what to do; the last version stays valid.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    found = check_checkpoint(Path(checkpoint), recipe.checkpoints)
    refresher = Refresher.from_recipe(recipe, strict=strict)
    progress = Progress(stop)
    with refresher.locked():
        result = refresher.refresh(found, progress=progress)
    refresher.publish(progress)
    return result


def with_features_of_store(recipe: Recipe) -> Recipe:
    """A recipe that names no features, or not their width, has those that its store was made with.

    Features compare with each other only: with others the store would begin anew.
    """
    asked, named = recipe.scoring, recipe.scoring.model_fields_set
    if named.issuperset(_OF_FEATURES) or not Store.exists(recipe.store):
        return recipe
    store = Store.open(recipe.store)
    version = store.newest_scores()
    made_with = None if version is None else store.header(version).settings.scoring
    changed: dict[str, Any] = {}
    for key in _OF_FEATURES if made_with is not None else ():
        theirs = getattr(made_with, key)
        if theirs == getattr(asked, key):
            continue
        if key in named:  # it begins anew, and has all else as the recipe says
            break
        changed[key] = theirs
    if not changed:
        return recipe
    logger.info(
        "the store was made with %s; so is this refresh",
        ", ".join(f"{key} {'null' if value is None else value}" for key, value in changed.items()),
    )
    return recipe.override({f"scoring.{key}": value for key, value in changed.items()})


_OF_FEATURES = ("features", "feature_width", "feature_projection")
"""Settings that a store keeps; each is of no meaning where one before it differs."""


def _identity(pinned: PinnedCheckpoint, *keys: str) -> str:
    """Short hash of checkpoint, `keys` of model, tokens and recipe: all that makes a result."""
    parts = (pinned.digest, str(pinned.step), *keys)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _without_vocabulary(architecture: Json) -> Json:
    return {name: value for name, value in architecture.items() if name != "vocab_size"}


def _describe_checkpoint(pinned: PinnedCheckpoint) -> CheckpointInfo:
    checkpoint = pinned.checkpoint
    return CheckpointInfo(
        step=checkpoint.step,
        path=str(checkpoint.path.resolve()),
        layout=checkpoint.layout,
        completed_at=checkpoint.completed_at,
        digest=pinned.digest,
    )
