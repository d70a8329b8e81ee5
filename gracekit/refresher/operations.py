"""What the command line and `import gracekit` call: one refresh, a selection, a preview."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gracekit.errors import RecipeError, VersionNotFoundError
from gracekit.recipe import Recipe
from gracekit.refresher.flow import Refresher, RefreshResult
from gracekit.refresher.measuring import budgets, is_full
from gracekit.refresher.state import load_known, selection_inputs
from gracekit.types import Checkpoint, Json, Reason


def refresh(
    recipe: Recipe | str | Path,
    checkpoint: str | Path,
    *,
    strict: bool = False,
    stop: threading.Event | None = None,
) -> RefreshResult:
    """Make one version from one checkpoint directory.

    Args:
        recipe: A `Recipe`, or the path of one.
        checkpoint: A complete checkpoint; its layout is recognised.
        strict: Refuse data with rows that cannot be used.
        stop: Ends the refresh after the shard in progress with `RefreshStoppedError`.

    Raises:
        GracekitError: Says what is wrong and what to do; the last version stays valid.
    """
    from gracekit.checkpoints import check_checkpoint

    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    found = check_checkpoint(Path(checkpoint), recipe.checkpoints)
    refresher = Refresher.from_recipe(recipe, strict=strict)
    with refresher.locked():
        return refresher.refresh(found, stop=stop)


def reselect(recipe: Recipe | str | Path) -> RefreshResult:
    """Make a version from the stored scores with the recipe's selection; needs no model, no data.

    Raises:
        StoreNotFoundError, VersionNotFoundError: There are no scores to select from yet.
        StoreFormatError: The cached graph is lost; the next refresh makes a new one.
    """
    from gracekit.selection import select
    from gracekit.store import Store, VersionDraft

    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    store = Store.open(recipe.store)
    with store.lock():
        store.recover()
        latest = store.latest()
        if latest is None:
            raise VersionNotFoundError(
                f"the store {store.paths.root} has no version to select from yet; "
                "make one with `gracekit watch` or `gracekit refresh`"
            )
        started = time.perf_counter()
        header = store.header(latest)
        _require_same_importance(recipe, header.scoring)
        settings = f"{header.scores_version} {recipe.digest('selection', 'seed')}"
        refresh_id = hashlib.sha256(settings.encode()).hexdigest()[:20]
        if header.refresh_id == refresh_id:
            return RefreshResult(version=latest, is_new=False, header=header)
        selection = select(
            recipe.selection,
            **selection_inputs(store, recipe, latest),
            seed=recipe.seed,
            version=store.next_version(),
        )
        seconds = round(time.perf_counter() - started, 3)
        version = store.commit(
            VersionDraft(
                operation="reselect",
                refresh_id=refresh_id,
                recipe_digest=recipe.digest(),
                scores=None,
                selection=selection,
                checkpoint=header.checkpoint,
                scoring=header.scoring,
                refresh={},
                selection_settings=recipe.selection.model_dump(mode="json"),
                timings={"model_pass_s": 0.0, "other_s": seconds, "total_s": seconds},
            )
        )
        return RefreshResult(version=version, is_new=True, header=store.header(version))


def _require_same_importance(recipe: Recipe, stored: Json) -> None:
    """Raise `RecipeError` when the recipe asks for another importance than the stored one."""
    wanted = recipe.scoring.model_dump(mode="json")
    for key in ("importance", "length_correction", "normalise"):
        if stored.get(key) != wanted[key]:
            raise RecipeError(
                f"the stored importance was made with scoring.{key} {stored.get(key)!r}, the "
                f"recipe says {wanted[key]!r}: `select` uses stored importance. Drop the change, "
                "or make a version with it by `gracekit refresh`"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPreview:
    """What the next refresh of a checkpoint would do."""

    checkpoint: str
    step: int
    version: int
    num_samples: int
    num_rows: int
    """Rows measured in the first round."""
    max_rows: int
    """Rows measured at most, while the audit misses its target."""
    num_tokens: int
    """Tokens of the first round's rows."""
    num_shards: int
    reasons: dict[str, int]
    """Why rows are measured -> how many."""
    weight_bytes: int

    def to_json(self) -> Json:
        """As a JSON object."""
        return dataclasses.asdict(self)


def preview(recipe: Recipe, checkpoint: Checkpoint, *, strict: bool = False) -> PlanPreview:
    """The plan of the next refresh, without loading the model; writes nothing to the store."""
    import tempfile

    from gracekit.checkpoints import LAYOUTS, pin
    from gracekit.samples import load_samples, tokenize
    from gracekit.staleness import full_plan, plan_rows
    from gracekit.store import Store

    layout = LAYOUTS[checkpoint.layout]()
    weight_bytes = sum(f.stat().st_size for f in layout.weight_files(checkpoint.path))
    store = Store.open(recipe.store) if Store.exists(recipe.store) else None
    known = load_known(store, recipe) if store is not None else None
    version = 1 if store is None else store.next_version()
    if store is not None:
        samples = store.samples()
        lengths = samples.num_prompt_tokens + samples.num_response_tokens
    else:
        from gracekit.checkpoints.model import load_tokenizer

        raw = load_samples(recipe.data, strict=strict)
        with tempfile.TemporaryDirectory() as folder, pin(checkpoint, Path(folder)) as pinned:
            tokenizer = load_tokenizer(pinned, recipe.checkpoints)
            lengths = tokenize(raw, tokenizer, recipe.data, Path(folder) / "tokens").lengths
    n = len(lengths)
    least, most, num_probe = budgets(recipe.refresh, n)
    if known is None or is_full(recipe.refresh, known):
        plan, most = full_plan(n), n
    else:
        plan = plan_rows(
            recipe.refresh,
            scores=known.scores,
            graph=known.graph,
            values=known.values[recipe.scoring.importance],
            step=checkpoint.step,
            measurable=known.samples.num_response_tokens > 0,
            budget=least,
            num_probe=num_probe,
            seed=recipe.seed,
        )
    counts = np.bincount(plan.reasons, minlength=len(Reason))
    return PlanPreview(
        checkpoint=str(checkpoint.path),
        step=checkpoint.step,
        version=version,
        num_samples=n,
        num_rows=len(plan.rows),
        max_rows=most,
        num_tokens=int(lengths[plan.rows].sum()),
        num_shards=-(-len(plan.rows) // recipe.scoring.shard_rows),
        reasons={r.name.lower().replace("_", " "): int(counts[r]) for r in Reason if counts[r]},
        weight_bytes=weight_bytes,
    )
