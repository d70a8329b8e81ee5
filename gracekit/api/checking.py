"""The verb that compares a trainer's tokens with what was measured: `check_tokens`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gracekit.api.stores import StoreLike, root_of
from gracekit.errors import DataError
from gracekit.leftovers import scratch_folder
from gracekit.recipe import DataSection, Recipe
from gracekit.samples import load_samples, open_source, sample_table, tokenize
from gracekit.store import Store, StoreReader
from gracekit.training.measured import Measured, Tokens
from gracekit.training.parity import check_rows
from gracekit.training.parity_report import TokenCheck
from gracekit.training.trainer_rows import TrainerRows


def check_tokens(
    dataset: Any,
    store: StoreLike | Recipe,
    *,
    tokenizer: Any = None,
    sample_ids: Sequence[Any] | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    split: str = "train",
) -> TokenCheck:
    """Compare a trainer's tokens and loss masks with what gracekit measured.

    Args:
        dataset: As the trainer has tokenised it (`trainer.train_dataset`): a `datasets.Dataset`, a
            list of rows, or a path of such a file. Rows have `input_ids`, and `labels` or
            `completion_mask` and `assistant_masks`; without these all tokens carry loss.
        store: Path of the store, or an open `Store`; or a recipe (a `Recipe`, or the path of one):
            its store where there is one, else its data as the tokenizer gives it.
        tokenizer: The trainer's, or its directory. With it tokens are shown as text, and settings
            that mend a difference are looked for.
        sample_ids: The sample id of each row of the dataset. Without, rows are told by position,
            and where that does not fit by their tokens.
        collate: The trainer's data collator, where it makes the labels.
        split: Of a dataset that is a path.

    Returns:
        What differs, with the first differing tokens; `ok` says whether anything does. Where rows
        were told by their tokens, `sample_ids` has the id of each.

    Raises:
        DataError: The dataset has no tokens, or the store does not know its own.
        StoreError: There is no store.
        RecipeError: The recipe is wrong, or has neither a store nor is a tokenizer given.

    Example:
        >>> gracekit.check_tokens(trainer.train_dataset, "gracekit-store").ok
        True
    """
    loaded = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    if isinstance(dataset, str | Path):
        source = open_source(DataSection(path=str(dataset), split=split))
        dataset = [row for block in source.blocks() for row in block]
    rows = TrainerRows(dataset, collate)
    measured = _measured(store, loaded)
    return check_rows(rows, measured, sample_ids=sample_ids, tokenizer=loaded)


def load_tokenizer(directory: str | Path) -> Any:
    """A tokenizer from its directory; raises `DataError` where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # whatever a broken file leads to
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot load a tokenizer from {directory}: {reason}") from error


def _measured(store: StoreLike | Recipe, tokenizer: Any) -> Measured:
    recipe: Recipe | None = store if isinstance(store, Recipe) else None
    if isinstance(store, str | Path) and Path(store).is_file():
        recipe = Recipe.load(store)
    if recipe is None:
        assert not isinstance(store, Recipe)
        return Measured.of_store(StoreReader.open(root_of(store)))
    if Store.exists(recipe.store):
        return Measured.of_store(StoreReader.open(recipe.store))
    if tokenizer is None:
        raise DataError(
            f"there is no store at {recipe.store} yet, so the recipe's data has to be tokenised: "
            "name the trainer's tokenizer (--tokenizer DIR)"
        )
    raw = load_samples(recipe.data)
    with scratch_folder("check") as folder:
        table = tokenize(raw, tokenizer, recipe.data, folder)
        kept = [Tokens(*tokens) for tokens in table.take(np.arange(len(table)))]
    return Measured(sample_table(raw, table), recipe.data, raw.format, kept.__getitem__)
