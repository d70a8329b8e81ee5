"""oneDNN's products beside torch's own, alone and in the pass."""

from __future__ import annotations

import pytest
import torch

from gracekit.errors import MeasureError
from gracekit.model_pass import products
from gracekit.model_pass.features import GradientSketch
from gracekit.model_pass.gradient_scores import GradientNorm
from gracekit.model_pass.layers import linear_layers
from gracekit.model_pass.model_pass import ModelPass
from gracekit.model_pass.sketch import KroneckerSketch
from gracekit.model_pass.token_scores import Loss
from gracekit.protocols import Reader
from tests.test_scoring_more_scores import bound
from tests.test_scoring_pass import RELATIVE, make_samples, run, tiny

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="this torch has no oneDNN",
)


@pytest.fixture
def everything_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN for the smallest of products, on any processor."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "LEAST_MULTIPLICATIONS", 0)
    monkeypatch.setattr(products, "LEAST_OF_SAMPLE", 0)


@pytest.mark.usefixtures("everything_wide")
def test_products_are_torchs() -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(3, 7, 12), torch.randn(5, 12), torch.randn(3, 6, 12)
    for found, expected in (
        (products.product(a, b), a @ b.T),
        (products.product(a, b.T.contiguous().T), a @ b.T),
        (products.products(a, c), a @ c.mT),
        (products.products(a[:, :3], a[:, 2:]), a[:, :3] @ a[:, 2:].mT),
        (products.products(a.mT, a[:, :, :4].mT), a.mT @ a[:, :, :4]),
    ):
        torch.testing.assert_close(found, expected)


def all_readers() -> list[Reader]:
    readers: list[Reader] = [GradientNorm(), Loss(), GradientSketch()]
    bound(readers, KroneckerSketch(8, 0), {})
    return readers


@pytest.mark.parametrize("name", ["llama-tied-bias", "gpt2", "mixtral", "jetmoe"])
def test_pass_gives_the_same_by_either(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = tiny(name), make_samples()
    expected = run(model, all_readers(), samples)
    called: list[str] = []
    wide = products.WideLinear.backward

    def backward(*args: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        called.append("backward")
        return wide(*args)

    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "LEAST_MULTIPLICATIONS", 0)
    monkeypatch.setattr(products, "LEAST_OF_SAMPLE", 0)
    monkeypatch.setattr(products.WideLinear, "backward", staticmethod(backward))
    found = run(model, all_readers(), samples)
    assert len(called) > 6
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=RELATIVE, atol=1e-6)


@pytest.mark.usefixtures("everything_wide")
def test_layers_get_their_own_forward_back() -> None:
    model = tiny("llama")

    def own() -> list[bool]:
        return ["forward" not in vars(layer.module) for layer in linear_layers(model)]

    with ModelPass(model, [Loss()]), ModelPass(model, [Loss()]):
        assert not any(own())
    assert all(own())
    with ModelPass(model.bfloat16(), [Loss()]):
        assert all(own())


class Uncalled(torch.nn.Module):
    """Runs a layer without calling it, so that no hook sees it."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layer.forward(hidden)
        return output


@pytest.mark.usefixtures("everything_wide")
def test_layers_that_are_run_without_being_called_are_refused() -> None:
    model = tiny("llama")
    model.model.layers[1].mlp.up_proj = Uncalled(model.model.layers[1].mlp.up_proj)
    with pytest.raises(MeasureError, match=r"layers.1.mlp.up_proj.layer without calling"):
        run(model, [GradientNorm()], make_samples())
