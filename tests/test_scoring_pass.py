"""The shared pass against plain autograd, one sample at a time."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gracekit.errors import MeasureError
from gracekit.model_pass import model_pass
from gracekit.model_pass.batches import TokenBatch
from gracekit.model_pass.features import HiddenMean
from gracekit.model_pass.ghost import (
    gram,
    gram_is_cheaper,
    squares_from_grams,
    squares_from_product,
)
from gracekit.model_pass.gradient_scores import GradientNorm, GradientNormLast
from gracekit.model_pass.layers import decoder_body, linear_layers, output_head
from gracekit.model_pass.model_pass import ModelPass
from gracekit.model_pass.readout import FullReadout, SplitReadout, choose_readout
from gracekit.model_pass.token_scores import Loss
from gracekit.protocols import Batch, Layer, Reader, Targets
from gracekit.types import Bool, Int32
from tests.families import CONFIGS, DENSE, EXPERTS, HYBRID, REFUSED, UNSPLIT

RELATIVE = 1e-4
"""Bound of every comparison in float32."""
CPU = torch.device("cpu")
Sample = tuple[Int32, Bool]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny(name: str) -> Any:
    """A random model whose weights are large enough for the layers to matter."""
    torch.manual_seed(5)
    config = deepcopy(CONFIGS[name])  # a model's settings are those of its config
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_samples(lengths: tuple[int, ...] = (11, 9, 6, 2), seed: int = 0) -> list[Sample]:
    """Random tokens; masks with a prompt, gaps and, in the first, a trailing run without loss."""
    random = np.random.default_rng(seed)
    samples = []
    for length in lengths:
        mask = random.random(length) < 0.6
        mask[: length // 3] = False
        mask[-1] = True
        samples.append((random.integers(3, 89, length).astype(np.int32), mask))
    samples[0][1][-3:] = False
    samples[0][1][4] = True
    return samples


def run(model: Any, readers: list[Reader], samples: list[Sample]) -> list[torch.Tensor]:
    with ModelPass(model, readers) as opened:
        return opened.run(TokenBatch.pack(samples, CPU))


def mean_loss(model: Any, sample: Sample) -> torch.Tensor:
    """The loss as transformers computes it from labels."""
    ids = torch.from_numpy(sample[0].astype(np.int64))[None]
    labels = torch.where(torch.from_numpy(sample[1])[None], ids, -100)
    loss: torch.Tensor = model(input_ids=ids, labels=labels).loss
    return loss


@torch.no_grad()
def last_hidden(model: Any, sample: Sample) -> torch.Tensor:
    """What the head is given, [T, D]."""
    seen: list[torch.Tensor] = []
    hook = output_head(model).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(input_ids=torch.from_numpy(sample[0].astype(np.int64))[None])
    hook.remove()
    return seen[0][0]


def exact_norm(model: Any, sample: Sample, keep: Any = lambda name: True) -> float:
    """Root of the summed squares of the gradients of the body's linear layers, in float64.

    That is, of all parameters of every module that has a matrix and is no embedding or
    convolution.
    """
    body, head = decoder_body(model), output_head(model)
    no_linear = (torch.nn.Embedding, torch.nn.modules.conv._ConvNd)
    model.requires_grad_(True).zero_grad(set_to_none=True)
    mean_loss(model, sample).backward()  # type: ignore[no-untyped-call]
    parameters = {
        parameter
        for name, module in body.named_modules()
        if not isinstance(module, no_linear) and module is not head
        if any(p.ndim > 1 and p.grad is not None for p in module.parameters(recurse=False))
        if keep(name)
        for parameter in module.parameters(recurse=False)
    }
    squares = [float(p.grad.double().square().sum()) for p in parameters if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return float(np.sqrt(sum(squares)))


@pytest.mark.parametrize("name", DENSE | EXPERTS | HYBRID)
def test_pass_equals_autograd_sample_by_sample(name: str) -> None:
    model, samples = tiny(name), make_samples()
    norms, losses, features = run(model, [GradientNorm(), Loss(), HiddenMean()], samples)
    for i, sample in enumerate(samples):
        assert losses[i].item() == pytest.approx(mean_loss(model, sample).item(), rel=RELATIVE)
        assert norms[i].item() == pytest.approx(exact_norm(model, sample), rel=RELATIVE)
        predicting = torch.from_numpy(np.flatnonzero(sample[1][1:]))
        expected = last_hidden(model, sample)[predicting].mean(0)
        torch.testing.assert_close(features[i], expected, rtol=RELATIVE, atol=1e-5)


@pytest.mark.parametrize(
    "name", [*(n for n in DENSE if n not in UNSPLIT), "mixtral", "gpt-oss", "mamba2"]
)
def test_split_readout_gives_the_models_own_logits(name: str) -> None:
    model = tiny(name)
    batch = TokenBatch.pack(make_samples(), CPU)
    readout = choose_readout(model, batch)
    assert isinstance(readout, SplitReadout)
    with torch.no_grad():
        found = readout.logits(readout.forward(batch)[0])
        expected = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    expected = expected[batch.target_sample, batch.target_position]
    torch.testing.assert_close(found, expected, rtol=RELATIVE, atol=1e-4)


def capped_llama(cap: float) -> Any:
    """A model that caps its logits in a way that its config does not tell."""
    model = tiny("llama")
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output.logits = torch.tanh(output.logits / cap) * cap
        return output

    model.forward = forward
    return model


def test_unknown_logits_fall_back_to_the_whole_model() -> None:
    model, samples = capped_llama(30.0), make_samples()
    batch = TokenBatch.pack(samples, CPU)
    assert isinstance(choose_readout(model, batch), FullReadout)
    norms, features = run(model, [GradientNorm(), HiddenMean()], samples)
    expected_features = run(tiny("llama"), [HiddenMean()], samples)[0]
    torch.testing.assert_close(features, expected_features)
    for norm, (ids, mask) in zip(norms, samples, strict=True):
        logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1]
        chosen = torch.from_numpy(mask[1:])
        loss = torch.nn.functional.cross_entropy(
            logits[chosen], torch.from_numpy(ids[1:].astype(np.int64))[chosen]
        )
        weights = [layer.module.weight for layer in linear_layers(model)]
        gradients = torch.autograd.grad(loss, weights)  # type: ignore[arg-type]
        exact = sum(float(g.double().square().sum()) for g in gradients) ** 0.5
        assert norm.item() == pytest.approx(exact, rel=RELATIVE)


def test_check_of_the_split_waits_for_finite_samples() -> None:
    model, samples = tiny("llama"), make_samples()
    with torch.no_grad():
        model.get_input_embeddings().weight[samples[0][0][0]] = float("nan")
    assert choose_readout(model, TokenBatch.pack(samples, CPU)) is None


def test_logits_in_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = tiny("gemma2"), make_samples((14, 12, 9, 8, 5, 4))
    readers: list[Reader] = [GradientNorm(), Loss(), HiddenMean()]
    whole = run(model, readers, samples)
    monkeypatch.setattr(model_pass, "LOGITS_AT_ONCE", 89 * 7)
    seen: list[torch.Tensor] = []

    class Spy(Reader):
        def on_targets(self, batch: Batch, targets: Targets) -> None:
            seen.append(targets.sample)

        def finish(self, batch: Batch) -> torch.Tensor:
            return batch.zeros()

    pieces = run(model, [*readers, Spy()], samples)
    assert len(seen) > 1
    assert sum(len(set(s.tolist())) for s in seen) == len(samples)
    for a, b in zip(whole, pieces, strict=False):
        torch.testing.assert_close(a, b, rtol=RELATIVE, atol=1e-6)


class BlockNorm(GradientNorm):
    """Gradient norm of the blocks from one on: what a cheap mode is made of."""

    def __init__(self, first: int) -> None:
        self.first = first

    def wants(self, layer: Layer) -> bool:
        return layer.block >= self.first


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
def test_graph_begins_where_the_first_reader_needs_it(name: str) -> None:
    model, samples = tiny(name), make_samples()
    exact = [
        [exact_norm(model, s, lambda n, f=first: int(n.split(".")[1]) >= f) for s in samples]
        for first in (0, 1, 2)
    ]
    alone = run(model, [BlockNorm(2)], samples)[0]
    together = run(model, [BlockNorm(1), GradientNorm(), BlockNorm(2)], samples)
    for found, expected in zip([alone, *together], [exact[i] for i in (2, 1, 0, 2)], strict=True):
        np.testing.assert_allclose(found, expected, rtol=RELATIVE)

    with ModelPass(model, [BlockNorm(2)]) as opened:
        first_block: Any = decoder_body(model).get_submodule(linear_layers(model)[0].block_name)
        outputs: list[torch.Tensor] = []
        hook = first_block.register_forward_hook(
            lambda _m, _a, out: outputs.append(out if torch.is_tensor(out) else out[0])
        )
        opened.run(TokenBatch.pack(samples, CPU))
        hook.remove()
    assert not outputs[-1].requires_grad


def test_without_gradient_readers_nothing_is_differentiated() -> None:
    model = tiny("llama")
    outputs: list[torch.Tensor] = []
    decoder_body(model).register_forward_hook(
        lambda _m, _a, out: outputs.append(out.last_hidden_state)
    )
    run(model, [Loss()], make_samples())
    assert not any(o.requires_grad for o in outputs)


@pytest.mark.parametrize("shared", ["module", "weight"])
def test_weight_used_twice_counts_once_with_its_whole_gradient(shared: str) -> None:
    model, samples = tiny("llama"), make_samples()
    blocks = model.model.layers
    if shared == "module":
        blocks[2].mlp = blocks[0].mlp
    else:
        blocks[2].mlp.up_proj.weight = blocks[0].mlp.up_proj.weight
    found = run(model, [GradientNorm()], samples)[0]
    exact = [exact_norm(model, s) for s in samples]
    np.testing.assert_allclose(found, exact, rtol=RELATIVE)
    apart = run(tiny("llama"), [GradientNorm()], samples)[0]
    assert abs(apart[0].item() / exact[0] - 1) > 0.01


class BiasesOnly(GradientNorm):
    """Only what `on_bias` gets, of one layer in each block."""

    def wants(self, layer: Layer) -> bool:
        return layer.name.endswith("up_proj")

    def on_layer(
        self, batch: Batch, layer: Layer, inputs: torch.Tensor, gradients: torch.Tensor
    ) -> None:
        self._num_layers += 1


@pytest.mark.parametrize("shared", ["none", "weight", "one-bias", "bias", "both", "crossed"])
def test_weights_and_biases_are_shared_independently(shared: str) -> None:
    model, samples = tiny("llama-tied-bias"), make_samples()
    first, middle, last = (block.mlp.up_proj for block in model.model.layers)
    if shared in ("weight", "one-bias", "both", "crossed"):
        last.weight = first.weight
    if shared == "one-bias":
        first.bias = None  # of the layer that the backward pass meets last
    elif shared in ("bias", "both"):
        last.bias = first.bias
    elif shared == "crossed":
        last.bias = middle.bias
    found = run(model, [BiasesOnly()], samples)[0]
    biases = list({each.bias for each in (first, middle, last) if each.bias is not None})
    for i, sample in enumerate(samples):
        gradients = torch.autograd.grad(mean_loss(model, sample), biases)
        exact = sum(float(g.double().square().sum()) for g in gradients) ** 0.5
        assert found[i].item() == pytest.approx(exact, rel=RELATIVE)


def test_a_sample_scores_the_same_in_any_company() -> None:
    model = tiny("llama")
    samples = make_samples((17, 13, 9, 9, 5, 3))
    readers: list[Reader] = [GradientNorm(), Loss(), HiddenMean()]
    for i in range(len(samples)):
        alone = run(model, readers, [samples[i]])
        company = run(model, readers, [samples[j] for j in (0, i, 3)])
        for a, b in zip(alone, company, strict=True):
            torch.testing.assert_close(a[0], b[1], rtol=RELATIVE, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "llama-tied-bias", "gemma3", "gpt2", "opt", "mixtral"])
def test_other_attention_and_checkpointing_change_nothing(name: str) -> None:
    model, samples = tiny(name), make_samples()
    readers: list[Reader] = [GradientNorm(), Loss(), HiddenMean()]
    found = {}
    for kernel in ("sdpa", "eager"):
        model.set_attn_implementation(kernel)
        found[kernel] = run(model, readers, samples)
    model.gradient_checkpointing_enable()
    found["checkpointing"] = run(model.train(), readers, samples)
    for results in found.values():
        for a, b in zip(results, found["sdpa"], strict=True):
            torch.testing.assert_close(a, b, rtol=RELATIVE, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.02)], ids=str
)
def test_half_precision_stays_close(dtype: torch.dtype, bound: float) -> None:
    model, samples = tiny("llama"), make_samples((30, 20, 12, 12))
    readers: list[Reader] = [GradientNorm(), Loss()]
    exact = run(model, readers, samples)
    found = run(model.to(dtype), readers, samples)
    for a, b in zip(exact, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=bound)


def test_small_gradients_do_not_vanish_in_float16() -> None:
    """With a flat head most gradients lie below float16's smallest number."""
    model = tiny("llama")
    sample = make_samples((40,))[0]
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-5)
    model.half()
    found = run(model, [GradientNorm()], [sample])[0]
    exact = run(model.float(), [GradientNorm()], [sample])[0]
    np.testing.assert_allclose(found, exact, rtol=0.05)


def test_both_ways_to_a_norm_agree() -> None:
    torch.manual_seed(0)
    inputs, gradients = torch.randn(3, 7, 12), torch.randn(3, 7, 5)
    exact = torch.einsum("bpi,bpo->bio", inputs.double(), gradients.double()).square().sum((1, 2))
    by_gram = squares_from_grams(gram(inputs), gram(gradients))
    torch.testing.assert_close(by_gram.double(), exact, rtol=1e-5, atol=0)
    by_product = squares_from_product(inputs, gradients)
    torch.testing.assert_close(by_product.double(), exact, rtol=1e-5, atol=0)
    assert gram_is_cheaper(4, 64, 64)
    assert not gram_is_cheaper(64, 64, 64)


def test_norms_of_bfloat16_tensors_are_added_up_in_float32() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(4, 200, 64).bfloat16()
    gradients = (torch.randn(4, 200, 96) * 1e-6).bfloat16()
    exact = torch.einsum("bpi,bpo->bio", inputs.double(), gradients.double()).square().sum((1, 2))
    for found in (
        squares_from_grams(gram(inputs), gram(gradients)),
        squares_from_product(inputs, gradients),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=5e-3, atol=0)


def test_model_is_given_back_as_it_was() -> None:
    model = tiny("llama").train()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    readers: list[Reader] = [GradientNorm(), HiddenMean()]
    with ModelPass(model, readers) as opened:
        opened.run(TokenBatch.pack(make_samples(), CPU))
        assert not any(p.requires_grad for p in model.parameters())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (name, why)
        for name, why in {
            "llama4": r"only .*% of the weights .*experts",
            "gpt-oss": r"only .*% of the weights .*experts",
            "mamba": "uses the weight of layers.0.mixer.dt_proj without calling",
            "jamba": "uses the weight of layers.0.mamba.dt_proj without calling",
        }.items()
        if name in REFUSED
    ],
)
def test_families_that_cannot_be_read_are_refused(name: str, why: str) -> None:
    model = tiny(name)
    for scorer in (GradientNorm(), GradientNormLast()):
        with pytest.raises(MeasureError, match=why.replace("layers.0", r"layers.\d")):
            run(model, [scorer], make_samples())
    losses, _ = run(model, [Loss(), HiddenMean()], make_samples())
    assert torch.isfinite(losses).all()


class Turned(torch.nn.Module):
    """Gives its layers the tokens in an order that only it knows."""

    def __init__(self, mlp: torch.nn.Module, *, by_product: bool) -> None:
        super().__init__()
        self.mlp, self.by_product = mlp, by_product

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.flatten(0, 1)
        turn = torch.eye(len(flat)).flip(0)
        turned: torch.Tensor = self.mlp(turn @ flat if self.by_product else flat.flip(0))
        return (turn.T @ turned).view_as(hidden)


@pytest.mark.parametrize("by_product", [False, True])
def test_layers_over_tokens_in_unknown_order_are_refused(by_product: bool) -> None:
    model = tiny("llama")
    model.model.layers[1].mlp = Turned(model.model.layers[1].mlp, by_product=by_product)
    with pytest.raises(MeasureError, match=r"layers.1.mlp.mlp.gate.*cannot be told"):
        run(model, [GradientNorm()], make_samples())
    for module in model.modules():
        assert not module._forward_hooks


def test_hooks_that_change_what_goes_in_and_out_are_seen_through() -> None:
    model, samples = tiny("llama"), make_samples()
    layer = model.model.layers[1].mlp.up_proj
    layer.register_forward_pre_hook(lambda _module, args: (args[0] * 0.5,))
    layer.register_forward_hook(lambda _module, _args, output: output * 3)
    found = run(model, [GradientNorm()], samples)[0]
    np.testing.assert_allclose(found, [exact_norm(model, s) for s in samples], rtol=RELATIVE)


def test_inputs_overwritten_after_the_layer_are_refused() -> None:
    model = tiny("llama")

    class Overwriting(torch.nn.Module):
        def __init__(self, mlp: Any) -> None:
            super().__init__()
            self.mlp = mlp

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            own = hidden.clone()
            output: torch.Tensor = self.mlp.up_proj(own)
            own.mul_(2)
            return self.mlp.down_proj(output) + own  # type: ignore[no-any-return]

    model.model.layers[1].mlp = Overwriting(model.model.layers[1].mlp)
    with pytest.raises(MeasureError, match="overwritten"):
        run(model, [GradientNorm()], make_samples())


def test_model_without_head_is_refused() -> None:
    model = transformers.LlamaModel(CONFIGS["llama"])
    with pytest.raises(MeasureError, match="not a causal language model"):
        ModelPass(model, [Loss()])


def test_model_without_readable_layers_is_refused() -> None:
    class Opaque(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.weight = linear.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T

    model = tiny("llama")
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    setattr(part, name, Opaque(linear))
    with pytest.raises(MeasureError, match=r"q_proj.* in a way which can be measured"):
        run(model, [GradientNorm()], make_samples())
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.isfinite(run(model, [Loss()], make_samples())[0]).all()
