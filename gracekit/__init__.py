"""gracekit follows a fine-tuning run from outside and keeps a fresh coreset for its trainer.

    import gracekit
    result = gracekit.refresh("gracekit.yaml", "runs/sft/checkpoint-300")
    coreset = gracekit.Coreset.load("gracekit-store")          # .rows .weights .sample_ids
    train = coreset.select(dataset)
    print(gracekit.status("gracekit-store"))
    gracekit.sql("gracekit-store", "movers", count=5).to_pandas()

The verbs are those of the command line, under the same names. All names below are imported when
they are first used: `import gracekit` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gracekit.version import __version__

if TYPE_CHECKING:
    from gracekit.api.asking import connect, find_query, named_queries, schema, sql, sql_batches
    from gracekit.api.checking import check_tokens
    from gracekit.api.comparing import compare
    from gracekit.api.deprecated import reselect
    from gracekit.api.doctoring import doctor
    from gracekit.api.exporting import export
    from gracekit.api.keeping import gc, pin, rollback, unpin
    from gracekit.api.making import plan, reference, refresh, watch
    from gracekit.api.publishing import publish
    from gracekit.api.reading import diff, status, verify, versions
    from gracekit.api.reporting import report
    from gracekit.api.samples import explain, similar
    from gracekit.api.selecting import select
    from gracekit.api.starting import init
    from gracekit.api.working import work
    from gracekit.daemon import stop_on_signals
    from gracekit.errors import GracekitError
    from gracekit.recipe import Recipe
    from gracekit.refresher import RefreshResult
    from gracekit.store import Store
    from gracekit.training import Coreset

__all__ = [
    "Coreset",
    "GracekitError",
    "Recipe",
    "RefreshResult",
    "Store",
    "__version__",
    "check_tokens",
    "compare",
    "connect",
    "diff",
    "doctor",
    "explain",
    "export",
    "find_query",
    "gc",
    "init",
    "named_queries",
    "pin",
    "plan",
    "publish",
    "reference",
    "refresh",
    "report",
    "reselect",
    "rollback",
    "schema",
    "select",
    "similar",
    "sql",
    "sql_batches",
    "status",
    "stop_on_signals",
    "unpin",
    "verify",
    "versions",
    "watch",
    "work",
]

_NAMES_OF = {
    "gracekit.api.asking": (
        "connect",
        "find_query",
        "named_queries",
        "schema",
        "sql",
        "sql_batches",
    ),
    "gracekit.api.checking": ("check_tokens",),
    "gracekit.api.comparing": ("compare",),
    "gracekit.api.deprecated": ("reselect",),
    "gracekit.api.doctoring": ("doctor",),
    "gracekit.api.exporting": ("export",),
    "gracekit.api.keeping": ("gc", "pin", "rollback", "unpin"),
    "gracekit.api.making": ("plan", "reference", "refresh", "watch"),
    "gracekit.api.publishing": ("publish",),
    "gracekit.api.reading": ("diff", "status", "verify", "versions"),
    "gracekit.api.reporting": ("report",),
    "gracekit.api.samples": ("explain", "similar"),
    "gracekit.api.selecting": ("select",),
    "gracekit.api.starting": ("init",),
    "gracekit.api.working": ("work",),
    "gracekit.daemon": ("stop_on_signals",),
    "gracekit.errors": ("GracekitError",),
    "gracekit.recipe": ("Recipe",),
    "gracekit.refresher": ("RefreshResult",),
    "gracekit.store": ("Store",),
    "gracekit.training": ("Coreset",),
}
_HOMES = {name: home for home, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
