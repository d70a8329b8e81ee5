"""`Recipe`: all sections together, read, checked, overridden and hashed."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from gracekit.documents import read_named_text
from gracekit.errors import RecipeError
from gracekit.files import sha256
from gracekit.foreign import reason_of
from gracekit.recipe.compare_section import CompareSection
from gracekit.recipe.score_columns import PAIR_MARGIN
from gracekit.recipe.section import Section, not_plain
from gracekit.recipe.sections import (
    CheckpointSection,
    DataSection,
    GraphSection,
    PropagationSection,
    RefreshSection,
    RetentionSection,
    ScoringSection,
    SelectionSection,
    TargetSection,
    TrainingSection,
)
from gracekit.recipe.where_versions_go import PublishSection, WatchSection
from gracekit.tabular import short_repr


class Recipe(Section):
    """All settings of a store. `Recipe.load` reads one from YAML."""

    data: DataSection
    target: TargetSection | None = None
    """Samples of the task that training is for: a file with the keys of `data`, or a `group` of the
    data. Their groups are the subtasks of the score `influence`."""
    store: str = "gracekit-store"
    """Directory of the store."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
    checkpoints: CheckpointSection = CheckpointSection()
    scoring: ScoringSection = ScoringSection()
    graph: GraphSection = GraphSection()
    training: TrainingSection = TrainingSection()
    refresh: RefreshSection = RefreshSection()
    propagation: PropagationSection = PropagationSection()
    selection: SelectionSection = SelectionSection()
    retention: RetentionSection = RetentionSection()
    publish: PublishSection = PublishSection()
    compare: CompareSection = CompareSection()
    watch: WatchSection = WatchSection()

    @model_validator(mode="before")
    @classmethod
    def _values_are_plain(cls, content: Any) -> Any:
        found = list(not_plain(cls, content)) if isinstance(content, dict) else []
        if found:
            raise ValueError("; ".join(found))
        return content

    @model_validator(mode="before")
    @classmethod
    def _a_margin_is_a_score(cls, content: Any) -> Any:
        """`data.pair: margin` adds its score, where the recipe does not name it."""
        data, scoring = (content.get(key) or {} for key in ("data", "scoring"))
        if not isinstance(data, dict) or not isinstance(scoring, dict):
            return content  # said of the section itself
        scores = scoring.get("scores", ScoringSection.model_fields["scores"].default)
        if data.get("pair") != "margin" or not isinstance(scores, list | tuple):
            return content
        added = [] if PAIR_MARGIN in scores else [PAIR_MARGIN]
        return {**content, "scoring": {**scoring, "scores": [*scores, *added]}}

    @property
    def follows_target(self) -> bool:
        """Whether the selection goes by the target set: `balanced` does, unless `aim` is `none`."""
        settings = self.selection
        is_followed = settings.selector == "balanced" and settings.aim != "none"
        return self.target is not None and is_followed

    @property
    def keeps_sketches(self) -> bool:
        """Whether the sketches of measured rows are kept, for smoothed influence and its gain."""
        return self.follows_target and self.selection.aim in ("auto", "influence", "group")

    @model_validator(mode="after")
    def _a_margin_is_of_pairs(self) -> Recipe:
        if PAIR_MARGIN in self.scoring.scores and self.data.pair != "margin":
            raise ValueError(
                f"scoring.scores has {PAIR_MARGIN!r}, which compares the sides of preference "
                "pairs; set data.pair to margin"
            )
        if self.target is not None and self.target.pair == "margin":
            raise ValueError("target.pair: of a target set the chosen side is measured; leave it")
        return self

    @model_validator(mode="after")
    def _pairs_are_measured_here(self) -> Recipe:
        if self.data.pair != "margin":
            return self
        for key, is_set in (
            ("share is true", self.scoring.share),
            ("executor is ray", self.scoring.executor == "ray"),
        ):
            if is_set:
                raise ValueError(
                    f"scoring.{key}, and data.pair is margin: the two sides of pairs are measured "
                    "on one host only, by the executors local and processes; change one of them"
                )
        return self

    @model_validator(mode="after")
    def _selected_score_is_measured(self) -> Recipe:
        score = self.selection.selector.removeprefix("top-")
        if score not in (self.selection.selector, *self.scoring.scores):
            raise ValueError(
                f"selection.selector is {self.selection.selector!r}, and {score!r} is not among "
                f"scoring.scores {list(self.scoring.scores)}; add it there"
            )
        return self

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML recipe; relative paths in it are taken from its folder.

        Raises `RecipeError` for a missing file, bad YAML, unknown keys or bad values.
        """
        path = Path(path)
        try:
            text = read_named_text(path)
        except FileNotFoundError:
            raise RecipeError(
                f"there is no recipe at {path}; `gracekit init DATA` writes one, "
                "or name yours with --recipe"
            ) from None
        except (OSError, ValueError) as error:
            raise RecipeError(f"cannot read the recipe {path}: {reason_of(error)}") from None
        content = read_yaml(text, str(path))
        if not isinstance(content, dict):
            raise RecipeError(
                f"{path} should hold keys and values such as `data: {{path: train.jsonl}}`; "
                f"found {'nothing' if content is None else type(content).__name__}"
            )
        return cls.from_dict(content, folder=path.parent, name=str(path))

    @classmethod
    def from_dict(
        cls, content: dict[str, Any], *, folder: Path | None = None, name: str = "recipe"
    ) -> Recipe:
        """Check a recipe given as plain values; `folder` is where relative paths start."""
        try:
            recipe = cls.model_validate(content)
        except ValidationError as error:
            raise RecipeError(_explain(error, name)) from None
        recipe = recipe.model_copy(update={"store": str(Path(recipe.store).expanduser())})
        if folder is None:
            return recipe
        checkpoints = recipe.checkpoints
        for key in ("tokenizer", "base_model"):
            path = getattr(checkpoints, key)
            if path and (folder / path).exists():
                update = {key: os.path.normpath(folder / path)}
                checkpoints = checkpoints.model_copy(update=update)
        selection = recipe.selection
        if selection.reference is not None:
            reference = str((folder / selection.reference).resolve())
            selection = selection.model_copy(update={"reference": reference})
        return recipe.model_copy(
            update={
                "selection": selection,
                "data": recipe.data.relative_to(folder),
                "target": recipe.target and recipe.target.relative_to(folder),
                "store": os.path.normpath(folder / recipe.store),
                "checkpoints": checkpoints,
                "compare": recipe.compare.relative_to(folder),
            }
        )

    def override(self, dotted: dict[str, Any]) -> Recipe:
        """A copy with values replaced: `{"selection.fraction": 0.1}`; checked like a file."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        for key, value in dotted.items():
            node = content
            *sections, leaf = key.split(".")
            if not all([*sections, leaf]):
                raise RecipeError(
                    f"the recipe has no key {key!r}; a key is written as `selection.fraction`"
                )
            for section in sections:
                node = node.setdefault(section, {})
                if not isinstance(node, dict):
                    raise RecipeError(
                        f"the recipe has no key {key!r}: {section!r} is a value, not a section"
                    )
            node[leaf] = value
            if key in _BUDGETS:
                for other in _BUDGETS - set(dotted):
                    node.pop(other.removeprefix("selection."), None)
        return Recipe.from_dict(content, name="the options given")

    def __repr__(self) -> str:
        content = self.model_dump(mode="json", exclude_defaults=True)
        return short_repr("Recipe", dict(_dotted(content)))

    __str__ = __repr__

    def digest(self, *sections: str) -> str:
        """Short hash of the given sections (all by default) without what cannot change a result.

        With the selection left out it is that of what is measured, for which `scoring.loss` does
        not matter.
        """
        content = self.model_dump(mode="json", include=set(sections) or None)
        if sections and "selection" not in sections:
            content.get("scoring", {}).pop("loss", None)
        for key in _NEUTRAL:
            section, _, leaf = key.rpartition(".")
            ((content.get(section) or {}) if section else content).pop(leaf, None)
        training = content.get("training") or {}
        if training.get("checkpoint_every") is None:
            training.pop("checkpoint_every", None)
        if training.get("stop") == "advise":
            training.pop("stop", None)
        if "graph" in content:  # its default was another; neither gives other results to build on
            content["graph"]["hnsw_below"] = 200_000
        scoring = content.get("scoring") or {}
        if self.scoring.feature_width is None or self.scoring.feature_projection == "signs":
            scoring.pop("feature_projection", None)  # as of a release that had no other
        selection = content.get("selection", {})
        if selection and self.selection.reads_reference:
            selection["losses"] = _content_of(self.selection.reference or "")
        for key in _LATER_KEYS:
            if key in selection and selection[key] == SelectionSection.model_fields[key].default:
                selection.pop(key)
        checkpoints = content.get("checkpoints", {})
        for key in ("convert_cmd", "adapter"):
            if checkpoints.get(key) is None:
                checkpoints.pop(key, None)
        for section in ("data", "target"):  # keys that came later: unset, they change no hash
            data = content.get(section) or {}
            for name in ("chosen", "rejected"):
                if data and data["columns"][name] is None:
                    data["columns"].pop(name)
            later = {
                "pair": "chosen",
                "rendering": "auto",
                "group": None,
                "group_count": 48,
                "overlap": "keep",
            }
            for key, unset in later.items():
                if key in data and data[key] == unset:
                    data.pop(key)
            for key in ("columns", "roles"):
                if not any((data.get(key) or {}).values()):
                    data.pop(key, None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _content_of(path: str) -> str:
    """Hash of a file's content; empty where it cannot be read."""
    try:
        found = os.stat(path)
        return _hash_of_file(path, found.st_mtime_ns, found.st_size)
    except OSError:
        return ""


@functools.lru_cache(maxsize=64)
def _hash_of_file(path: str, changed_ns: int, size: int) -> str:
    return sha256(Path(path))


def _dotted(content: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


class _PlainLoader(yaml.SafeLoader):
    """Values only: no tag makes an object, and no alias makes a page of what is a line."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"the alias *{event.anchor} is not read; write the value out")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """One value for each key: YAML itself would take the last one and say nothing."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in first:
                    raise yaml.YAMLError(
                        f"the key {key.value!r} stands in lines {first[key.value]} and {line}; put "
                        "its values together"
                    )
                first[key.value] = line
        return node


def read_yaml(text: str, name: str) -> Any:
    """The value of a YAML text; `RecipeError`, with `name`, for what is not plain YAML."""
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except RecursionError:
        raise RecipeError(f"{name} is not valid YAML: it is nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that is none
        raise RecipeError(f"{name} is not valid YAML: {error}") from None


_LATER_KEYS = (
    "aim", "aim_width", "aim_uniform", "dose", "duplicates", "group_temperature", "trust", "excess",
    "learned",
)  # fmt: skip
"""Of the selection: as they are by default, they change no hash."""

_NEUTRAL = (
    "store", "retention", "publish", "compare", "watch", "data.path", "target.path",
    "checkpoints.poll_interval_s", "checkpoints.settle_s", "checkpoints.ready_marker",
    "checkpoints.on_backlog", "checkpoints.base_model", "selection.reference", "checkpoints.depth",
    "scoring.batch_tokens", "scoring.shard_rows", "scoring.num_threads", "scoring.processes",
    "scoring.executor", "scoring.share", "scoring.lease_s",
    "refresh.max_lost",
)  # fmt: skip
"""Where files lie and how long, how checkpoints are awaited, what only changes the speed, what only
guards against mistakes, what arms are compared, and where versions are logged."""


def measured_keys() -> list[str]:
    """Keys of the section `scoring` that decide about what is measured."""
    neutral = {"loss", *(key.removeprefix("scoring.") for key in _NEUTRAL)}
    return [key for key in ScoringSection.model_fields if key not in neutral]


_BUDGETS = {"selection.fraction", "selection.count", "selection.tokens"}
"""One of them given on the command line replaces the recipe's, whichever that is."""


def _explain(error: ValidationError, name: str) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"]) or "the recipe"
        if problem["type"] == "extra_forbidden":
            *parents, key = problem["loc"]
            known = _keys_at([str(p) for p in parents])
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            lines.append(f"unknown key {place!r}; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"{place!r} is missing")
        else:
            # A check of a whole section says itself what it found.
            is_value = problem["loc"] and problem["type"] != "value_error"
            found = f", found {reprlib.repr(problem['input'])}" if is_value else ""
            lines.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}{found}")
    return f"{name}: " + "\n  ".join(lines)


def _keys_at(parents: list[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for parent in parents:
        annotation = model.model_fields[parent].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
