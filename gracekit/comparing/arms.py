"""The arms that a comparison can name: controls, and selections as changes to the recipe."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gracekit.comparing.bed import Bed
from gracekit.comparing.controls import (
    Draws,
    Full,
    InfoBatch,
    Longest,
    LossTop,
    NearTarget,
    Once,
    Random,
    RandomFixed,
    Stratified,
    clean_rows,
    of_values,
)
from gracekit.errors import RecipeError
from gracekit.recipe import Recipe
from gracekit.training.reading import Redraw

CONTROLS: dict[str, tuple[Callable[[Bed, int], Draws], str]] = {
    "random": (Random, "random rows, drawn anew in every epoch"),
    "once": (Once, "every row once before any comes twice"),
    "full": (Full, "all rows in every epoch, with as many more steps"),
    "random-fixed": (RandomFixed, "the same random rows in every epoch"),
    "stratified": (Stratified, "random rows, as many of every group"),
    "longest": (Longest, "random rows of those with the longest answers"),
    "loss-top": (LossTop, "random rows of those with the highest loss, measured anew"),
    "infobatch": (InfoBatch, "passes without half of the rows below the mean loss (InfoBatch)"),
    "rds": (NearTarget, "random rows of those nearest to the target by hidden states (RDS+)"),
}
"""Name -> (how to make it, what it is)."""
MAY_DIFFER = ("selection", "scoring", "refresh", "propagation", "graph", "target")
"""Sections of the recipe in which an arm of a user's own may differ from the others."""
STRONGEST_CONTROLS = ("random", "once")
"""What a selection has to beat at equal steps."""


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """A selection of gracekit's: the recipe with changes."""

    about: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    redraw: Redraw = "pass"
    """How the trainer draws from a version."""
    needs_target: bool = False
    from_kept: bool = False
    """Whether a version has `compare.keep_share` of the data, from which every epoch is drawn."""
    ends_early: bool = False
    """Whether the training ends where a version advises it, before the steps of the others."""


UNAIMED = {"selection.selector": "balanced", "selection.aim": "none"}
"""The default selector, whatever the recipe has as a target."""
EVERYTHING = {"refresh.max_cost": None, "refresh.min_fraction": 1.0, "refresh.max_fraction": 1.0}
_AIMED = {"selection.selector": "balanced", "selection.aim": "auto"}
_SELECTORS = "gracekit.comparing.selectors"
_INFLUENCE = {
    "scoring.scores": ["influence", "loss"],
    "scoring.importance": "influence",
    **EVERYTHING,
}
OVERLAYS: dict[str, Overlay] = {
    "recipe": Overlay(about="the recipe as it is"),
    "balanced": Overlay(about="the default selector, without a target", changes=UNAIMED),
    "balanced-measured": Overlay(
        about="the default with all rows measured at every refresh",
        changes={**UNAIMED, **EVERYTHING},
    ),
    "balanced-alike": Overlay(
        about="the default with all rows drawn alike (α = 1): graph and time spread alone",
        changes={**UNAIMED, "selection.alpha": 1.0},
    ),
    "balanced-no-graph": Overlay(
        about="the default without spread over the graph",
        changes={
            "selection.selector": f"{_SELECTORS}:WithoutGraph", "selection.weights": "selector",
        },
        redraw="never",
    ),
    "balanced-no-time": Overlay(
        about="the default without spread over time",
        changes={
            "selection.selector": f"{_SELECTORS}:WithoutTime", "selection.weights": "selector",
        },
        redraw="never",
    ),
    "coverage": Overlay(
        about="importance and coverage of the graph, not redrawn",
        changes={"selection.selector": "coverage"},
    ),
    "d2": Overlay(about="D2 pruning, not redrawn", changes={"selection.selector": "d2"}),
    "top": Overlay(about="the most important rows", changes={"selection.selector": "top"}),
    "aimed": Overlay(
        about="the default selector towards the target, by the signals that gain",
        changes=_AIMED,
        needs_target=True,
    ),
    **{
        f"aimed-{aim}": Overlay(
            about=about, changes={**_AIMED, "selection.aim": aim}, needs_target=True
        )
        for aim, about in (
            ("influence", "towards the target by smoothed influence alone"),
            ("likeness", "towards the target by likeness of features alone"),
            ("group", "towards the target by what the groups gain alone"),
            ("round-robin", "each target sample takes its nearest unused row in turn"),
        )
    },
    "aimed-undosed": Overlay(
        about="towards the target, however often a row was used",
        changes={**_AIMED, "selection.dose": 1.0},
        needs_target=True,
    ),
    "aimed-stopped": Overlay(
        about="towards the target, ended where a version advises it (training.stop: stop)",
        changes=_AIMED,
        needs_target=True,
        ends_early=True,
    ),
    "aimed-measured": Overlay(
        about="towards the target, with all rows measured at every refresh",
        changes={**_AIMED, **EVERYTHING},
        needs_target=True,
    ),
    "influence": Overlay(
        about="random rows of those with the highest influence on the target, all measured (LESS)",
        changes={"selection.selector": "top", "selection.weights": "none", **_INFLUENCE},
        needs_target=True,
        from_kept=True,
    ),
    "target-coverage": Overlay(
        about="random rows of those that cover the target by hidden states",
        changes={
            "selection.selector": "target-coverage",
            "selection.importance_weight": 0.0,
            "selection.weights": "none",
            "scoring.features": "hidden-mean",
            **EVERYTHING,
        },
        needs_target=True,
        from_kept=True,
    ),
}  # fmt: skip
"""Name -> changes to the recipe. Budget, seed, store and the training's length are set besides."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of a comparison: a control, or an overlay."""

    name: str
    about: str
    draws: Callable[[Bed, int], Draws] | None = None
    overlay: Overlay | None = None
    is_full: bool = False
    """Whether it takes more steps than the others."""
    is_oracle: bool = False
    """Whether it knows what no selection can know."""

    @property
    def file_name(self) -> str:
        """The name without what a file's name cannot have."""
        return "".join(c if c.isalnum() or c in "-_" else "-" for c in self.name)


def arm_of(name: str, recipe: Recipe) -> Arm:
    """The arm of that name: of the recipe's own, of the tables above, `oracle:C=V` or `clean:C`.

    Raises:
        RecipeError: There is none; the message has the nearest one, or all.
    """
    own = recipe.compare.changes
    if name in own:
        _check_own(name, own[name])
        arm = Arm(name=name, about="changes of the recipe's own", overlay=Overlay(
            about="", changes=own[name]))  # fmt: skip
    elif name in CONTROLS:
        draws, about = CONTROLS[name]
        arm = Arm(name=name, about=about, draws=draws, is_full=name == "full")
    elif name in OVERLAYS:
        arm = Arm(name=name, about=OVERLAYS[name].about, overlay=OVERLAYS[name])
    else:
        arm = _oracle(name) or _unknown(name, own)
    if arm.overlay is not None:
        recipe.override(dict(arm.overlay.changes))  # says what is wrong with them
        if arm.overlay.needs_target and recipe.target is None:
            raise RecipeError(
                f"the arm {name!r} needs a target set; name one in the recipe: "
                "`target: {path: target.jsonl}`"
            )
    return arm


def _check_own(name: str, changes: Mapping[str, Any]) -> None:
    """`RecipeError` for a name that is taken, or changes to what all arms have in common."""
    if name in CONTROLS or name in OVERLAYS or _oracle(name) is not None:
        raise RecipeError(f"compare.changes: {name!r} is an arm already; choose another name")
    others = [key for key in changes if key.partition(".")[0] not in MAY_DIFFER]
    if others:
        raise RecipeError(
            f"compare.changes: the arm {name!r} changes {others[0]!r}, which all arms have in "
            f"common; an arm may differ in {', '.join(MAY_DIFFER)}"
        )


def _oracle(name: str) -> Arm | None:
    kind, _, rest = name.partition(":")
    column, equals, value = rest.partition("=")
    if kind == "clean":
        return Arm(
            name=name,
            about="random rows without marks: knows what is planted",
            draws=lambda bed, seed: Random(bed, seed, clean_rows(bed, rest or None)),
            is_oracle=True,
        )
    if kind == "oracle" and equals:
        return Arm(
            name=name,
            about=f"random rows whose {column} is {value}: knows where they come from",
            draws=lambda bed, seed: Random(bed, seed, of_values(bed, column, value)),
            is_oracle=True,
        )
    return None


def _unknown(name: str, own: Mapping[str, Any]) -> Arm:
    known = [*CONTROLS, *OVERLAYS, *own, "clean", "oracle:COLUMN=VALUE"]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    raise RecipeError(f"compare.arms: there is no arm {name!r}; {hint}")
