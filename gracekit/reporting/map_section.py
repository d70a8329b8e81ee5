"""The section of the map: its points with their texts, and what is to be said of them."""

from __future__ import annotations

import numpy as np

from gracekit.reporting.feature_map import NUM_CORESETS, FeatureMap, Projection, feature_map
from gracekit.reporting.finding import Finding, Section
from gracekit.reporting.map_picture import MapPicture
from gracekit.reporting.questions import Questions, in_list
from gracekit.store import StoreCache
from gracekit.types import Rows


def map_of(
    questions: Questions, kept: list[int], cache: StoreCache | None, earlier: Projection | None
) -> MapPicture | None:
    """The map of a store; None where there is no version, or there are no features.

    Args:
        questions: To the store.
        kept: Versions that are kept, ascending.
        cache: Features of the newest scores; None: they are not kept.
        earlier: The projection of the report that this one replaces.
    """
    store = questions.store
    if cache is None or not kept:
        return None
    coresets: dict[int, Rows] = {
        version: np.asarray(store.coreset(version)["row"].to_numpy(), np.int64)
        for version in kept[-NUM_CORESETS:]
    }
    found = feature_map(
        cache,
        store.samples().present,
        coresets,
        fingerprint=store.info.dataset.fingerprint,
        earlier=earlier,
    )
    return None if found is None else _with_texts(questions, found)


def _with_texts(questions: Questions, found: FeatureMap) -> MapPicture:
    answer = questions.ask(
        "SELECT left(sample_id, 400) AS sample_id, left(coalesce(group_name, ''), 1000) AS "
        "group_name, left(preview, 400) AS preview "
        f"FROM samples WHERE row IN ({in_list(found.rows.tolist())}) ORDER BY row"
    )
    return MapPicture(
        found=found,
        sample_ids=answer["sample_id"],
        groups=answer["group_name"],
        texts=answer["preview"],
    )


def map_section(drawn: MapPicture | None, kept: list[int]) -> Section:
    """What stands around the map; where there is none, why."""
    why = (
        "There is no version yet, so there are no features."
        if not kept
        else "The features are not kept, or fewer than three samples have ones that differ; the "
        "next refresh makes them."
    )
    notes: tuple[str, ...] = ()
    if drawn is not None:
        notes = _map_notes(drawn.found)
    finding = Finding(
        title="Where the coreset lies among all samples",
        good="The coreset should be found wherever there are samples, more densely where rows "
        "count more; with a target, around what is like it. A whole cloud without a dot of the "
        "coreset is left out.",
        notes=notes,
        why_empty=why,
    )
    return Section(
        key="map",
        title="Map of the samples",
        about="Near each other is what the features take for alike, as far as a plane can show it.",
        findings={"map": finding},
    )


def _map_notes(found: FeatureMap) -> tuple[str, ...]:
    drawn = int(np.count_nonzero(found.is_of_data))
    which = "All" if drawn == found.num_samples else f"{drawn:,} of"
    sizes = ", ".join(
        f"{len(found.coresets[v]):,} of {size:,} in version {v}"
        for v, size in found.coreset_sizes.items()
        if len(found.coresets[v]) < size
    )
    shown = f" Of the coresets, {sizes}." if sizes else ""
    stays = (
        "The picture is laid out as in the report that this one replaced, so samples move only as "
        "far as their features did."
        if found.is_kept
        else "A later report that replaces this file keeps the layout."
    )
    return (
        f"{which} {found.num_samples:,} samples with features are drawn.{shown} The plane is that "
        f"of the two main directions of the centred features and shows {found.spread:.0%} of their "
        f"spread; the axes have no unit. {stays}",
        "Coordinates come from the features in the store's cache, which SQL does not show; "
        "`gracekit report --json` has them, `SELECT row FROM coresets WHERE version = …` the "
        "coreset's rows. Zoom with the buttons, or with + and − on the map.",
    )
