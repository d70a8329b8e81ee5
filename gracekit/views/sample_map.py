"""All samples of a version on a plane: the first two principal directions of their features."""

from __future__ import annotations

import numpy as np

from gracekit.graph import load_graph, unit_features
from gracekit.recipe import GraphSection
from gracekit.store import StoreReader
from gracekit.types import Bool, Float32, KnnGraph, SampleMap
from gracekit.views.explain import kept_cache, lost_cache


def sample_map(store: StoreReader, version: int) -> SampleMap:
    """The samples of a version with their coordinates and nearest neighbours.

    The features and the graph are those of the newest refresh, or of the version's own.

    Raises:
        VersionNotFoundError: There is no such version.
        StoreFormatError: The graph of that version is no longer kept, or damaged.
    """
    samples, scores = store.samples(version), store.scores(version)
    graph_version, cache = kept_cache(store, version)
    settings = store.header(graph_version).settings.graph or GraphSection()
    graph = load_graph(cache.index_directory, settings=settings, is_checked=True)
    if graph is None:
        raise lost_cache(store, version)
    drawn, n = store.drawn(version), len(samples)
    unit = unit_features(cache.features.astype(np.float32), cache.valid)
    return SampleMap(
        samples=samples,
        scores=scores,
        probabilities=None if drawn is None or drawn.draw is None else drawn.draw.probabilities,
        coordinates=on_plane(unit, np.einsum("ij,ij->i", unit, unit) > 0)[:n],
        graph=_of_first(graph, n),
    )


def on_plane(unit: Float32, is_known: Bool) -> Float32:
    """Coordinates float32 [n, 2] along the two directions in which the rows differ most.

    The sign of a direction is that in which its largest component is above 0, so the same features
    always give the same picture.

    Args:
        unit: [n, d] directions, centred.
        is_known: [n] rows that have one; the others get NaN.
    """
    covariance = unit.T @ unit
    _, vectors = np.linalg.eigh(covariance.astype(np.float64))
    axes = vectors[:, ::-1][:, :2]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    found = np.full((len(unit), 2), np.nan, np.float32)
    found[is_known, : axes.shape[1]] = unit[is_known] @ axes.astype(np.float32)
    return found


def _of_first(graph: KnnGraph, n: int) -> KnnGraph:
    """The lists of the first n rows, without neighbours behind these."""
    neighbors = graph.neighbors[:n]
    return KnnGraph(
        neighbors=np.where(neighbors < n, neighbors, -1),
        similarities=graph.similarities[:n],
    )
