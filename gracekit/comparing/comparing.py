"""A comparison, start to finish: all runs that are missing, then what came of all.

Recipe ─Bed.make→ rows, start, steps ─runs_of→ Run… ─do_run→ RunResult… → Comparison, page
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gracekit.comparing.arms import Arm, arm_of
from gracekit.comparing.bed import Bed
from gracekit.comparing.comparison import Comparison, compare_results
from gracekit.comparing.evaluation import quiet
from gracekit.comparing.external import Command, check_arm
from gracekit.comparing.metrics import metric_of, try_metric
from gracekit.comparing.page import write_page
from gracekit.comparing.processes import end_left
from gracekit.comparing.recipes import check_selection, check_target
from gracekit.comparing.run_result import RunResult
from gracekit.comparing.runs import RUNNING, Run, alike, code_of, do_run, runs_of
from gracekit.errors import MeasureError, RecipeError, StoreLockedError
from gracekit.files import clear_write_errors, make_directory, remove
from gracekit.recipe import Recipe
from gracekit.refresher.model import rows_of_target
from gracekit.samples import load_samples, loose_hashes
from gracekit.store import acquire_lock
from gracekit.version.program import differences
from gracekit.words import count_of, duration

logger = logging.getLogger("gracekit.comparing")

PAGE = "comparison.html"
FEW_HELD_OUT = 20
"""Held-out rows below which a bootstrap over them is not to be relied on."""


def compare(
    recipe: Recipe,
    output: Path,
    *,
    train: str | None = None,
    report_only: bool = False,
    mix_code: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Comparison:
    """Train what is missing, and compare all.

    Args:
        recipe: All settings; the section `compare` says what is compared.
        output: Directory of the results; runs that are done there are not done again.
        train: A training command of the user's; None: the built-in trainer.
        report_only: Train nothing.
        mix_code: Go on with results that other code made.
        clock: Seconds of a steady clock, for the time left.

    Raises:
        RecipeError: Arms, start, metric or command do not exist, or results are of other settings
            or, with runs missing, of other code.
        DataError: The data or the held-out rows cannot be used.
        MeasureError: A training failed.
        StoreLockedError: Another comparison trains in the directory.
    """
    settings = recipe.compare
    arms = [arm_of(name, recipe) for name in settings.arms]
    _require_own_files(arms)
    command = None if train is None else Command.parse(train)
    metric = None if settings.metric is None else metric_of(settings.metric)
    if output.exists() and not output.is_dir():
        raise RecipeError(f"--output: {output} is a file; name a directory")
    make_directory(output)
    bed = Bed.make(recipe, output / "cache")
    if metric is not None:
        if not len(bed.judges.whole):
            raise RecipeError(
                f"compare.metric: every held-out answer is cut off at {bed.judges.max_length} "
                "tokens, and a cut-off answer cannot be judged; raise max_length of the held-out "
                "rows"
            )
        try_metric(metric, bed.judges, bed.tokenizer)
    for arm in arms:
        if arm.draws is not None:
            arm.draws(bed, 0)  # what is wrong with an arm is said before hours of others
            if arm.name == "rds":
                check_target(bed, recipe, output / "cache")
        else:
            check_selection(bed, arm, output / "cache")
        if command is not None:
            check_arm(bed, arm)
    runs = runs_of(bed, arms, output, command)
    if report_only:
        done = [result for run in runs if (result := run.result()) is not None]
    else:
        with _alone_in(output):
            done = _train_missing(bed, runs, command, output, mix_code=mix_code, clock=clock)
    if not done:
        raise MeasureError(f"there is no result in {output} yet; run without --report-only")
    found = compare_results(
        done,
        arms,
        average=settings.average,
        metric=settings.metric,
        missing=len(runs) - len(done),
        remarks=_remarks(bed, done, arms, command),
    )
    return write_page(found, output / PAGE)


def _train_missing(
    bed: Bed,
    runs: list[Run],
    command: Command | None,
    output: Path,
    *,
    mix_code: bool,
    clock: Callable[[], float],
) -> list[RunResult]:
    """The results of all runs, of which those that are missing are made."""
    for work in sorted(output.glob(f"*{RUNNING}")):
        end_left(work)
    results = {run.file: run.result() for run in runs}
    waiting = [run for run in runs if results[run.file] is None]
    done = [result for result in results.values() if result is not None]
    if waiting:
        _require_same_code(done, code_of(bed.recipe, command), output, allowed=mix_code)
    for run in runs:
        if results[run.file] is not None:
            remove(run.work)  # a kill between the result and this left it
    left = _TimeLeft(waiting, clock)
    for number, run in enumerate(waiting, start=1):
        name = f"run {number} of {len(waiting)}: {run.arm.name}, seed {run.seed}"
        logger.info("%s", name)
        with quiet():
            result = do_run(bed, run, command, left.reporter(run, name))
        _require_difference(result, done, run, is_command=command is not None)
        done.append(result)
        left.finished(run)
    return done


@contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    """Be the only comparison that trains in a directory.

    Raises:
        StoreLockedError: Another one does.
    """
    with clear_write_errors(output):
        lock = FileLock(str(output / ".lock"), thread_local=False)
        try:
            acquire_lock(lock, timeout=0)
        except Timeout:
            raise StoreLockedError(
                f"another comparison trains in {output}: wait for it or stop it, or name another "
                "--output"
            ) from None
    try:
        yield
    finally:
        lock.release()


def _require_own_files(arms: Sequence[Arm]) -> None:
    """`RecipeError` where the results of two arms would be one file."""
    names: dict[str, str] = {}
    for arm in arms:
        other = names.setdefault(arm.file_name.lower(), arm.name)
        if other != arm.name:
            raise RecipeError(
                f"compare.arms: the results of {other!r} and {arm.name!r} would have the same file "
                "names; compare them in two directories, or call one of the arms otherwise"
            )


def _require_difference(
    result: RunResult, before: list[RunResult], run: Run, *, is_command: bool
) -> None:
    """`MeasureError` where a run ended with the weights of another; its file is removed."""
    problem = alike(result, before)
    if problem is not None and is_command:
        run.file.unlink()
        raise MeasureError(f"{problem}. Use {{subset}} and {{seed}} in the training command")


def _require_same_code(
    done: list[RunResult], ours: dict[str, str], output: Path, *, allowed: bool
) -> None:
    """`RecipeError` where results that are there were made by other code, unless that is allowed.

    An upgrade in the middle of a comparison may change what an arm draws or how it is trained.
    """
    others = [result for result in done if result.program != ours]
    if not others or allowed:
        return
    first = others[0]
    what = "; ".join(differences(first.program, ours)) or "it had classes of your own besides"
    if not first.program:
        what = "which code that was is not noted: an earlier gracekit"
    raise RecipeError(
        f"{len(others)} of {count_of(len(done), 'result')} in {output} were made by other code "
        f"than this (`{first.arm}`, seed {first.seed}: {what}). What differs between arms might be "
        "the code: go on with the code that made them, name another --output to start afresh, or "
        "allow both codes with --mix-code"
    )


def _codes(done: list[RunResult]) -> str:
    """What to know of results that were made by several codes; empty where it was one."""
    names: dict[str, list[str]] = {}
    for result in done:
        name = "an earlier gracekit, not noted"
        if result.program:
            name = ", ".join(f"{part} {value}" for part, value in result.program.items())
        names.setdefault(name, []).append(f"{result.arm} {result.seed}")
    if len(names) < 2:
        return ""
    told = "; ".join(f"{code}: {', '.join(runs)}" for code, runs in names.items())
    return (
        f"These runs were made by {len(names)} codes, and a difference between arms may be theirs. "
        f"By code, arm and seed: {told}."
    )


def _remarks(
    bed: Bed, done: list[RunResult], arms: Sequence[Arm], command: Command | None
) -> list[str]:
    num_steps = bed.num_steps if command is None else bed.num_steps_at_once
    remarks = [remark for result in done for remark in result.remarks]
    settings = bed.recipe.compare
    passes = settings.epochs * bed.num_drawn / len(bed.pool)
    remarks.append(
        f"{count_of(settings.epochs, 'epoch')} of {bed.num_drawn:,} rows from {len(bed.pool):,} "
        f"({passes:.2f} passes over the pool), {num_steps:,} steps of {settings.batch_size}; "
        f"{len(bed.judges.rows):,} held-out rows."
    )
    if len(bed.judges.rows) < FEW_HELD_OUT:
        remarks.append(
            f"{count_of(len(bed.judges.rows), 'held-out row')} can hardly tell arms apart: an "
            "interval over so few is too narrow. Hold out more."
        )
    remarks += filter(None, [_codes(done), _judged_by_target(bed)])
    if bed.num_overlap:
        remarks.append(
            f"{bed.num_overlap:,} of {count_of(len(bed.judges.rows), 'held-out row')} are in the "
            "data too: arms that train on them are judged too well."
        )
    remarks += _same_trainings(done)
    if bed.recipe.refresh.max_cost is not None and command is None:
        remarks += filter(None, (_unmeasured(arm, done) for arm in arms))
    for name, marked in bed.marks.items():
        remarks.append(f"{marked[bed.pool].mean():.1%} of the pool is marked by {name!r}.")
    return list(dict.fromkeys(remarks))


def _same_trainings(done: list[RunResult]) -> list[str]:
    """Pairs of arms that are one training under two names, under some seed."""
    pairs: dict[tuple[str, str], list[int]] = {}
    by_weights: dict[tuple[int, str], str] = {}
    for result in done:
        if result.weights_digest:
            first = by_weights.setdefault((result.seed, result.weights_digest), result.arm)
            if first != result.arm:
                pairs.setdefault((first, result.arm), []).append(result.seed)
    return [
        f"`{first}` and `{second}` are the very same training under "
        f"{count_of(len(seeds), 'seed')}: there is nothing to compare between them."
        for (first, second), seeds in pairs.items()
    ]


def _judged_by_target(bed: Bed) -> str:
    """What to know where held-out rows are what a selection is aimed at; empty where none is."""
    target = bed.recipe.target
    if target is None:
        return ""
    held_out = loose_hashes(bed.judges.raw)[bed.judges.rows].tolist()
    if target.group is None:
        known = set(loose_hashes(load_samples(target)).tolist())
    else:
        rows = rows_of_target(bed.raw, target.group, target.group_count, ())
        known = set(loose_hashes(bed.raw)[rows].tolist())
    num_both = sum(content in known for content in held_out)
    if not num_both:
        return ""
    return (
        f"{num_both:,} of {count_of(len(held_out), 'held-out row')} are target samples: selections "
        "towards the target have looked at them, so they are judged too well."
    )


def _unmeasured(arm: Arm, done: list[RunResult]) -> str:
    """What to know of a selection that measured nothing; empty of any other arm."""
    spent = [result.points[-1].selection_tokens for result in done if result.arm == arm.name]
    nothing = sum(tokens == 0 for tokens in spent)
    if arm.overlay is None or not nothing:
        return ""
    return (
        f"`{arm.name}` measured nothing in {nothing} of {count_of(len(spent), 'run')}, so it knew "
        "no norm and nothing of gradients: refresh.max_cost allows no measuring in so short a "
        "training."
    )


class _TimeLeft:
    """Says how long all runs that are missing will take, by the steps done so far."""

    def __init__(self, runs: list[Run], clock: Callable[[], float]) -> None:
        self._clock, self._began = clock, clock()
        self._all = sum(run.num_steps for run in runs)
        self._finished = 0

    def reporter(self, run: Run, name: str) -> Callable[[int], None]:
        """For one run: called with its step after each look at the held-out rows."""

        def report(step: int) -> None:
            steps = self._finished + step
            passed = self._clock() - self._began
            left = ""
            if 0 < steps < self._all:
                left = f"; {duration(passed * (self._all - steps) / steps)} left"
            logger.info("%s: step %d of %d%s", name, step, run.num_steps, left)

        return report

    def finished(self, run: Run) -> None:
        """A run is done."""
        self._finished += run.num_steps
