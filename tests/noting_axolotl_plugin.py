"""A plugin for Axolotl that notes what each rank is fed; loaded only where Axolotl asks for it."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin

from tests.training_ranks_of_trainers import NoteRows


class NotingPlugin(BasePlugin):  # type: ignore[misc]
    """Adds the callback."""

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        return [NoteRows()]
