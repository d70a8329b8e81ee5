"""What to train on, at a refresh: places by the signals, the dose, copies, the target's course."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gracekit.aim import Course, Evidence, Gain, TargetLosses, follow
from gracekit.aim.course import KEPT_LOSSES, USES, mean_uses, steps_left
from gracekit.aim.judging import JUDGED
from gracekit.checkpoints import TrainerPace
from gracekit.recipe import Recipe
from gracekit.refresher.factors import read_reference, tell_of_copies, with_factors
from gracekit.refresher.last import LastRefresh
from gracekit.samples.near_copies import NearCopies
from gracekit.samples.reference import ReferenceLosses
from gracekit.store import StoreReader
from gracekit.texts import Texts
from gracekit.types import (
    Bool,
    DrawState,
    Float32,
    Int64,
    MeasuredTarget,
    Measurement,
    Places,
    SampleTable,
    ScoreTable,
    SparseGraph,
    Strings,
)
from gracekit.version.outcomes import Aim

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aiming:
    """What is known of the target besides what a checkpoint says of it."""

    contents: Strings = field(default_factory=lambda: np.zeros(0, object))
    """Hashes of the contents of its samples."""
    digest: str = ""
    """Hash of these."""
    rendering: str = ""
    """Key of how they become tokens."""
    course: Course = field(default_factory=Course)
    """The target's loss at earlier checkpoints, and the trainer's pace."""
    reference: ReferenceLosses | None = None
    """What a reference model says of samples."""
    share_of_run: float = math.nan
    """Of the training that is done; NaN: not known."""
    near_copies: NearCopies | None = None
    """Tells which samples say the same; None: nobody can."""

    @classmethod
    def of(
        cls,
        store: StoreReader,
        *,
        contents: Strings | None,
        recipe: Recipe,
        pace: TrainerPace,
        step: int,
        rendering: str | None = None,
        target_rendering: str = "",
        near_copies: NearCopies | None = None,
    ) -> Aiming:
        """What a store's versions say of the target in the run that has come to a step.

        Args:
            store: The store.
            contents: Hashes of the contents of the target's samples; None without a target.
            recipe: Names what a reference model says, and what is known of the training.
            pace: What the trainer says of itself.
            rendering: Of the samples, as a file of reference losses keeps it.
            target_rendering: Of the target's samples: losses of other tokens are not compared.
            near_copies: See the field.
            step: Of the checkpoint. A version at the same step or a later one ends an earlier run.
        """
        num_steps = recipe.training.steps or pace.num_steps
        reference = read_reference(recipe, rendering)
        share_of_run = math.nan if num_steps is None else step / num_steps
        if contents is None:
            return cls(reference=reference, share_of_run=share_of_run, near_copies=near_copies)
        joined = "\0".join(sorted(contents.astype(str).tolist()))
        digest = hashlib.sha256(joined.encode()).hexdigest()[:20]
        earlier: list[TargetLosses] = []
        for version in store.all_versions():
            header = store.header(version)
            found = header.aim
            if found is None or not found.losses or header.operation not in ("init", "refresh"):
                continue
            if found.target_digest != digest or _is_other(found.target_rendering, target_rendering):
                continue
            at = header.checkpoint.step
            earlier = [each for each in earlier if each.step < at]
            earlier.append(TargetLosses(step=at, losses=np.array(found.losses, np.float64)))
        course = Course(
            earlier=[each for each in earlier if each.step < step],
            samples_a_step=recipe.training.samples_a_step or pace.samples_a_step,
        )
        return cls(
            contents=contents,
            digest=digest,
            rendering=target_rendering,
            course=course,
            reference=reference,
            share_of_run=share_of_run,
            near_copies=near_copies,
        )


def places_of(
    recipe: Recipe,
    *,
    samples: SampleTable,
    scores: ScoreTable,
    features: NDArray[np.float16] | Float32,
    valid: Bool,
    graph: SparseGraph,
    measurement: Measurement,
    target: MeasuredTarget | None,
    last: LastRefresh | None,
    state: DrawState | None,
    aiming: Aiming,
    step: int,
    store: StoreReader | Path | None = None,
) -> tuple[Places | None, Aim | None]:
    """The places of all rows [n], and what was found of the target; None where all are alike."""
    barred, num_overlap = _overlap(recipe, samples, aiming.contents)
    # Another target set, or none before: what was found then says nothing of this one.
    before = last if last is not None and _is_of(last.aim, aiming) else None
    places, aim = Places(), None
    if recipe.follows_target and target is not None:
        good = _with_sketches(measurement)
        rows = measurement.rows[good]
        places, aim = follow(
            recipe.selection,
            Evidence(
                graph=graph,
                features=features,
                valid=valid & (samples.num_response_tokens > 0),
                rows=rows,
                sketches=_sketches_of(measurement, good),
                target=target,
                before=None if before is None else before.places,
                is_new=np.ones(len(rows), np.bool_)
                if last is None
                else last.scores.measured_version[rows] != last.version,
                gains_before=_gains(None if before is None else before.aim),
                groups=samples.groups,
                barred=barred,
                used=_uses(state, len(samples)),
                seed=recipe.seed,
            ),
        )
        aim = _with_course(aim, recipe, places, target, state, aiming.course, step)
    elif recipe.follows_target:
        places, aim = _as_before(before, len(samples))
    if aim is not None:
        contents = aiming.contents.tolist() if recipe.target and recipe.target.group else []
        aim = aim.model_copy(
            update={
                "stop": recipe.training.stop,
                "target_digest": aiming.digest,
                "target_rendering": aiming.rendering,
                "contents": contents,
                "num_overlap": num_overlap,
                "is_overlap_dropped": bool(barred.any()),
            }
        )
        _log(aim)
    if barred.any():
        allowed = (~barred).astype(np.float32)
        places = Places(factors={"allowed": allowed, **places.factors}, signals=places.signals)
    found = with_factors(
        recipe,
        places,
        samples=samples,
        scores=scores,
        graph=graph,
        state=state,
        reference=aiming.reference,
        share_of_run=aiming.share_of_run,
        near_copies=aiming.near_copies,
        store=store,
    )
    before_now = None if last is None else last.places
    tell_of_copies(recipe, samples, found, before=before_now, is_first=last is None)
    return found, aim


def _is_other(rendering: str, other: str) -> bool:
    """Whether two keys say other tokens; an empty one is of a release that did not note it."""
    return bool(rendering and other and rendering != other)


def _is_of(aim: Aim | None, aiming: Aiming) -> bool:
    """Whether what was found is of this target set."""
    return aim is not None and aim.target_digest == aiming.digest


def _uses(state: DrawState | None, n: int) -> Int64:
    return np.zeros(n, np.int64) if state is None else state.uses.astype(np.int64)


def _as_before(last: LastRefresh | None, n: int) -> tuple[Places, Aim]:
    """What was followed before, where no target sample was measured now; else all rows alike."""
    why = "refresh.max_cost pays for no target sample now"
    if last is None or last.places is None or last.aim is None or "aim" not in last.places.factors:
        alike = Places(factors={"aim": np.ones(n, np.float32)})
        return alike, Aim(share_uniform=1.0, why=f"{why}: all rows are alike")
    places = Places(factors={"aim": last.places.factors["aim"]}, signals=last.places.signals)
    unknown = dict.fromkeys(
        ("target_loss", "predicted_fall", "uses_of_alike", "steps_left"), math.nan
    )
    found = {"losses": [], "num_target": 0, "num_told_by": 0, "advice": None, "rounds": None}
    why = f"{why}, and what was found before holds"
    return places, last.aim.model_copy(update={**unknown, **found, "why": why})


def _overlap(recipe: Recipe, samples: SampleTable, contents: Strings) -> tuple[Bool, int]:
    """[n] rows that the target's samples bar from training, and how many have their content."""
    if recipe.target is None:
        return np.zeros(len(samples), np.bool_), 0
    same = Texts.of(contents).places_of(samples.content_hashes) >= 0
    same &= samples.present
    num_overlap = int(same.sum())
    is_dropped = recipe.target.overlap == "drop" or recipe.target.group is not None
    if num_overlap and not is_dropped:
        logger.warning(
            "%d samples of the data have the content of a target sample: they may be trained on, "
            "and the target's loss is then partly that of samples seen; target.overlap: drop "
            "trains on none of them",
            num_overlap,
        )
    return same if is_dropped else np.zeros(len(samples), np.bool_), num_overlap


def _with_sketches(measurement: Measurement) -> Bool:
    """[m] rows with a finite measurement and sketch."""
    good = measurement.valid
    if measurement.sketches is not None:
        good = good & np.isfinite(measurement.sketches).all(axis=1)
    return good


def _sketches_of(measurement: Measurement, good: Bool) -> Float32 | None:
    if measurement.sketches is None:
        return None
    return measurement.sketches[good].astype(np.float32)


def _gains(aim: Aim | None) -> dict[str, Gain]:
    """Signal -> what it was found to gain up to the refresh before, where that is known."""
    if aim is None:
        return {}
    found = {}
    for name in JUDGED:
        gain, error, width, lasts = (
            float(getattr(aim, f"{what}_{name}")) for what in ("gain", "error", "width", "lasts")
        )
        if math.isfinite(gain) and math.isfinite(error) and math.isfinite(width):
            lasts = lasts if math.isfinite(lasts) else 1.0
            found[name] = Gain(gain=gain, error=error, width=width, lasts=lasts)
    return found


def _with_course(
    aim: Aim,
    recipe: Recipe,
    places: Places,
    target: MeasuredTarget,
    state: DrawState | None,
    course: Course,
    step: int,
) -> Aim:
    """With the target's loss, what is left of the rows that resemble it, and advice."""
    losses = np.zeros(0) if target.losses is None else target.losses.astype(np.float64)
    finite = losses[np.isfinite(losses)]
    now = TargetLosses(step=step, losses=np.round(losses[:KEPT_LOSSES], 4))
    found: dict[str, object] = {"num_target": len(finite)}
    if len(finite):
        found["target_loss"] = float(finite.mean())
        found["losses"] = now.losses.tolist()
        found["best_step"] = course.best_step(now)
    uses = mean_uses(places.factors["aim"], aim.share_uniform, state)
    share = 1 - aim.share_uniform
    reasons = []
    if share > 0:
        found["uses_of_alike"] = uses
        found["steps_left"] = steps_left(aim.num_alike, uses, share, course.samples_a_step)
        if uses >= USES:
            reasons.append(
                f"the {aim.num_alike:,.0f} samples that resemble the target were used "
                f"{uses:.1f} times on average, and more than {USES:.0f} uses teach little"
            )
    turned = course.has_turned(now) if len(finite) else None
    if turned is not None:
        reasons.insert(0, turned)
    elif reasons and len(finite):  # which checkpoint to take
        best = course.best_step(now)
        is_now = "is lowest now," if best == step else "was lowest"
        reasons.append(f"the target's loss {is_now} at step {best:,}")
    found["advice"] = "; ".join(reasons) or None
    return aim.model_copy(update=found)


def _log(aim: Aim) -> None:
    parts = [
        f"{share:.0%} {name}"
        for name, share in (
            ("influence", aim.share_influence),
            ("likeness", aim.share_likeness),
            ("groups", aim.share_group),
        )
        if share > 0
    ]
    if not parts and aim.share_uniform < 1:
        parts.append(f"{1 - aim.share_uniform:.0%} its samples in turn")
    loss = f"loss {aim.target_loss:.4f}" if math.isfinite(aim.target_loss) else "loss not measured"
    followed = f"follows {', '.join(parts)}, " if parts else "is "
    logger.info(
        "target: %s; what is trained on %s%.0f %% all samples alike: %s",
        loss,
        followed,
        100 * aim.share_uniform,
        aim.why,
    )
    if aim.advice is not None:
        logger.warning("more steps are not advised: %s", aim.advice)
