"""Ready-made queries by name, for `gracekit sql --named`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from gracekit.errors import QueryError


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedQuery:
    """A query that needs no input."""

    name: str
    about: str
    sql: str


_LAST_TWO = (
    "WITH recent AS (SELECT DISTINCT scores_version AS version FROM versions "
    "ORDER BY version DESC LIMIT 2), "
    "history AS (FROM score_history WHERE version IN (FROM recent)), "
    "now AS (FROM history WHERE version = (SELECT max(version) FROM recent)), "
    "before AS (FROM history WHERE version < (SELECT max(version) FROM recent)) "
)

_QUERIES = (
    NamedQuery(
        name="movers",
        about="samples whose importance changed most between the last two refreshes",
        sql=_LAST_TWO + "SELECT sample_id, group_name, before.importance AS importance_before, "
        "now.importance AS importance_now, now.importance - before.importance AS change, "
        "now.origin, preview FROM now JOIN before USING (row) JOIN samples USING (row) "
        "ORDER BY abs(change) DESC, sample_id LIMIT 20",
    ),
    NamedQuery(
        name="forgotten",
        about="selected samples whose last measurement is oldest",
        sql="SELECT sample_id, group_name, measured_step, step - measured_step AS age_steps, "
        "importance, origin FROM coresets JOIN versions v USING (version) "
        "JOIN samples USING (row) WHERE version = (SELECT max(version) FROM versions) "
        "ORDER BY age_steps DESC, sample_id LIMIT 20",
    ),
    NamedQuery(
        name="never-measured",
        about="samples that were never measured, by group",
        sql="SELECT group_name, count(*) AS num_samples, "
        "count(*) FILTER (origin = 'never') AS num_never, "
        "count(*) FILTER (origin = 'invalid') AS num_invalid "
        "FROM scores JOIN samples USING (row) WHERE removed_version IS NULL "
        "GROUP BY group_name ORDER BY group_name",
    ),
    NamedQuery(
        name="churn",
        about="how much of the coreset each version replaced, and how far the audit can be trusted",
        sql="SELECT version, step, operation, num_selected, churn, jaccard, measured_fraction, "
        "rank_correlation, rank_correlation_stale FROM versions ORDER BY version",
    ),
    NamedQuery(
        name="group-shares",
        about="share of each group in the data and in each coreset",
        sql="WITH whole AS (SELECT group_name, count(*) / sum(count(*)) OVER () AS data_share "
        "FROM samples WHERE removed_version IS NULL GROUP BY group_name) "
        "SELECT version, group_name, count(*) AS num_selected, "
        "count(*) / sum(count(*)) OVER (PARTITION BY version) AS coreset_share, "
        "any_value(data_share) AS data_share, sum(weight) AS weight_sum "
        "FROM coresets JOIN samples USING (row) LEFT JOIN whole USING (group_name) "
        "GROUP BY version, group_name ORDER BY version, group_name",
    ),
    NamedQuery(
        name="hardest",
        about="samples of highest importance now, with what is known of them",
        sql="SELECT sample_id, group_name, s.* EXCLUDE (row), preview "
        "FROM scores s JOIN samples USING (row) WHERE removed_version IS NULL "
        "ORDER BY importance DESC, sample_id LIMIT 20",
    ),
    NamedQuery(
        name="origins",
        about="where each version's scores came from",
        sql="SELECT version, step, origin, count(*) AS num_samples, "
        "avg(confidence) AS mean_confidence FROM score_history "
        "GROUP BY version, step, origin ORDER BY version, origin",
    ),
)

NAMED_QUERIES = {query.name: query for query in _QUERIES}


def named_query(name: str) -> NamedQuery:
    """The query of that name; raises `QueryError` listing what exists."""
    query = NAMED_QUERIES.get(name)
    if query is None:
        near = difflib.get_close_matches(name, NAMED_QUERIES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise QueryError(
            f"there is no query named {name!r}{hint}; there are {', '.join(NAMED_QUERIES)}"
        )
    return query
