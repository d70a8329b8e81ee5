"""The format `llamafactory`: rows, and the entry of `dataset_info.json` that describes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gracekit import files
from gracekit.errors import ExportError, StoreWriteError
from gracekit.exports.conversations import conversations_of
from gracekit.exports.layout import Layout, given
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
from gracekit.foreign import reason_of
from gracekit.protocols import ExportContent
from gracekit.remote import address_or_path
from gracekit.samples import Conversation
from gracekit.samples.messages import ASSISTANT
from gracekit.types import Json

DATASET_INFO = "dataset_info.json"
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
    (`entered`); all else in that file stays.

    LLaMA-Factory drops a chat whose turns do not alternate, or with a role of a second name. Where
    a selected row is such, all chats are written anew, in its names, as `turns.alternating` says.
    """

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """`ExportError` where the parent's file has another dataset of that name."""
        layout, changes = Layout.of(content), Changes()
        if layout.messages and not layout.chosen and not _keeps_all(content, layout):
            entry = _write_anew(content, layout, directory, changes)
        else:
            Jsonl().write(content, directory, out)
            entry = _entry(layout)
        name = out.name
        shared = out.parent / DATASET_INFO
        known = _known_datasets(shared, name) if shared.exists() else None
        own = {name: {"file_name": Jsonl.file_name, **entry}}
        (directory / DATASET_INFO).write_text(_dump(own), encoding="utf-8")
        return {
            "files": [Jsonl.file_name, DATASET_INFO],
            "dataset": name,
            "dataset_dir": address_or_path(out if known is None else out.parent),
            **({"changed": changes.to_json()} if changes.rows else {}),
        }


@contextmanager
def entered(out: Path, *, is_asked: bool) -> Iterator[None]:
    """The block puts an export into its place, or leaves the earlier one there.

    What is there then is entered in the parent's `dataset_info.json`, where there is one. Within
    the block no entry is there, so that a kill leaves none that points to nothing or tells the
    columns of other rows. Exports of other formats than this are left out of it, but for the entry
    of the earlier export that they replace.

    Args:
        out: The place.
        is_asked: Whether it is an export in this format.

    Raises:
        ExportError: The file is not ours to write to, or cannot be written; the message tells
            whether the export is in its place.
    """
    if not is_asked and not (out / DATASET_INFO).is_file():
        yield
        return
    shared = out.parent / DATASET_INFO
    files.remove_left_files(shared)
    try:
        with suppress(ExportError):  # of a file that is no such thing; the format itself refuses it
            known = _known_datasets(shared, out.name) if shared.exists() else {}
            if known.pop(out.name, None) is not None:
                files.write_text_atomic(shared, _dump(known))
        yield
    except BaseException:
        with suppress(ExportError):
            enter(out)
        raise
    enter(out)


def enter(out: Path) -> None:
    """Enter a finished export in the parent's `dataset_info.json`, unless there is none.

    Raises `ExportError`. An export of another format is not entered.
    """
    own, shared = out / DATASET_INFO, out.parent / DATASET_INFO
    if not own.is_file() or not shared.exists():
        return
    files.remove_left_files(shared)
    try:
        found = files.read_json(own)[out.name]
        entry = {**found, "file_name": f"{out.name}/{found['file_name']}"}
    except (OSError, ValueError, KeyError, TypeError):  # it was renamed, or is no file of ours
        return
    try:
        known = _known_datasets(shared, out.name)
        if known.get(out.name) != entry:
            files.write_text_atomic(shared, _dump({**known, out.name: entry}))
    except (ExportError, StoreWriteError) as error:
        raise ExportError(
            f"{out} is written, but not entered in {shared}: {error}. Then export again with "
            "--force, or use the export itself as dataset_dir"
        ) from error


def _keeps_all(content: ExportContent, layout: Layout) -> bool:
    """Whether LLaMA-Factory keeps every row as it is."""
    calls = {FUNCTION_CALL}
    if any(len(names - calls) > 1 for names in layout.names_of.values()):
        return False
    if layout.names_of.keys() - {"system", "user", ASSISTANT, "tool"}:
        return False
    return all(
        alternate(_turns(conversation, layout)) for conversation, _ in conversations_of(content)
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
            "formatting": "openai" if layout.has_tool_calls else "sharegpt",
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


def _known_datasets(shared: Path, name: str) -> Json:
    """What a `dataset_info.json` holds; `ExportError` where we must not write to it."""
    try:
        known = files.read_json(shared)
        _dump(known).encode()  # JSON can hold what no file of UTF-8 can
    except OSError as error:
        raise ExportError(
            f"cannot read {shared}, where the export is to be entered: {reason_of(error)}; correct "
            "it, or export to a directory elsewhere"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ExportError(
            f"{shared} is not valid JSON ({reason_of(error)}), so the export cannot be entered "
            "there; correct it, or export to a directory elsewhere"
        ) from None
    if not isinstance(known, dict):
        raise ExportError(f"{shared} should hold one JSON object; correct it, or export elsewhere")
    present = known.get(name, {})
    is_ours = isinstance(present, dict) and str(present.get("file_name", "")).startswith(f"{name}/")
    if present and not is_ours:
        raise ExportError(
            f"{shared} already has a dataset {name!r} with other data; name the export otherwise"
        )
    return known


def _dump(value: Json) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
