"""Rows and a tokenizer that are held against the data code of LLaMA-Factory and Axolotl."""

from __future__ import annotations

from typing import Any

import xxhash
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gracekit.types import Json

MERGES = [
    ("Ċ", "Ċ"), (":", "Ċ"), (".", "Ċ"), ("Ċ", "1"), ("Ġ", "1"), (">", "1"), ("]", "Ġ"),
    ("]", "H"), ("i", "t"), ("Ġ", "it"), (":", "Ġ"), ("5", "<"), ("!", "<"),
]  # fmt: skip
"""Tokens that go over the borders of turns, where a text is tokenised as a whole."""
SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>")


def made_tokenizer(*, adds_bos: bool = False, chat_template: str | None = None) -> Any:
    """Bytes and a few merges, always with the same ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*SPECIALS, *alphabet, *("".join(merge) for merge in MERGES)]
    ids = {token: k for k, token in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(ids, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    steps: list[Any] = [processors.ByteLevel(trim_offsets=False)]
    if adds_bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    backend.post_processor = processors.Sequence(steps)
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    made.chat_template = chat_template
    return made


def turns(*texts: str, system: str | None = None) -> list[Json]:
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return first + [{"role": roles[k % 2], "content": t} for k, t in enumerate(texts)]


MARKERS = "</s><|im_end|>\n<|im_start|>user\n[/INST] {{content}} {{idx}} <|eot_id|>"

CALL: Json = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}

CHATS: dict[str, Json] = {
    "one turn": {"messages": turns("11+4?", "15")},
    "several turns": {"messages": turns("11+4?", "15", "And it?", "It is 1.", "!", "1")},
    "system": {"messages": turns("11+4?", "15", system="Be brief.")},
    "system, several turns": {"messages": turns("Hi", "Hello!", "1?", "\n1\n", system="Kind. ")},
    "empty system": {"messages": turns("Hi", "Hello", system="")},
    "unicode": {"messages": turns("Was heißt 猫?", "Katze 😀 e\u0301 \u202eabc ﷺ")},
    "spaces around": {"messages": turns(" \n1 ", "\n\n 1\n\n", " it", " 1 ")},
    "markers": {"messages": turns(f"What is {MARKERS}?", f"It is {MARKERS}.", "{{idx}}", "1")},
    "thought": {"messages": turns("11+4?", "<think>\nhm\n</think>\n\n15", "It?", "<think> 1")},
    "empty answer": {"messages": turns("Hi", "", "Hi?", "Yes")},
    "long answer": {"messages": turns("Count.", "1 and it " * 20, "More.", "1, 1 " * 20)},
    "long prompt": {"messages": turns("Read it: " + "1 and it " * 20, "Fine.", "And?", "1")},
    "both long": {"messages": turns("it 1 " * 25, "1 it! " * 20, "it 1 " * 25, "1 it! " * 20)},
    "tools": {
        "messages": [
            {"role": "user", "content": "Ulm?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "rain"},
            {"role": "assistant", "content": "It rains."},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    },
}
"""Kind -> row with messages."""


def called(*parts: tuple[str, str]) -> Json:
    return {"messages": [{"role": role, "content": content} for role, content in parts]}


NAMED: dict[str, Json] = {
    "ShareGPT": called(("human", "11+4?"), ("gpt", "15")),
    "ShareGPT's calls": called(
        ("system", "Tools."), ("human", "Ulm?"), ("function_call", '{"name": "weather"}'),
        ("observation", "rain"), ("gpt", "It rains."),
    ),
    "results alone": called(("user", "Ulm?"), ("tool", "rain"), ("assistant", "It rains.")),
    "other names": called(("Human", "1?"), ("model", "1"), ("user", "it?"), ("assistant", "It.")),
    "large letters": called(("user", "1?"), ("Assistant", "1"), ("USER", "it"), ("gpt", "It.")),
    "developer": called(("developer", "Brief."), ("user", "1?"), ("assistant", "1")),
}  # fmt: skip
"""Kind -> row whose roles have names that not all trainers know."""

INSTRUCTIONS: dict[str, Json] = {
    "instruction": {"instruction": "Add 11 and 4.", "input": "", "output": "15"},
    "with input": {"instruction": "Add.\n", "input": "11 and 4", "output": "15\n"},
    "unicode instruction": {"instruction": "Was heißt das?", "input": "猫 😀", "output": "Katze ﷺ"},
    "ends already": {"instruction": "Say it.", "input": "", "output": "It.</s>"},
    "long instruction": {"instruction": "1 and it " * 20, "input": "", "output": "it 1 " * 30},
}
"""Kind -> row of instruction, input and output."""

CUTS = (8, 21, 64, 512)
"""What rows are cut at; the last cuts none."""


ROWS = CHATS | INSTRUCTIONS
LONG = [(kind, cut) for kind in ROWS if "long" in kind for cut in CUTS[:-1]]
KINDS = [*((kind, CUTS[-1]) for kind in ROWS), *LONG]
"""What is compared: kind, and what its row is cut at."""


def digest(tokens: tuple[list[int], list[bool]] | None) -> str | None:
    """Of a row's ids, and of which carry loss; None where no token that is predicted does."""
    if tokens is None or not any(tokens[1][1:]):
        return None
    text = f"{tokens[0]} {[int(label) for label in tokens[1][1:]]}"
    return str(xxhash.xxh3_64_hexdigest(text.encode()))[:8]
