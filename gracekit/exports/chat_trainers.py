"""Formats of trainers that read chats in one layout: TRL, ms-swift and torchtune.

Rows of any layout are written as the conversations that were measured, with the columns of ours
beside them and none of the user's others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from gracekit.errors import ExportError
from gracekit.exports.conversations import (
    conversations_of,
    has_one_answer,
    silent_turns,
    split_answer,
    template_messages,
)
from gracekit.exports.records import Jsonl, write_rows
from gracekit.exports.turns import CALL, OBSERVATION, Changes, alternating, turns_of
from gracekit.protocols import ExportContent
from gracekit.remote import address_or_path
from gracekit.samples import Conversation
from gracekit.samples.conversation import called_by_name
from gracekit.samples.messages import ASSISTANT
from gracekit.types import Json


class Trl:
    """`coreset.jsonl` in the layouts of TRL's `SFTTrainer` and `DPOTrainer`.

    Chats are `messages`, a prompt with its answer `prompt` and `completion`, plain text `text`,
    pairs `prompt`, `chosen` and `rejected`, tokens as they are. `trl.yaml` is for
    `trl sft --config`: the data, and which tokens carry loss.
    """

    file_name = "trl.yaml"

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """The directory is what `datasets.load_dataset` and `dataset_name` take."""
        settings = content.header.dataset.settings
        as_trl, silent = settings.rendering == "trl", 0
        kinds: set[str] = set()
        forms: set[type] = set()
        is_chat = False

        def row(conversation: Conversation, record: Json) -> Json:
            nonlocal silent, is_chat
            found = _trl_row(conversation, record, settings.rendering)
            kinds.update(found)
            forms.add(type(found.get("prompt")))
            if len(forms) > 1:
                raise ExportError(
                    "of the selected rows some have a prompt and an answer as text, and others as "
                    "messages, as a system message makes them, and TRL takes one of the two. Write "
                    "all as messages in the data, or export as jsonl"
                )
            is_chat |= isinstance(found.get("completion"), list)
            if not as_trl and "chosen" not in found:  # TRL's rendering is measured without marks
                silent += silent_turns(conversation, settings.loss_on)
            return found

        _write(row, content, directory)
        options: Json = {"dataset_name": address_or_path(out)}
        if "messages" in kinds:
            learns = ("response",) if as_trl else ("response", "auto")
            options["assistant_only_loss"] = settings.loss_on in learns
        elif "completion" in kinds:
            options["completion_only_loss"] = settings.loss_on != "all"
            if as_trl and is_chat:
                options["assistant_only_loss"] = settings.loss_on == "response"
        (directory / self.file_name).write_text(_yaml(options), encoding="utf-8")
        return {
            "files": [Jsonl.file_name, self.file_name],
            **({"silent_turns": silent} if silent else {}),
        }


def _trl_row(conversation: Conversation, record: Json, rendering: str) -> Json:
    if conversation.tokens is not None:
        names = ("input_ids", "labels", "attention_mask", "completion_mask", "assistant_masks")
        return {name: record[name] for name in names if record.get(name) is not None}
    if conversation.is_text:
        return {"text": conversation.messages[0]["content"]}
    tools: Json = {"tools": conversation.tools} if conversation.tools else {}
    messages = template_messages(conversation.messages)
    if conversation.rejected is not None:
        num_prompt = conversation.num_prompt_messages
        return {
            "prompt": messages[:num_prompt],
            "chosen": messages[num_prompt:],
            "rejected": template_messages(conversation.rejected),
            **tools,
        }
    if rendering in ("plain", "trl") and conversation.given_as == "strings":
        prompt, answer = split_answer(conversation)
        return {"prompt": prompt[-1]["content"], "completion": answer[0]["content"]}
    if conversation.num_prompt_messages:
        at = conversation.num_prompt_messages
        return {"prompt": messages[:at], "completion": messages[at:], **tools}
    if has_one_answer(conversation):
        prompt, answer = split_answer(conversation)
        return {"prompt": prompt, "completion": answer, **tools}
    if rendering == "trl":  # which gives roles to the template by the names that the row has
        named = called_by_name(conversation, conversation.role_names)
        messages = template_messages(tuple(named))
    return {"messages": messages, **tools}


class MsSwift:
    """`coreset.jsonl` in the layout that ms-swift calls standard, for `--dataset`.

    Calls of tools are turns of the role `tool_call`, what they gave `tool_response`, and `tools`
    is JSON text. A turn without loss has `loss: false`. Of a pair the other answer is
    `rejected_response`, or `rejected_messages` where it is several turns.
    """

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """`ExportError` for rows that are tokens, which ms-swift does not take."""
        _write(_swift_row, content, directory)
        return {"files": [Jsonl.file_name], "dataset": address_or_path(out / Jsonl.file_name)}


def _swift_row(conversation: Conversation, record: Json) -> Json:
    if conversation.tokens is not None:
        raise _tokens("ms-swift")
    if conversation.is_text:
        return {"messages": [{"role": ASSISTANT, "content": conversation.messages[0]["content"]}]}
    prompt = conversation.messages[: conversation.num_prompt_messages]
    row: Json = {"messages": _swift_messages(conversation.messages, conversation.role_names)}
    if conversation.tools:
        row["tools"] = json.dumps(conversation.tools, ensure_ascii=False)
    rejected = conversation.rejected
    if rejected is not None:
        answers = _swift_messages(rejected)
        if [answer["role"] for answer in answers] == [ASSISTANT]:
            row["rejected_response"] = answers[0]["content"]
        else:
            row["rejected_messages"] = _swift_messages((*prompt, *rejected))
    return row


def _swift_messages(messages: Sequence[Json], names: Sequence[str] = ()) -> list[Json]:
    kinds = {CALL: "tool_call", OBSERVATION: "tool_response"}
    found: list[Json] = []
    for message, name in zip(messages, names or ("",) * len(messages), strict=True):
        loss: Json = {} if message.get("has_loss", True) else {"loss": False}
        for turn in turns_of([message], [name]):
            role = kinds.get(turn.kind, turn.kind)
            carries = loss if role in (ASSISTANT, "tool_call") else {}
            texts = _single_calls(turn.text) if turn.kind == CALL else [turn.text]
            found += [{"role": role, "content": text, **carries} for text in texts]
    return found


def _single_calls(text: str) -> list[str]:
    """Calls one by one; as it is where they are no JSON."""
    try:
        calls = json.loads(text)
    except ValueError:
        return [text]
    listed = calls if isinstance(calls, list) else [calls]
    return [json.dumps(call, ensure_ascii=False) for call in listed]


class TorchTune:
    """`coreset.jsonl` with `torchtune.yaml`, the `dataset` of a torchtune configuration.

    Chats and prompts with answers are `messages` for `chat_dataset`, plain text is for
    `text_completion_dataset`, pairs are for `preference_dataset`. torchtune stops at turns that do
    not alternate, so they are made to (`turns.alternating`).
    """

    file_name = "torchtune.yaml"

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """`ExportError` for tokens and for calls of tools, which its chats do not have."""
        changes, kinds, silent = Changes(), set[str](), 0
        loss_on = content.header.dataset.settings.loss_on

        def row(conversation: Conversation, record: Json) -> Json:
            nonlocal silent
            found = _torchtune_row(conversation, changes)
            kinds.update(found)
            if "messages" in found:
                silent += silent_turns(conversation, loss_on)
            return found

        _write(row, content, directory)
        section: Json = {
            "_component_": "torchtune.datasets.chat_dataset",
            "source": "json",
            "data_files": address_or_path(out / Jsonl.file_name),
            "split": "train",
        }
        if "text" in kinds:
            section |= {"_component_": "torchtune.datasets.text_completion_dataset"}
            section |= {"column": "text"}
        else:
            section["train_on_input"] = loss_on == "all"
            if "chosen" in kinds:
                section["_component_"] = "torchtune.datasets.preference_dataset"
            else:
                section |= {"conversation_column": "messages", "conversation_style": "openai"}
        (directory / self.file_name).write_text(_yaml({"dataset": section}), encoding="utf-8")
        return {
            "files": [Jsonl.file_name, self.file_name],
            **({"changed": changes.to_json()} if changes.rows else {}),
            **({"silent_turns": silent} if silent else {}),
        }


def _torchtune_row(conversation: Conversation, changes: Changes) -> Json:
    if conversation.tokens is not None:
        raise _tokens("torchtune")
    if conversation.is_text:
        return {"text": conversation.messages[0]["content"]}
    messages = conversation.messages
    turns = turns_of(messages, conversation.role_names)
    rejected = turns_of(conversation.rejected or ())
    if conversation.tools or any(turn.kind in (CALL, OBSERVATION) for turn in (*turns, *rejected)):
        raise ExportError(
            "a selected row calls tools, and the chats of torchtune's datasets have neither calls "
            "nor tools. Leave such rows out with selection.never_in in the recipe, or export as "
            "llamafactory, ms-swift or trl"
        )
    if conversation.rejected is not None:
        prompt = messages[: conversation.num_prompt_messages]
        sides = {"chosen": messages, "rejected": (*prompt, *conversation.rejected)}
        return {
            name: [{"role": m["role"], "content": m["content"]} for m in side]
            for name, side in sides.items()
        }
    return {
        "messages": [
            {"role": turn.kind, "content": turn.text} for turn in alternating(turns, changes)
        ]
    }


def _write(
    row_of: Callable[[Conversation, Json], Json], content: ExportContent, directory: Path
) -> None:
    """What `row_of` makes of each conversation and its row, with our columns beside it."""

    def rows() -> Iterator[Json]:
        for (conversation, record), own in zip(
            conversations_of(content), content.beside(), strict=True
        ):
            yield row_of(conversation, record) | own

    write_rows(rows(), content, directory)


def _tokens(trainer: str) -> ExportError:
    return ExportError(
        f"the selected rows are tokens, which {trainer} does not read from a file. Export as trl, "
        "jsonl or hf-dataset"
    )


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
