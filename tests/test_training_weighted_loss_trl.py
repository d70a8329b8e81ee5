"""Weights in the loss of TRL's SFTTrainer, which makes no logits (`make test-templates`)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from gracekit.training import CoresetTrainerMixin
from tests.weighted_training import (
    DRAWS,
    NUM_TARGETS,
    TOKENS_PER_ROW,
    all_draws,
    expected,
    make_model,
    pool,
    pool_gradient,
    publish,
    steps,
)

pytestmark = [
    pytest.mark.templates,
    pytest.mark.filterwarnings("ignore:.*label_smoothing_factor.*:FutureWarning"),
]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-7}
"""TRL's fused head computes in float32 in part."""


def sft(root: Path, **options: Any) -> list[torch.Tensor]:
    trl = pytest.importorskip("trl", reason="`make test-templates` fetches it")

    class WeighedSFTTrainer(CoresetTrainerMixin, trl.SFTTrainer):  # type: ignore[misc, name-defined]
        """What users write."""

    words = WordLevel({"<pad>": 0, **{str(i): i for i in range(1, 32)}}, unk_token="<pad>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="<pad>", eos_token="<pad>"
    )

    def make(**arguments: Any) -> Any:
        return WeighedSFTTrainer(**arguments, processing_class=tokenizer)

    return steps(
        root,
        kind=make,
        collator=None,
        dataset=datasets.Dataset.from_list(pool()),
        arguments_kind=trl.SFTConfig,
        bf16=False,
        gradient_checkpointing=False,
        **{"max_length": None, **options},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weighted") / "tokens" / "store"
    return publish(root, tokens_per_row=TOKENS_PER_ROW)


@pytest.mark.parametrize("average", ["tokens", "samples"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding_free": True},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
    ],
    ids=["padded", "padding-free", "one batch"],
)
def test_the_expected_gradient_of_an_sft_trainer_is_the_pools(
    store: Path, average: str, options: dict[str, Any]
) -> None:
    gradients = sft(store, loss=average, **options)
    torch.testing.assert_close(expected(gradients), pool_gradient(make_model(), average), **CLOSE)


def test_label_smoothing(store: Path) -> None:
    gradients = sft(store, label_smoothing_factor=0.2)
    truth = pool_gradient(make_model(), "tokens", smoothing=0.2)
    torch.testing.assert_close(expected(gradients), truth, **CLOSE)


def test_lora(store: Path) -> None:
    def adapted() -> Any:
        torch.manual_seed(1)
        config = LoraConfig(
            r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False
        )
        return get_peft_model(make_model(), config).double()

    gradients = sft(store, model=adapted())
    torch.testing.assert_close(expected(gradients), pool_gradient(adapted(), "tokens"), **CLOSE)


def test_weights_of_one_give_the_trainers_gradient_up_to_the_denominator(store: Path) -> None:
    alike = all_draws([1.0] * 5)
    unknown = publish(store.parent.parent / "unknown" / "store")
    own, weighed = sft(unknown, script=alike), sft(store, script=alike)
    for draw, one, other in zip(DRAWS, own, weighed, strict=True):
        ratio = NUM_TARGETS[draw].sum() / (4 * TOKENS_PER_ROW)
        torch.testing.assert_close(other, one * ratio, **CLOSE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "dft"}, "the loss is `loss_type='dft'`"),
        ({"packing": True, "max_length": 16, "padding_free": True}, "the dataset is packed"),
    ],
)
def test_what_cannot_be_weighed_goes_on_and_says_so_once(
    store: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], message: str
) -> None:
    script = [drawn for drawn in all_draws() if drawn < 2] if "packing" in options else None
    with caplog.at_level(logging.WARNING, logger="gracekit.training"):
        assert sft(store, script=script, **options)
    said = [r.message for r in caplog.records if "do not reach the loss" in r.message]
    assert len(said) == 1 and message in said[0]
