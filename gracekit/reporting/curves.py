"""Learning curves of a comparison: from the results of its runs, or from what it printed as JSON.

With the results of single runs there are intervals over seeds; the printed JSON has means alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gracekit.comparing.run_result import RunResult
from gracekit.comparing.statistics import LEAST_SEEDS, Difference, difference
from gracekit.documents import read_named_text
from gracekit.errors import UsageError
from gracekit.foreign import reason_of
from gracekit.reporting.finding import Finding, Lines, Section, Series
from gracekit.types import Float64

CONTROLS = ("random", "once")
"""Arms that know nothing; the stronger one is what others are compared with."""
_T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Seeds -> 97.5 % quantile of Student's t with one degree of freedom less; above ten: 2.2."""
_LARGEST = 1 << 30
"""Bytes of a file that is read at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """What a comparison found."""

    section: Section
    verdict: tuple[str, ...]
    """Sentences."""
    is_worse: bool
    """Whether selection by the recipe was found worse than the control."""


def curves(path: Path) -> Curves:
    """The curves of a comparison.

    Args:
        path: The directory of its results, or a file with what `gracekit compare --json` printed.

    Raises:
        UsageError: It is neither.
        StoreFormatError: A result is damaged.
    """
    if path.is_dir():
        results = [found for file in _result_files(path) if (found := RunResult.read(file))]
        if not results:
            raise UsageError(
                f"--comparison: there is no result of a run in {path}; name the directory that "
                "`gracekit compare` wrote (its --output), or a file with what it printed with "
                "--json"
            )
        return _of_runs(results)
    try:
        content = json.loads(read_named_text(path, max_bytes=_LARGEST))
        return _of_json(content)
    except OSError as error:
        raise UsageError(
            f"--comparison: cannot read {path}: {reason_of(error)}; name the directory of a "
            "comparison's results, or a file with what `gracekit compare --json` printed"
        ) from None
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
            RecursionError) as error:  # fmt: skip
        raise UsageError(
            f"--comparison: {path} does not hold what `gracekit compare --json` prints "
            f"({reason_of(error)}); name such a file, or the directory of the results"
        ) from None


def _result_files(path: Path) -> list[Path]:
    return sorted(path.glob("*-seed*.json"))


# --- from the results of single runs ---


def _of_runs(results: Sequence[RunResult]) -> Curves:
    by_arm: dict[str, list[RunResult]] = {}
    for result in sorted(results, key=lambda r: (r.arm, r.seed)):
        by_arm.setdefault(result.arm, []).append(result)
    weights = np.asarray(results[0].num_targets, np.float64)
    if any(result.num_targets != results[0].num_targets for result in results):
        raise UsageError(
            "--comparison: the runs were judged on different held-out rows; results of two "
            "comparisons lie in one directory: name one that holds a single comparison"
        )
    weights /= weights.sum()
    points, differences = _empty(_POINT), _empty(_DIFFERENCE)
    ends: dict[str, Float64] = {}
    for arm, runs in by_arm.items():
        number = min(len(run.points) for run in runs)
        losses = np.array([[run.losses(p) @ weights for p in range(number)] for run in runs])
        compute = np.array([[run.points[p].compute for p in range(number)] for run in runs])
        half = _half_width(losses)
        ends[arm] = losses[:, -1]
        for p in range(number):
            middle = float(losses[:, p].mean())
            values = (arm, len(runs), runs[0].points[p].step, float(compute[:, p].mean()), middle,
                      middle - half[p], middle + half[p])  # fmt: skip
            _add(points, values)
    controls = [name for name in CONTROLS if name in ends]
    control = min(controls, key=lambda name: float(ends[name].mean()), default=None)
    apart = _differences(by_arm, control, weights)
    for arm, found in apart.items():
        row = (arm, len(found.by_seed), found.mean, found.low, found.high, _found(found))
        _add(differences, row)
    verdict = [] if control is None else [
        _sentence(arm, control, found) for arm, found in apart.items()
    ]  # fmt: skip
    verdict.sort(key=lambda text: not text.startswith("`recipe`"))
    own = apart.get("recipe")
    return Curves(
        section=_section(points, differences, verdict, has_intervals=True),
        verdict=tuple(verdict),
        is_worse=own is not None and own.is_worse,
    )


_POINT = ("arm", "seeds", "step", "compute", "loss", "loss_low", "loss_high")
_DIFFERENCE = ("arm", "seeds", "less_control", "low", "high", "found")


def _empty(names: Sequence[str]) -> dict[str, list[Any]]:
    return {name: [] for name in names}


def _add(columns: dict[str, list[Any]], row: Sequence[Any]) -> None:
    for column, value in zip(columns.values(), row, strict=True):
        column.append(value)


def _half_width(losses: Float64) -> Float64:
    """[p] of the 95 % interval of the mean over seeds by Student's t; NaN for one seed."""
    seeds = len(losses)
    if seeds < 2:
        return np.full(losses.shape[1], math.nan)
    error = losses.std(axis=0, ddof=1) / seeds**0.5
    return np.asarray(_T_95.get(seeds, 2.2) * error, np.float64)


def _differences(
    by_arm: dict[str, list[RunResult]], control: str | None, weights: Float64
) -> dict[str, Difference]:
    if control is None:
        return {}
    of_control = {run.seed: run for run in by_arm[control]}
    found = {}
    for arm, runs in by_arm.items():
        shared = [run for run in runs if run.seed in of_control]
        if arm != control and shared:
            found[arm] = difference(
                np.stack([run.losses() for run in shared]),
                np.stack([of_control[run.seed].losses() for run in shared]),
                weights,
            )
    return found


def _found(apart: Difference) -> str:
    if not apart.over_seeds:
        return f"fewer than {LEAST_SEEDS} seeds: nothing can be said"
    return "better" if apart.is_better else "worse" if apart.is_worse else "no difference found"


def _sentence(arm: str, control: str, apart: Difference) -> str:
    told = f"{apart.mean:+.4f} [{apart.low:+.4f}, {apart.high:+.4f}]"
    if not apart.over_seeds:
        return f"`{arm}` less `{control}`: {told} over rows alone; {_found(apart)}."
    if apart.is_better or apart.is_worse:
        return f"`{arm}` ends {_found(apart)} than `{control}`: {told}."
    return f"`{arm}`: no difference from `{control}` found: {told}."


# --- from what was printed ---


def _of_json(content: Any) -> Curves:
    points, differences = _empty(_POINT), _empty(_DIFFERENCE)
    is_worse = False
    for arm in content["arms"]:
        name, seeds = str(arm["arm"]), int(arm["seeds"])
        for step, loss, compute in zip(arm["steps"], arm["losses"], arm["compute"], strict=True):
            values = (name, seeds, float(step), float(compute), float(loss), None, None)
            _add(points, values)
        apart = arm["against_control"]
        if apart is not None:
            found = Difference(
                mean=float(apart["mean"]), low=float(apart["low"]), high=float(apart["high"]),
                by_seed=[float(v) for v in apart["by_seed"]], over_seeds=bool(apart["over_seeds"]),
            )  # fmt: skip
            row = (name, seeds, found.mean, found.low, found.high, _found(found))
            _add(differences, row)
            is_worse |= name == "recipe" and found.is_worse
    verdict = [str(sentence) for sentence in content["verdict"]]
    return Curves(
        section=_section(points, differences, verdict, has_intervals=False),
        verdict=tuple(verdict),
        is_worse=is_worse,
    )


def _section(
    points: dict[str, list[Any]],
    differences: dict[str, list[Any]],
    verdict: Sequence[str],
    *,
    has_intervals: bool,
) -> Section:
    band = (
        "Bands are intervals of 95 % of the mean over seeds (Student's t)."
        if has_intervals
        else "The printed JSON has no intervals along the curves: name the directory of the "
        "results with --comparison to see them."
    )
    low, high = ("loss_low", "loss_high") if has_intervals else ("", "")
    source = "From the results of `gracekit compare`; there is no SQL behind it."
    findings = {
        f"by_{column}": Finding(
            title=f"Held-out loss over {x_name}",
            good="Lower is better. Where bands overlap widely, seeds differ more than arms do.",
            columns=points,
            chart=Lines(
                x=column,
                x_name=unit,
                y_name="held-out loss, nats a token",
                series=(Series("loss", "loss", low, high),),
                by="arm",
            ),
            notes=(band, source),
            why_empty="No run has a point.",
        )
        for column, x_name, unit in (
            ("step", "optimizer steps", "optimizer steps"),
            ("compute", "compute, selection included", "tokens of training, selection counted too"),
        )
    }
    findings["against_control"] = Finding(
        title="Each arm's loss at the end, less that of the stronger control",
        good="Below zero with its whole interval is better. An interval with zero in it: no "
        "difference was found.",
        columns=differences,
        notes=(*verdict, source),
        why_empty="Neither of the controls `random` and `once` was run, so there is nothing to "
        "compare with.",
    )
    return Section(
        key="comparison",
        title="Trained on what each arm chooses",
        about="The same model from the same start, trained on what several arms choose.",
        findings=findings,
    )
