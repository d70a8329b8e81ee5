"""Of a header what a trainer needs, read without the typed header and so without pydantic."""

from __future__ import annotations

from dataclasses import dataclass

from gracekit.types import Json
from gracekit.version import FIRST_POSITIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerView:
    """What a trainer needs to know of a version. The keys are the same in all formats."""

    step: int
    """Training step of the checkpoint."""
    num_source_rows: int
    """Rows of the data file that the version was made from, skipped ones included."""
    positions: str
    """Hash of which sample lies where in the data."""
    sources: dict[str, int]
    """`positions` of all data that the store had followed -> its `num_source_rows`."""
    rollback_of: int | None
    loss: str
    """What the trainer's loss is an average over, as the recipe had it: `tokens` or `samples`."""
    tokens_per_row: float | None
    """Target tokens of a row of the pool on average; None for a version without a draw."""
    samples_file: str
    """The sample table, relative to the store."""
    files: frozenset[str]
    """What the version needs, relative to the store."""
    max_uses: int | None
    """`selection.max_uses` of its settings."""
    advice: str | None
    """Why the training should end; None: nothing says so, or no target is followed."""
    stop: str
    """What is made of it: `advise`, `stop` or `never`."""
    content: Json
    """The whole header as its JSON has it."""

    @classmethod
    def from_json(cls, content: Json) -> TrainerView:
        """Of a header of any format; raises KeyError or TypeError for what is none."""
        dataset = content["dataset"]
        settings = content.get("settings") or {}
        scoring, selection = settings.get("scoring") or {}, settings.get("selection") or {}
        results, aim = content.get("selection") or {}, content.get("aim") or {}
        return cls(
            step=content["checkpoint"]["step"],
            num_source_rows=dataset["num_source_rows"],
            positions=dataset.get("positions", FIRST_POSITIONS),
            sources=dataset.get("sources", {}),
            rollback_of=content.get("rollback_of"),
            loss=scoring.get("loss", "tokens"),
            tokens_per_row=results.get("tokens_per_row"),
            samples_file=dataset.get("samples_file", "samples.parquet"),
            files=frozenset(content.get("files", ())),
            max_uses=selection.get("max_uses"),
            advice=aim.get("advice"),
            stop=aim.get("stop", "advise"),
            content=content,
        )


def file_digests(content: Json) -> dict[str, str | None]:
    """The files that a version needs, relative to the store -> SHA-256; None: none is told.

    Args:
        content: A header of any format.

    Raises:
        KeyError, TypeError, AttributeError: For what is none.
    """
    found: dict[str, str | None] = {
        str(name): str(entry["sha256"]) for name, entry in (content.get("files") or {}).items()
    }
    found.setdefault(str(content["dataset"].get("samples_file", "samples.parquet")), None)
    return found
