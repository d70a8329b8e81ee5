"""Quantised weights: how they are told, which of them can be read, and the way out. No torch.

`config.json` names the method. Where it does not, names and dtypes of the tensors give it away: a
model loaded from them as if they were plain would be another model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gracekit.checkpoints.weights import read_header, weight_files
from gracekit.documents import read_json

DEQUANTISED = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
"""Methods that transformers turns into plain weights as it loads them: name -> its config class."""

_FROM_FULL = "use the full-precision model that it was made from"
_WAYS_OUT = {
    "bitsandbytes": "call model.dequantize() and save_pretrained it, or " + _FROM_FULL,
    "compressed-tensors": "load it with CompressedTensorsConfig(run_compressed=False) and "
    "save_pretrained it, or " + _FROM_FULL,
}

_TELLING_NAMES = (
    (".quant_state.bitsandbytes__", "bitsandbytes"),
    (".weight.absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".qweight", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "fp8"),
    ("_proj_blocks", "mxfp4"),
)
_SMALL_FLOATS = re.compile(r"F[468](_.*)?")
_NO_FLOATS = {"BOOL", "C64", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How a model's weights are quantised."""

    method: str
    """Such as `bitsandbytes`; what transformers calls it, if it is known."""
    is_read: bool
    """Whether loading dequantises them."""

    @property
    def what(self) -> str:
        """For an error message."""
        return f"quantised weights ({self.method})"

    @property
    def way_out(self) -> str:
        """For an error message."""
        return _WAYS_OUT.get(self.method, _FROM_FULL)


def quantisation_of(directory: Path, config: dict[str, Any] | None = None) -> Quantisation | None:
    """What a model directory says of it; None for plain weights.

    Raises ValueError with the reason when config.json or a header makes no sense.

    Args:
        directory: With whole weight files.
        config: Its config.json, where that has been read already.
    """
    config = config or read_json(directory / "config.json")
    settings = config.get("quantization_config") or config.get("compression_config")
    if settings:
        method = None
        if isinstance(settings, dict):
            method = settings.get("quant_method") or _method_by_settings(settings)
        if not isinstance(method, str):
            raise ValueError("config.json has a quantization_config that does not name its method")
        return Quantisation(method, is_read=method in DEQUANTISED)
    for file in weight_files(directory):
        found = _method_in(file, file.stat().st_size, file.stat().st_mtime_ns)
        if found:
            return Quantisation(found, is_read=False)
    return None


def _method_by_settings(settings: dict[str, Any]) -> str:
    """Before quant_method there were only these."""
    is_bitsandbytes = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    return "bitsandbytes" if is_bitsandbytes else "by a method that config.json does not name"


@lru_cache(maxsize=1024)
def _method_in(file: Path, _size: int, _time: int) -> str:
    """What its tensors give away, or nothing; kept while size and time are the same."""
    tensors = read_header(file)
    for part, method in _TELLING_NAMES:
        if any(part in name for name in tensors):
            return method
    for name, tensor in tensors.items():
        dtype = tensor["dtype"]
        is_weight = name.endswith(".weight")
        if _SMALL_FLOATS.fullmatch(dtype) or (dtype in _NO_FLOATS and is_weight):
            return f"{dtype} in {name}"
    return ""
