"""The recipe: the YAML file that says what a store is made from and how it is refreshed.

Every key has its meaning below it; unknown keys and values out of range are a `RecipeError` that
names the place and the nearest valid key. Paths are relative to the recipe's own folder.
The stages receive their section as it is; nothing changes a recipe after loading.

Longer than other modules because it is the reference of all keys, each with its description.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import reprlib
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gracekit.errors import RecipeError

DataFormat = Literal["auto", "prompt-completion", "alpaca", "messages", "sharegpt", "text"]
LengthCorrection = Literal["sqrt", "bins", "none"]


class Section(BaseModel):
    """A part of the recipe: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataSection(Section):
    """Where the samples come from and which of their tokens carry loss."""

    path: str
    """JSONL, JSON, Parquet or CSV file, a directory of them, a `save_to_disk` folder, or a hub
    dataset name."""
    split: str = "train"
    """Split, where the source has several."""
    format: DataFormat = "auto"
    """Layout of a row; `auto` detects it from the columns."""
    id_column: str | None = None
    """Column with unique sample ids; without it the id is a hash of the content."""
    group_column: str | None = None
    """Column with the group (source, task, category) of a sample."""
    text_column: str = "text"
    """Column of plain-text rows."""
    max_length: int = Field(default=1024, ge=8)
    """Longest token sequence; the rest is cut off, as trainers do."""
    loss_on: Literal["auto", "response", "all"] = "auto"
    """Tokens that carry loss: `auto` is the response where there is one, else all."""
    chat_template: bool | Literal["auto"] = "auto"
    """Render prompts with the tokenizer's chat template; `auto`: where it has one."""

    def relative_to(self, folder: Path) -> DataSection:
        """The same with a path that starts at the folder, unless it is absolute or a hub name."""
        inside = folder / self.path
        if Path(self.path).is_absolute() or (
            not inside.exists() and _looks_like_hub_name(self.path)
        ):
            return self
        return self.model_copy(update={"path": os.path.normpath(inside)})


class CheckpointSection(Section):
    """How checkpoints are found and read."""

    on_backlog: Literal["latest", "all"] = "latest"
    """When several checkpoints wait: the latest only, or each in turn."""
    poll_interval_s: float = Field(default=5.0, gt=0)
    """Seconds between two looks at the directory."""
    settle_s: float = Field(default=15.0, ge=0)
    """Seconds without a change before a layout that has no completion marker counts as complete."""
    ready_marker: str | None = None
    """File name that says a checkpoint is complete, for trainers that write one."""
    tokenizer: str | None = None
    """Directory of the tokenizer, where the checkpoints do not hold it."""
    base_model: str | None = None
    """Directory of the base model of adapter (LoRA) checkpoints, if not the one that they name."""
    trust_remote_code: bool = False
    """Run model code that comes with the checkpoint. Only for checkpoints that you trust."""


class ScoringSection(Section):
    """What the model pass measures."""

    scores: tuple[str, ...] = ("gradient-norm", "loss")
    """Scores to measure, all in one pass."""
    importance: str = "gradient-norm"
    """The score that selection uses."""
    length_correction: LengthCorrection = "sqrt"
    """How the effect of length is taken out of gradient scores: times the square root of the
    number of target tokens, ranks within bins of length, or not at all."""
    normalise: Literal["group", "all"] = "group"
    """Importance is the rank within the group, or among all samples."""
    features: Literal["hidden-mean", "gradient-sketch"] = "hidden-mean"
    """Vector of a sample: mean hidden state over its target tokens, or a random projection of its
    gradient."""
    hidden_block: int | None = None
    """Decoder block whose output `hidden-mean` takes, -1 the last; default: the last state, after
    the final norm."""
    feature_width: int | None = Field(default=None, ge=8)
    """Width that `hidden-mean` is projected to; default: as it is."""
    sketch_side: int = Field(default=32, ge=2, le=128)
    """k of the k x k gradient sketch, for `gradient-sketch` and `influence`."""
    sketch_seed: int = Field(default=0, ge=0)
    """Seed of the random projections."""
    batch_tokens: int = Field(default=4096, ge=64)
    """Most tokens of a padded batch."""
    shard_rows: int = Field(default=256, ge=1)
    """Rows a shard; a killed refresh redoes at most one shard."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of the model pass on a CPU; default: as torch finds them."""
    processes: int | None = Field(default=None, ge=1)
    """Processes of the model pass, each with its own copy of the model; default: one for each
    visible GPU with `device: auto` (or `cuda`), else one."""

    @model_validator(mode="after")
    def _changes_have_a_loss(self) -> ScoringSection:
        changes = [s for s in self.scores if s in ("delta-loss", "delta-loss-first")]
        if changes and "loss" not in self.scores:
            raise ValueError(f"{changes[0]} compares losses; add loss to scores")
        return self

    @model_validator(mode="after")
    def _importance_is_measured(self) -> ScoringSection:
        if self.importance not in self.scores:
            raise ValueError(
                f"importance is {self.importance!r}, which is not among the scores "
                f"{list(self.scores)}; add it to scores"
            )
        return self


class GraphSection(Section):
    """The k-NN graph over the features."""

    num_neighbors: int = Field(default=10, ge=1, le=256)
    """k."""
    backend: Literal["auto", "exact", "hnsw", "descent"] = "auto"
    """`auto`: exact below `exact_below` samples, hnswlib below `hnsw_below`, else neighbour
    descent, whose lists are improved and not built anew when all rows moved."""
    exact_below: int = Field(default=20_000, ge=0)
    """Samples below which `auto` is exact."""
    hnsw_below: int = Field(default=200_000, ge=0)
    """Samples below which `auto` is hnswlib, if it is not exact."""
    moved_above: float = Field(default=0.02, ge=0, le=2)
    """A row is queried again when 1 - cosine with its indexed features exceeds this."""
    rebuild_above: float = Field(default=0.08, ge=0, le=1)
    """Share of moved rows above which hnswlib's index is rebuilt and not updated in place."""
    hnsw_m: int = Field(default=16, ge=2, le=128)
    """Links a node of hnswlib's graph."""
    ef_construction: int = Field(default=60, ge=8)
    """Candidates of hnswlib while building. More find more of the true neighbours, which
    `gradient-sketch` features may need; `recall` in the version's header tells."""
    ef_search: int = Field(default=48, ge=8)
    """Candidates of hnswlib while searching."""
    num_spare: int = Field(default=10, ge=0, le=256)
    """Neighbours that lists by neighbour descent hold beyond k. More find more of the true ones;
    `recall` in the version's header tells."""


class RefreshSection(Section):
    """How much is measured at a checkpoint, and which rows."""

    plan: Literal["cover", "grace", "oldest", "random"] = "random"
    """Rule that chooses the rows to measure; under `random` all of them serve the audit too.
    docs/refresh.md compares the rules."""
    min_fraction: float = Field(default=0.10, gt=0, le=1)
    """Share of the samples measured at least."""
    max_fraction: float = Field(default=0.30, gt=0, le=1)
    """Share measured at most; more rounds are made up to it while the audit misses the target."""
    probe_fraction: float = Field(default=0.02, ge=0, le=1)
    """Share drawn at random for the audit, within the above."""
    min_probe: int = Field(default=100, ge=0)
    """Least number of probe rows (a rank correlation of few rows means little)."""
    target_rank_correlation: float = Field(default=0.90, ge=-1, le=1)
    """Rank correlation of importance with the truth, over all samples as the audit estimates it,
    at which no more is measured."""
    full_below: float = Field(default=-1.0, ge=-1, le=1)
    """Measure everything when the rank correlation on the rows that were not measured is below
    this even at `max_fraction`; -1: never."""
    full_every: int = Field(default=0, ge=0)
    """Measure everything at every so many versions; 0: never by count."""
    new_samples: Literal["budget", "all"] = "budget"
    """Samples that joined the data are measured first: as many as `max_fraction` allows, the others
    by later refreshes, or `all` at once, on top of the fractions."""
    max_lost: float = Field(default=0.3, ge=0, le=1)
    """Largest share of the samples that may leave the data or change their content from one version
    to the next; more is refused as other data. 1: any."""
    age_weight: float = Field(default=0.5, ge=0, le=1)
    """Weight of age against neighbourhood difference in plan `grace`, and how strongly need
    grows with age in plan `cover`."""

    @model_validator(mode="after")
    def _fractions_in_order(self) -> RefreshSection:
        if self.min_fraction > self.max_fraction:
            raise ValueError(
                f"min_fraction {self.min_fraction} is above max_fraction {self.max_fraction}"
            )
        return self


class PropagationSection(Section):
    """How the rows that are not measured are updated."""

    rule: Literal["gated", "grace", "none"] = "gated"
    """Scores: `gated` regression plus diffused residual, `grace` the paper's rule, or nothing."""
    features: Literal["ridge", "none"] = "ridge"
    """Features: a ridge map fitted on the measured rows, or left stale."""
    damping: float = Field(default=0.85, gt=0, lt=1)
    """Weight of a further hop in the diffusion."""
    mu: float = Field(default=1.0, ge=0)
    """Weight of the neighbours in rule `grace`."""
    min_measured: int = Field(default=100, ge=10)
    """Measured rows below which nothing is fitted and rows stay as they are."""


class SelectionSection(Section):
    """Which samples make the coreset. docs/selection.md says more."""

    selector: str = "coverage"
    """`coverage`, a baseline (`gracekit.selection.SELECTORS` lists them), `top-` and a score's
    name, or a class of your own as `package.module:Class`."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of the usable samples; default 0.3 when neither `count` nor `tokens` is given."""
    count: int | None = Field(default=None, ge=1)
    """Number of samples, instead of `fraction`."""
    tokens: int | None = Field(default=None, ge=1)
    """Most tokens, prompts and responses together, instead of `fraction`; never exceeded."""
    importance_weight: float = Field(default=0.5, ge=0, le=1)
    """λ of coverage: 0 only coverage, 1 only importance."""
    churn_penalty: float = Field(default=0.0, ge=0)
    """What keeping the whole parent coreset is worth, as a share of all that `coverage` can gain
    over a random draw: a new version changes only what is worth it. 0: nothing."""
    group_quota: Literal["none", "proportional", "sqrt", "equal", "shares"] = "none"
    """Shares of the groups in the coreset: as in the data, by the square root of their size, equal,
    or those of `group_shares`."""
    group_shares: dict[str, float] | None = None
    """Group -> share, relative, for `group_quota: shares`; groups that are left out get none."""
    group_minimum: int = Field(default=0, ge=0)
    """At least so many samples of each group."""
    keep_groups_below: int = Field(default=0, ge=0)
    """Groups with fewer samples than this are selected whole."""
    always_in: tuple[str, ...] = ()
    """Ids of samples that are always selected."""
    always_in_where: str | None = None
    """SQL condition for the same, over `samples` and `scores`: `group_name = 'gold'`."""
    never_in: tuple[str, ...] = ()
    """Ids of samples that are never selected."""
    never_in_where: str | None = None
    """SQL condition for the same: `num_response_tokens < 5`."""
    drop_hardest: float = Field(default=0.0, ge=0, lt=1)
    """Share of the most important samples left out as probable label noise."""
    max_similarity: float | None = Field(default=None, gt=0, le=1)
    """Of samples with a cosine above this in the graph, only the most important may be selected."""
    weights: Literal["coverage", "uniform", "inverse-probability", "selector"] = "coverage"
    """Weight of a selected sample: how many samples it stands for, 1, how many of its group (or
    stratum) there are for each that is selected, or what the selector says."""

    @model_validator(mode="after")
    def _one_budget(self) -> SelectionSection:
        given = [n for n in ("fraction", "count", "tokens") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"give one budget: {' or '.join(given)}")
        return self

    @model_validator(mode="after")
    def _quotas_fit_together(self) -> SelectionSection:
        shares = self.group_shares
        if (self.group_quota == "shares") != (shares is not None):
            raise ValueError("group_quota: shares and group_shares belong together; give both")
        if shares is not None:
            values = shares.values()
            if not all(0 <= share < math.inf for share in values) or not any(values):
                raise ValueError("group_shares: give shares of zero or more, not all of them zero")
        if self.group_minimum and self.tokens is not None:
            raise ValueError(
                "group_minimum counts samples and the budget is in tokens; use group_quota"
            )
        return self


class RetentionSection(Section):
    """What is kept of old versions. docs/store.md says more."""

    keep: int | None = Field(default=None, ge=1)
    """Versions kept: after each new one, older ones lose their coreset and the scores of all
    samples, as by `gracekit gc`, unless they are pinned or in use. What was measured at them
    stays. null: all versions are kept."""


class Recipe(Section):
    """All settings of a store. `Recipe.load` reads one from YAML."""

    data: DataSection
    target: DataSection | None = None
    """Samples of the task that training is for, for the score `influence`; their groups are its
    subtasks. The same keys as `data`."""
    store: str = "gracekit-store"
    """Directory of the store."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
    checkpoints: CheckpointSection = CheckpointSection()
    scoring: ScoringSection = ScoringSection()
    graph: GraphSection = GraphSection()
    refresh: RefreshSection = RefreshSection()
    propagation: PropagationSection = PropagationSection()
    selection: SelectionSection = SelectionSection()
    retention: RetentionSection = RetentionSection()

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
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RecipeError(
                f"there is no recipe at {path}; `gracekit init DATA` writes one, "
                "or name yours with --recipe"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe {path}: {error}") from None
        content = read_yaml(text, str(path))
        if not isinstance(content, dict):
            raise RecipeError(
                f"{path} should hold keys and values such as `data: {{path: train.jsonl}}`; "
                f"found {type(content).__name__}"
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
        return recipe.model_copy(
            update={
                "data": recipe.data.relative_to(folder),
                "target": recipe.target and recipe.target.relative_to(folder),
                "store": os.path.normpath(folder / recipe.store),
                "checkpoints": checkpoints,
            }
        )

    def override(self, dotted: dict[str, Any]) -> Recipe:
        """A copy with values replaced: `{"selection.fraction": 0.1}`; checked like a file."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        for key, value in dotted.items():
            node = content
            *sections, leaf = key.split(".")
            if not all([*sections, leaf]):
                raise RecipeError(f"{key!r} is no key of the recipe; one is `selection.fraction`")
            for section in sections:
                node = node.setdefault(section, {})
                if not isinstance(node, dict):
                    raise RecipeError(f"{key!r} is no key of the recipe: {section!r} has no parts")
            node[leaf] = value
            if key in _BUDGETS:
                for other in _BUDGETS - set(dotted):
                    node.pop(other.removeprefix("selection."), None)
        return Recipe.from_dict(content, name="the options given")

    def digest(self, *sections: str) -> str:
        """Short hash of the given sections (all by default) without what cannot change a result."""
        content = self.model_dump(mode="json", include=set(sections) or None)
        for key in _NEUTRAL:
            section, _, leaf = key.rpartition(".")
            ((content.get(section) or {}) if section else content).pop(leaf, None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class _PlainLoader(yaml.SafeLoader):
    """Values only: no tag makes an object, and no alias makes a page of what is a line."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"the alias *{event.anchor} is not read; write the value out")
        return super().compose_node(parent, index)


def read_yaml(text: str, name: str) -> Any:
    """The value of a YAML text; `RecipeError`, with `name`, for what is not plain YAML."""
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except RecursionError:
        raise RecipeError(f"{name} is not valid YAML: it is nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that is none
        raise RecipeError(f"{name} is not valid YAML: {error}") from None


_NEUTRAL = (
    "store", "retention", "data.path", "target.path", "checkpoints.poll_interval_s",
    "checkpoints.settle_s", "checkpoints.ready_marker", "checkpoints.on_backlog",
    "checkpoints.base_model",
    "scoring.batch_tokens", "scoring.shard_rows", "scoring.num_threads", "scoring.processes",
    "refresh.max_lost",
)  # fmt: skip
"""Where files lie and how long, how checkpoints are awaited, what only changes the speed, and what
only guards against mistakes."""

_BUDGETS = {"selection.fraction", "selection.count", "selection.tokens"}
"""One of them given on the command line replaces the recipe's, whichever that is."""


def _looks_like_hub_name(path: str) -> bool:
    is_file = Path(path).suffix in {".json", ".jsonl", ".parquet", ".csv", ".tsv"}
    return path.count("/") <= 1 and not is_file and not path.startswith(".")


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
            found = f", found {reprlib.repr(problem['input'])}" if problem["loc"] else ""
            lines.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}{found}")
    return f"{name}: " + "\n  ".join(lines)


def _keys_at(parents: list[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for parent in parents:
        annotation = model.model_fields[parent].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
