"""Tokens and loss of LLaMA-Factory and Axolotl: ours beside what the libraries gave, and give.

`make test-llamafactory` and `make test-axolotl` run those with a mark, each in an environment of
its own; the others are held against the files that `trainer_oracles.py` wrote there.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit import Recipe, check_tokens
from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples import LLAMAFACTORY_RENDERINGS, rendered_tokens
from gracekit.samples.formats import named_format
from gracekit.samples.llamafactory import shares
from gracekit.samples.llamafactory_templates import TEMPLATES
from gracekit.samples.spans import UnrenderableError
from gracekit.types import Json
from tests.tiny import recipe_content
from tests.trainer_kinds import (
    CHATS,
    INSTRUCTIONS,
    KINDS,
    NAMED,
    ROWS,
    digest,
    made_tokenizer,
    turns,
)
from tests.trainer_oracles import (
    AXOLOTL_TEMPLATES,
    CALLS,
    DATA,
    Tokens,
    axolotl_tokens,
    llamafactory_tokens,
)


def section(rendering: str, **more: Any) -> DataSection:
    return DataSection(path="-", rendering=rendering, **more)


def ours(row: Json, tokenizer: Any, data: DataSection) -> Tokens | None:
    """Our tokens; None where the row cannot be rendered."""
    layout = named_format(data, "messages" if "messages" in row else "alpaca")
    try:
        ((ids, mask),) = rendered_tokens([layout.conversation(row)], tokenizer, data)
    except UnrenderableError:
        return None
    return ids.tolist(), mask.tolist()


def saved_tokenizer(name: str) -> Any:
    """As LLaMA-Factory saves it: with the template's tokens."""
    made, template = made_tokenizer(), TEMPLATES[name]
    words = list(template.stop_words)
    if template.replaces_eos:
        made.add_special_tokens({"eos_token": words.pop(0)})
    made.add_tokens(words, special_tokens=True)
    return made


def same(found: Tokens | None, theirs: Tokens | None) -> bool:
    """Equal ids and labels; the first token's label predicts nothing."""
    loses = [tokens is None or not any(tokens[1][1:]) for tokens in (found, theirs)]
    if any(loses) or found is None or theirs is None:
        return all(loses)
    return found[0] == theirs[0] and found[1][1:] == theirs[1][1:]


@pytest.fixture(scope="module")
def of_llamafactory() -> Any:
    return json.loads((DATA / "tokens_of_llamafactory.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def of_axolotl() -> Any:
    return json.loads((DATA / "tokens_of_axolotl.json").read_text("utf-8"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_that_llamafactory_gave(name: str, of_llamafactory: Any) -> None:
    theirs, tokenizer = of_llamafactory[name], saved_tokenizer(name)
    for (kind, cut), hashed in zip(KINDS, theirs["hashes"], strict=True):
        data = section(f"llamafactory:{name}", max_length=cut)
        assert digest(ours(ROWS[kind], tokenizer, data)) == hashed, (kind, cut)
    _are_shown(ours(CHATS["system"], tokenizer, section(f"llamafactory:{name}")), theirs)


@pytest.mark.parametrize("name", AXOLOTL_TEMPLATES)
def test_tokens_are_those_that_axolotl_gave(name: str, of_axolotl: Any) -> None:
    tokenizer = made_tokenizer(adds_bos=name == "llama", chat_template=AXOLOTL_TEMPLATES[name])
    for (kind, cut), hashed in zip(KINDS, of_axolotl[name]["hashes"], strict=True):
        found = ours(ROWS[kind], tokenizer, section("axolotl", max_length=cut))
        assert digest(found) == hashed, (kind, cut)
    _are_shown(ours(CHATS["system"], tokenizer, section("axolotl")), of_axolotl[name])


def _are_shown(found: Tokens | None, theirs: Json) -> None:
    if "ids" in theirs:
        assert found is not None
        assert found[0] == theirs["ids"]
        assert [int(label) for label in found[1]][1:] == theirs["labels"][1:]


@pytest.mark.llamafactory
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(importlib.util.find_spec("llamafactory") is None, reason="not installed")
@pytest.mark.parametrize("on_prompt", [False, True], ids=["answers", "train_on_prompt"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_llamafactory(name: str, on_prompt: bool) -> None:
    if on_prompt and TEMPLATES[name].ends_once:
        with pytest.raises(ValueError, match="train_on_prompt"):
            llamafactory_tokens(CHATS["one turn"], name, 64, on_prompt=True)
        with pytest.raises(DataError, match="refuses train_on_prompt"):
            ours(
                CHATS["one turn"],
                saved_tokenizer(name),
                section(f"llamafactory:{name}", loss_on="all"),
            )
        return
    history = {"history": [["1?", "1"], ["it?", "It."]], "system": "Kind."}
    rows = [(kind, ROWS[kind], cut) for kind, cut in KINDS]
    rows += [("history", INSTRUCTIONS["with input"] | history, 512)]
    rows += [("starts with the assistant", {"messages": turns("a", "b", "c", "d")[1:]}, 512)]
    for kind, row, cut in rows:
        tokenizer, theirs = llamafactory_tokens(row, name, cut, on_prompt=on_prompt)
        assert tokenizer.get_vocab() == saved_tokenizer(name).get_vocab()
        loss_on = "all" if on_prompt else "auto"
        data = section(f"llamafactory:{name}", max_length=cut, loss_on=loss_on)
        found = ours(row, tokenizer, data)
        assert same(found, theirs), (kind, cut, found, theirs)


@pytest.mark.axolotl
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(importlib.util.find_spec("axolotl") is None, reason="not installed")
@pytest.mark.parametrize("adds_bos", [False, True], ids=["no-bos", "bos"])
@pytest.mark.parametrize("on_inputs", [False, True], ids=["answers", "train_on_inputs"])
@pytest.mark.parametrize("name", AXOLOTL_TEMPLATES)
def test_tokens_are_those_of_axolotl(name: str, on_inputs: bool, adds_bos: bool) -> None:
    tokenizer = made_tokenizer(adds_bos=adds_bos, chat_template=AXOLOTL_TEMPLATES[name])
    for kind, cut in KINDS:
        theirs = axolotl_tokens(ROWS[kind], tokenizer, cut, on_prompt=on_inputs)
        loss_on = "all" if on_inputs else "auto"
        data = section("axolotl", max_length=cut, loss_on=loss_on)
        found = ours(ROWS[kind], tokenizer, data)
        assert same(found, theirs), (kind, cut, found, theirs)


@pytest.mark.axolotl
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(importlib.util.find_spec("axolotl") is None, reason="not installed")
@pytest.mark.parametrize("name", AXOLOTL_TEMPLATES)
def test_names_of_roles_are_read_as_axolotl_reads_them(name: str) -> None:
    tokenizer = made_tokenizer(chat_template=AXOLOTL_TEMPLATES[name])
    for kind, row in NAMED.items():
        for on_inputs, loss_on in ((False, "auto"), (True, "all")):
            theirs = axolotl_tokens(row, tokenizer, 512, on_prompt=on_inputs)
            found = ours(row, tokenizer, section("axolotl", loss_on=loss_on))
            assert same(found, theirs), (kind, loss_on, found, theirs)


def test_a_role_that_axolotl_does_not_know_keeps_its_name_and_has_no_loss() -> None:
    tokenizer = made_tokenizer(chat_template=AXOLOTL_TEMPLATES["no end"])
    found = ours(NAMED["ShareGPT's calls"], tokenizer, section("axolotl"))
    assert found is not None
    text = tokenizer.decode(found[0])
    assert "[function_call] " in text and "[user] Ulm?" in text and "[observation] rain" in text
    learned = tokenizer.decode([i for i, carries in zip(*found, strict=True) if carries])
    assert "It rains." in learned and "weather" not in learned
    named = section("axolotl", roles={"assistant": ["function_call"], "tool": ["observation"]})
    found = ours(NAMED["ShareGPT's calls"], tokenizer, named)
    assert found is not None
    learned = tokenizer.decode([i for i, carries in zip(*found, strict=True) if carries])
    assert "weather" in learned and "[tool] rain" in tokenizer.decode(found[0])


@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 99))
def test_room_is_shared_by_prompt_and_answer(asked: int, answer: int, room: int) -> None:
    kept_asked, kept_answer = shares(asked, answer, room)
    assert 0 <= kept_asked <= asked and 0 <= kept_answer <= answer
    assert kept_asked + kept_answer == min(asked + answer, room)
    if 2 * answer < room:
        assert kept_answer == answer
    elif 2 * asked < room:
        assert kept_asked == asked


def test_what_is_not_built_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"found 'axolotls', expected one of auto, .*TEMPLATE"):
        section("axolotls")
    with pytest.raises(DataError, match="template 'baichuan' is not built; expected one of defa"):
        ours(CHATS["one turn"], made_tokenizer(), section("llamafactory:baichuan"))
    with pytest.raises(DataError, match=r"lacks <\|im_end\|>, which LLaMA-Factory adds"):
        ours(CHATS["one turn"], made_tokenizer(), section("llamafactory:qwen"))
    tools = {"messages": CHATS["one turn"]["messages"], "tools": [{"type": "function"}]}
    data = section("llamafactory:default")
    layout = named_format(data, "messages")
    with pytest.raises(UnrenderableError, match="tools in LLaMA-Factory's templates are not built"):
        rendered_tokens([layout.conversation(tools)], made_tokenizer(), data)
    last = {"messages": NAMED["ShareGPT's calls"]["messages"][:3]}  # a call, without its result
    with pytest.raises(UnrenderableError, match="tools in LLaMA-Factory's templates are not built"):
        rendered_tokens([layout.conversation(last)], made_tokenizer(), data)
    pair = named_format(data, "prompt-completion").conversation({"prompt": "a", "completion": "b"})
    with pytest.raises(UnrenderableError, match=r"only chats .* and instruction, input and output"):
        rendered_tokens([pair], made_tokenizer(chat_template="x"), section("axolotl"))
    otherwise = made_tokenizer(
        chat_template=CALLS.replace("message.", "m.").replace("message in", "m in")
    )
    calls = named_format(data, "messages").conversation(CHATS["tools"])
    with pytest.raises(UnrenderableError, match="'tool_calls' of a turn by a name other than"):
        rendered_tokens([calls], otherwise, section("axolotl"))
    with pytest.raises(DataError, match="needs a chat template"):
        ours(CHATS["one turn"], made_tokenizer(), section("axolotl"))


def test_no_token_goes_over_the_border_of_prompt_and_answer() -> None:
    """Beside a text that is tokenised as a whole."""
    row, tokenizer = {"messages": turns("5", "\n1")}, made_tokenizer()
    found = ours(row, tokenizer, section("llamafactory:empty"))
    assert found is not None
    assert found[0] == tokenizer("5")["input_ids"] + tokenizer("\n1")["input_ids"]
    assert np.flatnonzero(found[1]).tolist() == [1]


def test_renderings_are_values_of_the_recipe() -> None:
    assert len(LLAMAFACTORY_RENDERINGS) == len(TEMPLATES)
    for name in LLAMAFACTORY_RENDERINGS:
        assert section(name).rendering == name


@pytest.mark.parametrize(
    "rendering",
    ["llamafactory:default", "llamafactory:mistral", "axolotl"],
)
def test_the_check_names_the_rendering(rendering: str, tmp_path: Path) -> None:
    rows = [CHATS[kind] for kind in ("one turn", "several turns", "system", "both long")]
    tokenizer = made_tokenizer(chat_template=AXOLOTL_TEMPLATES["no end"] + "{{ eos_token }}\n")
    cut = 500 if rendering == "axolotl" else 90
    found = [ours(row, tokenizer, section(rendering, max_length=cut)) for row in rows]
    fed = [
        {"input_ids": ids, "labels": [i if c else -100 for i, c in zip(ids, carried, strict=True)]}
        for ids, carried in filter(None, found)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": "train.jsonl", "max_length": 500, "group_column": None, "rendering": "chat"}
    recipe = Recipe.from_dict(recipe_content(data=data), folder=tmp_path)
    report = check_tokens(fed, recipe, tokenizer=tokenizer)
    assert not report.ok
    advice = "\n".join(report.lines())
    assert f"set data.rendering: {rendering}" in advice, advice
    assert ("data.max_length: 90" in advice) == (cut == 90)
    mended = Recipe.from_dict(
        recipe_content(data=data | {"rendering": rendering, "max_length": cut}), folder=tmp_path
    )
    assert check_tokens(fed, mended, tokenizer=tokenizer).ok
