"""The bed of a comparison: the rows that may be trained on, those that judge, and the steps."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from gracekit.errors import CheckpointError, DataError, RecipeError
from gracekit.foreign import foreign
from gracekit.recipe import DataSection, Recipe
from gracekit.samples import RawSamples, TokenTable, load_samples, loose_hashes, tokenize
from gracekit.selection.pool import DEFAULT_FRACTION
from gracekit.types import Bool, Float64, Int32, Int64, Rows

logger = logging.getLogger("gracekit.comparing")

UNMARKED = {"(none)", "", "0", "0.0", "false", "no", "none", "null"}
"""Values of a mark's column, in small letters, that mark nothing."""


@dataclass(frozen=True, kw_only=True)
class Judges:
    """The k held-out rows."""

    tokens: TokenTable
    rows: Rows
    """[k] of `tokens`."""
    groups: Int32
    """[k] index into `group_names`."""
    group_names: tuple[str, ...]
    raw: RawSamples
    max_length: int
    """Tokens at which a row was cut off."""

    @property
    def whole(self) -> Rows:
        """[m] of `rows`, those that were not cut off."""
        return self.rows[self.tokens.lengths[self.rows] < self.max_length]

    @property
    def contents(self) -> list[str]:
        """[k] hashes of the rows' contents."""
        return [str(content) for content in self.raw.content_hashes[self.rows]]

    @property
    def num_targets(self) -> Int64:
        """[k] target tokens."""
        return self.tokens.num_targets[self.rows].astype(np.int64)

    def weights(self, average: str) -> Float64:
        """[k] what each row's mean loss counts for in the held-out loss; the sum is 1."""
        if average == "tokens":
            weights = self.num_targets.astype(np.float64)
        elif average == "samples":
            weights = np.ones(len(self.rows))
        else:
            weights = 1.0 / np.bincount(self.groups)[self.groups]
        return np.asarray(weights / weights.sum(), np.float64)


@dataclass(frozen=True, kw_only=True)
class Bed:
    """What all arms have in common."""

    recipe: Recipe
    start: Path
    tokenizer: Any
    raw: RawSamples
    tokens: TokenTable
    """Of all n rows of the data."""
    pool: Rows
    """[p] rows that may be trained on: they have target tokens, and are not held out."""
    held_out_ids: tuple[str, ...]
    """Ids of rows of the data that no arm may train on."""
    judges: Judges
    marks: dict[str, Bool]
    """Column -> [n] whether a row is marked."""
    num_drawn: int
    """Rows of a draw, which is an epoch."""
    num_overlap: int = 0
    """Held-out rows that are in the data too, where that is allowed."""

    @classmethod
    def make(cls, recipe: Recipe, cache: Path) -> Bed:
        """Read and tokenise; refuse what would spoil the comparison.

        Args:
            recipe: All settings; what is compared is in its section `compare`.
            cache: Directory for tokens.

        Raises:
            RecipeError: No start, or a selection that cannot be compared with.
            DataError: Rows are missing, or held-out rows are in the data too.
            CheckpointError: The start has no tokenizer.
        """
        settings, start = recipe.compare, start_of(recipe)
        tokenizer = load_tokenizer(recipe, start)
        raw = load_samples(recipe.data)
        tokens = tokenize(raw, tokenizer, recipe.data, cache / "tokens")
        usable = np.flatnonzero(tokens.num_targets > 0)
        num_overlap = 0
        if settings.evaluation is None:
            judges, held_out = _split(raw, tokens, usable, recipe)
        else:
            judges = _read_judges(settings.evaluation, tokenizer, cache)
            held_out = np.zeros(len(raw), bool)
            num_overlap = _require_apart(raw, judges, recipe)
        pool = usable[~held_out[usable]]
        if not len(pool):
            raise DataError(f"{recipe.data.name}: no row is left to train on; hold out fewer rows")
        return cls(
            recipe=recipe,
            start=start,
            tokenizer=tokenizer,
            raw=raw,
            tokens=tokens,
            pool=pool,
            held_out_ids=tuple(raw.sample_ids[np.flatnonzero(held_out)].tolist()),
            judges=judges,
            marks={column: marked_rows(recipe, column, len(raw)) for column in settings.marks},
            num_drawn=_num_drawn(recipe, len(pool)),
            num_overlap=num_overlap,
        )

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps that a draw takes."""
        return -(-self.num_drawn // self.recipe.compare.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of a run on draws."""
        return self.recipe.compare.epochs * self.steps_an_epoch

    @property
    def num_steps_at_once(self) -> int:
        """The same where all draws lie one after another, without a short batch after each."""
        settings = self.recipe.compare
        return -(-settings.epochs * self.num_drawn // settings.batch_size)

    @property
    def num_full_steps(self) -> int:
        """Optimizer steps of as many passes over all rows as others go over draws."""
        settings = self.recipe.compare
        return settings.epochs * -(-len(self.pool) // settings.batch_size)

    @cached_property
    def groups(self) -> Int32:
        """[n] group of each row."""
        return self.raw.groups

    def column(self, name: str) -> tuple[Int32, tuple[str, ...]]:
        """[n] values of a column of the data as indices, and the values as text."""
        return column_of(self.recipe, name, len(self.raw))


def start_of(recipe: Recipe) -> Path:
    """The directory of the model that runs start from; raises `RecipeError` without one."""
    if recipe.compare.start is None:
        raise RecipeError(
            "compare.start is missing: the directory of the model that every run starts from, such "
            "as `--set compare.start=models/base`"
        )
    start = Path(recipe.compare.start).expanduser()
    if not (start / "config.json").is_file():
        raise RecipeError(
            f"compare.start: there is no model at {start}; expected a directory with config.json "
            "and weights, as `save_pretrained` writes it"
        )
    return start


def load_tokenizer(recipe: Recipe, start: Path) -> Any:
    """The tokenizer of the start, or the one that the recipe names."""
    place = recipe.checkpoints.tokenizer or str(start)
    with foreign(place, CheckpointError):
        tokenizer = AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=recipe.checkpoints.trust_remote_code
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"the tokenizer of {place} has no padding token and no end-of-sequence token; add one "
            "and save the tokenizer again"
        )
    return tokenizer


def column_of(recipe: Recipe, name: str, num_rows: int) -> tuple[Int32, tuple[str, ...]]:
    """[n] values of a column of the data as indices, and the values as text.

    Raises:
        DataError: The data has no such column.
    """
    found = load_samples(recipe.data.model_copy(update={"group_column": name}))
    if len(found) != num_rows:
        raise DataError(
            f"{recipe.data.name} has {len(found)} rows with the column {name!r}, {num_rows} a "
            "moment ago: the file was written to; start again"
        )
    return found.groups, found.group_names


def marked_rows(recipe: Recipe, column: str, num_rows: int) -> Bool:
    """[n] whether a row has a value in a column of marks."""
    values, names = column_of(recipe, column, num_rows)
    is_mark = np.array([name.strip().lower() not in UNMARKED for name in names], bool)
    if not is_mark.any():
        logger.warning("compare.marks: no row of the data is marked in the column %r", column)
    return np.asarray(is_mark[values], bool)


def _num_drawn(recipe: Recipe, num_pool: int) -> int:
    selection = recipe.selection
    if selection.tokens is not None:
        raise RecipeError(
            "selection.tokens: arms are compared in draws of as many rows, so give selection.count "
            "or selection.fraction for `gracekit compare`"
        )
    wanted = selection.count
    if wanted is None:
        wanted = round((selection.fraction or DEFAULT_FRACTION) * num_pool)
    if not 1 <= wanted <= num_pool:
        raise RecipeError(
            f"a draw has {wanted} rows and {num_pool} may be trained on; change selection.count or "
            "selection.fraction"
        )
    return wanted


def _split(
    raw: RawSamples, tokens: TokenTable, usable: Rows, recipe: Recipe
) -> tuple[Judges, Bool]:
    """Held-out rows of the data itself, and [n] which rows hold the same content as they."""
    wanted = recipe.compare.held_out
    if wanted >= len(usable):
        raise DataError(
            f"compare.held_out is {wanted} and the data has {len(usable)} usable rows; hold out "
            "fewer, or name held-out rows in compare.evaluation"
        )
    drawn = np.random.default_rng(recipe.seed).permutation(usable)
    contents = loose_hashes(raw).astype(str)
    rows = np.sort(_distinct(drawn, contents)[:wanted])
    held_out = np.isin(contents, contents[rows])
    judges = Judges(
        tokens=tokens,
        rows=rows,
        groups=raw.groups[rows],
        group_names=raw.group_names,
        raw=raw,
        max_length=recipe.data.max_length,
    )
    return judges, held_out


def _distinct(rows: Rows, contents: NDArray[np.str_]) -> Rows:
    """The rows in their order, without those whose content came before."""
    _, first = np.unique(contents[rows], return_index=True)
    return rows[np.sort(first)]


def _read_judges(data: DataSection, tokenizer: Any, cache: Path) -> Judges:
    raw = load_samples(data)
    tokens = tokenize(raw, tokenizer, data, cache / "held-out-tokens")
    usable = np.flatnonzero(tokens.num_targets > 0)
    rows = np.sort(_distinct(usable, loose_hashes(raw).astype(str)))
    if not len(rows):
        raise DataError(
            f"{data.name}: no held-out row has a token to judge by; raise its max_length, or name "
            "other rows in compare.evaluation"
        )
    if len(rows) < len(usable):
        logger.warning(
            "%d of %d held-out rows of %s are there already: each counts once",
            len(usable) - len(rows), len(usable), data.name,
        )  # fmt: skip
    return Judges(
        tokens=tokens,
        rows=rows,
        groups=raw.groups[rows],
        group_names=raw.group_names,
        raw=raw,
        max_length=data.max_length,
    )


def _require_apart(raw: RawSamples, judges: Judges, recipe: Recipe) -> int:
    """How many held-out rows are in the data too; `DataError` unless that is allowed."""
    hashes = loose_hashes(judges.raw).astype(str)[judges.rows]
    both = np.flatnonzero(np.isin(hashes, loose_hashes(raw).astype(str)))
    if not len(both):
        return 0
    assert recipe.compare.evaluation is not None
    first = judges.raw.source_rows[judges.rows[both[0]]]
    what = (
        f"{len(both)} of {len(hashes)} held-out rows of {recipe.compare.evaluation.name} are in "
        f"{recipe.data.name} too, but for whitespace (the first is row {first}): a model that has "
        "seen them is judged too well"
    )
    if not recipe.compare.allow_overlap:
        raise DataError(
            f"{what}. Take them out of one of the two, or allow it with compare.allow_overlap"
        )
    logger.warning("%s", what)
    return len(both)
