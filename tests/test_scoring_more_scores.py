"""Every score beside gradient norm and loss, against plain autograd and its own definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from gracekit import refresh
from gracekit.errors import MeasureError, RecipeError
from gracekit.model_pass import model_pass
from gracekit.model_pass.context import LocalContext, TargetSamples
from gracekit.model_pass.executors import LocalExecutor
from gracekit.model_pass.features import GradientSketch, HiddenMean
from gracekit.model_pass.gradient_scores import GradientNorm, GradientNormLast
from gracekit.model_pass.head_score import HeadGradientNorm
from gracekit.model_pass.influence import Influence, InfluenceDot
from gracekit.model_pass.layers import decoder_body, linear_layers, output_head
from gracekit.model_pass.sketch import KroneckerSketch, random_signs
from gracekit.model_pass.token_scores import Entropy, ErrorNorm, Loss, Margin, Perplexity
from gracekit.protocols import Reader
from gracekit.recipe import Recipe, ScoringSection
from gracekit.store import Store
from gracekit.types import Float32, Int32, Measurement, Strings
from tests.stores import outcome
from tests.test_scoring_pass import (
    RELATIVE,
    Sample,
    last_hidden,
    make_samples,
    mean_loss,
    run,
    tiny,
)
from tests.tiny import tiny_recipe, write_checkpoint, write_data

NAMES = ("llama", "llama-tied-bias", "gpt2")


class Tokens:
    """Samples as the executor takes them."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.lengths = np.array([len(ids) for ids, _ in samples], np.int64)
        self.key = "tokens"

    def take(self, rows: Any) -> list[Sample]:
        return [self.samples[row] for row in rows]


def distributions(model: Any, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Distribution at each target position in float64, and the tokens that came."""
    ids = torch.from_numpy(sample[0].astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0].double()
    targets = torch.from_numpy(np.flatnonzero(sample[1][1:]) + 1)
    return logits[targets - 1].softmax(1), ids[targets]


def weight_gradients(model: Any, sample: Sample) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Gradients [out, in] and of biases of each linear layer of the body, by autograd."""
    model.requires_grad_(True)
    model.zero_grad()
    torch.autograd.backward(mean_loss(model, sample))
    found = {}
    for layer in linear_layers(model):
        module: Any = layer.module
        weight = module.weight.grad.double().numpy()
        if type(module).__name__ == "Conv1D":
            weight = weight.T
        bias = None if module.bias is None else module.bias.grad.double().numpy()
        found[layer.name] = weight.copy(), bias
    model.requires_grad_(False)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_token_scores_are_what_their_definitions_say(name: str) -> None:
    model, samples = tiny(name), make_samples()
    got = run(model, [Perplexity(), ErrorNorm(), Entropy(), Margin()], samples)
    for i, sample in enumerate(samples):
        p, ids = distributions(model, sample)
        own = p.gather(1, ids[:, None])[:, 0]
        others = p.scatter(1, ids[:, None], -1.0).amax(1)
        error = p - F.one_hot(ids, p.shape[1])
        expected = [
            (-own.log()).mean().exp(),
            error.norm(dim=1).mean(),
            -(p * p.log()).sum(1).mean(),
            (own - others).mean(),
        ]
        for result, value in zip(got, expected, strict=True):
            assert result[i] == pytest.approx(float(value), rel=RELATIVE, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_head_norm_is_the_gradient_of_the_heads_weight(name: str) -> None:
    model, samples = tiny(name), make_samples()
    (got,) = run(model, [HeadGradientNorm()], samples)
    for i, sample in enumerate(samples):
        hidden = last_hidden(model, sample)
        head: Any = output_head(model)
        weight = head.weight.detach().clone().requires_grad_()
        targets = torch.from_numpy(np.flatnonzero(sample[1][1:]) + 1)
        ids = torch.from_numpy(sample[0].astype(np.int64))[targets]
        loss = F.cross_entropy(hidden[targets - 1] @ weight.T, ids)
        (gradient,) = torch.autograd.grad(loss, weight)
        assert got[i] == pytest.approx(float(gradient.double().norm()), rel=RELATIVE)


def test_forward_scores_do_not_change_when_targets_come_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, samples = tiny("llama"), make_samples((11, 9, 6, 5, 4, 3))
    readers: list[Reader] = [HeadGradientNorm(), ErrorNorm(), Entropy(), Margin()]
    whole = run(model, readers, samples)
    monkeypatch.setattr(model_pass, "LOGITS_AT_ONCE", 89 * 4)
    for a, b in zip(whole, run(model, readers, samples), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_last_norm_is_that_of_the_last_fifth_of_the_blocks(name: str) -> None:
    model, samples = tiny(name), make_samples()
    (got,) = run(model, [GradientNormLast()], samples)
    last = {layer.name for layer in linear_layers(model) if layer.block == 2}
    assert 0 < len(last) < len(linear_layers(model))
    for i, sample in enumerate(samples):
        gradients = weight_gradients(model, sample)
        squares = sum(
            (w**2).sum() + (0 if b is None else (b**2).sum())
            for layer, (w, b) in gradients.items()
            if layer in last
        )
        assert got[i] == pytest.approx(float(squares) ** 0.5, rel=RELATIVE)
    (whole,) = run(model, [GradientNorm()], samples)
    assert (got < whole).all()


def test_last_norm_runs_no_backward_below_its_blocks() -> None:
    model = tiny("llama")
    reached = []
    for layer in linear_layers(model):
        layer.module.register_forward_hook(
            lambda _m, _a, out, layer=layer: reached.append((layer.block, out.requires_grad))
        )
    run(model, [GradientNormLast()], make_samples())
    probed = [(block, grad) for block, grad in reached if grad]
    assert probed and {block for block, _ in probed} == {2}


@pytest.mark.parametrize("name", NAMES)
def test_sketch_is_the_projection_of_the_gradient(name: str) -> None:
    model, samples = tiny(name), make_samples()
    sketch = KroneckerSketch(side=6, seed=3)
    (got,) = run(model, [sketch], samples)
    for i, sample in enumerate(samples):
        expected = np.zeros((6, 6))
        for layer, (weight, bias) in weight_gradients(model, sample).items():
            p = random_signs((weight.shape[0], 6), 3, f"out {layer}")
            expected += (
                p.T @ weight @ random_signs((weight.shape[1], 6), 3, f"in {weight.shape[1]}")
            )
            if bias is not None:
                expected += np.outer(p.T @ bias, random_signs((1, 6), 3, "in bias"))
        expected /= 6
        np.testing.assert_allclose(
            got[i].numpy().reshape(6, 6), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max()
        )


def test_sketches_keep_inner_products_in_the_mean() -> None:
    model, samples = tiny("llama"), make_samples((12, 10, 8))
    flat = np.stack(
        [
            np.concatenate([w.ravel() for w, _ in weight_gradients(model, s).values()])
            for s in samples
        ]
    )
    exact = flat @ flat.T
    found = np.zeros_like(exact)
    for seed in range(300):
        (sketches,) = run(model, [KroneckerSketch(side=4, seed=seed)], samples)
        found += sketches.double().numpy() @ sketches.double().numpy().T / 300
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert np.abs((found - exact) / scale).max() < 0.12


def test_signs_are_the_same_everywhere() -> None:
    signs = random_signs((3, 8), 7, "in 3")
    assert set(np.unique(signs)) == {-1.0, 1.0}
    as_bits = "".join("1" if s > 0 else "0" for s in signs.ravel())
    assert as_bits == SIGNS_OF_SEED_7
    assert abs(random_signs((1000, 64), 0, "x").mean()) < 0.02


SIGNS_OF_SEED_7 = "011101100110000001001000"


def bound(readers: list[Reader], sketch: KroneckerSketch, targets: dict[str, Float32]) -> None:
    for reader in readers:
        reader.bind(LocalContext(sketch=sketch, target_sketches=targets))


def test_influence_is_the_best_subtasks_mean_cosine_and_dot() -> None:
    model, samples = tiny("llama"), make_samples()
    sketch = KroneckerSketch(side=8, seed=0)
    (own,) = run(model, [sketch], samples)
    sketches = own.double().numpy()
    random = np.random.default_rng(0)
    targets = {
        "near": (sketches[:2] + 0.1 * random.normal(size=(2, 64))).astype(np.float32),
        "far": random.normal(size=(3, 64)).astype(np.float32),
    }
    readers: list[Reader] = [Influence(), InfluenceDot(), GradientSketch(ScoringSection())]
    bound(readers, sketch, targets)
    cosine, dot, features = run(model, readers, samples)
    torch.testing.assert_close(features, own)

    def unit(x: np.ndarray) -> np.ndarray:
        return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))

    by_task = [(unit(sketches) @ unit(t.astype(np.float64)).T).mean(1) for t in targets.values()]
    np.testing.assert_allclose(cosine.numpy(), np.max(by_task, axis=0), atol=1e-5)
    dots = [(sketches @ t.mean(0)) for t in targets.values()]
    np.testing.assert_allclose(dot.numpy(), np.max(dots, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [0, 1, -1])
def test_hidden_mean_of_a_block(block: int) -> None:
    model, samples = tiny("llama"), make_samples()
    (got,) = run(
        model, [HiddenMean(ScoringSection(features="hidden-mean", hidden_block=block))], samples
    )
    for i, (ids, mask) in enumerate(samples):
        with torch.no_grad():
            states = decoder_body(model)(
                input_ids=torch.from_numpy(ids.astype(np.int64))[None], output_hidden_states=True
            ).hidden_states
        seen: list[torch.Tensor] = []
        module: Any = decoder_body(model)
        hook = module.layers[block].register_forward_hook(
            lambda _m, _a, out, seen=seen: seen.append(out)
        )
        with torch.no_grad():
            module(input_ids=torch.from_numpy(ids.astype(np.int64))[None])
        hook.remove()
        if block >= 0:
            torch.testing.assert_close(states[block + 1], seen[0])
        targets = torch.from_numpy(np.flatnonzero(mask[1:]))
        torch.testing.assert_close(got[i], seen[0][0][targets].mean(0), rtol=1e-4, atol=1e-5)


def test_block_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match="hidden_block is 3, and the model has blocks 0 to 2"):
        run(
            tiny("llama"),
            [HiddenMean(ScoringSection(features="hidden-mean", hidden_block=3))],
            make_samples(),
        )


def test_hidden_mean_projected_keeps_distances_roughly() -> None:
    model, samples = tiny("llama"), make_samples((9, 8, 7, 6, 5))
    wide = HiddenMean(ScoringSection(features="hidden-mean"))
    narrow = HiddenMean(
        ScoringSection(
            features="hidden-mean", feature_width=16, feature_projection="signs", sketch_seed=5
        )
    )
    assert narrow.width(32) == 16
    a, b = run(model, [wide, narrow], samples)
    signs = random_signs((32, 16), 5, "hidden") / 4
    np.testing.assert_allclose(b.numpy(), a.numpy() @ signs, rtol=1e-4, atol=1e-5)


def measure(model: Any, samples: list[Sample], **settings: Any) -> Measurement:
    target = settings.pop("target", None)
    scoring = ScoringSection(num_threads=1, **settings)
    executor = LocalExecutor(model, Tokens(samples), scoring, target=target)
    parts = list(executor.measure(np.arange(len(samples))))
    whole = Measurement.concatenate(parts)
    return whole.take(np.argsort(whole.rows))


def test_ifd_is_the_ratio_of_the_responses_losses() -> None:
    model, samples = tiny("llama"), make_samples((11, 9, 7, 6))
    one_token_prompt = (np.array([5, 6, 7, 8], np.int32), np.array([False, True, True, True]))
    samples.append(one_token_prompt)
    got = measure(model, samples, scores=("ifd", "loss"), importance="ifd")
    model.requires_grad_(False)
    for i, (ids, mask) in enumerate(samples):
        kept = np.concatenate([[0], np.flatnonzero(mask[1:]) + 1])
        alone = mean_loss(model, (ids[kept], kept > 0))
        own = mean_loss(model, samples[i])
        assert got.scores["loss"][i] == pytest.approx(float(own), rel=RELATIVE)
        assert got.scores["ifd"][i] == pytest.approx(float(own / alone), rel=RELATIVE)
    assert got.scores["ifd"][-1] == 1


NO_CONTENTS: Strings = np.zeros(0, object)


def targets_of(samples: list[Sample], groups: list[int]) -> TargetSamples:
    tokens: Any = Tokens(samples)
    labels: Int32 = np.array(groups, np.int32)
    return TargetSamples(tokens=tokens, groups=labels, group_names=("a", "b"), contents=NO_CONTENTS)


def test_influence_through_the_executor_finds_the_sample_itself() -> None:
    model, samples = tiny("llama"), make_samples((11, 9, 7, 6))
    nothing: Sample = (np.array([5, 6, 7], np.int32), np.zeros(3, np.bool_))
    target = targets_of([nothing, samples[2], samples[1], samples[2]], [0, 0, 1, 0])
    got = measure(
        model,
        samples,
        scores=("influence", "influence-dot", "gradient-norm"),
        importance="influence",
        features="gradient-sketch",
        target=target,
    )
    cosine = got.scores["influence"]
    np.testing.assert_allclose(cosine[[1, 2]], 1, atol=1e-4)
    assert (np.abs(cosine) <= 1 + 1e-5).all() and cosine[0] < 0.99
    sketches = got.features.astype(np.float64)
    np.testing.assert_allclose(got.scores["influence-dot"][2], sketches[2] @ sketches[2], rtol=5e-3)


def test_target_without_a_finite_gradient_is_an_error() -> None:
    model, samples = tiny("llama"), make_samples((8, 7))
    nothing: Sample = (np.array([5, 6, 7], np.int32), np.zeros(3, np.bool_))
    with pytest.raises(MeasureError, match="none of the 1 target samples"):
        measure(
            model,
            samples,
            scores=("influence",),
            importance="influence",
            target=targets_of([nothing], [0]),
        )


def test_influence_without_a_target_says_what_to_write(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    recipe = tiny_recipe(
        tmp_path, scoring={"scores": ["influence", "loss"], "importance": "influence"}
    )
    with pytest.raises(RecipeError, match=r"target: \{path: target.jsonl}"):
        refresh(recipe, write_checkpoint(tmp_path / "run", 100))


def changed_loss(folder: Path, **sections: Any) -> tuple[Recipe, Store]:
    write_data(folder / "train.jsonl")
    scoring = {"scores": ["loss", "delta-loss", "delta-loss-first"], "importance": "loss"}
    recipe = tiny_recipe(folder, scoring={**SCORING, **scoring}, **sections)
    for step in (100, 300, 700):
        refresh(recipe, write_checkpoint(folder / "run", step))
    return recipe, Store.open(recipe.store)


SCORING = {"shard_rows": 16, "num_threads": 1, "device": "cpu"}


def test_delta_loss_compares_with_the_rows_own_history(tmp_path: Path) -> None:
    _, store = changed_loss(tmp_path)
    assert store.versions() == [1, 2, 3]
    measured: dict[int, list[float]] = {}
    for version in store.versions():
        for row in store.measurement(version).to_pylist():
            before = measured.setdefault(row["row"], [])
            expected = row["loss"] - before[-1] if before else 0.0
            assert row["delta_loss"] == pytest.approx(expected, abs=1e-6)
            since_first = row["loss"] - before[0] if before else 0.0
            assert row["delta_loss_first"] == pytest.approx(since_first, abs=1e-6)
            before.append(row["loss"])
    assert max(map(len, measured.values())) == 3


def test_delta_loss_needs_the_loss() -> None:
    with pytest.raises(RecipeError, match="delta-loss compares losses; add loss to scores"):
        Recipe.from_dict(
            {
                "data": {"path": "x.jsonl"},
                "scoring": {"scores": ["delta-loss"], "importance": "delta-loss"},
            }
        )


def test_a_whole_refresh_towards_a_target(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "target.jsonl").write_text("\n".join(lines[0:60:3]) + "\n")  # group a
    recipe = tiny_recipe(
        tmp_path,
        target={"path": "target.jsonl", "group_column": "source", "max_length": 64},
        scoring={
            **SCORING,
            "scores": ["influence", "el2n", "loss"],
            "importance": "influence",
            "normalise": "all",
            "features": "gradient-sketch",
            "sketch_side": 8,
        },
        selection={"selector": "top", "count": 40},
    )
    for step in (100, 300):
        refresh(recipe, write_checkpoint(tmp_path / "run", step))
    store = Store.open(recipe.store)
    for version in (1, 2):
        rows = store.coreset(version)["row"].to_numpy()
        groups = store.samples().groups[rows]
        share = (groups == store.samples().group_names.index("a")).mean()
        assert share > 0.6  # a third by chance
    assert store.load_cache(2).features.shape == (160, 64)  # type: ignore[union-attr]


def test_other_features_are_not_built_upon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_data(tmp_path / "train.jsonl")
    run_dir = tmp_path / "run"
    refresh(tiny_recipe(tmp_path), write_checkpoint(run_dir, 100))
    recipe = tiny_recipe(tmp_path, scoring={**SCORING, "sketch_side": 6,
                                            "features": "gradient-sketch"})  # fmt: skip
    result = refresh(recipe, write_checkpoint(run_dir, 200))
    assert "the recipe asks for other features" in caplog.text
    assert outcome(result.header).num_measured == 160


def test_loss_reader_is_unchanged_beside_all_others() -> None:
    model, samples = tiny("gpt2"), make_samples()
    alone = run(model, [Loss()], samples)[0]
    beside = run(model, [GradientNormLast(), HeadGradientNorm(), Loss()], samples)[2]
    torch.testing.assert_close(alone, beside)
