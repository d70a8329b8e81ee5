"""Mixtures of experts: every gradient score against plain autograd, one sample at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from gracekit import refresh
from gracekit.model_pass.batches import TokenBatch, num_positions
from gracekit.model_pass.gradient_scores import GradientNorm, GradientNormLast, LoraGradientNorm
from gracekit.model_pass.layers import linear_layers
from gracekit.model_pass.routed_rows import RoutedRows as Rows
from gracekit.model_pass.sketch import KroneckerSketch, random_signs
from gracekit.model_pass.token_scores import Loss
from gracekit.protocols import Batch, Layer, Reader, RoutedRows
from gracekit.store import Store
from tests.families import EXPERTS
from tests.stores import optimizer_of
from tests.test_scoring_pass import (
    CPU,
    RELATIVE,
    exact_norm,
    make_samples,
    mean_loss,
    run,
    tiny,
)
from tests.tiny import make_tokenizer, tiny_recipe, write_data

WITH_LORA = ("mixtral with LoRA", "gpt-oss with LoRA")
STACKED = ("mixtral", "qwen2-moe", "deepseek-v3", "gpt-oss")


def experts(name: str) -> Any:
    """A tiny model; `with LoRA` on the experts' parameters too, as GPT-OSS is fine-tuned."""
    model = tiny(name.removesuffix(" with LoRA"))
    if not name.endswith("LoRA"):
        return model
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], target_parameters=parameters)
    peft = get_peft_model(model, config).eval()
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.3)
    return peft.get_base_model()


@pytest.mark.parametrize("name", WITH_LORA)
def test_adapters_on_experts(name: str) -> None:
    model, samples = experts(name), make_samples()
    trained = [p.requires_grad for p in model.parameters()]
    own, whole, long = run(model, [LoraGradientNorm(), GradientNorm(), LongWay()], samples)
    torch.testing.assert_close(whole, long, rtol=1e-5, atol=0)
    assert [p.requires_grad for p in model.parameters()] == trained
    model.requires_grad_(True)
    for i, sample in enumerate(samples):
        model.zero_grad()
        torch.autograd.backward(mean_loss(model, sample))
        squares = {True: 0.0, False: 0.0}
        for layer in linear_layers(model):
            for parameter in (layer.parameter, layer.bias):
                if parameter is not None and parameter.grad is not None:
                    squares[layer.is_adapter] += float(parameter.grad.double().square().sum())
        assert own[i] == pytest.approx(squares[True] ** 0.5, rel=RELATIVE)
        assert whole[i] == pytest.approx(squares[False] ** 0.5, rel=RELATIVE)


class LongWay(GradientNorm):
    """What a scorer does that knows nothing of experts: each one's rows padded, to `on_layer`."""

    on_routed = Reader.on_routed


@pytest.mark.parametrize("name", STACKED)
def test_both_ways_over_experts_agree(name: str) -> None:
    model, samples = tiny(name), make_samples()
    short, long = run(model, [GradientNorm(), LongWay()], samples)
    torch.testing.assert_close(short, long, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", STACKED)
def test_last_norm_is_that_of_the_last_block(name: str) -> None:
    model, samples = tiny(name), make_samples()
    found = run(model, [GradientNormLast()], samples)[0]
    exact = [exact_norm(model, s, lambda n: n.startswith("layers.2.")) for s in samples]
    np.testing.assert_allclose(found, exact, rtol=RELATIVE)


@pytest.mark.parametrize("name", EXPERTS)
def test_a_sample_scores_the_same_in_any_company(name: str) -> None:
    """So padding, which is routed too, leaves no trace."""
    model, samples = tiny(name), make_samples((17, 13, 9, 5))
    readers: list[Reader] = [GradientNorm(), KroneckerSketch(4, 0), Loss()]
    together = run(model, readers, samples)
    for i, sample in enumerate(samples):
        for a, b in zip(run(model, readers, [sample]), together, strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=RELATIVE, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("name", [*STACKED, *WITH_LORA])
def test_sketch_is_the_projection_of_the_gradient(name: str) -> None:
    model, samples, sketch = experts(name), make_samples(), KroneckerSketch(side=6, seed=3)
    found = run(model, [sketch], samples)[0]
    model.requires_grad_(True)
    for i, sample in enumerate(samples):
        model.zero_grad()
        torch.autograd.backward(mean_loss(model, sample))
        expected = np.zeros((6, 6))
        for layer in linear_layers(model):
            if layer.parameter.grad is None or not sketch.wants(layer):
                continue
            weight = layer.arrange(layer.parameter.grad)
            stack = (weight.mT if layer.is_transposed else weight).double().numpy()
            stack = stack[None] if stack.ndim < 3 else stack
            num_experts, num_outputs, num_inputs = stack.shape
            p = random_signs((num_outputs, 6), 3, f"out {layer.name}")
            q = random_signs((num_inputs, 6), 3, f"in {num_inputs}")
            own = np.ones((1, num_outputs), np.float32)
            if layer.weight.ndim > 2:
                own = random_signs((num_experts, num_outputs), 3, f"experts {layer.name}")
            expected += np.einsum("ok,eo,eoi,il->kl", p, own, stack, q)
            if layer.bias is not None and layer.bias.grad is not None:
                bias = (own * layer.bias.grad.double().numpy()).sum(0)
                expected += np.outer(p.T @ bias, random_signs((1, 6), 3, "in bias"))
        np.testing.assert_allclose(
            found[i].reshape(6, 6), expected / 6, rtol=1e-3, atol=1e-5 * np.abs(expected).max()
        )


def test_sketches_keep_inner_products_in_the_mean() -> None:
    model, samples = tiny("mixtral"), make_samples((12, 10, 8))
    weights = [layer.weight for layer in linear_layers(model)]
    model.requires_grad_(True)
    gradients = [torch.autograd.grad(mean_loss(model, s), weights) for s in samples]
    flat = torch.stack([torch.cat([g.flatten() for g in each]) for each in gradients]).double()
    exact = flat @ flat.T
    found = torch.zeros_like(exact)
    for seed in range(300):
        sketches = run(model, [KroneckerSketch(side=4, seed=seed)], samples)[0].double()
        found += sketches @ sketches.T / 300
    scale = exact.diag().outer(exact.diag()).sqrt()
    assert float(((found - exact) / scale).abs().max()) < 0.12


class Places(Reader):
    """Counts rows of experts, and the padded places that they are measured in."""

    def wants(self, layer: Layer) -> bool:
        return layer.name == "layers.0.mlp.experts.down_proj"

    def on_routed(self, batch: Batch, layer: Layer, rows: RoutedRows) -> None:
        self.num_rows = len(rows.inputs)
        self.num_places = sum(group.inputs[:, :, 0].numel() for group in rows.groups())

    def finish(self, batch: Batch) -> torch.Tensor:
        return batch.zeros()


def test_work_follows_the_routed_tokens() -> None:
    model, samples, places = tiny("qwen3-moe"), make_samples(), Places()
    run(model, [places], samples)
    longest = max(map(num_positions, samples))
    assert places.num_rows == 4 * longest * 2  # of 5 experts each token goes to 2
    assert places.num_rows <= places.num_places < 2 * places.num_rows


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=60))
def test_rows_are_grouped_by_expert_and_sample(pairs: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    n = len(pairs)
    expert, sample = torch.tensor(pairs).T
    inputs, gradients = torch.randn(n, 3), torch.randn(n, 2)
    rows = Rows.sorted(inputs, gradients, expert, sample, num_samples=5)
    products = torch.zeros(4, 5, 2, 3)
    for row, (e, s) in enumerate(pairs):
        products[e, s] += gradients[row].outer(inputs[row])
    found, num_places = torch.zeros_like(products), 0
    for group in rows.groups():
        found[group.expert, group.sample] += group.gradients.mT @ group.inputs
        num_places += group.inputs[:, :, 0].numel()
    torch.testing.assert_close(found, products)
    assert n <= num_places < 2 * n
    by_expert = torch.zeros_like(products)
    for e, a, g in rows.by_expert():
        by_expert[e] = g.mT @ a
    torch.testing.assert_close(by_expert, products)
    of_samples = rows.by_sample(rows.gradients).mT @ rows.by_sample(rows.inputs)
    torch.testing.assert_close(of_samples, products.sum(0))


class ExpertList(torch.nn.Module):
    """Experts as small modules, each given the rows of its tokens, as before transformers 5."""

    def __init__(self, like: Any, *, mask: bool, idle: bool) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(32, 3)
        if idle:
            torch.nn.init.constant_(self.gate.bias[:1], -1e4)
        self.experts = torch.nn.ModuleList(type(like)(like.config) for _ in range(3))
        self.mask = mask

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.view(-1, hidden.shape[-1])
        weights, index = self.gate(flat).softmax(-1).topk(2)
        result = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            if self.mask:
                chosen = (index == i).any(-1)
                weight = (weights * (index == i)).sum(-1)[chosen]
                result[chosen] += expert(flat[chosen]) * weight[:, None]
            else:
                place, token = torch.where((index == i).T)
                own = expert(flat[None, token].reshape(-1, flat.shape[1]))
                result.index_add_(0, token, own * weights[token, place, None])
        return result.view_as(hidden)


class ParallelExperts(torch.nn.Module):
    """A stack that multiplies sorted rows slice by slice, as Granite's once did."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 32, 32) / 6)

    def forward(self, rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        parts = torch.split(rows, sizes)
        return torch.cat([F.linear(p, w) for p, w in zip(parts, self.weight, strict=True)])


class ParallelMlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(32, 3, bias=False)
        self.into, self.out = ParallelExperts(), ParallelExperts()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        weights, index = self.gate(flat).softmax(-1).topk(2)
        order = index.flatten().argsort()
        token, sizes = order // 2, index.flatten().bincount(minlength=3).tolist()
        rows = self.out(F.silu(self.into(flat[token], sizes)), sizes)
        rows = rows * weights.flatten()[order][:, None]
        return torch.zeros_like(flat).index_add(0, token, rows).view_as(hidden)


@pytest.mark.parametrize(
    "kind", ["list", "list, one idle", "list by mask, one idle", "parallel", "parallel, shared"]
)
def test_experts_written_in_other_ways(kind: str) -> None:
    model, samples = tiny("llama-tied-bias"), make_samples()
    blocks = model.model.layers
    torch.manual_seed(1)
    for block in (blocks[0], blocks[2]):
        of_list = {"mask": "mask" in kind, "idle": "idle" in kind}
        is_list = kind.startswith("list")
        mlp = ExpertList(block.mlp, **of_list) if is_list else ParallelMlp()
        block.mlp = mlp.eval()
    if "shared" in kind:
        blocks[2].mlp.into = blocks[0].mlp.into
    short, long = run(model, [GradientNorm(), LongWay()], samples)
    exact = [exact_norm(model, s) for s in samples]
    np.testing.assert_allclose(short, exact, rtol=RELATIVE)
    np.testing.assert_allclose(long, exact, rtol=RELATIVE)


def test_refreshes_of_a_mixtures_run(tmp_path: Path) -> None:
    """From files, in transformers' own layout of experts, with every kind of gradient score."""
    write_data(tmp_path / "train.jsonl", num_samples=40)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "target.jsonl").write_text("\n".join(lines[:6]) + "\n")
    scores = ["gradient-norm", "gradient-norm-last", "influence", "adam-norm", "loss"]
    recipe = tiny_recipe(
        tmp_path,
        target={"path": "target.jsonl", "group_column": "source", "max_length": 64},
        scoring={
            "scores": scores, "importance": "gradient-norm", "features": "gradient-sketch",
            "sketch_side": 8, "device": "cpu", "num_threads": 1, "shard_rows": 16,
        },
    )  # fmt: skip
    model = tiny("mixtral")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.autograd.backward(mean_loss(model, make_samples((9,))[0]))
    optimizer.step()
    for step in (1, 2):
        checkpoint = tmp_path / f"run/checkpoint-{step}"
        model.save_pretrained(checkpoint)
        make_tokenizer().save_pretrained(checkpoint)
        torch.save(optimizer.state_dict(), checkpoint / "optimizer.pt")
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        refresh(recipe, checkpoint)
    store = Store.open(recipe.store)
    assert store.versions() == [1, 2]
    assert optimizer_of(store.header(1))["used"]
    for name in scores:
        assert np.isfinite(store.scores(2).scores[name]).all()


def test_experts_are_given_back_as_they_were() -> None:
    model, samples = tiny("gpt-oss"), make_samples()
    run(model, [GradientNorm()], samples)
    assert not any("forward" in vars(module) for module in model.modules())
    before = model(TokenBatch.pack(samples, CPU).input_ids).logits
    run(model, [GradientNorm()], samples)
    torch.testing.assert_close(model(TokenBatch.pack(samples, CPU).input_ids).logits, before)


@pytest.mark.parametrize("name", STACKED)
def test_bfloat16_stays_close(name: str) -> None:
    model, samples = tiny(name).bfloat16(), make_samples((30, 20, 12, 12))
    readers: list[Reader] = [GradientNorm(), KroneckerSketch(6, 0), Loss()]
    found = run(model, readers, samples)
    exact = run(model.float(), readers, samples)
    for a, b in zip(found, exact, strict=True):
        error = (a - b).flatten(1 if a.ndim > 1 else 0).norm() / b.norm()
        assert float(error) < 0.1
