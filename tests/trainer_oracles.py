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
from tests.trainer_kinds import CUTS, KINDS, ROWS, digest, made_tokenizer

DATA = Path(__file__).parent / "data"
SHOWN = ("default", "qwen3", "llama3", "mistral", "chatml")
"""Templates of which the file has one row's ids as they are; of the others it has hashes."""
IGNORED = -100
Tokens = tuple[list[int], list[bool]]
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
ENDS_OTHERWISE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n\n{% endfor %}"
CALLS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n"
    "{% for c in message.tool_calls or [] %}[{{ c.function | tojson }}]{% endfor %}"
    "{% if not message.tool_calls %}{{ message.content }}{% endif %}</s>\n{% endfor %}"
)
AXOLOTL_TEMPLATES = {
    "calls": CALLS,
    "chatml": CHATML.replace("<|im_end|>", "</s>"),
    "llama": LLAMA,
    "no end": ENDS_OTHERWISE,
}


def llamafactory_tokens(
    row: Json, name: str, cut: int, *, on_prompt: bool = False
) -> tuple[Any, Tokens | None]:
    """The tokenizer as LLaMA-Factory leaves it, and the tokens; None: the row is dropped."""
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
    if template.efficient_eos and len(converted["_prompt"]) > 1:
        return tokenizer, None  # labels that are not the tokens themselves: we refuse the row
    return tokenizer, (ids, [label != IGNORED for label in labels])


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
        settings: Json = {"train_on_inputs": on_prompt, "sequence_len": cut}
        settings |= {"chat_template": "tokenizer_default"}
        strategy = load(tokenizer, DictDefault(settings), {"type": "chat_template"})
    else:
        strategy = AlpacaPromptTokenizingStrategy(AlpacaPrompter(), tokenizer, on_prompt, cut)
    found = strategy.tokenize_prompt(row)
    ids, labels = list(found["input_ids"]), list(found["labels"])
    return None if len(ids) > cut else (ids, [label != IGNORED for label in labels])


def of_llamafactory() -> Iterator[tuple[str, list[Tokens | None]]]:
    """Template -> what each of `KINDS` becomes."""
    for name in TEMPLATES:
        yield name, [llamafactory_tokens(ROWS[kind], name, cut)[1] for kind, cut in KINDS]


def of_axolotl() -> Iterator[tuple[str, list[Tokens | None]]]:
    """Chat template -> what each of `KINDS` becomes."""
    for name, template in AXOLOTL_TEMPLATES.items():
        tokenizer = made_tokenizer(adds_bos=name == "llama", chat_template=template)
        yield name, [axolotl_tokens(ROWS[kind], tokenizer, cut) for kind, cut in KINDS]


def main(which: str) -> None:
    """Write the file of one of the two."""
    lines = []
    for name, tokens in {"llamafactory": of_llamafactory, "axolotl": of_axolotl}[which]():
        content: dict[str, Any] = {"hashes": [digest(row) for row in tokens]}
        shown = tokens[KINDS.index(("system", CUTS[-1]))]
        if name in SHOWN and shown is not None:
            content |= {"ids": shown[0], "labels": [int(label) for label in shown[1]]}
        lines.append(f"{json.dumps(name)}: {json.dumps(content)}")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (DATA / f"tokens_of_{which}.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
