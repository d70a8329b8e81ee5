"""Chat templates in the styles of families: ids and masks, and rows that templates refuse."""

from __future__ import annotations

import datetime
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers.utils.chat_template_utils as rendering
from transformers import PreTrainedTokenizerFast

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples import Conversation, load_samples, tokenize
from gracekit.samples.encode import Encoder
from gracekit.samples.marks import BRACKETS, with_fixed_date
from gracekit.samples.render import Renderer, UnrenderableError
from gracekit.types import Json
from tests.conversations import (
    CONVERSATIONS,
    TOOLS,
    call,
    compare,
    says,
    shown,
    system,
    tokenizer_for,
    user,
    without_marks,
)
from tests.templates_of_families import CHANNELS, CHATML, FAMILIES, LLAMA, PHI, THINKING
from tests.test_samples_tokens import train_tokenizer, with_template

DAY = datetime.datetime(2024, 7, 26)


class Day(datetime.datetime):
    """A clock that stands at `DAY`."""

    @classmethod
    def now(cls, tz: Any = None) -> Day:
        return cls(DAY.year, DAY.month, DAY.day, tzinfo=tz)


@pytest.fixture(scope="module")
def base() -> PreTrainedTokenizerFast:
    return train_tokenizer(trim_offsets=True)


def spoken(
    tokenizer: Any, messages: list[Json], tools: list[Json] | None = None, **options: Any
) -> list[str]:
    """The texts that carry loss."""
    data = DataSection.model_validate({"path": "-"} | options)
    rendered = Renderer(tokenizer, data).render(Conversation(tuple(messages), tools=tools))
    return [rendered.text[start:end] for start, end in rendered.spans]


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_masks_of_each_family(
    family: str, kind: str, base: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "datetime", Day)
    oracle, shipped = FAMILIES[family]
    messages, tools = CONVERSATIONS[kind]
    for source in (shipped or without_marks(oracle), oracle):
        compare(tokenizer_for(base, source), oracle, messages, tools, ())


def test_most_of_the_matrix_is_compared(
    base: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "datetime", Day)
    outcomes = [
        compare(tokenizer_for(base, shipped or without_marks(oracle)), oracle, *conversation, ())
        for oracle, shipped in FAMILIES.values()
        for conversation in list(CONVERSATIONS.values())[::4]
    ]
    assert sum(outcome.startswith("equal") for outcome in outcomes) > 0.8 * len(outcomes)
    assert set(outcomes) <= {"equal", "equal but for head and space", "refused"}


# --- what carries loss, said once in words ---


def test_an_answer_is_told_from_its_prompt_whatever_it_says(base: PreTrainedTokenizerFast) -> None:
    tokenizer = tokenizer_for(base, without_marks(CHATML))
    words = ["assistant", "<|im_end|>", "user\na<|im_end|>\n<|im_start|>assistant\n", "", " ", "a"]
    for said in words:
        messages = [user("a"), says(said), user(said), says(said)]
        assert spoken(tokenizer, messages) == [f"{said}<|im_end|>"] * 2


def test_a_turn_that_starts_as_a_tag_does_keeps_its_first_characters(
    base: PreTrainedTokenizerFast,
) -> None:
    opens = "{{- '<|im_start|>assistant\\n<think>\\n' }}\n{%- endif %}\n"
    head, _, _ = without_marks(THINKING).rpartition("{{- '<|im_start|>assistant\\n' }}")
    tokenizer = tokenizer_for(base, head + opens)
    messages = [user("a"), says("<th>15"), user("b"), says("<b>7", reasoning_content="hm")]
    # The prompt opens a block that earlier turns do not have; the last has it.
    assert spoken(tokenizer, messages) == ["<th>15<|im_end|>", "hm\n</think>\n\n<b>7<|im_end|>"]


def test_the_turn_of_a_call_is_learned_and_tools_are_in_the_prompt(
    base: PreTrainedTokenizerFast,
) -> None:
    tokenizer = tokenizer_for(base, without_marks(CHATML))
    messages = [user("Ulm?"), call({"town": "Ulm"})]
    renderer = Renderer(tokenizer, DataSection(path="-"))
    text = renderer.render(Conversation(tuple(messages), tools=TOOLS)).text
    assert text.startswith("<|im_start|>system\nTools:\n" + json.dumps(TOOLS[0]))
    assert spoken(tokenizer, messages, TOOLS) == [
        '<tool_call>{"name": "weather", "arguments": {"town": "Ulm"}}</tool_call><|im_end|>'
    ]


def test_named_templates_are_chosen_as_the_tokenizer_does(base: PreTrainedTokenizerFast) -> None:
    tokenizer = tokenizer_for(base, without_marks(CHATML))
    plain = without_marks(PHI)
    tokenizer.chat_template = {"default": plain, "tool_use": without_marks(CHATML)}
    assert spoken(tokenizer, [user("a"), says("b")]) == ["b<|end|>\n</s>"]
    assert spoken(tokenizer, [user("a"), says("b")], TOOLS) == ["b<|im_end|>"]
    tokenizer.chat_template = {"tool_use": without_marks(CHATML), "rag": plain}
    assert spoken(tokenizer, [user("a"), says("b")], TOOLS) == ["b<|im_end|>"]
    with pytest.raises(DataError, match=r"several chat templates \(rag, tool_use\), and none is"):
        spoken(tokenizer, [user("a"), says("b")])


@pytest.mark.parametrize("source", [CHATML, without_marks(CHATML), None], ids=str)
def test_a_turn_without_loss(source: str | None, base: PreTrainedTokenizerFast) -> None:
    tokenizer = with_template(tokenizer_for(base, source or ""), source)
    messages = [user("a"), says("b", has_loss=False), user("c"), says("d")]
    end = "</s>" if source is None else "<|im_end|>\n" if source is CHATML else "<|im_end|>"
    assert spoken(tokenizer, messages) == [f"d{end}"]
    assert spoken(tokenizer, messages[:2]) == []
    assert len(spoken(tokenizer, messages, loss_on="all")) == 1


def test_a_last_turn_without_loss_takes_the_end_of_the_sequence_with_it(
    base: PreTrainedTokenizerFast,
) -> None:
    messages = [user("a"), says("b"), user("c"), says("d", has_loss=False)]
    for source, end in ((PHI, "<|end|>\n"), (without_marks(PHI), "<|end|>")):
        assert spoken(tokenizer_for(base, source), messages) == [f"b{end}"]


def test_a_prompt_that_a_template_always_puts_at_the_end_is_not_learned(
    base: PreTrainedTokenizerFast,
) -> None:
    tokenizer = tokenizer_for(base, without_marks(CHATML) + "<|im_start|>assistant\n")
    assert spoken(tokenizer, [user("a"), says("b")]) == ["b<|im_end|>"]


def test_what_a_tool_says_is_not_learned_wherever_it_is_written(
    base: PreTrainedTokenizerFast,
) -> None:
    looks_back = (
        "{% for message in messages %}{% if message.role == 'tool' %}<|tool|>"
        "{% for other in messages %}{% if other.tool_calls %}{{ loop.index0 }}{% endif %}"
        "{% endfor %}{{ message.content }}<|end|>"
        "{% else %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    looks_ahead = (
        "{% for message in messages %}{% if message.role != 'tool' %}"
        "<|{{ message.role }}|>{{ message.content }}{% if message.tool_calls %}<|call|>"
        "{% for k in range(loop.index, messages | length) %}"
        "{% if messages[k].role == 'tool' %}{% set follow = messages[k] %}"
        "<|tool|>{{ follow.content }}{% endif %}{% endfor %}{% endif %}<|end|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    messages = [user("Ulm?"), call({}, "1"), {"role": "tool", "content": "rain"}, says("It rains")]
    assert spoken(tokenizer_for(base, looks_back), messages) == ["1<|end|>", "It rains<|end|>"]
    assert spoken(tokenizer_for(base, looks_ahead), messages) == [
        "1<|call|>",
        "<|end|>",
        "It rains<|end|>",
    ]


# --- templates that cannot be marked ---


WITHOUT_A_LOOP = (
    "{% for role in messages | map(attribute='role') %}<|im_start|>{{ role }}\n"
    "{{ (messages | map(attribute='content') | list)[loop.index0] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LISTS_ITS_KEYS = CHATML.replace("message.content", "(message | tojson)")


def test_templates_without_a_loop_over_messages_are_read_by_prefixes(
    base: PreTrainedTokenizerFast,
) -> None:
    tokenizer = tokenizer_for(base, WITHOUT_A_LOOP)
    messages = [says("x"), user("a"), says("a"), user("<|im_end|>"), says("b")]
    assert spoken(tokenizer, messages)[1:] == ["a<|im_end|>", "b<|im_end|>"]
    tokenizer = tokenizer_for(base, "{{ messages | length }}" + WITHOUT_A_LOOP)
    with pytest.raises(UnrenderableError, match=r"message 0 differently.*chat_template to false"):
        spoken(tokenizer, messages)


def test_a_template_that_shows_all_keys_is_rendered_as_it_is(base: PreTrainedTokenizerFast) -> None:
    tokenizer = tokenizer_for(base, without_marks(LISTS_ITS_KEYS))
    messages = [user("a"), says("b"), user("c"), says("d")]
    assert spoken(tokenizer, messages) == [f"{json.dumps(m)}<|im_end|>" for m in messages[1::2]]


def test_text_that_holds_the_marks_own_characters(base: PreTrainedTokenizerFast) -> None:
    tokenizer = tokenizer_for(base, without_marks(CHATML))
    for pairs in (BRACKETS[:1], BRACKETS):
        said = "".join(f"{a}b1.0{b}" for a, b in pairs)
        messages = [user(said), says(said), user("c"), says(said)]
        assert spoken(tokenizer, messages) == [f"{said}<|im_end|>"] * 2


# --- the date ---


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%B %d, %Y", "%A, %-d.%-m.%y %H:%M:%S"])
def test_the_date_is_the_same_on_every_day(form: str, base: PreTrainedTokenizerFast) -> None:
    source = "\n  {% set x = 1 %}{{ strftime_now('" + form + "') }}{{ messages[0].content }}"
    tokenizer = with_template(tokenizer_for(base, source), source)
    rendered = Renderer(tokenizer, DataSection(path="-")).render(
        Conversation((user("a"), says("b")))
    )
    assert rendered.text == "\n" + DAY.strftime(form) + "a"


@pytest.mark.parametrize("source", [LLAMA, CHANNELS], ids=["llama", "gpt-oss"])
def test_tokens_do_not_follow_the_clock(
    source: str, base: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_for(base, without_marks(source))
    renderer = Renderer(tokenizer, DataSection(path="-"))
    rendered = renderer.render(Conversation((user("a"), says("b"))))
    monkeypatch.setattr(rendering, "datetime", Day)
    text = tokenizer.apply_chat_template([user("a"), says("b")], tokenize=False)
    assert rendered.text == text, "as on the day that stands for all"


def test_templates_without_a_date_are_left_alone() -> None:
    assert with_fixed_date(CHATML) is CHATML


# --- rows that cannot be rendered ---


def write(folder: Path, rows: list[Any], **options: object) -> tuple[Any, DataSection]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataSection.model_validate({"path": str(path)} | options)
    return load_samples(data), data


def test_a_row_that_a_template_refuses_is_listed_and_stops_nothing(
    base: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tokenizer_for(base, FAMILIES["Gemma 2"][0])
    good, bad = [user("a"), says("b")], [system("s"), user("a"), says("b")]
    rows = [{"messages": m} for m in (good, bad, [user("x"), says("y")], [*good, says("c")], bad)]
    raw, data = write(tmp_path, [{"messages": []}, *rows])
    with caplog.at_level(logging.WARNING):
        table = tokenize(raw, tokenizer, data, tmp_path / "cache")
    assert [(s.source_row, "System role" in s.reason) for s in table.unrendered] == [
        (2, True),
        (4, False),
        (5, True),
    ]
    assert "Roles must alternate" in table.unrendered[1].reason
    assert table.lengths.tolist()[1] == table.num_targets.tolist()[1] == 0
    assert (table.num_targets[[0, 2]] > 0).all()
    (record,) = caplog.records
    assert "2 rows cannot be rendered and are left out" in record.message  # of contents
    assert "row 2: the tokenizer's chat template refuses" in record.message
    caplog.clear()
    again = tokenize(raw, tokenizer, data, tmp_path / "cache")
    assert again.unrendered == table.unrendered
    assert caplog.records == [], "told once"
    more, data = write(tmp_path, [{"messages": []}, *rows, {"messages": [user("n"), says("m")]}])
    grown = tokenize(more, tokenizer, data, tmp_path / "cache")
    assert grown.unrendered == table.unrendered
    assert grown.num_targets[-1] > 0


def test_when_no_row_can_be_rendered_the_first_reasons_are_the_error(
    base: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer = tokenizer_for(base, FAMILIES["Gemma 2"][0])
    rows = [{"messages": [system(f"s{k}"), user("a"), says("b")]} for k in range(7)]
    raw, data = write(tmp_path, rows)
    with pytest.raises(DataError, match=r"no row can be rendered.*\n  row 0: .*(?s:.*)and 2 more"):
        tokenize(raw, tokenizer, data, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_half_of_a_surrogate_pair_is_one_bad_row(
    base: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    renderer = Renderer(tokenizer_for(base, CHATML), DataSection(path="-"))
    with pytest.raises(UnrenderableError, match="half of a surrogate pair"):
        renderer.render(Conversation((user("a\ud800"), says("b"))))


# --- cases of the kinds that went wrong: tools, thinking, several turns, split turns, ... ---


def test_case_3_tools_reach_the_prompt(base: PreTrainedTokenizerFast) -> None:
    tokenizer = tokenizer_for(base, without_marks(CHATML))
    with_tools = Conversation((user("a"), says("b")), tools=TOOLS)
    without = Conversation((user("a"), says("b")))
    render = Renderer(tokenizer, DataSection(path="-")).render
    assert '"name": "weather"' in render(with_tools).text
    assert "weather" not in render(without).text
    assert with_tools.canonical() != without.canonical()
    assert without.canonical() == json.dumps(
        [False, [user("a"), says("b")]], sort_keys=True, separators=(",", ":")
    ), "contents without tools keep their hashes"


def test_case_4_thinking_in_an_earlier_turn(base: PreTrainedTokenizerFast) -> None:
    messages = [
        user("11+4?"),
        says("<think>\n11 and 4 make 15\n</think>\n\n15"),
        user("And 11-4?"),
        says("<think>\ntake 4 away\n</think>\n\n7"),
    ]
    assert spoken(tokenizer_for(base, without_marks(THINKING)), messages) == [
        "15<|im_end|>",
        "<think>\ntake 4 away\n</think>\n\n7<|im_end|>",
    ]


def test_case_5_several_turns_with_an_end_of_sequence_behind_all(
    base: PreTrainedTokenizerFast,
) -> None:
    messages = [user("Ulm?"), says("A town."), user("More?"), says("It has 1 tower.")]
    assert spoken(tokenizer_for(base, without_marks(PHI)), messages) == [
        "A town.<|end|>",
        "It has 1 tower.<|end|>\n</s>",
    ]


def test_case_6_a_turn_in_two_messages(base: PreTrainedTokenizerFast) -> None:
    messages = [user("Name two towns, 0."), says("Ulm."), says("Jena 0.")]
    assert spoken(tokenizer_for(base, without_marks(THINKING)), messages) == [
        "<think>\n\n</think>\n\nUlm.<|im_end|>",
        "<think>\n\n</think>\n\nJena 0.<|im_end|>",
    ]


def test_case_9_the_next_roles_token_ends_a_turn(base: PreTrainedTokenizerFast) -> None:
    shipped = FAMILIES["GLM-4.5"][1]
    assert shipped is not None
    tokenizer = tokenizer_for(base, shipped)
    messages = [user("a"), says("b"), user("c"), call({}), {"role": "tool", "content": "d"},
                says("e"), says("f")]  # fmt: skip
    assert spoken(tokenizer, messages) == [
        "\nb<|user|>",
        "\n\n<tool_call>weather</tool_call><|observation|>",
        "\ne",
        "\nf",
    ]


def test_case_16_a_turn_of_no_weight(base: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [[user("Add 0 and 1."), says("2", has_loss=False), user("No, again."), says("1")]]
    raw, data = write(tmp_path, [{"messages": messages} for messages in rows])
    tokenizer = tokenizer_for(base, without_marks(CHATML))
    table = tokenize(raw, tokenizer, data, tmp_path / "cache")
    ((ids, mask),) = table.take(np.array([0]))
    assert tokenizer.decode(ids[mask]) == "1<|im_end|>"
    assert ids.tolist() == tokenizer.apply_chat_template(shown(rows[0]))["input_ids"]


def test_case_17_texts_that_are_rendered_already(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = train_tokenizer(trim_offsets=True, adds_bos=True)
    texts = [f"<s>[INST] Add {k} and 1. [/INST] {k + 1}</s>" for k in range(3)]
    texts += ["<s>no end", "no begin</s>\n", "neither"]
    raw, data = write(tmp_path, [{"text": text} for text in texts])
    with caplog.at_level(logging.WARNING):
        table = tokenize(raw, tokenizer, data, tmp_path / "cache")
    found = [tokenizer.decode(ids) for ids, _ in table.take(np.arange(6))]
    assert found == [*texts[:3], "<s>no end</s>", "<s>no begin</s>\n", "<s>neither</s>"]
    (record,) = caplog.records
    assert "5 texts (the first is row 0) hold the token that begins or ends" in record.message

    im_end = train_tokenizer(trim_offsets=True)
    im_end.eos_token = "<|im_end|>"
    text = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    rendered = Renderer(im_end, DataSection(path="-"))
    as_text = Conversation(({"role": "text", "content": text},), is_text=True)
    assert rendered.render(as_text).text == text
    pair = rendered.render(Conversation((user("a"), says("b<|im_end|>"))))
    assert pair.text == "a\nb<|im_end|>"
    assert pair.was_rendered
    assert not rendered.render(Conversation((user("a"), says("b")))).was_rendered


def test_the_encoder_is_given_what_was_rendered(base: PreTrainedTokenizerFast) -> None:
    tokenizer = tokenizer_for(base, CHATML)
    rendered = Renderer(tokenizer, DataSection(path="-")).render(
        Conversation((user("a"), says("b")))
    )
    ((ids, mask),) = Encoder(tokenizer).encode([rendered], 100)
    out = tokenizer.apply_chat_template(
        [user("a"), says("b")], return_dict=True, return_assistant_tokens_mask=True
    )
    assert ids.tolist() == out["input_ids"]
    assert mask.astype(int).tolist() == out["assistant_masks"], "marks are followed to the letter"
