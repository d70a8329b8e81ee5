"""Per-sample gradients of an independent library, Opacus, beside ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from peft import LoraConfig, get_peft_model

from gracekit.model_pass.batches import TokenBatch
from gracekit.model_pass.gradient_scores import GradientNorm, GradientNormLast, LoraGradientNorm
from gracekit.model_pass.layers import linear_layers
from gracekit.protocols import Scorer
from tests.test_scoring_pass import CPU, RELATIVE, make_samples, run, tiny

CASES = {
    "all layers": ("llama", GradientNorm, False),
    "tied, with biases": ("llama-tied-bias", GradientNorm, False),
    "last blocks": ("llama", GradientNormLast, False),
    "full gradient under LoRA": ("llama", GradientNorm, True),
    "adapter alone": ("llama", LoraGradientNorm, True),
}


def norms_by_opacus(model: Any, scorer: Scorer, batch: TokenBatch) -> torch.Tensor:
    """float64 [B] over the layers that the scorer reads."""
    from opacus import GradSampleModule

    model.requires_grad_(False)
    read = [layer for layer in linear_layers(model) if scorer.wants(layer)]
    for layer in read:
        layer.module.requires_grad_(True)
    model.train()  # Opacus listens in training only; nothing here has dropout
    wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=False)
    logits = wrapped(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).logits[batch.target_sample, batch.target_position]
    token_loss = F.cross_entropy(logits, batch.target_ids, reduction="none")
    loss = (token_loss / batch.num_targets[batch.target_sample]).sum()
    torch.autograd.backward(loss)
    squares = torch.zeros(len(batch.num_targets), dtype=torch.float64)
    for layer in read:
        for parameter in layer.module.parameters(recurse=False):
            of_sample: Any = parameter.grad_sample  # type: ignore[attr-defined]
            squares += of_sample.double().flatten(1).square().sum(1)
    wrapped.to_standard_module()
    return squares.sqrt()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_norms_are_those_of_opacus(case: str) -> None:
    name, scorer_class, with_adapter = CASES[case]
    model = tiny(name)
    if with_adapter:
        config = LoraConfig(r=3, target_modules=["q_proj", "v_proj", "down_proj"])
        peft = get_peft_model(model, config).eval()
        with torch.no_grad():
            for key, parameter in peft.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(0, 0.3)
        model = peft.get_base_model()
    samples = make_samples()
    scorer = scorer_class()
    (found,) = run(model, [scorer], samples)
    expected = norms_by_opacus(model, scorer, TokenBatch.pack(samples, CPU))
    torch.testing.assert_close(found.double(), expected, rtol=RELATIVE, atol=0)
