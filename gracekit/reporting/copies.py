"""Samples that say the same: exact copies, and those near by their features, with both texts."""

from __future__ import annotations

import numpy as np

from gracekit.graph import load_graph
from gracekit.recipe import GraphSection
from gracekit.reporting.finding import Finding, Pairs, Section
from gracekit.reporting.questions import Questions, in_list, query
from gracekit.store import StoreCache
from gracekit.types import Float32, Int32, Int64
from gracekit.version.header import Header
from gracekit.words import count_of

ALIKE = 0.95
"""Cosine of the centred features from which two samples are shown as near to each other."""
NUM_PAIRS = 8

_EXACT = query(f"""
    WITH copied AS (
        SELECT content_hash, count(*) AS copies, min(row) AS one, max(row) AS two FROM samples
        WHERE removed_version IS NULL GROUP BY content_hash HAVING count(*) > 1
    )
    SELECT copies, a.sample_id AS first_id, b.sample_id AS second_id, a.group_name AS first_group,
           b.group_name AS second_group, a.preview AS first_text, b.preview AS second_text
    FROM copied JOIN samples a ON a.row = one JOIN samples b ON b.row = two
    ORDER BY copies DESC, one LIMIT {NUM_PAIRS}""")
_NUM_EXACT = """
    SELECT count(*) AS m, sum(copies)::BIGINT AS n FROM (
        SELECT count(*) AS copies FROM samples
        WHERE removed_version IS NULL GROUP BY content_hash HAVING count(*) > 1)"""


def copies(questions: Questions, header: Header | None, cache: StoreCache | None) -> Section:
    """Exact copies, and pairs near by their features.

    Args:
        questions: To the store.
        header: Of the version whose features the cache has; None: there is none.
        cache: Features and graph of it; None: they are not kept.
    """
    return Section(
        key="copies",
        title="Samples that say the same",
        about="Those that say the same word for word, or but for one passage, share one place in "
        "the draw, unless the recipe has `selection.duplicates: keep`; `gracekit sql copies` lists "
        "them. What is near by its features alone has its own place.",
        findings={"exact": _exact(questions), "near": _near(questions, header, cache)},
    )


def _exact(questions: Questions) -> Finding:
    found = questions.ask(_EXACT)
    notes: tuple[str, ...] = ()
    if any(found.values()):
        of = questions.one(_NUM_EXACT)
        contents = count_of(of["m"], "content occurs", "contents occur")
        notes = (f"{contents} more than once, in {of['n']:,} samples.",)
    return Finding(
        title="Exact copies, the most frequent first",
        good="None is good; a few do no harm.",
        sql=_EXACT,
        columns=found,
        chart=Pairs(),
        notes=notes,
        why_empty="No two samples have the same content.",
    )


def _near(questions: Questions, header: Header | None, cache: StoreCache | None) -> Finding:
    title = "Near by their features: the most similar pairs that differ"
    good = "Look at some: edited copies teach the same twice, short tasks of one template do not."
    settings = None if header is None else header.settings.graph
    graph = None
    if cache is not None:
        graph = load_graph(
            cache.index_directory, settings=settings or GraphSection(), is_checked=True
        )
    if graph is None:
        lost = (
            "The features and the graph are not kept or are damaged; the next refresh makes them."
        )
        return Finding(title=title, good=good, chart=Pairs(), why_empty=lost)
    nearest, cosines = graph.neighbors[:, 0], graph.similarities[:, 0]
    pairs, found = _pairs(nearest, cosines)
    rows = np.unique(pairs).tolist()
    sql = query(f"""
        SELECT row, sample_id, group_name, content_hash, preview FROM samples
        WHERE removed_version IS NULL AND row IN ({in_list(rows)})""")
    answer = questions.ask(sql)
    at = {row: place for place, row in enumerate(answer["row"])}
    columns: dict[str, list[object]] = {name: [] for name in (
        "similarity", "first_id", "second_id", "first_group", "second_group", "first_text",
        "second_text")}  # fmt: skip
    for (first, second), cosine in zip(pairs.tolist(), found.tolist(), strict=True):
        if first not in at or second not in at or len(columns["similarity"]) == NUM_PAIRS:
            continue
        a, b = at[first], at[second]
        if answer["content_hash"][a] == answer["content_hash"][b]:
            continue
        columns["similarity"].append(cosine)
        for side, place in (("first", a), ("second", b)):
            columns[f"{side}_id"].append(answer["sample_id"][place])
            columns[f"{side}_group"].append(answer["group_name"][place])
            columns[f"{side}_text"].append(answer["preview"][place])
    alike = int(np.count_nonzero(cosines >= ALIKE))
    return Finding(
        title=title,
        good=good,
        sql=sql,
        columns=columns,
        chart=Pairs(),
        notes=(
            f"{alike:,} of {len(nearest):,} samples have another one, exact copies included, whose "
            f"features have a cosine of {ALIKE} or more with theirs.",
            "Pairs come from the stored k-NN graph; the query looks up their texts.",
        ),
        why_empty=f"No two samples that differ have features with a cosine of {ALIKE} or more.",
    )


def _pairs(nearest: Int32, cosines: Float32) -> tuple[Int64, Float32]:
    """The most similar pairs [p, 2], each once, and their cosines [p]; most similar first.

    More than are shown, since exact copies among them are passed over.
    """
    rows = np.flatnonzero((nearest >= 0) & (cosines >= ALIKE))
    order = rows[np.argsort(-cosines[rows], kind="stable")][: 400 * NUM_PAIRS]
    both = np.sort(np.stack([order, nearest[order].astype(np.int64)], axis=1), axis=1)
    _, first = np.unique(both, axis=0, return_index=True)
    first = np.sort(first)
    return both[first], cosines[order][first]
