"""`sketch-norm`: the norm of the gradient from its sketch, right in the mean of its square."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gracekit.errors import MeasureError
from gracekit.model_pass.context import LocalContext
from gracekit.model_pass.executors import LocalExecutor
from gracekit.model_pass.gradient_scores import GradientNorm, LoraGradientNorm
from gracekit.model_pass.sketch import KroneckerSketch
from gracekit.model_pass.sketch_norm import SketchNorm
from gracekit.protocols import Reader, Scorer
from gracekit.recipe import ScoringSection
from gracekit.scores.norms import has_norms, part_norms
from gracekit.types import Measurement
from tests.test_adapters import adapted
from tests.test_scoring_executors import Tokens
from tests.test_scoring_pass import make_samples, run, tiny

SEEDS = 200


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def bound(side: int, seed: int) -> SketchNorm:
    reader = SketchNorm()
    reader.bind(LocalContext(sketch=KroneckerSketch(side, seed)))
    return reader


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("llama-tied-bias", GradientNorm),
        ("gpt2", GradientNorm),
        ("qwen3-moe", GradientNorm),
        ("lora", LoraGradientNorm),
    ],
)
def test_the_mean_of_its_square_is_the_square_of_the_exact_norm(
    name: str, exact: type[Scorer]
) -> None:
    model = adapted("llama").get_base_model() if name == "lora" else tiny(name)
    readers: list[Reader] = [exact(), *(bound(4, seed) for seed in range(SEEDS))]
    norms, *of_seeds = (r.double().numpy() for r in run(model, readers, make_samples()))
    ratios = (np.stack(of_seeds) / norms) ** 2
    error = ratios.std(axis=0, ddof=1) / SEEDS**0.5
    assert (np.abs(ratios.mean(axis=0) - 1) < 4 * error).all()
    assert (error > 0).all()
    assert (ratios.std(axis=0) < 1).all()  # 16 numbers tell it to within a factor of about 2


def test_wider_sketches_are_nearer() -> None:
    model, samples = tiny("llama"), make_samples((17, 12, 9, 5))
    sides = (2, 4, 8, 16)
    readers: list[Reader] = [GradientNorm()]
    readers += [bound(side, seed) for side in sides for seed in range(30)]
    norms, *found = (r.double().numpy() for r in run(model, readers, samples))
    errors = (np.stack(found).reshape(len(sides), 30, -1) / norms).std(axis=(1, 2))
    assert (np.diff(errors) < 0).all()


def test_it_is_the_norm_of_the_features_of_the_same_pass() -> None:
    scoring = ScoringSection(
        scores=("sketch-norm", "loss"), importance="sketch-norm", features="gradient-sketch",
        sketch_side=8, num_threads=1,
    )  # fmt: skip
    samples = make_samples((12, 9, 5))
    parts = LocalExecutor(tiny("llama"), Tokens(samples), scoring).measure(np.arange(3))
    measured = Measurement.concatenate(list(parts))
    sizes = np.linalg.norm(measured.features.astype(np.float64), axis=1)
    np.testing.assert_allclose(measured.scores["sketch-norm"], sizes, rtol=2e-3)


def test_a_model_without_such_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KroneckerSketch, "wants", lambda self, layer: False)
    with pytest.raises(MeasureError, match="sketch-norm found no linear layer"):
        run(tiny("llama"), [bound(4, 0)], make_samples())


@pytest.mark.parametrize("average", ["tokens", "samples"])
def test_it_means_what_the_exact_norm_means(average: Any) -> None:
    def settings(score: str) -> ScoringSection:
        return ScoringSection(scores=(score,), importance=score, loss=average)

    norms, lengths = np.array([0.5, 2.0, 1.0], np.float32), np.array([3, 1, 40], np.int32)
    assert has_norms(settings("sketch-norm"))
    np.testing.assert_array_equal(
        part_norms(norms, lengths, settings("sketch-norm")),
        part_norms(norms, lengths, settings("gradient-norm")),
    )
