"""The format `llamafactory`: rows, and the entry of `dataset_info.json` that describes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from gracekit.errors import ExportError
from gracekit.exports.conversations import conversations_of, num_silent
from gracekit.exports.dataset_info import DATASET_INFO, dump, known_datasets
from gracekit.exports.layout import Layout, given, messages_as_told
from gracekit.exports.records import Jsonl, write_rows
from gracekit.exports.turns import (
    CALL,
    FUNCTION_CALL,
    OBSERVATION,
    Changes,
    Turn,
    alternate,
    alternating,
    turns_of,
)
from gracekit.protocols import ExportContent
from gracekit.remote import address_or_path
from gracekit.samples import Conversation
from gracekit.samples.messages import ASSISTANT
from gracekit.types import Json

NAMES = {
    "system": "system",
    "user": "human",
    ASSISTANT: "gpt",
    CALL: FUNCTION_CALL,
    OBSERVATION: "observation",
}
"""Kind of a turn -> what ShareGPT calls it."""
OBSERVATIONS_JOINT = "\n</tool_response>\n<tool_response>\n"
"""What LLaMA-Factory puts between the answers of several tools."""


class LlamaFactory:
    """`coreset.jsonl` with a `dataset_info.json` for LLaMA-Factory.

    `dataset_dir` may be the export itself. When its parent is a `dataset_dir` already (it has a
    `dataset_info.json`), the export is entered there under its own name once it is in its place
    (`dataset_info.entered`); all else in that file stays.

    LLaMA-Factory drops a chat whose turns do not alternate, or with a role of a second name, and
    stops at one whose messages have other keys. Where a selected row is such, all chats are written
    anew, in its names, as `turns.alternating` says. So they are where one has `tool_calls`: its
    formatting `openai`, which reads these, puts "detailed thinking off" into the system message.
    """

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """`ExportError` where the parent's file has another dataset of that name, and for pairs
        that LLaMA-Factory would read otherwise.
        """
        layout, changes = Layout.of(content), Changes()
        if layout.messages and layout.chosen:
            _require_plain_pairs(content, layout)
        if layout.messages and not layout.chosen and not _keeps_all(content, layout):
            entry = _write_anew(content, layout, directory, changes)
        else:
            Jsonl().write(content, directory, out)
            entry = _entry(layout)
        name = out.name
        shared = out.parent / DATASET_INFO
        known = known_datasets(shared, name) if shared.exists() else None
        silent = num_silent(content) if layout.messages and not layout.chosen else 0
        own = {name: {"file_name": Jsonl.file_name, **entry}}
        (directory / DATASET_INFO).write_text(dump(own), encoding="utf-8")
        return {
            "files": [Jsonl.file_name, DATASET_INFO],
            "dataset": name,
            "dataset_dir": address_or_path(out if known is None else out.parent),
            **({"changed": changes.to_json()} if changes.rows else {}),
            **({"silent_turns": silent} if silent else {}),
        }


def _require_plain_pairs(content: ExportContent, layout: Layout) -> None:
    """`ExportError` for a pair whose messages are not all text under the keys of the first."""
    for record in content.records():
        chat = record.get(layout.messages)
        asked = chat if isinstance(chat, list) else [chat]
        turns = [*asked, record.get(layout.chosen), record.get(layout.rejected)]
        for turn in turns:
            plain = isinstance(turn, dict) and isinstance(turn.get(layout.content_key), str)
            if plain and isinstance(turn.get(layout.role_key), str) and not _calls(turn):
                continue
            raise ExportError(
                f"a message of the selected pairs is {turn!r:.60}, and LLaMA-Factory reads texts "
                f"with {layout.role_key!r} and {layout.content_key!r} alone, without calls of "
                "tools. Export as trl"
            )


def _calls(turn: Json) -> bool:
    return any(turn.get(key) for key in ("tool_calls", "function_call"))


def _keeps_all(content: ExportContent, layout: Layout) -> bool:
    """Whether LLaMA-Factory keeps every row as it is."""
    calls = {FUNCTION_CALL}
    if layout.has_tool_calls:
        return False
    if any(len(names - calls) > 1 for names in layout.names_of.values()):
        return False
    if layout.names_of.keys() - {"system", "user", ASSISTANT, "tool"}:
        return False
    return all(
        messages_as_told(layout, conversation, record) is not None
        and alternate(_turns(conversation, layout))
        for conversation, record in conversations_of(content)
    )


def _turns(conversation: Conversation, layout: Layout) -> list[Turn]:
    """The turns, those of tools in a row as one where LLaMA-Factory itself joins them."""
    turns = turns_of(conversation.messages, conversation.role_names)
    if not layout.has_tool_calls:
        return turns
    found: list[Turn] = []
    for turn in turns:
        if found and turn.kind == found[-1].kind == OBSERVATION:
            found[-1] = Turn(OBSERVATION, found[-1].text + OBSERVATIONS_JOINT + turn.text)
        else:
            found.append(turn)
    return found


def _write_anew(content: ExportContent, layout: Layout, directory: Path, changes: Changes) -> Json:
    """Write the rows with chats that alternate; returns the entry but for its `file_name`."""
    read = {name for name in (layout.messages, layout.system, layout.tools) if name}

    def rows() -> Iterator[Json]:
        for conversation, record in conversations_of(content):
            turns = alternating(_turns(conversation, layout), changes)
            row = {name: value for name, value in record.items() if name not in read}
            row[layout.messages] = [{"from": NAMES[t.kind], "value": t.text} for t in turns]
            if layout.tools:
                tools = conversation.tools
                row[layout.tools] = json.dumps(tools, ensure_ascii=False) if tools else ""
            yield row

    write_rows(rows(), content, directory)
    return {
        "formatting": "sharegpt",
        "columns": given(messages=layout.messages, tools=layout.tools),
        "tags": {
            "role_tag": "from",
            "content_tag": "value",
            "user_tag": NAMES["user"],
            "assistant_tag": NAMES[ASSISTANT],
            "observation_tag": NAMES[OBSERVATION],
            "function_tag": NAMES[CALL],
            "system_tag": NAMES["system"],
        },
    }


def _entry(layout: Layout) -> Json:
    """An entry of `dataset_info.json`, but for `file_name`."""
    sides = given(chosen=layout.chosen, rejected=layout.rejected)
    ranking = {"ranking": True} if sides else {}
    if layout.messages:
        return {
            **ranking,
            "formatting": "sharegpt",
            "columns": given(messages=layout.messages, system=layout.system, tools=layout.tools)
            | sides,
            "tags": _tags(layout),
        }
    return {
        **ranking,
        "formatting": "alpaca",
        "columns": given(
            prompt=layout.text or layout.prompt,
            query=layout.query,
            response="" if sides else layout.response,
            system=layout.system,
            history=layout.history,
            tools=layout.tools if layout.tools in layout.filled else "",
        )
        | sides,
    }


def _tags(layout: Layout) -> dict[str, str]:
    """The keys of a message, and the one name that LLaMA-Factory knows for each role.

    Of preference pairs an `ExportError` where rows have several, since it drops those with another.
    """
    names = dict(layout.names_of)
    calls = names.get(ASSISTANT, frozenset()) & {FUNCTION_CALL}
    tags = {
        "role_tag": layout.role_key,
        "content_tag": layout.content_key,
        "user_tag": layout.user,
        "assistant_tag": layout.assistant,
        "system_tag": "system",
    }
    roles = {"user_tag": "user", "assistant_tag": ASSISTANT, "system_tag": "system"}
    for tag, role in (roles | {"observation_tag": "tool"}).items():
        of_role = sorted(names.get(role, frozenset()) - calls)
        if len(of_role) > 1:
            raise ExportError(
                f"the selected rows call the role {role} {' and '.join(map(repr, of_role))}, and "
                "LLaMA-Factory knows one name for each, so it would drop the others' rows. Use "
                "one name in the data, or export as jsonl"
            )
        if of_role:
            tags[tag] = of_role[0]
    return tags | ({"function_tag": FUNCTION_CALL} if calls else {})
