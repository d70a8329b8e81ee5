"""The verb that comes first: `init`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gracekit.first_recipe import FirstRecipe, write_first_recipe


def init(
    data: str | Path | Sequence[str | Path],
    *,
    output: str | Path = "gracekit.yaml",
    store: str | Path = "gracekit-store",
    tokenizer: str | Path | None = None,
    target: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    roles: Mapping[str, Sequence[str]] | None = None,
    force: bool = False,
    strict: bool = False,
    **keys: Any,
) -> FirstRecipe:
    """Look at training data and write a commented recipe for it.

    Args:
        data: A JSONL, JSON, Parquet or CSV file, a directory of them, a pattern such as
            `data/*.jsonl`, a `save_to_disk` folder, or the name of a hub dataset; or several of
            them.
        output: The recipe to write.
        store: The directory that the recipe names as the store.
        tokenizer: A directory with the model's tokenizer, such as a checkpoint or a folder of
            them: shows the first rows in tokens, and what is cut off.
        target: A file with samples of the task that training is for, of the same layout.
        columns: Which column holds what, where its name does not say so, such as
            `{"prompt": "question", "response": "answer"}`.
        roles: What the chats call the roles, such as `{"assistant": ["bot"]}`.
        force: Replace an existing recipe.
        strict: Refuse data with rows that cannot be used.
        **keys: Any other key of the recipe's data section, such as `group_column="source"` or
            `split="test"`.

    Raises:
        RecipeError: The recipe exists, and `force` is not given, or a value is none for a recipe.
        DataError: The data cannot be read or used.
        CheckpointError: There is no tokenizer in the directory.

    Example:
        >>> gracekit.init("data/train.jsonl", group_column="source").num_samples
        12000
    """
    return write_first_recipe(
        str(data) if isinstance(data, str | Path) else [str(place) for place in data],
        output=Path(output),
        store=str(store),
        tokenizer=None if tokenizer is None else Path(tokenizer),
        target=None if target is None else str(target),
        keys={
            **keys,
            "columns": dict(columns or {}),
            "roles": {role: list(names) for role, names in (roles or {}).items()},
        },
        force=force,
        strict=strict,
    )
