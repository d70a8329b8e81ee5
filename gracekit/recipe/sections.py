"""The sections of a recipe: every key, its default, and its meaning below it.

Above 400 lines, so that all keys are found in one place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gracekit.recipe.column_names import ColumnNames
from gracekit.recipe.places import files_named, from_folder
from gracekit.recipe.score_columns import shared_column
from gracekit.recipe.section import Section

DataFormat = Literal[
    "auto", "prompt-completion", "alpaca", "messages", "sharegpt", "text", "conversation",
    "instruction-response", "question-answer", "query-response", "input-output", "preference",
    "tokens",
]  # fmt: skip
LengthCorrection = Literal["sqrt", "bins", "none"]
RENDERINGS = ("auto", "chat", "plain", "trl", "axolotl")
MOST_S = 1e6
"""Seconds that anything is waited for, eleven days: the system takes not every number."""
SPLIT = "split"
"""What `scoring.device` is for one model over several GPUs."""
LLAMAFACTORY = "llamafactory:"
"""Begins a rendering that is one of LLaMA-Factory's templates; its name follows."""


class DataSection(Section):
    """Where the samples come from and which of their tokens carry loss."""

    path: str | tuple[str, ...]
    """JSONL, JSON, Parquet or CSV file, compressed or not, a directory of them, a `save_to_disk`
    folder, or a hub dataset name; `data/*.jsonl` is all files of such names. Several of them are
    given as a list, and read in its order."""
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
    columns: ColumnNames = ColumnNames()
    """Which column holds what: `{prompt: question, response: answer}`. `id`, `group` and `text`
    here are the same as `id_column`, `group_column` and `text_column`."""
    roles: dict[str, tuple[str, ...]] = Field(default={})
    """Names of roles in your chats, by the role that they stand for: `{assistant: [bot]}`."""
    pair: Literal["chosen", "margin"] = "chosen"
    """What of a preference pair is measured: `chosen` that side alone, `margin` also the loss of
    the rejected side less that of the chosen one, as the score `pair-margin`."""
    max_length: int = Field(default=1024, ge=8)
    """Longest token sequence; the rest is cut off, as trainers do."""
    loss_on: Literal["auto", "response", "all"] = "auto"
    """Tokens that carry loss: `auto` is the response where there is one, else all."""
    chat_template: bool | Literal["auto"] = "auto"
    """Render prompts with the tokenizer's chat template; `auto`: where it has one."""
    rendering: str = "auto"
    """Whose tokens and whose loss are meant: `chat` the tokenizer's chat template, `plain` no
    template, `trl` those of TRL's SFTTrainer, `llamafactory:TEMPLATE` those of LLaMA-Factory with
    its template of that name, `axolotl` Axolotl's; `auto`: as `chat_template` says, or as `trl`
    where the model card beside the first checkpoint says that TRL's SFTTrainer trains."""

    @property
    def places(self) -> tuple[str, ...]:
        """The path, or all of the list."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def name(self) -> str:
        """The path for people: of a list the first ones."""
        more = f" and {len(self.places) - 2} more" if len(self.places) > 2 else ""
        return ", ".join(self.places[:2]) + more

    @property
    def is_there(self) -> bool:
        """Whether all of it is on this machine now."""
        return all(Path(place).exists() or files_named(place) for place in self.places)

    @model_validator(mode="after")
    def _path_names_something(self) -> DataSection:
        if not self.places:
            raise ValueError("path is an empty list; name a file")
        return self

    @model_validator(mode="before")
    @classmethod
    def _columns_with_keys_of_their_own(cls, content: Any) -> Any:
        """`columns.id` is `id_column`, and so on."""
        columns = content.get("columns") if isinstance(content, dict) else None
        if not isinstance(columns, dict):
            return content
        content, columns = dict(content), dict(columns)
        for name in ("id", "group", "text"):
            key, column = f"{name}_column", columns.pop(name, None)
            if column is None:
                continue
            if content.get(key) not in (None, column):
                raise ValueError(f"columns.{name} and {key} name two columns; leave one out")
            content[key] = column
        return {**content, "columns": columns}

    @field_validator("rendering")
    @classmethod
    def _known_rendering(cls, name: str) -> str:
        is_template = name.startswith(LLAMAFACTORY) and name != LLAMAFACTORY
        if name not in RENDERINGS and not is_template:
            raise ValueError(
                f"found {name!r}, expected one of {', '.join(RENDERINGS)}, or "
                f"{LLAMAFACTORY}TEMPLATE, such as {LLAMAFACTORY}qwen3"
            )
        return name

    @model_validator(mode="after")
    def _one_way_to_render(self) -> DataSection:
        meant = {"chat": True, "plain": False}.get(self.rendering, "auto")
        if self.rendering != "auto" and self.chat_template not in ("auto", meant):
            raise ValueError(
                f"rendering {self.rendering!r} and chat_template {self.chat_template!r} contradict "
                "each other; leave chat_template at auto"
            )
        return self

    @model_validator(mode="after")
    def _each_role_has_one_meaning(self) -> DataSection:
        names = [name for names in self.roles.values() for name in names]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"roles names {twice!r} twice; leave one out")
        return self

    def relative_to(self, folder: Path) -> DataSection:
        """A copy whose path starts at the folder, unless it is absolute or a hub name."""
        return self.moved(lambda place: from_folder(folder, place))

    def moved(self, move: Callable[[str], str]) -> DataSection:
        """A copy with another path for each place."""
        path = self.path
        moved = move(path) if isinstance(path, str) else tuple(map(move, path))
        return self.model_copy(update={"path": moved})


class TargetSection(DataSection):
    """The samples that training is for."""

    path: str | tuple[str, ...] = ()
    """As `data.path`; left out with `group`."""
    group: str | None = None
    """A group of the data that training is for, instead of a file: some of its samples, a spread of
    `group_count`, become the target set and are not trained on."""
    group_count: int = Field(default=48, ge=2)
    """Samples of `group` that become the target set, at most a fifth of them."""
    overlap: Literal["keep", "drop"] = "keep"
    """Samples of the data whose content is that of a target sample: `drop` trains on none of them,
    so that the target's loss is that of samples never seen."""

    @model_validator(mode="after")
    def _path_names_something(self) -> TargetSection:
        if not self.places and self.group is None:
            raise ValueError("name a file (path), or a group of the data (group)")
        if self.places and self.group is not None:
            raise ValueError("path and group are two ways to name a target; give one of them")
        own = {"group", "group_count", "overlap"}
        others = sorted(self.model_fields_set - own) if self.group is not None else []
        if others:
            raise ValueError(
                f"a group is read as the data says; leave {others[0]} out, or set it in data"
            )
        return self


class CheckpointSection(Section):
    """How checkpoints are found and read."""

    on_backlog: Literal["latest", "all"] = "latest"
    """When several checkpoints wait: the latest only, or each in turn."""
    poll_interval_s: float = Field(default=5.0, gt=0, le=MOST_S)
    """Seconds between two looks at the directory."""
    settle_s: float = Field(default=15.0, ge=0, le=MOST_S)
    """Seconds without a change before a layout that has no completion marker counts as complete."""
    depth: int = Field(default=4, ge=0, le=12)
    """Folders below the watched one in which checkpoints are looked for; 0: it alone."""
    ready_marker: str | None = None
    """File name that says a checkpoint is complete, for trainers that write one."""
    convert_cmd: str | None = None
    """Command that makes a model folder of a checkpoint that gracekit cannot read itself, such as
    `python to_hf.py {src} {dst}`; {step} is the training step. No shell is used."""
    tokenizer: str | None = None
    """Directory of the tokenizer, where the checkpoints do not hold it."""
    base_model: str | None = None
    """Directory of the model that training began from: the base of adapters (LoRA), if not the one
    that they name, and config and tokenizer of checkpoints that hold weights alone."""
    adapter: str | None = None
    """Name of the adapter to read, where a checkpoint holds several in folders of their own."""
    trust_remote_code: bool = False
    """Run model code that comes with the checkpoint. Only for checkpoints that you trust."""


class ScoringSection(Section):
    """What the model pass measures."""

    scores: tuple[str, ...] = ("gradient-norm", "loss")
    """Scores to measure, all in one pass."""
    importance: str = "gradient-norm"
    """The score that selection uses."""
    loss: Literal["tokens", "samples"] = "tokens"
    """What the trainer averages its loss over: the target tokens of a batch (Hugging Face, TRL and
    most others), or its samples. It decides how large a row's part in the gradient is: the norm of
    its mean gradient, times its number of target tokens under `tokens`."""
    length_correction: LengthCorrection = "sqrt"
    """How the effect of length is taken out of gradient scores: times the square root of the
    number of target tokens, ranks within bins of length, or not at all."""
    normalise: Literal["group", "all"] = "group"
    """Importance is the rank within the group, or among all samples."""
    features: Literal["embedding-mean", "hidden-mean", "gradient-sketch"] = "embedding-mean"
    """Vector of a sample: mean input embedding of prompt and response, which takes no pass of the
    model; mean hidden state over its target tokens; or a random projection of its gradient."""
    hidden_block: int | None = None
    """Decoder block whose output `hidden-mean` takes, -1 the last; default: the last state, after
    the final norm."""
    feature_width: int | None = Field(default=256, ge=8)
    """Width that `embedding-mean` and `hidden-mean` are projected to where the model's is larger;
    null: never. Memory, disk and time of a refresh outside of the model pass grow with it. A store
    that was made with another width keeps it, unless the recipe names one."""
    feature_projection: Literal["orthogonal", "signs"] = "orthogonal"
    """Onto orthonormal directions drawn at random, or by random signs, as earlier releases did."""
    sketch_side: int = Field(default=32, ge=2, le=128)
    """k of the k x k gradient sketch, for `gradient-sketch`, `influence` and `sketch-norm`."""
    sketch_seed: int = Field(default=0, ge=0)
    """Seed of the random projections."""
    batch_tokens: int = Field(default=4096, ge=64)
    """Most tokens of a padded batch."""
    shard_rows: int = Field(default=256, ge=1)
    """Rows a shard; a killed refresh redoes at most one shard."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`; or `split`: one model, its layers over all visible
    GPUs, and the CPU's memory where these are too small for it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    num_threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads of the model pass on a CPU; default: as torch finds them."""
    processes: int | None = Field(default=None, ge=1, le=1024)
    """Processes of the model pass, each with its own copy of the model; default: one for each
    visible GPU with `device: auto` (or `cuda`), else one."""
    executor: str = "auto"
    """Who runs the model pass: `local`, this process; `processes`, one for each device; `auto`,
    the first for one device and the second for several; `ray`, actors of a Ray cluster; or
    `package.module:Class`."""
    share: bool = False
    """Whether other hosts may measure too: those on which `gracekit work STORE` runs."""
    lease_s: float = Field(default=60.0, gt=0, le=MOST_S)
    """Seconds without a sign after which what another host measures is measured anew."""

    @model_validator(mode="after")
    def _one_process_is_not_several(self) -> ScoringSection:
        if self.executor == "local" and (self.processes or 1) > 1:
            raise ValueError(
                f"executor is 'local', this process alone, and processes is {self.processes}; set "
                "executor: processes, or leave processes out"
            )
        return self

    @model_validator(mode="after")
    def _split_is_one_process(self) -> ScoringSection:
        if self.device != SPLIT:
            return self
        if self.executor == "ray":
            raise ValueError(
                "executor is 'ray', whose actors have one GPU each, and device is 'split', one "
                "process with all GPUs of its host; leave one of them out"
            )
        if (self.processes or 1) > 1:
            raise ValueError(
                f"device is 'split', one process with all GPUs, and processes is {self.processes}; "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _block_is_of_hidden_mean(self) -> ScoringSection:
        if self.hidden_block is not None and self.features != "hidden-mean":
            raise ValueError(
                f"hidden_block is a setting of hidden-mean, and features is {self.features!r}; set "
                "features: hidden-mean, or leave hidden_block out"
            )
        return self

    @model_validator(mode="after")
    def _changes_have_a_loss(self) -> ScoringSection:
        changes = [s for s in self.scores if s in ("delta-loss", "delta-loss-first")]
        if changes and "loss" not in self.scores:
            raise ValueError(f"{changes[0]} compares losses; add loss to scores")
        return self

    @model_validator(mode="after")
    def _scores_have_columns_of_their_own(self) -> ScoringSection:
        found = shared_column(self.scores)
        if found is not None:
            first, second, column = found
            raise ValueError(
                f"scores names {first!r} twice; leave one out"
                if first == second
                else f"{first!r} and {second!r} would share the column {column}; leave one out, or "
                "name the class otherwise"
            )
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
    """k, the neighbours of each sample."""
    backend: Literal["auto", "exact", "hnsw", "descent"] = "auto"
    """`auto`: exact below `exact_below` samples, else neighbour descent, whose lists are improved
    and not built anew when all rows moved. `hnsw` is hnswlib, an extra of its own."""
    exact_below: int = Field(default=20_000, ge=0)
    """Samples below which `auto` is exact."""
    hnsw_below: int = Field(default=0, ge=0)
    """Samples below which `auto` is hnswlib, if it is not exact. 0: never."""
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


class TrainingSection(Section):
    """The training that a budget is a share of, where its own files do not say it."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps that the run takes in all; null: what the trainer's state says."""
    samples_a_step: float | None = Field(default=None, gt=0)
    """Samples of an optimizer step, over all processes and accumulated batches; null: what the
    callback notes in the trainer's log, else what the trainer's state says of one process."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps from one checkpoint to the next; null: as many as there were before the one at hand. A
    plan that is made before the run cannot know it otherwise."""
    stop: Literal["advise", "stop", "never"] = "advise"
    """Where the loss on the target turns up, or what resembles it is used up: `CoresetCallback`
    says so in the trainer's log, ends the training, or says nothing."""


class RefreshSection(Section):
    """How much is measured at a checkpoint, and which rows."""

    max_cost: float | None = Field(default=0.1, ge=0)
    """Most that all measuring may cost, the first version included, as a share of the training's
    compute; what is not spent is carried over. Within it the keys below decide. null: no limit, and
    the first version measures everything."""
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
    target_value: float = Field(default=0.75, ge=0, le=1)
    """Share of what perfect norms would gain over a random draw, as the audit estimates it, at
    which no more is measured."""
    target_rank_correlation: float | None = Field(default=None, ge=-1, le=1)
    """Rank correlation of importance with the truth, over all samples as the audit estimates it,
    that is to be reached as well; null: that is only reported."""
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
    """Measured rows below which nothing is fitted but a shift that all rows have in common."""


class SelectionSection(Section):
    """Which samples make the coreset. docs/selection.md says more."""

    selector: str = "balanced"
    """`balanced`, `coverage`, a baseline (`gracekit.selection.SELECTORS` lists them), `top-` and a
    score's name, or a class of your own as `package.module:Class`."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of the usable samples; default 0.3 when neither `count` nor `tokens` is given."""
    count: int | None = Field(default=None, ge=1)
    """Number of samples, instead of `fraction`."""
    tokens: int | None = Field(default=None, ge=1)
    """Most tokens, prompts and responses together, instead of `fraction`; never exceeded."""
    importance_weight: float = Field(default=0.5, ge=0, le=1)
    """λ of coverage: 0 only coverage, 1 only importance."""
    alpha: float = Field(default=0.25, gt=0, le=1)
    """α of balanced: the share of the probability that all candidates get alike; the rest goes by
    their gradients' norms. No weight is above 1/α of the mean. 1: all are drawn alike."""
    redraw: Literal["fresh", "keep"] = "fresh"
    """What a new draw of balanced makes of the draws before: `fresh` gives every row its turn
    before others come again, so that uses follow probabilities; `keep`, for files that have to be
    stable, changes only the rows that changed probabilities make change. (Of coverage that is
    `churn_penalty`.)"""
    aim: Literal["auto", "influence", "likeness", "group", "round-robin", "none"] = "auto"
    """What balanced follows where the recipe has a `target`: how the gradients of a sample's
    neighbours lie to the target's (`influence`), or those of its group (`group`), how like its
    features are (`likeness`), whichever gains most on target samples that it has not seen
    (`auto`), the target samples in turn, each taking its nearest unused one (`round-robin`), or
    nothing (`none`)."""
    aim_width: float | None = Field(default=None, gt=0, le=1)
    """Share of the samples that a signal chooses; null: as the measured rows tell it."""
    aim_uniform: float = Field(default=0.1, gt=0, le=1)
    """Share of the places that all samples have alike while a target is followed."""
    dose: float = Field(default=0.6, gt=0, le=1)
    """Factor of a sample's place for each time that it was used, while a target is followed; 1: a
    sample may come again and again. (`max_uses` is the hard form.)"""
    duplicates: Literal["keep", "share"] = "share"
    """What becomes of samples that say the same: `share`, those of the same content, and those of
    one group that say the same but for one passage, or respond alike at some length, have one place
    together; or `keep`, each has its own, for data in which they are repeated on purpose."""
    reference: str | None = None
    """Losses of the samples under a reference model, a file that `gracekit reference` writes; for
    `trust`, `excess` and `group_quota: learned`. Of `balanced` alone, as all four."""
    trust: Literal["off", "weigh", "cut"] = "off"
    """Responses of which their prompts tell nothing to the reference model: `weigh` gives them a
    smaller place, `cut` one so small that they come only where nothing else is left."""
    excess: float = Field(default=0.0, ge=0, le=3)
    """By how much a sample's place follows its loss above that under the reference model: from
    2^-excess for the least of its group to 2^excess for the most. 0: not at all."""
    learned: float = Field(default=1.0, gt=0, le=1)
    """Factor of the place of samples whose loss is below the mean, but for the last eighth of the
    run; 1: none."""
    max_uses: int | None = Field(default=None, ge=1)
    """A row that was trained on so often (or handed out, where no trainer logs its uses) is not
    selected again, unless it is always in; its place goes to others. null: no limit."""
    churn_penalty: float = Field(default=0.0, ge=0)
    """What keeping the whole parent coreset is worth, as a share of all that `coverage` can gain
    over a random draw: a new version changes only what is worth it. 0: nothing."""
    group_quota: Literal[
        "none", "proportional", "sqrt", "equal", "temperature", "shares", "learned"
    ] = "none"
    """Shares of the groups in the coreset: as in the data, by the square root of their size, equal,
    by a power of their size (`group_temperature`), those of `group_shares`, or `learned`: the more
    there is left to learn of a group by the losses of `reference`, the more often each of its
    samples is wanted, from half to twice (`balanced` alone)."""
    group_temperature: float | None = Field(default=None, ge=0, le=1)
    """The power of the size for `group_quota: temperature`: 0 is equal, 1 proportional."""
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
    weights: Literal["coverage", "uniform", "none", "inverse-probability", "selector"] | None = None
    """Weight of a selected sample: how many samples it stands for, 1 (also `none`, for a trainer
    that cannot weigh), how many of its group (or stratum) there are for each that is selected, or
    what the selector says. null: what the selector says with `balanced`, else `coverage`."""

    @model_validator(mode="after")
    def _one_budget(self) -> SelectionSection:
        given = [n for n in ("fraction", "count", "tokens") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"give one budget: {' or '.join(given)}")
        return self

    @property
    def reads_reference(self) -> bool:
        """Whether anything goes by the losses of the reference model."""
        return self.trust != "off" or self.excess > 0 or self.group_quota == "learned"

    @model_validator(mode="after")
    def _reference_is_named(self) -> SelectionSection:
        needing = ["trust"] * (self.trust != "off") + ["excess"] * (self.excess > 0)
        if self.reads_reference and self.reference is None:
            raise ValueError(
                f"{(needing or ['group_quota: learned'])[0]} goes by the losses of a reference "
                "model; name their file in "
                "reference, which `gracekit reference CHECKPOINT` writes"
            )
        return self

    @model_validator(mode="after")
    def _quotas_fit_together(self) -> SelectionSection:
        shares = self.group_shares
        if (self.group_quota == "shares") != (shares is not None):
            raise ValueError("group_quota: shares and group_shares belong together; give both")
        if (self.group_quota == "temperature") != (self.group_temperature is not None):
            raise ValueError(
                "group_quota: temperature and group_temperature belong together; give both"
            )
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
