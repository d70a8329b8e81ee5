"""Whole stores as earlier releases wrote them, and all that one can ask of a store.

`tests/data/README.md` says how they were made.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gracekit.files import sha256
from gracekit.store import NAMED_QUERIES, StoreReader, run_sql
from gracekit.store.files.paths import present_name
from gracekit.training import Coreset
from gracekit.types import SampleTable, ScoreTable

DATA = Path(__file__).parent / "data"
RELEASES = {"format 1": "store-0555866", "format 2": "store-f5a544c"}
"""Format of the store -> name of the archive."""
SAMPLE_IDS = "SELECT sample_id FROM samples ORDER BY row LIMIT 1"


def unpack(release: str, folder: Path) -> Path:
    """A folder with the recipe, data and store of a release; returns the folder."""
    with tarfile.open(DATA / f"{RELEASES[release]}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def content(root: Path) -> dict[str, Any]:
    """All that Python tells of a store, in values that compare."""
    store = StoreReader.open(root)
    return {
        "versions": store.versions(),
        "removed": store.removed(),
        "next": (store.next_version(), store.latest(), store.newest_scores()),
        "held": store.held_versions(),
        "headers": {v: _header(store.header(v).to_json()) for v in store.all_versions()},
        "coresets": {v: store.coreset(v).to_pydict() for v in store.versions()},
        "scores": {v: _arrays(store.scores(v)) for v in store.versions()},
        "samples": {v: _arrays(store.samples(v)) for v in store.versions()},
        "measured": {v: _measured(store, v) for v in store.all_versions()},
        "trained": {v: Coreset.load(root, v).weights.tolist() for v in store.versions()},
        "features": store.load_cache(store.latest() or 0) is not None,
    }


def answers(root: Path) -> dict[str, Any]:
    """All that SQL tells: every table and view, and every named query."""
    (sample_id,) = run_sql(root, SAMPLE_IDS)[1][0]
    found: dict[str, Any] = {}
    for query in NAMED_QUERIES.values():
        given = {"sample_id": sample_id} if "sample_id" in query.parameters else {}
        found[query.name] = run_sql(root, query.sql, parameters=query.bind(given))
    for name in ("samples", "scores", "checkpoints", "coresets", "score_history", "measurements"):
        found[name] = run_sql(root, f"FROM {name} ORDER BY ALL")
    found["versions"] = run_sql(root, "SELECT * EXCLUDE (header) FROM versions ORDER BY version")
    return json.loads(json.dumps(found, default=str))  # type: ignore[no-any-return]


def digests(root: Path) -> dict[str, str]:
    """Name -> checksum of the files that a migration may only move."""
    found = [*root.glob("*history/*/*.parquet"), *root.glob("measurements/*/*.parquet")]
    names = {f"{path.parent.name}/{path.name}": sha256(path) for path in found}
    return names | {p.name: sha256(p) for p in [*root.glob("samples/*"), *root.glob("samples.*")]}


def _header(content: dict[str, Any]) -> dict[str, Any]:
    """Besides the format, which a migration writes anew, and by the present names of files."""
    files = {present_name(name): file for name, file in content["files"].items()}
    return {**content, "files": files, "format_version": None}


def _arrays(values: SampleTable | ScoreTable) -> dict[str, Any]:
    return dict(_plain(values))


def _plain(values: SampleTable | ScoreTable) -> Iterator[tuple[str, Any]]:
    for name in values.__dataclass_fields__:
        value = getattr(values, name)
        if isinstance(value, dict):
            value = {key: np.nan_to_num(array, nan=-7).tolist() for key, array in value.items()}
        yield name, value.tolist() if isinstance(value, np.ndarray) else value


def _measured(store: StoreReader, version: int) -> dict[str, Any] | None:
    path = store.paths.relative(store.paths.measured(version))
    if path not in store.header(version).files:
        return None
    return store.measurement(version).to_pydict()  # type: ignore[no-any-return]
