"""By what two stores, and two versions of one number, are told apart: the same in all formats."""

from __future__ import annotations

from gracekit.types import Json


def identity_of_store(content: Json) -> tuple[object, object]:
    """When a store was made, and the identity of its first data; of its `store.json`."""
    dataset = content.get("dataset")
    fingerprint = dataset.get("fingerprint") if isinstance(dataset, dict) else None
    return content.get("created_at"), fingerprint


def identity_of_version(content: Json) -> list[object]:
    """What no migration changes in the header of a version."""
    return [content.get(key) for key in ("version", "created_at", "refresh_id", "operation")]
