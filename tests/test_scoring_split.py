"""A model split over devices (`scoring.device: split`) gives the bytes of the whole one.

There is no second GPU here: `tests.pretended_devices` says what they are instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gracekit import refresh
from gracekit.checkpoints import find_checkpoints, pin
from gracekit.checkpoints.devices import devices_for, resolve_device
from gracekit.checkpoints.model import load_model
from gracekit.checkpoints.optimizer import AdamState
from gracekit.checkpoints.placement import (
    SHARE_FOR_WEIGHTS,
    _devices_of_blocks,
    _num_bytes,
    _tensors,
    decoder_blocks,
    place,
    spread,
)
from gracekit.errors import MeasureError, RecipeError
from gracekit.model_pass.batches import TokenBatch
from gracekit.model_pass.context import LocalContext
from gracekit.model_pass.executors import LocalExecutor
from gracekit.model_pass.features import EmbeddingMean, GradientSketch, HiddenMean
from gracekit.model_pass.gradient_scores import GradientNorm
from gracekit.model_pass.head_score import HeadGradientNorm
from gracekit.model_pass.layers import linear_layers
from gracekit.model_pass.model_pass import ModelPass
from gracekit.model_pass.scorers import SCORERS
from gracekit.model_pass.sketch import KroneckerSketch
from gracekit.model_pass.token_scores import Entropy, Loss, Margin
from gracekit.protocols import Batch, Layer, Reader
from gracekit.recipe import CheckpointSection, ScoringSection
from gracekit.store import Store
from gracekit.types import Measurement
from tests.families import DENSE, EXPERTS, HYBRID
from tests.pretended_devices import MixedDevicesError, pretended_devices
from tests.test_adapters import write_adapter
from tests.test_scoring_experts import experts
from tests.test_scoring_more_scores import Tokens
from tests.test_scoring_pass import CPU, Sample, make_samples
from tests.test_scoring_processes import samples, target
from tests.tiny import tiny_recipe, write_checkpoint, write_data

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")
MUCH = 2**40
SETTINGS = CheckpointSection(settle_s=0)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def sizes_of(model: Any) -> tuple[int, list[int]]:
    """Bytes of what is in no block, and of each block."""
    blocks = [_num_bytes(_tensors(block)) for block in decoder_blocks(model)]
    return _num_bytes(_tensors(model)) - sum(blocks), blocks


def first_and_cpu(model: Any) -> dict[torch.device, int]:
    """Room for one block on the first device; the others are brought to the second one by one."""
    others, blocks = sizes_of(model)
    return {FIRST: others + blocks[0], SECOND: max(blocks)}


def measured(model: Any, device: torch.device, chosen: list[Sample] | None = None) -> list[bytes]:
    """What readers of all kinds make of some samples."""
    readers: list[Reader] = [
        GradientNorm(), Loss(), Entropy(), Margin(), HeadGradientNorm(), EmbeddingMean(),
        HiddenMean(), HiddenMean(ScoringSection(features="hidden-mean", hidden_block=-1)),
        HiddenMean(ScoringSection(features="hidden-mean", hidden_block=-2)), GradientSketch(),
    ]  # fmt: skip
    context = LocalContext(sketch=KroneckerSketch(4, 0), embedding=model.get_input_embeddings())
    for reader in readers:
        reader.bind(context)
    with ModelPass(model, readers) as opened:
        found = opened.run(TokenBatch.pack(chosen or make_samples(), device))
    return [each.cpu().numpy().tobytes() for each in found]


def test_operations_over_two_devices_raise_here() -> None:
    with pretended_devices() as devices:
        one = torch.ones(2, 3, device=FIRST, requires_grad=True)
        other = torch.ones(3, 3, device="cuda:1")
        with pytest.raises(MixedDevicesError, match=r"aten::mm .* 'cuda:0'\), .* 'cuda:1'\)"):
            one @ other
        with pytest.raises(MixedDevicesError):
            one.sum() + other.sum()
        with pytest.raises(MixedDevicesError):
            other[torch.tensor([0, 1], device=FIRST)]
        assert other[torch.tensor([0, 1])].device == SECOND  # indices may be on the CPU
        with pytest.raises(MixedDevicesError):
            torch.ones(3)[torch.tensor([0, 1], device=FIRST)]
        moved, met = one.to(SECOND), list[torch.device]()
        moved.register_hook(lambda gradient: met.append(gradient.device))  # type: ignore[no-untyped-call]
        torch.autograd.backward((moved @ other).sum())
        assert one.grad is not None
        assert (*met, one.grad.device, other.cpu().device) == (SECOND, FIRST, CPU)
        assert devices.num_operations["cuda:1"]


@pytest.mark.parametrize(
    "name", [*DENSE, *EXPERTS, *HYBRID, "mixtral with LoRA", "gpt-oss with LoRA"]
)
def test_a_split_model_gives_the_same_bytes(name: str) -> None:
    expected, model = measured(experts(name), CPU), experts(name)
    with pretended_devices() as devices:
        place(model, {FIRST: MUCH, SECOND: MUCH})
        assert {p.device for p in model.parameters()} == {FIRST, SECOND}
        assert measured(model, FIRST) == expected
        assert devices.num_operations["cuda:0"] > 100
        assert devices.num_operations["cuda:1"] > 100


@pytest.mark.parametrize("name", ["llama", "deepseek-v3", "falcon-h1", "gpt-oss with LoRA"])
def test_a_model_that_the_devices_have_no_room_for(name: str) -> None:
    expected, model = measured(experts(name), CPU), experts(name)
    room = first_and_cpu(model)
    with pretended_devices() as devices:
        place(model, room)
        assert {p.device for p in model.parameters()} == {FIRST, CPU}
        assert measured(model, FIRST) == expected
        assert devices.num_operations["cuda:1"] > 100


def test_blocks_on_the_cpu_without_pretended_devices() -> None:
    expected, model = measured(experts("mixtral"), CPU), experts("mixtral")
    others, blocks = sizes_of(model)
    place(model, {CPU: others + 2 * blocks[0]})  # of three
    assert "forward" in vars(decoder_blocks(model)[-1])
    assert measured(model, CPU) == expected


def adam_state(model: Any) -> AdamState:
    """Moments of all layers but one, as a trainer might leave them."""
    random = torch.Generator().manual_seed(4)
    layers = linear_layers(model)[1:]
    parameters = [p for each in layers for p in (each.parameter, each.bias) if p is not None]
    return AdamState(
        parameters={
            id(p): (
                torch.randn(p.shape, generator=random),
                torch.rand(p.shape, generator=random),
            )
            for p in parameters
        },
        step=3,
    )


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gpt-oss", "gpt-oss with LoRA"])
def test_all_scores_of_a_split_model(name: str) -> None:
    scores = tuple(s for s in SCORERS if s != "lora-gradient" or name.endswith("LoRA"))
    scoring = ScoringSection(
        scores=scores, importance="loss", shard_rows=4, batch_tokens=64, features="hidden-mean",
        feature_width=8,
    )  # fmt: skip

    def everything(model: Any) -> tuple[Any, ...]:
        executor = LocalExecutor(
            model, Tokens(samples()), scoring, target=target(), optimizer=adam_state(model)
        )
        found = Measurement.concatenate(list(executor.measure(np.arange(11))))
        of_target = executor.target()
        assert of_target is not None
        assert of_target.sketches is not None
        assert of_target.losses is not None
        assert found.sketches is not None
        scores = {name: value.tobytes() for name, value in found.scores.items()}
        arrays = (found.features, found.sketches, of_target.features, of_target.sketches)
        return (scores, of_target.losses.tobytes(), *(array.tobytes() for array in arrays))

    expected = everything(experts(name))
    model = experts(name)
    room = first_and_cpu(model) if name == "gpt-oss" else {FIRST: MUCH, SECOND: MUCH}
    with pretended_devices():
        place(model, room)
        assert everything(model) == expected


def test_a_refresh_with_the_model_split(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    checkpoint = write_checkpoint(tmp_path / "run", 10)
    scoring = {"dtype": "float32", "scores": ["gradient-norm", "loss", "influence"]}
    recipe = tiny_recipe(tmp_path, scoring=scoring, target={"path": "train.jsonl"})
    refresh(recipe, checkpoint, store=tmp_path / "whole")
    with pretended_devices() as devices:
        refresh(recipe, checkpoint, store=tmp_path / "split", set={"scoring.device": "split"})
    assert devices.num_operations["cuda:0"] > 1000
    assert devices.num_operations["cuda:1"] > 1000
    whole, split = (
        Path(tmp_path, name, "measurements/version=000001/measured.parquet").read_bytes()
        for name in ("whole", "split")
    )
    assert split == whole
    scoring_of_version = Store.open(tmp_path / "split").header(1).settings.scoring
    assert scoring_of_version is not None
    assert scoring_of_version.device == "split"


@pytest.mark.parametrize("kind", ["checkpoint", "adapter"])
def test_loading_over_devices(tmp_path: Path, kind: str) -> None:
    if kind == "adapter":
        write_checkpoint(tmp_path / "base", 0)
        path = write_adapter(tmp_path / "run", 10, tmp_path / "base/checkpoint-0")
    else:
        path = write_checkpoint(tmp_path / "run", 10)
    (checkpoint,) = find_checkpoints(path.parent, SETTINGS)
    known = [(ids % 64, mask) for ids, mask in make_samples()]
    with pin(checkpoint, tmp_path / "pins", SETTINGS) as pinned:
        whole = load_model(pinned, SETTINGS, device="cpu", dtype="float32")
        with pretended_devices() as devices:
            model = load_model(pinned, SETTINGS, device="split", dtype="float32")
            own = [block.parameters() for block in decoder_blocks(model)]
            assert [{p.device for p in each} for each in own] == [{FIRST}, {SECOND}]
            assert model.get_output_embeddings().weight.device == FIRST  # type: ignore[operator]
            assert measured(model, FIRST, known) == measured(whole, CPU, known)
            devices.room = 4096
            with pytest.raises(MeasureError, match="memory of all GPUs and the CPU: free some"):
                load_model(pinned, SETTINGS, device="split", dtype="float32")


class Held(GradientNorm):
    """Notes what the second device holds whenever a layer is delivered."""

    def __init__(self, devices: Any) -> None:
        self.devices, self.most = devices, 0

    def on_layer(self, batch: Batch, layer: Layer, inputs: Any, gradients: Any) -> None:
        self.most = max(self.most, self.devices.num_bytes(SECOND))
        super().on_layer(batch, layer, inputs, gradients)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_weights_on_the_cpu_are_on_the_device_one_at_a_time(name: str) -> None:
    def most_held(room_of_second: int) -> int:
        model = experts(name)
        others, _ = sizes_of(model)
        with pretended_devices() as devices:
            place(model, {FIRST: others, SECOND: room_of_second})
            held, before = Held(devices), devices.num_bytes(SECOND)
            with ModelPass(model, [held]) as opened:
                opened.run(TokenBatch.pack(make_samples((6, 4)), FIRST))
            assert devices.num_bytes(SECOND) < before + 4096  # no block is left there
        return held.most

    _, blocks = sizes_of(experts(name))
    of_weights = most_held(MUCH) - most_held(max(blocks))
    assert of_weights >= sum(blocks) - max(blocks)


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    room=st.lists(st.integers(0, 200), min_size=1, max_size=4),
    of_others=st.integers(0, 100),
)
def test_no_device_gets_more_than_it_has_room_for(
    sizes: list[int], room: list[int], of_others: int
) -> None:
    names = [torch.device("cuda", i) for i in range(len(room))]
    rooms = dict(zip(names, room, strict=True))
    try:
        found = _devices_of_blocks(sizes, of_others, rooms)
    except MemoryError as error:
        is_of_others = "embeddings and head" in str(error)
        last = room[-1] - of_others * (len(room) == 1)
        assert of_others > room[0] if is_of_others else max(sizes) > last
        return
    order = [len(room) if device is None else names.index(device) for device in found]
    assert order == sorted(order)
    taken = {name: of_others * (name == names[0]) for name in names}
    for size, device in zip(sizes, found, strict=True):
        if device is not None:
            taken[device] += size
    if None in found:
        taken[names[-1]] += max(sizes)  # to bring the others to
    assert all(taken[name] <= rooms[name] for name in names)


def test_devices_get_even_parts() -> None:
    three = {torch.device("cuda", i): MUCH for i in range(3)}
    found = _devices_of_blocks([10] * 10, 20, three)
    assert [found.count(device) for device in three] == [2, 4, 4]
    unequal = {FIRST: 1000, SECOND: 25}
    assert _devices_of_blocks([10] * 6, 5, unequal) == [FIRST] * 4 + [SECOND] * 2
    assert _devices_of_blocks([10] * 6, 5, {FIRST: 25, SECOND: 30}) == [
        *([FIRST] * 2), *([SECOND] * 2), None, None,
    ]  # fmt: skip


def test_split_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="finds no GPU here to split the model over; use auto"):
        resolve_device("split")
    with pretended_devices():
        assert devices_for("split", None) == ["split"]
        assert devices_for("cuda", None) == ["cuda:0", "cuda:1"]
    with pytest.raises(RecipeError, match="executor is 'ray', whose actors have one GPU each"):
        tiny_recipe(tmp_path, scoring={"device": "split", "executor": "ray"})
    with pytest.raises(RecipeError, match=r"device is 'split', .* and processes is 2"):
        tiny_recipe(tmp_path, scoring={"device": "split", "processes": 2})
    model = experts("llama")
    first, second, *_ = decoder_blocks(model)
    second.mlp.up_proj.weight = first.mlp.up_proj.weight  # type: ignore[union-attr]
    with pytest.raises(MeasureError, match=r"its blocks share weights; set scoring\.device to"):
        place(model, {FIRST: MUCH, SECOND: MUCH})
    with pytest.raises(MeasureError, match="no decoder blocks were found"):
        place(torch.nn.Linear(2, 2), {FIRST: MUCH})


def test_a_share_of_the_memory_is_left_for_batches() -> None:
    model = experts("llama")
    others, blocks = sizes_of(model)
    with pretended_devices(num_gpus=1) as devices:
        devices.room = int((others + 2 * blocks[0]) / SHARE_FOR_WEIGHTS) + 1
        spread(model)
        found = [next(block.parameters()).device for block in decoder_blocks(model)]
    assert found == [FIRST, CPU, CPU]
