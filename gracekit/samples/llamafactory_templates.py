"""The templates of LLaMA-Factory that are built: what stands around what is said.

They are what LLaMA-Factory 0.9.5 writes; tests hold each against the library itself.
"""

from __future__ import annotations

from dataclasses import dataclass

BOS, EOS, CONTENT = "\0bos", "\0eos", "{{content}}"
"""Slots for the tokenizer's own tokens, and where a turn's text goes within a slot."""
END_OF_TEXT = "<|endoftext|>"
"""What LLaMA-Factory adds where a tokenizer has no end-of-sequence token."""
Slots = tuple[str, ...]
"""Parts that are tokenised one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One template."""

    user: Slots = (CONTENT,)
    assistant: Slots = (CONTENT, EOS)
    system: Slots = (CONTENT,)
    prefix: Slots = ()
    """What stands before all turns."""
    default_system: str = ""
    """Where a row has no system message, or an empty one."""
    stop_words: tuple[str, ...] = ()
    """Tokens that LLaMA-Factory adds to the tokenizer."""
    replaces_eos: bool = False
    """Whether the first of them becomes the tokenizer's end-of-sequence token."""
    system_in_turn: bool = False
    """Whether the system message is a part of the first prompt's text."""
    thought: tuple[str, ...] = ()
    """What opens and closes a thought; an answer without one gets an empty one, with loss."""
    ends_once: bool = False
    """Whether one end-of-sequence token stands behind all turns, and none behind each."""


THINK = ("<think>\n", "\n</think>\n\n")


def _chatml(default_system: str = "", **more: object) -> Template:
    """The layout with `<|im_start|>` and `<|im_end|>`, which many models share."""
    fields: dict[str, object] = {
        "user": (f"<|im_start|>user\n{CONTENT}<|im_end|>\n<|im_start|>assistant\n",),
        "assistant": (f"{CONTENT}<|im_end|>\n",),
        "system": (f"<|im_start|>system\n{CONTENT}<|im_end|>\n",),
        "stop_words": ("<|im_end|>",),
        "replaces_eos": True,
        "default_system": default_system,
    }
    return Template(**{**fields, **more})  # type: ignore[arg-type]


def _phi(space: str) -> Template:
    return Template(
        user=(f"<|user|>{space}{CONTENT}<|end|>{space}<|assistant|>{space}",),
        assistant=(f"{CONTENT}<|end|>{space}",),
        system=(f"<|system|>{space}{CONTENT}<|end|>{space}",),
        stop_words=("<|end|>",),
        replaces_eos=True,
    )


def _deepseek(thought: tuple[str, ...] = ()) -> Template:
    return Template(user=(f"<｜User｜>{CONTENT}<｜Assistant｜>",), prefix=(BOS,), thought=thought)


def _glm(thought: tuple[str, ...] = ()) -> Template:
    return Template(
        user=(f"<|user|>\n{CONTENT}<|assistant|>",),
        assistant=(f"\n{CONTENT}",),
        system=(f"<|system|>\n{CONTENT}",),
        prefix=("[gMASK]<sop>",),
        stop_words=("<|user|>", "<|observation|>"),
        thought=thought,
        ends_once=True,
    )


def _granite(default_system: str, stop_words: tuple[str, ...]) -> Template:
    head, end = "<|start_of_role|>{}<|end_of_role|>", "<|end_of_text|>\n"
    return Template(
        user=(head.format("user") + CONTENT + end + head.format("assistant"),),
        assistant=(CONTENT + end,),
        system=(head.format("system") + CONTENT + end,),
        default_system=default_system,
        stop_words=stop_words,
    )


_QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
)
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

_LLAMA = "<|start_header_id|>{}<|end_header_id|>\n\n"

TEMPLATES = {
    "default": Template(
        user=(f"Human: {CONTENT}", EOS, "\nAssistant:"),
        assistant=(CONTENT, EOS, "\n"),
        system=(f"System: {CONTENT}", EOS, "\n"),
    ),
    "qwen": _chatml(_QWEN),
    "qwen3": _chatml(thought=THINK),
    "qwen3_nothink": _chatml(),
    "llama3": Template(
        user=(_LLAMA.format("user") + f"{CONTENT}<|eot_id|>" + _LLAMA.format("assistant"),),
        assistant=(f"{CONTENT}<|eot_id|>",),
        system=(_LLAMA.format("system") + f"{CONTENT}<|eot_id|>",),
        prefix=(BOS,),
        stop_words=("<|eot_id|>", "<|eom_id|>"),
        replaces_eos=True,
    ),
    "llama2": Template(
        user=(BOS, f"[INST] {CONTENT} [/INST]"),
        system=(f"<<SYS>>\n{CONTENT}\n<</SYS>>\n\n",),
        system_in_turn=True,
    ),
    "mistral": Template(
        user=(f"[INST] {CONTENT}[/INST]",),
        assistant=(f" {CONTENT}", EOS),
        system=(f"{CONTENT}\n\n",),
        prefix=(BOS,),
        system_in_turn=True,
    ),
    "ministral": Template(
        user=(f"[INST]{CONTENT}[/INST]",),
        system=(f"{CONTENT}\n\n",),
        prefix=(BOS,),
        system_in_turn=True,
    ),
    "gemma": Template(
        user=(f"<start_of_turn>user\n{CONTENT}<end_of_turn>\n<start_of_turn>model\n",),
        assistant=(f"{CONTENT}<end_of_turn>\n",),
        system=(f"{CONTENT}\n\n",),
        prefix=(BOS,),
        stop_words=("<end_of_turn>",),
        replaces_eos=True,
        system_in_turn=True,
    ),
    "phi": _phi("\n"),
    "phi4": Template(
        user=(f"<|im_start|>user<|im_sep|>{CONTENT}<|im_end|><|im_start|>assistant<|im_sep|>",),
        assistant=(f"{CONTENT}<|im_end|>",),
        system=(f"<|im_start|>system<|im_sep|>{CONTENT}<|im_end|>",),
        stop_words=("<|im_end|>",),
        replaces_eos=True,
    ),
    "phi4_mini": _phi(""),
    "deepseek": Template(
        user=(f"User: {CONTENT}\n\nAssistant:",), system=(f"{CONTENT}\n\n",), prefix=(BOS,)
    ),
    "deepseek3": _deepseek(),
    "deepseekr1": _deepseek(THINK),
    "glm4": _glm(),
    "glm4_moe": _glm(THINK),
    "granite3": _granite("", ()),
    "granite4": _granite(
        "You are Granite, developed by IBM. You are a helpful AI assistant.", ("<|end_of_text|>",)
    ),
    "lfm2": _chatml("You are a helpful AI assistant."),
    "smollm": _chatml(replaces_eos=False),
    "smollm2": _chatml(
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face.",
        replaces_eos=False,
    ),
    "yi": _chatml(replaces_eos=False),
    "chatml": _chatml(stop_words=("<|im_end|>", "<|im_start|>")),
    "alpaca": Template(
        user=(f"### Instruction:\n{CONTENT}\n\n### Response:\n",),
        assistant=(CONTENT, EOS, "\n\n"),
        default_system=_ALPACA,
    ),
    "vicuna": Template(user=(f"USER: {CONTENT} ASSISTANT:",), default_system=_VICUNA),
    "zephyr": Template(
        user=(f"<|user|>\n{CONTENT}", EOS, "<|assistant|>\n"),
        system=(f"<|system|>\n{CONTENT}", EOS),
        default_system="You are Zephyr, a helpful assistant.",
    ),
    "openchat": Template(
        user=(f"GPT4 Correct User: {CONTENT}", EOS, "GPT4 Correct Assistant:"), prefix=(BOS,)
    ),
    "falcon_h1": _chatml(
        prefix=(BOS,), stop_words=("<|im_end|>", "<|end_of_text|>"), replaces_eos=False
    ),
    "solar": Template(
        user=(f"### User:\n{CONTENT}\n\n### Assistant:\n",),
        assistant=(CONTENT,),
        system=(f"### System:\n{CONTENT}\n\n",),
        ends_once=True,
    ),
    "empty": Template(assistant=(CONTENT,)),
}
"""LLaMA-Factory's name -> template; the most used first, which is the order they are tried in."""
