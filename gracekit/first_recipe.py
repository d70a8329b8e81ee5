"""`gracekit init`: look at the training data, and write a commented recipe for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gracekit.errors import RecipeError
from gracekit.files import write_text_atomic
from gracekit.recipe import DataSection, Recipe
from gracekit.recipe.places import has_pattern
from gracekit.samples import RawSamples, Skipped, load_samples
from gracekit.samples.data_warnings import data_warnings
from gracekit.samples.token_preview import TokenPreview, preview_tokens
from gracekit.store import output_file
from gracekit.tabular import ShortRepr
from gracekit.types import Json

TEMPLATE = """\
# gracekit recipe for {name}: {num_samples} samples{groups_note}.
# Every key that is left out has its default; `gracekit watch --set KEY=VALUE` changes one for once.

data:
  path: {path}
  split: {split}              # where the source has several; train[:10%] is a part
  format: {format}            # auto, or a layout of docs/data.md
  columns: {columns}               # which column is what: {{prompt: question, response: answer}}
  roles: {roles}                 # what your chats call the roles: {{assistant: [bot]}}
  id_column: {id_column}         # unique ids; null: a hash of the content
  group_column: {group_column}      # source, task or category of a sample
  max_length: {max_length}          # longest token sequence, as in your trainer
  rendering: {rendering}           # auto | chat | plain | trl | axolotl | llamafactory:TEMPLATE
  loss_on: {loss_on}             # auto | response | all: the tokens that your trainer puts loss on
{more}
{target}store: {store}       # everything gracekit knows lives here
seed: 0

checkpoints:
  on_backlog: latest        # latest | all, when several checkpoints wait
  poll_interval_s: 5

scoring:
  scores: [gradient-norm, loss] # all from one pass; docs/scores.md lists them
  importance: gradient-norm # the one of them that selection uses
  length_correction: sqrt   # sqrt | bins | none: the raw norm is mostly a short-answer detector
  normalise: group          # group | all: rank of a sample within its group, or among all
  batch_tokens: 4096        # lower it when memory is short
  device: auto

training:                   # what a budget is a share of, where trainer_state.json does not say it
  steps: null               # optimizer steps in all
  samples_a_step: null      # over all processes and accumulated batches
  checkpoint_every: null    # steps from one checkpoint to the next, for a plan before the run
  stop: advise              # advise | stop | never: where the loss on a target turns up

refresh:
  max_cost: 0.1             # all measuring, as a share of the training's compute; null: no limit
  plan: random              # random | cover | grace | oldest: which rows a refresh measures
  min_fraction: 0.10        # share of the samples measured at each checkpoint, if it is paid for
  max_fraction: 0.30        # ... and at most, while the audit misses the target
  target_value: 0.75        # share of what perfect norms would gain that is enough
  full_every: 0             # measure everything at every so many versions; 0: never by count
  new_samples: budget       # budget | all: samples that joined the data, within max_fraction or not
  max_lost: 0.3             # more of the samples gone or changed from one version to the next is
                            # refused as other data

propagation:
  rule: gated               # gated | grace | none

selection:
  selector: balanced        # or coverage, random, top, ...: see docs/selection.md
  fraction: 0.3             # of the usable samples; or count: 5000; or tokens: 2000000
  alpha: 0.25               # share of the probability that all get alike; the rest by norms
  aim: auto                 # or influence, likeness, group, round-robin, none: towards a target
  dose: 0.6                 # factor of a sample's place for each use, while a target is followed
  redraw: fresh             # fresh | keep: rows take turns, or change as little as they can
  group_quota: none         # none | proportional | sqrt | equal | temperature | shares | learned
  group_minimum: 0          # samples of each group at least
  keep_groups_below: 0      # groups with fewer samples than this are taken whole
  always_in: []             # ids; or an SQL condition: always_in_where: "group_name = 'gold'"
  never_in: []              # ids; or never_in_where: "num_response_tokens < 5"
  drop_hardest: 0.0         # share of the most important samples left out as probable label noise
  max_similarity: null      # of samples more similar than this cosine, only one may be selected
  weights: null             # null: what the selector says; none: the trainer cannot weigh its loss;
                            # or coverage | uniform | inverse-probability | selector

retention:
  keep: null                # versions to keep; older ones leave what was measured. null: all

watch:
  trackers: []              # tensorboard, wandb, trackio: where `gracekit watch` logs each version

compare:                    # whether it pays on this data: `gracekit compare`, docs/comparing.md
  start: null               # directory of the model that every run starts from
  epochs: 5                 # draws that a run trains on
  batch_size: 8
  learning_rate: 2.0e-5
"""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FirstRecipe(ShortRepr):
    """The recipe that was written, and what was found in the data."""

    recipe: str
    """Its path."""
    num_samples: int
    num_skipped: int
    """Rows of the data that cannot be used."""
    first_skipped: str | None
    """The first of them and why; None: every row can be used."""
    skipped: tuple[tuple[str, int, int], ...]
    """(reason, rows, the first of them) of rows that cannot be used, the commonest first."""
    format: str
    groups: tuple[str, ...]
    warnings: tuple[str, ...]
    """What is probably not meant: a sentence each."""
    tokens: TokenPreview | None
    """The first rows in tokens; None where no tokenizer was named."""

    def to_json(self) -> Json:
        """As a JSON object."""
        found: Json = {
            "recipe": self.recipe,
            "num_samples": self.num_samples,
            "num_skipped": self.num_skipped,
            "skipped": [
                {"reason": reason, "num_rows": count, "first_row": first}
                for reason, count, first in self.skipped
            ],
            "format": self.format,
            "groups": list(self.groups),
            "warnings": list(self.warnings),
        }
        if self.tokens is not None:
            found["tokens"] = [row.to_json() for row in self.tokens.rows]
        return found


def write_first_recipe(
    data: str | Sequence[str],
    *,
    output: Path,
    store: str,
    tokenizer: Path | None,
    target: str | None = None,
    keys: Mapping[str, Any],
    force: bool,
    strict: bool,
) -> FirstRecipe:
    """Look at the data and write a recipe for it; the arguments are those of `gracekit.init`.

    Raises:
        RecipeError: The recipe exists, and `force` is not given, or a value is none for a recipe.
        DataError: The data cannot be read or used.
        CheckpointError: There is no tokenizer in the directory.
    """
    if output.exists() and not force:
        raise RecipeError(f"{output} exists; choose another --output, or --force to replace it")
    given = {name: value for name, value in keys.items() if value is not None}
    paths = data if isinstance(data, str) else list(data)
    content = {"data": {**given, "path": paths}}
    settings = Recipe.from_dict(content, name="the options given").data
    raw = load_samples(settings, strict=strict)
    tokens = _preview(raw, settings, tokenizer) if tokenizer is not None else None
    of_target = None
    if target is not None:
        of_target = load_samples(_target_settings(settings, target), strict=strict)
    num_target = None if of_target is None else len(of_target)
    text = _recipe_text(settings, raw, output, store, target, num_target)
    write_text_atomic(output_file(output), text)
    Recipe.load(output)
    first = raw.skipped[0] if raw.skipped else None
    return FirstRecipe(
        recipe=str(output),
        num_samples=len(raw.sample_ids),
        num_skipped=len(raw.skipped),
        first_skipped=None if first is None else f"row {first.source_row}: {first.reason}",
        skipped=_by_reason([*raw.skipped, *(tokens.unrendered if tokens else ())]),
        format=raw.format,
        groups=tuple(raw.group_names),
        warnings=(*data_warnings(raw, settings, tokens), *_warnings_of_target(of_target)),
        tokens=tokens,
    )


def _warnings_of_target(raw: RawSamples | None) -> list[str]:
    if raw is None or not raw.skipped:
        return []
    first = raw.skipped[0]
    return [
        f"{len(raw.skipped)} of {raw.num_source_rows} rows of the target cannot be used, the first "
        f"is row {first.source_row}: {first.reason} (--strict refuses them)"
    ]


def _preview(raw: RawSamples, data: DataSection, directory: Path) -> TokenPreview:
    from gracekit.checkpoints.model import read_tokenizer

    return preview_tokens(raw, read_tokenizer(directory), data)


def _by_reason(skipped: Sequence[Skipped]) -> tuple[tuple[str, int, int], ...]:
    counts = Counter(row.reason for row in skipped)
    firsts = {row.reason: row.source_row for row in reversed(skipped)}
    return tuple((reason, count, firsts[reason]) for reason, count in counts.most_common())


def _target_settings(data: DataSection, target: str) -> DataSection:
    """How the target set is read: as the data, where its columns are the same."""
    return data.model_copy(update={"path": target, "group_column": None, "id_column": None})


_TARGET = """\
target:                     # what training is for: {num} samples, whose loss is followed
  path: {path}
  max_length: {max_length}
  rendering: {rendering}
  loss_on: {loss_on}
  overlap: keep             # keep | drop: samples of the data that are target samples too
{more}
"""


def _target_text(settings: DataSection, target: str, num_target: int, output: Path) -> str:
    """The section `target`, with what the data has of keys that say how rows are read."""
    keys = settings.model_dump(mode="json", exclude_defaults=True)
    more = {name: keys[name] for name in ("format", "columns", "roles", "split") if name in keys}
    return _TARGET.format(
        num=f"{num_target:,}",
        path=_yaml(_from_recipe(target, output)),
        max_length=settings.max_length,
        rendering=settings.rendering,
        loss_on=settings.loss_on,
        more="".join(f"  {name}: {_yaml(value)}\n" for name, value in more.items()),
    )


def _recipe_text(
    settings: DataSection,
    raw: RawSamples,
    output: Path,
    store: str,
    target: str | None,
    num_target: int | None,
) -> str:
    num_groups = len(raw.group_names)
    places = [_from_recipe(place, output) for place in settings.places]
    return TEMPLATE.format(
        name=_one_line(Path(settings.places[0]).name + ", …" * (len(places) > 1)),
        num_samples=f"{len(raw.sample_ids):,}",
        groups_note=f" in {num_groups} groups" if settings.group_column else "",
        path=_yaml(places[0] if len(places) == 1 else places),
        split=_yaml(settings.split),
        format=_yaml(raw.format),
        columns=_yaml(settings.columns.named),
        roles=_yaml({role: list(names) for role, names in settings.roles.items()}),
        id_column=_yaml(settings.id_column),
        group_column=_yaml(settings.group_column),
        max_length=settings.max_length,
        rendering=settings.rendering,
        loss_on=settings.loss_on,
        more="".join(
            f"  {name}: {_yaml(value)}\n"
            for name, value in settings.model_dump(mode="json", exclude_defaults=True).items()
            if f"\n  {name}: " not in TEMPLATE
        ),
        store=_yaml(store),
        target="" if target is None else _target_text(settings, target, num_target or 0, output),
    )


def _from_recipe(data: str, output: Path) -> str:
    """The data's path as the recipe will read it: relative to the recipe's folder."""
    path = Path(data)
    if path.is_absolute() or not (path.exists() or has_pattern(data)):
        return data
    folder = output.absolute().parent
    absolute = path.absolute()
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)


def _yaml(value: Any) -> str:
    """One value as YAML on one line."""
    text: str = yaml.safe_dump(
        value, width=10**9, allow_unicode=True, default_flow_style=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("...").strip()


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
