"""What LLaMA-Factory and Axolotl themselves make of the rows of `trainer_kinds.py`.

`python -m tests.trainer_oracles llamafactory` (or `axolotl`), in an environment that has it, writes
`tests/data/tokens_of_llamafactory.json`, which the ordinary tests are held against.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gracekit.samples.llamafactory_templates import TEMPLATES
from gracekit.types import Json
from tests.templates_of_families import CHATML
from tests.trainer_kinds import CHATS, CUTS, INSTRUCTIONS, digest, made_tokenizer

DATA = Path(__file__).parent / "data"
SHOWN = ("default", "qwen3", "llama3", "mistral")
"""Templates of which the file has ids as they are, to look at."""
IGNORED = -100
Tokens = tuple[list[int], list[bool]]
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
ENDS_OTHERWISE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n\n{% endfor %}"
AXOLOTL_TEMPLATES = {
    "chatml": CHATML.replace("<|im_end|>", "</s>"),
    "llama": LLAMA,
    "no end": ENDS_OTHERWISE,
}


def llamafactory_tokens(
    row: Json, name: str, cut: int, *, on_prompt: bool = False
) -> tuple[Any, Tokens | None]:
    """The tokenizer as LLaMA-Factory leaves it, and the row's tokens; None: it drops the row."""
    from llamafactory.data.converter import get_dataset_converter
    from llamafactory.data.parser import DatasetAttr
    from llamafactory.data.processor import SupervisedDatasetProcessor
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    arguments = DataArguments(template=name, cutoff_len=cut, train_on_prompt=on_prompt)
    tokenizer = made_tokenizer()
    template = get_template_and_fix_tokenizer(tokenizer, arguments)
    attributes = DatasetAttr("file", "train.jsonl")
    if "messages" in row:
        attributes.formatting, attributes.messages = "sharegpt", "messages"
        attributes.role_tag, attributes.content_tag = "role", "content"
        attributes.user_tag, attributes.assistant_tag = "user", "assistant"
        attributes.system_tag = "system"
    elif "history" in row:
        attributes.history, attributes.system = "history", "system"
    converted = get_dataset_converter(attributes.formatting, attributes, arguments)(
        copy.deepcopy(row)
    )
    processor = SupervisedDatasetProcessor(template, tokenizer, None, arguments)
    found = processor.preprocess_dataset({key: [value] for key, value in converted.items()})
    if not found:
        return tokenizer, None
    (ids,), (labels,) = found["input_ids"], found["labels"]
    carried = [label != IGNORED for label in labels]
    if any(c and label != i for c, label, i in zip(carried, labels, ids, strict=True)):
        return tokenizer, None  # a label that is not the token: refused by us
    return tokenizer, (ids, carried)


def axolotl_tokens(
    row: Json, tokenizer: Any, cut: int, *, on_prompt: bool = False
) -> Tokens | None:
    """The row's tokens; None: Axolotl drops it."""
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.prompt_tokenizers import AlpacaPromptTokenizingStrategy
    from axolotl.prompters import AlpacaPrompter
    from axolotl.utils.dict import DictDefault

    row = copy.deepcopy(row)
    if "messages" in row:
        settings = {"train_on_inputs": on_prompt, "sequence_len": cut}
        settings |= {"chat_template": "tokenizer_default"}
        strategy = load(tokenizer, DictDefault(settings), {"type": "chat_template"})
    else:
        strategy = AlpacaPromptTokenizingStrategy(AlpacaPrompter(), tokenizer, on_prompt, cut)
    found = strategy.tokenize_prompt(row)
    ids, labels = list(found["input_ids"]), list(found["labels"])
    return None if len(ids) > cut else (ids, [label != IGNORED for label in labels])


def _written(rows: Iterator[tuple[str, str, Tokens | None]], path: Path) -> None:
    content: dict[str, dict[str, Any]] = {}
    for name, kind, tokens in rows:
        of_name = content.setdefault(name, {})
        of_name[kind] = None if tokens is None else digest(*tokens)
        if tokens is not None and name in SHOWN and kind == "system 512":
            of_name["ids"], of_name["labels"] = tokens[0], [int(label) for label in tokens[1]]
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in content.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def of_llamafactory() -> Iterator[tuple[str, str, Tokens | None]]:
    for name in TEMPLATES:
        for kind, row in (CHATS | INSTRUCTIONS).items():
            for cut in CUTS if "long" in kind else CUTS[-1:]:
                yield name, f"{kind} {cut}", llamafactory_tokens(row, name, cut)[1]


def of_axolotl() -> Iterator[tuple[str, str, Tokens | None]]:
    for name, template in AXOLOTL_TEMPLATES.items():
        for kind, row in (CHATS | INSTRUCTIONS).items():
            for cut in CUTS[-2:]:
                tokenizer = made_tokenizer(adds_bos=name == "llama", chat_template=template)
                yield name, f"{kind} {cut}", axolotl_tokens(row, tokenizer, cut)


if __name__ == "__main__":
    which = sys.argv[1]
    _written(
        {"llamafactory": of_llamafactory, "axolotl": of_axolotl}[which](),
        DATA / f"tokens_of_{which}.json",
    )
