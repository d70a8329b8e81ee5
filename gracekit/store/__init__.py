"""The store: the directory that holds all of a run's state. Files are the truth.

This module is the door: other rooms import from here and from nowhere further inside. `StoreReader`
reads, `Store` also writes. What is named here is loaded when it is first used: the trainer's side
(`Lease`, `list_versions`, `read_manifest` …) loads neither pydantic nor DuckDB. DuckDB is loaded
only for questions in SQL and for publishing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gracekit.store.checks import verify
    from gracekit.store.commit import VersionDraft
    from gracekit.store.files.cache import CachePayload, StoreCache
    from gracekit.store.files.claims import Claim
    from gracekit.store.files.draw_reading import read_sample_rows, read_trainer_draw
    from gracekit.store.files.formats import NewerFormatError, UnreadableError
    from gracekit.store.files.heartbeat import ailment, read_heartbeat
    from gracekit.store.files.leases import Lease
    from gracekit.store.files.lock import acquire_lock, lock_daemon, lock_store
    from gracekit.store.files.manifest_reading import (
        list_versions,
        read_manifest,
        require_manifest,
        trainer_view,
    )
    from gracekit.store.files.offers import DamagedTokensError, Offer
    from gracekit.store.files.parquet import damaged
    from gracekit.store.files.paths import StorePaths
    from gracekit.store.files.pinned import Pinned
    from gracekit.store.files.shards import ShardFiles
    from gracekit.store.files.shared_work import SharedWork, shared_work
    from gracekit.store.files.uses import (
        KEPT_USES,
        LoggedUses,
        UsesFacts,
        logged_steps,
        newest_run,
        read_uses,
        read_uses_facts,
        remove_uses_ahead,
        require_uses_fit,
        uses_path,
        write_uses,
    )
    from gracekit.store.outside import output_file, require_outside
    from gracekit.store.problems import Problem
    from gracekit.store.reader import StoreReader
    from gracekit.store.remote.mirror import bring, local_store, url_of_mirror
    from gracekit.store.remote.objects import PublishReport
    from gracekit.store.remote.record import Published, publish_and_record, read_published
    from gracekit.store.remote.verifying import verify_published
    from gracekit.store.retention import GcReport
    from gracekit.store.snapshot import Snapshot
    from gracekit.store.sql.ask import Answer, ask, run_sql
    from gracekit.store.sql.conditions import rows_where
    from gracekit.store.sql.database import connect, schema
    from gracekit.store.sql.queries import NAMED_QUERIES, NamedQuery, named_query
    from gracekit.store.sql.values import python_values
    from gracekit.store.store import Store
    from gracekit.store.version_argument import (
        VersionArgument,
        version_number,
        versions_in_words,
    )
    from gracekit.store.version_facts import KnownFacts, VersionFacts

_HOMES = {
    "gracekit.store.checks": ("verify",),
    "gracekit.store.commit": ("VersionDraft",),
    "gracekit.store.files.cache": ("CachePayload", "StoreCache"),
    "gracekit.store.files.claims": ("Claim",),
    "gracekit.store.files.draw_reading": ("read_sample_rows", "read_trainer_draw"),
    "gracekit.store.files.formats": ("NewerFormatError", "UnreadableError"),
    "gracekit.store.files.heartbeat": ("ailment", "read_heartbeat"),
    "gracekit.store.files.leases": ("Lease",),
    "gracekit.store.files.lock": ("acquire_lock", "lock_daemon", "lock_store"),
    "gracekit.store.files.manifest_reading": (
        "list_versions",
        "read_manifest",
        "require_manifest",
        "trainer_view",
    ),
    "gracekit.store.files.parquet": ("damaged",),
    "gracekit.store.files.paths": ("StorePaths",),
    "gracekit.store.files.pinned": ("Pinned",),
    "gracekit.store.files.shards": ("ShardFiles",),
    "gracekit.store.files.offers": ("DamagedTokensError", "Offer"),
    "gracekit.store.files.shared_work": ("SharedWork", "shared_work"),
    "gracekit.store.files.uses": (
        "KEPT_USES",
        "LoggedUses",
        "UsesFacts",
        "logged_steps",
        "newest_run",
        "read_uses",
        "read_uses_facts",
        "remove_uses_ahead",
        "require_uses_fit",
        "uses_path",
        "write_uses",
    ),
    "gracekit.store.outside": ("output_file", "require_outside"),
    "gracekit.store.problems": ("Problem",),
    "gracekit.store.reader": ("StoreReader",),
    "gracekit.store.remote.mirror": ("bring", "local_store", "url_of_mirror"),
    "gracekit.store.remote.objects": ("PublishReport",),
    "gracekit.store.remote.record": ("Published", "publish_and_record", "read_published"),
    "gracekit.store.remote.verifying": ("verify_published",),
    "gracekit.store.retention": ("GcReport",),
    "gracekit.store.snapshot": ("Snapshot",),
    "gracekit.store.sql.ask": ("Answer", "ask", "run_sql"),
    "gracekit.store.sql.conditions": ("rows_where",),
    "gracekit.store.sql.database": ("connect", "schema"),
    "gracekit.store.sql.queries": ("NAMED_QUERIES", "NamedQuery", "named_query"),
    "gracekit.store.sql.values": ("python_values",),
    "gracekit.store.store": ("Store",),
    "gracekit.store.version_argument": (
        "VersionArgument",
        "version_number",
        "versions_in_words",
    ),
    "gracekit.store.version_facts": ("KnownFacts", "VersionFacts"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "KEPT_USES",
    "NAMED_QUERIES",
    "Answer",
    "CachePayload",
    "Claim",
    "DamagedTokensError",
    "GcReport",
    "KnownFacts",
    "Lease",
    "LoggedUses",
    "NamedQuery",
    "NewerFormatError",
    "Offer",
    "Pinned",
    "Problem",
    "PublishReport",
    "Published",
    "ShardFiles",
    "SharedWork",
    "Snapshot",
    "Store",
    "StoreCache",
    "StorePaths",
    "StoreReader",
    "UnreadableError",
    "UsesFacts",
    "VersionArgument",
    "VersionDraft",
    "VersionFacts",
    "acquire_lock",
    "ailment",
    "ask",
    "bring",
    "connect",
    "damaged",
    "list_versions",
    "local_store",
    "lock_daemon",
    "lock_store",
    "logged_steps",
    "named_query",
    "newest_run",
    "output_file",
    "publish_and_record",
    "python_values",
    "read_heartbeat",
    "read_manifest",
    "read_published",
    "read_sample_rows",
    "read_trainer_draw",
    "read_uses",
    "read_uses_facts",
    "remove_uses_ahead",
    "require_manifest",
    "require_outside",
    "require_uses_fit",
    "rows_where",
    "run_sql",
    "schema",
    "shared_work",
    "trainer_view",
    "url_of_mirror",
    "uses_path",
    "verify",
    "verify_published",
    "version_number",
    "versions_in_words",
    "write_uses",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(_HOME_OF[name]), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted(__all__)
