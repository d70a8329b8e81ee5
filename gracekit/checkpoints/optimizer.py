"""The Adam state of a checkpoint, given to the parameters of its model.

`optimizer.pt` numbers the parameters and names none, unless the optimizer was given names. Without
names they are matched by the order in which the Trainer of transformers makes its two groups (with
and without weight decay), or by the model's own order, and every shape has to fit. What cannot be
matched is not used, and the reason is told.

The file is read with `weights_only=True` (nothing in it is run) and memory-mapped: the moments are
twice the size of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from gracekit.checkpoints.layouts import OPTIMIZER_FILES
from gracekit.errors import CheckpointError
from gracekit.foreign import foreign, whole_number
from gracekit.types import Json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamState:
    """Moments of the parameters that were matched; implements `protocols.OptimizerState`."""

    parameters: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """id of a parameter -> first and second moment, of its shape, on the CPU."""
    step: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    how: str = ""
    reason: str | None = None
    """Why there is no state; None when there is."""

    def moments(self, parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """First and second moment of a parameter; None where the optimizer has none."""
        return self.parameters.get(id(parameter))

    def facts(self) -> Json:
        """For the manifest header."""
        if self.reason is not None:
            return {"used": False, "reason": self.reason}
        return {
            "used": True,
            "num_parameters": len(self.parameters),
            "matched_by": self.how,
            "step": self.step,
            "betas": list(self.betas),
            "eps": self.eps,
        }


def read_adam_state(directory: Path, model: torch.nn.Module) -> AdamState:
    """The state in a checkpoint directory for a model loaded from it; never raises for its content.

    Where it cannot be used, a warning says why, and so does `reason`.
    """
    try:
        with foreign("the optimizer's state", CheckpointError):
            state = _match(_read(directory), model)
    except CheckpointError as error:
        logger.warning(
            "no Adam direction at %s: %s; plain gradients are used instead", directory.name, error
        )
        return AdamState(reason=str(error))
    logger.info("Adam moments of %d parameters, matched by %s", len(state.parameters), state.how)
    return state


class _UnusableError(CheckpointError):
    """The reason, for a person."""


def _read(directory: Path) -> dict[str, Any]:
    path = next((directory / n for n in OPTIMIZER_FILES if (directory / n).is_file()), None)
    if path is None:
        raise _UnusableError(f"there is no {' or '.join(OPTIMIZER_FILES)} (save_only_model?)")
    with foreign(path.name, _UnusableError):  # damaged archives, forbidden pickles
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict) or not {"state", "param_groups"} <= content.keys():
        raise _UnusableError(f"{path.name} is not the state of a torch optimizer")
    return content


def _match(content: dict[str, Any], model: torch.nn.Module) -> AdamState:
    state, groups = content["state"], content["param_groups"]
    try:
        keys = [key for group in groups for key in group["params"]]
        group, entries = groups[0], [state[key] for key in keys if key in state]
        steps = {int(entry["step"]) for entry in entries}
        moments = {key: (state[key]["exp_avg"], state[key]["exp_avg_sq"]) for key in keys}
        settings = (float(group["betas"][0]), float(group["betas"][1])), float(group["eps"])
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, OverflowError):
        found = state.values() if isinstance(state, dict) else ()
        kinds = sorted({str(k) for entry in found if isinstance(entry, dict) for k in entry})
        raise _UnusableError(
            f"expected Adam's exp_avg and exp_avg_sq for every parameter, found {kinds or 'none'} "
            "(8-bit, Adafactor, SGD and sharded states are not read)"
        ) from None
    if any("max_exp_avg_sq" in entry for entry in entries):
        raise _UnusableError("it is of the variant AMSGrad, which is not read")
    if len(steps) != 1:
        raise _UnusableError(f"its parameters took different numbers of steps: {sorted(steps)[:4]}")
    _require_usable(moments.values(), max(steps), settings)
    named = [name for group in groups for name in group.get("param_names", ())]
    for how, parameters in _orders(model, keys, named):
        shapes = [tuple(moments[key][0].shape) for key in keys]
        if [tuple(p.shape) for p in parameters] == shapes:
            return AdamState(
                parameters={id(p): moments[k] for p, k in zip(parameters, keys, strict=True)},
                step=steps.pop(), betas=settings[0], eps=settings[1], how=how,
            )  # fmt: skip
    raise _UnusableError(
        f"its {len(keys)} parameters fit the model's neither by name nor by order and shape"
    )


def _require_usable(
    moments: Iterable[tuple[Any, Any]], step: int, settings: tuple[tuple[float, float], float]
) -> None:
    """Raise `_UnusableError` for numbers that no run of Adam leaves."""
    (beta1, beta2), eps = settings
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and 0 <= eps < 1 and whole_number(step) is not None):
        raise _UnusableError(
            f"expected betas from 0 to 1, a small eps and a step, found {beta1:g}, {beta2:g}, "
            f"{eps:g} and {repr(step)[:40]}"
        )
    for pair in moments:
        if not all(isinstance(moment, torch.Tensor) and moment.numel() for moment in pair):
            raise _UnusableError("some of its moments are no tensors of numbers")
        if not all(_is_finite(moment) for moment in pair) or pair[1].amin() < 0:
            raise _UnusableError(
                "some of its moments are not finite, or squares below zero: the run has diverged, "
                "or the file is damaged"
            )


def _is_finite(moment: torch.Tensor) -> bool:
    """Without a copy: a NaN is both the smallest and the largest of its tensor."""
    low, high = torch.aminmax(moment)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _orders(
    model: torch.nn.Module, keys: list[Any], names: list[str]
) -> Iterator[tuple[str, list[torch.nn.Parameter]]]:
    """Ways in which the optimizer's parameters may be those of the model, the surest first."""
    of_model = dict(model.named_parameters())
    adapter = {n: p for n, p in of_model.items() if "lora_" in n or ".modules_to_save." in n}
    by_name = _by_end([*of_model], names or [key for key in keys if isinstance(key, str)])
    if len(by_name) == len(keys):
        yield "name", [of_model[name] for name in by_name]
    decayed = set(transformers.Trainer.get_decay_parameter_names(None, model))
    for trained in (adapter, of_model):
        grouped = [n for n in trained if n in decayed] + [n for n in trained if n not in decayed]
        if len(trained) == len(keys) > 0:
            yield "the Trainer's order, and shape", [of_model[n] for n in grouped]
            yield "the model's order, and shape", [*trained.values()]


def _by_end(ours: list[str], theirs: list[str]) -> list[str]:
    """Our name for each of theirs, which wrappers put prefixes before; [] unless all are found."""
    found = []
    for name in theirs:
        plain = name.replace("_orig_mod.", "").replace("_fsdp_wrapped_module.", "")
        fitting = [n for n in ours if plain == n or plain.endswith("." + n)]
        if not fitting:
            return []
        found.append(max(fitting, key=len))
    return found
