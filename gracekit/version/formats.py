"""Headers of older formats, brought into the present layout of their JSON.

Formats 1 and 2 kept settings and results in one mapping: `refresh` held the recipe's section, what
was measured, and under `propagation` and `graph` again both; `selection` the recipe's section and
the selection's details; `dataset` the recipe's section and what was found.
"""

from __future__ import annotations

from gracekit.recipe import (
    DataSection,
    GraphSection,
    PropagationSection,
    RefreshSection,
    SelectionSection,
)
from gracekit.types import Json

_LATER_AUDIT_NUMBERS = ("rank_correlation_all", "calibration")
"""Not in headers of the first release; null, as what could not be computed."""
_TIMES = ("model_pass_s", "other_s", "total_s")


def header_of_format_2(old: Json) -> Json:
    """The present layout of a header of format 1 or 2; raises KeyError for what is missing."""
    refresh, selection = old["refresh"], old["selection"]
    propagation, graph = refresh.get("propagation") or {}, refresh.get("graph") or {}
    stats, timings = old["stats"], old["timings"]
    return {
        **{key: old[key] for key in _SAME},
        "rollback_of": old.get("rollback_of"),
        "measure_id": refresh.get("measure_id"),
        "dataset": dataset_of_format_2(old["dataset"]),
        "settings": {
            "scoring": old["scoring"] or None,
            "refresh": _of(RefreshSection, refresh) or None,
            "propagation": _of(PropagationSection, _settings_of_propagation(propagation)) or None,
            "graph": _of(GraphSection, graph) or None,
            "selection": _of(SelectionSection, selection),
        },
        "refresh": _refresh_outcome(refresh, propagation, graph, stats),
        "selection": selection.get("details") or {},
        "stats": {key: value for key, value in stats.items() if value is not None},
        "timings": {
            **{key: timings[key] for key in _TIMES if key in timings},
            "stages": {
                key.removesuffix("_s"): value for key, value in timings.items() if key not in _TIMES
            },
        },
        "audit": old["audit"] and dict.fromkeys(_LATER_AUDIT_NUMBERS) | old["audit"],
    }


def dataset_of_format_2(old: Json) -> Json:
    """The present layout of what is known of the data; of the present layout: as it is."""
    if "settings" in old:
        return old
    content = {key: value for key, value in old.items() if key not in DataSection.model_fields}
    content["settings"] = {"path": "", **_of(DataSection, old)}
    content.setdefault("num_rows", content["num_samples"])
    if not content.get("sources"):
        positions = content.get("positions", "first")
        content["sources"] = {positions: content["num_source_rows"]}
    return content


_SAME = (
    "format_version", "version", "parent_version", "created_at", "gracekit_version", "operation",
    "refresh_id", "recipe_digest", "scores_version", "checkpoint", "files",
)  # fmt: skip


def _of(section: type, values: Json) -> Json:
    return {key: value for key, value in values.items() if key in section.model_fields}  # type: ignore[attr-defined]


def _settings_of_propagation(propagation: Json) -> Json:
    """`features` was the recipe's key in the first version and what was found in later ones."""
    found = propagation.get("features")
    if isinstance(found, dict):
        return {**propagation, "features": found.get("rule", "ridge")}
    return propagation


def _refresh_outcome(refresh: Json, propagation: Json, graph: Json, stats: Json) -> Json | None:
    num_measured = refresh.get("num_measured", stats.get("num_measured"))
    if num_measured is None:
        return None
    scores, features = propagation.get("scores"), propagation.get("features")
    return {
        **{k: v for k, v in refresh.items() if k not in {"propagation", "graph"}},
        "num_measured": num_measured,
        "propagation": {
            "scores": scores if isinstance(scores, dict) else None,
            "features": features if isinstance(features, dict) else None,
        },
        "graph": graph if "rebuilt" in graph else None,
    }
