"""`gracekit init`: look at the training data, and write a commented recipe for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gracekit.errors import RecipeError
from gracekit.files import write_text_atomic
from gracekit.recipe import Recipe
from gracekit.samples import RawSamples, load_samples, rendered_beginning
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
  max_length: 1024          # longest token sequence, as in your trainer
  rendering: auto           # auto | chat | plain | trl: whose tokens and loss are meant
  loss_on: auto             # auto | response | all: the tokens that your trainer puts loss on

store: {store}       # everything gracekit knows lives here
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

refresh:
  plan: random              # random | cover | grace | oldest: which rows a refresh measures
  min_fraction: 0.10        # share of the samples measured at each checkpoint
  max_fraction: 0.30        # ... and at most, while the audit misses the target
  target_rank_correlation: 0.9
  full_every: 0             # measure everything at every so many versions; 0: never by count
  new_samples: budget       # budget | all: samples that joined the data, within max_fraction or not
  max_lost: 0.3             # more of the samples gone or changed from one version to the next is
                            # refused as other data

propagation:
  rule: gated               # gated | grace | none

selection:
  selector: coverage        # or a baseline: random, top, ...: see docs/selection.md
  fraction: 0.3             # of the usable samples; or count: 5000; or tokens: 2000000
  importance_weight: 0.5    # 0 only coverage, 1 only importance
  churn_penalty: 0.0        # above 0 (try 0.1) a version changes only what is worth changing
  group_quota: none         # none | proportional | sqrt | equal | shares (with group_shares)
  group_minimum: 0          # samples of each group at least
  keep_groups_below: 0      # groups with fewer samples than this are taken whole
  always_in: []             # ids; or an SQL condition: always_in_where: "group_name = 'gold'"
  never_in: []              # ids; or never_in_where: "num_response_tokens < 5"
  drop_hardest: 0.0         # share of the most important samples left out as probable label noise
  max_similarity: null      # of samples more similar than this cosine, only one may be selected
  weights: coverage         # coverage | uniform | inverse-probability | selector

retention:
  keep: null                # versions to keep; older ones leave what was measured. null: all
"""


LOOKED_AT = 256
"""Rows of which it is told whether they are rendered already."""


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
    format: str
    groups: tuple[str, ...]
    rendered_already: str | None = None
    """A warning about texts that a chat template was applied to before; None: the first rows are
    none."""

    def to_json(self) -> Json:
        """As a JSON object."""
        return {
            "recipe": self.recipe,
            "num_samples": self.num_samples,
            "num_skipped": self.num_skipped,
            "format": self.format,
            "groups": list(self.groups),
            "rendered_already": self.rendered_already,
        }


def write_first_recipe(
    data: str,
    *,
    output: Path,
    store: str,
    id_column: str | None,
    group_column: str | None,
    columns: Mapping[str, str],
    roles: Mapping[str, Sequence[str]],
    split: str,
    force: bool,
    strict: bool,
) -> FirstRecipe:
    """Look at the data and write a recipe for it; the arguments are those of `gracekit.init`.

    Raises:
        RecipeError: The recipe exists, and `force` is not given, or a value is none for a recipe.
        DataError: The data cannot be read or used.
    """
    if output.exists() and not force:
        raise RecipeError(f"{output} exists; choose another --output, or --force to replace it")
    settings = Recipe.from_dict(
        {
            "data": {
                "path": data,
                "split": split,
                "id_column": id_column,
                "group_column": group_column,
                "columns": dict(columns),
                "roles": {role: list(names) for role, names in roles.items()},
            }
        },
        name="the options given",
    ).data
    raw = load_samples(settings, strict=strict)
    num_groups = len(raw.group_names)
    text = TEMPLATE.format(
        name=_one_line(Path(data).name),
        num_samples=f"{len(raw.sample_ids):,}",
        groups_note=f" in {num_groups} groups" if settings.group_column else "",
        path=_yaml(_from_recipe(data, output)),
        split=_yaml(split),
        format=_yaml(raw.format),
        columns=_yaml(settings.columns.named),
        roles=_yaml({role: list(names) for role, names in settings.roles.items()}),
        id_column=_yaml(settings.id_column),
        group_column=_yaml(settings.group_column),
        store=_yaml(store),
    )
    write_text_atomic(output, text)
    Recipe.load(output)
    first = raw.skipped[0] if raw.skipped else None
    return FirstRecipe(
        recipe=str(output),
        num_samples=len(raw.sample_ids),
        num_skipped=len(raw.skipped),
        first_skipped=None if first is None else f"row {first.source_row}: {first.reason}",
        format=raw.format,
        groups=tuple(raw.group_names),
        rendered_already=_rendered_already(raw),
    )


def _rendered_already(raw: RawSamples) -> str | None:
    looked_at = raw.records.take(range(min(len(raw), LOOKED_AT)))
    found = [token for c in looked_at if (token := rendered_beginning(c)) is not None]
    if not found:
        return None
    return (
        f"{len(found)} of the first {len(looked_at)} texts begin with {found[0]}, as if a chat "
        "template had been applied to them: the trainer may put the beginning of a sequence there "
        "a second time, or a template around it. Compare its tokens with `gracekit check`"
    )


def _from_recipe(data: str, output: Path) -> str:
    """The data's path as the recipe will read it: relative to the recipe's folder."""
    path = Path(data)
    if not path.exists() or path.is_absolute():
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
