"""Ready-made queries by name, for `gracekit sql --named`.

What a query may be asked about is a parameter, `$name` in its SQL: bound as a value by DuckDB, so
that no text of a user becomes SQL.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import dedent

from gracekit.errors import QueryError
from gracekit.tabular import ShortRepr


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A value that a query takes."""

    about: str
    kind: type[int] | type[str] = str
    default: int | str | None = None
    is_required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NamedQuery(ShortRepr):
    """A query, and the parameters in it by name."""

    name: str
    about: str
    sql: str
    parameters: Mapping[str, Parameter]

    def bind(self, given: Mapping[str, str]) -> dict[str, int | str | None]:
        """Values for all parameters: those given as text, and the defaults.

        Raises `QueryError` for one that is unknown, missing or of another type.
        """
        for name in given:
            if name not in self.parameters:
                near = difflib.get_close_matches(name, self.parameters, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                takes = ", ".join(self.parameters) or "none"
                raise QueryError(f"{self.name} has no parameter {name!r}{hint}; it takes {takes}")
        return {
            name: self._value(name, parameter, given.get(name))
            for name, parameter in self.parameters.items()
        }

    def _value(self, name: str, parameter: Parameter, text: str | None) -> int | str | None:
        if text is None:
            if parameter.is_required:
                raise QueryError(
                    f"{self.name} needs {name}, {parameter.about}: give --param {name}=VALUE"
                )
            return parameter.default
        if parameter.kind is str:
            return text
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise QueryError(
                f"{self.name}: {name} ({parameter.about}) is a whole number, found {text!r}"
            )
        return int(text)


_COUNT = Parameter(about="most rows", kind=int, default=20)
_GROUP = Parameter(about="only this group")


def _query(name: str, about: str, sql: str, **parameters: Parameter) -> NamedQuery:
    return NamedQuery(name=name, about=about, sql=dedent(sql).strip(), parameters=parameters)


_NEWEST_PLACES = """
        WITH RECURSIVE behind AS (
            -- a rollback has the places of the version that it went back to
            SELECT version, rollback_of FROM versions
            WHERE version = (SELECT max(version) FROM versions)
            UNION ALL
            SELECT v.version, v.rollback_of
            FROM versions v JOIN behind ON v.version = behind.rollback_of
        )"""

_QUERIES = (
    _query(
        "copies",
        "samples of the newest version that share their place with others, those that "
        "say the same together, with the texts (selection.duplicates)",
        f"""{_NEWEST_PLACES}
        SELECT samples.sample_id, places.group_name, first.sample_id AS copy_of,
            count(*) OVER (PARTITION BY places.copy_of) AS num_copies, samples.preview
        FROM places JOIN samples USING (sample_id)
        JOIN samples AS first ON first.row = places.copy_of
        WHERE version = (SELECT min(version) FROM behind)
        ORDER BY num_copies DESC, first.row, places.row LIMIT $count
        """,
        count=_COUNT,
    ),
    _query(
        "distrusted",
        "samples of the newest version whose responses belong to their prompts least, by a "
        "reference model, with the texts (selection.trust)",
        f"""{_NEWEST_PLACES}
        SELECT sample_id, places.group_name, evidence, factor_trust, preview
        FROM places JOIN samples USING (sample_id)
        WHERE version = (SELECT min(version) FROM behind) AND factor_trust < 1
        ORDER BY evidence LIMIT $count
        """,
        count=_COUNT,
    ),
    _query(
        "movers",
        "samples whose importance changed most between two versions, by default the last two "
        "with scores of their own",
        """
        WITH last_two AS (
            -- every version with scores has row 0
            SELECT version FROM score_history WHERE row = 0 ORDER BY version DESC LIMIT 2
        ), bounds AS (
            SELECT if($before IS NULL, min(version),
                      (SELECT scores_version FROM versions WHERE version = $before)) AS first,
                   if($now IS NULL, max(version),
                      (SELECT scores_version FROM versions WHERE version = $now)) AS last
            FROM last_two
        ), changed AS (
            SELECT row, now.sample_id, now.group_name, before.importance AS importance_before,
                   now.importance AS importance_now,
                   now.importance - before.importance AS change, now.origin
            FROM score_history now JOIN score_history before USING (row)
            WHERE now.version = (SELECT last FROM bounds)
              AND before.version = (SELECT first FROM bounds) AND now.version <> before.version
            ORDER BY abs(change) DESC NULLS LAST, now.sample_id
            LIMIT $count
        )
        SELECT c.* EXCLUDE (row), preview
        FROM changed c JOIN samples USING (row)
        ORDER BY abs(change) DESC NULLS LAST, c.sample_id
        """,
        count=_COUNT,
        before=Parameter(about="version to compare with", kind=int),
        now=Parameter(about="version to look at", kind=int),
    ),
    _query(
        "forgotten",
        "selected samples whose last measurement is oldest",
        """
        SELECT c.sample_id, c.group_name, measured_step, step - measured_step AS age_steps,
               importance, origin, preview
        FROM coresets c JOIN versions USING (version) JOIN samples USING (row)
        WHERE version = (SELECT max(version) FROM versions)
        ORDER BY age_steps DESC, c.sample_id
        LIMIT $count
        """,
        count=_COUNT,
    ),
    _query(
        "never-measured",
        "samples that were never measured, and that cannot be, by group",
        """
        SELECT group_name, count(*) AS num_samples,
               count(*) FILTER (origin = 'never') AS num_never,
               count(*) FILTER (origin = 'invalid') AS num_invalid
        FROM scores
        WHERE origin <> 'removed'
        GROUP BY group_name
        ORDER BY group_name
        """,
    ),
    _query(
        "churn",
        "how much of the coreset each version replaced, and how far the audit can be trusted",
        """
        SELECT version, step, operation, num_selected, churn, jaccard, measured_fraction,
               rank_correlation, rank_correlation_stale
        FROM versions
        ORDER BY version
        """,
    ),
    _query(
        "group-shares",
        "share of each group in the data and in each coreset",
        """
        WITH whole AS (
            SELECT group_name, count(*) / sum(count(*)) OVER () AS data_share
            FROM samples WHERE removed_version IS NULL GROUP BY group_name
        )
        SELECT version, group_name, count(*) AS num_selected,
               count(*) / sum(count(*)) OVER (PARTITION BY version) AS coreset_share,
               any_value(data_share) AS data_share, sum(weight) AS weight_sum
        FROM coresets LEFT JOIN whole USING (group_name)
        GROUP BY version, group_name
        ORDER BY version, group_name
        """,
    ),
    _query(
        "hardest",
        "samples of highest importance now, with what is known of them",
        """
        SELECT s.* EXCLUDE (row), preview
        FROM scores s JOIN samples USING (row)
        WHERE origin <> 'removed' AND ($group IS NULL OR s.group_name = $group)
        ORDER BY importance DESC NULLS LAST, s.sample_id
        LIMIT $count
        """,
        count=_COUNT,
        group=_GROUP,
    ),
    _query(
        "trajectory",
        "one sample through all versions: its scores, where they came from, whether selected",
        """
        SELECT v.version, v.step, v.operation,
               h.* EXCLUDE (version, step, row, sample_id, group_name),
               c.row IS NOT NULL AS is_selected, c.rank, c.weight
        FROM versions v
        JOIN score_history h ON h.version = v.scores_version
        LEFT JOIN coresets c ON c.version = v.version AND c.row = h.row
        WHERE h.sample_id = $sample_id
        ORDER BY v.version
        """,
        sample_id=Parameter(about="the id of the sample", is_required=True),
    ),
    _query(
        "origins",
        "where each version's scores came from",
        """
        SELECT version, step, origin, count(*) AS num_samples, avg(confidence) AS mean_confidence
        FROM score_history
        GROUP BY version, step, origin
        ORDER BY version, origin
        """,
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
