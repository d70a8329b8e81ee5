"""Hidden states and logits at target positions, without the logits of all the others.

B samples, T positions, D hidden width, V vocabulary, M target positions.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from gracekit.errors import MeasureError
from gracekit.model_pass.batches import TokenBatch
from gracekit.model_pass.layers import decoder_body, output_head
from gracekit.protocols import Batch

PROBE_TOKENS = 16
"""Length to which a sample is cut or repeated for the check that the split is equal."""
CHECKED_LOGITS = 100.0
"""Size to which the check scales the raw logits up, so that a soft cap on them shows."""


class Readout(Protocol):
    """Runs the model up to what the logits of a target position are computed from."""

    def forward(
        self, batch: Batch, *, with_logits: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(source [M, ...], last hidden states [M, D]) at the target positions.

        Without logits both are the hidden states, and the head is not run.
        """

    def logits(self, source: torch.Tensor) -> torch.Tensor:
        """float32 [m, V] of some positions of the source."""


class SplitReadout:
    """Body alone, then the head at target positions only.

    The body gets no attention mask: padding is on the right, where no real token of a causal model
    looks, and attention kernels are fastest without one. `choose_readout` proves both steps.
    """

    def __init__(self, model: Any) -> None:
        self._body, self._head = decoder_body(model), output_head(model)
        config = model.config
        self._scale = (
            (getattr(config, "logit_scale", None) or 1.0)
            * (getattr(config, "lm_head_multiplier", None) or 1.0)
            / (getattr(config, "logits_scaling", None) or 1.0)
        )
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)

    def forward(
        self, batch: Batch, *, with_logits: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states are the source, whether or not logits are made of them."""
        output = self._body(input_ids=batch.input_ids, use_cache=False, return_dict=True)
        hidden = output.last_hidden_state[batch.target_sample, batch.target_position]
        return hidden, hidden

    def logits(self, source: torch.Tensor) -> torch.Tensor:
        """The head, then the scale or soft cap that the model's config names."""
        logits: torch.Tensor = self._head(source).float()
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits


class _HeadReachedError(Exception):
    """Ends a forward pass before the head."""


class FullReadout:
    """The whole model as it is: for architectures whose logits the split does not reproduce."""

    def __init__(self, model: Any) -> None:
        self._model, self._head = model, output_head(model)

    def forward(
        self, batch: Batch, *, with_logits: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits are the source; the hidden states are what the head was given."""
        seen: list[torch.Tensor] = []

        def see(_head: torch.nn.Module, args: Any) -> None:
            seen.append(args[0])
            if not with_logits:
                raise _HeadReachedError

        hook = self._head.register_forward_pre_hook(see)
        try:
            logits = self._model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                use_cache=False,
                return_dict=True,
            ).logits
        except _HeadReachedError:
            logits = seen[-1]
        finally:
            hook.remove()
        places = batch.input_ids.shape
        if not seen or seen[-1].shape[:2] != places or logits.shape[:2] != places:
            raise MeasureError(
                f"cannot read {type(self._model).__name__}: expected its head to map hidden states "
                f"{tuple(places)} to logits of the same positions, found logits "
                f"{tuple(logits.shape)}; this architecture is not supported"
            )
        at_targets = batch.target_sample, batch.target_position
        return logits[at_targets], seen[-1][at_targets]

    def logits(self, source: torch.Tensor) -> torch.Tensor:
        """They are there already."""
        return source.float()


@torch.no_grad()
def choose_readout(model: Any, batch: Batch) -> Readout | None:
    """The split readout if it gives the model's own logits, else the full one.

    Both run on a few tokens of two samples of the batch, one padded. A hook scales the head's
    output up in both, so that a cap or clamp of which the split knows nothing shows. None when the
    model gives nothing finite for these samples, so that nothing can be told.
    """
    full, split, probe = FullReadout(model), SplitReadout(model), _probe_batch(batch)
    if decoder_body(model) is model:
        return full
    largest = float(full.forward(probe)[0].abs().max())
    if not 0 < largest < float("inf"):
        return None
    hook = output_head(model).register_forward_hook(
        lambda _module, _args, output: output * (CHECKED_LOGITS / largest)
    )
    try:
        expected = full.logits(full.forward(probe)[0])
        found = split.logits(split.forward(probe)[0])
    except (AttributeError, TypeError):  # a body that takes or returns something else
        return full
    finally:
        hook.remove()
    is_single = next(model.parameters()).dtype == torch.float32
    tolerance = (1e-4 if is_single else 0.05) * float(expected.abs().max())
    return split if bool((found - expected).abs().max() <= tolerance) else full


def _probe_batch(batch: Batch) -> TokenBatch:
    """The first tokens of the first and the last sample, over again if few; all are targets."""
    lengths = batch.attention_mask.sum(1)
    samples = []
    for i, length in ((0, PROBE_TOKENS), (-1, 2 * PROBE_TOKENS // 3)):
        ids = batch.input_ids[i, : int(lengths[i])].cpu().numpy().astype(np.int32)
        samples.append((np.resize(ids, length), np.ones(length, np.bool_)))
    return TokenBatch.pack(samples, batch.input_ids.device)
