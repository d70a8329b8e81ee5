"""Formats for trainers that want to be told what is in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from gracekit import files
from gracekit.errors import DataError, ExportError
from gracekit.exports.records import Jsonl
from gracekit.protocols import ExportContent
from gracekit.samples.formats import choose_format, named_format
from gracekit.samples.messages import ASSISTANT, ROLES
from gracekit.types import Json

DATASET_INFO = "dataset_info.json"
FUNCTION_CALL = "function_call"
"""ShareGPT's name of the assistant's turn that calls a tool."""
AXOLOTL_ROLES = {
    ASSISTANT: ["assistant", "gpt"],
    "system": ["system"],
    "tool": ["tool"],
    "user": ["human", "user"],
}
"""What Axolotl takes names of roles for; `roles` in an entry of its datasets replaces all of it."""


class LlamaFactory:
    """`coreset.jsonl` with a `dataset_info.json` for LLaMA-Factory.

    `dataset_dir` may be the export itself. When its parent is a `dataset_dir` already (it has a
    `dataset_info.json`), the export is entered there under its own name; all else in that file
    stays.
    """

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """`ExportError` where the parent's file has another dataset of that name."""
        facts = Jsonl().write(content, directory, out)
        name = out.name
        entry = _llamafactory_entry(Layout.of(content))
        shared = out.parent / DATASET_INFO
        known = _known_datasets(shared, name) if shared.exists() else None
        own = {name: {"file_name": Jsonl.file_name, **entry}}
        (directory / DATASET_INFO).write_text(_dump(own), encoding="utf-8")
        if known is not None:
            known[name] = {"file_name": f"{name}/{Jsonl.file_name}", **entry}
            files.write_text_atomic(shared, _dump(known))
        return {
            "files": [*facts["files"], DATASET_INFO],
            "dataset": name,
            "dataset_dir": str(out if known is None else out.parent),
        }


class Axolotl:
    """`coreset.jsonl` with `axolotl.yaml`, the lines to put into an axolotl configuration."""

    file_name = "axolotl.yaml"

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """The path in the fragment is absolute."""
        facts = Jsonl().write(content, directory, out)
        dataset = {
            "path": str(out / Jsonl.file_name),
            "ds_type": "json",
            **_axolotl_options(Layout.of(content)),
        }
        fragment = yaml.safe_dump({"datasets": [dataset]}, sort_keys=False, allow_unicode=True)
        (directory / self.file_name).write_text(fragment, encoding="utf-8")
        return {"files": [*facts["files"], self.file_name]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the columns of the rows mean. Empty: there is no such column."""

    messages: str = ""
    role_key: str = ""
    content_key: str = ""
    user: str = ""
    assistant: str = ""
    prompt: str = ""
    query: str = ""
    response: str = ""
    history: str = ""
    system: str = ""
    tools: str = ""
    text: str = ""
    chosen: str = ""
    rejected: str = ""
    names_of: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Of conversations: role -> what the selected rows call it."""
    has_tool_calls: bool = False
    """Of conversations: whether a message of the selected rows has `tool_calls`."""
    is_as_axolotl: bool = False
    """Whether roles were read as Axolotl reads them by itself, but for `data.roles`."""
    filled: frozenset[str] = frozenset()
    """Columns beside the prompt or the chat that some selected row fills: of `tools`, and of
    `history` or, beside a chat, of the system message."""
    own_roles: Mapping[str, str] = field(default_factory=dict)
    """Names of roles of the user's own -> role."""

    @classmethod
    def of(cls, content: ExportContent) -> Layout:
        """By the columns and the first row; `ExportError` for what these trainers do not know."""
        data = content.header.dataset
        record = next(content.records(), {})
        try:
            layout = choose_format(data.settings, content.columns)
        except DataError:
            layout = named_format(data.settings, data.detected_format or "text")

        def column(what: str) -> str:
            names = layout.names.get(what, ())
            return next((name for name in names if name in content.columns), "")

        messages, prompt, response = column("messages"), column("prompt"), column("response")
        if layout.name == "preference":  # one prompt or chat, and one answer on each side
            is_chat = isinstance(record.get(prompt), list)
            messages, prompt = (prompt, "") if is_chat else ("", prompt)
            sides = [record[column(what)] for what in ("chosen", "rejected")]
            response = column("chosen") if all(isinstance(side, str) for side in sides) else ""
            if is_chat and not all(isinstance(side, dict) for side in sides):
                messages = ""
        if messages and isinstance(record[messages], list) and record[messages]:
            user, assistant = _role_names(record[messages], layout.roles)
            turn = record[messages][0]
            return cls(
                messages=messages,
                role_key="role" if "role" in turn else "from",
                content_key="content" if "content" in turn else "value",
                user=user,
                assistant=assistant,
                system=column("system"),
                tools=column("tools"),
                chosen=column("chosen"),
                rejected=column("rejected"),
                own_roles=layout.roles,
                names_of=_names_of(content, messages, layout.roles),
                filled=_filled(content, [column("system"), column("tools")]),
                has_tool_calls=any(turn.get("tool_calls") for turn in _turns_of(content, messages)),
                is_as_axolotl=data.settings.rendering == "axolotl",
            )
        if prompt and response and isinstance(record.get(prompt), str):
            return cls(
                prompt=prompt,
                query=column("input"),
                response=response,
                history=column("history"),
                system=column("system"),
                tools=column("tools"),
                chosen=column("chosen"),
                rejected=column("rejected"),
                filled=_filled(content, [column("history"), column("tools")]),
            )
        if column("text"):
            return cls(text=column("text"))
        raise ExportError(
            "expected conversations as lists, a prompt and a response as text, or a text column, "
            f"for this format; found the columns {', '.join(record)}. "
            "Export as jsonl, and describe the file to the trainer yourself"
        )


def _filled(content: ExportContent, columns: list[str]) -> frozenset[str]:
    """Those of the columns that hold something in a selected row."""
    asked = [name for name in columns if name]
    if not asked:
        return frozenset()
    empty: tuple[object, ...] = (None, "", "[]", [])
    records = content.records()
    return frozenset(name for row in records for name in asked if row.get(name) not in empty)


def _names_of(
    content: ExportContent, messages: str, roles: Mapping[str, str]
) -> dict[str, frozenset[str]]:
    """What the selected rows call each role."""
    found: dict[str, set[str]] = {}
    for turn in _turns_of(content, messages):
        name = turn.get("role") or turn.get("from")
        if isinstance(name, str):
            role = roles.get(name) or ROLES.get(name.casefold(), name)
            found.setdefault(role, set()).add(name)
    return {role: frozenset(names) for role, names in found.items()}


def _turns_of(content: ExportContent, messages: str) -> Iterator[Json]:
    """The messages of all selected rows."""
    for record in content.records():
        turns = record.get(messages)
        yield from (t for t in (turns if isinstance(turns, list) else ()) if isinstance(t, dict))


def _role_names(turns: list[Json], roles: Mapping[str, str]) -> tuple[str, str]:
    """What the user and the assistant are called in a conversation."""
    found = {ASSISTANT: "", "user": ""}
    for turn in turns:
        name = turn.get("role") or turn.get("from")
        if isinstance(name, str):
            role = roles.get(name) or ROLES.get(name.casefold(), name)
            found[role] = found.get(role) or name
    user = found["user"] or "user"
    return user, found[ASSISTANT] or ("gpt" if user == "human" else ASSISTANT)


def _llamafactory_entry(layout: Layout) -> Json:
    """An entry of `dataset_info.json`, but for `file_name`."""
    sides = _given(chosen=layout.chosen, rejected=layout.rejected)
    ranking = {"ranking": True} if sides else {}
    if layout.messages:
        return {
            **ranking,
            "formatting": "openai" if layout.has_tool_calls else "sharegpt",
            "columns": _given(messages=layout.messages, system=layout.system, tools=layout.tools)
            | sides,
            "tags": _llamafactory_tags(layout),
        }
    return {
        **ranking,
        "formatting": "alpaca",
        "columns": _given(
            prompt=layout.text or layout.prompt,
            query=layout.query,
            response="" if sides else layout.response,
            system=layout.system,
            history=layout.history,
            tools=layout.tools if layout.tools in layout.filled else "",
        )
        | sides,
    }


def _llamafactory_tags(layout: Layout) -> dict[str, str]:
    """The keys of a message, and the one name that LLaMA-Factory knows for each role.

    Raises `ExportError` where rows have several, since it drops those with another.
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


def _axolotl_roles(layout: Layout) -> dict[str, list[str]]:
    """Role -> names, so that Axolotl reads the selected rows as they were measured."""
    roles = {role: set(names) for role, names in AXOLOTL_ROLES.items()}
    for role, names in layout.names_of.items():
        own = {name for name in names if layout.own_roles.get(name) == role}
        for name in own if layout.is_as_axolotl else names - {role}:
            roles.setdefault(role, {role}).add(name)
    return {role: sorted(names) for role, names in sorted(roles.items())}


def _axolotl_options(layout: Layout) -> Json:
    """An entry of `datasets`, but for the file; `ExportError` for preference pairs."""
    if layout.chosen:
        raise ExportError(
            "preference pairs need more of an axolotl configuration than an entry of its datasets "
            "(rl: dpo and a type of that). Export as jsonl, and name the file there"
        )
    if layout.messages:
        roles = _axolotl_roles(layout)
        for name, known in ((layout.system, "system"), (layout.tools, "tools")):
            if name in layout.filled and name != known:
                raise ExportError(
                    f"the selected rows have {name!r} beside the chat, and axolotl's chat_template "
                    f"reads only a column {known!r}, so it would be left out of the prompt. Rename "
                    f"it to {known!r} in the data, or export as jsonl"
                )
        return {
            "type": "chat_template",
            "field_messages": layout.messages,
            "message_property_mappings": {
                "role": layout.role_key,
                "content": layout.content_key,
            },
            **({"roles": roles} if roles != AXOLOTL_ROLES else {}),
        }
    if layout.text:
        return {"type": "completion", "field": layout.text}
    if layout.filled:
        raise ExportError(
            f"the selected rows have {', '.join(sorted(layout.filled))} beside the prompt, which "
            "axolotl's datasets of prompts and answers do not take, so it would be left out of the "
            "prompt. Write the rows as chats (messages), or export as jsonl"
        )
    if layout.prompt == "instruction" and layout.response == "output" and not layout.system:
        return {"type": "alpaca"}
    return {
        "type": {
            **_given(field_system=layout.system),
            "field_instruction": layout.prompt,
            **_given(field_input=layout.query),
            "field_output": layout.response,
            "format": "{instruction}\n\n{input}" if layout.query else "{instruction}",
            "no_input_format": "{instruction}",
        }
    }


def _given(**values: str) -> Json:
    return {name: value for name, value in values.items() if value}


def _known_datasets(shared: Path, name: str) -> Json:
    """What a `dataset_info.json` holds; `ExportError` where we must not write to it."""
    try:
        known = json.loads(shared.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(
            f"{shared} is not valid JSON ({error}), so the export cannot be entered there; "
            "correct it, or export to a directory elsewhere"
        ) from None
    if not isinstance(known, dict):
        raise ExportError(f"{shared} should hold one JSON object; correct it, or export elsewhere")
    present = known.get(name, {})
    if present and not str(present.get("file_name", "")).startswith(f"{name}/"):
        raise ExportError(
            f"{shared} already has a dataset {name!r} with other data; name the export otherwise"
        )
    return known


def _dump(value: Json) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
