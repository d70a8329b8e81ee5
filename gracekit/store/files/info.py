"""`store.json`: what the store was made from, and in which format."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gracekit.errors import StoreFormatError, StoreNotFoundError
from gracekit.store.files.formats import read_json_object
from gracekit.store.files.sealing import sealed_json
from gracekit.tabular import ShortRepr
from gracekit.version.header import DatasetInfo, FileInfo
from gracekit.version.json_text import plain_json


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StoreInfo(ShortRepr):
    """Content of `store.json`. Only a migration changes it."""

    format_version: int
    gracekit_version: str
    created_at: str
    """UTC, RFC 3339."""
    dataset: DatasetInfo
    """Of the first data."""
    files: dict[str, FileInfo] = field(default_factory=dict)
    """The sample table of the first data -> what it was written as; none in stores before format
    4."""

    @property
    def fingerprint(self) -> str:
        """Identity of the first data."""
        return self.dataset.fingerprint

    @property
    def num_samples(self) -> int:
        """Samples that the store was made with; `Store.dataset` knows of later changes."""
        return self.dataset.num_samples

    def to_text(self) -> str:
        """As the file holds it."""
        content = {
            "format_version": self.format_version,
            "gracekit_version": self.gracekit_version,
            "created_at": self.created_at,
            "dataset": self.dataset.model_dump(mode="json"),
            "files": {name: entry.model_dump(mode="json") for name, entry in self.files.items()},
        }
        return sealed_json(plain_json(content))

    @classmethod
    def load(cls, path: Path) -> StoreInfo:
        """Read `store.json`.

        Raises:
            StoreNotFoundError: It is not there.
            StoreFormatError: It is damaged, or of a newer format.
        """
        try:
            content = read_json_object(path)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreNotFoundError(
                f"there is no store at {path.parent} (no {path.name} in it); `gracekit watch` "
                "makes one at the first checkpoint, or name another with --store"
            ) from None
        try:
            info = cls(
                format_version=content["format_version"],
                gracekit_version=content["gracekit_version"],
                created_at=content["created_at"],
                dataset=DatasetInfo.from_json(content["dataset"]),
                files={
                    name: FileInfo.model_validate(entry)
                    for name, entry in content.get("files", {}).items()
                },
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StoreFormatError(
                f"{path} lacks {error}; it is damaged: restore it from a backup"
            ) from None
        return info
