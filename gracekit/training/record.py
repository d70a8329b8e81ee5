"""The record of `CoresetCallback`: what each epoch drew, a JSON line each."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from gracekit.documents import open_regular
from gracekit.errors import DataError, GracekitError
from gracekit.files import write_text_atomic
from gracekit.foreign import foreign
from gracekit.store import StorePaths, read_sample_rows
from gracekit.training.coreset import Coreset
from gracekit.training.sampler import CoresetSampler

logger = logging.getLogger("gracekit.training")


def keep_epochs_before(record: Path, epoch: int) -> None:
    """Drop what an earlier run recorded of epochs that are trained (again) now."""
    try:
        with open_regular(record) as file, foreign(record, DataError):
            lines = file.read().decode("utf-8").splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["epoch"] < epoch]
        write_text_atomic(record, "".join(kept), tidy=True)
    except FileNotFoundError:
        return
    except (OSError, ValueError, GracekitError) as error:
        logger.warning("cannot tidy the record of drawn samples %s: %s", record, error)


def drawn(sampler: CoresetSampler) -> list[dict[str, Any]]:
    """What the present epoch has drawn so far, one entry for each turn."""
    order = sampler.order()[: sampler.num_drawn].tolist()
    turns = [turn for turn in sampler.version_log if turn.epoch == sampler.epoch]
    stops = [turn.start for turn in turns[1:]] + [len(order)]
    return [
        {
            "epoch": turn.epoch + 1,
            "version": turn.version or None,
            "positions": order[turn.start : stop],
            "sample_ids": _ids(sampler, turn.version, order[turn.start : stop]),
        }
        for turn, stop in zip(turns, stops, strict=True)
    ]


def _ids(sampler: CoresetSampler, version: int, positions: list[int]) -> list[str] | None:
    """Ids as the user gave them, else as the store has them; None where neither has."""
    if sampler.dataset_ids is not None:
        return [sampler.dataset_ids[position] for position in positions]
    if version == 0:
        return None
    coreset = Coreset.load(sampler.store, version)
    id_at = dict(zip(coreset.source_rows.tolist(), coreset.sample_ids, strict=True))
    if not id_at.keys() >= set(positions):  # drawn anew
        samples = read_sample_rows(StorePaths(sampler.store), coreset.view, with_ids=True)
        assert samples.sample_ids is not None
        id_at = dict(zip(samples.source_rows.tolist(), samples.sample_ids, strict=True))
    return [id_at[position] for position in positions]
