"""The format `axolotl`: rows, and the lines that an Axolotl configuration needs for them."""

from __future__ import annotations

from pathlib import Path

import yaml

from gracekit.errors import ExportError
from gracekit.exports.conversations import conversations_of, layout_of, silent_turns
from gracekit.exports.layout import Layout, given, messages_as_told
from gracekit.exports.records import Jsonl
from gracekit.protocols import ExportContent
from gracekit.remote import address_or_path
from gracekit.samples.messages import ASSISTANT, LOSS_KEYS
from gracekit.types import Json

AXOLOTL_ROLES = {
    ASSISTANT: ["assistant", "gpt"],
    "system": ["system"],
    "tool": ["tool"],
    "user": ["human", "user"],
}
"""What Axolotl takes names of roles for; `roles` in an entry of its datasets replaces all of it."""


class Axolotl:
    """`coreset.jsonl` with `axolotl.yaml`, the lines to put into an axolotl configuration."""

    file_name = "axolotl.yaml"

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """The path in the fragment is absolute."""
        layout, silent = Layout.of(content), 0
        options = _axolotl_options(layout)
        if layout.messages:
            silent, mark = _check_chats(content, layout)
            if silent and mark:
                options["message_field_training"], silent = mark, 0
        facts = Jsonl().write(content, directory, out)
        dataset = {
            "path": address_or_path(out / Jsonl.file_name),
            "ds_type": "json",
            **options,
        }
        fragment = yaml.safe_dump({"datasets": [dataset]}, sort_keys=False, allow_unicode=True)
        (directory / self.file_name).write_text(fragment, encoding="utf-8")
        return {
            "files": [*facts["files"], self.file_name],
            **({"silent_turns": silent} if silent else {}),
        }


CONTENTS = (str, int, float, list)
"""What Axolotl takes as the content of a message; of a list it joins the texts of its parts."""


def _check_chats(content: ExportContent, layout: Layout) -> tuple[int, str]:
    """How many turns are marked to carry no loss, and the key that says it, as Axolotl would take
    it; "" where there are several, or one that would say so of a turn that is not the assistant's.

    Raises `ExportError` for a chat that Axolotl would read otherwise than it was measured.
    """
    num_silent, keys, is_taken = 0, set(), True
    loss_on, counts = content.header.dataset.settings.loss_on, layout_of(content).has_weights
    rows = zip(conversations_of(content), content.sample_ids, strict=True)
    for (conversation, record), sample_id in rows:
        messages = messages_as_told(layout, conversation, record, CONTENTS)
        if messages is None:
            raise ExportError(
                f"the messages of the sample {sample_id!r} are not all objects with "
                f"{layout.role_key!r} and {layout.content_key!r}, as those of the first selected "
                "row are, and axolotl's chat_template reads these alone. Export as trl, whose "
                "messages are, and give axolotl that file"
            )
        num_silent += silent_turns(conversation, loss_on) if counts else 0
        for entry, message in messages:
            for key in LOSS_KEYS:
                value = entry.get(key)
                if value is not None:
                    keys.add(key)
                    is_said = isinstance(value, bool | int) and value in (0, 1)
                    is_taken &= is_said and (not value or message["role"] == ASSISTANT)
    return num_silent, keys.pop() if is_taken and len(keys) == 1 else ""


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
            **given(field_system=layout.system),
            "field_instruction": layout.prompt,
            **given(field_input=layout.query),
            "field_output": layout.response,
            "format": "{instruction}\n\n{input}" if layout.query else "{instruction}",
            "no_input_format": "{instruction}",
        }
    }
