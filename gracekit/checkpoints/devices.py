"""Which device and dtype a recipe's words mean here."""

from __future__ import annotations

import torch

from gracekit.errors import RecipeError
from gracekit.recipe.sections import SPLIT


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, `cuda:1` or `mps` means here; of `split` the first.

    Raises `RecipeError` for a device that torch does not know or does not find.
    """
    if device == SPLIT:
        if not torch.cuda.device_count():
            raise RecipeError(
                f"scoring.device is {SPLIT}, and torch {torch.__version__} finds no GPU here to "
                "split the model over; use auto or cpu"
            )
        return torch.device("cuda", 0)
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise RecipeError(
            f"scoring.device: {device!r} is no device; use auto, cpu, cuda, cuda:1, mps or split"
        ) from None
    num_found = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(found.type, 0)
    if (found.index or 0) >= num_found:
        raise RecipeError(
            f"scoring.device: torch {torch.__version__} finds no {device} here "
            f"({found.type} devices found: {num_found}); use auto or cpu"
        )
    return found


def devices_for(device: str, processes: int | None) -> list[str]:
    """Device of each process: all visible GPUs for `auto` and `cuda`, else the same for all.

    With `split` it is one process.

    Raises `RecipeError` as `resolve_device`, and for more processes than GPUs.
    """
    found = resolve_device(device)
    if device == SPLIT:
        return [SPLIT]
    if found.type != "cuda" or ":" in str(found):
        return [str(found)] * (processes or 1)
    num_gpus = torch.cuda.device_count()
    if processes is not None and processes > num_gpus:
        raise RecipeError(
            f"scoring.processes is {processes}, and torch finds {num_gpus} GPUs here; leave it out"
        )
    return [f"cuda:{index}" for index in range(processes or num_gpus)]


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of the weights: `auto` is bfloat16 on a GPU and float32 on a CPU."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in dtypes:
        raise RecipeError(f"scoring.dtype: {dtype!r}; use auto, {', '.join(dtypes)}")
    return dtypes[dtype]
