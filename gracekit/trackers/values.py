"""What is logged of a version: the numbers of its header, and its groups."""

from __future__ import annotations

import contextlib

import numpy as np

from gracekit.errors import StoreError
from gracekit.store import StoreReader
from gracekit.types import Bool, Float32
from gracekit.version.header import Header
from gracekit.version.log_numbers import PREFIX, log_numbers

MOST_GROUPS = 20
"""Groups that are logged, those with the most samples: every one is two curves."""


def version_values(store: StoreReader, version: int) -> dict[str, float]:
    """Name -> number of a version, as `Tracker.log` takes them.

    Those of `log_numbers`, and where the version and its parent are kept: `entered` and `left`
    (samples of the coreset), `loss` (mean over the samples of the data whose loss is known, in
    nats), and of the groups with the most samples `share/GROUP` (of the coreset, 0 to 1) and
    `loss/GROUP`.

    A damaged table of the version leaves its numbers out.

    Raises:
        StoreError: The version's header cannot be read.
    """
    header = store.header(version)
    found: dict[str, float] = log_numbers(header.to_json())
    kept = set(store.versions())
    if version in kept:
        with contextlib.suppress(StoreError):  # its header tells the rest
            found |= _exchange(store, header, kept)
        with contextlib.suppress(StoreError):
            found |= _groups(store, version)
    return {PREFIX + name: float(value) for name, value in found.items()}


def _exchange(store: StoreReader, header: Header, kept: set[int]) -> dict[str, float]:
    """How many samples the coreset has that its parent's had not, and the other way round."""
    if header.parent_version not in kept:
        return {}
    now, before = (
        store.coreset(version)["row"].to_numpy()
        for version in (header.version, header.parent_version)
    )
    both = len(np.intersect1d(now, before))
    return {"entered": len(now) - both, "left": len(before) - both}


def _groups(store: StoreReader, version: int) -> dict[str, float]:
    samples, scores = store.samples(version), store.scores(version)
    loss = scores.scores.get("loss")
    is_known = samples.present & scores.usable
    found = {} if loss is None else _mean_loss("loss", loss, is_known)
    sizes = np.bincount(samples.groups[samples.present], minlength=len(samples.group_names))
    largest = np.argsort(-sizes, kind="stable")[:MOST_GROUPS]
    named = [int(group) for group in largest if samples.group_names[group] and sizes[group]]
    selected = samples.groups[store.coreset(version)["row"].to_numpy()]
    for group in named:
        name = samples.group_names[group]
        if len(selected):
            found[f"share/{name}"] = float((selected == group).mean())
        if loss is not None:
            found |= _mean_loss(f"loss/{name}", loss, is_known & (samples.groups == group))
    return found


def _mean_loss(name: str, loss: Float32, rows: Bool) -> dict[str, float]:
    """The mean over the rows whose loss is finite; nothing where there is none."""
    known = loss[rows & np.isfinite(loss)]
    return {name: float(known.mean(dtype=np.float64))} if len(known) else {}
