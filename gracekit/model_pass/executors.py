"""Measuring many rows: shards, batches, memory that runs out, values that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gracekit.errors import MeasureError
from gracekit.model_pass.batches import (
    TokenBatch,
    TokenSource,
    batch_stop,
    longest_first,
    num_positions,
)
from gracekit.model_pass.context import LocalContext, TargetSamples
from gracekit.model_pass.features import FEATURES
from gracekit.model_pass.layers import head_size
from gracekit.model_pass.model_limits import require_known_tokens, require_length
from gracekit.model_pass.model_pass import ModelPass
from gracekit.model_pass.pass_inputs import PassInputs
from gracekit.model_pass.scorers import build_scorers
from gracekit.model_pass.sketch import KroneckerSketch, unit_sketches
from gracekit.model_pass.token_budget import TokenBudget, free_memory, is_out_of_memory
from gracekit.model_pass.token_scores import Loss
from gracekit.progress import Progress
from gracekit.protocols import OptimizerState, Reader, Scorer
from gracekit.recipe import ScoringSection
from gracekit.rounding import to_float16
from gracekit.samples.other_prompts import without_prompt
from gracekit.types import Float32, Int64, Json, MeasuredTarget, Measurement, Rows

ENOUGH_TO_JUDGE = 32
"""Rows measured, none of them finite, after which going on is pointless."""


class LocalExecutor:
    """Runs the pass in this process, on the device that the model is on.

    Rows are sorted longest first and cut into shards, so that a shard holds samples of about the
    same length and batches need little padding. Any rows make their own shards: a resumed refresh
    passes what is missing. Nothing is random; on a CPU the same call gives the same bits.
    """

    def __init__(
        self,
        model: Any,
        tokens: TokenSource,
        scoring: ScoringSection,
        *,
        target: TargetSamples | None = None,
        optimizer: OptimizerState | None = None,
        show_progress: bool = True,
    ) -> None:
        self._model, self._tokens, self._scoring = model, tokens, scoring
        self._no_bar = None if show_progress else True
        """None: no bar where stderr is no terminal."""
        self._target = target
        self._scorers = build_scorers(scoring.scores)
        self._alone = {n: s.alone() for n, s in self._scorers.items() if s.alone is not None}
        self._features = FEATURES[scoring.features](scoring)
        self._width = self._features.width(head_size(model)[1])
        self._budget = TokenBudget(scoring.batch_tokens)
        self._keeps_sketches = target is not None and target.keeps_sketches
        self._of_target: MeasuredTarget | None = None
        self._sketches_of_target: Float32 | None = None
        self._context = LocalContext(
            sketch=KroneckerSketch(scoring.sketch_side, scoring.sketch_seed),
            embedding=model.get_input_embeddings(),
            optimizer=optimizer,
        )

    @classmethod
    def open(cls, inputs: PassInputs) -> LocalExecutor:
        """Load the model onto the first of the devices; raises as the inputs' `load`."""
        model, optimizer = inputs.load(inputs.devices[0])
        return cls(model, inputs.tokens, inputs.scoring, target=inputs.target, optimizer=optimizer)

    def beside(self, tokens: TokenSource, scoring: ScoringSection) -> LocalExecutor:
        """Another executor over the same model in memory, for other samples and scores."""
        return LocalExecutor(self._model, tokens, scoring)

    def measure(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """Measure distinct rows; yields one `Measurement` a shard, the last one cut off where
        `progress` says that a stop was asked for.

        A row without target tokens gets NaN without a pass; a row whose results are not finite
        gets NaN, and no other row does. A score with `against` is given as it is now, not as the
        change.

        Raises `MeasureError` when a single sample does not fit into memory, when nothing is
        finite, when token ids or lengths exceed the model's, or when its layers cannot be read.
        """
        return self._shards(rows, progress, self._scorers)

    def look(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """Features of distinct rows without their scores; all else as in `measure`."""
        return self._shards(rows, progress, {})

    def _shards(
        self, rows: Rows, progress: Progress | None, scorers: dict[str, Scorer]
    ) -> Iterator[Measurement]:
        """Finished shards of the scores asked for and the features."""
        lengths = self._tokens.lengths[rows]
        if len(rows):
            require_length(self._model, int(lengths.max()))
        order = longest_first(lengths)
        num_measured, num_finite = 0, 0
        progress = progress or Progress()
        progress.plan(len(rows), int(lengths.sum()))
        bar = tqdm(total=int(lengths.sum()), unit="tok", unit_scale=True, disable=self._no_bar)
        try:
            with self._threads(), ExitStack() as stack:
                passes = self._open_passes(stack, scorers)
                for start in range(0, len(rows), self._scoring.shard_rows):
                    if progress.is_stopping:
                        return
                    chosen = order[start : start + self._scoring.shard_rows]
                    shard, num_passed = self._measure_shard(
                        passes, list(scorers), rows[chosen], bar, progress
                    )
                    num_measured += num_passed
                    num_finite += int(shard.valid.sum())
                    if num_measured and not num_finite:
                        self._require_hope(num_measured)
                    bar.set_postfix_str(f"{start + len(chosen)}/{len(rows)} rows")
                    yield shard
        finally:
            bar.close()

    def optimizer(self) -> Json | None:
        """What was found of the trainer's optimizer; None when no score asked for it."""
        optimizer = self._context.optimizer
        return None if optimizer is None else optimizer.facts()

    def on(self, tokens: TokenSource) -> LocalExecutor:
        """The same pass over other samples; what was measured of the target set is kept."""
        self._tokens = tokens
        return self

    def close(self) -> None:
        """Let go of the model, and of the optimizer's moments."""
        self._model = None
        self._context.optimizer = None

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """The recipe's number of threads, and afterwards what it was."""
        before = torch.get_num_threads()
        try:
            if self._scoring.num_threads:
                torch.set_num_threads(self._scoring.num_threads)
            yield
        finally:
            torch.set_num_threads(before)

    def target(self) -> MeasuredTarget | None:
        """What the model says of the target set, measured once; None without one."""
        if self._target is None:
            return None
        with self._threads():
            return self._measure_target()

    def _open_passes(self, stack: ExitStack, scorers: dict[str, Scorer]) -> list[ModelPass]:
        """The pass over samples, and the one over their responses alone if a score wants it."""
        if any(scorer.needs_target for scorer in scorers.values()):
            self._context.target_sketches = self._target_sketches()
        readers: list[Reader] = [*scorers.values(), self._features]
        if scorers and self._keeps_sketches:
            readers.append(self._context.sketch)
        alone: list[Reader] = [self._alone[name] for name in scorers if name in self._alone]
        for reader in (*readers, *alone):
            reader.bind(self._context)
        of_passes = [readers, alone] if alone else [readers]
        return [stack.enter_context(ModelPass(self._model, each)) for each in of_passes]

    def _target_sketches(self) -> dict[str, Float32]:
        """Subtask -> gradient sketches of its samples under this model."""
        assert self._target is not None, "the recipe was checked for it"
        self._measure_target()
        sketches = self._sketches_of_target
        assert sketches is not None
        finite = np.isfinite(sketches).all(axis=1)
        of_group = {
            name: sketches[finite & (self._target.groups == group)]
            for group, name in enumerate(self._target.group_names)
        }
        of_group = {name: part for name, part in of_group.items() if len(part)}
        if not of_group:
            raise MeasureError(
                f"none of the {len(sketches)} target samples gave a finite gradient; check that "
                "the target set has responses, and whether the training has diverged"
            )
        return of_group

    def _measure_target(self) -> MeasuredTarget:
        """Features, losses and sketches of the target set, as far as they are wanted."""
        if self._of_target is not None:
            return self._of_target
        target = self._target
        assert target is not None
        order = longest_first(target.tokens.lengths)
        require_length(self._model, int(target.tokens.lengths.max()))
        samples = target.tokens.take(order)
        require_known_tokens(self._model, samples)
        compares = any(scorer.needs_target for scorer in self._scorers.values())
        readers: dict[str, tuple[Reader, tuple[int, ...]]] = {
            "features": (self._features, (self._width,))
        }
        if target.is_followed:
            readers["losses"] = Loss(), ()
        if compares or target.keeps_sketches:
            readers["sketches"] = self._context.sketch, (self._context.sketch.width,)
        self._features.bind(self._context)
        found = {
            name: np.full((len(order), *shape), np.nan, np.float32)
            for name, (_, shape) in readers.items()
        }
        kept = np.array([i for i, (_, mask) in enumerate(samples) if mask[1:].any()], np.int64)
        samples, order = [samples[i] for i in kept], order[kept]
        with ModelPass(self._model, [reader for reader, _ in readers.values()]) as model_pass:
            for batch, (results, _) in self._batches([model_pass], samples, order):
                for of_reader, result in zip(found.values(), results, strict=True):
                    of_reader[order[batch]] = result
        self._sketches_of_target = found.get("sketches")
        self._of_target = MeasuredTarget(
            features=to_float16(found["features"]),
            losses=found.get("losses"),
            sketches=unit_sketches(found["sketches"]) if target.keeps_sketches else None,
        )
        return self._of_target

    def _measure_shard(
        self,
        passes: list[ModelPass],
        names: list[str],
        rows: Rows,
        bar: tqdm[Any],
        progress: Progress,
    ) -> tuple[Measurement, int]:
        """Measure the named scores and the features of rows of falling length.

        Also says how many went through the pass. Of the rows only those whose batches were
        finished, when a stop is asked for.
        """
        scores = {name: np.full(len(rows), np.nan, np.float32) for name in names}
        features = np.full((len(rows), self._width), np.nan, np.float32)
        sketches = None
        if names and self._keeps_sketches:
            sketches = np.full((len(rows), self._context.sketch.width), np.nan, np.float16)
        samples = self._tokens.take(rows)
        require_known_tokens(self._model, samples)
        places = np.array([i for i, (_, mask) in enumerate(samples) if mask[1:].any()], np.int64)
        num_empty = sum(len(mask) for _, mask in samples if not mask[1:].any())
        bar.update(num_empty)
        progress.advance(len(rows) - len(places), num_empty)
        samples = [samples[i] for i in places]
        is_left = np.ones(len(places), bool)
        for batch, (results, num_tokens) in self._batches(passes, samples, rows[places]):
            if sketches is not None:
                sketches[places[batch]] = unit_sketches(results.pop())
            *of_scorers, features[places[batch]] = results
            for name, result in zip(names, of_scorers, strict=True):
                scores[name][places[batch]] = np.where(np.isfinite(result), result, np.nan)
            bar.update(num_tokens)
            progress.advance(len(batch), num_tokens)
            is_left[batch] = False
            if progress.is_stopping:
                break
        measurement = Measurement(
            rows=rows, scores=scores, features=to_float16(features), sketches=sketches
        )
        if is_left.any():
            measurement = measurement.take(np.delete(np.arange(len(rows)), places[is_left]))
        return measurement, int((~is_left).sum())

    def _batches(
        self, passes: list[ModelPass], samples: list[Any], rows: Rows
    ) -> Iterator[tuple[Int64, tuple[list[Float32], int]]]:
        """Run samples, longest first: places of each batch, its results, and its tokens."""
        lengths = np.array([*map(num_positions, samples)], np.int64)
        order = longest_first(lengths)
        lengths, start = lengths[order], 0
        while start < len(samples):
            stop = batch_stop(lengths, start, self._budget.tokens)
            batch = order[start:stop]
            results = self._run_batch(passes, [samples[i] for i in batch])
            if results is None:
                if len(batch) == 1:
                    raise MeasureError(_too_large(int(rows[batch[0]]), len(samples[batch[0]][0])))
                self._budget.failed(int(lengths[start]) * len(batch))
                continue
            self._budget.succeeded()
            yield batch, (results, sum(len(samples[i][0]) for i in batch))
            start = stop

    def _run_batch(self, passes: list[ModelPass], samples: list[Any]) -> list[Float32] | None:
        """The passes over one batch; None when memory ran out."""
        device = self._model.get_input_embeddings().weight.device
        try:
            results = passes[0].run(TokenBatch.pack(samples, device))
            for alone_pass in passes[1:]:
                alone = alone_pass.run(TokenBatch.pack([*map(without_prompt, samples)], device))
                for name, result in zip(self._alone, alone, strict=True):
                    place = list(self._scorers).index(name)
                    results[place] = self._scorers[name].combine(results[place], result)
            return [result.float().cpu().numpy() for result in results]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        free_memory()  # out of the handler: the traceback held the batch's tensors
        return None

    def _require_hope(self, num_measured: int) -> None:
        """Nothing was finite so far: raise if it is the model's fault or has gone on for long."""
        table = self._model.get_input_embeddings().weight
        broken = [
            name
            for name, weight in self._model.named_parameters()
            if weight is not table and not torch.isfinite(weight).all()
        ]
        if broken:
            raise MeasureError(
                f"no result is finite: {broken[0]} of the checkpoint holds NaN or infinity "
                f"({len(broken)} such tensors); training has diverged, use an earlier checkpoint"
            )
        if num_measured >= ENOUGH_TO_JUDGE:
            raise MeasureError(
                f"none of the first {num_measured} samples gave a finite result in "
                f"{table.dtype}, though the weights are finite; set `scoring: {{dtype: float32}}` "
                "(float16 overflows easily), or check whether the training has diverged"
            )


def _too_large(row: int, num_tokens: int) -> str:
    return (
        f"memory ran out on row {row} alone ({num_tokens} tokens); use a device with more memory, "
        "`scoring: {dtype: bfloat16}`, or a new store with a smaller data.max_length"
    )
