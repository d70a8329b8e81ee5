"""The format `axolotl`: rows, and the lines that an Axolotl configuration needs for them."""

from __future__ import annotations

from pathlib import Path

import yaml

from gracekit.errors import ExportError
from gracekit.exports.layout import Layout, given
from gracekit.exports.records import Jsonl
from gracekit.protocols import ExportContent
from gracekit.remote import address_or_path
from gracekit.samples.messages import ASSISTANT
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
        facts = Jsonl().write(content, directory, out)
        dataset = {
            "path": address_or_path(out / Jsonl.file_name),
            "ds_type": "json",
            **_axolotl_options(Layout.of(content)),
        }
        fragment = yaml.safe_dump({"datasets": [dataset]}, sort_keys=False, allow_unicode=True)
        (directory / self.file_name).write_text(fragment, encoding="utf-8")
        return {"files": [*facts["files"], self.file_name]}


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
