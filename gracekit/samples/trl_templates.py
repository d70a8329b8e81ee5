"""The chat template that TRL trains with where it puts one of its own in the model's place.

With `assistant_only_loss`, TRL's `SFTTrainer` needs a template that marks what is generated. Where
the model's has no such marks, TRL renders with a training template that goes with it, while its
checkpoints keep the model's template. TRL's templates are files of its package,
`chat_templates/NAME.jinja` beside `chat_templates/NAME_training.jinja`: they are read from where
TRL is installed, and nothing of TRL is run.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

MARKS_GENERATED = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""What TRL takes for the mark of a template that it can train with."""
ENDING = "_training.jinja"


def training_template(source: str) -> str | None:
    """The text that TRL renders with in place of a model's template.

    Args:
        source: The model's template.

    Returns:
        None where TRL trains with the model's own, does not know it, or is not installed here.
    """
    if MARKS_GENERATED.search(source):
        return None
    folder = templates_folder()
    return None if folder is None else _templates_in(folder).get(source)


def templates_folder() -> Path | None:
    """Where the templates of the installed TRL lie; None where there is none."""
    found = importlib.util.find_spec("trl")  # finds the package and does not import it
    for place in (found.submodule_search_locations or ()) if found else ():
        if (folder := Path(place) / "chat_templates").is_dir():
            return folder
    return None


@cache
def _templates_in(folder: Path) -> dict[str, str]:
    """The model's template -> the one to train with."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob(f"*{ENDING}")):
        own = path.with_name(path.name.removesuffix(ENDING) + ".jinja")
        if own.is_file():
            found.setdefault(own.read_text("utf-8"), path.read_text("utf-8"))
    return found
