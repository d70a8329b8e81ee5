"""Loss spans beside TRL's training templates, which mark what is generated.

Run by `make test-templates`, which puts TRL's files beside the project's environment without
installing TRL. `docs/templates.md` has the numbers.
"""

from __future__ import annotations

import datetime
import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.chat_template_utils as rendering

from tests.conversations import CONVERSATIONS, compare, tokenizer_for, without_marks
from tests.test_samples_tokens import train_tokenizer

pytestmark = pytest.mark.templates

HEADS: dict[str, tuple[str, ...]] = {
    "qwen2_5": ("\n",),
    "deepseekv3": ("<｜tool▁outputs▁end｜>", "<｜Assistant｜>"),
    "deepseek_r1_distill": (
        "<｜tool▁outputs▁end｜>",
        "<｜Assistant｜><think>\n",
        "<｜Assistant｜>",
    ),
    "gptoss": ("<|start|>assistant",),
    "muse_glimmer": ("<|start|>assistant",),
    "qwen3_5_think": ("<think>\n",),
    "qwen3_6": ("<think>\n",),
    "qwen3_8": ("<think>\n",),
    "qwen3_5_nothink": ("<think>\n\n</think>\n\n", "<think>\n"),
    "nemotron_3_nano": ("<think>\n", "<think>"),
    "nemotron_3_super": ("<think>\n", "<think>"),
    "nemotron_3_ultra": ("<think>\n", "<think>"),
    "nemotron_3_5_lightning": ("<think>\n", "<think>"),
}
"""What TRL marks as generated although the generation prompt gives it."""

ON_PURPOSE = {
    ("diffusion_gemma", "tool call"),
    ("diffusion_gemma", "tool call with words"),
}
"""The token that hands over to the tool ends the turn here, and carries loss."""


def folder() -> Path:
    found = importlib.util.find_spec("trl")  # importing it would need its dependencies
    if found is None or not found.submodule_search_locations:
        pytest.skip("the files of trl are not importable; `make test-templates` fetches them")
    return Path(found.submodule_search_locations[0]) / "chat_templates"


class Friday(datetime.datetime):
    """The day that renderings have."""

    @classmethod
    def now(cls, tz: Any = None) -> Friday:
        return cls(2024, 7, 26, tzinfo=tz)


def names() -> list[str]:
    found = importlib.util.find_spec("trl")
    places = found.submodule_search_locations if found else None
    files = Path(places[0]).glob("chat_templates/*.jinja") if places else ()
    return sorted(file.stem for file in files) or ["(none)"]


@pytest.mark.parametrize("name", [n for n in names() if not n.endswith("_training")])
def test_ids_and_masks_are_those_of_the_training_template(
    name: str, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    monkeypatch.setattr(rendering, "datetime", Friday)
    source = (folder() / f"{name}.jinja").read_text("utf-8")
    training = folder() / f"{name}_training.jinja"
    oracle = training.read_text("utf-8") if training.exists() else source
    base = train_tokenizer(trim_offsets=True)
    counts: Counter[str] = Counter()
    if source == without_marks(oracle):  # no oracle: ids, and that spans can be told
        versions, oracle = {"as shipped": source}, "{{ 1 / 0 }}"
    else:
        versions = {"as shipped": source, "unmarked": without_marks(oracle), "marked": oracle}
    for version, text in versions.items():
        tokenizer = tokenizer_for(base, text)
        for kind, (messages, tools) in CONVERSATIONS.items():
            if version == "marked" or (name, kind) not in ON_PURPOSE:
                outcome = compare(tokenizer, oracle, messages, tools, HEADS.get(name, ()))
                counts[f"{version}: {outcome}"] += 1
    record_property("counts", dict(counts))
    print(f"\n{name}: {dict(sorted(counts.items()))}")
