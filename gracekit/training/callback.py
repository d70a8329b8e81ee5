"""`CoresetCallback`: let a Hugging Face `Trainer` follow the versions of a store.

Works for `Trainer` and what is built on it (TRL's `SFTTrainer`, Axolotl, LLaMA-Factory's API). The
trainer's loop stays as it is; nothing here waits or raises unless it is asked to. Above 400 lines,
because all that a trainer calls is the one object that it is given.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from transformers import Trainer, TrainerCallback

from gracekit.errors import GracekitError
from gracekit.store import local_store
from gracekit.training.drawn import unknown_ids
from gracekit.training.ending import Ending
from gracekit.training.first_rows import FirstRows
from gracekit.training.history import note_run, note_turns, run_in, turns_in, whole_epochs
from gracekit.training.loader import (
    EpochSize,
    count_rows,
    drops_weights,
    epoch_size,
    put_sampler,
    weights_reach_loss,
)
from gracekit.training.loss_units import Average, LossUnits
from gracekit.training.pace import PaceClock
from gracekit.training.ranks import gather_over_ranks
from gracekit.training.reading import Mode, Redraw
from gracekit.training.record import drawn, keep_epochs_before
from gracekit.training.reporting import Reporter, described, in_words
from gracekit.training.sampler import CoresetSampler, Follow, check_choice, whole_number
from gracekit.training.trained_losses import LossNotes
from gracekit.training.weighing import WeighedTrainer
from gracekit.training.weighted_data import WeighedDataset, WeighingCollator

logger = logging.getLogger("gracekit.training")


class CoresetCallback(TrainerCallback):  # type: ignore[misc]
    """Trains on the newest coreset of a store, version after version.

    It puts a `CoresetSampler` into the trainer's data loader when training begins; of a
    `CoresetIterableDataset` it takes up the sampler, whose own arguments hold. Each epoch says
    in the log which version it trains on, and notes it in `state.log_history` (`coreset_version`
    and so on), so `trainer_state.json` holds the version log and a resumed run draws the same
    batches. What was trained on is logged in the store with each checkpoint, and at the end, for
    the draws to come; with `CoresetTrainerMixin` also the loss that each row had then, for
    the next refresh. A missing store, a damaged manifest or one that does not fit the dataset is a
    warning: training goes on with what it has.

    Args:
        store: directory of the store, or the URL that it is published at, such as
            `s3://bucket/run`; it may come into being later.
        sample_ids: the sample id of each row of the trainer's dataset, in order. Not needed when
            the dataset has all rows of the data file in their order.
        num_samples: draws an epoch; default: as many as the dataset has rows. Another number needs
            `CoresetTrainerMixin`, since a trainer fixes its number of steps before it calls back.
        follow: take a new version at each `epoch`, also at a `step` within one, or keep the first
            one found (`never`).
        wait_s: longest time in seconds that an epoch's start waits for the coreset of the last
            checkpoint saved; 0 (default) never makes the trainer wait.
        seed: of the order.
        mode: `cycle` draws each sample equally often, `weighted` by its weight.
        redraw: draw anew from a version with probabilities whenever a draw was gone over once
            (`pass`), at each `epoch`, or `never`: the version's own coreset.
        record: JSON-lines file that gets, at the end of each epoch, what was drawn in it:
            `epoch` (counted from 1), `version` (null: the whole dataset), and in drawn order
            `positions` in the trainer's dataset and `sample_ids` (null while neither the caller
            nor a version has told them). A data loader draws ahead, so an epoch broken off lists
            a few samples more than were trained on.
        check_steps: with `follow="step"`, look for a new version every so many steps.
        weigh_loss: whether a row's weight is a factor of its loss, as docs/training.md says; takes
            `CoresetTrainerMixin`. Without it, or with False, what is drawn anew is drawn whatever
            the norms are, so that rows may count alike; the version's own coreset
            (`redraw="never"`) is a warning where its weights are not all alike.
        loss: what the trainer's loss is an average over, `tokens` or `samples`; default: what the
            recipe of the version said (`scoring.loss`).

    Raises:
        RecipeError: an argument is not one of the above or out of range.
    """

    def __init__(
        self,
        store: str | Path,
        *,
        sample_ids: Sequence[Any] | None = None,
        num_samples: int | None = None,
        follow: Follow = "epoch",
        wait_s: float = 0.0,
        seed: int = 0,
        mode: Mode = "cycle",
        redraw: Redraw = "pass",
        record: str | Path | None = None,
        check_steps: int = 10,
        weigh_loss: bool = True,
        loss: Average | None = None,
    ) -> None:
        check_choice("follow", follow, get_args(Follow))
        check_choice("mode", mode, get_args(Mode))
        if loss is not None:
            check_choice("loss", loss, get_args(Average))
        check_choice("redraw", redraw, get_args(Redraw))
        if num_samples is not None:
            num_samples = whole_number("CoresetCallback: num_samples", num_samples, 1)
        check_steps = whole_number("CoresetCallback: check_steps", check_steps, 1)
        seed = whole_number("CoresetCallback: seed", seed, 0)
        self.store = local_store(store)
        self.sample_ids = sample_ids
        self.num_samples = num_samples
        self.follow = follow
        self.wait_s = wait_s
        self.seed = seed
        self.mode = mode
        self.redraw = redraw
        self.record = None if record is None else Path(record)
        self.check_steps = check_steps
        self.weigh_loss = weigh_loss
        self.loss = loss
        self.units = LossUnits(self.store, loss)
        """How the loss of each version's rows is averaged, of the versions in use."""
        self.sampler: CoresetSampler | None = None
        """The sampler in use; None while nothing is trained or when it could not be installed."""
        self.losses = LossNotes()
        """Of the rows that this rank trained on since uses were logged last; `CoresetTrainerMixin`
        notes them."""
        self.keeps_loader = False
        """Whether the trainer's data loader is left as it is, so that no coreset is drawn from."""
        self._num_noted = 0
        self._first_rows = FirstRows(self.store)
        self._reaches_loss = self._drops_weights = False
        self._size = EpochSize()
        self._logged_step = -1
        self._pace = PaceClock()
        self._ending = Ending(self.store)
        self._reporter = Reporter(self.store)

    def log_to(self, trainer: Any) -> None:
        """Log each version's number, value, churn and cost with this trainer.

        They get into whatever it reports to (`coreset/version` and so on). `CoresetTrainerMixin`
        calls it by itself; a trainer tells its callbacks nothing of itself, so with the callback
        alone it is for you to call.
        """
        # That of all trainers: TRL's would also close averages that it is in the middle of.
        self._reporter.log_to(partial(Trainer.log, trainer))

    def tell_rows(self, dataset: Any, collate: Any, tokenizer: Any) -> None:
        """Compare the first rows with what was measured; a difference is a warning.

        Rows that do not stand where the data has them are told by their tokens. In a distributed
        job all ranks must call it.
        """
        if isinstance(dataset, WeighedDataset):
            dataset = dataset.dataset
        if isinstance(collate, WeighingCollator):
            collate = collate.collator
        found = self._first_rows.check(dataset, collate, tokenizer, self.sample_ids)
        if found is None or (self.sample_ids is not None and len(self.sample_ids) == len(found)):
            return
        self.sample_ids = found
        if self.sampler is not None:
            self.sampler.name_rows(found)

    def make_sampler(
        self, num_rows: int, num_samples: int | None = None, *, weighs: bool = False
    ) -> CoresetSampler | None:
        """A sampler for so many rows; None, with a warning, when the ids do not fit them.

        Args:
            num_rows: of the trainer's dataset.
            num_samples: draws an epoch.
            weighs: whether weights reach the loss.
        """
        sample_ids = self.sample_ids
        if sample_ids is not None and len(sample_ids) != num_rows:
            waits = not self._first_rows.is_done
            logger.warning(
                "the trainer's dataset has %d rows but %d sample_ids were given (rows were "
                "dropped, added or packed): %s",
                num_rows,
                len(sample_ids),
                "rows will be told by their tokens once the store has samples"
                if waits
                else "training goes on without coresets",
            )
            if not waits:
                return None
            sample_ids = unknown_ids(num_rows)
        return CoresetSampler(
            self.store,
            num_rows if sample_ids is None else sample_ids,
            num_samples=num_samples,
            seed=self.seed,
            mode=self.mode,
            follow=self.follow,
            wait_s=self.wait_s,
            redraw=self.redraw,
            weighs=weighs,
        )

    def on_train_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Put the sampler into the data loader; a resumed run gets its version log back."""
        self._tell_rows(train_dataloader, kwargs)
        if self.sampler is not None:  # of a training that an error broke off
            self.sampler.is_led = False
        self.sampler = None
        if not self.keeps_loader:
            self.sampler = put_sampler(train_dataloader, self.make_sampler, self.num_samples)
        if self.sampler is None:
            return
        self.units = LossUnits(self.store, self.loss)
        self._reaches_loss = weights_reach_loss(train_dataloader)
        self._drops_weights = drops_weights(train_dataloader)
        if self._drops_weights and state.is_world_process_zero:
            logger.warning(
                "the stream's weights do not reach the loss: the trainer removes their column "
                "(remove_unused_columns), so rows that are drawn by their norms count alike. Make "
                "the CoresetIterableDataset without weight_key, so that rows are drawn to count "
                "alike; or give the trainer the dataset itself and CoresetTrainerMixin; or set "
                "remove_unused_columns=False and multiply by them in a compute_loss of your own"
            )
        self._size = epoch_size(train_dataloader, args.world_size)
        self.sampler.trained_per_epoch = self._size.num_trained(self.sampler.num_samples)
        log, run = turns_in(state), run_in(state)
        # Before the first version there is nothing to log.
        has_logged = run is not None and any(version > 0 for _, _, version in log)
        self._num_noted = len(log)
        self._logged_step = -1
        self._reporter.begin()
        self.losses = LossNotes()
        self.sampler.is_led = True
        self.sampler.expected_step = state.global_step or -1
        self.sampler.load_state_dict(
            {
                **self.sampler.state_dict(),
                "version_log": log,
                "epoch": whole_epochs(state),
                "run": run,
                "uses_step": state.global_step if has_logged else None,
            }
        )
        if self.record is not None and state.is_world_process_zero:
            keep_epochs_before(self.record, whole_epochs(state) + 1)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the newest version and say so."""
        if self.sampler is None:
            return
        self._tell_rows(kwargs.get("train_dataloader"), kwargs)
        self.sampler.begin_epoch(whole_epochs(state))
        self._note(state)
        note_run(state, self.sampler.run)
        counts = (self._reaches_loss and self.weigh_loss) or self.sampler.mode == "weighted"
        if state.is_world_process_zero:
            self._reporter.speak(
                in_words(self.sampler, reaches_loss=counts),
                f"epoch {self.sampler.epoch + 1} trains on {described(self.sampler)}",
            )
        self._reporter.tell(self.sampler.version, control)
        self._end(state, control)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Time the step."""
        self._pace.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log uses and the pace before a checkpoint is saved, so that it never lacks them.

        With `follow="step"`: take a version that came out within the epoch.
        """
        self._pace.end()
        if self.sampler is None:
            return
        if self.follow == "step" and state.global_step % self.check_steps == 0:
            self._tell_rows(kwargs.get("train_dataloader"), kwargs)
            self._swap(state, control)
        if control.should_save:
            self._log_uses(state)
            self._note_pace(args, state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the checkpoint, whose coreset is the next to wait for."""
        if self.sampler is not None:
            self.sampler.expected_step = state.global_step
            self._log_uses(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the record of the epoch."""
        if self.sampler is None:
            return
        self._note_pace(args, state)  # a callback behind this one may yet ask for a checkpoint
        if control.should_save:
            self._log_uses(state)
        if self.record is None or not state.is_world_process_zero:
            return
        try:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            with self.record.open("a", encoding="utf-8") as file:
                for line in drawn(self.sampler):
                    file.write(json.dumps(line) + "\n")
        except (OSError, GracekitError) as error:
            logger.warning("cannot record the drawn samples in %s: %s", self.record, error)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the last uses, and leave the versions that were trained on to `gracekit gc`."""
        if self.sampler is not None:
            self._log_uses(state)
            self.sampler.is_led = False
            self.sampler.release()

    def _end(self, state: Any, control: Any) -> None:
        """Say, or see to it, that the training ends where the version in use advises it."""
        assert self.sampler is not None
        if self._ending.look(self.sampler.version, speaks=state.is_world_process_zero):
            control.should_training_stop = True

    def _swap(self, state: Any, control: Any) -> None:
        assert self.sampler is not None
        if self.sampler.swap():
            self._note(state)
            if state.is_world_process_zero:
                logger.info("from step %d on: %s", state.global_step, described(self.sampler))
            self._reporter.tell(self.sampler.version, control)
            self._end(state, control)

    def _tell_rows(self, loader: Any, given: dict[str, Any]) -> None:
        if loader is not None:
            tokenizer = given.get("processing_class")
            collate = getattr(loader, "collate_fn", None)
            self.tell_rows(getattr(loader, "dataset", None), collate, tokenizer)

    def _log_uses(self, state: Any) -> None:
        """Log what was trained on up to this step, once."""
        assert self.sampler is not None
        if self._logged_step == state.global_step or state.epoch is None:
            return
        self._logged_step = state.global_step
        num_trained = self._size.num_trained(
            self.sampler.num_samples, done=state.epoch - self.sampler.epoch
        )
        for seen in gather_over_ranks(self.losses.take()):
            self.sampler.note_losses(*seen)
        self.sampler.log_uses(state.global_step, num_trained=num_trained)

    def _note(self, state: Any) -> None:
        """Copy new entries of the version log to `state.log_history`, which checkpoints hold."""
        assert self.sampler is not None
        turns = self.sampler.version_log
        note_turns(state, turns[self._num_noted :])
        self._num_noted = len(turns)
        if self.weigh_loss:
            self.units.learn(
                {turn.version for turn in turns if turn.epoch == self.sampler.epoch},
                reach_loss=self._reaches_loss or self.mode == "weighted",
                drawn_alike=self.sampler.is_drawn_anew,
                speaks=state.is_world_process_zero and not self._drops_weights,
            )

    def _note_pace(self, args: Any, state: Any) -> None:
        """Say in `state.log_history` how fast it goes, which `refresh.max_cost` is a share of."""
        if self._size.batch_size:
            self._pace.note(
                state.log_history,
                samples_a_step=self._size.batch_size * args.gradient_accumulation_steps,
                epoch=state.epoch,
                step=state.global_step,
            )


class CoresetTrainerMixin(WeighedTrainer):
    """Brings a version's weights into the loss, and `num_samples` into the length of an epoch.

    `class MyTrainer(CoresetTrainerMixin, Trainer): pass`, or `SFTTrainer`. The weights of the rows
    that `CoresetCallback` draws become factors of their loss (docs/training.md); evaluation stays
    as it is. And a trainer computes its steps from its sampler before any callback runs, so for
    `CoresetCallback(num_samples=...)` the sampler has to be there earlier.
    """

    callback_handler: Any
    train_dataset: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if getattr(self, "num_generations", None):  # TRL's own repeats rows for groups of answers
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        for callback in self.callback_handler.callbacks:
            num_rows = count_rows(dataset)
            if isinstance(callback, CoresetCallback) and num_rows is not None:
                collate = getattr(self, "data_collator", None)
                callback.tell_rows(dataset, collate, getattr(self, "processing_class", None))
                callback.log_to(self)
                weighs = callback.weigh_loss and not self._is_dispatched()
                sampler = callback.make_sampler(num_rows, callback.num_samples, weighs=weighs)
                if sampler is not None:
                    return sampler
        return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
