"""Measuring many rows: shards, batches, memory that runs out, values that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gracekit.errors import MeasureError
from gracekit.recipe import ScoringSection
from gracekit.scoring.batches import TokenBatch, TokenSource, batch_stop, longest_first
from gracekit.scoring.features import FEATURES, to_float16
from gracekit.scoring.layers import head_size
from gracekit.scoring.limits import require_known_tokens, require_length
from gracekit.scoring.memory import TokenBudget, free_memory, is_out_of_memory
from gracekit.scoring.model_pass import ModelPass
from gracekit.scoring.scorers import build_scorers
from gracekit.types import Float32, Measurement, Rows

ENOUGH_TO_JUDGE = 32
"""Rows measured, none of them finite, after which going on is pointless."""


class LocalExecutor:
    """Runs the pass in this process, on the device that the model is on.

    Rows are sorted longest first and cut into shards, so that a shard holds samples of about the
    same length and batches need little padding. Any rows make their own shards: a resumed refresh
    passes what is missing. Nothing is random; on a CPU the same call gives the same bits.
    """

    def __init__(self, model: Any, tokens: TokenSource, scoring: ScoringSection) -> None:
        self._model, self._tokens, self._scoring = model, tokens, scoring
        self._scorers = build_scorers(scoring.scores)
        self._features = FEATURES[scoring.features]()
        self._width = self._features.width(head_size(model)[1])
        self._budget = TokenBudget(scoring.batch_tokens)

    def measure(self, rows: Rows) -> Iterator[Measurement]:
        """Measure distinct rows; yields one `Measurement` a shard.

        A row without target tokens gets NaN without a pass; a row whose results are not finite
        gets NaN, and no other row does.

        Raises `MeasureError` when a single sample does not fit into memory, when nothing is
        finite, when token ids or lengths exceed the model's, or when its layers cannot be read.
        """
        lengths = self._tokens.lengths[rows]
        if len(rows):
            require_length(self._model, int(lengths.max()))
        order = longest_first(lengths)
        num_measured, num_finite, num_threads = 0, 0, torch.get_num_threads()
        bar = tqdm(total=int(lengths.sum()), unit="tok", unit_scale=True, disable=None)
        try:
            if self._scoring.num_threads:
                torch.set_num_threads(self._scoring.num_threads)
            with ModelPass(self._model, [*self._scorers.values(), self._features]) as model_pass:
                for start in range(0, len(rows), self._scoring.shard_rows):
                    chosen = order[start : start + self._scoring.shard_rows]
                    shard, num_passed = self._shard(model_pass, rows[chosen], bar)
                    num_measured += num_passed
                    num_finite += int(shard.valid.sum())
                    if num_measured and not num_finite:
                        self._require_hope(num_measured)
                    bar.set_postfix_str(f"{start + len(chosen)}/{len(rows)} rows")
                    yield shard
        finally:
            bar.close()
            torch.set_num_threads(num_threads)

    def _shard(self, model_pass: ModelPass, rows: Rows, bar: tqdm[Any]) -> tuple[Measurement, int]:
        """Measure rows of falling length; also says how many went through the pass."""
        scores = {name: np.full(len(rows), np.nan, np.float32) for name in self._scorers}
        features = np.full((len(rows), self._width), np.nan, np.float32)
        samples = self._tokens.take(rows)
        require_known_tokens(self._model, samples)
        places = np.array([i for i, (_, mask) in enumerate(samples) if mask[1:].any()], np.int64)
        bar.update(sum(len(mask) for _, mask in samples if not mask[1:].any()))
        samples = [samples[i] for i in places]
        lengths = np.array([len(ids) for ids, _ in samples], np.int64)
        start = 0
        while start < len(places):
            stop = batch_stop(lengths, start, self._budget.tokens)
            results = self._run(model_pass, samples[start:stop])
            if results is None:
                if stop - start == 1:
                    raise MeasureError(_too_large(int(rows[places[start]]), int(lengths[start])))
                self._budget.failed(int(lengths[start]) * (stop - start))
                continue
            self._budget.succeeded()
            *of_scorers, features[places[start:stop]] = results
            for name, result in zip(self._scorers, of_scorers, strict=True):
                scores[name][places[start:stop]] = np.where(np.isfinite(result), result, np.nan)
            bar.update(int(lengths[start:stop].sum()))
            start = stop
        measurement = Measurement(rows=rows, scores=scores, features=to_float16(features))
        return measurement, len(places)

    def _run(self, model_pass: ModelPass, samples: list[Any]) -> list[Float32] | None:
        """The pass over one batch; None when memory ran out."""
        try:
            batch = TokenBatch.pack(samples, next(self._model.parameters()).device)
            return [result.float().cpu().numpy() for result in model_pass.run(batch)]
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
