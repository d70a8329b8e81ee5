"""What can be swapped: one protocol per seam.

Concrete classes are chosen in `Refresher.from_recipe`. A strategy is a class in a dict
(`SCORERS`, `EXECUTORS`, `SELECTORS`, `LAYOUTS`, `FORMATS`); a miss lists what exists. torch appears
here as types only. Above 400 lines, so that all seams are seen together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gracekit.progress import Progress
from gracekit.types import (
    Bool,
    DrawState,
    Float32,
    Float64,
    Int64,
    Json,
    MeasuredTarget,
    Measurement,
    Places,
    Rows,
    SampleMap,
    SampleTable,
    ScoreTable,
    Selection,
    SparseGraph,
    Strings,
)

if TYPE_CHECKING:
    import torch

    from gracekit.recipe import CheckpointSection, ScoringSection, SelectionSection
    from gracekit.version.header import Header


Reads = Literal["tokens", "blocks", "states", "all"]
"""How far a forward pass has to go: nowhere, where the input embeddings do; what the wanted decoder
blocks put out; the last hidden states, without logits; or all, and then a backward pass as deep as
readers want layers."""


@runtime_checkable
class CheckpointLayout(Protocol):
    """How one family of trainers lays out a checkpoint. No torch.

    `path` is a directory, or the file of a layout whose checkpoints are single files.
    """

    name: str

    def __init__(self, settings: CheckpointSection | None = None) -> None:
        """With the recipe's settings; defaults for None."""

    def matches(self, path: Path) -> bool:
        """Whether it looks like this layout, complete or not."""

    def is_marked(self, path: Path) -> bool:
        """Whether something that is written last tells that the checkpoint is complete.

        Without it, a watcher also waits until nothing has changed for `settle_s`.
        """

    def settle_s(self, path: Path) -> float:
        """Seconds without a change after which one that is not marked counts as complete."""

    def step(self, path: Path) -> int:
        """Training step; raises `CheckpointError` when it cannot be told."""

    def unready(self, path: Path) -> str | None:
        """Why the checkpoint is not complete yet; None when it is.

        Raises `CheckpointError` for one that waiting does not mend.
        """

    def files(self, path: Path) -> list[Path]:
        """The files that loading needs (weights, config, tokenizer): what is pinned."""

    def weight_files(self, path: Path) -> list[Path]:
        """The files whose bytes are the checkpoint's identity."""

    def parts(self, path: Path) -> list[Path]:
        """The directories that hold the model; of files of one name the first one's counts.

        `[path]` where the checkpoint is a model directory as it is.
        """


@runtime_checkable
class Executor(Protocol):
    """Runs the model pass over rows; serial here, several devices or hosts elsewhere."""

    def measure(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """Measure distinct rows; yields finished shards, together exactly the rows, in any order.

        `progress` is told of each batch. When it says that a stop was asked for, the batches in
        progress are finished, what is measured is yielded as a smaller shard, and that is all.

        Raises `MeasureError` when no memory is left for a single sample, when nothing is finite,
        or when the model cannot be measured as the recipe asks.
        """

    def look(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """As `measure`, but the features alone, with nothing run that they do not need.

        `scores` is empty, and a row is valid when its features are finite. They are those that
        `measure` gives, up to the rounding of kernels that torch chooses by whether a backward
        pass follows. What it costs is decided by `scores.meaning.features_read`.
        """

    def target(self) -> MeasuredTarget | None:
        """What the model says of the target set; None without one. Raises as `measure` does."""

    def optimizer(self) -> Json | None:
        """What was found of the trainer's optimizer; None when no score asked for it."""

    def close(self) -> None:
        """Let go of the model, and of all that was started for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of the run that it logs to."""

    id: str
    """Eight hexadecimal digits: the same for a store and a tracker at each start of the daemon, so
    that a tracker can go on in the same run."""
    name: str
    """For people: `watch.run_name` of the recipe, else the name of the store's directory."""
    project: str | None
    """`watch.project` of the recipe."""
    folder: Path
    """A directory in the store that belongs to this tracker and exists."""
    config: Json
    """The recipe, as plain values."""


class Tracker(Protocol):
    """Logs the numbers of versions to one run. It lives in a process of its own.

    Whatever it raises is told to the user once; it is then made anew at the next version, and gets
    the versions that are missing. One that does not come back is ended.
    """

    def __init__(self, run: TrackedRun) -> None:
        """Begin a run, or go on with it."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Log one version; what it was given should survive a kill once this returns.

        Args:
            values: Name -> finite number, such as `coreset/value`; `coreset/version` is always
                there.
            step: Training step of the version's checkpoint. A later version may have the same or,
                after a rollback, a lower one.
        """

    def close(self) -> None:
        """The daemon ends."""


class Batch(Protocol):
    """One padded batch on its device.

    B samples, T positions, D hidden width, V vocabulary, M target positions of the whole batch.
    """

    input_ids: torch.Tensor
    """int64 [B, T]"""
    attention_mask: torch.Tensor
    """int64 [B, T], 1 on real tokens (padding on the right)."""
    target_sample: torch.Tensor
    """int64 [M] the sample of a target position, ascending."""
    target_position: torch.Tensor
    """int64 [M] the position whose hidden state predicts the target."""
    target_ids: torch.Tensor
    """int64 [M] the token to predict."""
    num_targets: torch.Tensor
    """int64 [B], at least 1 each."""

    def zeros(self, *width: int) -> torch.Tensor:
        """Zeros, float32 [B, *width] on the batch's device, for a reader to add up in."""


class Targets(Protocol):
    """Some target positions of a batch: all those of the samples they belong to. Read only.

    m positions. A batch comes in several of these, so that logits never exist for all at once.
    """

    sample: torch.Tensor
    """int64 [m] ascending index into the batch."""
    ids: torch.Tensor
    """int64 [m] the token to predict."""
    hidden: torch.Tensor
    """[m, D] last hidden state at the position that predicts, in the model's dtype."""
    logits: torch.Tensor
    """float32 [m, V]"""
    token_loss: torch.Tensor
    """float32 [m] cross-entropy in nats."""

    @property
    def probabilities(self) -> torch.Tensor:
        """float32 [m, V] softmax of the logits; made when first asked for."""


class Layer(Protocol):
    """A linear layer of the decoder body, or a stack of E experts that have one parameter."""

    name: str
    """Its path within the body, such as `layers.3.mlp.down_proj`."""
    block: int
    """Index of its decoder block; -1 outside of the blocks."""
    num_blocks: int
    """Decoder blocks of the model."""
    is_adapter: bool
    """Whether it is part of an adapter (LoRA's A or B) and not of the model itself."""
    is_trained: bool
    """Whether a trainer moves it: of a model with an adapter, the adapter's layers, and those that
    are trained whole beside it."""
    is_transposed: bool
    """Whether its weight is kept as [in, out] (GPT-2's Conv1D), not [out, in]."""
    parameter: torch.Tensor
    """The parameter itself."""
    bias: torch.Tensor | None
    """The parameter itself, if there is one: [out] or [E, out]."""

    @property
    def weight(self) -> torch.Tensor:
        """The parameter as [out, in]; of a stack as [E, out, in]."""

    def arrange(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the parameter's shape, such as a moment of Adam, in the weight's shape."""

    def of_expert(self, expert: int) -> Layer:
        """One layer of a stack; the layer itself when it is no stack."""


class RoutedRows(Protocol):
    """What reached layers that see only some tokens: n rows, by expert and then by sample."""

    inputs: torch.Tensor
    """[n, in]"""
    gradients: torch.Tensor
    """[n, out]"""
    expert: torch.Tensor
    """int64 [n], ascending; all 0 when the layer is no stack."""
    sample: torch.Tensor
    """int64 [n] index into the batch."""

    def groups(self) -> Iterator[RowGroup]:
        """The rows of each pair of expert and sample, in less than twice as many places."""

    def by_expert(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """(expert, inputs [B, P, in], gradients [B, P, out]), filled up with zeros."""

    def by_sample(self, vectors: torch.Tensor) -> torch.Tensor:
        """[n, k] of the rows as [B, P, k], filled up with zeros."""


class RowGroup(Protocol):
    """g pairs of an expert and a sample, with up to P rows each, filled up with zeros."""

    expert: torch.Tensor
    """int64 [g]"""
    sample: torch.Tensor
    """int64 [g]"""
    inputs: torch.Tensor
    """[g, P, in]"""
    gradients: torch.Tensor
    """[g, P, out]"""


class OptimizerState(Protocol):
    """Adam's moments at the checkpoint."""

    @property
    def step(self) -> int:
        """Steps taken."""

    @property
    def betas(self) -> tuple[float, float]:
        """Decay of the first and second moment."""

    @property
    def eps(self) -> float:
        """Added to the root of the second moment."""

    def moments(self, parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """First and second moment of a parameter; None where there are none."""

    def facts(self) -> Json:
        """What was found and how it was matched, for the manifest header."""


class PassContext(Protocol):
    """What some readers need besides the batches, the same for all of them."""

    @property
    def sketch(self) -> Sketch:
        """The one gradient sketch of this pass, shared by all who read it."""

    @property
    def embedding(self) -> torch.nn.Module | None:
        """The model's input embeddings, token ids [B, T] -> [B, T, D]; None where it has none."""

    @property
    def target_sketches(self) -> dict[str, Float32]:
        """Subtask -> [t, d] sketches of the target samples in it, under the same model."""

    @property
    def optimizer(self) -> OptimizerState | None:
        """The trainer's Adam; None when no reader asked for it."""


class Reader(Protocol):
    """Something read off the shared model pass, one value or vector a sample.

    For every batch, in this order: `start`; `on_block` for each block that it wants; `on_states`;
    `on_targets` once or more; from the last layer to the
    first, `on_layer` or `on_routed` once for each weight and `on_bias` once for each bias of the
    layers that it wants; `finish`. The loss that is differentiated is
    the mean over the target tokens of a sample. Values of one sample never depend on the others
    of its batch. The methods with a body here are the defaults of a class that derives from it.
    """

    reads: Reads = "all"
    """What of this it needs: the pass ends where no reader needs more. `tokens`: `start` and
    `finish`; `blocks`: up to `on_block`;
    `states`: up to `on_states`; `all`: every call."""

    def bind(self, context: PassContext) -> None:
        """Take what it needs of the context; called once, before anything else."""
        return

    def wants(self, layer: Layer) -> bool:
        """Whether it reads this layer; asked once, before the first batch.

        The backward pass reaches only as deep as the readers want together, and is not run at
        all when none wants a layer.
        """
        return False

    def wants_block(self, block: int, num_blocks: int) -> bool:
        """Whether it reads what this decoder block puts out; asked once, before the first batch."""
        return False

    def start(self, batch: Batch) -> None:
        """Forget the batch before; the last one may have been given up half-way."""
        return

    def on_block(self, batch: Batch, hidden: torch.Tensor) -> None:
        """Take a block's output at all target positions, [M, D]; before `on_states`."""
        return

    def on_states(self, batch: Batch, hidden: torch.Tensor) -> None:
        """Take the last hidden states at all target positions, [M, D]; before `on_targets`."""
        return

    def on_targets(self, batch: Batch, targets: Targets) -> None:
        """Take what the forward pass gave at some of the target positions."""
        return

    def on_layer(
        self, batch: Batch, layer: Layer, inputs: torch.Tensor, gradients: torch.Tensor
    ) -> None:
        """Take a layer's inputs [B, P, in] and the gradients [B, P, out] of its outputs.

        A sample's gradient of the weight is `gradients[b].T @ inputs[b]`. P is T, or a multiple
        of it where the model calls the layer (or another one with the same weight) repeatedly.
        Under `scoring.device: split` they are on the layer's device, and so is what `on_routed` and
        `on_bias` get; what is added up over layers has to come to the batch's.
        """
        return

    def on_routed(self, batch: Batch, layer: Layer, rows: RoutedRows) -> None:
        """Take what reached an expert, or a stack of them, instead of `on_layer`.

        Handed on to `on_layer` expert by expert, which is exact, if slow where experts are many.
        """
        for expert, inputs, gradients in rows.by_expert():
            self.on_layer(batch, layer.of_expert(expert), inputs, gradients)

    def on_bias(self, batch: Batch, layer: Layer, gradient: torch.Tensor) -> None:
        """Take each sample's whole gradient of a layer's bias, float32 [B, out] or [B, E, out]."""
        return

    def finish(self, batch: Batch) -> torch.Tensor:
        """The result, float32 [B] or [B, d]."""
        ...


@runtime_checkable
class Scorer(Reader, Protocol):
    """One score of every sample. See `model_pass/scorers.py` for how to add one."""

    shrinks_with_length: bool
    """Whether it is the norm of a mean over tokens, which falls with their number: such scores
    are corrected for length before they become importance."""
    scale: Literal["log", "linear"] = "linear"
    """How its values change from checkpoint to checkpoint, and so how they are propagated: `log`
    by factors, for scores above 0 such as losses and norms; `linear` by differences, for scores
    of any sign such as margins."""
    needs_target: bool = False
    """Whether it reads `PassContext.target_sketches`."""
    needs_optimizer: bool = False
    """Whether it reads `PassContext.optimizer`."""
    alone: type[Scorer] | None = None
    """A score that a second pass gives of the response without its prompt, for `combine`."""
    against: Literal["previous", "first"] | None = None
    """The score is the change of the loss against the row's measurement before, or its first."""

    def combine(self, own: torch.Tensor, alone: torch.Tensor) -> torch.Tensor:
        """The score [B] from its own result and that of `alone`."""
        return own


@runtime_checkable
class Sketch(Reader, Protocol):
    """A random projection of each sample's gradient that keeps inner products.

    Several readers may pass their hooks on to it, `finish` too: what it has seen it skips.
    """

    width: int
    """Numbers of a sketch."""


@runtime_checkable
class FeatureReader(Reader, Protocol):
    """The features of every sample. See `model_pass/features.py`."""

    def width(self, hidden_width: int) -> int:
        """Width d of what `finish` gives, for a model of this hidden width."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionInputs:
    """What a selection starts from: n samples, what is known of them, and what came before."""

    scores: ScoreTable
    samples: SampleTable
    graph: SparseGraph
    features: NDArray[np.float16] | Float32 | None = None
    """[n, d] as measured or propagated, not centred; None where they are not at hand."""
    target_features: NDArray[np.float16] | Float32 | None = None
    """[t, d] of the target set, under the same model; None without one."""
    parent: Rows | None = None
    """The coreset of the version before; None for the first."""
    parent_probabilities: Float64 | None = None
    """[n] how likely the rows of that version were; None where that is not known."""
    state: DrawState | None = None
    """What the draws so far gave each row, and what they owe it; None: nothing was drawn."""
    places: Places | None = None
    """What is to be trained on, factor by factor; None: all rows alike."""
    num_distinct_random: float = 0.0
    """How many of the samples as many random draws of the same sizes would have used by now."""
    store: Any = None
    """The store, open or its path, whose tables the recipe's SQL conditions may ask; None: only
    what is here."""
    scoring: ScoringSection | None = None
    """How importance was made of the scores; None: that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionTask(SelectionInputs):
    """What a selector is asked for, and all it may look at."""

    budget: int
    """Rows to pick besides `initial`, at least 1 and never more than there are candidates; or,
    with `costs`, tokens that they may have together."""
    costs: Int64 | None
    """[n] tokens of each row, 1 or more; None: the budget and the quotas are in rows."""
    candidates: Bool
    """[n] rows that may be picked; their importance is finite."""
    represented: Bool
    """[n] rows that the coreset stands for: candidates, `initial`, and near-duplicates of them."""
    initial: Rows
    """Rows that are in whatever is picked, and are not to be returned."""
    quotas: Int64 | None
    """[g] places of each group, in rows or tokens; None: as it comes."""
    free: int
    """Places beyond the quotas, for any group; with 0, quotas in rows are filled exactly."""
    order: Int64
    """[n] rank of the sample id: of equals the smaller is picked."""
    settings: SelectionSection
    seed: int
    version: int
    """The version that will be published."""


@runtime_checkable
class Selector(Protocol):
    """Chooses the coreset."""

    def select(self, task: SelectionTask) -> Selection:
        """Distinct candidates that fill the budget within the quotas, best first.

        Its weights count when the recipe says `weights: selector`.
        """


@runtime_checkable
class ExportFormat(Protocol):
    """Writes a coreset for a consumer."""

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """Write into the empty `directory`, which becomes `out` when all went well.

        Returns what the user needs to know of it. Raises `ExportError`.
        """


class ExportContent(Protocol):
    """What an export format may use: [m] rows of the coreset in the data's order, with repeats."""

    @property
    def rows(self) -> Rows:
        """[m] of the store."""

    @property
    def source_rows(self) -> Rows:
        """[m] positions in the user's dataset, ascending."""

    @property
    def sample_ids(self) -> list[str]:
        """[m]"""

    @property
    def weights(self) -> Float32:
        """[m]"""

    @property
    def has_weights(self) -> bool:
        """Whether the weights are to be written; else the rows count alike."""

    @property
    def header(self) -> Header:
        """The header of the version."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the user's columns in any of the rows; a row need not have them all."""

    @property
    def groups(self) -> Strings | None:
        """[m] the user's label of each row when it was selected; None: there is none."""

    def records(self) -> Iterator[Json]:
        """The user's rows with the columns of `beside`; may be asked for again."""

    def beside(self) -> Iterator[Json]:
        """Of each row `sample_id`, and where wanted `weight` and scores; may be asked for again."""

    def sample_map(self) -> SampleMap:
        """All samples of the version, with their places on a plane; may raise `ExportError`."""
