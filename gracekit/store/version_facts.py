"""What must be known of every version at each commit: small, and read from its manifest once.

A daemon makes versions for weeks. Keeping all headers would fill its memory, and reading them all
again at each commit would make the thousandth version cost more than the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from gracekit.version.header import Header

Stamp = tuple[int, int, int]
"""Inode, size and time of a file: another one shows that it was replaced."""


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """Of one header, what tells versions apart and whether one is whole."""

    operation: str
    created_at: str
    refresh_id: str
    recipe_digest: str
    scores_version: int
    checkpoint: tuple[str | None, float | None]
    """Path and time of completion."""
    columns: tuple[str, ...] | None
    """What decides the columns of its history: equal ones mean equal columns. None: unknown."""
    is_measured: bool
    """Whether it came out of a measurement, with shards."""
    sizes: tuple[tuple[str, int], ...]
    """Path relative to the store, and bytes, of the history files that it was made with."""
    removed_at: str | None = None
    """When gc removed it."""

    @classmethod
    def of(cls, header: Header, *, removed_at: str | None = None) -> VersionFacts:
        """The facts of a header."""
        scoring = header.settings.scoring
        return cls(
            operation=header.operation,
            created_at=header.created_at,
            refresh_id=header.refresh_id,
            recipe_digest=header.recipe_digest,
            scores_version=header.scores_version,
            checkpoint=(header.checkpoint.path, header.checkpoint.completed_at),
            columns=(header.gracekit_version, *scoring.scores) if scoring else None,
            is_measured=header.measure_id is not None,
            removed_at=removed_at,
            sizes=tuple((name, entry.num_bytes) for name, entry in header.files.items()),
        )


KnownFacts = dict[int, tuple[Stamp | None, VersionFacts]]
"""version -> its facts, and the stamp of the manifest or removal that they were read from."""
