"""The section `compare` of a recipe: what `gracekit compare` trains, on what, and how it judges."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from gracekit.recipe.places import from_folder
from gracekit.recipe.section import Section
from gracekit.recipe.sections import DataSection

_PATHS = ("target.path", "selection.reference")
"""Keys by which an arm of a user's own may name a file."""
DEFAULT_ARMS = ("random", "once", "recipe", "full")


class CompareSection(Section):
    """What is trained and judged by `gracekit compare`; docs/comparing.md says more.

    No key of it has a part in what a version is, so a store can be followed with or without it.
    """

    start: str | None = None
    """Directory of the model that every run starts from, as `save_pretrained` writes it."""
    arms: tuple[str, ...] = Field(default=DEFAULT_ARMS, min_length=1)
    """What is compared: names of docs/comparing.md."""
    changes: dict[str, dict[str, object]] = Field(default={})
    """Arms of your own: name -> changes to the recipe, as `{selection.alpha: 1}`; files that they
    name are taken from the recipe's folder."""
    seeds: int = Field(default=3, ge=1)
    """Runs of each arm; fewer than three give no interval over seeds."""
    evaluation: DataSection | None = None
    """Held-out rows; null: `held_out` rows of the data, which no arm trains on."""
    held_out: int = Field(default=200, ge=1)
    """Rows of the data that are held out where there is no `evaluation`."""
    allow_overlap: bool = False
    """Whether rows of `evaluation` may be in the data too."""
    average: Literal["tokens", "samples", "groups"] = "tokens"
    """What the held-out loss is a mean over: target tokens, rows, or groups of rows alike."""
    evaluations: int = Field(default=8, ge=1)
    """Times that the held-out loss is looked at in a run, at equal distances."""
    metric: str | None = None
    """What is told of the trained model beside its loss: `exact-match`, or a class of your own as
    `package.module:Class`; null: nothing."""
    metric_rows: int = Field(default=100, ge=1)
    """Most held-out rows that the metric is computed on: the first ones whose answers are not cut
    off at `max_length`."""
    epochs: int = Field(default=5, ge=1)
    """Draws that a run trains on, each of as many rows as the selection has."""
    batch_size: int = Field(default=8, ge=1)
    """Rows of an optimizer step."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Of AdamW, at its highest."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls over the steps, after the warm-up."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises."""
    lora_rank: int | None = Field(default=None, ge=1)
    """Train an adapter of this rank on all linear layers (needs peft); null: all weights."""
    marks: tuple[str, ...] = ()
    """Columns of the data that mark planted rows (noise, copies): how much of what was trained on
    is marked is told for each. Empty, false, 0 and missing values are no mark."""
    keep_share: float = Field(default=0.3, gt=0, le=1)
    """Share of the data from which arms by a ranking (`rds`, `influence`, `longest` …) draw."""

    @field_validator("arms")
    @classmethod
    def _each_arm_once(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        twice = next((arm for arm in arms if arms.count(arm) > 1), None)
        if twice is not None:
            raise ValueError(f"arms names {twice!r} twice; leave one out")
        return arms

    def relative_to(self, folder: Path) -> CompareSection:
        """A copy whose paths start at the folder, unless they are absolute or hub names."""
        return self.model_copy(
            update={
                "start": self.start and from_folder(folder, self.start),
                "evaluation": self.evaluation and self.evaluation.relative_to(folder),
                "changes": {
                    name: {key: _from_folder(folder, key, value) for key, value in changes.items()}
                    for name, changes in self.changes.items()
                },
            }
        )


def _from_folder(folder: Path, key: str, value: object) -> object:
    """The value of a change, if it is a path, as it is called from elsewhere."""
    if isinstance(value, dict):
        return {name: _from_folder(folder, f"{key}.{name}", each) for name, each in value.items()}
    if key not in _PATHS or value is None:
        return value
    if isinstance(value, list | tuple):
        return [from_folder(folder, str(place)) for place in value]
    return from_folder(folder, str(value))
