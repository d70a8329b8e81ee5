"""The verbs that look at one sample: `explain`, `similar`."""

from __future__ import annotations

from gracekit.api.stores import (
    StoreLike,
    VersionLike,
    open_store,
    resolve,
    text,
    whole_number,
)
from gracekit.views.explain import SampleExplanation, SimilarSamples
from gracekit.views.explain import explain as compute_explanation
from gracekit.views.explain import similar as find_similar


def explain(
    store: StoreLike, sample_id: str, *, version: VersionLike = "latest"
) -> SampleExplanation:
    """Why a sample is in a version's coreset, or why it is not.

    Args:
        store: Path of the store, or an open `Store`.
        sample_id: The sample's id.
        version: A version's number, or `"latest"`.

    Raises:
        VersionNotFoundError: There is no such version.
        QueryError: There is no such sample.
        StoreFormatError: The graph of that version is no longer kept, or damaged.

    Example:
        >>> found = gracekit.explain("gracekit-store", "gsm8k-17")
        >>> print(found)                     # in sentences
        >>> found.is_selected, found.percentile
        (True, 93.4)
    """
    opened = open_store(store)
    return compute_explanation(opened, text(sample_id, "sample_id"), resolve(opened, version))


def similar(
    store: StoreLike, sample_id: str, *, version: VersionLike = "latest", count: int = 10
) -> SimilarSamples:
    """The samples most similar to one, as the model sees them: by the cosine of their features.

    Args:
        store: Path of the store, or an open `Store`.
        sample_id: The sample's id.
        version: A version's number, or `"latest"`.
        count: How many, at most.

    Raises as `explain`.

    Example:
        >>> gracekit.similar("gracekit-store", "gsm8k-17", count=3)[0].similarity
        0.94
    """
    opened = open_store(store)
    number = resolve(opened, version)
    count = whole_number(count, "count", least=1)
    return find_similar(opened, text(sample_id, "sample_id"), number, count=count)
