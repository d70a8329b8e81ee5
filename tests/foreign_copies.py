"""Readers of what lies outside of a store: losses of a reference model, an earlier export and what
is beside it, the objects of a published store, as its publisher and as trainers meet them.

Each as in `tests.foreign_readers`.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq

from gracekit.exports.dataset_info import known_datasets
from gracekit.exports.exporting import exported_at
from gracekit.exports.placing import check_place, put_in_place
from gracekit.samples.reference import ReferenceLosses
from gracekit.store import Store, read_published
from gracekit.store.files.manifest_reading import METADATA_KEY
from gracekit.store.files.sealing import sealed_parquet
from gracekit.store.remote.publishing import publish_versions
from gracekit.training import Coreset
from tests.foreign_readers import Reader, as_json, mutated_parquet, write_files
from tests.mutations import json_bytes, mutated_bytes, mutated_document, mutated_json
from tests.published import make_history
from tests.stores import make_header, strings

HASHES = [f"{k:032x}" for k in range(4)]


def losses() -> ReferenceLosses:
    """Of four contents."""
    values = np.arange(1, 5, dtype=np.float32)
    return ReferenceLosses(
        content_hashes=strings(HASHES),
        sample_ids=strings(["a", "b", "c", "d"]),
        loss=values, loss_other=2 * values, loss_alone=3 * values,
        num_targets=np.arange(4, dtype=np.int32),
        facts={"model": "m", "rendering": "r"},
    )  # fmt: skip


def _reference(folder: Path) -> None:
    losses().write(folder / "reference.parquet")


def read_reference(folder: Path) -> None:
    """Losses as they were measured, or an error."""
    found, whole = ReferenceLosses.read(folder / "reference.parquet"), losses()
    for ours, theirs in zip(found.of(whole.content_hashes), whole.of(whole.content_hashes),
                            strict=True):  # fmt: skip
        np.testing.assert_array_equal(ours, theirs)


def _export(folder: Path) -> None:
    header = {"version": 3, "export": {
        "format": "jsonl", "version": 3, "num_rows": 2, "weights": "column",
        "written": ["manifest.json", "coreset.jsonl", "deep/a.txt"],
    }}  # fmt: skip
    shared = {"out": {"file_name": "out/coreset.jsonl", "columns": {"prompt": "a"}}, "other": {}}
    write_files(folder, {
        "out/manifest.json": as_json(header), "out/coreset.jsonl": b"{}\n", "out/deep/a.txt": b"a",
        "dataset_info.json": as_json(shared), "note.txt": b"not ours",
    })  # fmt: skip


def replace_export(folder: Path) -> None:
    """Another export in its place; what is beside it stays."""
    out, built = folder / "out", folder / "built"
    try:
        exported_at(out, make_header(3))
        if (folder / "dataset_info.json").exists():
            known_datasets(folder / "dataset_info.json", "out")
        check_place(out, True)
        shutil.copytree(out, built, symlinks=True)
        put_in_place(built, out)
    finally:
        shutil.rmtree(built, ignore_errors=True)
        for left in folder.glob("out.partial-*"):
            shutil.rmtree(left)
        assert (folder / "note.txt").read_bytes() == b"not ours"
        write_files(folder, {"out/coreset.jsonl": b"{}\n", "out/deep/a.txt": b"a"})


def _published(folder: Path) -> None:
    store = make_history(folder / "store")
    store.gc(2)
    publish_versions(store.renew(), url_in(folder))


def url_in(folder: Path) -> str:
    """Where it is published."""
    return f"file://{folder}/bucket"


def publish_again(folder: Path) -> None:
    """Another version, over what is there; the store itself stays as it is."""
    store = Store.open(folder / "store")
    read_published(store.paths)
    before = store.paths.manifest(4).read_bytes()
    try:
        publish_versions(store, url_in(folder))
    finally:
        assert store.paths.manifest(4).read_bytes() == before


def load_by_url(folder: Path) -> None:
    """The newest coreset, downloaded anew: as it was made, or an error."""
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    store = Store.open(folder / "store")
    with patch.dict(os.environ, {"GRACEKIT_CACHE": str(cache)}):
        found = Coreset.load(url_in(folder))
    if not (folder / "bucket/sealed.other").exists():
        made = store.coreset(found.version).sort_by("row")
        assert sorted(found.rows.tolist()) == made["row"].to_pylist()


def mutated_manifest(content: bytes, rng: random.Random) -> bytes:
    """Damaged bytes; or another header, in a file that is sealed as ours are."""
    if rng.random() < 0.4:
        return mutated_bytes(content, rng)
    table = pq.read_table(io.BytesIO(content))
    header = json_bytes(mutated_json(json.loads(table.schema.metadata[METADATA_KEY]), rng))
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: header}), sink)
    return b"".join(bytes(part) for part in sealed_parquet(memoryview(sink.getvalue())))


READERS_OF_COPIES = [
    Reader("reference", _reference, {"reference.parquet": mutated_parquet}, read_reference),
    Reader(
        "export",
        _export,
        {"out/manifest.json": mutated_document, "dataset_info.json": mutated_document},
        replace_export,
    ),
    Reader(
        "publisher",
        _published,
        {
            "bucket/store.json": mutated_document,
            "bucket/headers/v000004.json": mutated_document,
            "bucket/removed/v000001.json": mutated_document,
            "bucket/LATEST": mutated_bytes,
            "bucket/manifests/v000004.parquet": mutated_bytes,
        },
        publish_again,
        may_be_special=False,
    ),
    Reader(
        "mirror",
        _published,
        {
            "bucket/store.json": mutated_document,
            "bucket/removed/v000001.json": mutated_document,
            "bucket/manifests/v000004.parquet": mutated_manifest,
            "bucket/samples/v000002.parquet": mutated_bytes,
        },
        load_by_url,
        may_be_special=False,
    ),
]
